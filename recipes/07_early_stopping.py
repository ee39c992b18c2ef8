"""07 Early stopping (tutorial 7.5).

    python recipes/07_early_stopping.py

A model that is large for 40 noisy rows learns their noise: the run ends once 10 epochs
brought no gain of 0.001. fit returns the last weights; best.pt holds those of lowest
val_loss. Watch: NaN is never the best; and a resume neither forgets the best nor starts
to count anew, for both are read from the history, which is saved.

prints:

    stopped after 30 of 300 epochs, val_loss 0.110
    best.pt: epoch 20, val_loss 0.091
    without a stop: val_loss 0.132
"""

import math
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn

import kit

X = torch.rand(80, 1, generator=torch.Generator().manual_seed(42))
noise = torch.randn(X.shape, generator=torch.Generator().manual_seed(43))
data = 4 * X - 2, (2 * math.pi * X).sin() + 0.3 * noise
train, val = (kit.make_loader(part) for part in kit.split(data, ratios=(0.5, 0.5)))


def make_state():
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 1))
    return kit.make_state(model, torch.optim.Adam(model.parameters(), lr=0.03))


stop = partial(kit.early_stopping, patience=10, min_delta=0.001)
fit = partial(kit.fit, train=train, val=val, loss_fn=nn.MSELoss(), epochs=300)
with TemporaryDirectory() as folder:
    state = fit(make_state(), stop=stop, checkpoint=folder)
    again = kit.load_checkpoint(make_state(), Path(folder, "last.pt"))
    again = fit(again, stop=stop, checkpoint=folder)  # stops before its first epoch
    best = kit.load_checkpoint(make_state(), Path(folder, "best.pt"))

full = fit(make_state())
losses = [row["val_loss"] for row in state.history]
kept = kit.evaluate(best.model, val, loss_fn=nn.MSELoss())["loss"]
print(f"stopped after {len(losses)} of 300 epochs, val_loss {losses[-1]:.3f}")
print(f"best.pt: epoch {best.history[-1]['epoch']}, val_loss {kept:.3f}")
print(f"without a stop: val_loss {full.history[-1]['val_loss']:.3f}")

assert len(losses) < 100 and kept < full.history[-1]["val_loss"]
assert abs(kept - min(losses)) < 1e-9
assert len(again.history) == len(losses)
nan = [{"val_loss": value} for value in (math.nan, 1.0, 2.0, math.nan)]
assert [kit.is_best(nan[:n]) for n in range(1, 5)] == [False, True, False, False]
assert kit.early_stopping(nan, patience=2) and not kit.early_stopping(nan, patience=3)
