"""07 Early stopping (tutorial 7.5).

    python recipes/07_early_stopping.py

A model that is large for 40 noisy rows learns their noise: the run ends once 10 epochs
brought no gain of 0.001. fit returns the last weights; best.pt holds the best. Watch: NaN
is never best; a resume forgets nothing, as all is read from the history, which is saved.

prints:

    stopped after 22 of 300 epochs, val_loss 0.17
    best.pt: epoch 11, val_loss 0.10
    without a stop: val_loss 0.14
"""

import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn

import kit

X, noise = torch.randn(2, 80, 1, generator=torch.Generator().manual_seed(42))
data = X, (2 * X).sin() + 0.3 * noise
train, val = (kit.make_loader(part) for part in kit.split(data, ratios=(0.5, 0.5)))


def make_state():
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 1))
    return kit.make_state(model, torch.optim.Adam(model.parameters(), lr=0.03))


stop = partial(kit.early_stopping, patience=10, min_delta=0.001)
fit = partial(kit.fit, train=train, val=val, loss_fn=nn.MSELoss(), epochs=300)
full = fit(make_state())
with TemporaryDirectory() as folder:
    stopped = fit(make_state(), stop=stop, checkpoint=folder)
    best = kit.load_checkpoint(make_state(), Path(folder, "best.pt"))
    again = kit.load_checkpoint(make_state(), Path(folder, "last.pt"))
again = fit(again, stop=stop)  # stops before its first epoch

losses = [row["val_loss"] for row in stopped.history]
kept = kit.evaluate(best.model, val, loss_fn=nn.MSELoss())["loss"]
print(f"stopped after {len(losses)} of 300 epochs, val_loss {losses[-1]:.2f}")
print(f"best.pt: epoch {best.history[-1]['epoch']}, val_loss {kept:.2f}")
print(f"without a stop: val_loss {full.history[-1]['val_loss']:.2f}")

assert len(losses) == len(again.history) < 100
assert abs(kept - min(losses)) < 1e-9 and kept < full.history[-1]["val_loss"]
nan = [{"val_loss": float(value)} for value in ("nan", 1, 2, "nan")]
assert [kit.is_best(nan[:n]) for n in range(1, 5)] == [False, True, False, False]
assert kit.early_stopping(nan, patience=2) and not kit.early_stopping(nan, patience=3)
