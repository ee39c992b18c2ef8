"""Gradient accumulation: the batch you want, in the memory you have (section 7.2).

    python recipes/07_accumulation.py

What fills the memory in training is mostly what the forward pass keeps for the backward
pass, and that grows with the rows that go through the model at once. With accumulate=4
a batch goes through in four micro-batches, whose gradients are added up before the one
update. The script measures the memory saved, shows that the training stays what it was,
and then where the tutorial's loop goes wrong.

prints:

    one step on 4,096 rows
    accumulate    rows at once  kept, MB   weights differ by
    1                    4,096      4.46            0.000000
    2                    2,048      2.23            0.000000
    4                    1,024      1.11            0.000000
    16                     256      0.28            0.000000
    weights and gradients take 0.15 MB in any case

    10 epochs on batches of 32, 32 and 7 rows
    loss                        accumulate  final loss  steps   last lr
    cross-entropy                        1     0.45961     30  0.000559
    cross-entropy                        4     0.45961     30  0.000559
    class weights, torch's mean          1     0.46050     30  0.000559
    class weights, totals                4     0.46050     30  0.000559

    an epoch of 71 rows
                     updates  rows used
    plain loop             2         64
    kit                    3         71

    the gradient of 25 rows in four micro-batches: how far off it is
    plain loop, 8 + 8 + 8 + 1      40.0%
    kit, 7 + 7 + 7 + 4              0.0%
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

import kit

# --- The memory it saves -----------------------------------------------------------

# One step on a batch of 4,096 rows. torch calls keep(tensor) for everything that it
# saves for the backward pass; the weights are there anyway, and do not count. Each
# micro-batch frees its own before the next one begins, so the largest of them is what
# matters.


def make_network():
    torch.manual_seed(42)
    return nn.Sequential(
        nn.Linear(16, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, 1),
    )


def measure(accumulate):
    """Megabytes kept for the backward pass of each micro-batch, and the new weights."""
    model = make_network()
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    megabytes = []

    def forward(model, batch):
        inputs, targets = batch
        kept = {}

        def keep(tensor):
            if tensor.data_ptr() not in weights:
                kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = model(inputs)
        megabytes.append(sum(kept.values()) / 1e6)
        return outputs, targets

    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.1))
    kit.train_step(
        state, batch, loss_fn=nn.MSELoss(), forward=forward, accumulate=accumulate
    )
    return megabytes, nn.utils.parameters_to_vector(model.parameters())


inputs = torch.randn(4096, 16, generator=torch.Generator().manual_seed(42))
targets = inputs[:, :1]
batch = inputs, targets

print("one step on 4,096 rows")
print(f"{'accumulate':12}{'rows at once':>14}{'kept, MB':>10}{'weights differ by':>20}")
_, in_one = measure(1)
for accumulate in (1, 2, 4, 16):
    megabytes, weights = measure(accumulate)
    rows = len(inputs) // accumulate
    difference = (weights - in_one).abs().max().item()
    print(f"{accumulate:<12}{rows:14,}{max(megabytes):10.2f}{difference:20.6f}")

# Weights, gradients and what the optimizer remembers take the same memory as before.
# Where these are the larger part, as with a large model and few rows, accumulation
# saves little.
numbers = sum(parameter.numel() for parameter in make_network().parameters())
print(f"weights and gradients take {2 * 4 * numbers / 1e6:.2f} MB in any case")


# --- The training stays what it was ------------------------------------------------

# 71 rows make batches of 32, 32 and 7. Every micro-batch counts by its rows, one update
# is made for each batch, and a schedule that goes by steps does not notice.
X = torch.randn(71, 4, generator=torch.Generator().manual_seed(42))
y = (X.square().sum(1) > 6).long()
loader = kit.make_loader((X, y), batch_size=32)

# With class weights the mean is no longer one over rows: it divides by the weights of
# the classes, of which a micro-batch cannot know the sum. Such a loss returns totals,
# and kit divides once.
class_weights = torch.tensor([1.0, 10.0])


def weighted_totals(logits, targets):
    total = F.cross_entropy(logits, targets, weight=class_weights, reduction="sum")
    return {"loss": total, "weight": class_weights[targets].sum()}


def train(loss_fn, accumulate):  # validated on all 71 rows at once
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=30
    )
    state = kit.make_state(model, optimizer, scheduler=scheduler)
    step = partial(kit.train_step, accumulate=accumulate)
    state = kit.fit(state, loader, [(X, y)], loss_fn=loss_fn, epochs=10, step=step)
    return state.history[-1]


print()
print("10 epochs on batches of 32, 32 and 7 rows")
print(f"{'loss':28}{'accumulate':>10}{'final loss':>12}{'steps':>7}{'last lr':>10}")
for name, loss_fn, accumulate in (
    ("cross-entropy", F.cross_entropy, 1),
    ("cross-entropy", F.cross_entropy, 4),
    ("class weights, torch's mean", nn.CrossEntropyLoss(class_weights), 1),
    ("class weights, totals", weighted_totals, 4),
):
    row = train(loss_fn, accumulate)
    print(
        f"{name:28}{accumulate:10}{row['val_loss']:12.5f}{row['step']:7}"
        f"{row['lr']:10.6f}"
    )

# Two things do change: BatchNorm sees the rows of one micro-batch at a time, and
# dropout draws other numbers.


# --- What to watch in a plain loop -------------------------------------------------

# The tutorial's loader gives batches of 8; every fourth is followed by an update. Its
# loop divides each loss by 4. Of the 71 rows this uses 64: no update follows the ninth
# batch, of 7 rows, and its gradient is lost or left over for the next epoch.
model = make_network()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
X, y = inputs[:71], targets[:71]
updates = 0
rows_used = 0
rows_waiting = 0

for number, rows in enumerate(torch.arange(71).split(8)):
    loss = F.mse_loss(model(X[rows]), y[rows])
    (loss / 4).backward()
    rows_waiting += len(rows)
    if (number + 1) % 4 == 0:
        optimizer.step()
        optimizer.zero_grad()
        updates += 1
        rows_used += rows_waiting
        rows_waiting = 0

loader = kit.make_loader((X, y), batch_size=32)
state = kit.make_state(model, optimizer)
step = partial(kit.train_step, accumulate=4)
state = kit.fit(state, loader, loss_fn=nn.MSELoss(), epochs=1, step=step)

print()
print("an epoch of 71 rows")
print(f"{'':16}{'updates':>8}{'rows used':>11}")
print(f"{'plain loop':16}{updates:8}{rows_used:11}")
print(f"{'kit':16}{state.step:8}{71:11}")

# And dividing by 4 is right only for four micro-batches of one size. The gradient of 25
# rows, in batches of 8, 8, 8 and 1: the last row counts as much as eight others.


def gradient_of(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


X, y = inputs[:25], targets[:25]

whole = make_network()
F.mse_loss(whole(X), y).backward()
right = gradient_of(whole)

plain = make_network()
for rows in torch.arange(25).split(8):
    (F.mse_loss(plain(X[rows]), y[rows]) / 4).backward()
plain_error = (gradient_of(plain) - right).norm() / right.norm()

# ceil(25 / 4) is 7: kit makes micro-batches of 7, 7, 7 and 4 rows.
by_kit = make_network()
state = kit.make_state(by_kit, torch.optim.SGD(by_kit.parameters(), lr=0.1))
kit.train_step(state, (X, y), loss_fn=nn.MSELoss(), accumulate=4)
kit_error = (gradient_of(by_kit) - right).norm() / right.norm()

print()
print("the gradient of 25 rows in four micro-batches: how far off it is")
print(f"{'plain loop, 8 + 8 + 8 + 1':28}{plain_error:8.1%}")
print(f"{'kit, 7 + 7 + 7 + 4':28}{kit_error:8.1%}")
