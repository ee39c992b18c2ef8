"""kit.fit beside the loops that people use: time, memory, import, and what is learned.

    pip install tabulate lightning accelerate
    python tests/bench/libraries.py [--rounds 5] [--jobs line,table] [--only bare,kit]

bare is the limit: tensors in memory, an index for each batch, no bookkeeping.
hand-written is the plain PyTorch loop, with a DataLoader and loss.item().

Each measurement is a process of its own, of one thread; times are CPU times. In a round
each loop takes one turn; ratios are of two turns of one round, and the median over the
rounds is printed. All loops start from the same weights, shuffle, and validate after
every epoch, without logs and checkpoints. Import is what a library adds to torch.
"""

import argparse
import importlib
import math
import os
import time
from collections import namedtuple
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from turns import ratio

# kit and tabulate are not imported here: what importing kit takes is measured

Job = namedtuple("Job", "model optimizer lr loss train val batch_size epochs")


def make_job(name):
    if name == "line":
        X = torch.arange(50)[:, None] / 50
        y, n = 0.7 * X + 0.3, 40
        model, options = nn.Linear(1, 1), (torch.optim.SGD, 0.01, nn.L1Loss)
        sizes = 8, 500  # batch size, epochs
    elif name == "table":
        X, n = torch.randn(110_000, 32), 100_000
        y = X.sum(1, keepdim=True) + torch.randn(len(X), 1)
        first, second = (nn.Linear(32, 64), nn.ReLU()), (nn.Linear(64, 64), nn.ReLU())
        model = nn.Sequential(*first, *second, nn.Linear(64, 1))
        options, sizes = (torch.optim.Adam, 0.001, nn.MSELoss), (256, 4)
    elif name == "images":
        y, n = torch.arange(8500) % 10, 8000
        X = torch.randn(10, 1, 28, 28)[y] + 4 * torch.randn(len(y), 1, 28, 28)
        first = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        second = nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        model = nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(32 * 7 * 7, 10))
        options, sizes = (torch.optim.Adam, 0.001, nn.CrossEntropyLoss), (64, 3)
    return Job(model, *options, (X[:n], y[:n]), (X[n:], y[n:]), *sizes)


def make_optimizer(job, **options):
    return job.optimizer(job.model.parameters(), lr=job.lr, **options)


def make_loaders(job):
    train, val = TensorDataset(*job.train), TensorDataset(*job.val)
    shuffled = DataLoader(train, batch_size=job.batch_size, shuffle=True)
    return shuffled, DataLoader(val, batch_size=job.batch_size)


# --- The loops: each trains for some epochs and calls mark(val_loss) after every one --


def bare(job, epochs, mark, **options):
    model, loss_fn, (X, y) = job.model, job.loss(), job.train
    optimizer = make_optimizer(job, **options)
    for _ in range(epochs):
        for rows in torch.randperm(len(X)).split(job.batch_size):
            loss = loss_fn(model(X.index_select(0, rows)), y.index_select(0, rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        mark(validate(job))


def validate(job):
    if job.val is None:
        return math.nan
    model, loss_fn, total = job.model.eval(), job.loss(), 0.0
    X_batches, y_batches = (tensor.split(job.batch_size) for tensor in job.val)
    with torch.no_grad():
        for X, y in zip(X_batches, y_batches):
            total += loss_fn(model(X), y) * len(X)
    model.train()
    return total / len(job.val[0])


def with_kit(job, epochs, mark, **options):
    import kit

    state = kit.make_state(job.model, make_optimizer(job, **options))
    train = kit.make_loader(job.train, batch_size=job.batch_size, shuffle=True)
    val = job.val and kit.make_loader(job.val, batch_size=job.batch_size)
    on_epoch = lambda state: mark(state.history[-1].get("val_loss"))
    kit.fit(state, train, val, loss_fn=job.loss(), epochs=epochs, on_epoch=on_epoch)


def hand_written(job, epochs, mark):
    parts = job.model, make_optimizer(job), *make_loaders(job)
    gather = lambda *pair: pair
    plain_loop(*parts, job.loss(), epochs, mark, torch.Tensor.backward, gather)


def with_accelerate(job, epochs, mark):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    parts = job.model, make_optimizer(job), *make_loaders(job)
    parts = accelerator.prepare(*parts)
    gather = lambda *pair: accelerator.gather_for_metrics(pair)
    plain_loop(*parts, job.loss(), epochs, mark, accelerator.backward, gather)


def plain_loop(model, optimizer, train, val, loss_fn, epochs, mark, backward, gather):
    for _ in range(epochs):
        model.train()
        train_loss = val_loss = 0.0
        for X, y in train:
            optimizer.zero_grad()
            loss = loss_fn(model(X), y)
            backward(loss)
            optimizer.step()
            train_loss += loss.item()
        model.eval()
        with torch.no_grad():
            for X, y in val:
                val_loss += loss_fn(*gather(model(X), y)).item()
        mark(val_loss / len(val))


def with_lightning(job, epochs, mark):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.loss = job.model, job.loss()

        def training_step(self, batch, batch_idx):
            loss = self.loss(self.model(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.loss(self.model(batch[0]), batch[1]))

        def configure_optimizers(self):
            return make_optimizer(job)

        def on_train_epoch_end(self):  # which comes after the validation
            mark(self.trainer.callback_metrics["val_loss"])

    quiet = "checkpointing", "progress_bar", "model_summary"
    options = {f"enable_{name}": False for name in quiet}
    options |= {"max_epochs": epochs, "accelerator": "cpu", "logger": False}
    lightning.Trainer(**options).fit(Module(), *make_loaders(job))


JOBS = "line", "table", "images"
LOOPS = {  # function, module whose import is timed
    "bare": (bare, "torch"),
    "bare-fused": (partial(bare, fused=True), "torch"),
    "kit": (with_kit, "kit"),
    "kit-fused": (partial(with_kit, fused=True), "kit"),
    "hand-written": (hand_written, "torch"),
    "lightning": (with_lightning, "lightning"),
    "accelerate": (with_accelerate, "accelerate"),
}

# --- Measuring them -------------------------------------------------------------------


def measure_here(name, job_name):
    """Measure a loop in this process."""
    loop, module = LOOPS[name]
    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1)])  # the first optimizer of a process imports much
    start = time.perf_counter()
    importlib.import_module(module)
    found = {"import": time.perf_counter() - start}

    torch.manual_seed(0)
    job, times = make_job(job_name), []

    def mark(val_loss):
        times.append(time.process_time())
        found["loss"] = float(val_loss)

    loop(job, job.epochs + 1, mark)
    found["ms"] = 1000 * (times[-1] - times[0]) / job.epochs
    peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    return found | {"MiB": int(peak) / 1024}


def measure(name, job_name):
    """What a process of its own found; None, and a line, where a package is missing."""
    with get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply(measure_here, (name, job_name))
        except ImportError as error:
            print(f"{name} failed on {job_name}: {error}")
            return None


def report(job_name, results):
    """Print a table, fastest first, then kit beside the bare loop."""
    from tabulate import tabulate

    results = {name: founds for name, founds in results.items() if all(founds)}
    times = {name: [found["ms"] for found in results[name]] for name in results}
    rows = []
    for name, founds in results.items():
        numbers = []
        for key in ("ms", "MiB", "import", "loss"):
            numbers.append(median(found[key] for found in founds))
        rows.append([name, *ratio(times[name], times["hand-written"]), *numbers])
    rows.sort(key=lambda row: row[1])
    titles = ["", "x hand", "spread", "ms an epoch", "peak MiB", "import s", "val loss"]
    formats = ("", ".2f", "", ".2f", ".0f", ".2f", ".4f")
    print(f"\n{job_name}\n\n{tabulate(rows, titles, floatfmt=formats)}", flush=True)
    for name, other in ("kit", "bare"), ("kit-fused", "bare-fused"):
        if name in times and other in times:
            middle, spread = ratio(times[name], times[other])
            print(f"{name} / {other}: {middle:.3f} ({spread})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--only", default=",".join(LOOPS), help="and hand-written")
    given = parser.parse_args()

    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    names = dict.fromkeys(("hand-written", *given.only.split(",")))
    for job_name in given.jobs.split(","):
        results = {name: [] for name in names}
        for _ in range(given.rounds):
            for name in names:
                results[name].append(measure(name, job_name))
        report(job_name, results)


if __name__ == "__main__":
    main()
