"""04 Evaluate: without gradients, the loss, learned beside true (tutorial 4.1-4.2).

    python recipes/04_evaluate.py

kit evaluates in eval mode, under no_grad: inference_mode saves a little more, but what
it returns can never be part of training, which is noticed late, or in other code.

prints:

    no_grad: requires_grad False, fit for training
    inference_mode: requires_grad False, refused in training
    test loss 0.0569 however it is batched; the mean of 4 + 4 + 2 rows' means is 0.0585
    learned y = 0.5784 x + 0.3513, true y = 0.7 x + 0.3
"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn

import kit

train, test = kit.split(kit.make_data())
model, l1 = nn.Linear(1, 1), nn.L1Loss()
torch.manual_seed(42)
model.load_state_dict({"weight": torch.randn(1, 1), "bias": torch.randn(1)})
state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
state = kit.fit(state, kit.make_loader(train), loss_fn=l1, epochs=100)

for mode in (torch.no_grad, torch.inference_mode):
    with mode():
        prediction = model(test[0])
    try:
        l1(model(prediction), test[1]).backward()
        verdict = "fit for training"
    except RuntimeError:
        verdict = "refused in training"
    print(f"{mode.__name__}: requires_grad {prediction.requires_grad}, {verdict}")

fours = kit.make_loader(test, batch_size=4)
loss = kit.evaluate(model, fours, loss_fn=l1)["loss"]
means = [kit.evaluate(model, [batch], loss_fn=l1)["loss"] for batch in fours]
wrong = sum(means) / len(means)  # as the tutorial does: the last 2 rows count double
print(f"test loss {loss:.4f} however it is batched; ", end="")
print(f"the mean of 4 + 4 + 2 rows' means is {wrong:.4f}")
weight, bias = (p.item() for p in model.parameters())
print(f"learned y = {weight:.4f} x + {bias:.4f}, true y = 0.7 x + 0.3")
if find_spec("matplotlib"):
    figure = kit.plot_predictions(train, test, kit.predict(model, test[0]))
    figure.savefig("predictions.png")

whole = kit.evaluate(model, kit.make_loader(test), loss_fn=l1)["loss"]
assert verdict == "refused in training" and abs(loss - whole) < 1e-6
assert f"{weight:.4f} {bias:.4f}" == "0.5784 0.3513"
