"""Data: make it, split it, look at it, hand it out in batches (sections 1.2 to 1.6).

    python recipes/01_data.py

Fifty points on a straight line are enough to learn every step of training on, because
the right answer is known. The script makes them, splits them into rows to train on and
rows to test on, draws them to runs/data.png (where matplotlib is installed), and hands
them out in batches.

prints:

    two random numbers
    from seed 42          0.8823  0.9150
    again from seed 42    0.8823  0.9150

    the first of the 50 rows of y = 0.7 x + 0.3
         x       y
      0.00  0.3000
      0.02  0.3140
      0.04  0.3280
      0.06  0.3420
      0.08  0.3560
    shape of X: (50, 1)
    shape of y: (50, 1)

    three ways to split 50 rows
                      rows          x of the test rows
    80/20 in order    40 + 10       0.80 to 0.98
    80/20 shuffled    40 + 10       0.14 to 0.98
    70/15/15 in order 35 + 7 + 8    0.84 to 0.98

    ratios of 0.8 and 0.3
    assert, python      refused
    assert, python -O   accepted
    kit.split           refused: ratios must be above 0 and sum to 1, got (0.8, 0.3)

    batches of 8
                      sizes         the first x
    train, epoch 1    8 8 8 8 8     0.24 0.16 0.48 0.14 0.12
    train, epoch 2    8 8 8 8 8     0.40 0.38 0.24 0.76 0.16
    test              8 2           0.80 0.82 0.84 0.86 0.88
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch

import kit

# --- 1.2 Set-up --------------------------------------------------------------------

# Note the versions with every experiment: results may change with them. They go to
# stderr, because they differ from one machine to the next.
print("Python", sys.version.split()[0], "and torch", torch.__version__, file=sys.stderr)

# A seed is where random numbers start from: the same seed, the same numbers.
print("two random numbers")
for time in ("from seed 42", "again from seed 42"):
    torch.manual_seed(42)
    first, second = torch.rand(2).tolist()
    print(f"{time:20}{first:8.4f}{second:8.4f}")


# --- 1.3 Data on a straight line ---------------------------------------------------

# X holds the inputs, y the targets. Each has a row for every sample and a column for
# every feature, of which there is only one here: 50 rows, 1 column.
X, y = kit.make_data(50, weight=0.7, bias=0.3)

print()
print(f"the first of the {len(X)} rows of y = 0.7 x + 0.3")
print(f"{'x':>6}{'y':>8}")
for row in range(5):
    print(f"{X[row].item():6.2f}{y[row].item():8.4f}")
print("shape of X:", tuple(X.shape))
print("shape of y:", tuple(y.shape))


# --- 1.4 Rows to train on, rows to test on -----------------------------------------

# A model is judged by rows that it has not seen. Where there are three parts, the one
# in the middle, validation, is for choosing among models; the test rows are used once,
# at the very end.
in_order = kit.split((X, y), ratios=(0.8, 0.2))
shuffled = kit.split((X, y), ratios=(0.8, 0.2), seed=42)
in_three = kit.split((X, y), ratios=(0.7, 0.15, 0.15))

# The tutorial cuts the rows in order. As they are sorted by x, its test rows all lie to
# the right of what the model is trained on, which tests extrapolation: harder than what
# most models are for. With a seed the rows are shuffled before they are cut.
print()
print("three ways to split 50 rows")
print(f"{'':18}{'rows':14}x of the test rows")
for name, parts in (
    ("80/20 in order", in_order),
    ("80/20 shuffled", shuffled),
    ("70/15/15 in order", in_three),
):
    sizes = " + ".join(str(len(inputs)) for inputs, targets in parts)
    test_inputs, test_targets = parts[-1]
    print(f"{name:18}{sizes:14}{test_inputs.min():.2f} to {test_inputs.max():.2f}")

# The ratios have to sum to 1. The tutorial sees to that with `assert`, which is meant
# for finding mistakes of one's own: started with -O, Python leaves every assert out.
print()
print("ratios of 0.8 and 0.3")
for options in ([], ["-O"]):
    command = [sys.executable, *options, "-c", "assert 0.8 + 0.3 == 1"]
    child = subprocess.run(command, capture_output=True, check=False)
    name = " ".join(["assert, python", *options])
    print(f"{name:20}{'refused' if child.returncode else 'accepted'}")
try:
    kit.split((X, y), ratios=(0.8, 0.3))
except ValueError as error:
    print(f"{'kit.split':20}refused: {error}")


# --- 1.5 Look at the data ----------------------------------------------------------

# Blue points are to train on, green ones to test on. The tutorial's function has global
# variables as its defaults, takes their values when it is defined, and keeps drawing
# those after the data have changed. This one draws what it is given.
train, test = in_order

if find_spec("matplotlib"):
    Path("runs").mkdir(exist_ok=True)
    kit.plot_predictions(train, test).savefig("runs/data.png")


# --- 1.6 Batches -------------------------------------------------------------------

# A loader hands out the rows in batches, and one pass over it is an epoch. Rows to
# train on are shuffled, in every epoch anew; for rows to test on the order does not
# matter.
train_loader = kit.make_loader(train, batch_size=8, shuffle=True, seed=42)
test_loader = kit.make_loader(test, batch_size=8)

# The tutorial adds two workers, which are processes that read ahead, and pinned memory,
# which speeds up the way to an accelerator. For 40 rows that lie in memory, starting
# the workers takes longer than the epoch does, and without an accelerator pinning does
# nothing. Ask for workers where reading a row is slow: make_loader(..., workers=2).
print()
print("batches of 8")
print(f"{'':18}{'sizes':14}the first x")
for name, loader in (
    ("train, epoch 1", train_loader),
    ("train, epoch 2", train_loader),
    ("test", test_loader),
):
    batches = list(loader)
    sizes = " ".join(str(len(inputs)) for inputs, targets in batches)
    inputs, targets = batches[0]
    first = " ".join(f"{x:.2f}" for x in inputs[:5, 0].tolist())
    print(f"{name:18}{sizes:14}{first}")
