"""The tutorial's performance table, measured on the machine that this runs on.

    python recipes/13_performance.py

Six techniques, and for each what the tutorial claims: how many times as fast it is, how
much of the memory is left, and that the accuracy stays. Every technique is measured in
turns with the same work without it, on the accelerator where there is one. "gain" is
the quotient of the two, above 1 where the technique is better; the claim stands beside
it. Where a gain is far below its claim, that is what this machine says: most of the
claims were made for GPUs and large models.

Memory is the most that weights, gradients, optimizer and activations hold at one time;
of loader workers, what all processes hold; of quantization and ONNX, the file.

prints (figures vary):

    torch 2.13.0, threads: 1
    technique                         without     with   gain      claimed

    mixed precision         ms          379.5     86.7   x  4.38   x 1.5
    16 residual blocks      MB          163.8     87.4   x  1.87   x 2.0
                            % right      78.4     78.5   x  1.00   x 1.0

    accumulation, 4         ms          289.6    269.0   x  1.08   x 0.9
    16 residual blocks      MB          163.8     49.0   x  3.34   x 4.0
                            % right      78.4     78.4   x  1.00   x 1.0

    loader workers, 2       ms          983.9    746.8   x  1.32   x 1.5
    rows of 1 ms            MB          634.7    652.3   x  0.97   x 1.0
                            % right      60.6     60.6   x  1.00   x 1.0

    gradient checkpointing  ms          218.1    222.3   x  0.98   x 0.8
    16 residual blocks      MB          163.8     38.1   x  4.30   x 5.0
                            % right      78.4     78.4   x  1.00   x 1.0

    quantization, int8      ms            2.6      0.9   x  2.91   x 2.0
    mlp 64-1024-1024-10     MB            4.5      1.1   x  3.96   x 4.0
                            % right      81.8     81.9   x  1.00   x 1.0

    ONNX                    ms            5.6      2.6   x  2.19   x 1.2
    mlp 64-1024-1024-10     MB            4.5      4.5   x  1.00   x 1.0
                            % right      81.8     81.8   x  1.00   x 1.0

    14 of 18 claims are met on this machine, within 5 %
"""

import gc
import json
import logging
import os
import re
import statistics
import sys
import time
from functools import partial
from itertools import accumulate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler logs its start

import torch
from torch import nn
from torch.profiler import profile
from torch.utils.checkpoint import checkpoint

import kit

try:
    import onnx  # noqa: F401
    import onnxruntime
    import onnxscript  # noqa: F401
    from onnxruntime.quantization import quantize_dynamic
except ImportError:
    sys.exit("this recipe needs: pip install onnx onnxscript onnxruntime")

logging.disable(logging.WARNING)  # onnxruntime logs advice

DEVICE = torch.accelerator.current_accelerator(check_available=True)
if DEVICE is None or DEVICE.type == "mps":  # which does not tell its peak of memory
    DEVICE = torch.device("cpu")

# A GPU needs more work before it is worth measuring.
WIDTH, ROWS = (64, 4096) if DEVICE.type == "cpu" else (256, 16384)
loss_fn = nn.CrossEntropyLoss()


# --- The data and the network that is trained --------------------------------------------


def make_points():
    """Train and test rows of ten classes, each around a point of its own."""
    torch.manual_seed(0)
    classes = torch.arange(2 * ROWS) % 10
    centres = torch.randn(10, 64)
    points = centres[classes] + 3 * torch.randn(2 * ROWS, 64)
    return kit.split((points, classes), ratios=(0.5, 0.5), seed=0)


class Block(nn.Module):
    """Keeps nine times its input for the backward pass."""

    def __init__(self, *, recompute):
        super().__init__()
        self.recompute = recompute
        self.layers = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x):
        if self.recompute:  # gradient checkpointing: compute it again when it is needed
            return x + checkpoint(self.layers, x, use_reentrant=False)
        return x + self.layers(x)


def make_state(*, precision=None, recompute=False):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, WIDTH),
        *[Block(recompute=recompute) for _ in range(16)],
        nn.Linear(WIDTH, 10),
    ).to(DEVICE)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    wrapped = kit.amp(model, precision) if precision else model
    return kit.make_state(wrapped, adam)


# --- How speed, memory and accuracy are measured -------------------------------------------


def epoch_milliseconds(ways, loaders):
    """The median time of an epoch for each way, in turns, after one to warm up.

    A way is a function that makes a state, and a step. In turns, so that a busy moment
    of the machine meets all of them alike.
    """
    runs = []
    for (new_state, step), loader in zip(ways, loaders):
        runs.append(kit.run(new_state(), loader, loss_fn=loss_fn, epochs=5, step=step))

    states = []
    for states in zip(*runs):
        pass  # an epoch of each

    medians = []
    for state in states:
        seconds = [row["seconds"] for row in state.history[1:]]
        medians.append(1000 * statistics.median(seconds))
    return medians


def peak_megabytes(call):
    """The most memory that is held at one time while call() runs."""
    gc.collect()
    if DEVICE.type != "cpu":
        torch.accelerator.reset_peak_memory_stats()
        before = torch.accelerator.memory_allocated()
        call()
        return (torch.accelerator.max_memory_allocated() - before) / 1e6

    # On a CPU the profiler notes every allocation, above 0, and every release, below.
    with profile(profile_memory=True) as profiler:
        call()
    profiler.export_chrome_trace("trace.json")
    events = json.loads(Path("trace.json").read_text())["traceEvents"]
    Path("trace.json").unlink()
    events = [event for event in events if event["name"] == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    changes = [event["args"]["Bytes"] for event in events]
    return max(accumulate(changes)) / 1e6


def percent_right(predict, test):
    points, classes = test
    return 100 * kit.metrics(predict(points).cpu(), classes)["accuracy"]


def compare_training(train, test, *, step=kit.train_step, **options):
    """Speed, memory, accuracy of training: without the technique, and with it."""
    ways = [(make_state, kit.train_step), (partial(make_state, **options), step)]

    # Speed and memory of one large step an epoch: all rows at once.
    on_device = [tensor.to(DEVICE) for tensor in train]
    large = kit.make_loader(on_device)
    speed = epoch_milliseconds(ways, [large, large])
    memory = []
    for way in ways:
        memory.append(peak_megabytes(partial(train_epochs, way, large, epochs=2)))

    # Accuracy after some epochs of small steps.
    small = kit.make_loader(train, batch_size=ROWS // 16, shuffle=True)
    accuracy = []
    for way in ways:
        state = train_epochs(way, small, epochs=4)
        accuracy.append(percent_right(partial(kit.predict, state.model), test))
    return speed, memory, accuracy


def train_epochs(way, loader, *, epochs):
    new_state, step = way
    return kit.fit(new_state(), loader, loss_fn=loss_fn, epochs=epochs, step=step)


# --- The techniques, one function each --------------------------------------------------------


def mixed_precision(train, test):
    """Half of the bits for what flows through the layers."""
    on_gpu = DEVICE.type == "cuda"
    has_bf16 = not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False)
    return compare_training(train, test, precision="bf16" if has_bf16 else "fp16")


def accumulation(train, test):
    """Four micro-batches in place of one batch: a quarter of the activations."""
    return compare_training(train, test, step=partial(kit.train_step, accumulate=4))


def gradient_checkpointing(train, test):
    """Blocks are computed again in the backward pass, not kept for it."""
    return compare_training(train, test, recompute=True)


class WorkedRows(torch.utils.data.TensorDataset):
    """Rows that take a millisecond of work each, like decoding a small picture."""

    def __getitem__(self, index):
        end = time.thread_time() + 0.001
        while time.thread_time() < end:
            pass
        return super().__getitem__(index)


def loader_workers(train, test):
    """Two processes prepare the batches while the main one trains."""
    rows = WorkedRows(*(tensor[:512] for tensor in train))
    options = {"batch_size": 64, "shuffle": True}
    loaders = [
        kit.make_loader(rows, **options),
        kit.make_loader(rows, workers=2, **options),
    ]
    speed = epoch_milliseconds([(make_state, kit.train_step)] * 2, loaders)

    own = resident_megabytes(os.getpid(), "Rss")
    more = 0.0
    for worker in torch.multiprocessing.active_children():
        more += resident_megabytes(worker.pid, "Private")
    memory = own, own + more

    accuracy = []
    for loader in loaders:
        state = train_epochs((make_state, kit.train_step), loader, epochs=2)
        accuracy.append(percent_right(partial(kit.predict, state.model), test))
    return speed, memory, accuracy


def resident_megabytes(process, kind):
    """What Linux says a process holds; 1 where there is nobody to ask."""
    path = Path(f"/proc/{process}/smaps_rollup")
    if not path.exists():
        return 1.0
    kilobytes = re.findall(rf"{kind}\w*:\s+(\d+) kB", path.read_text())
    return sum(map(int, kilobytes)) / 1000


def deployment(train, test):
    """int8 beside float32, both by onnxruntime; and onnxruntime beside torch."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 1024),
        nn.ReLU(),
        nn.Linear(1024, 1024),
        nn.ReLU(),
        nn.Linear(1024, 10),
    )
    state = kit.make_state(model, torch.optim.Adam(model.parameters(), lr=1e-3))
    loader = kit.make_loader(train, batch_size=256, shuffle=True)
    kit.fit(state, loader, loss_fn=loss_fn, epochs=4)

    torch.save(model.state_dict(), "model.pt")
    kit.export(model, "float32.onnx", example=test[0][:8])
    quantize_dynamic("float32.onnx", "int8.onnx")
    files = ["model.pt", "float32.onnx", "int8.onnx"]
    ways = [partial(kit.predict, model), open_onnx(files[1]), open_onnx(files[2])]

    times = [[], [], []]
    for _ in range(40):
        for way, own_times in zip(ways, times):
            start = time.perf_counter()
            way(test[0][:256])
            own_times.append(1000 * (time.perf_counter() - start))

    speed = [statistics.median(own_times) for own_times in times]
    memory = [Path(file).stat().st_size / 1e6 for file in files]
    accuracy = [percent_right(way, test) for way in ways]

    quantized = speed[1:], memory[1:], accuracy[1:]  # float32.onnx and int8.onnx
    exported = speed[:2], memory[:2], accuracy[:2]  # torch and float32.onnx
    return quantized, exported


def open_onnx(file):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as many as torch has
    session = onnxruntime.InferenceSession(file, options)

    def run(inputs):
        return torch.from_numpy(session.run(None, {"input": inputs.numpy()})[0])

    return run


# --- The table ----------------------------------------------------------------------------------


def show(technique, what, results, *, faster, smaller):
    """Three lines: without, with, the gain, and the least gain that is claimed.

    Returns how many of the three claims are met, within 5 %.
    """
    speed, memory, accuracy = results
    lines = [
        (technique, "ms", speed, speed[0] / speed[1], faster),
        (what, "MB", memory, memory[0] / memory[1], smaller),
        ("", "% right", accuracy, accuracy[1] / accuracy[0], 1.0),
    ]
    met = 0
    print()
    for left, measure, (without, using), gain, claim in lines:
        print(
            f"{left:24}{measure:8}{without:9.1f}{using:9.1f}"
            f"   x {gain:5.2f}   x {claim:.1f}"
        )
        if gain > 0.95 * claim:
            met += 1
    return met


def main():
    train, test = make_points()
    print(
        f"torch {torch.__version__.split('+')[0]}, threads: {torch.get_num_threads()}"
    )
    print(f"{'technique':32}{'without':>9}{'with':>9}   gain      claimed")

    # Claims: half of the memory saved is a gain of 2, 75 % of it 4, 80 % of it 5.
    network = "16 residual blocks"
    results = mixed_precision(train, test)
    met = show("mixed precision", network, results, faster=1.5, smaller=2)

    results = accumulation(train, test)
    met += show("accumulation, 4", network, results, faster=0.9, smaller=4)

    results = loader_workers(train, test)
    met += show("loader workers, 2", "rows of 1 ms", results, faster=1.5, smaller=1)

    results = gradient_checkpointing(train, test)
    met += show("gradient checkpointing", network, results, faster=0.8, smaller=5)

    quantized, exported = deployment(train, test)
    mlp = "mlp 64-1024-1024-10"
    met += show("quantization, int8", mlp, quantized, faster=2, smaller=4)
    met += show("ONNX", mlp, exported, faster=1.2, smaller=1)

    print()
    print(f"{met} of 18 claims are met on this machine, within 5 %")


if __name__ == "__main__":  # workers that are spawned import this file
    main()
