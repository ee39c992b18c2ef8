"""Checkpoint: three ways to save, an exact resume, a file that attacks (section 5).

    python recipes/05_checkpoint.py

A model may be saved as its weights, as a whole, or together with everything that
training needs to continue. The script does one after the other. Then it interrupts a
run in the middle, resumes it from the tutorial's checkpoint and from kit's, and
compares both with a run that was never interrupted. Finally it opens a file that would
run a program. It writes to models/.

prints:

    largest difference of the 10 predictions, after loading
    weights                   0.0000
    whole model               0.0000
    checkpoint                0.0000

    what is in the checkpoint
    optimizer: 4 parameters with Adam's averages
    scheduler: 20 epochs done
    step:      60 batches trained on
    history:   20 rows, one for each epoch

    20 epochs, against 10 epochs, a stop, and 10 more
                                     weights differ by  last lr  history
    kit, never stopped                          0.0000   0.0010       20
    resumed from kit's file                     0.0000   0.0010       20
    resumed from the tutorial's file            0.0303   0.0100        0

    opening a file from a stranger
    torch.load with weights_only=False:
       this line was printed by the file
    torch.load as it is:
       refused
    kit.load_checkpoint:
       refused: it holds more than plain types, which could run code

    which one when
    to continue training                  a checkpoint
    to share or deploy, across versions   the weights, or an export (10_onnx.py)
    to try something quickly yourself     the whole model
"""

import pickle
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn, optim

import kit

train, test = kit.split(kit.make_data())
test_inputs, test_targets = test
loss_fn = nn.L1Loss()
Path("models").mkdir(exist_ok=True)


def make_model():
    return nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.1), nn.Linear(8, 1))


# A model to save: 20 epochs of training, with all that makes a run hard to continue.
# Batches are shuffled, dropout is random, Adam remembers past gradients, and the
# learning rate falls to a tenth after 12 epochs.
def make_state():
    torch.manual_seed(42)
    model = make_model()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=12)
    return kit.make_state(model, optimizer, scheduler=scheduler)


loader = kit.make_loader(train, batch_size=16, shuffle=True)
straight = kit.fit(make_state(), loader, loss_fn=loss_fn, epochs=20)
model = straight.model


def compare(name, loaded):
    difference = kit.predict(loaded, test_inputs) - kit.predict(model, test_inputs)
    print(f"{name:24}{difference.abs().max().item():8.4f}")


print("largest difference of the 10 predictions, after loading")


# --- 5.1 and 5.2 The weights -------------------------------------------------------

# The state_dict alone: names and tensors. Whoever loads it needs the code of the model.
# It survives changes of torch's version, and of the code as long as the names stay.
torch.save(model.state_dict(), "models/weights.pth")

loaded = make_model()
loaded.load_state_dict(torch.load("models/weights.pth"))
compare("weights", loaded)


# --- 5.3 The whole model -----------------------------------------------------------

# One line to save and one to load, and two catches. The file is a pickle, which names
# the classes it needs, so it fails when these have moved. And a pickle may call
# anything: see the end of this script. torch now refuses it unless weights_only=False
# vouches for it.
torch.save(model, "models/whole.pth")

loaded = torch.load("models/whole.pth", weights_only=False)
compare("whole model", loaded)


# --- 5.4 A checkpoint --------------------------------------------------------------

# All that changes while training, in one file that holds only numbers, texts and
# tensors.
kit.save_checkpoint(straight, "models/straight.pt")

state = kit.load_checkpoint(make_state(), "models/straight.pt")
compare("checkpoint", state.model)

saved = kit.read_checkpoint("models/straight.pt")
print()
print("what is in the checkpoint")
print("optimizer:", len(saved["optimizer"]["state"]), "parameters with Adam's averages")
print("scheduler:", saved["scheduler"]["last_epoch"], "epochs done")
print("step:     ", saved["step"], "batches trained on")
print("history:  ", len(saved["history"]), "rows, one for each epoch")


# --- 5.4 Resuming ------------------------------------------------------------------

# The tutorial's checkpoint has the epoch, the model, the optimizer and the loss. Its
# run is stopped after 10 epochs here and resumed in a new process, which begins by
# setting the seed, as every script does. What is missing: the schedule begins again,
# the random numbers begin again (so shuffling and dropout repeat those of the first
# epochs), and what the first 10 epochs measured is gone.


def plain_loop(model, optimizer, scheduler, epochs):
    dataset = torch.utils.data.TensorDataset(*train)
    loader = torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True)
    for epoch in epochs:
        model.train()
        for inputs, targets in loader:
            loss = loss_fn(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
    return loss.item()


def weights_of(model):
    return nn.utils.parameters_to_vector(model.parameters())


# Without a stop.
plain = make_state()
plain_loop(plain.model, plain.optimizer, plain.scheduler, range(20))

# With a stop after 10 epochs: save, ...
first = make_state()
loss = plain_loop(first.model, first.optimizer, first.scheduler, range(10))
torch.save(
    {
        "epoch": 10,
        "model_state_dict": first.model.state_dict(),
        "optimizer_state_dict": first.optimizer.state_dict(),
        "loss": loss,
    },
    "models/tutorial.pth",
)

# ... and continue in what stands for a new process.
second = make_state()
content = torch.load("models/tutorial.pth")
second.model.load_state_dict(content["model_state_dict"])
second.optimizer.load_state_dict(content["optimizer_state_dict"])
plain_loop(
    second.model, second.optimizer, second.scheduler, range(content["epoch"], 20)
)

# The same by kit. fit's epochs are the total, so it knows that 10 are left to do. Order
# and random numbers need no saving: they are computed from seed, epoch and step.
half = kit.fit(make_state(), loader, loss_fn=loss_fn, epochs=10)
kit.save_checkpoint(half, "models/half.pt")

resumed = kit.load_checkpoint(make_state(), "models/half.pt")
resumed = kit.fit(resumed, loader, loss_fn=loss_fn, epochs=20)

print()
print("20 epochs, against 10 epochs, a stop, and 10 more")
print(f"{'':32}{'weights differ by':>18}{'last lr':>9}{'history':>9}")


def report(name, state, reference):
    difference = weights_of(state.model) - weights_of(reference.model)
    lr = state.optimizer.param_groups[0]["lr"]
    print(
        f"{name:32}{difference.abs().max().item():18.4f}{lr:9.4f}{len(state.history):9}"
    )


report("kit, never stopped", straight, straight)
report("resumed from kit's file", resumed, straight)
report("resumed from the tutorial's file", second, plain)


# --- 5.3 again: why a pickle is not data -------------------------------------------

# A pickle tells the reader which functions to call. This one calls print; it could as
# well delete the files of whoever opens it.


class Attack:
    def __reduce__(self):
        return print, ("   this line was printed by the file",)


torch.save({"model": Attack()}, "models/attack.pt")

print()
print("opening a file from a stranger")

print("torch.load with weights_only=False:")
torch.load("models/attack.pt", weights_only=False)

print("torch.load as it is:")
try:
    torch.load("models/attack.pt")
except pickle.UnpicklingError:
    print("   refused")

print("kit.load_checkpoint:")
try:
    kit.load_checkpoint(make_state(), "models/attack.pt")
except ValueError as error:
    file, _, reason = str(error).partition(": ")
    print("   refused:", reason)


# --- 5.5 Which one when ------------------------------------------------------------

print()
print("which one when")
for purpose, way in (
    ("to continue training", "a checkpoint"),
    ("to share or deploy, across versions", "the weights, or an export (10_onnx.py)"),
    ("to try something quickly yourself", "the whole model"),
):
    print(f"{purpose:38}{way}")
