"""05 Checkpoint: three ways to save, and which one when (tutorial 5.1-5.5).

    python recipes/05_checkpoint.py

Weights: to share, deploy, across versions. A whole model, a pickle that can run code: a
quick trial. A checkpoint: to go on; the tutorial's lacks scheduler, RNG, order, history.

prints:

    same predictions: weights, whole model, checkpoint after 10 of 20 epochs
    refused: evil.pt holds more than plain types, which could run code: not loaded
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn, optim

import kit


def make_state():
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.1), nn.Linear(8, 1))
    adam = optim.Adam(model.parameters(), lr=0.01)
    return kit.make_state(model, adam, scheduler=optim.lr_scheduler.StepLR(adam, 6))


class Evil:
    def __reduce__(self):
        return open, ("evil.txt", "w")  # what loading it would run


train, (X, _) = kit.split(kit.make_data())
loader = kit.make_loader(train, batch_size=16, shuffle=True)
straight = kit.fit(make_state(), loader, loss_fn=nn.L1Loss(), epochs=20)
half = kit.fit(make_state(), loader, loss_fn=nn.L1Loss(), epochs=10)
resumed = kit.load_checkpoint(make_state(), kit.save_checkpoint(half, "models/half.pt"))
resumed = kit.fit(resumed, loader, loss_fn=nn.L1Loss(), epochs=20)

torch.save(straight.model.state_dict(), "models/weights.pth")
half.model.load_state_dict(torch.load("models/weights.pth"))  # needs the code
torch.save(straight.model, "models/whole.pth")
whole = torch.load("models/whole.pth", weights_only=False)  # by default refused
for model in (half.model, whole, resumed.model):
    assert torch.equal(kit.predict(model, X), kit.predict(straight.model, X))
assert straight.history[9]["train_loss"] == resumed.history[9]["train_loss"]
print("same predictions: weights, whole model, checkpoint after 10 of 20 epochs")

torch.save(Evil(), "evil.pt")
try:
    kit.load_checkpoint(straight, "evil.pt")
except ValueError as error:
    print("refused:", error)
assert not Path("evil.txt").exists()
