"""Automatic mixed precision: half the bits where that is enough (section 7.1).

    python recipes/07_amp.py

Under autocast the large multiplications take 16-bit numbers, which hardware made for
them computes faster and which take half the memory; weights and losses stay in float32.
kit.amp wraps a model so that its forward pass does that. The script shows what the
16-bit formats cannot hold, trains one model in three precisions, and then shows the two
mistakes that fp16 invites.

prints (figures vary):

    what the formats make of three numbers
                   1.001    100000    0.00000001
    float32       1.0010    100000       1.0e-08
    bfloat16      1.0000     99840       1.0e-08
    float16       1.0010       inf       0.0e+00

    40 epochs
               val_loss  accuracy  kept, KB  ms a step
    float32        0.07      0.96       416       1.18
    bf16           0.06      0.97       216       1.58
    fp16           0.05      0.97       216       2.61
    first keys of the fp16 checkpoint: 0.weight, 0.bias

    a gradient of 0.00000001 on its way through fp16
    without a scale        0.0e+00
    times 65,536           1.0e-08

    a gradient of length 5, clipped at 1: the length of the update
    clip, then unscale    0.000015   wrong
    unscale, then clip    1.000000
"""

import sys
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

import kit

# --- What 16 bits can hold ---------------------------------------------------------

# bf16 has the range of float32, with two to three digits. fp16 has one digit more and a
# small range: what is too large becomes infinite, what is too small becomes 0.
print("what the formats make of three numbers")
print(f"{'':10}{'1.001':>10}{'100000':>10}{'0.00000001':>14}")
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    name = str(dtype).removeprefix("torch.")
    values = torch.tensor([1.001, 100_000.0, 1e-8]).to(dtype).tolist()
    print(f"{name:10}{values[0]:10.4f}{values[1]:10.0f}{values[2]:14.1e}")


# --- One model in three precisions -------------------------------------------------

# Is a point inside a circle? On a recent GPU bf16 and fp16 are faster, the more so the
# larger the model is; most CPUs have to imitate them, and are slower for it.
device = "cuda" if torch.cuda.is_available() else "cpu"
X = torch.randn(800, 2, generator=torch.Generator().manual_seed(42))
y = (X.square().sum(1) < 1.4).long()
train, val = kit.split((X, y), ratios=(0.5, 0.5))
train_loader = kit.make_loader(train, batch_size=40, shuffle=True)
val_loader = kit.make_loader(val)


def make_state(precision):
    torch.manual_seed(42)
    model = nn.Sequential(
        nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    if precision != "float32":
        model = kit.amp(model, precision)
    return kit.make_state(model, optimizer)


def kept_for_backward(model):
    """Kilobytes that a forward pass keeps for its backward pass, without weights."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(X.to(device))
    return sum(kept.values()) / 1e3


print()
print("40 epochs")
print(f"{'':10}{'val_loss':>9}{'accuracy':>10}{'kept, KB':>10}{'ms a step':>11}")
for precision in ("float32", "bf16", "fp16"):
    state = kit.fit(
        make_state(precision),
        train_loader,
        val_loader,
        loss_fn=nn.CrossEntropyLoss(),
        epochs=40,
        metrics=kit.metrics,
        step=partial(kit.train_step, clip=1.0),
    )
    row = state.history[-1]
    seconds = median(row["seconds"] for row in state.history) / len(train_loader)
    print(
        f"{precision:10}{row['val_loss']:9.2f}{row['val_accuracy']:10.2f}"
        f"{kept_for_backward(state.model):10.0f}{1000 * seconds:11.2f}"
    )

# A wrap leaves no trace in a checkpoint: what was trained in fp16 can be loaded into a
# plain model, and the other way round.
content = kit.read_checkpoint(kit.save_checkpoint(state, "models/amp.pt"))
print("first keys of the fp16 checkpoint:", ", ".join(list(content["model"])[:2]))


# --- Mistake 1: fp16 without a scaler ----------------------------------------------

# Small gradients become 0 in fp16, and what is 0 teaches nothing. So the loss is
# multiplied by a large number, the scale, before the backward pass, and the gradients
# are divided by it afterwards, in float32. For fp16 make_state adds a
# torch.amp.GradScaler, which does that and adjusts the scale; bf16 needs none. (The
# tutorial's torch.cuda.amp is deprecated.)
gradient = 1e-8
scale = 65_536
without = torch.tensor(gradient).half().float()
with_scale = torch.tensor(gradient * scale).half().float() / scale

print()
print("a gradient of 0.00000001 on its way through fp16")
print(f"{'without a scale':20}{without.item():10.1e}")
print(f"{'times 65,536':20}{with_scale.item():10.1e}")


# --- Mistake 2: clipping before unscaling ------------------------------------------

# clip_grad_norm_ shortens a gradient that is longer than 1. While it is still
# multiplied by the scale it is always longer; once it has been divided again, next to
# nothing is left. So unscale first, then clip. kit.train_step(clip=...) does.


def length_of_update(unscale_first):
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    before = weight.detach().clone()

    loss = weight.square().sum() / 2  # the gradient is the weight, of length 5
    scaler.scale(loss).backward()
    if unscale_first:
        scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_([weight], 1.0)
    scaler.step(optimizer)  # unscales unless that is done
    return (weight.detach() - before).norm().item()


print()
print("a gradient of length 5, clipped at 1: the length of the update")
print(f"{'clip, then unscale':20}{length_of_update(unscale_first=False):10.6f}   wrong")
print(f"{'unscale, then clip':20}{length_of_update(unscale_first=True):10.6f}")
