"""06 Workflow: everything end to end (tutorial 6).

    python recipes/06_workflow.py

L1 with a constant learning rate ends in a bounce between two points, of which the
tutorial prints one; one more epoch gives the other. 07_scheduler.py lowers the rate.

prints:

    epoch   0: train 0.5552, val 0.5740
    epoch 100: train 0.0062, val 0.0141
    epoch 199: train 0.0103, val 0.0003
    200 epochs: weight 0.6968, bias 0.3025 (true: 0.7, 0.3)
    loaded, 1 epoch more: weight 0.6929, bias 0.2925, val 0.0138
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn

import kit


def make_state():
    torch.manual_seed(42)
    model = nn.Linear(1, 1)  # on the CPU, as the figures are; else .to(device)
    return kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))


train, test = kit.split(kit.make_data())
loaders = kit.make_loader(train), kit.make_loader(test)
state = kit.fit(make_state(), *loaders, loss_fn=nn.L1Loss(), epochs=200)
for epoch in (0, 100, 199):
    losses = [state.history[epoch][key] for key in ("train_loss", "val_loss")]
    print("epoch {:3}: train {:.4f}, val {:.4f}".format(epoch, *losses))
weight, bias = (p.item() for p in state.model.parameters())
print(f"200 epochs: weight {weight:.4f}, bias {bias:.4f} (true: 0.7, 0.3)")

loaded = kit.load_checkpoint(make_state(), kit.save_checkpoint(state, "models/line.pt"))
predictions = [kit.predict(each.model, test[0]) for each in (state, loaded)]
more = kit.fit(loaded, *loaders, loss_fn=nn.L1Loss(), epochs=201)  # in all
(w, b), last = (p.item() for p in more.model.parameters()), more.history[-1]
print(f"loaded, 1 epoch more: weight {w:.4f}, bias {b:.4f}", end=", ")
print(f"val {last['val_loss']:.4f}")

assert torch.equal(*predictions)
assert abs(state.history[0]["train_loss"] - 0.55517799) < 1e-6
assert abs(state.history[100]["val_loss"] - 0.01408671) < 1e-6
assert abs(state.history[199]["train_loss"] - 0.01025648) < 1e-6
assert abs(state.history[199]["val_loss"] - 0.00033082) < 1e-6
assert abs(last["train_loss"] - 0.00126450) < 1e-6
assert (round(weight, 4), round(bias, 4)) == (0.6968, 0.3025)
