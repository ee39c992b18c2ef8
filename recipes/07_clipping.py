"""Gradient clipping: no update larger than it should be (section 7.4).

    python recipes/07_clipping.py

A model that goes through a sequence step by step multiplies by the same weight again
and again, and so does its gradient: by 1.2 thirty times is a factor of 237. One update
by such a gradient throws the weights far away, and the next loss is infinite. Clipping
keeps the direction of the gradient and shortens it.

prints:

    no clipping
      stopped: the loss became inf in epoch 1, by step 2

    by norm, clip=1.0
      epoch    val_loss   gradient norm
          1   4016.9819      2629108.13
          2    202.8325       106766.16
          5      0.6484           22.60
         10      0.1228            1.22
         20      0.0002            0.06
      learned: keep 0.90, gain 0.51 (true: 0.90, 0.50)

    by value, clip=clip_by_value
      epoch    val_loss   gradient norm
          1   3482.0898    not computed
          2    149.0476    not computed
          5      0.0661    not computed
         10      0.0023    not computed
         20      0.0000    not computed
      learned: keep 0.90, gain 0.50 (true: 0.90, 0.50)
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn

import kit

# --- A model with a memory ---------------------------------------------------------


class Memory(nn.Module):
    """Keeps a part of what it has seen so far: h = keep * h + x, at every time step."""

    def __init__(self):
        super().__init__()
        self.keep = nn.Parameter(torch.tensor(1.2))
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):  # (N, T) to (N,)
        h = torch.zeros(len(x))
        for now in x.unbind(1):
            h = self.keep * h + now
        return self.gain * h


# 256 sequences of 30 numbers, and what a model with keep 0.9 and gain 0.5 makes of
# them.
X = torch.randn(256, 30, generator=torch.Generator().manual_seed(42))
age = torch.arange(29, -1, -1)
y = X @ (0.5 * 0.9**age)

train, val = kit.split((X, y))
train_loader = kit.make_loader(train, batch_size=32)
val_loader = kit.make_loader(val)


# --- Without, by norm, by value ----------------------------------------------------

# clip=1.0 shortens a gradient whose norm, its length over all parameters, is above 1. A
# function of the parameters clips in another way: clip_grad_value_ cuts every number of
# the gradient by itself, which changes its direction too. fp16's gradients are unscaled
# before they are clipped (07_amp.py).
clip_by_value = partial(nn.utils.clip_grad_value_, clip_value=1.0)

for name, clip in (
    ("no clipping", None),
    ("by norm, clip=1.0", 1.0),
    ("by value, clip=clip_by_value", clip_by_value),
):
    print(name)
    model = Memory()
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    step = partial(kit.train_step, clip=clip)
    try:
        state = kit.fit(
            state, train_loader, val_loader, loss_fn=nn.MSELoss(), epochs=20, step=step
        )
    except FloatingPointError as error:
        # kit stops at the first loss that is not finite and says what to try.
        print("  stopped:", str(error).partition(":")[0])
        print()
        continue

    # The norm in the history is the one before it was clipped: it tells how much there
    # was to clip, and what to choose for clip.
    print(f"{'epoch':>7}{'val_loss':>12}{'gradient norm':>16}")
    for row in state.history:
        if row["epoch"] in (1, 2, 5, 10, 20):
            norm = row.get("train_grad_norm")
            shown = "not computed" if norm is None else f"{norm:.2f}"
            print(f"{row['epoch']:7}{row['val_loss']:12.4f}{shown:>16}")
    print(
        f"  learned: keep {model.keep.item():.2f}, gain {model.gain.item():.2f} "
        "(true: 0.90, 0.50)"
    )
    print()
