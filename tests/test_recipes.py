"""Every recipe runs, alone and without warnings, and prints what its docstring says."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.py"))


def promised(recipe):
    """The lines after `prints:`, indented by four, to the end of the docstring."""
    docstring = ast.get_docstring(ast.parse(recipe.read_text("utf-8"))) or ""
    assert f"\n    python recipes/{recipe.name}\n" in docstring
    _, marker, block = docstring.partition("\nprints:\n\n")
    assert marker and block, "the docstring must end with `prints:` and the output"
    return [line[4:].rstrip() for line in block.splitlines()]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_prints_what_its_docstring_says(recipe, tmp_path):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    lines = promised(recipe)
    done = subprocess.run(
        [sys.executable, "-W", "error", recipe],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=300,
    )
    last = done.stderr.rstrip().rpartition("\n")[2]
    if done.returncode and "pip install" in last:
        pytest.skip(last)
    assert done.returncode == 0, done.stderr
    assert [line.rstrip() for line in done.stdout.splitlines()] == lines


def test_there_is_a_recipe_for_every_section():
    assert {recipe.name[:2] for recipe in RECIPES} >= {f"{n:02}" for n in range(1, 7)}
