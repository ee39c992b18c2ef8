"""Train: losses, optimizers, the loop, its curves, a loop to reuse (sections 3.1 to 3.5).

    python recipes/03_train.py

A loss says how wrong the predictions are, its gradient says in which direction the
parameters should move, and an optimizer moves them. The script shows what each of them
does on the smallest examples, then writes the training loop out in plain PyTorch, then
lets kit.fit do the same: both end at the same weights, to the last bit. It draws
runs/curves.png where matplotlib is installed.

prints:

    losses of numbers, for a target of 0
    predictions       L1Loss  MSELoss
    [1.0, 1.0, 1.0]      1.0      1.0
    [1.0, 1.0, 10.0]     4.0     34.0

    CrossEntropyLoss, where class 0 is right
    scores              loss
    [0.0, 0.0, 0.0]     1.10
    [4.0, 0.0, 0.0]     0.04
    [0.0, 4.0, 0.0]     4.04

    two losses of yes or no, where no is right
                     BCELoss     BCEWithLogitsLoss
    logit       loss   slope          loss   slope
    1           1.31    0.73          1.31    0.73
    10         10.00    1.00         10.00    1.00
    20        100.00    0.00         20.00    1.00
    200       100.00    0.00        200.00    1.00

    how far 100 steps at lr 0.01 move a weight of 1.0
    gradient        10     0.1       0
    SGD          10.00    0.10    0.00
    Adam          1.00    1.00    0.00
    AdamW         1.01    1.01    0.01
    RMSprop       2.03    2.03    0.00
    Adagrad       0.19    0.19    0.00

    a plain PyTorch loop: L1Loss, SGD, lr 0.01
    epoch  train loss  test loss
        1      0.3129     0.4811
       11      0.1977     0.3464
       21      0.0891     0.2173
       31      0.0531     0.1446
       51      0.0417     0.0992
       91      0.0279     0.0647
      100      0.0248     0.0569

    the same by kit.fit
    epoch  train loss  test loss
        1      0.3129     0.4811
       11      0.1977     0.3464
       21      0.0891     0.2173
       31      0.0531     0.1446
       51      0.0417     0.0992
       91      0.0279     0.0647
      100      0.0248     0.0569

    where they end
                    weight    bias
    plain loop      0.5784  0.3513
    kit.fit         0.5784  0.3513
    the same to the last bit: yes

    the loss of 40 rows in batches of 16, 16 and 8
    all rows at once           0.02446
    mean of the batches        0.02622   wrong
    kit, total over rows       0.02446
"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn, optim
from torch.nn import functional as F

import kit

# --- 3.1 Losses --------------------------------------------------------------------

# Numbers to predict: L1Loss, the mean absolute error, counts every error as it is;
# MSELoss, the mean squared error, counts a large one far more.
targets = torch.tensor([0.0, 0.0, 0.0])

print("losses of numbers, for a target of 0")
print(f"{'predictions':16}{'L1Loss':>8}{'MSELoss':>9}")
for predictions in ([1.0, 1.0, 1.0], [1.0, 1.0, 10.0]):
    l1 = nn.L1Loss()(torch.tensor(predictions), targets)
    mse = nn.MSELoss()(torch.tensor(predictions), targets)
    print(f"{predictions!s:16}{l1:8.1f}{mse:9.1f}")

# One of several classes: CrossEntropyLoss. The model gives a score (a logit) for each
# class, and the target is the number of the right one.
print()
print("CrossEntropyLoss, where class 0 is right")
print(f"{'scores':18}{'loss':>6}")
for scores in ([0.0, 0.0, 0.0], [4.0, 0.0, 0.0], [0.0, 4.0, 0.0]):
    loss = nn.CrossEntropyLoss()(torch.tensor([scores]), torch.tensor([0]))
    print(f"{scores!s:18}{loss:6.2f}")

# Yes or no: BCEWithLogitsLoss takes the one logit of yes. BCELoss takes a probability,
# the sigmoid of the logit. On paper they are the same; but in float32 a sigmoid soon
# rounds to exactly 1, and a model that is sure and wrong then gets no gradient to learn
# by. Prefer the one with logits.
print()
print("two losses of yes or no, where no is right")
print(f"{'':8}{'BCELoss':>16}{'BCEWithLogitsLoss':>22}")
print(f"{'logit':8}{'loss':>8}{'slope':>8}{'loss':>14}{'slope':>8}")
for value in (1.0, 10.0, 20.0, 200.0):
    logit = torch.tensor([value], requires_grad=True)
    no = torch.tensor([0.0])

    bce = nn.BCELoss()(logit.sigmoid(), no)
    (bce_slope,) = torch.autograd.grad(bce, logit)

    with_logits = nn.BCEWithLogitsLoss()(logit, no)
    (with_logits_slope,) = torch.autograd.grad(with_logits, logit)

    print(
        f"{value:<8g}{bce:8.2f}{bce_slope.item():8.2f}"
        f"{with_logits:14.2f}{with_logits_slope.item():8.2f}"
    )


# --- 3.2 Optimizers ----------------------------------------------------------------

# How far does an optimizer move a weight of 1.0 in 100 steps, if the gradient is always
# the same? SGD goes in proportion to the gradient. The others divide it by its usual
# size, so that weights with small and with large gradients learn at one pace.
#
# SGD      the simplest, and with momentum and a schedule among the best for images
# Adam     works without much tuning: the usual first choice
# AdamW    Adam that also pulls every weight towards 0 (weight decay): large networks
# RMSprop  Adam without momentum: recurrent networks
# Adagrad  slows down all the time: inputs that are mostly 0
print()
print("how far 100 steps at lr 0.01 move a weight of 1.0")
print(f"{'gradient':10}{'10':>8}{'0.1':>8}{'0':>8}")
for optimizer_class in (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.RMSprop,
    optim.Adagrad,
):
    moves = []
    for gradient in (10.0, 0.1, 0.0):
        weight = nn.Parameter(torch.tensor(1.0))
        optimizer = optimizer_class([weight], lr=0.01)
        for step in range(100):
            weight.grad = torch.tensor(gradient)
            optimizer.step()
        moves.append(1.0 - weight.item())
    print(f"{optimizer_class.__name__:10}" + "".join(f"{move:8.2f}" for move in moves))


# --- 3.3 The training loop ---------------------------------------------------------

# 40 rows to train on, 10 to test on, and a line that starts at a weight of 0.3367 and a
# bias of 0.1288 (02_model.py).
(X, y), (test_X, test_y) = kit.split(kit.make_data())


def make_model():
    torch.manual_seed(42)
    weight = torch.randn(1, 1)
    bias = torch.randn(1)
    model = nn.Linear(1, 1)
    model.load_state_dict({"weight": weight, "bias": bias})
    return model


SHOWN = (1, 11, 21, 31, 51, 91, 100)  # the epochs that are printed

# The loop itself. An epoch is one pass over the rows, which here go in a single batch.
# The train loss is the one before the update, the test loss the one after it.
print()
print("a plain PyTorch loop: L1Loss, SGD, lr 0.01")
print(f"{'epoch':>5}{'train loss':>12}{'test loss':>11}")

plain_model = make_model()
loss_fn = nn.L1Loss()
optimizer = optim.SGD(plain_model.parameters(), lr=0.01)

for epoch in range(1, 101):
    plain_model.train()  # dropout and the like behave differently in the two modes

    predictions = plain_model(X)  # 1. forward
    loss = loss_fn(predictions, y)  # 2. how wrong it is
    optimizer.zero_grad()  # 3. or the new gradients are added to the old ones
    loss.backward()  # 4. the gradient of the loss by every parameter
    optimizer.step()  # 5. move the parameters

    plain_model.eval()
    with torch.no_grad():  # testing needs no gradients
        test_loss = loss_fn(plain_model(test_X), test_y)

    if epoch in SHOWN:
        print(f"{epoch:5}{loss.item():12.4f}{test_loss.item():11.4f}")

# And the same by kit. The state is all that changes while training: model, optimizer,
# the count of steps, and the history, which has a row for every epoch.
print()
print("the same by kit.fit")
print(f"{'epoch':>5}{'train loss':>12}{'test loss':>11}")

model = make_model()
state = kit.make_state(model, optim.SGD(model.parameters(), lr=0.01))
state = kit.fit(
    state,
    kit.make_loader((X, y)),
    kit.make_loader((test_X, test_y)),
    loss_fn=nn.L1Loss(),
    epochs=100,
)
for row in state.history:
    if row["epoch"] in SHOWN:
        print(f"{row['epoch']:5}{row['train_loss']:12.4f}{row['val_loss']:11.4f}")

print()
print("where they end")
print(f"{'':14}{'weight':>8}{'bias':>8}")
for name, each in (("plain loop", plain_model), ("kit.fit", model)):
    print(f"{name:14}{each.weight.item():8.4f}{each.bias.item():8.4f}")
equal = torch.equal(plain_model.weight, model.weight)
equal = equal and torch.equal(plain_model.bias, model.bias)
print("the same to the last bit:", "yes" if equal else "no")


# --- 3.4 Loss curves ---------------------------------------------------------------

# Both curves falling: it learns. Both flat and high: the model is too small, or the
# learning rate is. The test loss rising while the other falls: it learns the training
# rows by heart.
if find_spec("matplotlib"):
    Path("runs").mkdir(exist_ok=True)
    kit.plot_history(state.history).savefig("runs/curves.png")


# --- 3.5 The loop as a function ----------------------------------------------------

# In a function, the loop runs over the batches of a loader. The tutorial's averages the
# losses of the batches, and so a last batch that is short counts as much as a full one.
# kit adds up totals and divides once, by the number of rows.
#
# Two more things to watch there: it calls loss.item() for every batch, for which an
# accelerator has to finish all that it was given; kit reads the sum only now and then.
# And it records only the epochs that it prints; kit's history has them all.
loader = kit.make_loader((X, y), batch_size=16)  # batches of 16, 16 and 8 rows
batch_losses = []
for inputs, targets in loader:
    batch_losses.append(F.l1_loss(model(inputs), targets).item())

of_all_rows = F.l1_loss(model(X), y).item()
mean_of_means = sum(batch_losses) / len(batch_losses)
by_kit = kit.evaluate(model, loader, loss_fn=nn.L1Loss())["loss"]

print()
print("the loss of 40 rows in batches of 16, 16 and 8")
print(f"{'all rows at once':26}{of_all_rows:8.5f}")
print(f"{'mean of the batches':26}{mean_of_means:8.5f}   wrong")
print(f"{'kit, total over rows':26}{by_kit:8.5f}")
