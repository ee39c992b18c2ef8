"""Exercise 6, early stopping: with too little patience, enough, and too much.

    python recipes/exercises/6_early_stopping.py

The loop is ours: is_best says when to save, early_stopping when to leave. A validation
curve has bumps, and with little patience the first one looks like the end. Too much
patience costs time and nothing else, as long as the best weights are kept.

prints:

                              stopped              saved
    patience          epoch  val loss    epoch  val loss
    2                     4      0.62        2      0.61
    10                   39      0.41       29      0.36
    20                   49      0.44       29      0.36
    100                  70      0.43       29      0.36

    asked of the 70 epochs: where would it have stopped?
    patience 2      epoch 4
    patience 5      epoch 24
    patience 10     epoch 39
    patience 15     epoch 44
    patience 20     epoch 49
    patience 100    epoch never
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that a clone finds kit.py

import torch
from torch import nn

import kit

columns = torch.randn(300, 9, generator=torch.Generator().manual_seed(42))
X = columns[:, :8]
noise = 0.5 * columns[:, 8:]
y = (2 * X[:, :1]).sin() + X[:, 1:2] + noise
train, val = kit.split((X, y), seed=42)
train_loader = kit.make_loader(train, batch_size=16, shuffle=True)
val_loader = kit.make_loader(val)


def make_state():
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))
    return kit.make_state(model, torch.optim.Adam(model.parameters(), lr=0.01))


# --- Four patiences ----------------------------------------------------------------

histories = {}

print(f"{'':16}{'stopped':>17}{'saved':>19}")
print(f"{'patience':16}{'epoch':>7}{'val loss':>10}{'epoch':>9}{'val loss':>10}")
for patience in (2, 10, 20, 100):
    path = f"models/patience_{patience}.pt"
    for state in kit.run(
        make_state(), train_loader, val_loader, loss_fn=nn.MSELoss(), epochs=70
    ):
        if kit.is_best(state.history):
            kit.save_checkpoint(state, path)
        if kit.early_stopping(state.history, patience=patience):
            break
    histories[patience] = state.history

    last = state.history[-1]
    best = kit.load_checkpoint(make_state(), path).history[-1]
    print(
        f"{patience:<16}{last['epoch']:7}{last['val_loss']:10.2f}"
        f"{best['epoch']:9}{best['val_loss']:10.2f}"
    )


# --- One history answers for all ---------------------------------------------------

# A stopped run is the beginning of the one that was not stopped, to the last bit. So
# there is no need to train again to try another patience: ask the long history.


def first_stop(history, patience):
    for epoch in range(1, len(history) + 1):
        if kit.early_stopping(history[:epoch], patience=patience):
            return str(epoch)
    return "never"


print()
print("asked of the 70 epochs: where would it have stopped?")
for patience in (2, 5, 10, 15, 20, 100):
    print(f"patience {patience:<7}epoch {first_stop(histories[100], patience)}")
