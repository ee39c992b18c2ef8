"""A service: predictions over HTTP (section 10.3).

    python recipes/10_serve.py
    python recipes/10_serve.py runs/001/best.pt

The second form serves a run's checkpoint, or an .onnx file that `kit export` made of
it, at http://127.0.0.1:8000; its page /docs has an example that works. A table's rows
are JSON objects: numbers as numbers, text as text, null for a gap.

    curl localhost:8000/predict -H 'content-type: application/json' -d @rows.json

where rows.json is, for two rows of a table with the columns area and heating,

    {"rows": [{"area": 50, "heating": "gas"}, {"area": null, "heating": "oil"}]}

A service is asked by strangers, so every body must get an answer, and never the status
500, which says that the service itself has failed. The first form shows what becomes of
odd bodies in the tutorial's service and in this one, and then serves a small table.

A checkpoint holds numbers and text, and what it says is never imported: a model of your
own is named by you, with --model MODULE:FUNCTION. A .pt2 file is different: torch may
run code that is in it, so it is opened only with --trust.

prints:

    body              what it is                tutorial  this one
    {"value": 0.5}    a number                       200       200
    {"value": "0.5"}  text                           200       422
    {"value": NaN}    not a number                   500       422
    {"value": 1e39}   too large for float32          500       422
    {"value": [0.5]}  a list                         422       422
    no JSON           not JSON                       422       422
    {"value": 0.5}    5 million spaces               200       413

    what this one answers
        prediction 0.6509
        x must be a number or null, got '0.5'
        x must be a finite number, got nan
        x must be a finite number, got 1e+39
        x must be a number or null, got [0.5]
        the body is not JSON: Expecting value: line 1 column 1 (char 0)
        the body must be at most 1000000 bytes

    a table: area, heating
    heating: coal, gas, oil
        {"area": 50, "heating": "gas"}                      200  about 700
        {"area": null, "heating": "oil"}                    200  about 700
        {"area": 50, "heating": "wood"}                     200  about 600, unknown: {'heating': 1}
        {"area": "large", "heating": "gas"}                 422  row 0: area must be a number or null, got 'large'
        {"area": 50}                                        422  row 0: 'heating' is missing
        {"area": 50, "heating": "gas", "floor": 3}          422  row 0: 'floor' is not a column
"""

import argparse
import asyncio
import http.client
import json
import math
import random
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch

import kit

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.responses import JSONResponse
    from pydantic import BaseModel
    from starlette.requests import ClientDisconnect
except ImportError:
    sys.exit("this recipe needs: pip install fastapi uvicorn")

BODY_LIMIT = 1_000_000  # bytes; what is longer is refused before it is read as JSON
NUMBER_LIMIT = 1e30  # float32 ends at 3e38, and a model adds up many numbers
UNKNOWN = -1  # the code of a category that was not in the training data


# --- 1 The model --------------------------------------------------------------------


def open_model(path, *, model=None, trust=False):
    """A function from inputs (N, columns) to outputs, and a dict that describes them.

    path is a checkpoint of `kit fit`, or an .onnx or .pt2 file of `kit export`. The
    dict has "columns" (names), "categories" (of each text column, the known texts) and
    "classes" (names; none for a regression).
    """
    path = Path(path)

    if path.suffix == ".pt":
        # The checkpoint becomes an exported file, so that all three go the same way.
        with TemporaryDirectory() as folder:
            exported = Path(folder) / "model.pt2"
            command = ["export", str(path), str(exported)]
            if model is not None:
                command += ["--model", model]
            with redirect_stdout(StringIO()):
                kit.main(command, standalone_mode=False)
            run, description = open_pt2(exported)
    elif path.suffix == ".onnx":
        run, description = open_onnx(path)
    elif path.suffix == ".pt2":
        if not trust:
            raise ValueError(
                f"torch may run code that is in {path}: add --trust if it is your own"
            )
        run, description = open_pt2(path)
    else:
        raise ValueError(f"the model must be a .pt, .onnx or .pt2 file, got {path}")

    check_shapes(run, description, path)
    return run, description


def open_pt2(path):
    texts = {"columns": "", "categories": "", "classes": ""}
    program = torch.export.load(path, extra_files=texts)  # fills the texts
    return program.module(), read_description(texts, path)


def open_onnx(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # requests run side by side instead
    session = onnxruntime.InferenceSession(path, options)

    def run(inputs):
        outputs = session.run(["output"], {"input": inputs.numpy()})
        return torch.from_numpy(outputs[0])

    return run, read_description(session.get_modelmeta().custom_metadata_map, path)


def read_description(texts, path):
    """The metadata that `kit export` puts into a file, each value as JSON."""
    if not texts.get("columns"):
        raise ValueError(f"{path} does not name its columns: make it with `kit export`")

    columns = json.loads(texts["columns"])
    categories = json.loads(texts.get("categories") or "{}")
    classes = json.loads(texts.get("classes") or "[]")

    # Somebody else may have made the file: better to refuse it than to fail later.
    if not isinstance(categories, dict):
        raise TypeError(f"{path}: categories must be an object")
    for names in (columns, classes, list(categories), *categories.values()):
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise TypeError(f"{path}: columns, categories and classes must be texts")
    return {"columns": columns, "categories": categories, "classes": classes}


def check_shapes(run, description, path):
    """Raise ValueError unless the model takes the columns and gives what is named."""
    outputs = run(torch.zeros(2, len(description["columns"])))
    expected = (2, max(1, len(description["classes"])))
    if tuple(outputs.shape) != expected:
        raise ValueError(
            f"{path} must give {expected} for two rows, got {tuple(outputs.shape)}"
        )


# --- 2 From a body to numbers, or to a message about what is wrong with it ------------


class Refused(Exception):
    """What is wrong with a body: the message goes to the client, with status 422."""


def read_value(name, value, categories):
    """The number that stands for a value: itself, a category's code, or nan for a gap."""
    if value is None:
        return math.nan

    if name in categories:
        if not isinstance(value, str):
            raise Refused(f"{name} must be text or null, got {value!a:.40}")
        known = categories[name]
        return known.index(value) if value in known else UNKNOWN

    if not isinstance(value, int | float):  # true and false are 1 and 0
        raise Refused(f"{name} must be a number or null, got {value!a:.40}")
    if not abs(value) <= NUMBER_LIMIT:  # False for nan as well
        raise Refused(f"{name} must be a finite number, got {value!a:.40}")
    return float(value)


def read_row(row, description):
    """The numbers of a row, in the order of the columns."""
    columns = description["columns"]
    if not isinstance(row, dict):
        raise Refused(f"must be an object with the columns' names, got {row!a:.40}")

    for name in row:
        if name not in columns:
            raise Refused(f"{name!a:.40} is not a column")

    numbers = []
    for name in columns:
        if name not in row:
            raise Refused(f"{name!a:.40} is missing")
        numbers.append(read_value(name, row[name], description["categories"]))
    return numbers


def read_body(body, description):
    """The rows of a body as lists of numbers, and whether it is a single value."""
    columns = description["columns"]
    try:
        try:
            content = json.loads(body)
        except ValueError as error:
            raise Refused(f"the body is not JSON: {error}") from None

        # {"value": x} is the tutorial's form, for models of one column.
        if isinstance(content, dict) and list(content) == ["value"]:
            if len(columns) != 1:
                raise Refused(f"'value' is for one column, the model has {columns}")
            return [read_row({columns[0]: content["value"]}, description)], True

        if not isinstance(content, dict) or list(content) != ["rows"]:
            raise Refused(f'must be {{"rows": [...]}}, got {content!a:.40}')
        rows = content["rows"]
        if not isinstance(rows, list) or not rows:
            raise Refused(f"rows must be a list of rows, got {rows!a:.40}")

        numbers = []
        for i, row in enumerate(rows):
            try:
                numbers.append(read_row(row, description))
            except Refused as error:
                raise Refused(f"row {i}: {error}") from None
        return numbers, False
    except RecursionError:
        raise Refused("the body is nested too deep") from None


# --- 3 From numbers to predictions ----------------------------------------------------


def answer(run, description, body):
    """The reply to a body, and how many unknown categories each column had."""
    rows, single = read_body(body, description)
    inputs = torch.tensor(rows, dtype=torch.float32)

    with torch.inference_mode():
        outputs = run(inputs)
    if not outputs.isfinite().all():
        raise Refused("the body has numbers that are too large for the model")

    unknown = {}
    for name in description["categories"]:
        count = int((inputs[:, description["columns"].index(name)] == UNKNOWN).sum())
        if count:
            unknown[name] = count

    predictions = describe_outputs(outputs, description["classes"])
    if single:
        return predictions[0], unknown
    return {"predictions": predictions, "unknown": unknown}, unknown


def describe_outputs(outputs, classes):
    """One dict a row: the number, or the class with the probability of each."""
    if not classes:
        return [{"prediction": value} for value in outputs[:, 0].tolist()]

    predictions = []
    for probabilities in outputs.softmax(dim=1).tolist():
        by_name = dict(zip(classes, probabilities))
        likeliest = max(by_name, key=by_name.get)
        predictions.append({"prediction": likeliest, "probabilities": by_name})
    return predictions


# --- 4 The service ----------------------------------------------------------------------


def create_app(run, description):
    """A FastAPI app with /predict, /model and /health."""
    app = FastAPI(title="kit")
    unknown = Counter()  # categories that the training data did not have, by column

    async def read(request):
        """The body, as far as the limit."""
        content_type = request.headers.get("content-type", "").partition(";")[0]
        if content_type.strip().lower() != "application/json":
            raise HTTPException(415, "the content-type must be application/json")

        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_LIMIT:
                detail = f"the body must be at most {BODY_LIMIT} bytes"
                raise HTTPException(413, detail)
        return body

    # FastAPI would check a pydantic schema by itself, but it parses a body of any size,
    # and its message about a NaN cannot be written as JSON, which is a 500. So the body
    # comes here as it is.
    @app.post("/predict", openapi_extra=describe_request(description))
    async def predict(request: Request):
        try:
            body = await read(request)

            # In a thread, so that small requests do not wait for a large one.
            reply, more = await asyncio.to_thread(answer, run, description, body)
        except ClientDisconnect:
            raise HTTPException(400, "the body ended early") from None
        except Refused as error:
            raise HTTPException(422, str(error)) from None

        unknown.update(more)
        return JSONResponse(reply)

    @app.get("/model")
    async def model():
        return description | {"unknown": unknown}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app


def describe_request(description):
    """An example of a body for the page /docs."""
    row = {}
    for name in description["columns"]:
        known = description["categories"].get(name)
        row[name] = known[0] if known else 1.0

    content = {"schema": {"type": "object"}, "example": {"rows": [row]}}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


# --- 5 The demonstration ------------------------------------------------------------------


def tutorial_app(run):
    """The tutorial's service: FastAPI checks the types, and nothing else is checked."""
    app = FastAPI()

    class Input(BaseModel):
        value: float

    @app.post("/predict")
    async def predict(data: Input):
        outputs = run(torch.tensor([[data.value]]))
        return {"prediction": outputs.item()}

    return app


@contextmanager
def serving(app):
    """Serve an app in a thread of this process; gives the port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)

    try:
        yield server.servers[0].sockets[0].getsockname()[1]  # port=0 took a free one
    finally:
        server.should_exit = True
        thread.join()


def ask(port, body):
    """The status and the text of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"content-type": "application/json"}
    connection.request("POST", "/predict", body, headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def show_the_line(folder):
    """The tutorial's service and this one, asked the same things."""
    fit(["--epochs", "200", "--out", f"{folder}/line"])
    run, description = open_model(f"{folder}/line/last.pt")

    bodies = {
        '{"value": 0.5}': "a number",
        '{"value": "0.5"}': "text",
        '{"value": NaN}': "not a number",
        '{"value": 1e39}': "too large for float32",
        '{"value": [0.5]}': "a list",
        "no JSON": "not JSON",
        '{"value": 0.5}' + " " * 5_000_000: "5 million spaces",
    }
    print(f"{'body':18}{'what it is':24}{'tutorial':>10}{'this one':>10}")
    with (
        serving(tutorial_app(run)) as theirs,
        serving(create_app(run, description)) as ours,
    ):
        replies = []
        for body, what in bodies.items():
            their_status, _ = ask(theirs, body)
            our_status, reply = ask(ours, body)
            replies.append(reply)
            print(f"{body:18.16}{what:24}{their_status:10}{our_status:10}")

    print()
    print("what this one answers")
    for reply in replies:
        content = json.loads(reply)
        if "prediction" in content:
            print(f"    prediction {content['prediction']:.4f}")
        else:
            print(f"    {content['detail']}")


def show_a_table(folder):
    """A model of a table with text and gaps."""
    write_flats(f"{folder}/flats.csv")
    fit(["--data", f"{folder}/flats.csv", "--target", "rent", "--out", f"{folder}/run"])
    run, description = open_model(f"{folder}/run/best.pt")

    print()
    print("a table:", ", ".join(description["columns"]))
    print("heating:", ", ".join(description["categories"]["heating"]))
    rows = [
        {"area": 50, "heating": "gas"},
        {"area": None, "heating": "oil"},  # a gap
        {"area": 50, "heating": "wood"},  # a category that was not in the table
        {"area": "large", "heating": "gas"},
        {"area": 50},
        {"area": 50, "heating": "gas", "floor": 3},
    ]
    with serving(create_app(run, description)) as port:
        for row in rows:
            body = json.dumps({"rows": [row]})
            status, reply = ask(port, body)

            content = json.loads(reply)
            if status == 200:
                rent = content["predictions"][0]["prediction"]
                said = f"about {round(rent, -2):.0f}"
                if content["unknown"]:
                    said += f", unknown: {content['unknown']}"
            else:
                said = content["detail"]
            print(f"    {json.dumps(row):52}{status}  {said}")


def write_flats(path):
    """400 flats: the rent is 10 for each square metre, and gas costs 200 more."""
    draw = random.Random(0)
    lines = ["area,heating,rent"]
    for _ in range(400):
        area = draw.randint(20, 120)
        heating = draw.choice(["gas", "oil", "coal"])
        rent = 10 * area + (200 if heating == "gas" else 0)
        lines.append(f"{area},{heating},{rent}")
    Path(path).write_text("\n".join(lines))


def fit(options):
    kit.main(["fit", "--quiet", *options], standalone_mode=False)


def main():
    parser = argparse.ArgumentParser(description="Predictions over HTTP.")
    parser.add_argument("file", nargs="?", help="a checkpoint, .onnx or .pt2 file")
    parser.add_argument("--model", help="MODULE:FUNCTION of a model of your own")
    parser.add_argument("--trust", action="store_true", help="open a .pt2 file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()

    torch.set_num_threads(1)  # a request takes one core, several run side by side

    if arguments.file is None:
        with TemporaryDirectory() as folder:
            show_the_line(folder)
            show_a_table(folder)
        return

    try:
        run, description = open_model(
            arguments.file, model=arguments.model, trust=arguments.trust
        )
    except Exception as error:  # noqa: BLE001 (onnxruntime's have no common class)
        sys.exit("Error: " + " ".join(str(error).split()))

    # On SIGTERM uvicorn takes no new requests, and ends those that it has.
    uvicorn.run(
        create_app(run, description),
        host=arguments.host,
        port=arguments.port,
        access_log=False,
        timeout_graceful_shutdown=30,
    )


if __name__ == "__main__":
    main()
