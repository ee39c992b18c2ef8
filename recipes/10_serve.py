"""10 Serve: predictions over HTTP (tutorial 10.3).

    python recipes/10_serve.py
    python recipes/10_serve.py runs/001/best.pt    # or an exported .onnx or .pt2

The second serves a table's model on 127.0.0.1:8000, or HOST and PORT of the environment;
/docs has examples that work. The first asks such a process, also for what ends in a 500,
or in all of the memory, where nothing but a schema is checked, and stops it.

prints:

    {"value": 0.5}    200 {"prediction": 0.6509}
    [[0], {"x": 1}]   200 [{"prediction": 0.3025}, {"prediction": 0.9993}]
    [[0.5], [NaN]]    422 {"detail":"row 1, x: must be a finite number, got nan"}
    {"x": 1, "z": 2}  422 {"detail":"row 0: 'z' is no column"}
    [1, 2]            422 {"detail":"row 0: must be a number for each of x, got [1, 2]"}
    [[[[[[[[[[[[[[[[  422 {"detail":"the body is nested too deep"}
    0000000000000000  413 {"detail":"the body must be at most 1000000 bytes"}
    SIGTERM           finished
"""

import asyncio
import http.client
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch.nn import functional as F

import kit

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request, Response
    from starlette.requests import ClientDisconnect
except ImportError:
    sys.exit("serving needs two packages: pip install fastapi uvicorn")

LIMIT = 1_000_000  # bytes of a body
LARGEST = 1e30  # of a number: float32 holds it, and the model's sums of it
GOOD = '{"value": 0.5}', '[[0], {"x": 1}]'
BAD = "[[0.5], [NaN]]", '{"x": 1, "z": 2}', "[1, 2]", "[" * 10_000
ASKED = dict.fromkeys(GOOD, 200) | dict.fromkeys(BAD, 422) | {"0" * 2_000_000: 413}


def load(path):
    """The function of a checkpoint or an exported file, and the facts in it."""
    texts = dict.fromkeys(("task", "target", "columns", "classes", "metrics"), "[]")
    if path.suffix == ".pt":
        with TemporaryDirectory() as folder:
            exported = Path(folder, "model.pt2")
            kit.main(["export", str(path), str(exported)], standalone_mode=False)
            return load(exported)
    if path.suffix == ".pt2":
        run = torch.export.load(path, extra_files=texts).module()
    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options)
        texts |= session.get_modelmeta().custom_metadata_map
        run = lambda X: torch.from_numpy(session.run(None, {"input": X.numpy()})[0])
    facts = {key: json.loads(text) for key, text in texts.items()}
    if not facts["columns"]:
        raise ValueError(f"{path} has no columns: make it with python -m kit export")
    return run, facts


def read_row(where, row, columns):
    """A row's numbers, given by name or in order; ValueError says what is wrong."""
    if len(columns) == 1 and isinstance(row, dict) and list(row) == ["value"]:
        row = list(row.values())
    if isinstance(row, dict):
        for name in sorted({*columns} ^ row.keys()):
            what = "is missing" if name in columns else "is no column"
            raise ValueError(f"{where}: {name!a:.50} {what}")
        row = [row[name] for name in columns]
    if not isinstance(row, list) or len(row) != len(columns):
        must = f"must be a number for each of {', '.join(columns)}"
        raise ValueError(f"{where}: {must}, got {row!a:.50}")
    for name, value in zip(columns, row):
        if type(value) not in (int, float) or not abs(value) <= LARGEST:
            must = "must be a finite number"
            raise ValueError(f"{where}, {name}: {must}, got {value!a:.50}")
    return row


def answer(run, facts, body):
    """A body's predictions as JSON; ValueError says what is wrong with it."""
    try:
        data = json.loads(body)
        many = isinstance(data, list) and any(isinstance(i, list | dict) for i in data)
        rows = enumerate(data if many else [data])
        rows = [read_row(f"row {i}", row, facts["columns"]) for i, row in rows]
    except RecursionError:
        raise ValueError("the body is nested too deep") from None
    with torch.inference_mode():
        outputs = run(torch.tensor(rows, dtype=torch.float32))
    if not outputs.isfinite().all():
        raise ValueError("the body has numbers too large for the model")
    found = [{"prediction": row[0]} for row in outputs.tolist()]
    if classes := facts["classes"]:
        logits = outputs if outputs.shape[1] > 1 else F.pad(outputs, (1, 0))
        shares = [dict(zip(classes, row)) for row in logits.softmax(1).tolist()]
        found = [{"prediction": max(p, key=p.get), "probabilities": p} for p in shares]
    return json.dumps(found if many else found[0])


def describe(columns):
    """A body on the OpenAPI page: its schema, and examples."""
    number = {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}
    size = {"minItems": len(columns), "maxItems": len(columns)}
    row = [{"type": "array", "items": number} | size]
    for names in [columns] if columns[1:] else [columns, ["value"]]:
        named = {"type": "object", "properties": dict.fromkeys(names, number)}
        row.append(named | {"required": names, "additionalProperties": False})
    many = {"type": "array", "items": {"anyOf": row}, "minItems": 1}
    content = {"schema": {"anyOf": [*row, many]}}
    content["example"] = dict.fromkeys(columns, 1.0)
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def create_app(path):
    """A FastAPI app of a checkpoint of `kit fit`, or of what `kit export` made of it."""
    run, facts = load(Path(path))
    # as many computations at once as there are cores, each on one of them
    one_core = partial(torch.set_num_threads, 1)
    pool = ThreadPoolExecutor(os.cpu_count(), initializer=one_core)
    app = FastAPI(title="kit", version=kit.__version__)
    refused = {code: {"description": "refused"} for code in (400, 413, 415, 422)}

    @app.post("/predict", responses=refused, openapi_extra=describe(facts["columns"]))
    async def predict(request: Request):
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if kind.lower() != "application/json":
            raise HTTPException(415, "the content-type must be application/json")
        body, loop = bytearray(), asyncio.get_running_loop()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > LIMIT:  # the server throws the rest away
                    must = f"the body must be at most {LIMIT} bytes"
                    raise HTTPException(413, must)
            text = await loop.run_in_executor(pool, answer, run, facts, body)
        except ClientDisconnect:
            raise HTTPException(400, "the body ended early") from None
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        return Response(text, media_type="application/json")

    app.add_api_route("/health", lambda: {"status": "ok"}, name="health")
    app.add_api_route("/model", lambda: facts, name="model")
    return app


def demo(folder):
    """Train the line, serve it from a process of its own, ask that, and stop it."""
    fit = ["fit", "--epochs", "200", "--quiet", "--no-plot", "--out", folder]
    kit.main(fit, standalone_mode=False)
    command = [sys.executable, __file__, f"{folder}/last.pt"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    env = os.environ | {"PORT": "0"}  # any that is free
    with subprocess.Popen(command, env=env, **pipes) as server:
        line = next(line for line in server.stderr if "running on" in line)
        connection = http.client.HTTPConnection(re.search(r"//(\S+)", line)[1])
        for body, code in ASKED.items():
            kind = {"content-type": "application/json"}
            connection.request("POST", "/predict", body, kind)
            response = connection.getresponse()
            text = re.sub(r"(\.\d{4})\d+", r"\1", response.read().decode())
            print(f"{body:16.16}  {response.status} {text}")
            assert response.status == code
        connection.close()
        server.terminate()
        assert "Finished server process" in server.stderr.read()
        print("SIGTERM           finished")


if __name__ == "__main__" and sys.argv[1:]:
    host, port = os.environ.get("HOST", "127.0.0.1"), os.environ.get("PORT", "8000")
    limits = {"access_log": False, "timeout_graceful_shutdown": 30}
    uvicorn.run(create_app(sys.argv[1]), host=host, port=int(port), **limits)
elif __name__ == "__main__":
    with TemporaryDirectory() as folder:
        demo(folder)
