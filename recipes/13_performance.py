"""13 The tutorial's performance table, measured on the machine it runs on.

    python recipes/13_performance.py

Every technique in turns with the same work without it, on the accelerator where there is
one. What depends on the machine goes to stderr, each figure beside its claim, which holds
where it is met within 5 points, of accuracy within 1. "Holds only with an accelerator" is
half reasoned: that it fails on this CPU is measured; that units for 16 bits would mend it
is not. Memory is the most that model, gradients, optimizer and activations hold at once;
of int8 and ONNX, which torch does not run, the weights or the file; of workers, all that
the processes hold, which the tutorial leaves out.

prints:

    AMP                     accuracy within 1 point: yes
    accumulation            accuracy within 1 point: yes
    loader workers          accuracy within 1 point: yes
    gradient checkpointing  accuracy within 1 point: yes
    quantization            accuracy within 1 point: yes
    ONNX                    accuracy within 1 point: yes
"""

import gc
import json
import logging
import math
import os
import re
import sys
import time
from functools import partial
from itertools import accumulate
from pathlib import Path
from statistics import median

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler tells of its start
sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from tabulate import tabulate
from torch import nn
from torch.profiler import profile
from torch.utils.checkpoint import checkpoint

import kit

device = torch.accelerator.current_accelerator(check_available=True)
if device is None or device.type == "mps":  # mps does not tell its peak of memory
    device = torch.device("cpu")
WIDTH, ROWS = (64, 4096) if device.type == "cpu" else (256, 16384)
bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
half = partial(kit.amp, precision="bf16" if bf16 else "fp16")
loss_fn = nn.CrossEntropyLoss()
PLAIN = nn.Identity(), kit.train_step  # a wrap, which takes a model, and a step


class Block(nn.Sequential):
    """A residual block, which keeps nine times its input for the backward pass."""

    def forward(self, x):
        return x + super().forward(x)


class WorkedRows(torch.utils.data.TensorDataset):
    def __getitem__(self, row):
        until = time.thread_time() + 0.001  # of work, as to decode a small picture
        while time.thread_time() < until:
            pass
        return super().__getitem__(row)


def checkpointed(model):
    """Blocks that are computed again in the backward pass instead of kept for it."""
    for block in model:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return model


def make_state(wrap):
    torch.manual_seed(42)
    sizes, blocks = (WIDTH, 4 * WIDTH), []
    for _ in range(24):
        blocks.append(Block(nn.Linear(*sizes), nn.GELU(), nn.Linear(*sizes[::-1])))
    model = nn.Sequential(nn.Linear(64, WIDTH), *blocks, nn.Linear(WIDTH, 10))
    model = wrap(model.to(device))
    return kit.make_state(model, torch.optim.Adam(model.parameters(), lr=1e-3))


def accuracy(predict):
    return 100 * kit.metrics(predict(test[0]).cpu(), test[1])["accuracy"]


def trained(ways, loaders, epochs):
    """Train in every way, epochs in turns: an epoch's median ms, and the accuracies."""
    runs = [
        kit.run(make_state(wrap), loader, loss_fn=loss_fn, epochs=epochs, step=step)
        for (wrap, step), loader in zip(ways, loaders)
    ]
    *_, states = zip(*runs)
    times = [median(row["seconds"] for row in s.history[1:]) for s in states]
    found = [accuracy(partial(kit.predict, state.model)) for state in states]
    return [1e3 * seconds for seconds in times], found


def peak(call):
    """The most MB at once of what a call allocates on the device."""
    gc.collect()  # or garbage freed meanwhile would hide what is allocated
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats()
        before = torch.accelerator.memory_allocated()
        call()
        return (torch.accelerator.max_memory_allocated() - before) / 1e6
    with profile(profile_memory=True) as profiler:
        call()
    profiler.export_chrome_trace("trace.json")
    events = json.loads(Path("trace.json").read_text())["traceEvents"]
    events = [event for event in events if event["name"] == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    return max(accumulate(event["args"]["Bytes"] for event in events)) / 1e6


def training(*way):
    """ms and MB of a large step and accuracy after small ones, without and with."""
    ways = PLAIN, way
    large = [kit.make_loader([t.to(device) for t in train])] * 2
    small = [kit.make_loader(train, batch_size=ROWS // 16, shuffle=True)] * 2
    memory = [peak(partial(trained, [way], large, epochs=2)) for way in ways]
    return trained(ways, large, epochs=6)[0], memory, trained(ways, small, epochs=4)[1]


def loading():
    """The same of epochs whose rows are work, without and with two workers."""
    rows = WorkedRows(*(t[:512] for t in train))
    load = partial(kit.make_loader, rows, batch_size=64, shuffle=True)
    loaders = load(), load(workers=2)
    times, found = trained([PLAIN] * 2, loaders, epochs=6)
    own = resident(os.getpid(), "Rss")
    workers = torch.multiprocessing.active_children()
    more = sum(resident(worker.pid, "Private") for worker in workers)
    return times, (own, own + more), found


def resident(pid, kind):
    """MB of a process's memory of a kind, where the system is Linux."""
    path = Path(f"/proc/{pid}/smaps_rollup")
    text = path.read_text() if path.exists() else f"{kind}: nan kB"
    return sum(float(kb) / 1e3 for kb in re.findall(rf"{kind}\w*:\s+(\S+) kB", text))


def deployed():
    """The same of int8 beside ONNX, and of ONNX beside torch, all on the CPU."""
    layers = nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU()
    model = nn.Sequential(*layers, nn.Linear(1024, 10))
    state = kit.make_state(model, torch.optim.Adam(model.parameters(), lr=1e-3))
    loader = kit.make_loader(train, batch_size=256, shuffle=True)
    kit.fit(state, loader, loss_fn=loss_fn, epochs=4)
    kit.export(model, "float32.onnx", example=test[0][:8])
    import onnxruntime  # not before: export says what to install
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic("float32.onnx", "int8.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as many as torch has
    runs = [torch.inference_mode()(model.eval().forward)]
    sizes = [sum(p.nbytes for p in model.parameters()) / 1e6]
    for path in ("float32.onnx", "int8.onnx"):
        run = onnxruntime.InferenceSession(path, options).run
        runs.append(lambda X, run=run: torch.tensor(run(None, {"input": X.numpy()})[0]))
        sizes.append(Path(path).stat().st_size / 1e6)
    times = [[], [], []]
    for run, taken in list(zip(runs, times)) * 40:
        start = time.perf_counter()
        run(test[0][:256])
        taken.append(1e3 * (time.perf_counter() - start))
    figures = [*map(median, times)], sizes, [*map(accuracy, runs)]
    return [[f[1:] for f in figures], [f[:2] for f in figures]]


def verdict(points, slack=5, hardware=False):
    """What is said of a figure so many points above its claim."""
    failed = "holds only with an accelerator" if hardware else "does not hold here"
    said = "holds" if points >= -slack else failed
    return "not measured" if math.isnan(points) else said


if __name__ == "__main__":  # or workers that are spawned would run it, too
    logging.disable(logging.WARNING)  # onnxruntime's advice
    torch.manual_seed(0)
    y = torch.arange(2 * ROWS) % 10  # ten classes, each around a point of its own
    data = torch.randn(10, 64)[y] + 3 * torch.randn(len(y), 64), y
    train, test = kit.split(data, ratios=(0.5, 0.5), seed=0)
    net = f"24 blocks {WIDTH}-{4 * WIDTH}-{WIDTH}, {ROWS} rows, {device.type}"
    mlp = "mlp 64-1024-1024-10, 256 rows, cpu"
    worked = f"2, for rows of 1 ms, {device.type}", *loading()
    int8, onnx = deployed()
    pieces = training(PLAIN[0], partial(kit.train_step, accumulate=4))
    results = [  # the tutorial claims, at least: times as fast, share of memory saved
        ("AMP", 1.5, 0.5, f"16 bits, {net}", *training(half, PLAIN[1])),
        ("accumulation", 0.9, 0.75, f"4 pieces, {net}", *pieces),
        ("loader workers", 1.5, 0, *worked),
        ("gradient checkpointing", 0.8, 0.8, net, *training(checkpointed, PLAIN[1])),
        ("quantization", 2.0, 0.75, f"int8, {mlp}", *int8),
        ("ONNX", 1.2, 0, mlp, *onnx),
    ]
    where = f"{torch.get_num_threads()} CPU threads, torch {torch.__version__}"
    table = [[where, "", "without", "with", "change", "claimed", "verdict"]]
    for name, speed, share, what, (t0, t1), (m0, m1), (a0, a1) in results:
        faster, saved, more = t0 / t1, 1 - m1 / m0, a1 - a0
        said = verdict(
            100 * (faster - speed), 5, name == "AMP" and device.type == "cpu"
        )
        table.append([name, "ms", t0, t1, f"{faster:.2f}x", f"{speed}x", said])
        said = verdict(100 * (saved - share))
        table.append([what, "MB", m0, m1, f"{-saved:+.0%}", f"{-share:.0%}", said])
        said = verdict(more, slack=1)
        table.append(["", "% right", a0, a1, f"{more:+.1f}", "no loss", said])
        assert abs(more) < 1, (name, a0, a1)
        print(f"{name:22}  accuracy within 1 point: yes")
    print(tabulate(table, "firstrow", floatfmt=".1f"), file=sys.stderr)
