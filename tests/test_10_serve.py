"""Section 10, recipes/10_serve.py: real processes, asked over real sockets, and stopped."""

import csv
import http.client
import json
import math
import os
import random
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import kit

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "10_serve.py"
JSON = {"content-type": "application/json"}


def call(*arguments):
    result = CliRunner().invoke(kit.main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


class Server:
    """A process of the recipe, and connections to it."""

    def __init__(self, path, checkpoint=None, columns=(), rows=()):
        self.path, self.checkpoint = path, checkpoint
        self.columns, self.rows = columns, rows
        env = os.environ | {"PORT": "0", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "error", RECIPE, path]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=env, **pipes)

    def wait(self):
        """Till it takes requests."""
        started = ""
        for line in self.process.stderr:
            started += line
            if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                return self
        raise AssertionError(started)

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, body, headers=JSON, path="/predict", method="POST", connection=None):
        """The status, and the JSON or what else was answered."""
        own = connection or self.connect()
        own.request(method, path, body, headers)
        response = own.getresponse()
        text = response.read().decode()
        if not connection:
            own.close()
        assert response.getheader("content-type") == "application/json", text
        return response.status, json.loads(text)

    def get(self, path):
        return self.ask(None, {}, path, "GET")


def make_csv(path, columns, target):
    X = torch.randn(90, 2, generator=torch.Generator().manual_seed(0))
    rows = (X * torch.tensor([30.0, 2.0]) + torch.tensor([120.0, 5.0])).tolist()
    with open(path, "w", newline="", encoding="utf-8") as file:
        lines = [[*row, target(*row)] for row in rows]
        csv.writer(file).writerows([[*columns, "y"], *lines])
    return rows


KINDS = ("line.pt2", "regression.onnx", "classes.pt")


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """A server each of the line, a regression and a classification."""
    folder, sizes = tmp_path_factory.mktemp("serve"), ("living area", "größe")
    rows = make_csv(
        folder / "letters.csv", "ab", lambda a, b: "wide" if b < 5 else "tall"
    )
    make_csv(folder / "sizes.csv", sizes, lambda a, b: 1000 * a + b)
    fit = "fit", "--quiet", "--no-plot", "--epochs"
    runs = [folder / name / "last.pt" for name in ("letters", "line", "sizes")]
    for run in runs:
        data = "--data", folder / f"{run.parent.name}.csv", "--target", "y"
        line = run.parent.name == "line"
        call(*fit, *([200] if line else [5, *data]), "--out", run.parent)
    classes, line, best = runs
    started = {"classes.pt": Server(classes, classes, "ab", rows)}
    call("export", line, folder / "line.pt2")
    x = [[0.5], [-3.0], [1e30]]
    started["line.pt2"] = Server(folder / "line.pt2", line, ("x",), x)
    call("export", best, folder / "regression.onnx")
    regression = folder / "regression.onnx"
    started["regression.onnx"] = Server(regression, best, sizes, rows)
    try:
        yield {name: server.wait() for name, server in started.items()}
    finally:
        for server in started.values():
            server.process.terminate()
        errors = [
            server.process.communicate(timeout=60)[1] for server in started.values()
        ]
    assert not [text for text in errors if "Traceback" in text or "ERROR" in text]


def predicted(server, rows):
    """The oracle: the checkpoint's model, asked in this process."""
    outputs = kit.predict(kit._open(server.checkpoint)[0], torch.tensor(rows))
    if outputs.shape[1] == 1:
        return [{"prediction": row[0]} for row in outputs.tolist()]
    shares = [dict(zip(("tall", "wide"), row)) for row in outputs.softmax(1).tolist()]
    return [{"prediction": max(p, key=p.get), "probabilities": p} for p in shares]


def assert_near(answer, expected):
    assert answer.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_near(answer[key], value)
        else:
            assert answer[key] == (
                value if isinstance(value, str) else pytest.approx(value, rel=1e-4)
            )


@pytest.mark.parametrize("kind", KINDS)
def test_rows_by_name_or_in_order_one_or_many_are_predicted(servers, kind):
    server = servers[kind]
    rows, columns = server.rows[:7], server.columns
    named = [dict(zip(columns, row)) for row in rows]
    turned = [dict(reversed(row.items())) for row in named]
    mixed = [named[0], rows[1], turned[2], *rows[3:]]
    for body in (rows, named, turned, mixed):
        status, answers = server.ask(json.dumps(body))
        assert status == 200
        for answer, expected in zip(answers, predicted(server, rows), strict=True):
            assert_near(answer, expected)
        status, answer = server.ask(json.dumps(body[0]))
        assert status == 200
        assert_near(answer, predicted(server, rows)[0])


def test_the_tutorials_value_is_predicted(servers):
    status, answer = servers["line.pt2"].ask('{"value": 0.5}')
    assert (status, round(answer["prediction"], 4)) == (200, 0.6509)
    many = servers["line.pt2"].ask('[{"value": 0}, {"x": 0}, [0]]')[1]
    assert [round(one["prediction"], 4) for one in many] == [0.3025] * 3
    assert servers["regression.onnx"].ask('{"value": 0.5}')[0] == 422


@pytest.mark.parametrize("kind", KINDS)
def test_the_openapi_page_has_an_example_that_works(servers, kind):
    server = servers[kind]
    status, page = server.get("/openapi.json")
    post = page["paths"]["/predict"]["post"]
    content = post["requestBody"]["content"]["application/json"]
    assert status == 200 and set(content["example"]) == set(server.columns)
    assert server.ask(json.dumps(content["example"]))[0] == 200
    assert {"200", "413", "415", "422"} <= set(post["responses"])


def test_health_and_what_the_model_is(servers):
    for server in servers.values():
        assert server.get("/health") == (200, {"status": "ok"})
    status, facts = servers["classes.pt"].get("/model")
    assert status == 200 and facts["classes"] == ["tall", "wide"]
    assert facts["columns"] == ["a", "b"] and facts["target"] == "y"
    row = kit.read_checkpoint(servers["classes.pt"].path)["history"][-1]
    assert facts["metrics"] == row and "val_accuracy" in row
    assert servers["regression.onnx"].get("/model")[1]["task"] == "regression"


def nested(depth):
    return "[" * depth + "]" * depth


BAD = {  # body: what is said of it, for columns living area and größe
    "": "Expecting value",
    "[1, 2": "delimiter",
    "no": "Expecting value",
    "5": "number for each of living area, größe, got 5",
    "null": "number for each of living area, größe",
    '"text"': "number for each of living area, größe",
    "NaN": "number for each of living area, größe, got nan",
    "[]": "number for each of living area, größe, got []",
    "{}": "row 0: 'gr\\xf6\\xdfe' is missing",
    "[[]]": "row 0: must be a number for each",
    "[1]": "row 0: must be a number for each",
    "[1, 2, 3]": "row 0: must be a number for each",
    "[[1, 2], [1]]": "row 1: must be a number for each",
    "[[1, 2], 3]": "row 1: must be a number for each",
    "[[1, 2], null]": "row 1: must be a number for each",
    "[NaN, 1]": "row 0, living area: must be a finite number, got nan",
    "[1, Infinity]": "row 0, größe: must be a finite number, got inf",
    "[1, -Infinity]": "row 0, größe: must be a finite number, got -inf",
    "[1, 1e400]": "row 0, größe: must be a finite number, got inf",
    "[1, 1e39]": "row 0, größe: must be a finite number, got 1e+39",
    f"[1, {10**400}]": "row 0, größe: must be a finite number, got 10000",
    f"[1, {'9' * 5000}]": "4300 digits",
    '[1, "2"]': "row 0, größe: must be a finite number, got '2'",
    "[1, null]": "row 0, größe: must be a finite number, got None",
    "[1, true]": "row 0, größe: must be a finite number, got True",
    "[[1, 2], [1, [2]]]": "row 1, größe: must be a finite number, got [2]",
    '{"living area": 1}': "row 0: 'gr\\xf6\\xdfe' is missing",
    '{"living area": 1, "größe": 1, "z": 1}': "row 0: 'z' is no column",
    '{"living area": 1, "größe": 1, "\\ud800": 1}': "'\\ud800' is no column",
    '{"living area": 1, "größe": {}}': "row 0, größe: must be a finite number, got {}",
    f'{{"living area": 1, "größe": 1, "{"z" * 999}": 1}}': "zzz is no column",
    nested(100_000): "nested too deep",
    "[" * 100_000: "nested too deep",
    '{"a":' * 100_000: "nested too deep",
}


@pytest.mark.parametrize("body", BAD, ids=lambda body: ascii(body[:20]))
def test_a_bad_body_is_a_422_that_names_the_field(servers, body):
    status, answer = servers["regression.onnx"].ask(body.encode())
    assert status == 422
    assert BAD[body] in answer["detail"] and len(answer["detail"]) < 200


def test_no_depth_of_nesting_is_too_much_for_the_message_either(servers):
    with_connection = servers["regression.onnx"].connect()
    for depth in range(900, 1100, 3):
        answer = servers["regression.onnx"].ask(
            nested(depth), connection=with_connection
        )
        assert answer[0] == 422
    with_connection.close()


@pytest.mark.parametrize("body", [b"\xff", b"[1, \x00 2]", b'["\\ud800", 1]'])
def test_bytes_that_are_no_text_are_a_422(servers, body):
    assert servers["regression.onnx"].ask(body)[0] == 422


@pytest.mark.parametrize(
    "kind, status",
    [
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/jsonp", 415),
        ("", 415),
    ],
)
def test_the_content_type_must_be_json(servers, kind, status):
    answer = servers["line.pt2"].ask("[1]", {"content-type": kind} if kind else {})
    assert answer[0] == status
    if status == 415:
        assert answer[1]["detail"] == "the content-type must be application/json"


def test_a_body_at_the_limit_is_read_and_one_over_it_is_not(servers):
    server = servers["line.pt2"]
    assert server.ask("[1]".ljust(1_000_000))[0] == 200
    status, answer = server.ask("[1]".ljust(1_000_001))
    said = "the body must be at most 1000000 bytes"
    assert (status, answer["detail"]) == (413, said)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_body_of_unknown_length_is_cut_off_while_it_streams(servers):
    server = servers["classes.pt"]

    def memory():
        text = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", text)[1]) / 1000

    server.ask("[1, 2]")
    before = memory()
    status, _ = server.ask(b"0" * 100_000 for _ in range(1000))  # 100 MB, in chunks
    assert status == 413
    assert memory() - before < 20
    assert server.get("/health")[0] == 200


@pytest.fixture(scope="module")
def answer():
    return runpy.run_path(str(RECIPE))["answer"]


def test_numbers_that_the_model_cannot_hold_are_an_error(answer):
    facts = {"columns": ["x"], "classes": []}
    assert answer(lambda X: X * 1e8, facts, "[1]") == '{"prediction": 100000000.0}'
    for run in (lambda X: X * 1e9, lambda X: X * 1e9 - X * 1e9):  # infinite; NaN
        with pytest.raises(ValueError, match="numbers too large for the model"):
            answer(run, facts, "[[1], [1e30]]")


def test_one_logit_is_that_of_the_second_class(answer):
    facts = {"columns": ["x"], "classes": ["no", "yes"]}
    for x, name in ((3.0, "yes"), (-3.0, "no")):
        got = json.loads(answer(lambda X: X, facts, f"[{x}]"))
        p = 1 / (1 + math.exp(-x))
        assert got["prediction"] == name
        assert got["probabilities"] == pytest.approx({"no": 1 - p, "yes": p}, rel=1e-5)


def test_a_client_that_goes_away_amid_its_body_leaves_no_traceback(servers):
    server = servers["line.pt2"]
    with socket.create_connection(("127.0.0.1", server.port)) as half:
        head = (
            b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        )
        half.sendall(head + b"Content-Length: 9\r\n\r\n[1")
        time.sleep(0.1)
    assert server.get("/health")[0] == 200  # the fixture looks at what it printed


def random_json(rng, depth=0):
    kind = rng.randrange(9 if depth < 3 else 7)
    if kind < 4:
        return rng.choice([0, 1, -1, 0.5, 1e30, 1e31, -1e30, 10**40, math.nan, 7])
    if kind < 7:
        return rng.choice([None, True, False, "", "x", "1", -math.inf])
    items = [random_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return items
    names = ["x", "value", "z", "living area", "größe"]
    return {rng.choice(names): item for item in items}


def plausible_json(rng, columns):
    """Rows that are right, but for an accident here and there."""
    rows = []
    for _ in range(rng.randrange(1, 4)):
        row = [rng.uniform(-9, 9) for _ in columns]
        if rng.random() < 0.2:
            row[rng.randrange(len(row))] = random_json(rng, 2)
        if rng.random() < 0.1:
            row.append(1)
        named = dict(zip(columns, row))
        if rng.random() < 0.1:
            named["z"] = 1
        rows.append(named if rng.random() < 0.5 else row)
    return rows if rng.random() < 0.7 else rows[0]


def fits(row, columns):
    if isinstance(row, dict):
        if set(row) == {"value"} and len(columns) == 1:
            row = {columns[0]: row["value"]}
        return set(row) == set(columns) and all(map(is_number, row.values()))
    return (
        isinstance(row, list) and len(row) == len(columns) and all(map(is_number, row))
    )


def is_number(value):
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -1e30 <= value <= 1e30


def is_good(body, columns):
    many = isinstance(body, list) and len(body) and all(fits(r, columns) for r in body)
    return fits(body, columns) or many


@pytest.mark.parametrize("kind", ["line.pt2", "regression.onnx"])
def test_of_random_bodies_the_right_ones_are_predicted_all_others_a_422(servers, kind):
    server, rng = servers[kind], random.Random(0)
    connection, seen = server.connect(), {200: 0, 422: 0}
    for i in range(600):
        columns = server.columns
        body = plausible_json(rng, columns) if i % 2 else random_json(rng)
        status, _ = server.ask(json.dumps(body), connection=connection)
        assert status == (200 if is_good(body, columns) else 422), body
        seen[status] += 1
    connection.close()
    assert min(seen.values()) > 100


def test_thirty_two_connections_get_each_its_own_answers(servers):
    server = servers["regression.onnx"]
    expected = [row["prediction"] for row in predicted(server, server.rows)]

    def client(number):
        rng, connection = random.Random(number), server.connect()
        for _ in range(30):
            chosen = rng.sample(range(len(expected)), 3)
            body = json.dumps([server.rows[i] for i in chosen])
            if rng.random() < 0.3:
                body = rng.choice(["[NaN, 1]", "[]", "{", '{"a": 1}'])
                assert server.ask(body, connection=connection)[0] == 422
                continue
            status, answers = server.ask(body, connection=connection)
            assert status == 200
            got = [answer["prediction"] for answer in answers]
            assert got == pytest.approx([expected[i] for i in chosen], rel=1e-4)
        connection.close()
        return 1

    with ThreadPoolExecutor(32) as pool:
        assert sum(pool.map(client, range(32))) == 32


def test_it_answers_while_a_large_batch_is_computed(servers):
    server = servers["line.pt2"]
    large = json.dumps([[0]] * 180_000).replace(" ", "").encode()
    assert 700_000 < len(large) < 1_000_000
    busy, quick = server.connect(), server.connect()
    assert server.ask("[0]", connection=quick)[0] == 200
    busy.request("POST", "/predict", large, JSON)
    answered = 0
    while not select.select([busy.sock], [], [], 0)[0]:
        assert server.ask("[0]", connection=quick)[0] == 200
        answered += 1
    assert len(json.loads(busy.getresponse().read())) == 180_000
    assert answered > 3
    busy.close(), quick.close()


@pytest.fixture
def another(servers):
    """A server of a test's own, to be stopped."""
    server = Server(servers["line.pt2"].path).wait()
    yield server
    server.process.kill()
    server.process.communicate()


def test_sigterm_finishes_what_it_has_and_takes_no_more(another):
    with socket.create_connection(("127.0.0.1", another.port)) as half:
        head = (
            b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        )
        half.sendall(head + b"Content-Length: 9\r\n\r\n[[0],")
        assert another.get("/health")[0] == 200
        another.process.terminate()
        deadline = time.monotonic() + 30
        with pytest.raises(ConnectionRefusedError):
            while time.monotonic() < deadline:
                socket.create_connection(("127.0.0.1", another.port)).close()
        assert another.process.poll() is None
        half.sendall(b"[1]]")
        answer = b"".join(iter(lambda: half.recv(10_000), b""))  # till it is closed
    assert answer.startswith(b"HTTP/1.1 200") and b"0.9993" in answer
    _, errors = another.process.communicate(timeout=60)
    assert another.process.returncode == -signal.SIGTERM
    assert "Finished server process" in errors and "Traceback" not in errors


def test_a_file_that_names_no_columns_is_refused(child):
    path = kit.export(torch.nn.Linear(2, 1), "a.pt2", example=torch.ones(3, 2))
    _, errors = child(RECIPE, path).communicate(timeout=60)
    line = "a.pt2 has no columns: make it with python -m kit export"
    assert errors.splitlines()[-1] == f"ValueError: {line}"


def test_without_the_packages_the_error_is_the_command_that_installs_them(child):
    code = f"""
import runpy, sys
sys.modules["fastapi"] = None  # as if it were not installed
runpy.run_path({str(RECIPE)!r}, run_name="__main__")
"""
    _, errors = child("-c", code).communicate(timeout=60)
    assert errors == "serving needs two packages: pip install fastapi uvicorn\n"
