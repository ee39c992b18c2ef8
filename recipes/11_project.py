"""A whole project, driven by a config (section 11).

    python recipes/11_project.py

The tutorial's project has eight files: data, model, training, evaluation, saving, a
config and so on. Here are a config, 11_config.yaml, and this script. It makes the data,
trains, keeps the best epoch on the validation rows, scores it on the test rows, and
writes models/final_model.pth. The last part does the same without a script.

Run twice, it continues where it was, and that is at the end.

prints (figures vary):

    rows: 700 train, 150 val, 150 test
    trained: 100 epochs, 2200 steps
    best epoch: 23, val_loss 0.000342
    weight 0.695 (true: 0.7)
    bias   0.303 (true: 0.3)

    test scores; the noise has a standard deviation of 0.02
        mae   0.01658
        mse   0.00042
        rmse  0.02047

    models/final_model.pth predicts 0.650 for x = 0.5 (true: 0.65)

    $ python -m kit fit --config 11_config.yaml --out runs/project --overwrite --quiet
    $ python -m kit evaluate runs/project
    the weights of epoch 51
    part      rows      loss      mae        mse     rmse      r2
    ------  ------  --------  -------  ---------  -------  ------
    train      700  0.01012   0.01615  0.0004125  0.02031  0.9899
    val        150  0.008388  0.01481  0.0003418  0.01849  0.9918
    test       150  0.01031   0.0166   0.0004203  0.0205   0.9896
"""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn

import kit

try:
    import pandas  # noqa: F401
    import yaml
except ImportError:
    sys.exit("this recipe needs: pip install pandas pyyaml")


# --- The config ---------------------------------------------------------------------

config_file = Path(__file__).with_name("11_config.yaml")
config = yaml.safe_load(config_file.read_text("utf-8"))


# --- The data: 1000 points near a line, in a file like anybody's ----------------------

X, y = kit.make_data(1000, weight=0.7, bias=0.3, noise=0.02, seed=config["seed"])
lines = ["x,y"]
for x_value, y_value in zip(X[:, 0].tolist(), y[:, 0].tolist()):
    lines.append(f"{x_value},{y_value}")
Path(config["data"]).write_text("\n".join(lines) + "\n")

table = kit.read_table(config["data"], target=config["target"])
train, val, test = kit.split(
    (table.inputs, table.targets), ratios=config["ratios"], seed=config["seed"]
)
print(f"rows: {len(train[0])} train, {len(val[0])} val, {len(test[0])} test")


# --- The model, its optimizer and its loss --------------------------------------------

torch.manual_seed(config["seed"])
model = nn.Linear(1, 1)
optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"])
state = kit.make_state(model, optimizer)
loss_fn = nn.MSELoss()


# --- Training ---------------------------------------------------------------------------

# If the folder holds a checkpoint, continue it: these two lines are a resume.
last = Path("models/checkpoints/last.pt")
if last.exists():
    state = kit.load_checkpoint(state, last)

state = kit.fit(
    state,
    kit.make_loader(
        train, batch_size=config["batch_size"], shuffle=True, seed=config["seed"]
    ),
    kit.make_loader(val),
    loss_fn=loss_fn,
    epochs=config["epochs"],
    seed=config["seed"],
    checkpoint=last.parent,
)
print(f"trained: {len(state.history)} epochs, {state.step} steps")


# --- The best epoch, by rows that it was not trained on ---------------------------------

state = kit.load_checkpoint(state, "models/checkpoints/best.pt")
best = state.history[-1]
print(f"best epoch: {best['epoch']}, val_loss {best['val_loss']:.6f}")
print(f"weight {model.weight.item():.3f} (true: 0.7)")
print(f"bias   {model.bias.item():.3f} (true: 0.3)")

# The test rows have had no say in anything so far, so their score can be trusted.
scores = kit.evaluate(
    model, kit.make_loader(test), loss_fn=loss_fn, metrics=kit.metrics
)
print()
print("test scores; the noise has a standard deviation of 0.02")
for name in ("mae", "mse", "rmse"):
    print(f"    {name:5} {scores[name]:.5f}")


# --- The model file -----------------------------------------------------------------------

torch.save(model.state_dict(), "models/final_model.pth")

loaded = nn.Linear(1, 1)
loaded.load_state_dict(torch.load("models/final_model.pth", weights_only=True))
prediction = kit.predict(loaded, torch.tensor([[0.5]])).item()
print()
print(f"models/final_model.pth predicts {prediction:.3f} for x = 0.5 (true: 0.65)")


# --- The same without a script --------------------------------------------------------------


def run_kit(*arguments):
    command = [sys.executable, kit.__file__, *arguments]
    subprocess.run(command, check=True)


print()
print(
    "$ python -m kit fit --config 11_config.yaml --out runs/project --overwrite --quiet"
)
print("$ python -m kit evaluate runs/project", flush=True)
options = ["--out", "runs/project", "--overwrite", "--quiet"]
run_kit("fit", "--config", str(config_file), *options)
run_kit("evaluate", "runs/project")
