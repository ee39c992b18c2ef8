"""12 Troubleshooting: seven questions provoked, diagnosed and cured (tutorial 12).

    python recipes/12_troubleshooting.py

Of each ill run what kit.diagnose says, and a number before and after a cure, of which
it says nothing. # is the machine's own. 5 limits the memory (Linux), and eats in pieces.

prints:

    1 24% of the loss's fall came in the last quarter: --lr 0.0001, or --epochs 3000
        train_loss 1.3 -> 3.2e-05
    2 val_loss rose by 121% as train_loss fell: --patience 10, --weight-decay 1e-4
        val_loss 2.6 -> 1.2
    3 the loss is 100% of a constant's: --model mlp --hidden 128,128, --epochs 500
        train_loss 0.09 -> 0.00014
    4 #% of # s an epoch is waiting for data: --workers #, a cache
        seconds # -> #
    5 a copy did not fit beside # GiB: --accumulate 4, --amp bf16, or checkpointing
    6 class 1, 1 row for 24 of the commonest, is 2% found: class weights
        val_recall 0.51 -> 0.73
    7 inputs are 109 times off a mean of 0 and a spread of 1: kit.Standardize(X) first
        train_loss 0.034 -> 0.00024
"""

import re
import sys
import time
from functools import partial
from pathlib import Path
from resource import RLIMIT_AS, getpagesize, getrlimit, setrlimit

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn
from torch.nn import functional as F

import kit


def mlp(inputs=1, *first):
    torch.manual_seed(42)
    return nn.Sequential(*first, nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, 1))


def fit(model, train, *, epochs=300, lr=0.01, loss_fn=F.mse_loss, **options):
    state = kit.make_state(model, torch.optim.Adam(model.parameters(), lr=lr))
    state = kit.fit(state, train, loss_fn=loss_fn, epochs=epochs, **options)
    return state, partial(kit.diagnose, state, train, loss_fn=loss_fn)


def show(question, ill, cured, key="train_loss"):
    (finding,), none = (ask() for _, ask in (ill, cured))
    before, after = (state.history[-1][key] for state, _ in (ill, cured))
    text = f"{question} {finding}\n    {key} {before:.2g} -> {after:.2g}"
    print(re.sub(r"(?<= )\d[\d.]*", "#", text) if key == "seconds" else text)
    assert none == []


class Slow(torch.utils.data.TensorDataset):
    def __getitem__(self, row):
        return time.sleep(0.005) or super().__getitem__(row)


draw = torch.Generator().manual_seed(42)
show(1, *(fit(mlp(), [kit.make_data()], lr=lr) for lr in (1e-5, 0.01)))
X = torch.randn(150, 8, generator=draw)
y = X[:, :1] + torch.randn(150, 1, generator=draw)  # of which half is noise
train, val = ([part] for part in kit.split((X, y), ratios=(1 / 3, 2 / 3)))
stop = partial(kit.early_stopping, patience=5)
show(2, *(fit(mlp(8), train, val=val, stop=s) for s in (None, stop)), "val_loss")
x = torch.linspace(-1, 1, 250)[:, None]
show(3, *(fit(model, [(x, x * x)]) for model in (nn.Linear(1, 1), mlp())))
loaders = (kit.make_loader(rows, batch_size=10) for rows in (Slow(x, x), (x, x)))
show(4, *(fit(mlp(), loader, epochs=2) for loader in loaders), "seconds")
wide = torch.randn(2**13, 256)  # 8 MB, as is the output of each layer
deep = nn.Sequential(nn.Linear(256, 256), *[nn.Tanh()] * 64)
pieces = partial(kit.train_step, accumulate=64)
_, ask = fit(deep, [(wide, wide)], epochs=1, step=pieces)
taken = int(Path("/proc/self/statm").read_text().split()[0]) * getpagesize()
setrlimit(RLIMIT_AS, (taken + 2**28, getrlimit(RLIMIT_AS)[1]))
print(5, re.sub(r"[\d.]+(?= GiB)", "#", *ask()))
assert ask(step=pieces) == []
y = (torch.arange(2000) < 80).long()
data = [(torch.randn(2000, 2, generator=draw) + y[:, None], y)]
two = partial(fit, train=data, lr=0.1, val=data, metrics=kit.metrics)
losses = (nn.CrossEntropyLoss(torch.tensor([1.0, weight])) for weight in (1.0, 20.0))
show(6, *(two(nn.Linear(2, 2), loss_fn=loss) for loss in losses), "val_recall")
data = [(100 * X, X[:, :1])]
show(7, *(fit(mlp(8, *first), data) for first in ((), (kit.Standardize(100 * X),))))
