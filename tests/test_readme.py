"""README's and the docstrings' examples run; kit.py imports quickly, and alone."""

import configparser
import doctest
import inspect
import os
import re
import runpy
import tomllib
from pathlib import Path

import kit

README = Path(__file__).parents[1] / "README.md"
KIT = README.with_name("kit.py")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_examples_print_what_they_say(capsys):
    names, python = {}, blocks("python")
    assert len(python) >= 3
    for code in python:
        Path("example.py").write_text(code)
        names = runpy.run_path("example.py", names)
        said = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
        assert capsys.readouterr().out.splitlines() == said


def test_every_public_function_has_an_example_that_runs():
    found = doctest.DocTestFinder(exclude_empty=False).find(kit)
    examples = {test.name.split(".")[-1]: len(test.examples) for test in found}
    for name, thing in vars(kit).items():
        if inspect.isfunction(thing) and thing.__module__ == "kit" and name[0] != "_":
            assert examples[name], name
    assert doctest.testmod(kit).failed == 0


def test_the_recipes_are_all_listed():
    recipes = sorted(p.name for p in (README.parent / "recipes").glob("*.py"))
    for text in README.read_text().split("## 中文速览"):  # in English, and in Chinese
        rows = re.findall(r"^\| \[(\w+\.py)\]\(recipes/\1\) \|", text, re.MULTILINE)
        assert rows == recipes


def test_the_chinese_first_screen_has_the_commands_of_the_english_one():
    english, chinese = README.read_text().split("## 中文速览")
    for line in re.findall(r"^python.*", chinese, re.MULTILINE):
        assert line.split("  #")[0] in english


def test_every_test_that_is_named_exists():
    named = set(re.findall(r"`(test_\w+)`", README.read_text()))
    files = Path(__file__).parent.glob("test_*.py")
    there = set(
        re.findall(
            r"^def (test_\w+)", "".join(map(Path.read_text, files)), re.MULTILINE
        )
    )
    assert len(named) > 10 and named <= there


def test_your_own_project_needs_kit_py_and_nothing_else_beside_it(child):
    (train,) = (code for code in blocks("python") if code.startswith("# train.py"))
    Path("train.py").write_text(train)
    Path("kit.py").write_bytes(KIT.read_bytes())
    config = configparser.ConfigParser()
    config.read(KIT.with_name("setup.cfg"))
    extras = re.findall(r"[\w-]+(?=[>=]=)", config["options.extras_require"]["test"])
    code = f"""
import runpy, sys
sys.path.insert(0, "")
for name in {sorted({*extras, "sklearn", "yaml"} - {"torch", "numpy"})}:
    sys.modules[name] = None
runpy.run_path("train.py", run_name="__main__")
assert __import__("kit").__file__ == {str(Path("kit.py").resolve())!r}
"""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    printed, errors = child("-c", code, env=env).communicate(timeout=120)
    assert (printed, errors) == ("1.0\n", "")
    assert sorted(path.name for path in Path("runs/late").iterdir()) == [
        "best.pt",
        "last.pt",
    ]


def test_importing_kit_costs_at_most_50_ms(child):
    code = """
import time, torch, numpy, click, tabulate
start = time.perf_counter()
import kit
print(time.perf_counter() - start)
"""
    env = os.environ | {"PYTHONPATH": str(README.parent), "PYTHONPYCACHEPREFIX": "pyc"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    times = []
    for _ in range(5):  # the first one compiles
        printed, errors = child("-c", code, env=env).communicate(timeout=60)
        assert errors == ""
        times.append(float(printed))
    assert min(times) < 0.05


def test_the_script_block_names_what_the_package_needs():
    block = re.search(r"# /// script\n(.*?)# ///", KIT.read_text(), re.DOTALL)[1]
    script = tomllib.loads(block.replace("# ", ""))
    config = configparser.ConfigParser()
    config.read(KIT.with_name("setup.cfg"))
    needs = config["options"]["install_requires"].split()
    assert script["dependencies"] == needs
    assert script["requires-python"] == config["options"]["python_requires"]
    assert {re.match(r"\w+", need)[0] for need in needs} == {
        "torch", "numpy", "click", "tabulate",
    }  # fmt: skip
