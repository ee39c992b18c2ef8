"""07 Learning-rate schedules (tutorial 7.3).

    python recipes/07_scheduler.py

A constant rate (0.01 in section 6, 0.05 here) ends in a bounce between two losses; one
that falls settles, though StepLR(30) and the plateau do so too early, short of the line.
Watch: a schedule advances after the optimizer, and not where fp16 skipped it; the
plateau needs the metric; OneCycleLR goes by steps. kit sees to all of it.

prints:

    lr in epoch       1     50    100    150   last val_losses  weight   bias
    tutorial 6  1e-02 1e-02 1e-02 1e-02    0.0138 0.0003 0.6968 0.3025
    constant    5e-02 5e-02 5e-02 5e-02    0.0250 0.0423 0.6552 0.2975
    step        5e-02 5e-03 5e-05 5e-07    0.0052 0.0052 0.6890 0.3046
    plateau     5e-02 5e-04 5e-09 5e-09    0.0137 0.0137 0.6710 0.3122
    cosine      5e-02 4e-02 3e-02 7e-03    0.0003 0.0003 0.6993 0.3003
    onecycle    2e-03 5e-02 4e-02 1e-02    0.0009 0.0009 0.7011 0.3000
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn
from torch.optim import lr_scheduler

import kit

EPOCHS, LR = 200, 0.05  # an epoch is one batch, one step
train, val = (kit.make_loader(part) for part in kit.split(kit.make_data()))
schedules = {
    "tutorial 6": lambda sgd: None,
    "constant": lambda sgd: None,
    "step": lambda sgd: lr_scheduler.StepLR(sgd, step_size=30, gamma=0.1),
    "plateau": lambda sgd: lr_scheduler.ReduceLROnPlateau(sgd, factor=0.1, patience=10),
    "cosine": lambda sgd: lr_scheduler.CosineAnnealingLR(sgd, T_max=EPOCHS),
    "onecycle": lambda sgd: lr_scheduler.OneCycleLR(sgd, LR, total_steps=EPOCHS),
}

print("lr in epoch       1     50    100    150   last val_losses  weight   bias")
for name, schedule in schedules.items():
    torch.manual_seed(42)
    model = nn.Linear(1, 1)
    lr = 0.01 if name == "tutorial 6" else LR
    sgd = torch.optim.SGD(model.parameters(), lr=lr)
    state = kit.make_state(model, sgd, scheduler=schedule(sgd))
    state = kit.fit(state, train, val, loss_fn=nn.L1Loss(), epochs=EPOCHS)
    rates = [f"{state.history[epoch]['lr']:.0e}" for epoch in (1, 50, 100, 150)]
    losses = [row["val_loss"] for row in state.history[-2:]]
    shown = [f"{x:.4f}" for x in (*losses, *(p.item() for p in model.parameters()))]
    print(f"{name:11}", *rates, "  ", *shown)

    bounce = abs(losses[1] - losses[0])
    assert bounce < 1e-4 if state.scheduler else bounce > 0.01
    assert losses[1] < 0.001 or name not in ("cosine", "onecycle")
