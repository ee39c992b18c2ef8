"""Every recipe runs alone, without warnings, and prints what its docstring says."""

import ast
import os
import re
import runpy
import sys
from pathlib import Path

import pytest
from helpers import ROOT, python, start

RECIPES = sorted(
    recipe.relative_to(ROOT).as_posix()
    for folder in ("recipes", "recipes/exercises")
    for recipe in ROOT.glob(f"{folder}/*.py")
)

HEADER = re.compile(r"\nprints( \(figures vary\))?:\n\n")
FIGURE = re.compile(r"\d+([.,]\d+)*")


def read_promise(recipe):
    """The lines that the docstring ends with, and whether their figures vary."""
    docstring = ast.get_docstring(ast.parse((ROOT / recipe).read_text("utf-8"))) or ""
    assert f"\n    python {recipe}\n" in docstring
    header = HEADER.search(docstring)
    assert header, "the docstring must end with `prints:`, a blank line, the output"
    block = docstring[header.end() :]
    assert block, "nothing is promised after `prints:`"
    lines = [line.removeprefix("    ").rstrip() for line in block.splitlines()]
    return lines, header[1] is not None


def without_figures(line):
    """The words of a line: times and sizes differ, and so does the room they take."""
    return " ".join(FIGURE.sub("0", line).split())


def run_recipe(path):
    """Do what `python path` does, in a process that has imported torch already."""
    os.dup2(os.open("stderr", os.O_WRONLY | os.O_CREAT), 2)
    sys.path.remove(str(ROOT))  # the recipe finds kit.py by itself
    del sys.modules["kit"]
    sys.argv = [path]
    runpy.run_path(path, run_name="__main__")


@pytest.mark.parametrize("recipe", RECIPES)
def test_prints_what_its_docstring_says(recipe):
    promised, figures_vary = read_promise(recipe)
    child = start(run_recipe, str(ROOT / recipe))
    status, errors = child.wait(300), Path("stderr").read_text()
    last = errors.rstrip().rpartition("\n")[2]
    if status and "pip install" in last:
        pytest.skip(last)
    assert status == 0, errors

    printed = [line.rstrip() for line in child.log().rstrip().splitlines()]
    if figures_vary:
        printed = [without_figures(line) for line in printed]
        promised = [without_figures(line) for line in promised]
    assert printed == promised


def test_a_recipe_without_its_package_says_what_to_install():
    recipes = {"08_metrics": "torchmetrics", "09_wandb": "wandb"}
    recipes |= {"09_tensorboard": "tensorboard", "10_serve": "fastapi"}
    code = f"""
import runpy, sys
for name, package in {recipes}.items():
    sys.modules[package] = None  # as if it were not installed
    try:
        runpy.run_path(f"{ROOT}/recipes/{{name}}.py", run_name="__main__")
    except SystemExit as stop:
        print(stop.code)
"""
    printed, errors = python("-c", code).communicate(timeout=60)
    assert errors == ""
    for line, package in zip(printed.splitlines(), recipes.values(), strict=True):
        assert line.startswith("this recipe needs") and "pip install" in line
        assert package in line
