"""07 Automatic mixed precision (tutorial 7.1).

    python recipes/07_amp.py

bf16 and fp16 reach float32's loss and accuracy; they save time and memory on hardware
made for them, which most CPUs are not: there, fp16 is very slow. Watch:
torch.cuda.amp is deprecated; bf16 needs no scaler; fp16's gradients must be unscaled
before they are clipped, as the equal norms show.

prints:

    float32 val_loss 0.09, accuracy 96%, grad_norm 0.2, scale 1
    bf16    val_loss 0.09, accuracy 96%, grad_norm 0.2, scale 1
    fp16    val_loss 0.09, accuracy 96%, grad_norm 0.2, scale 65536
"""

import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

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


def make_state(wrap=lambda model: model):
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    return kit.make_state(wrap(model), optimizer)


states = {
    "float32": make_state(),
    "bf16": make_state(partial(kit.amp, precision="bf16")),
    "fp16": make_state(partial(kit.amp, precision="fp16")),  # adds the GradScaler
}
rows = []
for name, state in states.items():
    state = fit(state, train, val, epochs=40)
    rows.append(row := state.history[-1])
    outputs = kit.predict(state.model, X)
    with TemporaryDirectory() as folder:
        path = kit.save_checkpoint(state, Path(folder, "amp.pt"))
        bare = kit.load_checkpoint(make_state(), path).model  # its keys do not show amp
    scores = f"val_loss {row['val_loss']:.2f}, accuracy {row['val_accuracy']:.0%}"
    norm = f"grad_norm {row['train_grad_norm']:.1f}"
    print(f"{name:7} {scores}, {norm}, scale {state.scaler.get_scale():.0f}")

    assert outputs.dtype == torch.float32
    assert (kit.predict(bare, X) - outputs).abs().max() < 0.01 * outputs.abs().max()
    assert abs(row["val_loss"] - rows[0]["val_loss"]) < 0.01
    assert abs(row["val_accuracy"] - rows[0]["val_accuracy"]) < 0.01
    assert abs(row["train_grad_norm"] / rows[0]["train_grad_norm"] - 1) < 0.05
    assert state.scaler.is_enabled() == (name == "fp16")
