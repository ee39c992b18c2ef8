"""07 Gradient clipping (tutorial 7.4).

    python recipes/07_clipping.py

A gradient back through 30 time steps grows like keep ** 30; one update by it makes the
loss overflow. The history has its norm from before the clip; kit unscales fp16's first.

prints:

    no clip: the loss became inf in epoch 0, by step 2
    norm 1.0: val_loss 0.00, keep 0.90, gain 0.51
    value 1.0: val_loss 0.00, keep 0.90, gain 0.50
"""

import sys
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn

import kit


class Memory(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([1.2, 1.0]))

    def forward(self, x):  # (N, T) -> (N,)
        keep, gain = self.weights
        h = 0.0
        for now in x.unbind(1):
            h = keep * h + now
        return gain * h


X = torch.randn(256, 30, generator=torch.Generator().manual_seed(42))
data = X, X @ (0.5 * 0.9 ** torch.arange(29, -1, -1))  # keep 0.9, gain 0.5
loaders = [kit.make_loader(part, batch_size=32) for part in kit.split(data)]
clip_values = partial(nn.utils.clip_grad_value_, clip_value=1.0)
for name, clip in {"no clip": None, "norm 1.0": 1.0, "value 1.0": clip_values}.items():
    model = Memory()
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    step = partial(kit.train_step, clip=clip)
    try:
        state = kit.fit(state, *loaders, loss_fn=nn.MSELoss(), epochs=20, step=step)
    except FloatingPointError as error:
        print(f"{name}: {str(error).split(':')[0]}")
        assert clip is None
        continue
    first, *_, last = state.history
    keep, gain = model.weights.tolist()
    print(f"{name}: val_loss {last['val_loss']:.2f}, keep {keep:.2f}, gain {gain:.2f}")
    assert clip and last["val_loss"] < 0.01
    assert (first.get("train_grad_norm", 0) > 1e5) == (clip == 1.0)  # values: no norm
