"""11 A project (tutorial 11).

    python recipes/11_project.py

The tutorial needs eight files; here a config, 11_config.yaml, and this script do. And
without the script, `python -m kit fit --config recipes/11_config.yaml` is the same run,
to the last bit. Watch: test must neither train the model nor choose the epoch.

prints:

    700 train, 150 val, 150 test
    100 epochs: val_loss 0.0003, weight 0.70, bias 0.30
    test: mae 0.017, mse 0.0004, rmse 0.020
    models/final_model.pth predicts 0.65 for 0.5
    the same run without a script: equal to the last bit
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn

import kit

try:
    import yaml
except ImportError:
    sys.exit("a .yaml config needs PyYAML: pip install pyyaml")

path = Path(__file__).with_name("11_config.yaml")
config = yaml.safe_load(path.read_text("utf-8"))
seed = config["seed"]
data = kit.make_data(config["samples"], noise=config["noise"], seed=seed)
train, val, test = kit.split(data, ratios=config["ratios"], seed=seed)
print(f"{len(train[0])} train, {len(val[0])} val, {len(test[0])} test")

torch.manual_seed(seed)
model = nn.Linear(1, 1)
optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"], fused=True)
state = kit.make_state(model, optimizer)
loader = kit.make_loader(train, batch_size=32, shuffle=config["shuffle"], seed=seed)
options = {"loss_fn": nn.MSELoss(), "epochs": config["epochs"], "seed": seed}
state = kit.fit(state, loader, kit.make_loader(val), **options)
val_loss, (weight, bias) = state.history[-1]["val_loss"], model.parameters()
print(f"{len(state.history)} epochs: val_loss {val_loss:.4f}", end=", ")
print(f"weight {weight.item():.2f}, bias {bias.item():.2f}")

row = kit.evaluate(
    model, kit.make_loader(test), loss_fn=nn.MSELoss(), metrics=kit.metrics
)
print(f"test: mae {row['mae']:.3f}, mse {row['mse']:.4f}, rmse {row['rmse']:.3f}")

with TemporaryDirectory() as folder:
    final = kit.save_checkpoint(state, Path(folder, "models", "final_model.pth"))
    again = nn.Linear(1, 1)
    again.load_state_dict(kit.read_checkpoint(final)["model"])
    value = kit.predict(again, torch.tensor([[0.5]])).item()
    print(f"models/final_model.pth predicts {value:.2f} for 0.5")
    command = [sys.executable, kit.__file__, "fit", "--config", path, "--quiet"]
    subprocess.run([*command, "--no-plot", "--out", folder], check=True)
    run = kit.read_checkpoint(Path(folder, "last.pt"))["model"]
same = all(torch.equal(run[key], p) for key, p in model.named_parameters())
print("the same run without a script:", "equal to the last bit" if same else "differs")

assert same and row["rmse"] < 0.025
assert abs(weight - 0.7) < 0.02 and abs(bias - 0.3) < 0.02
