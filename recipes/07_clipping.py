"""07 Gradient clipping (tutorial 7.4).

    python recipes/07_clipping.py

A gradient that comes back through 30 time steps grows like keep ** 30. The first update
by it makes the loss overflow; clipped, the run finds keep 0.9 and gain 0.5. Watch: what
fp16 has scaled must be unscaled first (kit does); the history has the norm from before
the clip, which tells where to clip, and cannot have one when values are clipped.

prints:

    no clip: the loss became inf in epoch 0, by step 2
    norm 1.0: val_loss 0.00, keep 0.90, gain 0.51
    value 1.0: val_loss 0.00, keep 0.90, gain 0.50
    mean norm before the clip: epoch 0 3e+06, epoch 19 0.1
"""

import sys
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn

import kit


class Memory(nn.Module):
    """gain * h of the last step, where h = keep * h + x; (N, T) -> (N,)."""

    def __init__(self, keep, gain):
        super().__init__()
        self.keep = nn.Parameter(torch.tensor(keep))
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x):
        h = torch.zeros_like(x[:, 0])
        for now in x.unbind(1):
            h = self.keep * h + now
        return self.gain * h


X = torch.randn(256, 30, generator=torch.Generator().manual_seed(42))
train, val = kit.split((X, kit.predict(Memory(0.9, 0.5), X)))
train, val = kit.make_loader(train, batch_size=32, shuffle=True), kit.make_loader(val)
clips = {
    "no clip": None,
    "norm 1.0": 1.0,
    "value 1.0": partial(nn.utils.clip_grad_value_, clip_value=1.0),  # has no norm
}
runs = {}
for name, clip in clips.items():
    model = Memory(1.2, 1.0)
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    step = partial(kit.train_step, clip=clip)
    try:
        state = kit.fit(state, train, val, loss_fn=nn.MSELoss(), epochs=20, step=step)
    except FloatingPointError as error:
        print(f"{name}: {str(error).split(':')[0]}")
        continue
    runs[name], row = state.history, state.history[-1]
    keep, gain = (p.item() for p in model.parameters())
    print(f"{name}: val_loss {row['val_loss']:.2f}, keep {keep:.2f}, gain {gain:.2f}")

norms = [row["train_grad_norm"] for row in runs["norm 1.0"]]
print(f"mean norm before the clip: epoch 0 {norms[0]:.0e}, epoch 19 {norms[-1]:.1f}")

assert list(runs) == ["norm 1.0", "value 1.0"]
assert all(history[-1]["val_loss"] < 0.01 for history in runs.values())
assert norms[0] > 1e5 and "train_grad_norm" not in runs["value 1.0"][0]
