"""07 Automatic mixed precision (tutorial 7.1).

    python recipes/07_amp.py

bf16 and fp16 reach float32's loss and accuracy; they save time and memory on hardware
made for them, which most CPUs are not: there, fp16 is very slow. Watch: torch.cuda.amp
is deprecated; bf16 needs no scaler; fp16's gradients must be unscaled
before they are clipped, as the equal norms show.

prints:

    float32 val_loss 0.09, accuracy 96%, grad_norm 0.2, scale 1
    bf16    val_loss 0.09, accuracy 96%, grad_norm 0.2, scale 1
    fp16    val_loss 0.09, accuracy 96%, grad_norm 0.2, scale 65536
"""

import sys
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn

import kit

device = "cuda" if torch.cuda.is_available() else "cpu"
X = torch.randn(800, 2, generator=torch.Generator().manual_seed(42))
data = X, (X.square().sum(1) < 1.4).long()  # 1 inside a circle
train, val = kit.split(data, ratios=(0.5, 0.5))
train, val = kit.make_loader(train, batch_size=40, shuffle=True), kit.make_loader(val)
step = partial(kit.train_step, clip=1.0)
fit = partial(kit.fit, loss_fn=nn.CrossEntropyLoss(), metrics=kit.metrics, step=step)

rows, keys = [], ("val_loss", "val_accuracy", "train_grad_norm")
for precision in ("float32", "bf16", "fp16"):
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)).to(device)
    adam = torch.optim.Adam(model.parameters(), lr=0.02)
    wrapped = model if precision == "float32" else kit.amp(model, precision)
    state = kit.make_state(wrapped, adam)  # for fp16 with a GradScaler
    state = fit(state, train, val, epochs=40)
    rows.append([state.history[-1][key] for key in keys])
    scale = state.scaler.get_scale()
    line = "{:7} val_loss {:.2f}, accuracy {:.0%}, grad_norm {:.1f}, scale {:.0f}"
    print(line.format(precision, *rows[-1], scale))

    outputs, exact = kit.predict(wrapped, X), kit.predict(model, X)
    assert outputs.dtype == torch.float32
    assert (outputs - exact).abs().max() < 0.01 * exact.abs().max()
    assert all(abs(a - b) < 0.01 for a, b in zip(rows[-1], rows[0]))
    assert state.scaler.is_enabled() == (precision == "fp16")
    saved = kit.read_checkpoint(kit.save_checkpoint(state, "amp.pt"))
    assert saved["model"].keys() == model.state_dict().keys()  # they do not show amp
