"""Learning-rate schedules: large steps first, small ones last (section 7.3).

    python recipes/07_scheduler.py

With a constant learning rate the line of section 6 jumps back and forth around its
minimum (06_workflow.py). A schedule lowers the rate while training. The script compares
five of them on that line, with a rate that is five times as high, and then shows where
in the loop a schedule has to advance.

prints:

    the learning rate in some epochs
                               1        25        50       100       150       200
    constant                0.05      0.05      0.05      0.05      0.05      0.05
    StepLR                  0.05      0.05     0.005     5e-05     5e-06     5e-08
    ReduceLROnPlateau       0.05      0.05    0.0005     5e-09     5e-09     5e-09
    CosineAnnealingLR       0.05     0.048     0.043     0.025    0.0076   3.1e-06
    OneCycleLR             0.002      0.02     0.047      0.04     0.014   6.5e-06

    where they end (true: weight 0.7, bias 0.3)
                        val_loss of the last two   weight     bias
    constant                     0.0250   0.0423   0.6552   0.2975
    StepLR                       0.0052   0.0052   0.6890   0.3046
    ReduceLROnPlateau            0.0137   0.0137   0.6710   0.3122
    CosineAnnealingLR            0.0003   0.0003   0.6993   0.3003
    OneCycleLR                   0.0009   0.0009   0.7011   0.3000

    the rates of four updates, from 0.8, halved every epoch
    scheduler first      0.40   0.20   0.10   0.05   wrong
    optimizer first      0.80   0.40   0.20   0.10

    fp16: the rate of every step
    step    scale    update       kit   plain loop
       1    65536   skipped    0.0010       0.0010
       2    32768   skipped    0.0010       0.0009
       3    16384      made    0.0010       0.0008
       4    16384      made    0.0009       0.0007
       5    16384      made    0.0008       0.0006
       6    16384      made    0.0007       0.0005
"""

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn
from torch.optim import lr_scheduler

import kit

# --- Five schedules ----------------------------------------------------------------

# StepLR             a tenth of the rate every 30 epochs
# ReduceLROnPlateau  a tenth of it after 10 epochs in which val_loss did not fall
# CosineAnnealingLR  along half a cosine, down to 0 in the last epoch
# OneCycleLR         up and down again, step by step and not epoch by epoch
#
# kit advances each at its right time, and gives the plateau its val_loss.
EPOCHS = 200  # of one batch, so of one step
LR = 0.05

train, val = kit.split(kit.make_data())
train_loader = kit.make_loader(train)
val_loader = kit.make_loader(val)

schedules = {
    "constant": lambda optimizer: None,
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1),
    "ReduceLROnPlateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.1, patience=10
    ),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(
        optimizer, T_max=EPOCHS
    ),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(
        optimizer, max_lr=LR, total_steps=EPOCHS
    ),
}

histories = {}
models = {}
for name, make_schedule in schedules.items():
    torch.manual_seed(42)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    state = kit.make_state(model, optimizer, scheduler=make_schedule(optimizer))
    state = kit.fit(state, train_loader, val_loader, loss_fn=nn.L1Loss(), epochs=EPOCHS)
    histories[name] = state.history
    models[name] = model

print("the learning rate in some epochs")
print(f"{'':18}" + "".join(f"{epoch:>10}" for epoch in (1, 25, 50, 100, 150, 200)))
for name, history in histories.items():
    rates = [history[epoch - 1]["lr"] for epoch in (1, 25, 50, 100, 150, 200)]
    print(f"{name:18}" + "".join(f"{rate:10.2g}" for rate in rates))

# The constant rate ends in a bounce. StepLR and the plateau stop it, but too early: the
# rate is next to nothing long before the line is learned. What is right for 30 epochs
# of images need not be so for 200 steps of a line.
print()
print("where they end (true: weight 0.7, bias 0.3)")
print(f"{'':18}{'val_loss of the last two':>26}{'weight':>9}{'bias':>9}")
for name, history in histories.items():
    before, last = history[-2]["val_loss"], history[-1]["val_loss"]
    weight, bias = models[name].weight.item(), models[name].bias.item()
    print(f"{name:18}{before:17.4f}{last:9.4f}{weight:9.4f}{bias:9.4f}")


# --- After the optimizer, not before -----------------------------------------------

# A schedule that advances before the first update skips the first rate. torch warns of
# it, once. Here StepLR halves the rate every epoch.


def rates_of_updates(scheduler_first):
    weight = nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.SGD([weight], lr=0.8)
    scheduler = lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    rates = []
    for epoch in range(4):
        if scheduler_first:
            scheduler.step()
        weight.grad = torch.tensor(0.0)
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
        if not scheduler_first:
            scheduler.step()
    return rates


print()
print("the rates of four updates, from 0.8, halved every epoch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the one of torch
    wrong = rates_of_updates(scheduler_first=True)
right = rates_of_updates(scheduler_first=False)
print(
    f"{'scheduler first':18}" + "".join(f"{rate:7.2f}" for rate in wrong) + "   wrong"
)
print(f"{'optimizer first':18}" + "".join(f"{rate:7.2f}" for rate in right))


# --- Not where fp16 skipped the update ---------------------------------------------

# In fp16 a gradient may become infinite. The scaler then skips the update and halves
# its scale (07_amp.py). A schedule that counts updates must not count that one. Here
# the scale it begins with, 65,536, is too large, and two updates are skipped. A loop
# that advances its schedule at every step loses the two highest rates; kit waits.
model = nn.Linear(4, 1)
nn.init.zeros_(model.weight)
nn.init.zeros_(model.bias)
optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
scheduler = lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.5)
state = kit.make_state(
    kit.amp(model, "fp16"), optimizer, scheduler=scheduler, per_step=True
)

# The same schedule, advanced whatever happens.
careless_optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.001)
careless = lr_scheduler.LinearLR(careless_optimizer, start_factor=1.0, end_factor=0.5)

batch = torch.ones(8, 4), torch.full((8, 1), 1.5)

print()
print("fp16: the rate of every step")
print(f"{'step':>4}{'scale':>9}{'update':>10}{'kit':>10}{'plain loop':>13}")
for step in range(1, 7):
    scale = state.scaler.get_scale()
    rate = optimizer.param_groups[0]["lr"]
    careless_rate = careless_optimizer.param_groups[0]["lr"]

    state, totals = kit.train_step(state, batch, loss_fn=nn.MSELoss())
    careless_optimizer.step()
    careless.step()

    update = "skipped" if totals["skipped"] else "made"
    print(f"{step:4}{scale:9.0f}{update:>10}{rate:10.4f}{careless_rate:13.4f}")
