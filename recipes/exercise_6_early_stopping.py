"""Exercise 6 Early stopping: on the validation loss, with more and less patience.

    python recipes/exercise_6_early_stopping.py

The loop is ours, and `break` is the stop; is_best says when to save. Watch: a curve over
batches has bumps, and patience 2 takes one for the end; more patience than enough costs
time, not quality, as the best weights are on the disk. A run that is stopped is the first
part of the one that is not, to the last bit, so that a history answers for any patience.

prints:

    patience   2: 4 epochs, val_loss 0.62; saved: epoch 1, val_loss 0.61
    patience  10: 39 epochs, val_loss 0.41; saved: epoch 28, val_loss 0.36
    patience  20: 49 epochs, val_loss 0.44; saved: epoch 28, val_loss 0.36
    patience 100: 70 epochs, val_loss 0.43; saved: epoch 28, val_loss 0.36
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn

import kit

X, noise = torch.randn(300, 9, generator=torch.Generator().manual_seed(42)).split(8, 1)
data = X, (2 * X[:, :1]).sin() + X[:, 1:2] + 0.5 * noise
train, val = kit.split(data, seed=42)
loaders = kit.make_loader(train, batch_size=16, shuffle=True), kit.make_loader(val)
mse, results = nn.MSELoss(), {}


def make_state():
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))
    return kit.make_state(model, torch.optim.Adam(model.parameters(), lr=0.01))


for patience in (2, 10, 20, 100):
    path = f"models/patience_{patience}.pt"
    for state in kit.run(make_state(), *loaders, loss_fn=mse, epochs=70):
        if kit.is_best(state.history):
            kit.save_checkpoint(state, path)
        if kit.early_stopping(state.history, patience=patience):
            break
    best = kit.load_checkpoint(make_state(), path)
    losses = [row["val_loss"] for row in state.history]
    kept = kit.evaluate(best.model, loaders[1], loss_fn=mse)["loss"]
    results[patience] = losses, kept
    line = "patience {:3}: {} epochs, val_loss {:.2f}; saved: epoch {}, val_loss {:.2f}"
    epoch = best.history[-1]["epoch"]
    print(line.format(patience, len(losses), losses[-1], epoch, kept))

full = results[100][0]
for losses, kept in results.values():
    assert losses == full[: len(losses)] and abs(kept - min(losses)) < 1e-6
assert results[2][1] > 0.5 and results[10][1] == results[20][1] < full[-1] - 0.05
