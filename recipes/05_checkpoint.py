"""05 Checkpoint: three ways to save, and which one when (tutorial 5.1-5.5).

    python recipes/05_checkpoint.py

Loading the tutorial's second way, a pickled model, runs what the file says: torch refuses
it by default. Its third, a checkpoint, leaves out scheduler, scaler, randomness, data
order and history, so that a resumed run goes another way; kit's goes the same.

prints:

    weights: same predictions. Needs the code; to share, to deploy, across versions
    whole model: refused, but for weights_only=False. A quick trial of your own
    checkpoint: 10 + 10 epochs are 20, bit for bit. To go on training
    refused: evil.pt holds more than plain types, which could run code: not loaded
"""

import sys
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn

import kit


def make_state():
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.1), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 6)
    return kit.make_state(model, optimizer, scheduler=scheduler)


class Evil:
    def __reduce__(self):
        return open, ("evil.txt", "w")  # what loading it would run


train, (X, _) = kit.split(kit.make_data())
loader = kit.make_loader(train, batch_size=16, shuffle=True)
fit = partial(kit.fit, train=loader, loss_fn=nn.L1Loss())
straight, fresh = fit(make_state(), epochs=20), make_state()
expected = kit.predict(straight.model, X)

Path("models").mkdir(exist_ok=True)
torch.save(straight.model.state_dict(), "models/weights.pth")
fresh.model.load_state_dict(torch.load("models/weights.pth"))
assert torch.equal(kit.predict(fresh.model, X), expected)
print("weights: same predictions. Needs the code; to share, to deploy, across versions")

torch.save(straight.model, "models/whole.pth")
try:
    torch.load("models/whole.pth")
except UnpicklingError:
    print("whole model: refused, but for weights_only=False. A quick trial of your own")
whole = torch.load("models/whole.pth", weights_only=False)
assert torch.equal(kit.predict(whole, X), expected)

kit.save_checkpoint(fit(make_state(), epochs=10), "models/half.pt")
resumed = fit(kit.load_checkpoint(make_state(), "models/half.pt"), epochs=20)
assert torch.equal(kit.predict(resumed.model, X), expected)
for a, b in zip(straight.history, resumed.history, strict=True):
    assert a | {"seconds": 0} == b | {"seconds": 0}
print("checkpoint: 10 + 10 epochs are 20, bit for bit. To go on training")

torch.save(Evil(), "evil.pt")
try:
    kit.load_checkpoint(fresh, "evil.pt")
except ValueError as error:
    print("refused:", error)
assert not Path("evil.txt").exists()
