"""11 A real image set (tutorial 11): handwritten digits, a small CNN.

    python recipes/11_digits.py

scikit-learn's 1,797 digits of 8 x 8, split 70/15/15 with an equal share of each class,
by a script, and by the command line, which takes the model as MODULE:FUNCTION. val
chooses the epoch; test has seen nothing.

prints:

    1257 train, 269 val, 271 test
    script: test accuracy above 0.95
    --model 11_digits:make: test accuracy above 0.95
"""

import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import numpy as np
import torch
from torch import nn

import kit


def make(shape, outputs):
    layers = [nn.Conv2d(shape[0], 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.3), nn.LazyLinear(outputs))


def by_script(X, y, folder):
    train, val, test = kit.split((X, y), ratios=(0.7, 0.15, 0.15), seed=42, stratify=y)
    print(f"{len(train[1])} train, {len(val[1])} val, {len(test[1])} test")
    torch.manual_seed(42)
    model = nn.Sequential(kit.Standardize(train[0]), make((1, 8, 8), 10))
    kit.predict(model, X[:1])  # gives LazyLinear its width
    state = kit.make_state(model, torch.optim.Adam(model.parameters(), lr=0.003))
    options = {"loss_fn": nn.CrossEntropyLoss(), "epochs": 30, "checkpoint": folder}
    options["stop"] = partial(kit.early_stopping, patience=5)
    train = kit.make_loader(train, batch_size=64, shuffle=True)
    kit.fit(state, train, kit.make_loader(val), **options)
    kit.load_checkpoint(state, folder / "best.pt")
    return kit.metrics(kit.predict(model, test[0]), test[1])["accuracy"]


def by_command(X, y, folder):
    np.savez(folder / "digits.npz", X=X, y=y)
    options = ["--data", folder / "digits.npz", "--target", "y", "--out", folder]
    options += [
        "--task",
        "classification",
        "--model",
        "11_digits:make",
        "--lr",
        "0.003",
    ]
    options += ["--epochs", "30", "--patience", "5", "--quiet", "--no-plot"]
    call = partial(subprocess.run, check=True, cwd=Path(__file__).parent)
    call([sys.executable, kit.__file__, "fit", *options])
    evaluate = [sys.executable, kit.__file__, "evaluate", folder / "best.pt"]
    printed = call(evaluate, stdout=subprocess.PIPE, text=True).stdout
    return float(printed.split("accuracy")[1].split()[0])


if __name__ == "__main__":
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit("the digits need scikit-learn: pip install scikit-learn")

    X, y = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    X = X.float().reshape(-1, 1, 8, 8)
    for name, fit in {
        "script": by_script,
        "--model 11_digits:make": by_command,
    }.items():
        with TemporaryDirectory() as folder:
            accuracy = fit(X, y, Path(folder))
        assert accuracy > 0.95, accuracy
        print(f"{name}: test accuracy above 0.95")
