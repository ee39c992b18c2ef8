"""The profiler: where the time of a step goes (section 9.1).

    python recipes/09_profiler.py

Before making a training faster, look where its time goes. torch.profiler notes every
operation, and record_function gives a name to a part of your own. The script trains
the same network on two data sets: one lies in memory as tensors, the other has to read
each row, which takes a millisecond. The table of operations, sorted by CPU time as in
the tutorial, goes to stderr, because its rows differ from machine to machine.

prints (figures vary):

    milliseconds an epoch of 4 steps, 128 rows each
                   read rows     forward    backward   optimizer
    tensors              0.0        23.8        46.1         1.3
    slow rows          628.5        27.5        52.3         5.5

    trace.json holds 8 steps: open it at https://ui.perfetto.dev
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler logs its start

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function, schedule
from torch.utils.data import TensorDataset

import kit

# The parts of a step, and how their names begin in a profile. The first two are names
# that this script gives with record_function; the others are torch's own.
PARTS = {
    "read rows": "read rows",
    "forward": "forward",
    "backward": "autograd::engine::evaluate_function",
    "optimizer": "Optimizer.step",
}


class SlowRows(TensorDataset):
    """Rows that take a millisecond each, like small files."""

    def __getitem__(self, index):
        with record_function("read rows"):
            time.sleep(0.001)
            return super().__getitem__(index)


def forward(model, batch):
    """Call the model on a batch, under a name that the profile will show."""
    inputs, targets = batch
    with record_function("forward"):
        outputs = model(inputs)
    return outputs, targets


def step(state, batch, **options):
    with record_function("step"):
        return kit.train_step(state, batch, **options)


def profile_training(data):
    """Train three epochs, profile the last two."""
    torch.manual_seed(42)
    model = nn.Sequential(
        nn.Linear(64, 1024),
        nn.ReLU(),
        nn.Linear(1024, 1024),
        nn.ReLU(),
        nn.Linear(1024, 1),
    )
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    loader = kit.make_loader(data, batch_size=128)

    # The first epoch sets things up (memory, threads), so its events are thrown away.
    plan = schedule(wait=0, warmup=1, active=2, repeat=1)

    # On a GPU add ProfilerActivity.CUDA, and sort by "cuda_time_total".
    with profile(activities=[ProfilerActivity.CPU], schedule=plan) as profiler:
        kit.fit(
            state,
            loader,
            loss_fn=nn.MSELoss(),
            epochs=3,
            forward=forward,
            step=step,
            on_epoch=lambda state: profiler.step(),  # what the schedule counts
        )
    return profiler


def milliseconds(profiler):
    """The time of each part, in milliseconds an epoch."""
    times = {}
    for part, name in PARTS.items():
        total = 0.0
        for event in profiler.key_averages():
            if event.key.startswith(name):
                total += event.cpu_time_total  # microseconds, of two epochs
        times[part] = total / 1000 / 2
    return times


inputs = torch.randn(512, 64)
targets = inputs[:, :1]

print("milliseconds an epoch of 4 steps, 128 rows each")
print(f"{'':12}{'read rows':>12}{'forward':>12}{'backward':>12}{'optimizer':>12}")

for name, data in {
    "tensors": (inputs, targets),
    "slow rows": SlowRows(inputs, targets),
}.items():
    profiler = profile_training(data)

    # Section 9.1's table: the ten operations that took the most time.
    table = profiler.key_averages().table(sort_by="cpu_time_total", row_limit=10)
    print(f"\n{name}\n{table}", file=sys.stderr)

    times = milliseconds(profiler)
    print(f"{name:12}", end="")
    for part in PARTS:
        print(f"{times[part]:12.1f}", end="")
    print()

# Reading takes most of the second training, so a faster network would gain nothing.
# What helps is to read while the network computes: make_loader(..., workers=2).

# The same events on a time line, one bar above the other.
profiler.export_chrome_trace("trace.json")
events = json.loads(Path("trace.json").read_text())["traceEvents"]
steps = [event for event in events if event["name"] == "step"]

print()
print(f"trace.json holds {len(steps)} steps: open it at https://ui.perfetto.dev")
