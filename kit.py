# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.13", "numpy>=2", "click>=8.1", "tabulate>=0.9"]
# ///
"""kit: the training loop you copy. Plain functions for training PyTorch models.

Data flows one way:

    loader -> step -> State -> row -> checkpoint

A step adds a batch's totals to the State's sums, which become a row of its history at
the end of the epoch; a checkpoint holds all of it.

Three extension points take the place of a trainer class:

    wrap the model    for what concerns the forward   amp(model, "bf16")
    bind the step     for what concerns the update    partial(train_step, clip=1.0)
    read the history  for what concerns the run       partial(early_stopping, patience=10)

and `forward(model, batch) -> (outputs, targets)` says how a batch meets the model. What
a technique trains, or averages, belongs inside the model, so that checkpoints hold it.

Not everything is pure: torch updates modules and optimizers in place, on_epoch is a
callback, a loader is told its epoch, run seeds torch's global generators, and progress
remembers when it printed last.

The sections carry the numbers of the recipes and of the tutorial that they follow,
"PyTorch 机器学习工作流程 - 完整教程", which is built on chapter 01 of Daniel Bourke's
Learn PyTorch for Deep Learning, https://www.learnpytorch.io/01_pytorch_workflow/:

    1 data   2 model   3 train   4 evaluate   5 checkpoint   6 together
    7 techniques   8 metrics   9 watch   10 export   11 tables and the command line
"""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":  # to import torch takes seconds: Ctrl-C ends that quietly
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import atexit
import copy
import csv
import importlib
import io
import itertools
import json
import logging
import math
import pickle
import random
import shlex
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    ExitStack,
    contextmanager,
    nullcontext,
    redirect_stderr,
    suppress,
)
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import click
import numpy as np
import torch
import torch.distributed as dist
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler
from torch.utils.data import (
    DataLoader,
    Dataset,
    Sampler,
    Subset,
    TensorDataset,
    default_collate,
)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "Standardize",
    "State",
    "Table",
    "amp",
    "confusion_matrix",
    "early_stopping",
    "eval_step",
    "evaluate",
    "export",
    "fit",
    "is_best",
    "load_checkpoint",
    "make_data",
    "make_loader",
    "make_state",
    "metrics",
    "plot_history",
    "plot_predictions",
    "predict",
    "progress",
    "read_checkpoint",
    "read_table",
    "run",
    "save_checkpoint",
    "split",
    "summary",
    "train_step",
    "unwrap",
]
__version__ = "0.2.0"

Batch = Any  # (inputs, targets), or what `forward` understands; leaves are (N, ...)
Totals = dict[str, Any]  # sums over samples, and "weight", which divides them
Row = dict[str, float]  # one finished epoch
LossFn = Callable[[Any, Any], Any]  # the mean over samples, or Totals
Forward = Callable[[nn.Module, Batch], tuple[Any, Any]]  # -> (outputs, targets)

CPU = torch.device("cpu")

# ---------------------------------------------------------------------- 1 data


def make_data(
    n: int = 50,
    *,
    weight: float = 0.7,
    bias: float = 0.3,
    noise: float = 0.0,
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """A straight line, y = weight * x + bias, for n values of x from 0 up to 1.

    X and y are float32 (n, 1); noise is the standard deviation of what is added to y,
    drawn from seed (None: from torch's own generator). Source: tutorial 1.3.

    >>> X, y = make_data()
    >>> X.shape, [round(v, 3) for v in y[:3, 0].tolist()]
    (torch.Size([50, 1]), [0.3, 0.314, 0.328])
    """
    X = torch.arange(n)[:, None] / n  # (n, 1)
    y = weight * X + bias
    if noise:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        y += noise * torch.randn(X.shape, generator=generator)

    return X, y


def _at_least(name, value, least):
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def split(
    data: Any,
    *,
    ratios: Sequence[float] = (0.8, 0.2),
    seed: int | None = None,
    stratify: Tensor | None = None,
) -> tuple[Any, ...]:
    """Split data into parts: a tuple of tensors (N, ...), or a Dataset of N rows.

    Every part but the last has int(ratio * N) rows, the last has the rest. Without a
    seed the order is kept, so sorted data test extrapolation; a seed shuffles first.
    stratify, the classes (N,) of the rows, deals them out: each part gets its share of
    each class, to about a row. Raises ValueError for ratios that do not sum to 1.
    Source: tutorial 1.4.

    >>> train, test = split(make_data())
    >>> len(train[0]), len(test[0])
    (40, 10)
    """
    n = len(_dataset(data))
    if not math.isclose(sum(ratios), 1, abs_tol=1e-6) or min(ratios) <= 0:
        raise ValueError(f"ratios must be above 0 and sum to 1, got {tuple(ratios)}")
    # 50 * 0.58 is 28.999999999999996
    sizes = [int(ratio * n + 1e-9) for ratio in ratios[:-1]]
    sizes.append(n - sum(sizes))
    if min(sizes) < 1:
        raise ValueError(f"{n} rows are too few for ratios of {tuple(ratios)}")

    order = torch.arange(n)
    if seed is not None:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    if stratify is not None:
        _dataset((order, stratify))  # raises unless both are of one length
        classes = stratify.flatten()[order]
        places = torch.empty(n)
        for label in classes.unique():
            of_class = classes == label
            count = of_class.sum()
            # the first, second ... row of its class, as a place between 0 and 1
            places[of_class] = (torch.arange(count) + 0.5) / count
        # so every class is spread evenly from first to last
        order = order[places.argsort(stable=True)]

    if isinstance(data, Dataset):  # which is not copied
        return tuple(Subset(data, rows.tolist()) for rows in order.split(sizes))
    return tuple(tuple(t[rows] for t in data) for rows in order.split(sizes))


def _dataset(data):
    """A Dataset of a tuple of tensors (N, ...); a Dataset with a length as it is."""
    if isinstance(data, Dataset) and hasattr(data, "__len__"):
        return data
    tensors = isinstance(data, tuple | list) and all(map(torch.is_tensor, data))
    if tensors and len({len(t) for t in data}) == 1:
        return TensorDataset(*data)

    raise TypeError(
        "data must be a tuple of tensors, or a Dataset with a length, and stratify a "
        f"tensor, of as many rows each, got a {type(data).__name__}"
    )


def make_loader(
    data: Any,
    *,
    batch_size: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    workers: int = 0,
    steps: int | None = None,
    collate_fn: Callable | None = None,
    drop_last: bool = False,
) -> DataLoader:
    """A DataLoader whose batches are a function of (seed, epoch, batch number).

    data is a tuple of tensors or a TensorDataset, which are indexed once per batch, or
    any Dataset with a length, whose rows are collated. batch_size None: all rows in one
    batch. With steps=N an epoch is N batches of an endless, reshuffled stream. What a
    Dataset draws from random, numpy.random or torch is a function of (seed, epoch,
    batch) too, whatever the number of workers. Outside of fit and run, every pass over
    the loader is the next epoch. Source: tutorial 1.6.

    >>> [len(x) for x, y in make_loader(make_data(), batch_size=20)]
    [20, 20, 10]
    """
    data = _dataset(data)
    n = len(data)
    if batch_size is None:
        batch_size = n
    _at_least("rows of data", n, batch_size if drop_last else 1)
    _at_least("batch_size", batch_size, 1)
    in_pass = n // batch_size if drop_last else math.ceil(n / batch_size)
    if steps is None:
        steps = in_pass
    _at_least("steps", steps, 1)

    # a subclass may compute its rows, so only the class itself is read by batches
    if type(data) is TensorDataset and collate_fn is None:
        data = _Tensors(*data.tensors)
    else:
        data = _SeededRows(data, collate_fn or default_collate)
    worker_init = None
    if workers:
        # multiprocessing ends workers by SIGTERM: from then on they have to obey it
        ending = torch.multiprocessing.Event()
        Finalize(None, ending.set, exitpriority=0)
        worker_init = partial(_ignore_signals, ending)

    return DataLoader(
        data,
        batch_size=None,  # the sampler makes the batches
        sampler=_BatchSampler(n, batch_size, in_pass, steps, shuffle, seed),
        collate_fn=nn.Identity(),  # the dataset has collated them
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available() and isinstance(data, _SeededRows),
        worker_init_fn=worker_init,
        generator=torch.Generator(),  # or each epoch would draw from the global one
    )


class _BatchSampler(Sampler):
    """Yields (seed numbers, rows) for each batch: a function of (seed, epoch, batch).

    upcoming is the epoch that is read next, the batch that it begins with, and None, or
    a function that gives the part of a batch that this process reads.
    """

    def __init__(self, n, batch_size, in_pass, steps, shuffle, seed):
        self.n, self.batch_size, self.shuffle, self.seed = n, batch_size, shuffle, seed
        # batches in one pass over the data, and in an epoch
        self.in_pass, self.steps = in_pass, steps
        self.upcoming = 0, 0, None

    def __len__(self):
        return self.steps

    def set_epoch(self, epoch):
        self.upcoming = epoch, 0, None

    def position(self, epoch, batch):
        """The pass over the data that a batch is in, and where in it its rows are."""
        nth_pass, nth_batch = divmod(epoch * self.steps + batch, self.in_pass)
        begin = nth_batch * self.batch_size
        return nth_pass, begin, min(begin + self.batch_size, self.n)

    def __iter__(self):
        epoch, start, part = self.upcoming
        self.upcoming = epoch + 1, 0, None

        order = range(self.n)
        for batch in range(start, self.steps):
            nth_pass, begin, end = self.position(epoch, batch)
            if self.shuffle and (begin == 0 or batch == start):
                number = zlib.crc32(repr((self.seed, nth_pass)).encode())
                generator = torch.Generator().manual_seed(number)
                # numpy slices it 5 µs faster
                order = torch.randperm(self.n, generator=generator).numpy()
            if part:
                begin, end = part(begin, end)
                end = max(end, begin + 1)  # a rank without rows reads one all the same
            # ranks with rows differ in `begin`, so that each draws its own numbers
            yield (self.seed, epoch, batch, begin), order[begin:end]


class _Tensors(TensorDataset):
    """A TensorDataset that reads a whole batch with one call a tensor."""

    def __getitem__(self, key):
        _, rows = key  # a range, or an array of row numbers
        # copies: a model may change its batch in place
        if isinstance(rows, range):
            return tuple([t[rows.start : rows.stop].clone() for t in self.tensors])
        rows = torch.from_numpy(rows)
        if not self.tensors[0].is_cpu:
            rows = rows.to(self.tensors[0].device)
        return tuple([t.index_select(0, rows) for t in self.tensors])


class _SeededRows(Dataset):
    """A Dataset that reads and collates a batch's rows under the batch's own seed."""

    def __init__(self, dataset, collate):
        self.dataset, self.collate = dataset, collate

    def __getitem__(self, key):
        numbers, rows = key
        rows = [int(row) for row in rows]
        # here rather than in the main process: a worker has a copy
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(numbers[1])

        with _keep_random_state():
            _seed(CPU, *numbers, python_too=True)
            # a Subset asks for all rows at once where the dataset can give them
            items = Subset(self.dataset, rows).__getitems__(range(len(rows)))
            return self.collate(items)


@contextmanager
def _keep_random_state():
    """Restore the global generators of torch, random and numpy afterwards."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()

    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def _seed(device, *numbers, python_too=False):
    """Seed torch, and with python_too random and numpy.random, by these numbers."""
    number = hash(numbers) % 2**32  # of whole numbers, it is the same in every process
    torch.default_generator.manual_seed(number)  # 70 µs faster than torch.manual_seed
    if device != CPU:
        backend = torch.get_device_module(device)
        # all devices: the current one need not be the model's
        getattr(backend, "manual_seed_all", backend.manual_seed)(number)
    if python_too:  # which takes 10 µs
        random.seed(number)
        np.random.seed(number)


def _ignore_signals(ending, worker):
    """Ignore SIGINT and SIGTERM in a worker while the main process runs.

    A terminal or a cluster sends these to all processes. If one killed a worker, torch
    would raise in the main process in the middle of a step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending.is_set() else None)


def _map(function, nest):
    """The nest of dicts, lists and tuples with the function applied to what they hold."""
    if isinstance(nest, Tensor):  # first, as the check for a Mapping is the slowest
        return function(nest)
    if isinstance(nest, (tuple, list)):
        items = [_map(function, value) for value in nest]
        # a named tuple takes its items one by one
        return type(nest)(*items) if hasattr(nest, "_fields") else type(nest)(items)
    if isinstance(nest, Mapping):
        # a dict of its own type, such as a ModelOutput; others may share what they hold
        made = copy.copy(nest) if isinstance(nest, dict) else {}
        for key, value in nest.items():
            made[key] = _map(function, value)
        return made

    return function(nest)


def _place(batch, device=None):
    """The batch on the device, and its number of rows, counted at its tensors (N, ...)."""
    lengths = set()

    def place(leaf):
        if not isinstance(leaf, Tensor):
            return leaf
        lengths.add(leaf.shape[0] if leaf.ndim else 0)
        if device is None or leaf.device == device:
            return leaf
        return leaf.to(device, non_blocking=True)

    batch = _map(place, batch)
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "a batch must hold tensors (N, ...) of one N > 0, as (inputs, targets) do, got "
            f"lengths {sorted(lengths)}"
        )

    return batch, lengths.pop()


def _cut(batch, begin, end):
    """Some rows of the batch, as copies."""

    def cut(leaf):
        if isinstance(leaf, Tensor):
            return leaf[begin:end].clone()
        # constants go along; a list of texts, say, would not be cut with the rest
        if isinstance(leaf, int | float | None):
            return leaf
        raise TypeError(f"only tensors can be cut, got a {type(leaf).__name__}")

    return _map(cut, batch)


# --------------------------------------------------------------------- 2 model


class State(NamedTuple):
    """A training run: what a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any  # any of torch.optim.lr_scheduler, or None
    scaler: torch.amp.GradScaler
    step: int  # batches trained on
    sums: Totals  # of the running epoch
    history: tuple[Row, ...]  # a row for each finished epoch
    per_step: bool  # whether the scheduler advances by step, not by epoch
    config: dict[str, Any]  # what JSON can hold; yours to fill


def make_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    scheduler: Any = None,
    per_step: bool | None = None,
) -> State:
    """The State before training. Move the model to its device before this.

    per_step says when the scheduler advances; None: by step for OneCycleLR and
    CyclicLR, by epoch for all others. ReduceLROnPlateau gets val_loss, or train_loss
    where nothing is validated. A model in amp(..., "fp16") gets a real GradScaler.
    Raises ValueError when the optimizer holds parameters that are not the model's.

    >>> model = nn.Linear(1, 1)
    >>> make_state(model, torch.optim.SGD(model.parameters(), lr=0.01)).step
    0
    """
    _check_type("model", model, nn.Module)
    _check_type("optimizer", optimizer, torch.optim.Optimizer)

    # of a trainable criterion, say
    for group in optimizer.param_groups:
        strangers = set(group["params"]) - set(model.parameters())
        if strangers:
            raise ValueError(
                f"the optimizer holds {len(strangers)} parameters that are not the "
                "model's, which no checkpoint would save: put their module, such as a "
                "criterion, into it"
            )
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ValueError("the scheduler holds another optimizer")

    if per_step is None:
        per_step = isinstance(
            scheduler, lr_scheduler.OneCycleLR | lr_scheduler.CyclicLR
        )

    # without fp16 a GradScaler that is off passes everything through
    fp16 = any(
        isinstance(module, _Amp) and module.dtype == torch.float16
        for module in model.modules()
    )
    scaler = torch.amp.GradScaler(_device(model).type, enabled=fp16)
    return State(model, optimizer, scheduler, scaler, 0, {}, (), per_step, {})


def _check_type(name, value, kind):
    if not isinstance(value, kind):
        # a class in place of an instance has a name of its own
        got = getattr(value, "__name__", type(value).__name__)
        raise TypeError(f"{name} must be of type {kind.__name__}, got {got}")


def _device(model):
    """Where the model's first tensor is."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        return tensor.device
    return CPU  # of a model without any


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside of amp, torch.compile and DistributedDataParallel.

    >>> model = nn.Linear(1, 1)
    >>> unwrap(amp(model, "bf16")) is model
    True
    """
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch.compile's name for it, and amp's
            model = model.get_submodule("_orig_mod")
        else:
            return model


class Standardize(nn.Module):
    """(x - mean) / std by the rows (N, ...) it is made of; inverse: x * std + mean.

    A gap (NaN) becomes 0, the mean, and infinity the largest number. A constant column is
    divided by 1. categories gives the number of categories of each column, 0 for a
    number: a column of codes becomes that many columns, behind the numbers, with a 1
    where the code is theirs. All of it is buffers, which travel in checkpoints and
    exported files. Source: tutorial 12, question 7.

    >>> Standardize(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))(torch.tensor([[4.0, 5.0]]))
    tensor([[3., 0.]])
    """

    def __init__(
        self, rows: Tensor, *, categories: Sequence[int] = (), inverse: bool = False
    ):
        super().__init__()
        self.inverse = inverse
        # in float64 and two passes: a column may be large and its spread small
        rows = rows.double()
        mean = rows.nanmean(0)
        std = (rows - mean).square().nanmean(0).sqrt()
        self.mean = nn.Buffer(mean.nan_to_num())
        spreads = std > 1e-14 * mean.abs()  # less is rounding, of a constant
        self.std = nn.Buffer(torch.where(spreads, std, 1))

        # which columns are numbers; of every category its column and its code
        numbers = [i for i, count in enumerate(categories) if not count]
        codes: list = []
        for i, count in enumerate(categories):
            codes += [(i, code) for code in range(count)]
        self.numbers = nn.Buffer(torch.tensor(numbers, dtype=torch.int64))
        self.codes = nn.Buffer(torch.tensor(codes, dtype=torch.int64))
        self.float()  # which leaves whole numbers as they are

    def forward(self, x: Tensor) -> Tensor:
        if self.inverse:
            return x * self.std + self.mean
        scaled = ((x - self.mean) / self.std).nan_to_num()
        if not len(self.codes):  # numbers alone, in rows of any shape
            return scaled
        column, code = self.codes.T
        one_hot = x[:, column] == code
        return torch.cat([scaled[:, self.numbers], one_hot.float()], 1)


def summary(model: nn.Module) -> str:
    """A table of the parameters and buffers: shape, count, trained or not.

    >>> print(summary(nn.Linear(2, 1, bias=False).requires_grad_(False)).splitlines()[0])
    name    shape      count  trained
    """
    rows, model = [], unwrap(model)
    for name, tensor in model.state_dict(keep_vars=True).items():
        trained = "yes" if tensor.requires_grad else "no"
        if not isinstance(tensor, nn.Parameter):
            trained = "buffer"
        rows.append((name, tuple(tensor.shape), tensor.numel(), trained))

    table = tabulate(rows, ("name", "shape", "count", "trained"))
    # tied parameters count once
    count = sum(p.numel() for p in model.parameters())
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{table}\n{count:,} parameters, {learned:,} of them trained"


# --------------------------------------------------------------------- 3 train


def _forward(model, batch):
    """How a batch meets the model, unless `forward` says otherwise."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = f"a {type(batch).__name__} of length {len(batch)}: other batches need forward="
        raise TypeError(f"a batch must be (inputs, targets), got {got}")
    inputs, targets = batch
    return model(inputs), targets


def train_step(
    state: State,
    batch: Batch,
    *,
    loss_fn: LossFn,
    forward: Forward = _forward,
    accumulate: int = 1,
    clip: float | Callable | None = None,
) -> tuple[State, Totals]:
    """One optimizer update on a batch, in up to `accumulate` micro-batches.

    batch is (inputs, targets), or what forward takes; its tensors (N, ...) go to the
    model's device. loss_fn(outputs, targets) returns the mean over the N samples, or a
    dict of totals with "loss" and "weight", which divides all of them. A weighted mean,
    as cross_entropy's with weight or ignore_index, must be such a dict, of the weighted
    sum and the sum of the weights. A micro-batch counts by its samples, or its weight, so
    that the gradient is the whole batch's, except where it depends on the other rows
    (BatchNorm) or on draws (dropout). clip is the largest norm of the gradient, or a
    function that changes the gradients of the parameters that it is given, such as
    partial(clip_grad_value_, clip_value=1.0); a norm that it returns is recorded.

    Returns the state and this batch's totals: loss, weight, the others of loss_fn,
    grad_norm (before the clip) where clip returns it, and under fp16 the skipped updates.

    >>> model = nn.Linear(1, 1)
    >>> state = make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    >>> state, totals = train_step(state, make_data(), loss_fn=nn.L1Loss(), accumulate=4)
    >>> state.step, totals["weight"]
    (1, 50)

    Source: tutorial 3.3, 7.1, 7.2, 7.4.
    """
    model, optimizer, scaler = state.model, state.optimizer, state.scaler
    _at_least("accumulate", accumulate, 1)
    if clip is not None and not callable(clip):
        if not clip > 0:
            raise ValueError(f"clip must be above 0, got {clip}")
        clip = partial(nn.utils.clip_grad_norm_, max_norm=clip)

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    batch, rows = _place(batch, parameters[0].device)
    ddp = _find_ddp(model)
    # in one process both are rows; a rank may have one that does not count
    counted, mean_rows = _count_rows(ddp, rows)
    for p in parameters:
        p.grad = None  # the same as optimizer.zero_grad(), 5 µs faster

    # 1. gradients, summed over the micro-batches, of which the last may be shorter
    totals: Totals = {}
    size = math.ceil(rows / accumulate)
    for begin in range(0, rows, size):
        end = min(begin + size, rows)
        part = batch if size >= rows else _cut(batch, begin, end)
        # the ranks all-reduce their gradients once, at the last backward
        with ddp.no_sync() if ddp and end < rows else nullcontext():
            # without a name for the outputs, which would outlive their micro-batch
            part_rows = min(end - begin, counted)
            values, count, is_total = _loss(loss_fn, forward(model, part), part_rows)
            # a mean counts by its share of the rows; so does a total, to stay small in
            # fp16, until part 2. DDP averages over the ranks, hence their mean
            objective = values["loss"]
            if count != mean_rows:  # times 1 changes nothing, and takes 5 µs
                objective = objective * (count / mean_rows)
            scaler.scale(objective).backward()
        totals = _add(totals, _totals(values, count))

    # 2. the gradient as it is meant: unscaled, divided, then clipped
    scaler.unscale_(optimizer)
    if is_total:
        # so far the gradient is that of total / rows: make it total / weight; a batch
        # of weight 0 has none
        factor = mean_rows / (_rank_mean(ddp, totals["weight"]) + 1e-30)
        for p in parameters:
            if p.grad is not None:
                p.grad.mul_(factor)
    norm = clip(parameters) if clip else None

    # 3. the update, and with it the schedule
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    skipped = scaler.get_scale() < scale  # fp16 met an infinite or NaN gradient
    if scaler.is_enabled():
        totals["skipped"] = skipped * totals["weight"]
    if norm is not None and not skipped:
        totals |= _totals({"grad_norm": norm}, totals["weight"])
    if state.scheduler and state.per_step and not skipped:
        _advance(state.scheduler)

    # run adds up the totals of all ranks in place of these sums
    return state._replace(step=state.step + 1, sums=_add(state.sums, totals)), totals


def _loss(loss_fn, pair, rows):
    """What loss_fn returns as a dict, how often it counts, and whether it is of totals.

    A mean counts once a row. Nothing counts where there are no rows.
    """
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        got = type(pair).__name__
        raise TypeError(f"forward must return (outputs, targets), got a {got}")
    outputs, targets = pair
    # torch only warns where a loss broadcasts (N, 1) and (N,) to (N, N)
    floats = isinstance(targets, Tensor) and targets.is_floating_point()
    if floats and getattr(outputs, "shape", targets.shape) != targets.shape:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "Using a target size")
                loss = loss_fn(outputs, targets)
        except UserWarning as warning:
            raise ValueError(str(warning)) from None
    else:
        loss = loss_fn(outputs, targets)

    if not isinstance(loss, dict):
        return {"loss": loss, "weight": 1}, rows, False
    if not {"loss", "weight"} <= loss.keys():
        raise ValueError(f'loss_fn must give "loss" and "weight", got {list(loss)}')
    return loss, min(rows, 1), True


def _totals(values, count):
    """The values times a number: numbers on the CPU, elsewhere tensors, without a graph."""
    totals = {}
    for key, value in values.items():
        if isinstance(value, Tensor):
            if value.is_cpu:
                value = value.item()
            elif value.is_mps:
                value = value.detach()  # which has no float64
            else:  # to read it would synchronise; float32 would lose digits in long sums
                value = value.detach().double()
        totals[key] = value * count
    return totals


def _add(totals, more):
    """Both totals together; neither is changed."""
    added = dict(totals)
    for key, value in more.items():
        added[key] = added.get(key, 0) + value
    return added


def _advance(scheduler, metric=None):
    """scheduler.step, without torch's warning about stepping it before the optimizer."""
    with warnings.catch_warnings():  # after a resume the optimizer has not stepped yet
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step")
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(metric)
        else:
            scheduler.step()


# ------------------------------------------------------------------ 4 evaluate


def eval_step(
    model: nn.Module,
    batch: Batch,
    *,
    loss_fn: LossFn,
    forward: Forward = _forward,
    metrics: Any = None,
) -> Totals:
    """The totals of one batch in eval mode, without gradients: loss, weight, ...

    metrics is an object whose update(outputs, targets) is called. no_grad rather than
    inference_mode: a model that keeps a tensor of the latter cannot be trained on later.
    Source: tutorial 4.1.

    >>> eval_step(nn.Identity(), (torch.ones(3), torch.zeros(3)), loss_fn=F.l1_loss)
    {'loss': 3.0, 'weight': 3}
    """
    with _eval_mode(model):
        totals, pair = _eval_batch(model, batch, loss_fn, forward)
    if metrics is not None:
        metrics.update(*pair)

    return totals


def _eval_batch(model, batch, loss_fn, forward):
    """The totals, and the pair of outputs and targets."""
    if model.training:
        model.eval()  # the loader has put it into train mode
    batch, rows = _place(batch, _device(model))

    # around each batch: between them the loader may need gradients, for an attack say
    with torch.no_grad():
        pair = forward(model, batch)
        values, count, _ = _loss(loss_fn, pair, rows)

    return _totals(values, count), pair


def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    loss_fn: LossFn,
    forward: Forward = _forward,
    metrics: Any = None,
) -> Row:
    """The mean loss over all samples of the loader, and the metrics over them.

    metrics(prediction, target) gets all rows at once, on the model's device, so that
    what is no mean of batches (R², F1, a quantile) is right however they are batched;
    it returns a number or a dict of numbers. Or metrics is an object with reset, update
    and compute, such as those of torchmetrics: it gets batch by batch, no outputs are
    kept, and between processes it has to synchronise itself, as those do. Neither the
    mode of any module nor the CPU's random state changes. Source: tutorial 3.3, 4.2, 8.2.

    >>> row = evaluate(nn.Identity(), [make_data()], loss_fn=F.l1_loss, metrics=metrics)
    >>> round(row["loss"], 3), round(row["r2"], 3)
    (0.153, 0.243)
    """
    _check_type("model", model, nn.Module)
    # a foreign loader draws; so may a model, or a metric
    with _keep_random_state():
        return _evaluate(model, loader, loss_fn, forward, metrics)


def _evaluate(model, loader, loss_fn, forward, measure, epoch=None, signalled=None):
    """evaluate, of an epoch that the loader is told; None after a signal.

    measure is the metrics argument, whose name is also a function's.
    """
    ddp = _find_ddp(model)
    if ddp is model:
        model = ddp.module  # whose forward waits for no other rank
    incremental = hasattr(measure, "compute")  # takes batch by batch, as torchmetrics
    if incremental:
        measure.reset()

    totals, pairs = {}, []  # pairs: (outputs, targets)
    with _eval_mode(model):
        for batch in _batches(loader, epoch, ddp=ddp):
            if signalled and signalled():
                return None
            if ddp and not ddp.rows[0]:  # no row of this batch is this rank's
                pairs.append(None)
                continue
            part, pair = _eval_batch(model, batch, loss_fn, forward)
            totals = _add(totals, part)
            if incremental:
                measure.update(*pair)
            elif measure:
                pairs.append(pair)
        if ddp:
            totals, pairs = _gather_evaluation(totals, pairs, _device(model))
        if not totals:
            raise ValueError("the loader must have a batch to evaluate, got none")

        row = _means(totals)
        if measure:
            found = measure.compute() if incremental else measure(*_concat(pairs))
            if not isinstance(found, dict):  # a number, by the metric's own name
                found = {getattr(measure, "__name__", type(measure).__name__): found}
            for name, value in found.items():
                if math.prod(np.shape(value)) != 1:
                    got = f"shape {np.shape(value)}: average it, or name its parts"
                    raise ValueError(f"{name} must be a single number, got {got}")
                row.setdefault(name, float(value))  # the loss stays the loss

    return row


def predict(model: nn.Module, inputs: Any, *, forward: Forward | None = None) -> Any:
    """The model's outputs (N, ...) for a tensor, or over a loader, in its order.

    A loader gives inputs, tuples that begin with the inputs, or batches for forward.
    Outputs may be nests. Dropout is off, and the modules' modes are restored.

    >>> predict(nn.Identity(), torch.ones(2, 1)).shape
    torch.Size([2, 1])
    """
    _check_type("model", model, nn.Module)
    batches = [inputs] if isinstance(inputs, Tensor | Mapping) else inputs
    outputs = []

    with _eval_mode(model):
        for batch in _batches(batches):
            if forward is None:  # the inputs, without any targets
                if isinstance(batch, tuple | list):
                    batch = batch[0]
                batch = batch, None
            _, pair = _eval_batch(model, batch, lambda *_: 0.0, forward or _forward)
            outputs.append(pair[0])

    if not outputs:
        raise ValueError("the loader must have a batch to predict, got none")
    return _concat(outputs)


def _concat(nests):
    """The nests as one, their tensors concatenated along the rows."""
    leaves = []  # of each nest
    for nest in nests:
        leaves.append([])
        _map(leaves[-1].append, nest)
    parts = zip(*leaves, strict=True)

    def concat(first):
        part = next(parts)
        if not isinstance(first, Tensor):
            return first
        # a model may give its loss (), one number a batch, beside the outputs
        return torch.cat(part) if first.ndim else torch.stack(part)

    return _map(concat, nests[0])


@contextmanager
def _eval_mode(model):
    """Eval mode; afterwards each module's own mode again."""
    # a frozen part of a training model is in eval mode already, and stays so
    training = [module for module in model.modules() if module.training]
    model.eval()

    try:
        yield
    finally:
        for module in training:
            module.training = True


def _means(totals, prefix=""):
    """Every total over the weight; this is where an epoch's sums are read."""
    numbers = {key: float(value) for key, value in totals.items()}
    weight = numbers.pop("weight") or math.nan  # a mean over nothing is NaN
    row = {prefix + key: total / weight for key, total in numbers.items()}
    if "grad_norm" in numbers:  # skipped updates have none: divide by the others
        made = weight - numbers.get("skipped", 0) or math.nan
        row[prefix + "grad_norm"] = numbers["grad_norm"] / made

    return row


# ---------------------------------------------------------------- 5 checkpoint

FORMAT = 6  # of the checkpoint files that this kit writes


def save_checkpoint(state: State, path: str | Path) -> Path:
    """Write the state to one file of plain types, which torch reads weights_only.

    The model's keys are those of the unwrapped model. The file is written under another
    name, flushed to the disk and renamed, so that the path holds the old one or the new
    one, whatever happens. Every process that calls it writes. Raises
    OSError when it cannot be written, and TypeError when the state holds anything but
    plain values, or its config what JSON cannot hold. Source: tutorial 5.4.

    >>> model = nn.Linear(1, 1)
    >>> state = make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    >>> save_checkpoint(state, "models/line.pt").name
    'line.pt'
    """
    return _write(path, _pack(state))


def _pack(state):
    """The bytes of a checkpoint file."""
    _check_type("state", state, State)
    weights, scheduler = unwrap(state.model).state_dict(), state.scheduler
    content = {
        "format": FORMAT,
        "components": {  # whose state it is
            "optimizer": type(state.optimizer).__name__,
            "scheduler": type(scheduler).__name__,
            "per_step": state.per_step,
        },
        # without the name that torch.compile and amp give to what they wrap
        "model": {key.replace("_orig_mod.", ""): t for key, t in weights.items()},
        "optimizer": state.optimizer.state_dict(),
        "scheduler": scheduler.state_dict() if scheduler else {},
        "scaler": state.scaler.state_dict(),
        "step": state.step,
        # as JSON, which is read fast, and cannot claim to be larger than its text
        "sums": json.dumps(_map(float, state.sums)),
        "history": json.dumps(state.history, default=float),
        "config": json.dumps(_map(_plain, state.config)),
    }

    file = io.BytesIO()
    torch.save(_map(_plain, content), file)
    file.seek(0)
    refused = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    if refused:
        raise TypeError(f"a state must hold plain values to be saved, got {refused}")
    return file.getvalue()


def _plain(leaf):
    """The leaf as read_checkpoint takes it."""
    if isinstance(leaf, np.generic):
        return leaf.item()
    return bytes(leaf) if isinstance(leaf, bytearray) else leaf


def load_checkpoint(state: State, path: str | Path) -> State:
    """Load a checkpoint into the state's model, optimizer, scheduler and scaler.

    Training continues from it as if it had never stopped, given the same loaders, seed
    and step function, none of which the file holds. It is exact in the middle of an epoch
    too: the file holds the epoch's sums and how many batches have been trained on, and
    which rows the next one has and what is drawn for it are functions of the seed and
    that number. Nothing changes unless all of it is compatible. Raises ValueError, in one
    line, for a damaged file, one that could run code, or one of another model, optimizer
    or scheduler. Source: tutorial 5.4.

    >>> model = nn.Linear(1, 1)
    >>> state = make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    >>> load_checkpoint(state, save_checkpoint(state, "models/line.pt")).step
    0
    """
    saved = read_checkpoint(path)
    own = _unpack(io.BytesIO(_pack(state)))  # to compare with, and to put back

    try:
        # first compare everything, so that a file of another run changes nothing
        for part in ("components", "model", "scheduler"):
            _check_like(part, saved[part], own[part])
        groups = own["optimizer"]["param_groups"]
        _check_like("optimizer", saved["optimizer"]["param_groups"], groups)
        _restore(state, saved)
        return state._replace(
            step=saved["step"],
            sums=saved["sums"],
            history=tuple(saved["history"]),
            config=saved["config"],
        )
    except Exception as error:  # torch raises many types
        _restore(state, own)  # put back what was there
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is of another run: {reason:.300}") from error


def _check_like(where, saved, own):
    """Raise ValueError unless saved has own's keys, shapes and types at every depth."""
    if _describe(saved) != _describe(own):
        raise ValueError(f"{where} must be {_describe(own)}, got {_describe(saved)}")

    if isinstance(own, list | tuple):
        saved, own = dict(enumerate(saved)), dict(enumerate(own))  # by position
    if isinstance(own, dict):
        for key in own | saved:
            # ... stands for a missing key, as no file can hold it
            here, there = saved.get(key, ...), own.get(key, ...)
            _check_like(f"{where}[{key!r:.60}]", here, there)


def _describe(value):
    """What has to be alike in a checkpoint and in the state that it is loaded into."""
    if isinstance(value, Tensor):
        # a stride of 0 lets a small file claim a huge tensor
        expanded = value.nbytes > value.untyped_storage().nbytes()
        return f"{tuple(value.shape)} {value.dtype}{' expanded' * expanded}"
    if isinstance(value, bool | str):  # options, such as amsgrad: the same ones
        return f"{value!r:.50}"
    if isinstance(value, int | float):
        return "a number"
    return "nothing" if value is ... else f"a {type(value).__name__}"


def _restore(state, content):
    """Load a checkpoint's content into the state's components."""
    model, weights = unwrap(state.model), content["model"]
    model.load_state_dict(
        {key: weights[key.replace("_orig_mod.", "")] for key in model.state_dict()}
    )
    for name in ("optimizer", "scheduler", "scaler"):
        if content[name]:  # {} without a scheduler, and without fp16
            getattr(state, name).load_state_dict(content[name])

    # a new optimizer had no moments to compare with, and torch's fused ones do not look
    # whether those that they write to are as large as the parameter
    as_large = "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "sum"
    if "fused" in state.optimizer.defaults:
        for p, moments in state.optimizer.state.items():
            for key in moments.keys() & as_large:
                _check_like(f"{key} of a parameter", moments[key], p)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a checkpoint file holds, on the CPU: model, optimizer, history and so on.

    Every byte is checked against the file's checksums, and only plain types are read:
    nothing in it is imported or run, and no tensor is larger than the file.
    Raises ValueError in one line for anything else than a whole checkpoint.

    >>> model = nn.Linear(1, 1)
    >>> state = make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    >>> list(read_checkpoint(save_checkpoint(state, "models/line.pt"))["model"])
    ['weight', 'bias']
    """
    with open(path, "rb") as file:
        try:
            _check_zip(file)
            file.seek(0)
            return _unpack(file)
        except pickle.UnpicklingError:
            reason = "it holds more than plain types, which could run code"
        except Exception as error:  # noqa: BLE001, many types
            reason = repr(error)

    raise ValueError(f"{path} is no checkpoint of kit: {reason:.300}")


def _check_zip(file):
    """Raise unless the file is a zip as torch writes it, with right checksums."""
    archive = zipfile.ZipFile(file)
    for member in archive.infolist():
        # deflated, a small file can take any amount of memory; for a member flagged as a
        # folder torch returns uninitialised memory
        odd = member.compress_type or member.external_attr
        # a pickle can ask for a bytearray of any size
        is_pickle = member.filename.lower().endswith(".pkl")
        if odd or (is_pickle and b"bytearray\n" in archive.read(member)):
            raise ValueError("it is not as torch writes it")

    damaged = archive.testzip()
    if damaged:
        raise ValueError(f"the checksum of {damaged} is wrong")


def _unpack(file):
    """The content of a checkpoint file, whose parts must be there and of their types."""
    content = torch.load(file, map_location=CPU, weights_only=True)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"its format must be {FORMAT}")

    for key in ("sums", "history", "config"):
        content[key] = json.loads(content[key])
    _check_type("step", content["step"], int)
    _at_least("step", content["step"], 0)
    for key in ("components", "model", "optimizer", "scheduler", "scaler", "config"):
        _check_type(key, content[key], dict)
    for row in content["history"]:
        _check_type("epoch", row["epoch"], int)
        _check_type("step", row["step"], int)
    for name, total in content["sums"].items():
        _check_type(name, total, float)

    return content


def _write(path, content):
    """Write bytes so that the path holds the old file or the whole new one; its Path."""
    path = Path(path).resolve()  # a link stays one: its target is replaced
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a device or a pipe is written to
            path.write_bytes(content)
            return path
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        if fcntl:  # but for Windows: have the disk keep the renaming too
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path} could not be written: {reason}") from error
    finally:
        with suppress(OSError):
            beside.unlink()

    return path


# ------------------------------------------------------------------ 6 together


def run(
    state: State,
    train: Iterable[Batch],
    val: Iterable[Batch] | None = None,
    *,
    loss_fn: LossFn,
    epochs: int,
    forward: Forward = _forward,
    metrics: Any = None,
    step: Callable = train_step,
    seed: int = 0,
) -> Iterator[State]:
    """Yield the state after every epoch, until `epochs` are in its history.

    The loop is yours: its body is the callback, `break` is early stopping. Torch's
    global generators are seeded before every step by (seed, step), and random and
    numpy.random for a loader that is not make_loader's, so that what is drawn is the
    same after a resume; a step of your own should draw from torch.

    step(state, batch, loss_fn=, forward=) is one update, and returns the state with
    step + 1 and the batch's totals, which run adds to the sums. loss_fn serves train and
    val: for a loss that only trains, write a step that calls train_step with it, as run
    passes its own to a partial. A row's lr is that of its epoch, or with per_step that
    of the next step. Raises FloatingPointError for a loss or parameters of NaN. Source:
    tutorial 3.5.

    >>> model = nn.Linear(1, 1)
    >>> state = make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    >>> for state in run(state, [make_data()], loss_fn=nn.L1Loss(), epochs=3):
    ...     print(state.history[-1]["epoch"], state.step)
    1 1
    2 2
    3 3
    """
    _check_type("state", state, State)
    with _process_group(), _distributed(state) as start:
        options = (train, val, loss_fn, epochs, forward, metrics, step, seed)
        for now, _, _ in _steps(start, *options):
            yield now._replace(model=state.model)


def _steps(
    state, train, val, loss_fn, epochs, forward, measure, step, seed,
    stop=None, save_every=None, signals=(),
):  # fmt: skip
    """Yield (state, whether an epoch is finished, signal or 0).

    It does so after an epoch, when a save is due, and at a signal.
    signals is a list that a signal handler fills. What happens to a batch:

        step -> totals of this rank -> _all_reduce -> totals of all ranks -> sums
        and at the end of the epoch: _means(sums), evaluate -> row -> history
    """
    device, ddp, rank = _device(state.model), _find_ddp(state.model), _rank()
    pending = []  # totals that no message between processes has carried yet
    every = 1  # steps from one message to the next
    _check_schedule(state, train, epochs)
    _check_same(ddp, state, train, val)

    def signalled():
        return _all_reduce(ddp, {}, [], signals)[1]

    while len(state.history) < epochs:
        # first, so that a finished run stays finished when it is resumed
        if stop and _broadcast(stop(state.history)):
            return
        epoch, begun, from_step = len(state.history), time.perf_counter(), state.step
        # the step at which the epoch began: a resume may be further on
        first = state.history[-1]["step"] if epoch else 0
        # a train() of the user's own decides; torch's would unfreeze parts in eval mode
        modules = list(unwrap(state.model).modules())
        own_train = any(type(m).train is not nn.Module.train for m in modules)
        if own_train or not modules[0].training:
            state.model.train()

        for batch in _batches(train, epoch, state.step - first, ddp, seed):
            # what the step draws, such as a dropout, is another on every rank
            _seed(device, seed, state.step, rank)
            before = state
            state, totals = step(before, batch, loss_fn=loss_fn, forward=forward)
            pending.append(totals)
            # in place of the step's own sums, which are this rank's only
            sums, number = before.sums, 0
            due = save_every and state.step % save_every == 0
            if ddp is None or due or state.step % every == 0:
                sums, number = _all_reduce(ddp, sums, pending, signals)
            state = state._replace(sums=sums)
            # elsewhere than on a CPU, reading the loss synchronises
            if device == CPU or state.step % 100 == 0:
                _check_loss(state, sums.get("loss", 0.0))
            if due or number:
                yield state, False, number

        if state.step == first:
            raise ValueError(f"train must give batches, got none in epoch {epoch + 1}")
        state = state._replace(sums=_all_reduce(ddp, state.sums, pending, ())[0])
        if epoch + 1 == epochs:
            _check_parameters(state)

        # the row; where the schedule advances by step, the rate is the next step's
        lr = float(state.optimizer.param_groups[0]["lr"])
        row = {"epoch": epoch + 1, "step": state.step, "lr": lr}
        row |= _means(state.sums, "train_")
        _check_loss(state, row["train_loss"])

        for buffer in ddp.buffers() if ddp else ():  # BatchNorm's differ by rank
            dist.broadcast(buffer.detach(), 0)

        if val is not None:
            options = (val, loss_fn, forward, measure, epoch, signalled)
            scores = _evaluate(state.model, *options)
            if scores is None:  # a resume validates again
                yield state, False, signalled()
                return
            row |= {f"val_{key}": value for key, value in scores.items()}
        row["seconds"] = time.perf_counter() - begun
        # rank 0's row on every rank: nothing may depend on rounding or clocks
        row = _broadcast(row)
        # no update, no schedule: fp16 may have skipped every step of the epoch
        if state.scheduler and not state.per_step and row.get("train_skipped") != 1:
            _advance(state.scheduler, row.get("val_loss", row["train_loss"]))
        state = state._replace(sums={}, history=(*state.history, row))
        # between processes a message costs as much as a small step: ten in a second
        every = max(1, int((state.step - from_step) / row["seconds"] / 10))
        yield state, True, signalled()


def _check_schedule(state, train, epochs):
    """Raise before training, rather than at its end, for a schedule that is too short."""
    total = getattr(state.scheduler, "total_steps", None)  # OneCycleLR's
    if total and state.per_step:
        needed = epochs * (_count(train) or 0)
        if needed > total:
            fix = f"but {epochs} epochs have {needed}: make it with that total_steps"
            raise ValueError(f"the schedule has {total} steps, {fix}")


def _count(batches):
    """How many there are; None where that is not known."""
    with suppress(TypeError):  # which a DataLoader of an IterableDataset raises
        return len(batches)


def _check_loss(state, loss):
    """Raise once the loss is NaN or infinite, or fp16 finds no scale that serves."""
    loss = float(loss)
    if not math.isfinite(loss):
        _raise_not_finite(state, f"the loss became {loss}")
    # fp16 halves its scale at every NaN, from 2**16: it is lost at 2**-40
    if state.scaler.is_enabled() and state.scaler.get_scale() < 2.0**-40:
        _raise_not_finite(state, "the gradient became NaN or infinite in every step")


def _check_parameters(state):
    """Raise if a parameter is NaN or infinite: the next loss would tell, too late."""
    for name, p in unwrap(state.model).named_parameters():
        if not p.isfinite().all():
            _raise_not_finite(state, f"{name} has NaN or infinite values")


def _raise_not_finite(state, problem):
    lr = float(state.optimizer.param_groups[0]["lr"])
    epoch = len(state.history) + bool(state.sums)  # the running one, or the last
    raise FloatingPointError(
        f"{problem} in epoch {epoch}, by step {state.step}: look for NaN in the data or "
        f"weights of 0, lower the learning rate ({lr:g}), clip the gradient or "
        "standardise the inputs"
    )


def _batches(loader, epoch=None, start=0, ddp=None, seed=None):
    """Yield the batches of an epoch, which the loader is told, from number `start` on.

    make_loader's begins there; any other is read up to there, and seeded by (seed,
    epoch, number) before each batch. Between processes a batch is this rank's part.
    """
    if isinstance(loader, Tensor | tuple):  # the data themselves
        kind = type(loader).__name__
        raise TypeError(f"a loader must give batches, got a {kind}: make_loader(data)")

    own = _is_own(loader)
    if own:
        sampler = loader.sampler
        if epoch is None:
            epoch = sampler.upcoming[0]
        sampler.upcoming = epoch, start, ddp and _rank_rows
    else:
        _tell_epoch(loader, epoch, ddp)
    reseeds = seed is not None and not own
    if reseeds:
        _seed(CPU, seed, epoch, -1, python_too=True)

    if own and isinstance(loader.dataset, _Tensors) and not loader.num_workers:
        # 40 µs a batch faster than a DataLoader
        batches = map(loader.dataset.__getitem__, sampler)
    else:
        batches = iter(loader)
    try:
        for number, batch in enumerate(batches, start if own else 0):
            if number >= start:
                if ddp:  # train_step asks for its rows in _count_rows
                    ddp.rows, batch = _rank_part(loader, epoch, number, batch)
                yield batch
            if reseeds:  # for what the loader draws next
                _seed(CPU, seed, epoch, number, python_too=True)
    finally:
        if ddp:
            ddp.rows = None


def _tell_epoch(loader, epoch, ddp):
    """Tell the epoch to a loader, its samplers and its datasets, however deep they are."""
    parts = [loader]
    for part in parts:  # which grows meanwhile
        for name in ("sampler", "batch_sampler", "dataset"):
            inner = getattr(part, name, None)
            if inner is not None and all(inner is not known for known in parts):
                parts.append(inner)
        if epoch is not None and hasattr(part, "set_epoch"):
            part.set_epoch(epoch)
        if ddp and hasattr(part, "num_replicas"):
            fix = "the batches are divided already, so leave the DistributedSampler out"
            raise ValueError(
                f"a loader must give every process the same batches: {fix}"
            )


def _is_own(loader):
    """Whether make_loader made it."""
    # a wrapper may hand on its attributes, and give other batches
    return type(loader) is DataLoader and isinstance(loader.sampler, _BatchSampler)


def fit(
    state: State,
    train: Iterable[Batch],
    val: Iterable[Batch] | None = None,
    *,
    loss_fn: LossFn,
    epochs: int,
    forward: Forward = _forward,
    metrics: Any = None,
    step: Callable = train_step,
    seed: int = 0,
    stop: Callable[[Sequence[Row]], bool] | None = None,
    best: Callable[[Sequence[Row]], bool] | None = None,
    on_epoch: Callable[[State], Any] | None = None,
    checkpoint: str | Path | None = None,
    save_every: int | None = None,
) -> State:
    """Train until `epochs` epochs are done in all, also after a resume.

    stop(history) ends the run early; on_epoch(state) watches it, before the epoch is
    saved. What that changes beside values, such as requires_grad, a resumed script has to
    change again. Parts of the model that are in eval mode stay so, unless it has a train()
    of its own. checkpoint names a folder, which then holds last.pt, written after every
    epoch and every save_every steps, and best.pt, of the last epoch for which
    best(history) was true (None: is_best). With checkpoint, in the main thread, a first
    SIGINT or SIGTERM finishes the step, saves, and raises KeyboardInterrupt or
    SystemExit(143); a second one acts at once. Files are written by a background
    thread, of a copy, and are there when fit returns. The config of the state that
    on_epoch gets has "epochs" too.

    Under torchrun fit trains in all processes together: a batch is divided among them,
    and rank 0 writes and calls on_epoch.

    Raises FileExistsError when the folder holds a run that state does not continue,
    BlockingIOError while another process trains into it, and FloatingPointError when
    the loss or a parameter becomes NaN or infinite. Source: tutorial 3.5, 6.

    >>> model = nn.Linear(1, 1)
    >>> state = make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    >>> state = fit(state, [make_data()], loss_fn=nn.L1Loss(), epochs=3)
    >>> [row["epoch"] for row in state.history]
    [1, 2, 3]
    """
    _check_type("state", state, State)
    best, folder = best or is_best, Path(checkpoint) if checkpoint else None
    options = (train, val, loss_fn, epochs, forward, metrics, step, seed)
    writes: Iterable = ()  # those of the last save
    number = 0  # of a signal

    with ExitStack() as stack:
        stack.enter_context(_process_group())
        # until all ranks end: a rank's own may come after it has heard of another's
        signals = stack.enter_context(_signal_handlers()) if folder else []
        now = start = stack.enter_context(_distributed(state))
        # only rank 0 touches files
        if folder and _rank() == 0:
            stack.enter_context(_locked(folder))
            _check_continues(state, folder / "last.pt")
        writer = stack.enter_context(ThreadPoolExecutor(1))

        for now, finished, number in _steps(start, *options, stop, save_every, signals):
            if finished and on_epoch and _rank() == 0:
                config = now.config | {"epochs": epochs}  # for progress
                on_epoch(now._replace(model=state.model, config=config))
            if folder:
                _check_parameters(now)  # on every rank, or the others would wait
            if folder and _rank() == 0:
                is_new_best = finished and best(now.history)
                # last.pt comes last: a resume from it would not write best.pt again
                names = ("best.pt", "last.pt") if is_new_best else ("last.pt",)
                write = partial(_write, content=_pack(now))
                list(writes)  # waits, and raises what the writing has raised
                writes = writer.map(write, [folder / name for name in names])
            if number:
                break
        list(writes)

    # all is saved, and all handlers are as they were
    number = number or sum(signals)  # the one, if any, that came after the last step
    if number:
        last = f"{folder}/last.pt"
        continue_by = f"continue with load_checkpoint(state, {last!r}) and fit again"
        _raise_for_signal(number, f"saved in {last}: {continue_by}")

    return now._replace(model=state.model)


def _check_continues(state, last):
    """Raise if the file is of a run that the state does not continue."""
    if not last.exists():
        return
    saved = read_checkpoint(last)
    rows = saved["history"]
    # by repr, where NaN equals NaN
    if saved["step"] > state.step or repr(rows) != repr([*state.history[: len(rows)]]):
        fix = f"load_checkpoint(state, {str(last)!r}) continues it"
        raise FileExistsError(f"{last} is of another run: {fix}; or take a new folder")


@contextmanager
def _locked(folder):
    """Refuse a folder in use by a living process; the lock ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"{folder} is in use by another process: name another folder"
            raise BlockingIOError(message) from None
        for leftover in folder.glob(".*.tmp"):  # of a killed process
            leftover.unlink()
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # which a loader's workers may hold too
        os.close(descriptor)


SIGNALS = signal.SIGINT, signal.SIGTERM


@contextmanager
def _signal_handlers():
    """A list that takes the first signal; the second one acts at once."""
    signals = []

    def handle(number, frame):
        if signals:
            _raise_for_signal(number, "not saved")
        signals.append(number)

    with ExitStack() as stack:
        with suppress(ValueError):  # only the main thread can
            for number in SIGNALS:
                before = signal.signal(number, handle)
                stack.callback(signal.signal, number, before)
        yield signals


def _raise_for_signal(number, message):
    """Raise what ends a script with the status that a shell gives to the signal."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt(message)
    ending = SystemExit(message)
    ending.code = 128 + number
    try:
        raise ending
    finally:  # else it and its traceback would keep the loaders and their workers alive
        del ending


# ----------------------------------------- several processes, started by torchrun
#
# Every process has all the data and the same loaders. fit and run divide each batch by
# rows among the ranks, and DistributedDataParallel averages the gradients. In one
# process `ddp` is None, and these functions hand on what they are given.


def _has_processes():
    """Whether this process is in a group."""
    return dist.is_available() and dist.is_initialized()


def _find_ddp(model):
    """The DistributedDataParallel module in the model, where there are processes."""
    if not _has_processes():
        return None
    ddps = (m for m in model.modules() if isinstance(m, DistributedDataParallel))
    return next(ddps, None)


def _rank():
    """This process's rank."""
    return dist.get_rank() if _has_processes() else 0


def _rank_rows(begin, end):
    """Where this rank's rows begin and end among those of a batch."""
    n, rank, world = end - begin, dist.get_rank(), dist.get_world_size()
    return begin + n * rank // world, begin + n * (rank + 1) // world


def _rank_part(loader, epoch, number, batch):
    """(the rows of this rank, the ranks' mean), and this rank's part of the batch.

    A rank without rows gets one all the same, to take part in the all-reduce with.
    """
    own = _is_own(loader)  # such a loader has read this rank's rows only
    begin, end = 0, 0
    if own:
        _, begin, end = loader.sampler.position(epoch, number)
    else:
        _, end = _place(batch)
    first, last = _rank_rows(begin, end)
    if not own:
        batch = _cut(batch, first, max(last, first + 1))

    return (last - first, (end - begin) / dist.get_world_size()), batch


def _count_rows(ddp, rows):
    """The rows of this rank's batch that count, and the mean over the ranks."""
    if ddp is None:
        return rows, rows
    # run says so; in a loop of one's own the ranks ask each other
    return getattr(ddp, "rows", None) or (rows, float(_rank_mean(ddp, rows)))


def _rank_mean(ddp, number):
    """The mean of the ranks' numbers."""
    if ddp is None:
        return number
    total = torch.tensor(float(number), dtype=torch.float64, device=_device(ddp))
    dist.all_reduce(total)
    return total / dist.get_world_size()


def _all_reduce(ddp, sums, pending, signals):
    """The sums with all ranks' pending totals, and the signal that any rank has got.

    Between processes it is one message; on a GPU it waits for the steps.
    """
    number = signals[0] if signals else 0
    if ddp:
        values = [float(number == known) for known in SIGNALS]
        for totals in pending:
            values += map(float, totals.values())
        message = torch.tensor(values, dtype=torch.float64, device=_device(ddp))
        dist.all_reduce(message)
        interrupted, terminated, *values = message.tolist()
        number = SIGNALS[0] if interrupted else SIGNALS[1] if terminated else 0
        values = iter(values)
        pending[:] = [dict(zip(totals, values)) for totals in pending]

    for totals in pending:
        sums = _add(sums, totals)
    pending[:] = []
    return sums, number


def _gather_evaluation(totals, pairs, device):
    """The totals and the outputs of all ranks, in the order of one process."""
    numbers = {key: float(value) for key, value in totals.items()}
    pairs = _map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, pairs)
    ranks, totals = _all_gather((numbers, pairs)), {}

    for rank_totals, _ in ranks:
        totals = _add(totals, rank_totals)

    # rank 0's rows of a batch come before rank 1's: None where a rank has none
    ordered = []
    for batch in zip(*(rank_pairs for _, rank_pairs in ranks)):
        ordered += [_place(pair, device)[0] for pair in batch if pair is not None]

    return totals, ordered


def _broadcast(value):
    """Rank 0's value, on every rank."""
    box = [value]
    if _has_processes():
        dist.broadcast_object_list(box)
    return box[0]


def _check_same(ddp, state, *loaders):
    """Raise on every rank if one is elsewhere, or has longer loaders, and would wait."""
    if ddp is None:
        return
    sizes = [state.step, len(state.history)]
    for loader in loaders:
        sizes += _count(loader), _count(getattr(loader, "dataset", None))

    ranks = _all_gather(sizes)
    if ranks.count(sizes) < len(ranks):
        what = "step, epochs, and batches and rows of their loaders"
        raise ValueError(f"all processes must have the same {what}, got {ranks}")


def _all_gather(value):
    """The ranks' values, on every rank."""
    ranks = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, value)
    return ranks


@contextmanager
def _distributed(state):
    """Where there are processes, the state with its model in DistributedDataParallel."""
    model = state.model
    if _has_processes():
        # gloo's threads would abort a process that ends while they hold tensors
        atexit.unregister(time.sleep)
        atexit.register(time.sleep, 0.05)
        if not _find_ddp(model):
            # buffers are broadcast once an epoch, not at every step
            model = DistributedDataParallel(model, forward_sync_buffers=False)

    try:
        yield state._replace(model=model)
        _broadcast(None)  # waits until rank 0 has written its files
    finally:
        # else destroying the group, which they own, would deadlock
        if model is not state.model:
            del model.logger, model.reducer, model.process_group


@contextmanager
def _process_group():
    """A process group, where torchrun started several processes and there is none.

    It ends with its block: if one rank leaves that by an error, the others fail too, and
    do not wait; and afterwards each process works by itself.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _has_processes():
        yield
        return
    # imported later, it would hold on to the group
    importlib.import_module("torch.distributed.nn")
    store, rank, world = next(dist.rendezvous("env://"))
    # its groups, and those of processes before a restart, are told apart by their keys
    nth = store.add(f"kit/{rank}", 1)
    store = dist.PrefixStore(f"kit/{nth}", store)
    dist.init_process_group(store=store, rank=rank, world_size=world)

    try:
        yield
    finally:
        dist.destroy_process_group()


# ---------------------------------------------------------------- 7 techniques


def amp(model: nn.Module, precision: str) -> nn.Module:
    """The model with its forward under autocast, "bf16" or "fp16".

    What it returns in that precision becomes float32. For fp16, make_state adds the
    GradScaler. Checkpoints do not show the wrap. GPUs that only emulate bf16 (before
    Ampere) are slow at it: take fp16 there. Raises RuntimeError on a device without
    autocast. Source: tutorial 7.1.

    >>> amp(nn.Linear(2, 1), "bf16")(torch.ones(3, 2)).dtype
    torch.float32
    """
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in dtypes:
        raise ValueError(f"precision must be bf16 or fp16, got {precision!r}")
    dtype = dtypes[precision]

    # raises now, rather than in the first step, where the device has no autocast
    torch.autocast(_device(model).type, dtype)
    return _Amp(model, dtype)


class _Amp(nn.Module):
    """Calls the model under autocast."""

    def __init__(self, model, dtype):
        super().__init__()
        self._orig_mod, self.dtype = model, dtype  # named as torch.compile names it

    def forward(self, *args, **kwargs):
        with torch.autocast(_device(self).type, self.dtype):
            outputs = self._orig_mod(*args, **kwargs)

        def to_float32(leaf):  # in which a loss is computed
            low = getattr(leaf, "dtype", None) == self.dtype
            return leaf.float() if low else leaf

        return _map(to_float32, outputs)


def early_stopping(
    history: Sequence[Row],
    *,
    patience: int,
    min_delta: float = 0.0,
    key: str | None = None,
    mode: str | None = None,
) -> bool:
    """Whether the last `patience` epochs brought no value better by min_delta.

    key None: val_loss, or train_loss where nothing is validated. mode "min" or "max"
    says which values are better; it must be given unless key is a loss or an error.
    NaN is no improvement. As a function of the history it needs no saving. Source:
    tutorial 7.5.

    >>> losses = [float("nan"), 1.0, 2.0, 2.0]
    >>> early_stopping([{"val_loss": loss} for loss in losses], patience=2)
    True
    """
    _at_least("patience", patience, 1)
    return len(history) - _best(history, key, mode, min_delta) >= patience


def is_best(
    history: Sequence[Row],
    *,
    key: str | None = None,
    mode: str | None = None,
    min_delta: float = 0.0,
) -> bool:
    """Whether the last epoch has the best value so far, by more than min_delta.

    key and mode are those of early_stopping.

    >>> is_best([{"val_accuracy": 0.8}, {"val_accuracy": 0.9}], key="val_accuracy",
    ...         mode="max")
    True
    """
    best = _best(history, key, mode, min_delta)
    return best > 0 and best == len(history)


def _best(history, key=None, mode=None, min_delta=0.0):
    """The best epoch of the history, counted from 1; 0 while there is none."""
    last = history[-1] if history else {}
    if key is None:
        key = "val_loss" if "val_loss" in last else "train_loss"
    if mode is None and key.endswith(("loss", "mae", "mse")):  # as rmse does
        mode = "min"
    # no guess: that of an accuracy would be found out only at the end
    if mode not in ("min", "max"):
        raise ValueError(f"mode must be min or max for {key}, got {mode!r}")
    if history and key not in last:
        raise ValueError(f"the history has no {key!r}, only {', '.join(last)}")

    best = 0
    lowest = math.inf
    for epoch, row in enumerate(history, 1):
        value = row.get(key, math.nan)  # it may not have been validated
        if mode == "max":
            value = -value
        if value < lowest - min_delta:  # which NaN never is
            best, lowest = epoch, value

    return best


# ------------------------------------------------------------------- 8 metrics


def metrics(prediction: Tensor, target: Tensor) -> dict[str, float]:
    """Float targets: mae, mse, rmse, r2. Integer: accuracy, precision, recall, f1.

    Of a regression, prediction and target have one shape, (N,) or (N, K); r2 is the
    mean over the K columns; it is nan for one sample, and for a constant target 1
    where all is right, else 0. Of a classification, target is (N,) and prediction what
    confusion_matrix takes; precision, recall and f1 are means over the classes that
    occur. All in float64. Source: tutorial 8.1; the conventions are scikit-learn's.

    >>> metrics(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0]))["r2"]
    0.5
    """
    if target.is_floating_point():
        scores = _regression_scores(prediction, target)
    elif prediction.isnan().any():
        return dict.fromkeys(("accuracy", "precision", "recall", "f1"), math.nan)
    else:
        scores = _class_scores(prediction, target)

    return {name: values.mean().item() for name, values in scores.items()}


def _regression_scores(prediction, target):
    """By sample, or by column: metrics takes the means."""
    _check_pair(prediction, target)
    target = target.cpu().double()  # not every device has float64
    error = prediction.cpu().double() - target  # (N, K), and by column from here on
    mse = error.square().mean(0)
    # from the first row, or a constant's would not be exactly 0
    variance = (target - target[0]).var(0, correction=0)
    if len(target) == 1:
        variance *= math.nan
    constant = (variance == 0) & ~mse.isnan()  # of what is NaN r2 is NaN
    r2 = torch.where(constant, (mse == 0).double(), 1 - mse / variance)

    return {"mae": error.abs(), "mse": mse, "rmse": mse.mean().sqrt(), "r2": r2}


def _class_scores(prediction, target):
    """By class, of those that occur: metrics takes the means."""
    counts = confusion_matrix(prediction, target).cpu().double()
    right, predicted, true = counts.diag(), counts.sum(0), counts.sum(1)
    both = predicted + true

    scores = {"accuracy": right.sum() / counts.sum()}
    out_of = {"precision": predicted, "recall": true, "f1": both / 2}
    for name, count in out_of.items():
        each = right / count.clamp(min=1)  # 0 for a class that is never predicted
        scores[name] = each[both > 0]

    return scores


def confusion_matrix(prediction: Tensor, target: Tensor) -> Tensor:
    """Counts (C, C) of samples, a row for each true class, a column for each predicted.

    target: class numbers (N,). prediction: class numbers (N,), scores (N, C), or logits
    (N, 1) or (N,) of class 1.

    >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])).tolist()
    [[1, 1], [0, 1]]
    """
    if prediction.isnan().any():
        raise ValueError("prediction must be numbers, got NaN")
    classes = 0  # as many as occur
    if prediction.ndim > target.ndim and prediction.shape[1] > 1:  # scores
        classes, prediction = prediction.shape[1], prediction.argmax(1)
    elif prediction.is_floating_point():  # logits of class 1
        if prediction.ndim > target.ndim:
            prediction = prediction.squeeze(1)
        classes, prediction = 2, prediction > 0
    _check_pair(prediction, target)

    pairs = torch.stack([target, prediction]).long()
    low, high = pairs.aminmax()
    classes = classes or int(high) + 1
    if low < 0 or high >= classes:
        must = f"must be from 0 to {classes - 1}"
        raise ValueError(f"class numbers {must}, got {low} to {high}")

    # each pair of classes as one number
    numbers = (pairs[0] * classes + pairs[1]).flatten()
    return numbers.bincount(minlength=classes**2).view(classes, classes)


def _check_pair(prediction, target):
    """Raise unless there are samples, and both have one shape: they would broadcast."""
    if prediction.shape != target.shape or not target.numel():
        raise ValueError(
            "prediction must be a row or more, of the target's shape "
            f"{tuple(target.shape)}, got {tuple(prediction.shape)}"
        )


# --------------------------------------------------------------------- 9 watch

_printed = [math.inf, 0.0]  # the epoch that progress has printed last, and when


def progress(state: State, *, epochs: int | None = None) -> None:
    """Print the last epoch's losses and the time so far; for on_epoch=.

    At most a line a second, and the last one where epochs (default: that of the
    state's config) is known; a terminal's line is rewritten.

    >>> model = nn.Linear(1, 1)
    >>> state = make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    >>> row = {"epoch": 1, "train_loss": 0.5, "seconds": 2.0}
    >>> progress(state._replace(history=(row,)), epochs=1)
    epoch 1/1  train_loss 0.5  2.0 s
    """
    row = state.history[-1]
    epoch, epochs = row["epoch"], epochs or state.config.get("epochs")
    last_epoch, last_time = _printed
    now = time.monotonic()
    same_run = epoch > last_epoch
    if same_run and now - last_time < 1 and epoch != epochs:
        return

    line = f"epoch {epoch}"
    if epochs:
        line += f"/{epochs}"
    for key, value in row.items():
        if key.endswith("_loss"):
            line += f"  {key} {value:.4g}"
    seconds = sum(row["seconds"] for row in state.history)
    if same_run:  # go one line up, and clear it
        line = f"\x1b[A\x1b[K{line}"
    click.echo(f"{line}  {seconds:.1f} s")  # which drops the codes for a file or a pipe
    _printed[:] = epoch, now


def plot_history(history: Sequence[Row]) -> Any:
    """A matplotlib Figure of the losses, every metric and the learning rate by epoch.

    Train and val share a panel; of mse and rmse only the latter is drawn, and a rate
    only if it changes. The best epoch is marked, and a scale is logarithmic where
    values span more than a factor of 20. Source: tutorial 3.4.

    >>> plot_history([{"epoch": 1, "train_loss": 2.0, "lr": 0.1}]).savefig("curve.png")
    """
    _at_least("rows of history", len(history), 1)
    panels: dict = {"loss": {}}  # measure -> column -> values; the loss comes first
    for key in dict.fromkeys(itertools.chain(*history)):
        values = [row.get(key, math.nan) for row in history]
        measure = key.removeprefix("train_").removeprefix("val_")
        constant = measure == "lr" and len(set(values)) == 1
        if measure not in ("epoch", "step", "seconds") and not constant:
            panels.setdefault(measure, {})[key] = values
    if "rmse" in panels:
        panels.pop("mse", None)

    best = _best(history)
    epochs = [row["epoch"] for row in history]
    figure = _figure(2 + 2.5 * len(panels))
    grid = figure.subplot_mosaic([[measure] for measure in panels], sharex=True)
    for measure, axes in grid.items():
        for key, values in panels[measure].items():
            axes.plot(epochs, values, label=key, linewidth=1, alpha=0.8)
        low, high = axes.dataLim.intervaly  # of what is finite
        if 0 < 20 * low < high:
            axes.set_yscale("log")
        if best:
            epoch = epochs[best - 1]
            label = f"best epoch: {epoch}"
            axes.axvline(epoch, label=label, color="gray", linestyle=":")
        axes.set_ylabel(measure)
        axes.legend()
    figure.supxlabel("epoch")

    return figure


def plot_predictions(
    train: Batch, test: Batch, prediction: Tensor | None = None
) -> Any:
    """A matplotlib Figure: training data blue, test data green, prediction red.

    train and test are (inputs (N, 1), targets (N, 1)); prediction is (N, 1), for the
    test inputs. Source: tutorial 1.5.

    >>> train, test = split(make_data())
    >>> plot_predictions(train, test, test[1] + 0.1).savefig("line.png")
    """
    figure = _figure(7)
    axes = figure.subplots()
    axes.scatter(*train, color="blue", label="training data")
    axes.scatter(*test, color="green", label="test data")
    if prediction is not None:  # smaller, so that the targets show behind it
        axes.scatter(test[0], prediction, s=8, color="red", label="prediction")
    axes.set(xlabel="input", ylabel="target")
    axes.legend()

    return figure


def _figure(height):
    """A Figure without pyplot: nothing global, no window, no display needed."""
    module = _import_extra("matplotlib.figure", "plots need", "matplotlib")
    return module.Figure(figsize=(10, height), layout="constrained")


def _import_extra(module, what, *packages):
    """The module; where it is missing, the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        fix = f"pip install {' '.join(packages)}"
        raise ImportError(f"{what} {module.partition('.')[0]}: {fix}") from None


# ------------------------------------------------------------------- 10 export


def export(
    model: nn.Module,
    path: str | Path,
    *,
    example: Tensor,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write the model to an .onnx or .pt2 file that takes batches of any size.

    example is a batch of inputs (N, ...). The unwrapped model is exported in eval mode,
    for the CPU, its input named "input", its output "output"; metadata's values become
    JSON. What was made is loaded by onnxruntime, or by torch, and given 1, N and N + 1
    rows: no output may differ by more than 1e-4 of the largest, plus 1e-6. Only then is
    it written. Source: tutorial 10.1.

    Raises ValueError when torch cannot export the model, or the numbers differ.

    >>> export(nn.Linear(2, 1), "plane.pt2", example=torch.rand(8, 2)).name
    'plane.pt2'
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"path must be an .onnx or .pt2 file, got {path}")
    _check_type("example", example, Tensor)
    _at_least("rows of example", len(example), 1)
    if path.suffix == ".onnx":
        for package in ("onnxscript", "onnxruntime"):
            _import_extra(package, ".onnx needs", "onnxscript", "onnxruntime")

    # a row more than the example has, whose number might be taken for a constant
    rows = torch.cat([example, example[:1]]).cpu()
    disabled = logging.root.manager.disable
    logging.disable()
    # stack traces would go into the file, with the paths of this machine
    torch.fx.config.do_not_emit_stack_traces = True
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stderr(io.StringIO()):
            # in a Sequential, whose one argument is named input
            model = nn.Sequential(copy.deepcopy(unwrap(model))).cpu().eval()
            model.requires_grad_(False)
            # an example that does not fit is told by the model itself
            _check_type("its output", model(rows[1:].clone()), Tensor)
            content, exported = _convert(model, rows, path.suffix, metadata or {})
            for batch in (rows[:1], rows[1:], rows):
                outputs = model(batch.clone())  # a model may change its batch
                difference = (exported(batch) - outputs).abs().max()
                # "not <=", so that NaN fails too
                if not difference <= 1e-4 * outputs.abs().max() + 1e-6:
                    raise ValueError(f"its output differs by {difference:.3g}")
    except Exception as error:  # exporters raise many types
        cause: BaseException = error
        while cause.__cause__:
            cause = cause.__cause__
        reason = " ".join(str(cause).split())  # they have many lines
        raise ValueError(f"{path} was not written: {reason:.250}") from error
    finally:
        logging.disable(disabled)
        torch.fx.config.do_not_emit_stack_traces = False

    return _write(path, content)


def _convert(model, rows, suffix, metadata):
    """A file's content, and the function that its runtime makes of it."""
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    shapes = ({0: torch.export.Dim("batch")},)
    # zeros, for they are saved too; one row would fix the number of rows
    traced = torch.zeros_like(rows[:2])
    program = torch.export.export(model, (traced,), dynamic_shapes=shapes)

    if suffix == ".pt2":
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files=texts)
        return buffer.getvalue(), torch.export.load(buffer).module()

    exported = torch.onnx.export(
        program,
        dynamic_shapes=shapes,
        output_names=["output"],
        verbose=False,
    )
    exported.model.metadata_props.update(texts)
    content = exported.model_proto.SerializeToString()
    return content, lambda rows: exported(rows)[0]  # by onnxruntime


# ------------------------------------------------ 11 tables and the command line


class Table(NamedTuple):
    """Rows read from a file, as numbers."""

    inputs: Tensor  # float32 (N, columns); NaN: a gap; of a category its code, -1: none
    targets: Tensor | None  # float32 (N, 1), or class numbers int64 (N,)
    columns: tuple[str, ...]  # the names of the inputs' columns
    categories: dict[str, tuple[str, ...]]  # column -> its categories, by code
    classes: tuple[str, ...]  # by number; () where the target is a number
    skipped: tuple[str, ...] = ()  # what was left out, and why


def read_table(
    path: str | Path,
    *,
    target: str | None = None,
    drop: Sequence[str] = (),
    task: str | None = None,
    like: Table | None = None,
) -> Table:
    r"""Read a .csv, .tsv or .parquet file by pandas; its first line is a header.

    Numbers, with a decimal point, and booleans stay numbers, text becomes the codes of
    its categories; both may have gaps, also written as ?, - or a point. A column that
    only counts the rows is left out. A target of text, booleans or at most 20 different
    whole numbers is a classification, else a regression; task says otherwise. like is an
    earlier Table, to read a file as it was.

    Raises ValueError for columns of dates, or of text with mostly distinct values.

    >>> size = Path("houses.csv").write_text("rooms,kind,price\n3,a,200.5\n,b,250.5\n")
    >>> table = read_table("houses.csv", target="price")
    >>> table.inputs.tolist(), table.categories
    ([[3.0, 0.0], [nan, 1.0]], {'kind': ('a', 'b')})
    """
    path = Path(path)
    # 1. the rows; what was text in the first file may be numbers in this one
    texts = dict.fromkeys(like.categories, str) if like else None
    frame = _read_frame(path, dtype=texts, na_values=["?", "-", "."])
    # to types that know gaps: beside a gap, 3 stays a whole number and True a boolean
    frame = frame.convert_dtypes()

    targets = [target] if target else []
    for name in (*(like.columns if like else drop), *targets):
        if name not in frame:
            raise ValueError(
                f"{path.name} has no column {name}, only: {', '.join(frame)}"
            )

    # 2. what the columns are; rows without a target teach nothing
    kept = frame.dropna(subset=targets)
    table = like
    if table is None:
        inputs = kept.drop(columns=[name for name in drop if name != target])
        table = _learn_table(path, inputs, target, task)
    if kept.empty or not table.columns:
        raise ValueError(f"{path.name} has no rows, or no column of inputs")
    skipped = tuple(table.skipped)
    note = f"{len(frame) - len(kept)} rows without {target}"
    if len(kept) < len(frame) and note not in skipped:  # of a file that is read again
        skipped += (note,)

    # 3. the numbers
    y = None
    if target:
        y = torch.tensor(_encode(path, kept[target], table.classes))
        if not table.classes:
            y = y.float()[:, None]
        elif y.min() < 0:  # a class that the first file did not have
            raise ValueError(
                f"{path.name}: {target} must be one of {', '.join(table.classes)}, got "
                f"'{kept[target].iloc[int(y.argmin())]}'"
            )
    columns = [
        _encode(path, kept[name], table.categories.get(name)) for name in table.columns
    ]
    X = torch.from_numpy(np.stack(columns, 1, dtype=np.float32))
    return table._replace(inputs=X, targets=y, skipped=skipped)


def _read_frame(path, **options):
    """The file as a pandas DataFrame, whatever its encoding and its separator."""
    pandas = _import_extra("pandas", "tables need", "pandas")
    if not path.is_file():  # a config may name a device, a pipe or a web address
        raise FileNotFoundError(f"{path} is no file")

    try:
        if path.suffix == ".parquet":
            return pandas.read_parquet(path)
        for encoding in ("utf-8", "cp1252", "latin-1"):  # the last takes any bytes
            read = partial(
                pandas.read_csv,
                path,
                encoding=encoding,
                skipinitialspace=True,
                **options,
            )
            with suppress(UnicodeDecodeError):
                # the separator that finds the most names in the header
                sep = max(",;\t|", key=lambda sep: read(sep=sep, nrows=0).shape[1])
                # it warns where text comes after many rows that it took for numbers;
                # read all at once, which is slower, they are text too
                with suppress(Warning), warnings.catch_warnings(action="error"):
                    return read(sep=sep)
                return read(sep=sep, low_memory=False)
    except Exception as error:  # noqa: BLE001, pandas' own, and what unpacks a file raises
        raise ValueError(
            f"{path.name} cannot be read: {' '.join(str(error).split())}"
        ) from None


_DATE = r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?|\d{1,2}:\d\d.*"


def _learn_table(path, frame, target, task):
    """A Table without rows: which columns are inputs, the names of categories, classes."""
    columns, categories, classes, skipped, refused = (), {}, (), (), []

    if target:
        column = frame.pop(target)
        kind = column.dtype.kind
        number = column.nunique() > 20 if kind in "iu" else kind == "f"
        task = task or ("regression" if number else "classification")
        if task == "classification":
            classes = tuple(_find_names(column))
            if not 2 <= len(classes) <= max(20, len(column) / 2):
                raise ValueError(
                    f"{path.name}: {target} must have 2 classes or more, and 2 rows of each, "
                    f"got {len(classes)} classes in {len(column)} rows: "
                    f"{', '.join(classes):.50}"
                )
        elif task != "regression":
            raise ValueError(f"task must be regression or classification, got {task!r}")

    for name, column in frame.items():
        kind = column.dtype.kind
        if kind in "iu":
            # as behind a comma at the end of every line
            if column.isna().all():
                skipped += (f"{name}, which is empty",)
                continue
            # all 0 for 0, 1, 2 ... and all 1 for 1, 2, 3 ...
            offset = column.to_numpy(float, na_value=-1) - column.index
            counts = (offset == 0).all() or (offset == 1).all()
            # or the index that pandas and R write
            if counts or name in ("rownames", "Unnamed: 0"):
                skipped += (f"{name}, which counts the rows",)
                continue

        columns += (name,)
        if kind not in "iufb":
            names = _find_names(column)
            categories[name] = tuple(names)
            distinct = len(names) > 20 and len(names) > column.count() / 2
            # there may be a slip among the dates
            dates = names.str.fullmatch(_DATE).sum() > 0.9 * len(names)
            if distinct or dates:
                refused.append(name)

    if refused:
        raise ValueError(
            f"{path.name} has columns of dates, or of text with mostly distinct values "
            "(numbers need a decimal point, gaps are empty): leave them out with --drop "
            f"{shlex.quote(','.join(refused))}"
        )
    return Table(None, None, columns, categories, classes, skipped)


def _find_names(column):
    """The different values of a column as text, in the values' order: 2 before 10."""
    return column.drop_duplicates().dropna().sort_values().astype("string")


def _encode(path, column, names):
    """Each value's place among names, -1 where it has none; without names, the number."""
    if names:
        import pandas  # type: ignore[import-untyped]

        return pandas.Index(names).get_indexer(column.astype("string"))

    try:
        return column.astype(float).to_numpy()
    except ValueError as error:
        raise ValueError(f"{path.name}, column {column.name}: {error}") from None


class _Group(click.Group):
    """Turns an error into one line and exit code 1, Ctrl-C into 130."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(130)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except Exception as error:
            text = str(error) or repr(error)
            # printable characters only, for it may quote a stranger's file
            line = "".join(filter(str.isprintable, text.split("\n")[0]))
            raise click.ClickException(line[:400]) from error


@click.group(cls=_Group, context_settings={"show_default": True})
@click.version_option(__version__)
def main() -> None:
    """Train a PyTorch model on the line 0.7 x + 0.3, or on a table of your own."""


def _several(kind, commas=-1):
    """A type of option: several of a kind, such as 64,64, with so many commas or fewer."""

    def values(text):
        return [kind(item) for item in text.split(",", commas)]

    return values


def _read_config(path):
    """Take a config file's values for those that are not typed."""
    read = json.loads
    if not path.endswith(".json"):
        read = _import_extra("yaml", f"{path} needs", "pyyaml").safe_load
    try:
        config = read(Path(path).read_text("utf-8"))
        click.get_current_context().default_map = _as_typed(config)
    except Exception as error:  # noqa: BLE001, many types
        raise click.BadParameter(f"{path}: {' '.join(str(error).split())}") from None


def _as_typed(config):
    """The values of a config as they would be typed, for click to check."""
    known = {option.name for option in _fit_command.params} - {"config"}
    typed = {}

    for name, value in config.items():
        items = value if isinstance(value, list) else [value]
        # a deep nest in a small file, or a text many times, could become a huge one
        plain = all(isinstance(item, str | int | float | None) for item in items)
        if name not in known or not plain or sum(len(str(i)) for i in items) > 1e6:
            raise ValueError(f"{name!r:.50} is no option of fit, or of another type")
        if value is not None:
            typed[name] = ",".join(map(str, items))

    return typed


# what an option means for the line, where that is something else than for a table
LINE = {
    "ratios": [0.8, 0.2],
    "batch_size": 50,
    "model": "linear",
    "loss": "l1",
    "optimizer": "SGD",
    "lr": 0.01,
    "patience": 0,
}


def _option(name, text, kind=str, default=None):
    if name in LINE:
        text += f" For the line {LINE[name]}."
    if isinstance(kind, list):
        kind = click.Choice(kind, case_sensitive=False)
    return click.Option(
        [f"--{name}".replace("_", "-")],
        help=text,
        type=kind,
        default=default,
        is_flag=kind is bool,
    )


# the types of numbers, and the options by group: help, type, default for a table
COUNT, NATURAL = click.IntRange(1), click.IntRange(0)
POSITIVE = click.FloatRange(0, min_open=True)
OPTIONS = {
    "Data": [
        _option("data", "A .csv, .tsv or .parquet.", click.Path(resolve_path=True)),
        _option("target", "The column to predict."),
        _option("drop", "Columns to leave out: A,B.", _several(str.lstrip)),
        _option("task", "Else by the target.", ["regression", "classification"]),
        _option("ratios", "Of train, val, test.", _several(float, 2), "0.7,0.15,0.15"),
        _option("batch_size", "Rows for an update.", COUNT, 32),
        _option("workers", "Processes that load data.", NATURAL, 0),
    ],
    "Model": [
        _option(
            "model",
            "linear, mlp, or MODULE:FUNCTION of (inputs, outputs).",
            default="mlp",
        ),
        _option("hidden", "Of the mlp.", _several(COUNT), "64,64"),
        _option("loss", "Of a regression.", ["l1", "mse", "huber"], "mse"),
        _option("amp", "Mixed precision.", ["bf16", "fp16"]),
        _option("compile", "By torch.compile, for large models.", bool, False),
        _option("device", "auto, cpu, cuda, mps ...", default="auto"),
    ],
    "Training": [
        _option("epochs", "In all, after --resume too.", COUNT, 100),
        _option(
            "optimizer", "What updates the weights.", ["SGD", "Adam", "AdamW"], "Adam"
        ),
        _option("lr", "The learning rate.", POSITIVE, 0.001),
        _option("weight_decay", "As the optimizer has it.", click.FloatRange(0), 0.0),
        _option("scheduler", "Of the rate.", ["step", "cosine", "plateau", "onecycle"]),
        _option("accumulate", "Micro-batches of a batch.", COUNT, 1),
        _option("clip", "The largest norm of the gradient.", POSITIVE),
        _option("patience", "Epochs without improvement; 0: no limit.", NATURAL, 20),
        _option("seed", "Of the split, the weights, the order.", NATURAL, 42),
    ],
    "Run": [
        _option("out", "The run folder; else the next of runs/001, runs/002 ..."),
        _option("resume", "Continue the run in --out.", bool),
        _option("overwrite", "Start anew in a used --out.", bool),
        _option("save_every", "Steps; else every epoch.", COUNT),
        click.Option(
            ["--config"],
            type=_read_config,
            is_eager=True,
            metavar="FILE",
            help="A .json or .yaml of these options.",
        ),
        _option("quiet", "Print nothing but errors.", bool),
    ],
}


# what may change in a resumed run, as may epochs, except with cosine
FREE = {"patience", "save_every", "device", "workers", "compile"}


class _FitCommand(click.Command):
    """Lists its options by group."""

    def format_options(self, ctx, formatter):
        for title, options in OPTIONS.items():
            with formatter.section(title):
                formatter.write_dl([option.get_help_record(ctx) for option in options])


@main.command("fit", cls=_FitCommand, params=list(itertools.chain(*OPTIONS.values())))
@click.pass_context
def _fit_command(ctx, config, out, resume, overwrite, quiet, **options):
    """Train, and leave last.pt, best.pt, history.csv and config.json in a run folder.

    Example: python -m kit fit --data houses.csv --target price --epochs 50

    Without --data it is the line 0.7 x + 0.3. Under torchrun, its processes train
    together.
    """
    # 1. the run folder
    last = Path(out or "", "last.pt")
    used = bool(out) and last.exists()
    if (used and resume == overwrite) or (resume and not out):
        raise click.UsageError(
            "--out must name a new folder, or one with a run and --resume or --overwrite"
        )

    # 2. the config: that of the run or the line, where nothing else was typed
    source = ctx.get_parameter_source
    typed = {k: v for k, v in options.items() if source(k).name != "DEFAULT"}
    resume = resume and used  # a first start may say --resume too
    base = {} if options["data"] else LINE
    if resume:
        _, saved, _ = _open(last, typed.get("model"))
        base = vars(saved)
        free = FREE if saved.scheduler == "cosine" else FREE | {"epochs"}
        for name in typed.keys() - free:
            if typed[name] != base[name]:
                must = f"must stay {base[name]} in a resumed run"
                raise click.UsageError(f"{name} {must}")
    config = SimpleNamespace(**options | base | typed)
    if bool(config.data) != bool(config.target):
        raise click.UsageError("--data and --target, what to predict, go together")

    # 3. the run
    with _process_group():
        state, fit_run = _build(config)
        if resume:
            state = load_checkpoint(state, last)
        # a folder is claimed once everything else is known to be right
        folder = Path(out or _broadcast(_rank() == 0 and _new_folder()))
        if _rank() == 0:
            with _locked(folder):
                for name in ("last.pt", "best.pt") if overwrite else ():
                    (folder / name).unlink(missing_ok=True)
                plain = {name: getattr(config, name) for name in options}
                (folder / "config.json").write_text(json.dumps(plain, indent=2))
        quiet = quiet or _rank() > 0
        if not quiet:
            click.echo(_headline(config))
        state = _train(state._replace(config=vars(config)), fit_run, folder, quiet)

    # 4. the report
    if quiet:
        return
    if not config.data and config.model == "linear":
        weight, bias = (p.item() for p in unwrap(state.model).parameters())
        click.echo(f"\nweight {weight:.4f} (true: 0.7)\nbias   {bias:.4f} (true: 0.3)")
    click.echo()
    _evaluate_command.callback(folder, None, config.model)
    files = ", ".join(sorted(os.listdir(folder)))
    click.echo(f"\n{len(state.history)} epochs in {folder}: {files}")


def _new_folder():
    """The first of runs/001, runs/002 ... that is free."""
    for number in itertools.count(1):
        with suppress(FileExistsError):
            os.makedirs(f"runs/{number:03}")
            return f"runs/{number:03}"


def _headline(config):
    """What is learned, and what was left out."""
    table, task, what = config.table, "regression", "the line 0.7 x + 0.3"
    if table.classes:
        task = f"classification ({', '.join(table.classes)})"
    if config.data:
        what = f"{config.target}, which --task can change"
    if table.skipped:
        what += f"\nleft out: {'; '.join(table.skipped)}"
    return f"{task} of {what}"


def _train(state, fit_run, folder, quiet):
    """Train; leave history.csv and curves.png, also of a run that is interrupted.

    Of a run that is killed, a resume writes them: last.pt holds the history.
    """
    try:
        return fit_run(state, on_epoch=None if quiet else progress, checkpoint=folder)
    except (KeyboardInterrupt, SystemExit) as ending:
        if _rank() == 0:
            fix = f"python -m kit fit --out {folder} --resume"
            click.echo(f"\ninterrupted: continue with {fix}", err=True)
        raise SystemExit(getattr(ending, "code", 130)) from None
    finally:
        rows = []
        if _rank() == 0 and (folder / "last.pt").exists():
            rows = read_checkpoint(folder / "last.pt")["history"]
        if rows:
            # fp16 may leave out a column in some epochs
            with open(folder / "history.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, rows[0], extrasaction="ignore")
                writer.writeheader()
                writer.writerows(rows)
            with suppress(ImportError):  # without matplotlib there is no picture
                figure = plot_history(rows)
                figure.suptitle(str(folder))
                figure.savefig(folder / "curves.png")


def _load_parts(config):
    """The rows of train, val and test; what its table is like is noted in the config."""
    table, seed = Table(*make_data(), ("x",), {}, ()), None  # the line keeps its order
    if config.data:
        seed = config.seed
        table = read_table(
            config.data,
            target=config.target,
            drop=config.drop or (),
            task=config.task,
            like=getattr(config, "table", None),
        )
    # other rows would be split otherwise, and test rows be trained on
    checksum = zlib.crc32(table.inputs.numpy(), zlib.crc32(table.targets.numpy()))
    if getattr(config, "checksum", checksum) != checksum:
        raise ValueError(f"{config.data} has changed since the run began")
    config.checksum, config.table = checksum, table._replace(inputs=None, targets=None)

    stratify = table.targets if table.classes else None
    parts = split(table[:2], ratios=config.ratios, seed=seed, stratify=stratify)
    return dict(zip(("train", "val", "test"), parts))


def _build(config):
    """The state of a run, and fit with all else that it takes, made of its config."""
    parts = _load_parts(config)
    device = config.device
    if device == "auto":
        device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    if str(device) != "cpu" and _has_processes():  # each has a device of its own
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    torch.manual_seed(config.seed)
    model = _make_model(config, *parts["train"]).to(device)

    train = make_loader(
        parts["train"],
        batch_size=config.batch_size,
        shuffle=True,
        seed=config.seed,
        workers=config.workers,
    )
    fit_run = partial(
        fit,
        train=train,
        val=make_loader(parts["val"], batch_size=4096) if "val" in parts else None,
        loss_fn=_make_loss(config, model),
        epochs=config.epochs,
        metrics=metrics if config.data else None,
        step=partial(train_step, accumulate=config.accumulate, clip=config.clip),
        seed=config.seed,
        stop=partial(early_stopping, patience=config.patience or sys.maxsize),
        save_every=config.save_every,
    )

    optimizer = getattr(torch.optim, config.optimizer)(
        model.parameters(), config.lr, weight_decay=config.weight_decay, fused=True
    )
    steps = config.epochs * len(train)
    scheduler = {
        None: lambda optimizer: None,
        "step": partial(lr_scheduler.StepLR, step_size=30),
        "cosine": partial(lr_scheduler.CosineAnnealingLR, T_max=config.epochs),
        "plateau": lr_scheduler.ReduceLROnPlateau,
        "onecycle": partial(
            lr_scheduler.OneCycleLR, max_lr=config.lr, total_steps=steps
        ),
    }[config.scheduler](optimizer)
    if config.amp:
        model = amp(model, config.amp)
    if config.compile:
        # with dynamic shapes the numbers depend on which batch size came first
        model = torch.compile(model, dynamic=False)
    return make_state(model, optimizer, scheduler=scheduler), fit_run


def _make_model(config, X, y):
    """The model of a config: a table's encoding, layers, the scale of its target."""
    table = config.table
    # an untrusted checkpoint may repeat a column, and with it all its categories
    columns = dict.fromkeys(table.columns)
    counts = [len(table.categories.get(name, ())) for name in columns]
    inputs = sum(max(count, 1) for count in counts)  # a number is one column
    outputs = len(table.classes) or 1

    sizes = [inputs, outputs]
    if config.model == "mlp":
        sizes[1:1] = config.hidden
    model = nn.Sequential()
    if config.data:
        model.append(Standardize(X, categories=counts))
    if config.model in ("linear", "mlp"):
        for a, b in itertools.pairwise(sizes):
            model.extend([nn.Linear(a, b), nn.ReLU()])
        model.pop(-1)  # no ReLU behind the last
    else:
        model.append(_import_model(config.model, inputs, outputs))
    if config.data and not table.classes:
        model.append(Standardize(y, inverse=True))

    # a lazy layer has to see its input, and any may change it
    got = tuple(predict(model, X[:1].clone()).shape)
    if got != (1, outputs):
        raise ValueError(f"--model must give (1, {outputs}) for a row, got {got}")
    return model


def _import_model(name, inputs, outputs):
    """The model that MODULE:FUNCTION makes, looked for in the working folder too."""
    module, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        # a module's name may begin with a number, as those of the recipes do
        return getattr(importlib.import_module(module), function)(inputs, outputs)
    except Exception as error:  # whatever a user's own code may raise
        must = "must be linear, mlp or MODULE:FUNCTION"
        raise ValueError(f"--model {must}, got {name} ({error!r})") from error


def _make_loss(config, model):
    """The loss of a config; a table's regression in standard deviations of the target."""
    if config.table.classes:
        return F.cross_entropy
    loss = getattr(F, f"{config.loss}_loss")
    if not config.data:
        return loss
    std = model[-1].std  # so that a learning rate suits targets of any size
    return lambda prediction, y: loss(prediction / std, y / std)


def _open(run, model_name):
    """The model of a run folder or checkpoint of kit fit, its config and its history.

    The file never says what to import: a model of one's own has to be named again.
    """
    path = Path(run)
    if path.is_dir():
        path = path / "best.pt"
    saved = read_checkpoint(path)
    try:
        config = saved["config"]
        table, checksum = Table(*config.pop("table")), config.pop("checksum")
        # what comes from a stranger is checked like what is typed
        context = _fit_command.make_context("fit", [], default_map=_as_typed(config))
        config = SimpleNamespace(**{name: context.params[name] for name in config})
        config.table, config.checksum = table, checksum
        config.workers, config.compile = 0, False  # no file starts processes
        own = config.model not in ("linear", "mlp")
        if own and config.model != model_name:
            raise ValueError(
                f"its model is your own {config.model!r:.50}: give --model"
            )
        with torch.device("cpu" if own else "meta"):  # where layers take no memory
            X = torch.zeros(1, len(table.columns))
            model = _make_model(config, X, X[:, :1])
        _check_like("model", saved["model"], dict(model.state_dict()))
    except Exception as error:  # noqa: BLE001, many types
        raise ValueError(f"{path} is no run of kit fit: {error!r:.200}") from None

    model.load_state_dict(saved["model"], assign=True)
    return model, config, saved["history"]


_run_argument = click.argument("run", metavar="RUN|CHECKPOINT")
_model_option = click.option("--model", help="MODULE:FUNCTION, where it is your own.")


@main.command("evaluate")
@_run_argument
@click.option("--data", metavar="FILE", help="Else the run's own parts.")
@_model_option
def _evaluate_command(run, data, model):
    """Print the loss and the metrics of a run's best weights, or of a checkpoint's.

    Example: python -m kit evaluate runs/001 --data new.csv
    """
    trained, config, history = _open(run, model)
    if data:
        table = read_table(data, target=config.target or "y", like=config.table)
        parts = {data: table[:2]}
    else:
        parts = _load_parts(config)
    loss_fn, scores = _make_loss(config, trained), []
    for name, part in parts.items():
        loader = make_loader(part, batch_size=4096)
        row = evaluate(trained, loader, loss_fn=loss_fn, metrics=metrics)
        scores.append({"part": name, "rows": len(part[0])} | row)
    click.echo(f"the weights of epoch {len(history)}")
    click.echo(tabulate(scores, "keys", floatfmt=".4g"))


@main.command("predict")
@_run_argument
@click.option("--data", metavar="FILE", required=True, help="With the run's columns.")
@click.option("--output", type=click.File("w", lazy=True), default="-", help="A .csv.")
@click.option("--with-inputs", is_flag=True, help="Write the file's own columns too.")
@_model_option
def _predict_command(run, data, output, with_inputs, model):
    """Predict the rows of a file, in its order; it need not have the target.

    A category that the run has not seen counts as a gap.

    Example: python -m kit predict runs/001 --data new.csv --output predicted.csv
    """
    if Path(output.name).exists() and os.path.samefile(data, output.name):
        raise click.UsageError("--output must be another file than --data")
    trained, config, _ = _open(run, model)
    table = read_table(data, like=config.table)
    outputs = predict(trained, make_loader((table.inputs,), batch_size=4096))
    columns = {"prediction": outputs[:, 0].numpy()}  # of a regression
    if table.classes:
        columns["prediction"] = [table.classes[i] for i in outputs.argmax(1)]
        for name, chances in zip(table.classes, outputs.softmax(1).T.numpy()):
            columns[f"p_{name}"] = chances
    frame = sys.modules["pandas"].DataFrame(columns)
    if with_inputs:  # join refuses a name that is there already
        frame = _read_frame(Path(data), dtype=str, keep_default_na=False).join(frame)
    output.write(frame.to_csv(index=False))

    if not outputs.isfinite().all():
        raise ValueError("some of the predictions are not finite")


@main.command("export")
@_run_argument
@click.argument("file", metavar="FILE.onnx|FILE.pt2")
@_model_option
def _export_command(run, file, model):
    """Write a run's model to a file that works without kit, by ONNX or torch.

    Example: python -m kit export runs/001 houses.onnx
    """
    trained, config, _ = _open(run, model)
    table = config.table
    example = torch.randn(16, len(table.columns))
    if config.data:  # as large as the table's numbers, and codes
        example = example * trained[0].std + trained[0].mean
        example[8:].round_()
    metadata = {
        "target": config.target,
        "columns": table.columns,
        "categories": table.categories,
        "classes": table.classes,
    }
    export(trained, file, example=example, metadata=metadata)
    click.echo(f"{file}: gives the numbers of {run}, for batches of any size")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(prog_name="python -m kit")
