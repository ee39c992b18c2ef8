"""02 Model: parameters by hand, nn.Linear, a summary, the device (tutorial 2.1-2.6).

    python recipes/02_model.py

The tutorial prints all values of all parameters; a table fits a model of millions too.

prints:

    by hand: weight 0.3367, bias 0.1288
    nn.Linear: weight 0.7645, bias 0.8300
    name    shape      count  trains      values
    ------  -------  -------  --------  --------
    weight  (1,)           1  yes         0.3367
    bias    (1,)           1  yes         0.1288
    2 parameters, 2 of them trained
    untrained: 0.3982 0.4049 0.4116 0.4184 0.4251 0.4318 0.4386 0.4453 0.4520 0.4588
    to meta: the layer is on meta, the tensor still on cpu
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn

import kit


class Line(nn.Module):  # its parameters, and a forward that uses them
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1))
        self.bias = nn.Parameter(torch.randn(1))

    def forward(self, x):
        return self.weight * x + self.bias  # (N, 1)


torch.manual_seed(42)
model = Line()
torch.manual_seed(42)
layer = nn.Linear(1, 1)
for name, each in {"by hand": model, "nn.Linear": layer}.items():
    weight, bias = (p.item() for p in each.parameters())
    print(f"{name}: weight {weight:.4f}, bias {bias:.4f}")
print(kit.summary(model))

device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
model.to(device)  # before the optimizer is made; kit brings the batches to the model
X, y = kit.split(kit.make_data())[1]
print("untrained:", *(f"{value:.4f}" for value in kit.predict(model, X)[:, 0].tolist()))

# .to moves a module itself, but copies a tensor: X = X.to(device). All machines have meta.
layer.to("meta"), X.to("meta")
print(f"to meta: the layer is on {layer.weight.device}, the tensor still on {X.device}")

assert list(model.state_dict()) == ["weight", "bias"]
assert abs(kit.predict(model, X)[-1].item() - 0.4588) < 1e-4 and not X.is_meta
