"""01 Data: make it, split it, look at it, load it (tutorial 1.2-1.6).

    python recipes/01_data.py

The tutorial checks its ratios with `assert`, which python -O removes: kit raises. Its
plot function has the data as defaults, captured from globals: kit's takes arguments.

prints:

    X (50, 1), y (50, 1), first y 0.3000 0.3140 0.3280 0.3420 0.3560
    80/20 in order: 40 + 10 rows, test x from 0.80 to 0.98
    80/20 shuffled: 40 + 10 rows, test x from 0.14 to 0.98
    70/15/15: 35 + 7 + 8 rows
    refused: ratios must be above 0 and sum to 1, got (0.8, 0.3)
    batches: train 8 8 8 8 8, test 8 2
"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch

import kit

print("python", sys.version.split()[0], "torch", torch.__version__, file=sys.stderr)

data = X, y = kit.make_data(50, weight=0.7, bias=0.3)
first = " ".join(f"{value:.4f}" for value in y[:5, 0].tolist())
print(f"X {tuple(X.shape)}, y {tuple(y.shape)}, first y {first}")

train, test = kit.split(data, ratios=(0.8, 0.2))
mixed = kit.split(data, ratios=(0.8, 0.2), seed=42)
# The rows are sorted by x: a split in order tests extrapolation, a shuffled one does not.
for name, (a, b) in {"in order": (train, test), "shuffled": mixed}.items():
    x = f"x from {b[0].min():.2f} to {b[0].max():.2f}"
    print(f"80/20 {name}: {len(a[0])} + {len(b[0])} rows, test {x}")
sizes = [len(x) for x, y in kit.split(data, ratios=(0.7, 0.15, 0.15))]
print("70/15/15:", " + ".join(map(str, sizes)), "rows")
try:
    kit.split(data, ratios=(0.8, 0.3))
except ValueError as error:
    print("refused:", error)
    refused = True

# The tutorial's 2 workers and pinned memory cost 40 rows more time than they save, and
# without an accelerator pinning does nothing.
loader = kit.make_loader(train, batch_size=8, shuffle=True, seed=42)
test_loader = kit.make_loader(test, batch_size=8)
batches = [" ".join(str(len(x)) for x, y in each) for each in (loader, test_loader)]
print(f"batches: train {batches[0]}, test {batches[1]}")

if find_spec("matplotlib"):
    kit.plot_predictions(train, test).savefig("data.png")

assert refused and sizes == [35, 7, 8] and first == "0.3000 0.3140 0.3280 0.3420 0.3560"
assert torch.equal(mixed[1][0], kit.split(data, seed=42)[1][0])  # one seed, one order
