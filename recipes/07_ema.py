"""07 A moving average of the weights (beyond tutorial 7).

    python recipes/07_ema.py

SGD at a high rate jumps around the minimum; the exponential moving average of its weights
does not. A wrap holds both models, a step moves the average, and kit needs no change.
Watch: an average outside of the checkpoint is lost by a resume; here it is inside.

prints:

    weights: val_loss 1.31 to 1.49 from epoch 2 on
    average: val_loss 1.09 to 1.13 from epoch 2 on
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import kit


class Averaged(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98))

    def forward(self, x):
        return self.model(x) if self.training else self.average(x)


def step(state, batch, *, loss_fn):
    state, sums = kit.train_step(state, batch, loss_fn=loss_fn)
    state.model.average.update_parameters(state.model.model)
    return state, sums


data = torch.randn(600, 9, generator=torch.Generator().manual_seed(42))
data = data[:, :8], data.sum(1, keepdim=True)  # the ninth column is noise
train, val = kit.split(data, ratios=(0.5, 0.5))
train, val = kit.make_loader(train, batch_size=4, shuffle=True), kit.make_loader(val)
torch.manual_seed(42)
model = Averaged(nn.Linear(8, 1))
start = kit.make_state(model, torch.optim.SGD(model.model.parameters(), lr=0.1))
weights = []  # val_loss without the average
for state in kit.run(start, train, val, loss_fn=nn.MSELoss(), epochs=8, step=step):
    weights.append(kit.evaluate(model.model, val, loss_fn=nn.MSELoss())["loss"])
average = [row["val_loss"] for row in state.history]
for name, losses in {"weights": weights[2:], "average": average[2:]}.items():
    print(f"{name}: val_loss {min(losses):.2f} to {max(losses):.2f} from epoch 2 on")
saved = kit.read_checkpoint(kit.save_checkpoint(state, "ema.pt"))["model"]
assert torch.equal(saved["average.module.weight"], model.average.module.weight)
assert max(average[2:]) < min(weights[2:])
