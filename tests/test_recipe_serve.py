"""recipes/10_serve.py: real requests, and what no request may do to the service."""

import csv
import http.client
import json
import math
import random
import runpy
import sys
from collections import Counter
from pathlib import Path

import click
import pytest
import torch
from helpers import ROOT, call

import kit

for package in ("fastapi", "uvicorn", "pandas", "onnxruntime", "onnxscript"):
    pytest.importorskip(package)

FILE = ROOT / "recipes" / "10_serve.py"
RECIPE = runpy.run_path(str(FILE))
COLUMNS = ["living area", "größe", "heat"]
JSON = {"content-type": "application/json"}


def make_rows():
    """90 rows as they are sent: text as text, null for a gap."""
    draw, rows = random.Random(0), []
    for i in range(90):
        area = None if i % 9 == 4 else draw.uniform(50, 200)
        heat = None if i % 9 == 5 else draw.choice(["gas", "oil", "coal"])
        rows.append({"living area": area, "größe": draw.uniform(1, 9), "heat": heat})
    return rows


ROWS = make_rows()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The line as .pt2, a regression as .onnx, a classification as a checkpoint."""
    folder = tmp_path_factory.mktemp("serve")
    with open(folder / "table.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, "number", "class"])
        writer.writeheader()
        for row in ROWS:
            target = {"number": 10 * row["größe"], "class": str(row["größe"] < 5)}
            writer.writerow(row | target)
    call("fit --quiet --epochs 200 --out", folder / "line")
    for name, other in (("number", "class"), ("class", "number")):
        fit = f"fit --quiet --epochs 5 --target {name} --drop {other}"
        call(f"{fit} --data", folder / "table.csv", "--out", folder / name)
    call("export", folder / "line/last.pt", folder / "line.pt2")
    call("export", folder / "number", folder / "number.onnx")
    return folder


@pytest.fixture(scope="module")
def ports(files):
    """A service of each, in a thread of this process, by the recipe's own functions."""
    running, ports = [], {}
    for name in ("line.pt2", "number.onnx", "class/best.pt"):
        run, description = RECIPE["open_model"](files / name, trust=True)
        running.append(RECIPE["serving"](RECIPE["create_app"](run, description)))
        ports[name.partition(".")[0].partition("/")[0]] = running[-1].__enter__()
    yield ports
    for service in running:
        service.__exit__(None, None, None)


def ask(port, body, headers=JSON, path="/predict", method="POST"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, json.loads(text)


def get(port, path):
    return ask(port, None, {}, path, "GET")


def predict(port, *rows):
    return ask(port, json.dumps({"rows": rows}))[1]["predictions"]


def test_rows_get_what_kit_predict_says(files, ports):
    for name in ("number", "class"):
        printed = call("predict", files / name, "--data", files / "table.csv")
        expected = csv.DictReader(printed.splitlines())
        rows = [dict(reversed(row.items())) for row in ROWS]  # names tell the columns
        for found, line in zip(predict(ports[name], *rows), expected, strict=True):
            if name == "number":
                assert found["prediction"] == pytest.approx(float(line["prediction"]))
            else:
                assert found["prediction"] == line["prediction"]
                p = found["probabilities"]["True"]
                assert p == pytest.approx(float(line["p_True"]), rel=1e-4)


def test_the_page_docs_has_an_example_that_works(ports):
    for port in ports.values():
        post = get(port, "/openapi.json")[1]["paths"]["/predict"]["post"]
        example = post["requestBody"]["content"]["application/json"]["example"]
        assert ask(port, json.dumps(example))[0] == 200
        assert get(port, "/health") == (200, {"status": "ok"})
        assert ask(port, json.dumps(example), {"content-type": "text/plain"})[0] == 415


def test_a_body_in_chunks_has_the_same_limit(ports):
    assert ask(ports["number"], iter([b" " * 500_000] * 3))[0] == 413


def test_outputs_that_are_not_finite_are_a_422():
    description = {"columns": ["x"], "categories": {}, "classes": []}
    app = RECIPE["create_app"](lambda inputs: inputs * 1e30, description)
    with RECIPE["serving"](app) as port:
        status, reply = ask(port, b'{"value": 1e20}')
    assert status == 422 and "too large" in reply["detail"]


def changed(**changes):
    row = {"living area": 90, "größe": 3, "heat": "gas"} | changes
    return json.dumps({"rows": [row]}).encode()


BAD = [  # body, what is said of it
    (b"\xff", "the body is not JSON"),
    (b"9" * 5000, "the body is not JSON"),  # more digits than Python reads
    (b"null", 'must be {"rows": [...]}, got None'),
    (b'{"rows": []}', "rows must be a list of rows, got []"),
    (b'{"rows": [[1, 2, 3]]}', "row 0: must be an object with the columns' names"),
    (changed(**{"z" * 999: 1}), "zzz is not a column"),
    (changed(größe=math.nan), "row 0: größe must be a finite number, got nan"),
    (changed(größe=10**400), "row 0: größe must be a finite number, got 10000"),
    (changed(heat=3), "row 0: heat must be text or null, got 3"),
    (b"[" * 100_000, "nested too deep"),
]


@pytest.mark.parametrize("body, said", BAD, ids=range(len(BAD)))
def test_a_bad_body_is_a_422_that_says_why(body, said, ports):
    status, reply = ask(ports["number"], body)
    assert status == 422 and said in reply["detail"] and len(reply["detail"]) < 200


def make_random_value(draw, depth=0):
    if draw.random() < 0.8 or depth == 3:
        simple = [0, 1.5, -1e30, 1e31, math.nan, -math.inf, None, True, "gas", "sun"]
        return draw.choice(simple)
    values = [make_random_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    names = draw.sample(["rows", "value", *COLUMNS], len(values))
    return draw.choice([values, dict(zip(names, values))])


def test_random_bodies_are_answered_or_refused_but_never_a_500(ports):
    draw, seen = random.Random(0), Counter()
    for i in range(400):
        body = json.dumps(make_random_value(draw))
        if i % 2:  # nearly right
            body = changed(**{draw.choice(COLUMNS): make_random_value(draw, 2)})
        status, reply = ask(ports["number"], body)
        assert status == (200 if "predictions" in reply else 422), body
        seen[status] += 1
    assert min(seen[200], seen[422]) > 60
    assert get(ports["number"], "/model")[1]["unknown"]["heat"] > 0


OWN = """
import pathlib, torch
pathlib.Path("imported").touch()
make = torch.nn.Linear
"""


def test_a_checkpoint_never_says_what_to_import():
    Path("own.py").write_text(OWN)
    call("fit --epochs 2 --quiet --model own:make --out run")
    Path("imported").unlink()
    del sys.modules["own"]
    with pytest.raises(click.ClickException, match="--model"):
        RECIPE["open_model"]("run/last.pt")
    assert not Path("imported").exists()
    run, _ = RECIPE["open_model"]("run/last.pt", model="own:make")
    assert run(kit.make_data()[0]).shape == (50, 1)


ODD_COLUMNS = {"wide.onnx": ["a", "b"], "text.onnx": "a", "numbers.onnx": [1]}


@pytest.mark.parametrize("name", ["line.pt2", "line/config.json", *ODD_COLUMNS])
def test_a_file_that_cannot_be_served_is_one_line(name, files, monkeypatch):
    if name in ODD_COLUMNS:
        model, metadata = torch.nn.Linear(1, 1), {"columns": ODD_COLUMNS[name]}
        kit.export(model, files / name, example=torch.ones(2, 1), metadata=metadata)
    monkeypatch.setattr("uvicorn.run", print)
    monkeypatch.setattr(sys, "argv", ["10_serve.py", str(files / name)])
    with pytest.raises(SystemExit, match="^Error: .*$") as stop:
        RECIPE["main"]()
    assert ("add --trust" in stop.value.code) == (name == "line.pt2")
