"""A moving average of the weights: calmer than any of them (beyond section 7).

    python recipes/07_ema.py

With a high learning rate and small batches, SGD jumps around the minimum. The
exponential moving average of its weights does not: 0.98 of the old average plus 0.02 of
the new weights, after every step. The average is part of the model here, so checkpoints
hold it, and resumed runs continue it; a step of one's own moves it.

prints:

    validation loss (the noise alone is about 1)
    epoch   weights   average
        1      1.50      1.46
        2      1.64      1.16
        3      1.47      1.13
        4      1.31      1.11
        5      1.49      1.09
        6      1.41      1.10
        7      1.35      1.11
        8      1.48      1.11

    in the checkpoint
    model.weight
    model.bias
    average.n_averaged
    average.module.weight
    average.module.bias
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import kit

# --- A model with its average ------------------------------------------------------


class Averaged(nn.Module):
    """Trains a model, and answers with its average."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98))
        self.average.requires_grad_(False)  # it follows, and is not trained

    def forward(self, x):
        if self.training:
            return self.model(x)
        return self.average(x)


# --- A step that moves the average -------------------------------------------------

# A step takes the state and a batch, and returns the new state and the totals. This one
# lets train_step do the update. Between the state and the model there may be wraps,
# such as amp or DistributedDataParallel; unwrap finds the model in them.


def step(state, batch, *, loss_fn, forward):
    state, totals = kit.train_step(state, batch, loss_fn=loss_fn, forward=forward)
    averaged = kit.unwrap(state.model)
    averaged.average.update_parameters(averaged.model)
    return state, totals


# --- Train -------------------------------------------------------------------------

# The target is the sum of eight inputs and of noise with a variance of 1, so that no
# model can have a loss below 1.
columns = torch.randn(600, 9, generator=torch.Generator().manual_seed(42))
X = columns[:, :8]
y = columns.sum(1, keepdim=True)
train, val = kit.split((X, y), ratios=(0.5, 0.5))
train_loader = kit.make_loader(train, batch_size=4, shuffle=True)
val_loader = kit.make_loader(val)

torch.manual_seed(42)
model = Averaged(nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.model.parameters(), lr=0.1)
state = kit.make_state(model, optimizer)

weights_losses = []


def evaluate_weights(state):
    """The validation loss of the weights themselves; the history has the average's."""
    inner = kit.unwrap(state.model).model
    row = kit.evaluate(inner, val_loader, loss_fn=nn.MSELoss())
    weights_losses.append(row["loss"])


state = kit.fit(
    state,
    train_loader,
    val_loader,
    loss_fn=nn.MSELoss(),
    epochs=8,
    step=step,
    on_epoch=evaluate_weights,
)

print("validation loss (the noise alone is about 1)")
print(f"{'epoch':>5}{'weights':>10}{'average':>10}")
for row, weights_loss in zip(state.history, weights_losses):
    print(f"{row['epoch']:5}{weights_loss:10.2f}{row['val_loss']:10.2f}")


# --- In the checkpoint -------------------------------------------------------------

content = kit.read_checkpoint(kit.save_checkpoint(state, "models/ema.pt"))

print()
print("in the checkpoint")
for name in content["model"]:
    print(name)
