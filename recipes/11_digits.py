"""Pictures: handwritten digits and a small convolutional network (section 11).

    python recipes/11_digits.py

scikit-learn has 1,797 pictures of 8 x 8 pixels. They are trained on twice: by a script,
and by the command line, which takes a table of 64 columns and a model of one's own,
`make` in this file, by the name 11_digits:make. A checkpoint never says what to import,
so the model is named again when its checkpoint is opened.

prints (figures vary):

    by a script
    pictures: 1257 train, 269 val, 271 test
    stopped after 22 epochs
    epoch 17 on the test rows: 0.978 right
    confused: most often a 9, taken for a 3: 2 times

    by the command line, with --model 11_digits:make
    the weights of epoch 14
    part      rows      loss    accuracy    precision    recall      f1
    ------  ------  --------  ----------  -----------  --------  ------
    train     1257  0.006684      1            1         1       1
    val        269  0.02692       0.9926       0.9927    0.9926  0.9925
    test       271  0.1006        0.9668       0.9681    0.9669  0.9663
"""

import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn

import kit


def make(inputs, outputs):
    """From rows of 64 numbers to 10 scores. `kit fit --model` calls it like this."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),  # (N, 64) -> (N, 1, 8, 8): one channel of grey
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),  # 8 x 8 -> 4 x 4
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(32 * 4 * 4, outputs),
    )


def by_script(pixels, digits, folder):
    # Rows of every digit in each part, in the same proportion.
    train, val, test = kit.split(
        (pixels, digits), ratios=(0.7, 0.15, 0.15), seed=42, stratify=digits
    )
    print(f"pictures: {len(train[0])} train, {len(val[0])} val, {len(test[0])} test")

    torch.manual_seed(42)
    model = nn.Sequential(kit.Standardize(train[0]), make(64, 10))
    state = kit.make_state(model, torch.optim.Adam(model.parameters(), lr=0.003))
    state = kit.fit(
        state,
        kit.make_loader(train, batch_size=64, shuffle=True),
        kit.make_loader(val),
        loss_fn=nn.CrossEntropyLoss(),
        metrics=kit.metrics,
        epochs=30,
        stop=partial(kit.early_stopping, patience=5),
        checkpoint=folder,
    )
    print(f"stopped after {len(state.history)} epochs")

    # val has chosen the epoch, test has had no say.
    state = kit.load_checkpoint(state, folder / "best.pt")
    outputs = kit.predict(model, test[0])
    scores = kit.metrics(outputs, test[1])
    print(
        f"epoch {len(state.history)} on the test rows: {scores['accuracy']:.3f} right"
    )

    # Which digits are taken for which?
    counts = kit.confusion_matrix(outputs, test[1])
    print("confused: ", end="")
    counts.fill_diagonal_(0)
    worst = int(counts.argmax())
    true, taken = divmod(worst, 10)
    print(f"most often a {true}, taken for a {taken}: {int(counts.max())} times")


def by_command(pixels, digits, folder):
    # A table: 64 columns of pixels, and one that says which digit it is.
    names = [f"pixel{i}" for i in range(64)]
    lines = [",".join([*names, "digit"])]
    for row, digit in zip(pixels.tolist(), digits.tolist()):
        lines.append(",".join(map(str, [*row, digit])))
    (folder / "digits.csv").write_text("\n".join(lines))

    run, own_model = f"{folder}/run", ["--model", "11_digits:make"]
    kit_command(
        *("fit", "--data", f"{folder}/digits.csv", "--target", "digit", *own_model),
        *("--lr", "0.003", "--batch-size", "64", "--epochs", "30", "--patience", "5"),
        *("--out", run, "--quiet"),
    )
    print(kit_command("evaluate", run, *own_model).rstrip())


def kit_command(*arguments):
    """Run it in this folder, where 11_digits is found."""
    here = Path(__file__).parent
    command = [sys.executable, kit.__file__, *arguments]
    done = subprocess.run(
        command, check=True, cwd=here, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def main():
    try:
        import pandas  # noqa: F401
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit("this recipe needs: pip install scikit-learn pandas")

    pixels, digits = load_digits(return_X_y=True)
    pixels = torch.from_numpy(pixels).float()  # (1797, 64), from 0 to 16
    digits = torch.from_numpy(digits).long()

    with TemporaryDirectory() as folder:
        print("by a script")
        by_script(pixels, digits, Path(folder, "script"))
        print()
        print("by the command line, with --model 11_digits:make")
        by_command(pixels, digits, Path(folder))


if __name__ == "__main__":
    main()
