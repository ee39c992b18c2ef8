"""Model: its parts, its parameters, its device (sections 2.1 to 2.6).

    python recipes/02_model.py

A model is a function with numbers in it that training may change. The smallest one is a
straight line with two such numbers, a weight and a bias. The script writes it twice,
with two parameters of one's own and with nn.Linear, looks inside, predicts before any
training, and moves model and data to where they are computed.

prints:

    how the two models start
                  weight    bias
    Line          0.3367  0.1288
    nn.Linear     0.7645  0.8300

    the state_dict of Line
    weight        0.3367
    bias          0.1288

    kit.summary of Line
    name    shape      count  trained
    ------  -------  -------  ---------
    weight  (1,)           1  yes
    bias    (1,)           1  yes
    2 parameters, 2 of them trained

    kit.summary of a larger model
    name      shape           count  trained
    --------  ------------  -------  ---------
    0.weight  (1000, 1000)  1000000  yes
    0.bias    (1000,)          1000  yes
    2.weight  (1, 1000)        1000  yes
    2.bias    (1,)                1  yes
    1,002,001 parameters, 1,002,001 of them trained

    the untrained Line on the 10 test rows
         x   predicted    true
      0.80      0.3982  0.8600
      0.82      0.4049  0.8740
      0.84      0.4116  0.8880
      0.86      0.4184  0.9020
      0.88      0.4251  0.9160
      0.90      0.4318  0.9300
      0.92      0.4386  0.9440
      0.94      0.4453  0.9580
      0.96      0.4520  0.9720
      0.98      0.4588  0.9860

    after layer.to("meta") and X.to("meta")
    the layer is on meta
    X is on cpu (the copy is lost)
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn

import kit

# --- 2.1 The parts of a model ------------------------------------------------------

# nn.Module     the class to derive from: it finds the parameters, moves and saves them
# nn.Parameter  a tensor that training may change
# forward       what the model computes; model(x) calls it
# torch.optim   the optimizers, which change the parameters (03_train.py)


# --- 2.2 Linear regression from two parameters -------------------------------------


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1))  # a random start
        self.bias = nn.Parameter(torch.randn(1))

    def forward(self, x):  # (N, 1) to (N, 1)
        return self.weight * x + self.bias


torch.manual_seed(42)
line = Line()


# --- 2.3 The same with nn.Linear ---------------------------------------------------

# A layer holds its parameters, gives them a sensible start, and takes any number of
# inputs and outputs. Its weight is a matrix, here of one row and one column.
torch.manual_seed(42)
layer = nn.Linear(1, 1)

print("how the two models start")
print(f"{'':12}{'weight':>8}{'bias':>8}")
print(f"{'Line':12}{line.weight.item():8.4f}{line.bias.item():8.4f}")
print(f"{'nn.Linear':12}{layer.weight.item():8.4f}{layer.bias.item():8.4f}")


# --- 2.4 What is inside ------------------------------------------------------------

# The state_dict maps names to tensors: it is what is saved and loaded
# (05_checkpoint.py).
print()
print("the state_dict of Line")
for name, tensor in line.state_dict().items():
    print(f"{name:12}{tensor.item():8.4f}")

print()
print("kit.summary of Line")
print(kit.summary(line))

# The tutorial prints every value of every parameter. The next model has a million, and
# a table still has one row for each tensor.
torch.manual_seed(42)
large = nn.Sequential(nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 1))

print()
print("kit.summary of a larger model")
print(kit.summary(large))


# --- 2.5 Predict before training ---------------------------------------------------

# A model can predict before it is trained; it is only wrong. kit.predict switches to
# eval mode, computes no gradients (04_evaluate.py), and switches back.
train, test = kit.split(kit.make_data())
test_inputs, test_targets = test
predictions = kit.predict(line, test_inputs)

print()
print("the untrained Line on the 10 test rows")
print(f"{'x':>6}{'predicted':>12}{'true':>8}")
for x, prediction, target in zip(test_inputs, predictions, test_targets):
    print(f"{x.item():6.2f}{prediction.item():12.4f}{target.item():8.4f}")


# --- 2.6 The device ----------------------------------------------------------------

# Model and data must be on the same device: an accelerator such as cuda or mps where
# there is one, else the cpu. kit moves every batch to the model, so moving the model is
# enough; do it before the optimizer is made.
device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
line.to(device)

# .to changes a module itself. Of a tensor it returns a copy, which has to be kept, as
# in X = X.to(device). The device "meta" stores no values and exists on every machine,
# so it can show the difference.
X, y = kit.make_data()
layer.to("meta")
X.to("meta")

print()
print('after layer.to("meta") and X.to("meta")')
print("the layer is on", layer.weight.device)
print("X is on", X.device, "(the copy is lost)")
