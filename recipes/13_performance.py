"""13 The tutorial's performance table, measured on the machine it runs on.

    python recipes/13_performance.py

Each technique in turns with the same work without it: speed as a ratio of medians, memory
as the peak of what one step allocates (for int8 and ONNX the size of the file), accuracy
after the same training. What depends on the machine, with a verdict, goes to stderr. On
two cores of a CPU without bf16 units (torch 2.13.0) workers, int8 and ONNX gained 2.0, 3.0
and 2.1 times; AMP took 20 times as long; and of this model's memory the gradients, which
neither pieces nor checkpoints spare, are most.

prints:

    AMP bf16                      accuracy within 2 points: yes
    accumulation, 4 pieces        accuracy within 2 points: yes
    2 loader workers, slow rows   accuracy within 2 points: yes
    gradient checkpointing        accuracy within 2 points: yes
    quantization, int8            accuracy within 2 points: yes
    ONNX                          accuracy within 2 points: yes
"""

import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "5")
sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from tabulate import tabulate
from torch import nn
from torch.profiler import profile
from torch.utils.checkpoint import checkpoint

import kit

try:
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic
except ImportError:
    sys.exit("ONNX and int8 need: pip install onnx onnxscript onnxruntime")

CLAIMS = {  # the tutorial's, at least: times as fast, share of memory saved
    "AMP bf16": (1.5, 0.5),
    "accumulation, 4 pieces": (0.9, 0.75),
    "2 loader workers, slow rows": (1.5, 0.0),
    "gradient checkpointing": (0.8, 0.8),
    "quantization, int8": (2.0, 0.75),
    "ONNX": (1.2, 0.0),
}


class Checkpointed(nn.Sequential):
    """Blocks that are computed again in the backward pass instead of kept."""

    def forward(self, x):
        for block in self:
            x = checkpoint(block, x, use_reentrant=False)
        return x


class SlowRows(torch.utils.data.TensorDataset):
    def __getitem__(self, row):
        time.sleep(0.001)  # as reading a small file takes
        return super().__getitem__(row)


def make_state(kind=nn.Sequential, wrap=lambda model: model):
    torch.manual_seed(42)
    blocks = [nn.Linear(64, 256)]
    for _ in range(4):
        layers = [nn.Linear(256, 256), nn.ReLU()]
        blocks.append(nn.Sequential(*layers, nn.Linear(256, 256), nn.ReLU()))
    model = wrap(kind(*blocks, nn.Linear(256, 10)))
    return kit.make_state(model, torch.optim.Adam(model.parameters(), lr=1e-3))


def turns(*calls, rounds=3):
    """How many times as fast the second is."""
    times = [[], []]
    for i in range(2 * rounds + 2):
        start = time.perf_counter()
        calls[i % 2]()
        times[i % 2].append(time.perf_counter() - start)
    return statistics.median(times[0][1:]) / statistics.median(times[1][1:])


def peak(call):
    """The most bytes at once that a call allocates, of a step after the first."""
    call()
    with profile(profile_memory=True) as profiler:
        call()
    profiler.export_chrome_trace("trace.json")
    events = json.loads(Path("trace.json").read_text())["traceEvents"]
    held = [e["args"]["Total Allocated"] for e in events if e["name"] == "[memory]"]
    return max(held) - held[0]


def trained(state, step=kit.train_step, loader=None):
    loader = loader or kit.make_loader(train, batch_size=256, shuffle=True)
    kit.fit(state, loader, loss_fn=loss_fn, epochs=4, step=step)
    return accuracy(partial(kit.predict, state.model))


def accuracy(predict):
    return kit.metrics(predict(test[0]), test[1])["accuracy"]


def training(**technique):
    """Speed, memory saved and accuracy of a step with and without a technique."""
    step = technique.pop("step", kit.train_step)
    states, steps = [make_state(), make_state(**technique)], [kit.train_step, step]
    batch = tuple(t[:512] for t in train)
    calls = [
        partial(s, state, batch, loss_fn=loss_fn) for s, state in zip(steps, states)
    ]
    plain, saving = map(peak, calls)
    found = [trained(make_state()), trained(make_state(**technique), step)]
    return turns(*calls), 1 - saving / plain, found


def loading():
    rows = SlowRows(*(t[:512] for t in train))
    loaders = [kit.make_loader(rows, batch_size=64, workers=n) for n in (0, 2)]
    calls = [partial(lambda loader: [*loader], loader) for loader in loaders]
    return (
        turns(*calls, rounds=2),
        0.0,
        [trained(make_state(), loader=x) for x in loaders],
    )


def deployed():
    """The same for ONNX beside eager, and for int8 beside ONNX."""
    state = make_state()
    found, X = [trained(state)], test[0][:256]
    paths = [kit.save_checkpoint(state, "a.pt"), Path("a.onnx"), Path("int8.onnx")]
    torch.save(state.model.state_dict(), paths[0])
    kit.export(state.model, paths[1], example=X)
    quantize_dynamic(*paths[1:])
    calls = [partial(kit.predict, state.model, X)]
    for path in paths[1:]:
        run = partial(onnxruntime.InferenceSession(path).run, None)
        found.append(
            accuracy(lambda X, run=run: torch.tensor(run({"input": X.numpy()})[0]))
        )
        calls.append(partial(run, {"input": X.numpy()}))
    sizes = [path.stat().st_size for path in paths]
    for i in (2, 1):  # int8, then ONNX
        saved = 1 - sizes[i] / sizes[i - 1]
        yield turns(*calls[i - 1 : i + 1], rounds=39), saved, found[i - 1 : i + 1]


torch.manual_seed(0)
y = torch.arange(4000) % 10  # ten classes, each around a point of its own
data = torch.randn(10, 64)[y] + 1.2 * torch.randn(4000, 64), y
train, test = kit.split(data, seed=0)
loss_fn = nn.CrossEntropyLoss()
results = [
    training(wrap=partial(kit.amp, precision="bf16")),
    training(step=partial(kit.train_step, accumulate=4)),
    loading(),
    training(kind=Checkpointed),
    *deployed(),
]
rows = []
for (name, claim), (speed, saved, found) in zip(CLAIMS.items(), results):
    same = abs(found[0] - found[1]) < 0.02
    holds = [
        "holds" if x >= least - 0.05 else "does not hold here"
        for x, least in zip((speed, saved), claim)
    ]
    rows.append(
        [
            name,
            f"{speed:.2f}x",
            f"{claim[0]}x",
            holds[0],
            f"{saved:.0%}",
            f"{claim[1]:.0%}",
            holds[1],
        ]
    )
    print(f"{name:28}  accuracy within 2 points: {'yes' if same else 'no'}")
    assert same, (name, found)
device = f"{os.cpu_count()} CPU cores, torch {torch.__version__}"
titles = [device, "speed", "claimed", "", "memory saved", "claimed", ""]
print(tabulate(rows, titles, disable_numparse=True), file=sys.stderr)
