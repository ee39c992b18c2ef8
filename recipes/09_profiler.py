"""09 Profiler: where the time of a step goes (tutorial 9.1).

    python recipes/09_profiler.py

torch names the data, the backward and the optimizer by itself; a wrap names the forward
and the step. Table and shares go to stderr, as they differ each time. Watch: the first
steps set things up, so the profiler looks at later ones.

prints:

    tensors: the most time goes to backward
    slow rows: the most time goes to data
    trace.json: data, forward, backward, optimizer, step; open it on ui.perfetto.dev
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install
os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # or the profiler tells of its start

import torch
from torch import nn
from torch.profiler import profile, record_function

import kit

PARTS = {  # and how their names in a profile begin
    "data": "enumerate(DataLoader)",  # tensors in memory need no such iterator
    "forward": "forward",
    "backward": "autograd::engine::evaluate_function",
    "optimizer": "Optimizer.",
    "step": "step",
}


class SlowRows(torch.utils.data.TensorDataset):
    def __getitem__(self, row):
        time.sleep(0.001)  # as reading a small file takes
        return super().__getitem__(row)


def profiled(data):
    """The profile of the second and the third epoch."""
    layers = nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU()
    model = nn.Sequential(*layers, nn.Linear(1024, 1))
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    model.forward = record_function("forward")(model.forward)
    step = record_function("step")(kit.train_step)
    options = {"loss_fn": nn.MSELoss(), "step": step}
    loader = kit.make_loader(data, batch_size=128)
    state = kit.fit(state, loader, epochs=1, **options)
    with profile() as profiler:
        kit.fit(state, loader, epochs=3, **options)
    return profiler


X, most = torch.randn(512, 64), []
rows = X, X[:, :1]
for what, data in {"tensors": rows, "slow rows": SlowRows(*rows)}.items():
    profiler, times = profiled(data), {}
    events = profiler.key_averages()
    for part, name in PARTS.items():
        times[part] = sum(e.cpu_time_total for e in events if e.key.startswith(name))
    whole = times["data"] + times.pop("step")
    print(events.table(sort_by="cpu_time_total", row_limit=10), file=sys.stderr)
    print(*(f"{part} {t / whole:.0%}" for part, t in times.items()), file=sys.stderr)
    most.append(max(times, key=times.get))
    print(f"{what}: the most time goes to", most[-1])

profiler.export_chrome_trace("trace.json")
events = json.loads(Path("trace.json").read_text())["traceEvents"]
names = [event["name"] for event in events if event["ph"] == "X" and event["dur"] >= 0]
found = [part for part, name in PARTS.items() if any(n.startswith(name) for n in names)]
print("trace.json:", ", ".join(found) + "; open it on ui.perfetto.dev")

assert found == list(PARTS) and most == ["backward", "data"]
