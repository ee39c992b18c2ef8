"""Exercise 3 Best on validation: 70/15/15, the best epoch of the best of three widths.

    python recipes/exercise_3_best_on_validation.py

Every epoch of every model is a candidate; validation picks one of the 300, and test, which
has picked nothing, tells how good that is. Watch: the last epoch knows the training rows
better, and all others worse. And the lowest val_loss is no result, as it was picked for
being low.

prints:

    width   4: best epoch 95, val_loss 0.82, at the end 0.83
    width  64: best epoch 62, val_loss 0.45, at the end 0.56
    width 256: best epoch 39, val_loss 0.54, at the end 0.66
    chosen: width 64, test loss 0.37, at the end 0.44
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn

import kit

X, noise = torch.randn(300, 9, generator=torch.Generator().manual_seed(42)).split(8, 1)
data = X, (2 * X[:, :1]).sin() + X[:, 1:2] + 0.5 * noise
parts = kit.split(data, ratios=(0.7, 0.15, 0.15), seed=42)
train, val, test = (kit.make_loader(part) for part in parts)
mse, best, last = nn.MSELoss(), {}, {}


def make_state(width):
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 1))
    return kit.make_state(model, torch.optim.Adam(model.parameters(), lr=0.02))


for width in (4, 64, 256):
    for state in kit.run(make_state(width), train, val, loss_fn=mse, epochs=100):
        if kit.is_best(state.history):
            best[width] = state.history[-1]
            kit.save_checkpoint(state, f"models/width_{width}.pt")
    last[width], row = state, best[width]
    print(f"width {width:3}: best epoch {row['epoch']}", end=", ")
    print(f"val_loss {row['val_loss']:.2f}", end=", ")
    print(f"at the end {state.history[-1]['val_loss']:.2f}")

chosen = min(best, key=lambda width: best[width]["val_loss"])
state = kit.load_checkpoint(make_state(chosen), f"models/width_{chosen}.pt")
result = kit.evaluate(state.model, test, loss_fn=mse)["loss"]
end = kit.evaluate(last[chosen].model, test, loss_fn=mse)["loss"]
print(f"chosen: width {chosen}, test loss {result:.2f}, at the end {end:.2f}")

loaded = kit.evaluate(state.model, val, loss_fn=mse)["loss"]
assert abs(loaded - best[chosen]["val_loss"]) < 1e-6 and result < end
assert last[chosen].history[-1]["train_loss"] < best[chosen]["train_loss"]
