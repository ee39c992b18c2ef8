"""kit.fit beside the loops people use: seconds, memory, import, and what was learnt.

    pip install torch numpy click tabulate lightning accelerate pytorch-ignite skorch keras
    python tests/bench/libraries.py [--rounds 3] [--jobs line,table] [--only kit,bare]

Each measurement is a process of its own (on Linux, for its peak of memory). In a round
all take their turn, and ratios are to the hand-written loop of the same round. The first
epoch warms up, the others are timed. All shuffle, and validate after every epoch in
batches of the training's size; progress bars, logs and checkpoints are off. bare is the
limit: tensors in memory, no bookkeeping. Import is what a library adds to a torch that has
made an optimizer. All start from the same weights, but for Keras, which makes layers of
its own. (!) marks a val loss that is off hand's by 5 % of what hand learnt.
"""

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections import namedtuple
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

Job = namedtuple("Job", "model optimizer lr loss train val batch_size epochs")


def make_job(name):
    if name == "line":
        X = torch.arange(50)[:, None] * 0.02
        y, n, model = 0.7 * X + 0.3, 40, nn.Linear(1, 1)
        rest = torch.optim.SGD, 0.01, nn.L1Loss, 8, 500
    elif name == "table":
        X = torch.randn(110_000, 32)
        y, n = X.sum(1, keepdim=True) + torch.randn(len(X), 1), 100_000
        first, second = (nn.Linear(32, 64), nn.ReLU()), (nn.Linear(64, 64), nn.ReLU())
        model = nn.Sequential(*first, *second, nn.Linear(64, 1))
        rest = torch.optim.Adam, 0.001, nn.MSELoss, 256, 4
    elif name == "images":
        y, n = torch.arange(8500) % 10, 8000
        X = torch.randn(10, 1, 28, 28)[y].add_(torch.randn(len(y), 1, 28, 28), alpha=4)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 7 * 7, 10),
        )  # fmt: skip
        rest = torch.optim.Adam, 0.001, nn.CrossEntropyLoss, 64, 3
    optimizer, lr, loss, *sizes = rest
    return Job(model, optimizer, lr, loss, (X[:n], y[:n]), (X[n:], y[n:]), *sizes)


def make_optimizer(job, **options):
    return job.optimizer(job.model.parameters(), lr=job.lr, **options)


def make_loaders(job):
    train, val = TensorDataset(*job.train), TensorDataset(*job.val)
    shuffled = DataLoader(train, batch_size=job.batch_size, shuffle=True)
    return shuffled, DataLoader(val, batch_size=job.batch_size)


# Each contender trains for so many epochs, and calls mark(val_loss) after each.


def by_hand(job, epochs, mark):
    model, loss_fn, (train, val) = job.model, job.loss(), make_loaders(job)
    optimizer = make_optimizer(job)
    for _ in range(epochs):
        model.train()
        train_loss = val_loss = 0.0
        for X, y in train:
            optimizer.zero_grad()
            loss = loss_fn(model(X), y)
            loss.backward()
            optimizer.step()
            train_loss += loss.item()
        model.eval()
        with torch.no_grad():
            for X, y in val:
                val_loss += loss_fn(model(X), y).item()
        mark(val_loss / len(val))


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
    model, loss_fn, total = job.model.eval(), job.loss(), 0.0
    with torch.no_grad():
        for X, y in zip(*(t.split(job.batch_size) for t in job.val), strict=True):
            total += loss_fn(model(X), y) * len(X)
    model.train()
    return total / len(job.val[0])


def with_kit(job, epochs, mark, **options):
    import kit

    state = kit.make_state(job.model, make_optimizer(job, **options))
    train = kit.make_loader(job.train, batch_size=job.batch_size, shuffle=True)
    val = kit.make_loader(job.val, batch_size=job.batch_size)
    options = {"on_epoch": lambda state: mark(state.history[-1]["val_loss"])}
    kit.fit(state, train, val, loss_fn=job.loss(), epochs=epochs, **options)


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

    off = "logger", "enable_checkpointing", "enable_progress_bar"
    off = dict.fromkeys((*off, "enable_model_summary"), False)
    trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", **off)
    trainer.fit(Module(), *make_loaders(job))


def with_accelerate(job, epochs, mark):
    from accelerate import Accelerator

    accelerator, loss_fn = Accelerator(cpu=True), job.loss()
    parts = job.model, make_optimizer(job), *make_loaders(job)
    model, optimizer, train, val = accelerator.prepare(*parts)
    for _ in range(epochs):
        model.train()
        train_loss = val_loss = 0.0
        for X, y in train:
            optimizer.zero_grad()
            loss = loss_fn(model(X), y)
            accelerator.backward(loss)
            optimizer.step()
            train_loss += loss.item()
        model.eval()
        with torch.no_grad():
            for X, y in val:
                outputs, y = accelerator.gather_for_metrics((model(X), y))
                val_loss += loss_fn(outputs, y).item()
        mark(val_loss / len(val))


def with_ignite(job, epochs, mark):
    from ignite import engine, metrics

    loss_fn, (train, val), losses = job.loss(), make_loaders(job), {}
    trainer = engine.create_supervised_trainer(job.model, make_optimizer(job), loss_fn)
    losses["val"] = metrics.Loss(loss_fn)
    evaluator = engine.create_supervised_evaluator(job.model, losses)

    @trainer.on(engine.Events.EPOCH_COMPLETED)
    def validation():
        mark(evaluator.run(val).metrics["val"])

    trainer.run(train, max_epochs=epochs)


def with_skorch(job, epochs, mark):
    from skorch import NeuralNet, callbacks, dataset, helper

    class Mark(callbacks.Callback):
        def on_epoch_end(self, net, **_):
            mark(net.history[-1, "valid_loss"])

    X, y, *val = (t.numpy() for t in (*job.train, *job.val))
    NeuralNet(
        job.model, job.loss, optimizer=job.optimizer, lr=job.lr, max_epochs=epochs,
        batch_size=job.batch_size, iterator_train__shuffle=True, callbacks=[Mark()],
        train_split=helper.predefined_split(dataset.Dataset(*val)), verbose=0,
    ).fit(X, y)  # fmt: skip


def with_keras(job, epochs, mark):
    from keras import Sequential, callbacks, config, layers, losses, optimizers

    config.set_image_data_format("channels_first")  # torch's, and the faster one here
    alike = {
        nn.Linear: lambda m: layers.Dense(m.out_features),
        nn.ReLU: lambda m: layers.ReLU(),
        nn.Conv2d: lambda m: layers.Conv2D(m.out_channels, 3, padding="same"),
        nn.MaxPool2d: lambda m: layers.MaxPooling2D(2),
        nn.Flatten: lambda m: layers.Flatten(),
        nn.L1Loss: "mae",
        nn.MSELoss: "mse",
        nn.CrossEntropyLoss: losses.SparseCategoricalCrossentropy(from_logits=True),
    }
    leaves = [m for m in job.model.modules() if not [*m.children()]]
    model = Sequential([alike[type(m)](m) for m in leaves])
    optimizer = getattr(optimizers, job.optimizer.__name__)(job.lr)
    model.compile(optimizer=optimizer, loss=alike[job.loss])
    X, y, *val = (t.numpy() for t in (*job.train, *job.val))
    each = callbacks.LambdaCallback(on_epoch_end=lambda _, row: mark(row["val_loss"]))
    options = {"batch_size": job.batch_size, "callbacks": [each], "verbose": 0}
    model.fit(X, y, epochs=epochs, validation_data=tuple(val), **options)


JOBS = "line", "table", "images"
CONTENDERS = {  # function, module whose import is timed, what pip installs
    "hand": (by_hand, "torch", "torch"),
    "bare": (bare, "torch", "torch"),
    "bare-fused": (partial(bare, fused=True), "torch", "torch"),
    "kit": (with_kit, "kit", "torch"),
    "kit-fused": (partial(with_kit, fused=True), "kit", "torch"),
    "lightning": (with_lightning, "lightning", "lightning"),
    "accelerate": (with_accelerate, "accelerate", "accelerate"),
    "ignite": (with_ignite, "ignite.metrics", "pytorch-ignite"),
    "skorch": (with_skorch, "skorch", "skorch"),
    "keras": (with_keras, "keras", "keras"),
}


def child(name, job):
    """Measure in this process; print what came of it as JSON."""
    loop, module, _ = CONTENDERS[name]
    torch.optim.SGD([torch.zeros(1)])  # the first of all optimizers imports much
    start = time.perf_counter()
    importlib.import_module(module)
    imported = time.perf_counter() - start
    torch.manual_seed(0)
    job, marks = make_job(job), []
    untrained = validate(job).item()
    loop(job, job.epochs + 1, lambda v: marks.append((time.perf_counter(), float(v))))
    assert len(marks) == job.epochs + 1, f"{len(marks)} epochs, not {job.epochs + 1}"
    seconds, status = marks[-1][0] - marks[0][0], Path("/proc/self/status").read_text()
    found = {"ms": 1000 * seconds / job.epochs, "import": imported}
    found["MiB"] = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(json.dumps(found | {"loss": marks[-1][1], "untrained": untrained}))


def measured(name, job):
    """What the child found; None, and a line, when it failed."""
    folder = Path(__file__).parent
    env = {"PYTHONPATH": f"{folder.parents[1]}{os.pathsep}{folder}"}
    env |= {"KERAS_BACKEND": "torch", "KERAS_HOME": os.devnull}  # or it writes a file
    env = os.environ | env | {"CUDA_VISIBLE_DEVICES": ""}
    call = f"import libraries; libraries.child({name!r}, {job!r})"
    command = [sys.executable, "-c", call]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, env=env)
    if ran.returncode:
        return print(f"{name} failed at {job}:", ran.stderr.strip().split("\n")[-1])
    return json.loads(ran.stdout.splitlines()[-1])


def report(job, rounds):
    """Print the table of a job, fastest first, and what is ahead of kit."""
    from tabulate import tabulate  # not above, for it is a part of kit's import

    ratios, middle, rows = {}, {}, []
    for name in [n for n in rounds[0] if all(r[n] for r in rounds)]:
        ratios[name] = sorted(r[name]["ms"] / r["hand"]["ms"] for r in rounds)
        keys = rounds[0][name]
        middle[name] = {k: median(r[name][k] for r in rounds) for k in keys}
        middle[name]["x"] = median(ratios[name])
    hand = middle["hand"]
    for name, of in sorted(middle.items(), key=lambda item: item[1]["x"]):
        off = abs(of["loss"] - hand["loss"]) > 0.05 * (hand["untrained"] - hand["loss"])
        spread = f"{ratios[name][0]:.2f} to {ratios[name][-1]:.2f}"
        row = name, of["ms"], of["x"], spread, of["MiB"], of["import"]
        rows.append((*row, f"{of['loss']:.4f}{' (!)' * off}"))
    titles = "", "ms an epoch", "x hand", "spread", "peak MiB", "import s", "val loss"
    print(f"\n{job} (val loss untrained: {hand['untrained']:.4f})\n")
    print(tabulate(rows, titles, floatfmt=("", ".2f", ".2f", "", ".0f", ".2f", "")))
    for key, what in {"x": "time", "MiB": "memory", "import": "import"}.items():
        if kit := middle.get("kit"):
            others = [n for n in middle if not n.startswith("kit")]
            ahead = [n for n in others if middle[n][key] < kit[key]]
            print(f"ahead of kit in {what}:", ", ".join(ahead) or "none")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--only", default=",".join(CONTENDERS))
    given = parser.parse_args()
    jobs, only = given.jobs.split(","), given.only.split(",")
    for option, names, known in ("jobs", jobs, JOBS), ("only", only, CONTENDERS):
        if strange := set(names) - set(known):
            parser.error(
                f"--{option} must be of {','.join(known)}, got {strange.pop()}"
            )
    if given.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {given.rounds}")
    print(f"Python {platform.python_version()}, {torch.get_num_threads()} threads")
    names = [n for n in CONTENDERS if n == "hand" or n in only]
    for package in dict.fromkeys(CONTENDERS[n][2] for n in names):
        try:
            print(package, metadata.version(package))
        except metadata.PackageNotFoundError:
            print(f"{package} is missing: pip install {package}")
            names = [n for n in names if CONTENDERS[n][2] != package]
    for job in jobs:
        turns = range(given.rounds)
        report(job, [{n: measured(n, job) for n in names} for _ in turns])


if __name__ == "__main__":
    main()
