# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.13", "numpy>=2", "click>=8.1", "tabulate>=0.9"]
# ///
"""kit: the training loop you copy. Plain functions for training PyTorch models.

Data flows one way, and no function calls back up:

    loader -> step -> State -> row -> checkpoint

Three axes take the place of a trainer class:

    wrap the model    for what concerns the forward   amp(model, "bf16")
    bind the step     for what concerns the update    partial(train_step, clip=1.0)
    read the history  for what concerns the run       partial(early_stopping, patience=10)

torch updates modules and optimizers in place, and so does kit: a State names them, it
does not copy them. "Pure" here means: no globals, no hidden attributes; all that a
function touches is in its signature.

The sections carry the numbers of the tutorial, the recipes and the tests:

    1 data   2 model   3 train   4 evaluate   5 checkpoint   6 together
    7 techniques   8 metrics   9 watch   10 export   12 troubleshooting
    11 command line
"""

from __future__ import annotations

import atexit
import copy
import csv
import difflib
import importlib
import io
import json
import logging
import math
import mmap
import os
import pickle
import random
import re
import signal
import struct
import sys
import textwrap
import threading
import time
import warnings
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, suppress
from functools import partial
from itertools import chain, islice, pairwise
from multiprocessing.util import Finalize
from pathlib import Path
from types import FunctionType
from typing import IO, Any, NamedTuple

import click
import numpy as np
import torch
import torch.distributed as dist
from click.core import ParameterSource
from numpy.lib import format as npy
from tabulate import tabulate
from torch import Tensor, nn
from torch.multiprocessing import get_start_method
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    Subset,
    TensorDataset,
    default_collate,
)

sys.modules.setdefault("kit", sys.modules[__name__])  # python -m kit is this kit too

__version__ = "0.1.0"

Batch = tuple[Any, Tensor]  # inputs (N, ...) or a dict of such, targets (N, ...)
Sums = dict[str, Any]  # totals over samples, and "weight", which divides them
Row = dict[str, float]  # one finished epoch
LossFn = Callable[[Tensor, Tensor], Any]  # mean over samples, or (total, weight)

CPU = torch.device("cpu")
FLOAT32_MAX = torch.finfo(torch.float32).max

_has_group: Callable[[], bool] = dist.is_initialized if dist.is_available() else bool

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
    _at_least("n", n, 1)
    X = torch.arange(n)[:, None] / n
    y = weight * X + bias
    if noise:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        y += noise * torch.randn(X.shape, generator=generator)
    return X, y


class Table(NamedTuple):
    """Rows read from a file."""

    X: Tensor  # (N, ...) float32
    y: Tensor | None  # float32 (N, 1), or class numbers int64 (N,)
    columns: tuple[str, ...]  # the names of X's columns
    classes: tuple[str, ...] = ()  # the names of the classes; () where y is a number


def read_table(
    path: str | Path,
    *,
    target: str | None = None,
    task: str | None = None,
    columns: tuple[str, ...] = (),
    classes: tuple[str, ...] = (),
) -> Table:
    r"""Read a .csv (a header, numbers, the target by name) or an .npz (X, and target).

    A target of text is a classification, its classes in sorted order; one of numbers
    is a regression, unless task="classification". Give the columns and classes of an
    earlier Table to read another file the same way. Without target, y is None.

    Raises ValueError with file, line and column for a cell that is not a number.

    >>> size = Path("houses.csv").write_text("rooms,price\n3,200\n4,250\n")
    >>> read_table("houses.csv", target="price").y.tolist()
    [[200.0], [250.0]]
    """
    path = Path(path)
    readers = {".csv": _read_csv, ".npz": _read_npz}
    if path.suffix.lower() not in readers:
        raise ValueError(f"data must be a .csv or .npz file, got {path.name}")
    read = readers[path.suffix.lower()]
    X, values, columns, names = read(path, target, task, columns, classes)
    if not len(X):
        raise ValueError(f"{path.name} has no rows")
    if values is None:
        return Table(X, None, columns)
    if not names:
        y = torch.from_numpy(values.astype(np.float32))
        return Table(X, y if y.ndim > 1 else y[:, None], columns)
    known = list(classes) or sorted(names, key=_numbers_first)
    if strange := set(names) - set(known):
        what = f"{target} must be one of {', '.join(known)}, got {min(strange)!r}"
        raise ValueError(f"{path.name}: {what}")
    if len(known) < 2:
        raise ValueError(f"{path.name}: {target} has only one class, {known[0]!r}")
    number = torch.tensor([known.index(name) for name in names])
    at = torch.from_numpy(values.astype(np.int64))
    return Table(X, number[at], columns, tuple(known))


def _float(cell: str) -> float | None:
    """The number in the cell, or None where that is text."""
    try:
        return float(cell)
    except ValueError:
        return None


def _is_number(cell: str) -> bool:
    value = _float(cell)
    return value is not None and abs(value) <= FLOAT32_MAX


def _numbers_first(name: str) -> tuple[float, str]:
    return (float(name) if _is_number(name) else math.inf), name


def _read_csv(path, target, task, columns, classes):
    """X, the target's values or None, the columns, the names of classes by number."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = _rows(path.name, file)
        header = [" ".join(name.split()) for name in next(rows, ("", []))[1]]
        for i, name in enumerate(header):
            if not name or name in header[:i]:
                what = f"{name!r} is there twice" if name else "the name is empty"
                raise ValueError(f"{path.name} line 1, column {i + 1}: {what}")
        columns = columns or tuple(name for name in header if name != target)
        for name in (*columns, target):
            if name and name not in header:
                found = ", ".join(header[:20])
                raise ValueError(f"{path.name} has no column {name!r}, only: {found}")
        if not columns:
            raise ValueError(f"{path.name} has no column beside {target!r}")
        where, first = next(rows, ("", []))
        rows = chain([(where, first)] if first else [], rows)
        text = target and first and task != "regression"
        if text and task != "classification":
            text = _float(first[header.index(target)]) is None
        wanted = {name: header.index(name) for name in columns}
        if target and not text:
            wanted[target] = header.index(target)
        label = (target, header.index(target)) if text else None
        numbers: dict[str, int] = {}  # of the classes, as they appear
        cells = _cells(rows, wanted, label, task, classes, numbers)
        values = np.fromiter(cells, np.float32).reshape(-1, len(columns) + bool(target))
    X = torch.from_numpy(values[:, : len(columns)])
    return X, values[:, -1] if target else None, columns, list(numbers)


def _rows(name: str, file: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Where it stands, and the row, for each that is not blank: the header first."""
    reader, width = csv.reader(file), 0
    try:
        for row in filter(None, reader):
            where = f"{name} line {reader.line_num}"
            if len(row) != (width := width or len(row)):
                raise ValueError(f"{where}: {len(row)} cells under {width} headers")
            yield where, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{name} is no CSV in UTF-8: {error}") from None


def _cells(rows, wanted, label, task, classes, numbers) -> Iterator[float]:
    """The wanted cells as numbers, row by row, each row's class behind them."""
    for where, row in rows:
        try:
            values = [float(row[i]) for i in wanted.values()]
        except ValueError:
            values = [math.nan]
        if not all(abs(value) <= FLOAT32_MAX for value in values):
            _blame(where, {name: row[i].strip() for name, i in wanted.items()})
        yield from values
        if label:
            name, cell = label[0], row[label[1]].strip()
            if not cell or cell.lower() == "nan" or (classes and cell not in classes):
                must = (
                    f"must be one of {', '.join(classes)}" if classes else "is missing"
                )
                got = f"{cell!r} {must}" if cell else "the cell is empty"
                raise ValueError(f"{where}, column {name}: {got}")
            if not task and _float(cell) is not None:
                raise ValueError(
                    f"{where}, column {name}: {cell!r} is a number but "
                    f"{next(iter(numbers))!r} is not; mend it, or choose classification"
                )
            yield numbers.setdefault(cell, len(numbers))


def _blame(where: str, cells: dict[str, str]) -> None:
    """Raise for the first cell that is not a finite number, or all that are text."""
    texts = [name for name, cell in cells.items() if cell and _float(cell) is None]
    for name, cell in cells.items():
        if not cell:
            raise ValueError(f"{where}, column {name}: the cell is empty; fill it in")
        if len(texts) > 1:
            raise ValueError(
                f"{where}: columns {', '.join(texts)} are text; encode them as numbers "
                "or leave them out"
            )
        if not _is_number(cell):
            raise ValueError(
                f"{where}, column {name}: {cell!r} is not a number; mend it, encode "
                "the column as numbers, or leave it out"
            )


def _read_npz(path, target, task, columns, classes):
    """As _read_csv; the columns are x0, x1 ..., none where X is not (rows, columns)."""
    with _unzipped(path, "no .npz") as file:
        members = np.load(file, allow_pickle=False)
        arrays = {name: np.asarray(members[name]) for name in members}
    for name in filter(None, ("X", target)):
        if name not in arrays:
            found = ", ".join(arrays)
            raise ValueError(f"{path.name} has no array {name!r}, only: {found}")
    X = arrays["X"]
    labels = arrays[target] if target else np.zeros(X.shape[:1])
    fits = X.ndim > 1 and X.shape[1] and labels.shape[:1] == X.shape[:1]
    text = labels.dtype.kind not in "fiu"
    if not fits or X.dtype.kind not in "fiub" or (text and labels.size != len(X)):
        raise ValueError(
            f"{path.name}: X must be numbers (rows, columns ...), {target} a value for "
            f"each row, got {X.dtype} {X.shape} and {labels.dtype} {labels.shape}"
        )
    if text and task == "regression":
        raise ValueError(f"{path.name}: {target} must be numbers, got {labels.dtype}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        X = X.astype(np.float32)
        y = labels.astype(np.float32) if labels.dtype.kind == "f" else X
    for name, array in {"X": X, target: y}.items():
        for at in np.argwhere(~np.isfinite(array))[:1].tolist():
            raise ValueError(f"{path.name}: {name}{at} is not a finite number")
    named = tuple(f"x{i}" for i in range(X.shape[1])) if X.ndim == 2 else ()
    if columns and columns != named:
        must = ", ".join(columns)
        raise ValueError(f"{path.name}: X must have columns {must}, got {X.shape}")
    names: list[str] = []
    if target and (text or task == "classification"):
        unique, labels = np.unique(labels.ravel(), return_inverse=True)
        names = unique.astype(str).tolist()
    return torch.from_numpy(X), labels if target else None, named, names


def memory_map(path: str | Path, name: str | None = None) -> Tensor:
    """A tensor whose rows are read from the disk when they are used: of any size.

    path is a .npy, or a .npz of numpy.savez and the name of one of its arrays, of any
    dtype that torch has. make_loader reads its batches' rows and no others; split with
    a seed reads all of a tuple, nothing of a TensorDataset. What is done to the tensor
    in place stays in memory: the file is never written.

    Raises ValueError for what is compressed, damaged, in Fortran order or no numbers.

    >>> np.savez("big.npz", X=np.ones((10, 2)), y=np.zeros(10))
    >>> data = TensorDataset(memory_map("big.npz", "X"), memory_map("big.npz", "y"))
    >>> train, test = split(data, seed=0)
    >>> [len(x) for x, y in make_loader(train, batch_size=5, shuffle=True)]
    [5, 3]
    """
    path = Path(path)
    what = f"{name} in {path.name}" if name else path.name
    with open(path, "rb") as file:
        start, end = _stored(path, file, name)
        file.seek(start)
        with _undamaged(what, "no .npy"):
            readers = {1: npy.read_array_header_1_0, 2: npy.read_array_header_2_0}
            shape, fortran, dtype = readers[npy.read_magic(file)[0]](file)
        try:
            torch.from_numpy(np.empty(0, dtype))
        except (TypeError, ValueError):
            must = "numbers that torch has, in this machine's byte order"
            raise ValueError(f"{what} must hold {must}, got {dtype}") from None
        if not shape or fortran:
            got = "Fortran order" if fortran else "a single value"
            raise ValueError(f"{what} must hold rows, one after the other, got {got}")
        if (offset := file.tell()) + math.prod(shape) * dtype.itemsize > end:
            raise ValueError(f"{what} is damaged: it ends before {shape} of {dtype}")
        if dtype.kind == "c" and offset % dtype.itemsize:  # torch would crash on these
            must = f"must start at a multiple of {dtype.itemsize} bytes, got {offset}"
            raise ValueError(f"{what} {must}: save it as .npy")
        private = {"access": mmap.ACCESS_COPY}
        if sys.platform == "linux":  # else it refuses what is larger than its memory
            unreserved = getattr(mmap, "MAP_NORESERVE", 0x4000)  # new in Python 3.13
            private = {"flags": mmap.MAP_PRIVATE | unreserved}
        mapping = mmap.mmap(file.fileno(), 0, **private)
    tensor = torch.from_numpy(np.ndarray(shape, dtype, mapping, offset))
    storage: Any = tensor.untyped_storage()
    storage.mapping = mapping, offset  # for _ask_for, which finds it by any view too
    return tensor


def _stored(path: Path, file: IO[bytes], name: str | None) -> tuple[int, int]:
    """Where in the file its .npy, the one of that name in an .npz, starts and ends."""
    if path.suffix.lower() != ".npz":
        if name is not None:
            raise ValueError(f"name is for .npz files, got {name!r} for {path.name}")
        return 0, os.fstat(file.fileno()).st_size
    with _undamaged(path.name, "no .npz"):
        archive = zipfile.ZipFile(file)
    members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
    if name not in members:
        must = f"name must be one of {', '.join(members)} in {path.name}"
        raise ValueError(f"{must}, got {name!r}")
    if members[name].compress_type != zipfile.ZIP_STORED:
        mend = "save it with numpy.savez, or as .npy"
        raise ValueError(f"{name} in {path.name} is compressed: {mend}")
    with _undamaged(path.name, "no .npz"), archive.open(members[name]):
        start = file.tell()  # behind the member's own header
    return start, start + members[name].file_size


def split(
    data: Any,
    *,
    ratios: Sequence[float] = (0.8, 0.2),
    seed: int | None = None,
    stratify: Tensor | None = None,
) -> tuple[Any, ...]:
    """Cut data in parts: a tuple of tensors with equal first dimension, or a Dataset.

    Every part but the last has int(ratio * N) rows, the last has the rest. None keeps
    the order, so sorted data test extrapolation; a seed shuffles first. stratify, the
    classes (N,) of the rows, gives every part its share of each. Source: tutorial 1.4.

    >>> train, test = split(make_data())
    >>> len(train[0]), len(test[0])
    (40, 10)
    """
    if not (ratios and min(ratios) > 0 and abs(sum(ratios) - 1) <= 1e-6):
        raise ValueError(f"ratios must be above 0 and sum to 1, got {tuple(ratios)}")
    n = _length(data)
    sizes = [int(n * ratio + 1e-9) for ratio in ratios[:-1]]
    sizes.append(n - sum(sizes))
    if min(sizes) < 1:
        raise ValueError(f"{n} rows are too few for ratios of {tuple(ratios)}")
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    order = None if seed is None else torch.randperm(n, generator=generator)
    if stratify is not None and len(stratify) != n:
        raise ValueError(
            f"stratify must have a class for {n} rows, got {len(stratify)}"
        )
    if stratify is not None:  # deal out each class evenly along the order
        order = torch.arange(n) if order is None else order
        labels = stratify.flatten()[order]
        _, at, counts = labels.unique(return_inverse=True, return_counts=True)
        nth = F.one_hot(at).cumsum(0).gather(1, at[:, None])[:, 0]
        order = order[((nth - 0.5) / counts[at]).argsort(stable=True)]
    if isinstance(data, Dataset):
        rows = torch.arange(n) if order is None else order
        return tuple(Subset(data, part.tolist()) for part in rows.split(sizes))
    shuffled = data if order is None else [t[order] for t in data]
    return tuple(zip(*(t.split(sizes) for t in shuffled)))


def _length(data: Any) -> int:
    if isinstance(data, IterableDataset):
        raise TypeError(
            "data must have a length: give an IterableDataset to DataLoader"
        )
    if isinstance(data, Dataset):
        return len(data)  # type: ignore[arg-type]
    kinds = [type(data), *(map(type, data) if isinstance(data, tuple | list) else ())]
    if len(kinds) < 2 or not all(issubclass(kind, Tensor) for kind in kinds[1:]):
        kind = " of ".join(kind.__name__ for kind in kinds[:2])
        raise TypeError(f"data must be a tuple of tensors or a Dataset, got {kind}")
    if len({len(t) for t in data}) > 1:
        shapes = " and ".join(str(tuple(t.shape)) for t in data)
        raise ValueError(f"tensors must have as many rows each, got {shapes}")
    return len(data[0])


def make_loader(
    data: Any,
    *,
    batch_size: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    workers: int = 0,
) -> DataLoader:
    """A DataLoader whose order is a function of (seed, epoch); None: all in one batch.

    data is a tuple of tensors, a TensorDataset or a Subset of one, indexed once per
    batch, or any Dataset with a length, collated row by row; batches are copies, which
    a model may change in place. What a Dataset draws from
    random, numpy.random or torch is a function of (seed, epoch, batch) too, whatever
    the number of workers. By hand, every pass over the loader is the next epoch.
    Source: tutorial 1.6.

    >>> [len(x) for x, y in make_loader(make_data(), batch_size=20)]
    [20, 20, 10]
    """
    n = _length(data)
    _at_least("rows of data", n, 1)
    _at_least("batch_size", n if batch_size is None else batch_size, 1)
    _at_least("workers", workers, 0)
    table = _table(TensorDataset(*data) if isinstance(data, tuple | list) else data)
    ready = table is not None
    if workers and table and table.mapped and get_start_method() != "fork":
        raise ValueError(
            f"workers must be 0, got {workers}: unless forked they copy the mapped file"
        )
    return DataLoader(
        table or _Seeded(data),
        batch_size=None,  # the sampler makes the batches
        sampler=_Order(n, batch_size or n, shuffle, seed),
        collate_fn=_same,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available() and not ready,
        worker_init_fn=_quiet_workers() if workers else None,
        generator=torch.Generator(),  # or each epoch would draw from the global one
    )


class _Order(Sampler):
    """Batches as (numbers that seed it, rows), a function of (seed, epoch).

    Of several processes each takes a share of every batch; one for which there is no
    row gets some row without numbers, which _counted takes for one without a target.
    """

    def __init__(self, n: int, batch_size: int, shuffle: bool, seed: int):
        self.n, self.batch_size, self.shuffle = n, batch_size, shuffle
        self.seed, self.generator = int(seed), torch.Generator()
        self.epoch = self.start = 0  # start: batches that the next pass leaves out
        self.share = 0, 1  # which share of every batch the next pass takes, of how many

    def __len__(self) -> int:
        return math.ceil(self.n / self.batch_size)

    def __iter__(self) -> Iterator[tuple[tuple, Any]]:
        (share, shares), size = self.share, self.batch_size
        epoch, start, every = self.next_pass()
        rank = (share,) if share else ()
        for batch in range(start, len(self)):
            rows = every[batch * size : (batch + 1) * size]
            numbers: tuple = (self.seed, epoch, batch, *rank)
            if shares > 1:
                begin = len(rows) * share // shares
                end = len(rows) * (share + 1) // shares
                numbers = numbers if begin < end else ()
                rows = rows[begin : max(end, begin + 1)]
            yield numbers, rows

    def next_pass(self) -> tuple[int, int, Any]:
        """Its epoch, its first batch, and the rows of all batches, one after another."""
        epoch, start = self.epoch, self.start
        self.epoch, self.start, self.share = epoch + 1, 0, (0, 1)
        if not self.shuffle:
            return epoch, start, range(self.n)
        generator = self.generator.manual_seed(_hash(self.seed, epoch))
        return epoch, start, torch.randperm(self.n, generator=generator)


def _table(data: Any) -> _Tensors | None:
    """A TensorDataset or a Subset of one, read by whole batches; None: neither."""
    if type(data) is TensorDataset:
        return _Tensors(*data.tensors)
    if type(data) is Subset and (whole := _table(data.dataset)):
        chosen = np.asarray(data.indices)
        if chosen.ndim == 1 and chosen.dtype.kind in "iu":  # as rows
            rows = np.arange(len(whole)) if whole.rows is None else whole.rows.numpy()
            return _Tensors(*whole.tensors, rows=torch.from_numpy(rows[chosen]))
    return None


class _Tensors(TensorDataset):
    """A TensorDataset that takes a whole batch with one call a tensor."""

    def __init__(self, *tensors: Tensor, rows: Tensor | None = None):
        super().__init__(*tensors)
        self.rows = rows  # of the tensors, by row of this dataset; None: all
        self.width = sum(t.numel() // max(len(t), 1) for t in tensors)  # numbers a row
        dense = (t for t in tensors if t.layout == torch.strided)
        self.mapped = [t for t in dense if hasattr(t.untyped_storage(), "mapping")]
        self.reads = self.asks = 0  # this process's from the disk; how often to ask for

    def __len__(self) -> int:
        return len(self.tensors[0] if self.rows is None else self.rows)

    def __getitem__(self, key: tuple[Any, Any]) -> tuple[Tensor, ...]:
        numbers, rows = key
        if isinstance(rows, range):
            rows = slice(rows.start, rows.stop)
        if self.rows is not None:
            rows = self.rows[rows]
        if isinstance(rows, slice):
            return _counted(numbers, tuple([t[rows].clone() for t in self.tensors]))
        if self.mapped and self.reads != (reads := _disk_reads()):
            self.reads, self.asks = reads, 100
        if self.asks:  # for a while: what was asked for may not count as read
            self.asks -= 1
            for t in self.mapped:
                _ask_for(t, rows)
        found = [t.index_select(0, rows.to(t.device)) for t in self.tensors]
        return _counted(numbers, tuple(found))


def _read(data: _Tensors, order: _Order) -> Iterator[tuple[Tensor, ...]]:
    """An epoch's batches; small ones several with one call a tensor, in 5 µs less.

    A resumed epoch reads them in the same groups: where a batch lies in the memory
    decides how its sums are rounded.
    """
    size = order.batch_size
    several = min(64, 2**17 // max(size * data.width, 1))
    if not several or order.share != (0, 1) or any(map(_has_grad, data.tensors)):
        yield from map(data.__getitem__, order)
        return
    _, start, rows = order.next_pass()
    past = start % several
    for begin in range((start - past) * size, len(rows), several * size):
        whole = data["all", rows[begin : begin + several * size]]
        batches = zip(*[t.unsafe_split(size) for t in whole])  # in place is allowed
        yield from islice(batches, past, None)
        past = 0


def _has_grad(t: Tensor) -> bool:
    return t.requires_grad


def _disk_reads() -> int:
    """How often this process has read from the disk; 0 where that cannot be told."""
    try:
        import resource
    except ImportError:
        return 0
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_inblock + usage.ru_majflt


def _ask_for(t: Tensor, rows: Tensor) -> None:
    """Have the disk read a mapped tensor's rows all at once, rather than one by one."""
    storage: Any = t.untyped_storage()
    mapping, offset = storage.mapping
    size = t.stride(0) * t.element_size()
    starts = rows * size + (t.data_ptr() - storage.data_ptr() + offset)
    pages = starts // mmap.PAGESIZE * mmap.PAGESIZE
    for page, length in zip(pages.tolist(), (starts + size - pages).tolist()):
        mapping.madvise(mmap.MADV_WILLNEED, page, length)


class _Seeded(Dataset):
    """A batch's rows of a Dataset, drawn under the batch's seed."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __getitem__(self, key: tuple[tuple, Any]) -> Any:
        numbers, rows = key
        seed = _hash(*numbers)
        rows = list(rows) if isinstance(rows, range) else rows.tolist()
        with _KeptRandom():
            random.seed(_hash(seed, 0))
            np.random.seed(_hash(seed, 1))
            torch.default_generator.manual_seed(_hash(seed, 2))
            if hasattr(self.dataset, "__getitems__"):
                items = self.dataset.__getitems__(rows)
            else:
                items = [self.dataset[row] for row in rows]
        return _counted(numbers, default_collate(items))


def _counted(numbers: tuple, batch: Any) -> Any:
    """The batch; without numbers its inputs go through the model but count no sample."""
    return batch if numbers else (batch[0], batch[1][:0])


class _KeptRandom:
    """Put torch's global generator, or all three, back afterwards."""

    def __init__(self, *, everything: bool = True):
        self.everything = everything

    def __enter__(self) -> None:
        self.torch = torch.get_rng_state()
        if self.everything:
            self.others = random.getstate(), np.random.get_state()

    def __exit__(self, *error: Any) -> None:  # noqa: PYI036
        torch.set_rng_state(self.torch)
        if self.everything:
            random.setstate(self.others[0])
            np.random.set_state(self.others[1])


def _hash(*numbers: int) -> int:
    """One 32-bit seed of several numbers, the same everywhere and always."""
    return zlib.crc32(repr(numbers).encode())


def _same(batch: Any) -> Any:
    return batch


def _quiet_workers() -> Callable[[int], None]:
    """Workers ignore SIGINT and SIGTERM while the main process runs.

    A terminal or a cluster sends these to all processes. Were a worker to die of one,
    torch would raise in the main process at once, amid a step.
    """
    ending = torch.multiprocessing.Event()
    Finalize(None, ending.set, exitpriority=0)
    return partial(_quiet, ending)


def _quiet(ending: Any, worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending.is_set() else None)


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _map(function: Callable, nest: Any) -> Any:
    """The function of every tensor in nested dicts, lists and tuples."""
    if isinstance(nest, Tensor):
        return function(nest)
    if isinstance(nest, Mapping):
        return {key: _map(function, value) for key, value in nest.items()}
    if isinstance(nest, tuple | list):
        items = [_map(function, value) for value in nest]
        return type(nest)(*items) if hasattr(nest, "_fields") else type(nest)(items)
    return nest


# --------------------------------------------------------------------- 2 model


class State(NamedTuple):
    """All that changes while training, and config: what a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any = None  # any of torch.optim.lr_scheduler
    scaler: torch.amp.GradScaler = torch.amp.GradScaler("cpu", enabled=False)
    step: int = 0  # batches trained on
    sums: Sums = {}  # of the running epoch  # noqa: RUF012
    history: tuple[Row, ...] = ()  # a row for each finished epoch
    per_step: bool = False  # whether the scheduler advances by step, not by epoch
    config: dict[str, Any] = {}  # plain values; yours to fill  # noqa: RUF012


def make_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    scheduler: Any = None,
    per_step: bool | None = None,
) -> State:
    """The State before training. Move the model to its device before this.

    To train in shards, call torch's fully_shard on the layers and on the model before
    the optimizer is made.

    per_step says when the scheduler advances; None: by step for OneCycleLR and
    CyclicLR, by epoch for all others. ReduceLROnPlateau gets val_loss, or train_loss
    where nothing is validated. A model in amp(..., "fp16") gets a real GradScaler.

    >>> model = nn.Linear(1, 1)
    >>> make_state(model, torch.optim.SGD(model.parameters(), lr=0.01)).step
    0
    """
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not owned & {id(p) for p in model.parameters()}:
        raise ValueError("the optimizer holds none of the model's parameters")
    if _has_shards(model) and not all(map(_is_shard, _parameters(optimizer))):
        raise ValueError(
            "the optimizer must hold shards only: call fully_shard(model) after that of "
            "its layers, then make the optimizer, before any forward"
        )
    if (
        scheduler is not None
        and getattr(scheduler, "optimizer", optimizer) != optimizer
    ):
        raise ValueError("the scheduler holds another optimizer")
    if per_step is None:
        by_step = lr_scheduler.OneCycleLR | lr_scheduler.CyclicLR
        per_step = isinstance(scheduler, by_step)
    if per_step and (scheduler is None or isinstance(scheduler, ReduceLROnPlateau)):
        name = type(scheduler).__name__
        raise ValueError(f"per_step must be False for {name}, got True")
    fp16 = any(
        isinstance(m, _Amp) and m.dtype == torch.float16 for m in model.modules()
    )
    scaler = torch.amp.GradScaler(_device(optimizer).type, enabled=fp16)
    state = State(model, optimizer, scheduler, scaler, sums={}, config={})
    return state._replace(per_step=per_step)


def _device(optimizer: torch.optim.Optimizer) -> torch.device:
    return optimizer.param_groups[0]["params"][0].device


class Standardize(nn.Module):
    """(x - mean) / std by the rows it is made of; inverse: x * std + mean.

    mean and std are buffers, so they travel in checkpoints and exported files. A
    constant column has std 0, and is divided by 1. Source: tutorial 12, question 7.

    >>> Standardize(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))(torch.tensor([4.0, 5.0]))
    tensor([3., 0.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, rows: Tensor, *, inverse: bool = False):
        super().__init__()
        std, mean = torch.std_mean(rows.double(), dim=0, correction=0)
        self.inverse = inverse
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", torch.where(std > 0, std, 1.0).float())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean if self.inverse else (x - self.mean) / self.std


def summary(model: nn.Module) -> str:
    """A table of the parameters and buffers: shape, count, trained or not, values.

    Of a sharded model every process must call.

    >>> print(summary(nn.Linear(2, 1, bias=False).requires_grad_(False)).splitlines()[0])
    name    shape      count  trains    values
    """
    model, rows = _bare(model), []
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        trains = "yes" if tensor.requires_grad else "no"
        trains = trains if isinstance(tensor, nn.Parameter) else "buffer"
        found = _whole(tensor.detach())
        values = [f"{v:.4g}" for v in found.flatten()[:4].tolist()]
        if tensor.numel() > 4:
            wide = found.double()
            values = [f"mean {wide.mean():.4g}, std {wide.std():.4g}"]
        rows.append(
            (name, tuple(tensor.shape), tensor.numel(), trains, ", ".join(values))
        )
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    table = tabulate(rows, ["name", "shape", "count", "trains", "values"])
    return f"{table}\n{total:,} parameters, {trained:,} of them trained"


# --------------------------------------------------------------------- 3 train


def train_step(
    state: State,
    batch: Batch,
    *,
    loss_fn: LossFn,
    accumulate: int = 1,
    clip: float | Callable | None = None,
) -> tuple[State, Sums]:
    """One optimizer update on a batch, eaten in up to `accumulate` pieces.

    inputs (N, ...), or a dict of such, and targets (N, ...) go to the optimizer's
    device. Every piece weighs by its samples, or by the weight that loss_fn returns
    beside the total, so that the gradient is the whole batch's, unless the forward
    depends on the rest of the batch (BatchNorm, which also needs 2 rows a piece) or
    on random draws (dropout). clip is the largest norm of the
    gradient, or a function of the parameters such as partial(clip_grad_value_,
    clip_value=1.0). The sums are totals over samples: loss, weight, the grad_norm
    where clip gives one, and under fp16 the share of skipped updates.

    >>> from functools import partial
    >>> step = partial(train_step, accumulate=4, clip=1.0)

    Source: tutorial 3.3, 7.1, 7.2, 7.4.
    """
    model, optimizer, scaler = state.model, state.optimizer, state.scaler
    _at_least("accumulate", accumulate, 1)
    device, world = _device(optimizer), _peers(model)[1]
    batch = _to(device, batch)
    n = _summed({"n": len(batch[1])}, world, device)["n"]
    sums: Sums = {}
    for p in _parameters(optimizer):
        p.grad = None  # as optimizer.zero_grad does, which takes 5 µs to begin
    for inputs, targets in _pieces(batch, accumulate, n, model):
        rows = len(targets)
        loss = _loss_of(loss_fn, model(inputs), targets, rows)
        pair = isinstance(loss, tuple)
        part, share = (loss[0], 1 / n) if pair else (loss, rows / n)
        whole = world == 1 and share == 1
        scaler.scale(part if whole else part * (share * world)).backward()
        sums = _add(sums, _totals(loss, rows))
    sums = _summed(sums, world, device)
    scaler.unscale_(optimizer)
    if pair or world > 1:  # the gradient so far is that of total / n
        factor = n / (sums["weight"] + 1e-30)
        for p in _parameters(optimizer):
            if p.grad is not None:
                p.grad.mul_(factor)
    if clip is not None:
        ps = _parameters(optimizer)
        norm = clip(ps) if callable(clip) else nn.utils.clip_grad_norm_(ps, clip)
        if norm is not None:
            sums["grad_norm"] = _wide(_whole(norm)) * sums["weight"]
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    skipped = scaler.get_scale() < scale  # fp16 met an inf or NaN gradient
    if scaler.is_enabled():
        sums["skipped"] = skipped * sums["weight"]
    if skipped:
        sums.pop("grad_norm", None)  # infinite or NaN; _means knows
    if state.per_step and not skipped:
        state.scheduler.step()
    return state._replace(step=state.step + 1), sums


def _pieces(batch: Batch, pieces: int, n: Any, model: nn.Module) -> Iterable[Batch]:
    """Equally many in every process, which exchange gradients with the last one."""
    if pieces == 1:
        return [batch]
    world = _peers(model)[1]
    rows = -(-int(n) // world)  # of a process, were all alike
    count = -(-rows // -(-rows // pieces))
    if count == 1:
        return [batch]
    size = -(-len(batch[1]) // count)
    parts = (_cut(batch, i * size, (i + 1) * size) for i in range(count))
    return parts if world == 1 else _last_exchanges(parts, count, model)


def _last_exchanges(pieces: Any, count: int, model: nn.Module) -> Iterator[Batch]:
    for i, piece in enumerate(pieces, 1):
        module: Any
        for module in model.modules():
            if isinstance(module, DistributedDataParallel):
                module.require_backward_grad_sync = i == count
            elif _is_sharded(module):
                module.set_requires_gradient_sync(i == count)
        yield piece


def _cut(batch: Batch, begin: int, end: int) -> Batch:
    """Some rows of the batch; for none, an input to go through the model, no target."""
    if begin < min(end, len(batch[1])):
        return _map(lambda t: t[begin:end].clone(), batch)
    return _map(lambda t: t[:1], batch[0]), batch[1][:0]


def _loss_of(loss_fn: LossFn, outputs: Any, targets: Tensor, n: int) -> Any:
    """The loss; without targets 0, whose gradient is 0, for exchanges need one."""
    if n:
        return loss_fn(outputs, targets)
    parts: list[Tensor] = []
    _map(lambda t: parts.append(t.nan_to_num(0, 0, 0).sum()), outputs)
    return 0 * torch.stack(parts).sum()


def _to(device: torch.device, batch: Any) -> Any:
    if type(batch) is tuple:
        for t in batch:
            if getattr(t, "device", None) != device:
                break
        else:
            return batch
    return _map(lambda t: t.to(device, non_blocking=True), batch)


def _peers(model: nn.Module) -> tuple[int, int]:
    """Which of how many processes that train the model together; alone: 0 of 1."""
    if _has_group() and any(map(_is_shared, model.modules())):
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _is_shared(module: nn.Module) -> bool:
    return isinstance(module, DistributedDataParallel) or _is_sharded(module)


def _is_sharded(module: nn.Module) -> bool:
    """By torch's fully_shard, whose import would take most of a second."""
    return hasattr(module, "set_requires_gradient_sync")


def _has_shards(model: nn.Module) -> bool:
    return any(map(_is_sharded, model.modules()))


def _is_shard(t: Any) -> bool:
    return hasattr(t, "full_tensor")


def _whole(t: Any) -> Tensor:
    """The tensor of which this process may hold a shard; all of them must ask."""
    return t.full_tensor() if _is_shard(t) else t


def _summed(sums: Sums, world: int, device: torch.device) -> Sums:
    """The sums over all processes that train the model."""
    if world == 1:
        return sums
    options: Any = {"dtype": torch.float64, "device": device}
    totals = torch.stack([torch.as_tensor(v, **options) for v in sums.values()])
    dist.all_reduce(totals)
    return dict(zip(sums, map(_wide, totals)))


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _totals(loss: Any, n: int) -> Sums:
    """The loss of n samples as totals: of loss and of what divides it."""
    if isinstance(loss, tuple):
        total, weight = (_wide(torch.as_tensor(part)) for part in loss)
        return {"loss": total, "weight": weight}
    return {"loss": _wide(loss) * n, "weight": n}


def _wide(x: Tensor) -> Any:
    """A number of a CPU; else a tensor, since to read it would be to wait for it.

    In float64 where the device has it: long sums lose digits in float32.
    """
    if x.is_cpu:
        return x.item()
    return x.detach() if x.is_mps else x.detach().double()


# ------------------------------------------------------------------ 4 evaluate


def eval_step(
    model: nn.Module, batch: Batch, *, loss_fn: LossFn, metrics: Any = None
) -> Sums:
    """The totals of one batch in eval mode, without gradients: loss and weight.

    A metrics object is updated with the batch; for a metrics function "outputs" holds
    the pair (prediction, target). Uses no_grad rather than inference_mode, whose
    tensors could not be trained on later, were the model to keep one.

    >>> eval_step(nn.Identity(), (torch.ones(3), torch.zeros(3)), loss_fn=F.l1_loss)
    {'loss': 3.0, 'weight': 3}
    """
    with _evaluating(model):
        return _scored(model, _to(_model_device(model), batch), loss_fn, metrics)


def _scored(model: nn.Module, batch: Batch, loss_fn: LossFn, metrics: Any) -> Sums:
    (inputs, targets), n = batch, len(batch[1])
    if model.training:
        model.eval()  # the loader has trained it
    with torch.no_grad():
        prediction = model(inputs)
        loss = _loss_of(loss_fn, prediction, targets, n)
    sums = _totals(loss, n)
    if n and hasattr(metrics, "compute"):
        metrics.update(prediction, targets)
    elif n and metrics:
        sums["outputs"] = [(prediction, targets)]
    return sums


def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    loss_fn: LossFn,
    metrics: Any = None,
) -> Row:
    """The mean loss over all samples of the loader, and the metrics over them.

    metrics(prediction, target) gets all of them at once, on the model's device, so
    that what is no mean of batches (R², F1, a quantile) is right however they are
    batched; it returns a dict of numbers. Or metrics is an object with reset, update
    and compute, such as a torchmetrics Metric or MetricCollection on that device: it
    gets batch by batch, and no outputs are kept. A number without a name goes by that
    of the function or class. Neither the mode of any module nor the training's
    randomness changes. Source: tutorial 3.3, 4.2, 8.2.

    >>> row = evaluate(nn.Identity(), [make_data()], loss_fn=F.l1_loss, metrics=metrics)
    >>> round(row["loss"], 3), round(row["r2"], 3)
    (0.153, 0.243)
    """
    sums: Sums = {}
    outputs, device, (rank, world) = [], _model_device(model), _peers(model)
    if hasattr(metrics, "compute"):
        metrics.reset()
    # a plain DataLoader draws; a model or a metric may
    with _KeptRandom(everything=not _is_ours(loader)), _evaluating(model):
        for batch in _batches(loader, (rank, world)):
            part = _scored(model, _to(device, batch), loss_fn, metrics)
            outputs.append(part.pop("outputs", []))
            sums = _add(sums, part)
        if not sums:
            raise ValueError("the loader must have a batch to evaluate, got none")
        scores = _measured(metrics, _gathered(outputs, model)) if metrics else {}
    return _means(_summed(sums, world, device)) | scores


def _gathered(outputs: list[list], model: nn.Module) -> list:
    """Those of all processes, batch by batch."""
    every, world = [outputs], _peers(model)[1]
    if world > 1:
        every *= world
        dist.all_gather_object(every, _to(CPU, outputs))
    pairs = [pair for shares in zip(*every) for share in shares for pair in share]
    return _to(_model_device(model), pairs)


def _measured(metrics: Any, outputs: list) -> Row:
    """The numbers of a metrics object, which is reset, or of a function, by name."""
    if hasattr(metrics, "compute"):
        found = metrics.compute()
        metrics.reset()
    else:
        found = metrics(*(torch.cat(tensors) for tensors in zip(*outputs)))
    if not isinstance(found, dict):
        found = {getattr(metrics, "__name__", type(metrics).__name__): found}
    for name, value in found.items():
        if math.prod(np.shape(value)) != 1:
            raise ValueError(
                f"{name} must be a single number to go into a row, got shape "
                f"{tuple(np.shape(value))}: average it, or name its parts"
            )
    return {name: float(value) for name, value in found.items()}


def predict(model: nn.Module, inputs: Any) -> Tensor:
    """The model's outputs (N, ...) for a tensor, or over a loader, in its order.

    Of a loader's batches (inputs, targets) the targets are left aside. Dropout is off
    and the model's mode is put back.

    >>> predict(nn.Identity(), torch.ones(2, 1)).shape
    torch.Size([2, 1])
    """
    batches = [inputs] if isinstance(inputs, Tensor | Mapping) else inputs
    device, outputs = _model_device(model), []
    with _evaluating(model):
        for batch in _batches(batches):  # which may take gradients, and train
            inputs = batch[0] if isinstance(batch, tuple | list) else batch
            model.eval()
            with torch.no_grad():
                outputs.append(model(_to(device, inputs)))
    if not outputs:
        raise ValueError("the loader must have a batch to predict, got none")
    return torch.cat(outputs)


def _model_device(model: nn.Module) -> torch.device:
    for tensor in chain(model.parameters(), model.buffers()):
        return tensor.device
    return CPU


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode; then each module's own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _add(sums: Sums, more: Sums) -> Sums:
    if not sums:
        return more
    total = sums.copy()
    for key, value in more.items():
        total[key] = total[key] + value if key in total else value
    return total


def _means(sums: Sums, prefix: str = "") -> Row:
    """Every total over the weight; this is where an epoch's sums are read."""
    numbers = {k: float(v) for k, v in sums.items()}
    weight = numbers.pop("weight", 0) or math.nan
    row = {prefix + k: total / weight for k, total in numbers.items()}
    if "grad_norm" in numbers:  # of the updates that were made
        made = weight - numbers.get("skipped", 0) or math.nan
        row[prefix + "grad_norm"] = numbers["grad_norm"] / made
    return row


# ---------------------------------------------------------------- 5 checkpoint

FORMAT = 2  # of the checkpoint files that this kit writes; in 1 history had rows
_DAMAGE = (ArithmeticError, EOFError, LookupError, OSError, RuntimeError, ValueError)


def save_checkpoint(state: State, path: str | Path) -> Path:
    """Write the state to one file of plain types, which torch reads weights_only.

    The model's keys are the bare model's, however it is wrapped, its tensors whole: of
    a sharded model every process must call, the first writes. The file is written
    beside, flushed to the disk and renamed, so that the path holds the old or the new
    one, whole, whatever happens. Raises OSError when it cannot be written.
    Source: tutorial 5.4.

    >>> model = nn.Linear(1, 1)
    >>> state = make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    >>> save_checkpoint(state, "models/line.pt").name
    'line.pt'
    """
    content = _content(state, copy=False)
    if not _peers(state.model)[0]:
        _write_content(content, Path(path))
    if _has_shards(state.model):
        _first_says("written")  # before another process may read it
    return Path(path)


def _content(state: State, *, copy: bool) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU; its tensors in the first process only."""
    model = _bare(state.model).state_dict()
    content = {
        "format": FORMAT,
        "model": {_plain_key(key): value for key, value in model.items()},
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler and state.scheduler.state_dict(),
        "kinds": _kinds(state),
        "scaler": state.scaler.state_dict(),
        "step": state.step,
        "sums": state.sums,
        "history": _by_column(state.history),
        "config": state.config,
    }
    return _plain(content, "state", _taker(_peers(state.model)[0] == 0, copy))


def _taker(first: bool, copy: bool) -> Callable[[Tensor], Tensor | None]:
    """Takes tensors to the CPU; those of the same memory, as tied weights are, stay so."""
    took: dict[tuple, Tensor] = {}

    def taken(t: Any) -> Tensor | None:
        own = t.to_local() if _is_shard(t) else t
        key = own.device, own.data_ptr(), t.shape, own.stride(), own.dtype
        whole = _whole(t)
        if first and key not in took:
            took[key] = whole.detach().to("cpu", copy=copy)
        return took.get(key)

    return taken


def _by_column(rows: Sequence[Row]) -> list[tuple[Any, dict[str, Any]]]:
    """Columns, and where their rows stand, for rows of the same names: saved 30 times as fast."""
    places: dict[tuple, list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(tuple(row), []).append(i)
    return [
        (_column(at), {name: _column([rows[i][name] for i in at]) for name in names})
        for names, at in places.items()
    ]


def _column(values: list) -> Any:
    """A tensor where all are ints or all are floats, which gives back what it took."""
    kinds = set(map(type, values))
    for kind, dtype in ((int, np.int64), (float, np.float64)):
        if kinds == {kind} and (array := np.array(values)).dtype == dtype:
            return torch.from_numpy(array)
    return values


def _by_row(columns: list[tuple[Any, dict[str, Any]]]) -> list[Row]:
    rows: dict[int, Row] = {}
    for at, named in columns:
        lists = [
            c.tolist() if isinstance(c, Tensor) else c for c in (at, *named.values())
        ]
        rows |= {i: dict(zip(named, values)) for i, *values in zip(*lists)}
    return [rows[i] for i in range(len(rows))]


def _write_content(content: dict[str, Any], path: Path) -> None:
    _write(path, lambda file: torch.save(content, file))


def load_checkpoint(state: State, path: str | Path) -> State:
    """Put a checkpoint into the state's model, optimizer, scheduler and scaler.

    Training goes on from it as if it had never stopped, mid-epoch too. Nothing is
    touched unless everything fits. Raises ValueError, in one line, for a damaged
    file, one that could run code, or one of another model, optimizer or scheduler.
    Source: tutorial 5.4.

    >>> model = nn.Linear(1, 1)
    >>> state = make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    >>> load_checkpoint(state, save_checkpoint(state, "models/line.pt")).step
    0
    """
    content, name = read_checkpoint(path), Path(path).name
    bare = _bare(state.model)
    own = {_plain_key(key): key for key in bare.state_dict()}
    _fits(_shapes(content["model"]), _shapes(bare.state_dict()), name)
    _fits(content["kinds"], _kinds(state), name)
    if state.scheduler is not None:
        before = copy.deepcopy(state.scheduler.state_dict())
        try:
            state.scheduler.load_state_dict(content["scheduler"])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            state.scheduler.load_state_dict(before)
            raise ValueError(f"the scheduler does not fit {name}: {error}") from error
    tensors, model = bare.state_dict(), content["model"]
    bare.load_state_dict({own[k]: _as(tensors[own[k]], v) for k, v in model.items()})
    parameters = _parameters(state.optimizer)
    for i, kept in content["optimizer"]["state"].items():
        kept.update({k: _as(parameters[i], v) for k, v in kept.items()})
    state.optimizer.load_state_dict(content["optimizer"])
    if state.scaler.is_enabled() and content["scaler"]:
        state.scaler.load_state_dict(content["scaler"])
    return state._replace(
        step=content["step"],
        sums=_to(_device(state.optimizer), content["sums"]),
        history=tuple(content["history"]),
        config=content["config"],
    )


def _as(own: Any, value: Any) -> Any:
    """The value; this process's shard where the state's own tensor of that shape is one."""
    if not _is_shard(own) or own.shape != getattr(value, "shape", ()):
        return value
    from torch.distributed.tensor import distribute_tensor

    where, value = (own.device_mesh, own.placements), value.to(own.device)
    return distribute_tensor(value, *where, src_data_rank=None)  # all have read it


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a checkpoint file holds, on the CPU: model, optimizer, history and so on.

    Every byte is checked against the file's checksums, and only plain types are read.
    Raises ValueError in one line for anything else than a whole checkpoint.

    >>> model = nn.Linear(1, 1)
    >>> state = make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    >>> list(read_checkpoint(save_checkpoint(state, "models/line.pt"))["model"])
    ['weight', 'bias']
    """
    with _unzipped(Path(path), "no checkpoint") as file:
        content = torch.load(file, map_location="cpu", weights_only=True)
    made = content.get("format") if isinstance(content, dict) else None
    if not isinstance(made, int):
        raise ValueError(f"{path} is no checkpoint of kit")  # noqa: TRY004
    if made > FORMAT:
        raise ValueError(
            f"{path} has format {made}, but this kit.py reads up to {FORMAT}: take "
            "the newer kit.py"
        )
    parts = {"model", "optimizer", "scheduler", "scaler", "kinds"}
    if not parts | {"step", "sums", "history", "config"} <= content.keys():
        raise ValueError(f"{path} is no whole checkpoint of kit")
    if made > 1:
        content["history"] = _by_row(content["history"])
    return content


@contextmanager
def _unzipped(path: Path, what: str) -> Iterator[IO[bytes]]:
    """A zip file, open, its checksums checked; one ValueError for any damage."""
    with open(path, "rb") as file, _undamaged(path, what):
        if damaged := zipfile.ZipFile(file).testzip():
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        file.seek(0)
        yield file


@contextmanager
def _undamaged(path: Path | str, what: str) -> Iterator[None]:
    """One ValueError for whatever reading a damaged file raises."""
    try:
        yield
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} holds more than plain types, which could run code: not loaded"
        ) from None
    except (zipfile.BadZipFile, struct.error, zlib.error, *_DAMAGE) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is damaged or {what}: {reason}") from None


def _fits(saved: dict, own: dict, name: str) -> None:
    """Raise for the first thing that is not the same in the file and in the state."""
    for key in chain(saved, own):
        here, there = saved.get(key, "missing"), own.get(key, "missing")
        if here != there:
            raise ValueError(f"{key} is {here} in {name} but {there} in the model")


def _shapes(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model's state, by bare key."""
    return {_plain_key(k): tuple(getattr(v, "shape", ())) for k, v in tensors.items()}


def _kinds(state: State) -> dict[str, Any]:
    groups = [len(group["params"]) for group in state.optimizer.param_groups]
    optimizer = f"{type(state.optimizer).__name__} of {groups} parameters"
    scheduler = state.scheduler and type(state.scheduler).__name__
    return {"optimizer": optimizer, "scheduler": scheduler}


def _bare(model: nn.Module) -> nn.Module:
    """The model inside of amp, torch.compile and DistributedDataParallel."""
    while True:
        if "_orig_mod" in model._modules:
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, DistributedDataParallel):
            model = model.module
        else:
            return model


def _plain_key(key: str) -> str:
    return re.sub(r"(?<![^.])_orig_mod\.", "", key)


def _plain(value: Any, where: str, taken: Callable = _same) -> Any:
    """The value in types that weights_only reads; NumPy's become Python's and torch's."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, dict):
        kind = type(value) if type(value) in (OrderedDict, Counter) else dict
        return kind({k: _plain(v, f"{where}[{k!r}]", taken) for k, v in value.items()})
    if isinstance(value, list | tuple):
        items = [_plain(v, f"{where}[{i}]", taken) for i, v in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, os.PathLike):
        return str(value)
    if isinstance(value, Tensor):
        return taken(value)
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise TypeError(
        f"{where} must be a plain value to be saved, got {type(value).__name__}"
    )


def _write(path: Path, write: Callable) -> Path:
    """Write a file so that the path holds the old one or the whole new one."""
    beside = path.parent / f".{path.name}.tmp{os.environ.get('RANK', '')}"
    try:
        with _naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(beside, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
            if os.name == "posix":  # elsewhere a folder cannot be flushed
                folder = os.open(path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
    return path


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An OSError that names the file, whatever writing it raises."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # the latter is torch.save's
        raise OSError(f"{path} could not be written: {error}") from error


# ------------------------------------------------------------------ 6 together


def run(
    state: State,
    train: Iterable[Batch],
    val: Iterable[Batch] | None = None,
    *,
    loss_fn: LossFn,
    epochs: int,
    metrics: Any = None,
    step: Callable = train_step,
    seed: int = 0,
) -> Iterator[State]:
    """Yield the state after every epoch, until `epochs` are in its history.

    The loop is yours: its body is the callback, `break` is early stopping. torch's
    global generators are seeded before every step by (seed, step), so that what is
    drawn (dropout, noise) is the same after a resume. Source: tutorial 3.5.

    >>> model = nn.Linear(1, 1)
    >>> state = make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    >>> for state in run(state, [make_data()], loss_fn=nn.L1Loss(), epochs=3):
    ...     print(state.history[-1]["epoch"], state.step)
    0 1
    1 2
    2 3
    """
    with _together(state) as now:
        parts = (now, train, val, loss_fn, epochs, metrics, step, seed)
        for now, finished in _steps(*parts):
            if finished:
                yield now._replace(model=state.model)


def _steps(
    state, train, val, loss_fn, epochs, metrics, step, seed, caught=()
) -> Iterator[tuple[State, bool]]:
    """Yield (state, False) after every step, (state, True) after every epoch.

    Anything in caught, a list that signals fill, leaves the evaluation.
    """
    device, (rank, world) = _device(state.optimizer), _peers(state.model)
    seed, watched = int(seed), loss_fn if world > 1 else _unless(caught, loss_fn)
    while (epoch := len(state.history)) < epochs:
        if not _bare(state.model).training:
            state.model.train()  # but the frozen parts of a training model stay so
        start = time.perf_counter()
        first = int(state.history[-1]["step"]) if epoch else 0
        _seed(device, seed, -1, epoch)
        batches = _batches(_placed(train, epoch, state.step - first), (rank, world))
        if not _is_ours(train):  # it draws its order, and its rows, as it goes
            for past in range(first, state.step):
                _seed(device, seed, past)
                next(batches, None)
        while True:
            _seed(device, seed, state.step)
            if (batch := next(batches, None)) is None:
                break
            if rank:  # or all would draw the same dropout
                _seed(device, seed, state.step, rank)
            state, sums = step(state, batch, loss_fn=loss_fn)
            state = state._replace(sums=_add(state.sums, sums))
            if device == CPU or state.step % 100 == 0:
                _check_loss(state)
            yield state, False
        if state.step == first:
            raise ValueError(f"train must give batches in every epoch, none in {epoch}")
        _check_loss(state)
        row = _row(state, val, watched, metrics)
        if row.get("train_skipped", 0) < 1 and not state.per_step:
            _advance(state.scheduler, row.get("val_loss", row.get("train_loss", 0.0)))
        row["seconds"] = time.perf_counter() - start
        row = _first_says(row) if world > 1 else row
        state = state._replace(sums={}, history=(*state.history, row))
        yield state, True


def _row(state: State, val: Any, loss_fn: LossFn, metrics: Any) -> Row:
    """The finished epoch's row, with its validation."""
    epoch, lr = len(state.history), state.optimizer.param_groups[0]["lr"]
    row = {"epoch": epoch, "step": state.step, "lr": float(lr)}
    row |= _means(state.sums, "train_")
    if _peers(state.model)[1] > 1:
        for buffer in state.model.buffers():  # BatchNorm's means differ
            dist.broadcast(buffer.detach(), 0)
    if val is not None:
        placed = _placed(val, epoch, 0)
        scores = evaluate(state.model, placed, loss_fn=loss_fn, metrics=metrics)
        row |= {f"val_{key}": value for key, value in scores.items()}
    return row


def _placed(loader: Any, epoch: int, start: int) -> Any:
    """The loader, told its epoch; make_loader's also where in it to begin, unread."""
    for name in ("sampler", "batch_sampler"):
        sampler = getattr(loader, name, None)
        if isinstance(sampler, _Order):
            sampler.epoch, sampler.start = epoch, start
        elif set_epoch := getattr(sampler, "set_epoch", None):
            set_epoch(epoch)
    return loader


def _batches(loader: Any, share: tuple[int, int] = (0, 1)) -> Iterator[Any]:
    """Its batches, or of every batch the share that one of several processes takes."""
    if isinstance(loader, Tensor | tuple):
        kind = type(loader).__name__
        raise TypeError(f"loader must give batches, got a {kind}: make_loader(data)")
    dataset = getattr(loader, "dataset", None)
    if _is_ours(loader):
        loader.sampler.share = share
        if isinstance(dataset, _Tensors) and not loader.num_workers:
            return _read(dataset, loader.sampler)  # 40 µs a batch less
    elif share[1] > 1 and not _is_divided(loader):
        return (_shared(batch, *share) for batch in loader)
    return iter(loader)


def _is_divided(loader: Any) -> bool:
    """Whether a DistributedSampler gives every process rows of its own."""
    batches = getattr(loader, "batch_sampler", None)
    samplers = getattr(loader, "sampler", None), batches, getattr(batches, "sampler", 0)
    return any(getattr(sampler, "num_replicas", 1) > 1 for sampler in samplers)


def _shared(batch: Batch, share: int, shares: int) -> Batch:
    n = len(batch[1])
    return _cut(batch, n * share // shares, n * (share + 1) // shares)


def _is_ours(loader: Any) -> bool:
    return isinstance(getattr(loader, "sampler", None), _Order)


def _unless(caught: Sequence[int], loss_fn: LossFn) -> LossFn:
    def watched(*pair: Tensor) -> Any:
        if caught:
            raise _Interrupted
        return loss_fn(*pair)

    return watched


def _seed(device: torch.device, *numbers: int) -> None:
    number = _hash(*numbers)
    torch.default_generator.manual_seed(number)
    if device != CPU:
        torch.get_device_module(device).manual_seed(number)


def _advance(scheduler: Any, value: float) -> None:
    if scheduler is None:
        return
    with warnings.catch_warnings():  # after a resume the optimizer has not stepped yet
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step")
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(value)
        else:
            scheduler.step()


def _check_loss(state: State) -> None:
    """Raise FloatingPointError once the epoch's loss is NaN or infinite."""
    loss = float(state.sums.get("loss", 0.0))
    if state.scaler.is_enabled() and state.scaler.get_scale() < 2.0**-40:
        loss = math.nan  # of the gradient, at every step
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss became {loss} in epoch {len(state.history)}, by step "
            f"{state.step}: look for NaN in the data, lower the learning rate "
            f"({state.optimizer.param_groups[0]['lr']:g}), clip the gradient or "
            "standardise the inputs"
        )


def fit(
    state: State,
    train: Iterable[Batch],
    val: Iterable[Batch] | None = None,
    *,
    loss_fn: LossFn,
    epochs: int,
    metrics: Any = None,
    step: Callable = train_step,
    seed: int = 0,
    stop: Callable[[Sequence[Row]], bool] | None = None,
    on_epoch: Callable[[State], Any] | None = None,
    checkpoint: str | Path | None = None,
    save_every: int | None = None,
) -> State:
    """Train until `epochs` epochs are done in all, also after a resume.

    stop(history) ends the run early; on_epoch(state) watches it. checkpoint names a
    folder, which then holds last.pt, written after every epoch and every save_every
    steps, and best.pt, of the lowest val_loss (train_loss without val). With it, and
    in the main thread, a first SIGINT or SIGTERM finishes the step, saves, and raises
    KeyboardInterrupt or SystemExit(143); a second one acts at once, but for a file that
    is being written. Files are written behind the training, of a copy, and are there
    when fit returns.

    In each of several processes that torchrun started, fit trains with the others: a
    batch is shared by all, and the first of them writes and calls on_epoch.

    Raises FileExistsError when the folder holds a run that state does not go on from,
    FloatingPointError when the loss becomes NaN or infinite. Source: tutorial 3.5, 6.

    >>> model = nn.Linear(1, 1)
    >>> state = make_state(model, torch.optim.SGD(model.parameters(), lr=0.01))
    >>> state = fit(state, [make_data()], loss_fn=nn.L1Loss(), epochs=3)
    >>> [row["epoch"] for row in state.history]
    [0, 1, 2]
    """
    stop = stop or (lambda history: False)
    last = Path(checkpoint) / "last.pt" if checkpoint else None
    if last and last.exists() and not _goes_on(state, read_checkpoint(last)):
        raise FileExistsError(
            f"{last} is there already, of another run: go on from it with "
            "load_checkpoint, or name another folder"
        )
    if stop(state.history):
        return state
    with _together(state) as now, _behind() as later:
        device, (rank, world) = _device(now.optimizer), _peers(now.model)
        with _interrupts(catch=last is not None) as caught:
            parts = (now, train, val, loss_fn, epochs, metrics, step, seed, caught)
            for now, finished in _steps(*parts):
                if last and (finished or (save_every and now.step % save_every == 0)):
                    _save(now, last, finished, later)
                if finished and on_epoch and rank == 0:
                    on_epoch(now._replace(model=state.model))
                if _agreed(caught, world, device) or (
                    finished and _first_says(stop(now.history))
                ):
                    break
        number = _agreed(caught, world, device)
        if number and last:
            _save(now, last, False, later)
    if number and last:
        _die(number)
    return now._replace(model=state.model)


def _goes_on(state: State, saved: dict[str, Any]) -> bool:
    """Whether the state comes from what was saved, or from what came of that."""
    rows = list(state.history[: len(saved["history"])])
    return state.step >= saved["step"] > 0 and repr(rows) == repr(saved["history"])


def _save(state: State, last: Path, finished: bool, later: Callable) -> None:
    """Write last.pt and, before it, best.pt, should this epoch be the best."""
    _check_loss(state)
    best = finished and is_best(state.history, key=_loss_key(state.history))
    content = _content(state, copy=True)
    if not _peers(state.model)[0]:
        names = [_plain_key(k) for k, _ in _bare(state.model).named_parameters()]
        paths = [last.with_name("best.pt"), last] if best else [last]
        at = f"step {state.step}, epoch {len(state.history)}"
        later(partial(_write_finite, content, names, paths, at))


def _write_finite(content: dict, names: list[str], paths: list[Path], at: str) -> None:
    for name in names:
        if not content["model"][name].isfinite().all():
            lr = content["optimizer"]["param_groups"][0]["lr"]
            raise FloatingPointError(
                f"{name} has NaN or infinite values after {at}: not saved; lower the "
                f"learning rate ({lr:g}) or clip the gradient"
            )
    for path in paths:
        _write_content(content, path)


@contextmanager
def _behind() -> Iterator[Callable[[Callable], None]]:
    """Calls go into a thread, one at a time; what one raises, the next or the end raises."""
    with ThreadPoolExecutor(1) as pool:
        running: Future = Future()
        running.set_result(None)

        def later(call: Callable) -> None:
            nonlocal running
            running.result()
            running = pool.submit(call)

        try:
            yield later
        finally:
            running.result()


@contextmanager
def _together(state: State) -> Iterator[State]:
    """In each process of a torchrun the state with a DistributedDataParallel model."""
    with _group():
        world = dist.get_world_size() if _has_group() else 1
        if world > 1:
            begun: list[Any] = [None] * world
            dist.all_gather_object(begun, (state.step, len(state.history)))
            if len(set(begun)) > 1:
                raise ValueError(
                    "all processes must begin at the same (step, epoch), got "
                    f"{sorted(set(begun))}: let them load the same checkpoint"
                )
            atexit.unregister(_linger)
            atexit.register(_linger)
        if world == 1 or _peers(state.model)[1] > 1:
            yield state
            _first_says(None)
            return
        model: Any = DistributedDataParallel(state.model)
        try:
            yield state._replace(model=model)
            _first_says(None)  # that its files are written
        finally:  # takes the hooks off; and to be the group's last owner is a deadlock
            del model.logger, model.reducer, model.process_group


def _linger() -> None:
    """Time for gloo's threads to drop tensors, of which they die once Python ends."""
    time.sleep(0.05)


@contextmanager
def _group() -> Iterator[None]:
    """A process group, where torchrun started several processes and there is none yet."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or not dist.is_available() or _has_group():
        yield
        return
    importlib.import_module("torch.distributed.nn")  # later, it would keep the group

    store, rank, world = next(dist.rendezvous("env://"))
    nth = store.add(f"kit/{rank}", 1)  # group of this process: each has keys of its own
    store = dist.PrefixStore(f"kit/{nth}", store)
    dist.init_process_group(store=store, rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _first_says(value: Any) -> Any:
    """What the first process of the group has, in all of them."""
    box = [value]
    if _has_group():
        dist.broadcast_object_list(box)
    return box[0]


def _rank() -> int:
    return dist.get_rank() if _has_group() else 0


def _agreed(caught: Sequence[int], world: int, device: torch.device) -> int:
    """The signal that this process, or another one, has caught; else 0."""
    number = caught[0] if caught else 0
    if world > 1:
        flag = torch.tensor(number, device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        number = int(flag)
    return number


class _Interrupted(Exception):
    """Leaves an evaluation, which has nothing to save."""


@contextmanager
def _interrupts(*, catch: bool) -> Iterator[list[int]]:
    """Put a first SIGINT or SIGTERM into a list; let a second one act at once."""
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        if len(caught) > 1:
            _die(number)

    # signal.signal is allowed in the main thread only
    catch = catch and threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if catch else ()
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield caught
    except _Interrupted:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _die(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


# ---------------------------------------------------------------- 7 techniques


def amp(model: nn.Module, precision: str) -> nn.Module:
    """The model with its forward under autocast, "bf16" or "fp16", and float32 out.

    For fp16, make_state adds the GradScaler. Checkpoints do not show the wrap.
    Raises ValueError on a device that cannot. Source: tutorial 7.1.

    >>> amp(nn.Linear(2, 1), "bf16")(torch.ones(3, 2)).dtype
    torch.float32
    """
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in dtypes:
        raise ValueError(f"precision must be bf16 or fp16, got {precision!r}")
    device = _model_device(model).type
    able = torch.amp.is_autocast_available(device)
    if device == "cuda" and precision == "bf16":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    if not able:
        raise ValueError(f"{device} has no {precision} autocast: leave amp out")
    return _Amp(model, dtypes[precision])


class _Amp(nn.Module):
    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self._orig_mod, self.dtype = model, dtype  # named as torch.compile names it

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(_model_device(self).type, self.dtype):
            out = self._orig_mod(*args, **kwargs)
        return _map(lambda t: t.float() if t.is_floating_point() else t, out)


def early_stopping(
    history: Sequence[Row],
    *,
    patience: int,
    min_delta: float = 0.0,
    key: str = "val_loss",
) -> bool:
    """Whether the last `patience` epochs brought no value below the best - min_delta.

    NaN is no improvement. As a function of the history it needs no saving. Source:
    tutorial 7.5.

    >>> losses = [float("nan"), 1.0, 2.0, 2.0]
    >>> early_stopping([{"val_loss": loss} for loss in losses], patience=2)
    True
    """
    _at_least("patience", patience, 1)
    return len(history) - 1 - _best(history, key, min_delta) >= patience


def is_best(
    history: Sequence[Row], *, key: str = "val_loss", min_delta: float = 0.0
) -> bool:
    """Whether the last epoch has the lowest value so far, by more than min_delta.

    >>> is_best([{"val_loss": 2.0}, {"val_loss": 1.0}])
    True
    """
    return bool(history) and _best(history, key, min_delta) == len(history) - 1


def _best(history: Sequence[Row], key: str, min_delta: float) -> int:
    """The index of the best epoch; -1 while there is none."""
    best, at = math.inf, -1
    for i, row in enumerate(history):
        if row.get(key, math.nan) < best - min_delta:
            best, at = row[key], i
    if history and key not in history[-1]:
        found = ", ".join(history[-1])
        raise ValueError(f"the history has no {key!r}, only: {found}")
    return at


# ------------------------------------------------------------------- 8 metrics


def metrics(prediction: Tensor, target: Tensor) -> dict[str, float]:
    """Float targets: mae, mse, rmse, r2. Integer: accuracy, precision, recall, f1.

    Of a regression, prediction and target have one shape, (N,) or (N, K); r2 is the
    mean over the K columns; it is nan for one sample, and for a constant target 1
    where all is right, else 0. Of a classification, target is (N,) and prediction the
    class numbers (N,) of an integer type, scores (N, C), or logits (N, 1) or (N,) of
    class 1; the last three are means over
    the classes that occur. All in float64. Source: tutorial 8.1; the conventions are
    scikit-learn's.

    >>> metrics(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0]))["r2"]
    0.5
    """
    _at_least("samples", len(target), 1)
    if not target.is_floating_point():
        if prediction.is_floating_point() and prediction.isnan().any():
            return dict.fromkeys(("accuracy", "precision", "recall", "f1"), math.nan)
        return _class_metrics(confusion_matrix(prediction, target).cpu().double())
    if prediction.shape != target.shape:
        shapes = f"{tuple(prediction.shape)} for {tuple(target.shape)}"
        raise ValueError(f"prediction must be of the target's shape, got {shapes}")
    prediction, target = prediction.detach().cpu().double(), target.cpu().double()
    error = (prediction - target).reshape(len(target), -1)
    rest = error.square().sum(0)
    spread = (target - target.mean(0)).reshape(len(target), -1).square().sum(0)
    constant = (target == target[0]).reshape(len(target), -1).all(0)
    r2 = torch.where(constant, (rest == 0) + 0 * rest, 1 - rest / spread)
    mse = error.square().mean().item()
    return {
        "mae": error.abs().mean().item(),
        "mse": mse,
        "rmse": math.sqrt(mse),
        "r2": r2.mean().item() if len(target) > 1 else math.nan,
    }


def confusion_matrix(prediction: Tensor, target: Tensor) -> Tensor:
    """Counts (C, C) of samples, a row for each true class, a column for each predicted.

    prediction: class numbers (N,), scores (N, C), or logits (N, 1) or (N,) of class 1.

    >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])).tolist()
    [[1, 1], [0, 1]]
    """
    _at_least("samples", target.numel(), 1)
    shapes = f"{tuple(prediction.shape)} for {tuple(target.shape)}"
    scores, classes = prediction.is_floating_point(), 2
    if scores and prediction.isnan().any():
        raise ValueError("prediction must be numbers, got NaN")
    if scores and prediction.ndim > target.ndim and prediction.shape[1] > 1:
        classes, prediction = prediction.shape[1], prediction.argmax(1)
    elif scores and prediction.numel() == target.numel():
        prediction = (prediction > 0).reshape(target.shape)
    if prediction.shape != target.shape:
        must = "of the target's shape, or a score for each class"
        raise ValueError(f"prediction must be {must}, got {shapes}")
    prediction, target = prediction.long(), target.long()
    if not scores:
        classes = int(max(prediction.max(), target.max())) + 1
    low, high = min(prediction.min(), target.min()), target.max()
    if low < 0 or high >= classes:
        must = f"class numbers from 0 to {classes - 1}"
        raise ValueError(f"target must be {must}, got from {low} to {high}")
    pairs = (target * classes + prediction).flatten()
    return pairs.bincount(minlength=classes**2).reshape(classes, classes)


def _class_metrics(counts: Tensor) -> dict[str, float]:
    right, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    occur = true + predicted > 0
    scores = {
        "precision": right / predicted.clamp(min=1),
        "recall": right / true.clamp(min=1),
        "f1": 2 * right / (true + predicted).clamp(min=1),
    }
    accuracy = {"accuracy": (right.sum() / counts.sum()).item()}
    return accuracy | {k: v[occur].mean().item() for k, v in scores.items()}


# --------------------------------------------------------------------- 9 watch


def plot_predictions(train: Batch, test: Batch, prediction: Tensor | None = None):
    """A matplotlib Figure: training data blue, test data green, prediction red.

    train and test are (inputs (N, 1), targets (N, 1)); prediction is (N, 1), for the
    test inputs. Source: tutorial 1.5.

    >>> train, test = split(make_data())
    >>> plot_predictions(train, test, test[1] + 0.1).savefig("line.png")
    """
    figure = _figure(10, 7)
    axes = figure.subplots()
    axes.scatter(*(t.cpu() for t in train), s=16, color="b", label="training data")
    axes.scatter(*(t.cpu() for t in test), s=40, color="g", label="test data")
    if prediction is not None:
        y = prediction.detach().cpu()
        axes.scatter(test[0].cpu(), y, s=12, color="r", label="prediction")
    axes.set(xlabel="input", ylabel="target")
    axes.legend(frameon=False)
    return figure


def plot_history(history: Sequence[Row]):
    """A matplotlib Figure of the losses, every metric and the learning rate by epoch.

    The best epoch is marked; the scale is logarithmic where losses or learning rates
    span more than a factor of 20. Source: tutorial 3.4.

    >>> plot_history([{"epoch": 0, "train_loss": 2.0, "lr": 0.1}]).savefig("curve.png")
    """
    if not history:
        raise ValueError("history must have at least one row, got none")
    panels: dict[str, dict[str, list[float]]] = {"loss": {}}  # train and val in one
    for key in dict.fromkeys(chain(*history)):
        name = key.removeprefix("train_").removeprefix("val_")
        panels.setdefault(name, {})[key] = [row.get(key, math.nan) for row in history]
    epochs = panels.pop("epoch")["epoch"]
    rate = panels.pop("lr", {})
    if len(set(*rate.values())) > 1:
        panels["lr"] = rate
    names = [name for name, panel in panels.items() if panel and name not in _ASIDE]
    pairs = [(names[i : i + 2] * 2)[:2] for i in range(1, len(names), 2)]
    figure = _figure(10, 5 + 2 * len(pairs))
    heights = [2, *(1 for _ in pairs)]
    grid = figure.subplot_mosaic([names[:1] * 2, *pairs], height_ratios=heights)
    best = _best(history, _loss_key(history), 0.0)
    if best >= 0:
        grid[names[0]].set_title(f"best epoch: {epochs[best]:g}", fontsize="medium")
    for name, axes in grid.items():
        for key, values in panels[name].items():
            axes.plot(epochs, values, label=key)
        known = [v for values in panels[name].values() for v in values]
        known = list(filter(math.isfinite, known))
        if name in ("loss", "lr") and known and max(known) > 20 * min(known) > 0:
            axes.set_yscale("log")
        if best >= 0:
            axes.axvline(epochs[best], color="gray", linestyle=":")
        axes.legend(frameon=False)
        axes.set_xlabel("epoch")
    return figure


_ASIDE = {"step", "seconds"}


def _loss_key(history: Sequence[Row]) -> str:
    """The loss that says which epoch is the best."""
    return "val_loss" if "val_loss" in history[-1] else "train_loss"


def _figure(width: float, height: float):
    """A Figure without pyplot: nothing global, no window, no display needed.

    Chinese, Japanese and Korean text gets a font that has it, if one is installed.
    """
    try:
        from matplotlib import font_manager
        from matplotlib.figure import Figure
        from matplotlib.text import Text
    except ImportError:
        raise ImportError("plotting needs matplotlib: pip install matplotlib") from None

    class Readable(Figure):
        def draw(self, renderer: Any) -> None:
            installed = {font.name for font in font_manager.fontManager.ttflist}
            more = [name for name in _CJK_FONTS if name in installed]
            for text in self.findobj(Text):
                text.set_fontfamily([*dict.fromkeys([*text.get_fontfamily(), *more])])
            with warnings.catch_warnings():  # boxes say that no font was there
                warnings.filterwarnings("ignore", "Glyph .* missing from font")
                super().draw(renderer)

    return Readable(figsize=(width, height), layout="constrained")


_CJK_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "PingFang SC"),
    *("Microsoft YaHei", "SimHei", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei"),
)

# ------------------------------------------------------------------- 10 export


def export(
    model: nn.Module,
    path: str | Path,
    *,
    example: Tensor,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write the model to an .onnx or .pt2 file that takes batches of any size.

    example is a batch of inputs (N, ...). The bare model is exported in eval mode, for
    the CPU, its input named "input", its output "output"; metadata's values become
    JSON. What was made is loaded by onnxruntime, or by torch, and given 1, N and N + 1
    rows: no output may differ by more than 1e-4 of the largest (or by 1e-6). Only then
    is it written, beside, and renamed. Source: tutorial 10.1.

    Raises ValueError when torch cannot export the model, or the numbers differ.

    >>> export(nn.Linear(2, 1), "plane.pt2", example=torch.rand(8, 2)).name
    'plane.pt2'
    """
    path, makers = Path(path), {".onnx": _make_onnx, ".pt2": _make_pt2}
    if path.suffix.lower() not in makers:
        raise ValueError(f"an export must be an .onnx or .pt2 file, got {path.name}")
    if not isinstance(example, Tensor):
        raise TypeError(f"example must be a tensor, got {type(example).__name__}")
    _at_least("rows of example", example.ndim and len(example), 1)
    rows = example.detach().cpu()
    batches = rows[:1], rows, torch.cat([rows, rows[:1]])
    texts = {key: json.dumps(value) for key, value in (metadata or {}).items()}
    with _exporting(path.name):
        bare = copy.deepcopy(_bare(model)).cpu().eval().requires_grad_(False)
        expected = [_one_tensor(bare(batch.clone())) for batch in batches]
        content, loaded = makers[path.suffix.lower()](_program(bare, rows), texts)
        outputs = [_one_tensor(loaded(batch.clone())) for batch in batches]
    for one, other in zip(expected, outputs):
        _check_same(one, other, path.name)
    return _write(path, lambda file: file.write(content))


def _program(model: nn.Module, rows: Tensor) -> torch.export.ExportedProgram:
    """The model as torch's graph, of free batch size, without this machine's paths."""
    traced = rows.new_zeros(2, *rows.shape[1:])  # saved too; 1 row would fix the size
    shapes = torch.export.ShapesCollection()
    shapes[traced] = {0: torch.export.Dim("batch")}
    dynamic = shapes.dynamic_shapes(model, (traced,))
    program = torch.export.export(model, (traced,), dynamic_shapes=dynamic)
    for module in program.graph_module.modules():  # a condition has graphs of its own
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def _make_pt2(program: torch.export.ExportedProgram, texts: dict) -> tuple:
    """A .pt2 file's content, and the function that torch makes of it."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files=texts)
    return file.getvalue(), torch.export.load(io.BytesIO(file.getvalue())).module()


def _make_onnx(program: torch.export.ExportedProgram, texts: dict) -> tuple:
    """An .onnx file's content, and the function that onnxruntime makes of it."""
    needs = "onnx", "onnxscript", "onnxruntime"
    try:
        *_, onnxruntime = map(importlib.import_module, needs)
    except ImportError:
        raise ImportError(f".onnx needs: pip install {' '.join(needs)}") from None
    made: Any = torch.onnx.export(
        program,
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes=({0: "batch"},),
        verbose=False,
    )
    made.model.metadata_props.update(texts)
    content = made.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content)

    def loaded(rows: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["output"], {"input": rows.numpy()})[0])

    return content, loaded


def _one_tensor(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(f"it must give one tensor, got {type(output).__name__}")
    return output.double()


def _check_same(expected: Tensor, got: Tensor, name: str) -> None:
    most, differ = float(expected.abs().max()), math.inf
    if expected.shape == got.shape:
        differ = float((got - expected).abs().max())
    if not differ <= max(1e-4 * most, 1e-6) < math.inf:
        raise ValueError(
            f"{name} differs from the model by {differ:.2g}, in outputs up to {most:.2g} "
            f"of {len(expected)} rows: not written"
        )


@contextmanager
def _exporting(name: str) -> Iterator[None]:
    """torch's exporters without what they warn of, log and print; one line if they fail."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except ImportError:
        raise
    except Exception as error:  # they raise of all kinds
        cause: BaseException = error
        while cause.__cause__:
            cause = cause.__cause__
        reason = textwrap.shorten(str(cause), 250, placeholder=" ...")
        raise ValueError(f"{name} cannot be made of the model: {reason}") from error
    finally:
        logging.disable(before)


# ---------------------------------------------------------- 12 troubleshooting

_FEW = 4  # epochs: fewer have no trend
_SLOW = 1.0  # seconds an epoch: nobody waits for less
_LOOK, _MANY = 50, 2**25  # batches to look at; fewer, once they hold 128 MB

# The tutorial's question, a number, what it must not be above, why; and what to say.
_SICK = """
1 lost 0        a loss is a number
    {} losses are NaN or infinite: --lr {low}, --clip 1.0, no NaN in the data
1 dead 0.75     of a small net on one input column 0.6 are, and all is well
    {:.0%} of the units of the ReLU {relu} are 0 in every row: --lr {low}, nn.LeakyReLU
1 idle 0        what is frozen on purpose is not given to the optimizer
    {} parameters have no gradient or no optimizer ({idlers}): requires_grad_(True)
1 rise 1.1      less is noise
    train_loss rose to {:.3g} times what it was: --lr {low}, --clip 1.0
1 bounce 0.1    the tutorial's line ends in a bounce of 0.06
    train_loss jumps by {:.0%} of a constant's loss an epoch: --lr {low}, --clip 1.0
1 stay 0.99     less is a fall
    train_loss is {:.2%} of what it was {epochs} epochs ago: --lr {high}
1 late 0.2      a straight line has 0.25
    {:.0%} of the loss's fall came in the last quarter: --lr {high}, or --epochs {more}
2 gap 0.1       less is what another seed would do
    val_loss rose by {:.0%} as train_loss fell: --patience 10, --weight-decay 1e-4
3 late 0.1      as much again is yet to come
    {:.0%} of the loss's fall came in the last quarter: --epochs {double}
3 poor 0.9      what is above has learned next to nothing
    the loss is {:.0%} of a constant's: --model mlp --hidden 128,128, --epochs 500
4 wait 0.3      less gains little, and a worker costs
    {:.0%} of {seconds:.1f} s an epoch is waiting for data: --workers {workers}, a cache
4 batch 1.3     less drowns in a busy machine's noise
    batches of twice the rows are {:.1f} times as fast: --batch-size {twice}
4 bf16 1.3      as above
    bf16 is {:.1f} times as fast: --amp bf16
5 short 0       the copy's step ran out of it
    a copy did not fit beside {:.1f} GiB: --accumulate 4, --amp bf16, or checkpointing
5 full 0.8      fragments, and the longest batch, take the rest
    {:.0%} of the memory was taken: --accumulate 4, --amp bf16, or checkpointing
6 rare 10       the tutorial weighs its classes 1 : 10
    class {rarest}, 1 row for {:.0f} of the commonest, is {found:.0%} found: class weights
7 far 10        curvatures, by its square, are 100 times apart
    inputs are {:.0f} times off a mean of 0 and a spread of 1: kit.Standardize(X) first
7 same 0        a constant tells nothing
    {} input columns ({constants}) have one value: leave them out
"""


def diagnose(
    state: State,
    train: Iterable[Batch] | None = None,
    *,
    loss_fn: LossFn | None = None,
    step: Callable = train_step,
) -> list[str]:
    """What ails a run, as "what was seen: what to try"; [] where nothing was seen.

    Of each of the tutorial's seven questions, the first answer that holds. The
    history tells whether the losses fall, part or stay high. Given train and its
    loss_fn, a copy also goes through up to 50 batches, for gradients, dead nn.ReLUs,
    speed (of epochs of a second or more), memory, classes and inputs. Neither the
    state nor the randomness changes. Source: tutorial 12.

    >>> model = nn.Linear(1, 1)
    >>> state = make_state(model, torch.optim.SGD(model.parameters(), lr=1e-4))
    >>> state = fit(state, [make_data()], loss_fn=nn.L1Loss(), epochs=99)
    >>> [finding.partition(": ")[2] for finding in diagnose(state)]
    ['--lr 0.001, or --epochs 990']
    """
    facts: dict[str, Any] = {}
    if train is not None:
        if loss_fn is None:
            raise ValueError("loss_fn must be given with train, got None")
        if _has_shards(state.model):
            raise ValueError(
                "diagnose needs a copy, and torch copies no shards: load the checkpoint "
                "into a model without fully_shard, in one process"
            )
        try:
            with _KeptRandom(), _kept_order(train):
                facts = _trial(state, train, loss_fn, step)
        except (RuntimeError, MemoryError) as error:
            if "memory" not in repr(error).lower():
                raise
            facts = {"short": _memory(_device(state.optimizer))[0]}
    facts |= _past(state, facts.get("loss", 0.0), facts.get("flat", math.inf))
    found: dict[str, str] = {}
    lines = _SICK.strip().splitlines()
    for head, text in zip(lines[::2], lines[1::2]):
        question, fact, limit = head.split()[:3]
        answered = found.keys() & {question, "1" if question == "3" else question}
        if not answered and facts.get(fact, 0) > float(limit):
            found[question] = text.strip().format(facts[fact], **facts)
    return list(found.values())


@contextmanager
def _kept_order(loader: Any) -> Iterator[None]:
    """Put the loader's epoch, and the generators it draws from, back afterwards."""
    sampler = getattr(loader, "sampler", None)
    order = vars(sampler).copy() if _is_ours(loader) else {}
    drawn = [getattr(thing, "generator", None) for thing in (loader, sampler)]
    before = [(generator, generator.get_state()) for generator in drawn if generator]
    try:
        yield
    finally:
        if order:
            vars(sampler).update(order)
        for generator, kept in before:
            generator.set_state(kept)


def _past(state: State, loss: float, flat: float) -> dict[str, Any]:
    """The facts of the history; loss and flat are the model's and a constant's."""
    train, val, rates = (
        np.array([row[key] for row in state.history if key in row])
        for key in ("train_loss", "val_loss", "lr")
    )
    n, lr = len(train), max(rates, default=state.optimizer.param_groups[0]["lr"])
    facts = {"low": f"{lr / 10:.3g}", "high": f"{lr * 10:.3g}", "epochs": n}
    losses = [*train, *val, loss]
    facts |= {"double": 2 * n, "more": 10 * n, "lost": (~np.isfinite(losses)).sum()}
    if n < _FEW or facts["lost"] or not min(losses[:-1]) > 0:
        return facts
    trend, bounce = _trend(train)
    course, noise = _trend(val) if len(val) == n else (trend, bounce)
    fell = trend[-1] / trend[0]
    facts |= {"bounce": bounce / min(train[0], flat), "poor": loss / flat}
    facts |= {"rise": fell, "stay": fell * (loss > 0.9 * flat)}
    fall, late = (course[i] - course[-1] for i in (0, -1 - len(course) // 4))
    if noise < late <= fall and rates[-1] > 0.1 * lr:  # no schedule has ended it
        facts["late"] = late / fall
    best, patience = course.argmin(), state.config.get("patience") or sys.maxsize
    stop = partial(early_stopping, min_delta=state.config.get("min_delta", 0.0))
    rise, since = course[-1] - course[best], course[best:]
    parted = rise > max(noise, 0.01 * course[0]) and trend[-1] < trend[best]
    lasting = len(since) > len(course) // 4 and course[-1] > 0.9 * since.max()
    if parted and lasting and not stop(state.history, patience=patience):  # the cure
        facts["gap"] = rise / course[best]
    return facts


def _trend(losses: np.ndarray) -> tuple[np.ndarray, float]:
    """Means over some epochs, and how far a late one is, mostly, off its neighbours.

    Over an even number, so that a bounce between two points moves no mean.
    """
    n, late = max(2, len(losses) // 20 * 2), losses[len(losses) // 2 - 1 :]
    trend = np.convolve(losses, np.ones(n) / n, "valid")
    return trend, float(np.median(np.abs(np.diff(late, 2)))) / 2


def _trial(state: State, train: Any, loss_fn: Any, step: Callable) -> dict[str, Any]:
    """The facts of a copy that takes some batches at a learning rate of 0."""
    before, now = _memory(_device(state.optimizer)), _copied(state)
    named = [(_plain_key(k), p) for k, p in _bare(now.model).named_parameters()]
    on, first = _hooked(_bare(now.model))
    times, moved, many = [], set(), 0
    kept: dict[str, list] = {}  # by the shapes of their rows
    sample: Any = None
    for wait, batch in _timed(
        islice(_batches(_placed(train, len(state.history), 0)), _LOOK)
    ):
        own, again = (_map(torch.clone, batch) for _ in range(2))  # to change in place
        start, sample = time.perf_counter(), sample or batch
        _means(step(now, own, loss_fn=loss_fn)[1])  # waits for the device
        times.append((wait, time.perf_counter() - start))
        grads = [(k, p.grad) for k, p in named if p.grad is not None]
        moved |= {k for k, grad in grads if grad.any() or grad.numel() == 1}
        sums = eval_step(now.model, again, loss_fn=loss_fn, metrics=metrics)
        part = *sums["outputs"][0], _columns(batch[0])
        kept.setdefault(str([t.shape[1:] for t in part]), []).append(part)
        if (many := many + sum(t.numel() for t in part)) > _MANY:
            break
    if not kept:
        raise ValueError("train must give a batch to look at, got none")
    sizes: list[int] = []  # of what the copy takes beside the original
    held = now.model.state_dict(), now.optimizer.state_dict()
    _map(lambda t: sizes.append(t.nbytes), held)
    taken = max(before[0], _memory(_device(now.optimizer))[0] - sum(sizes) / 2**30)
    outputs, targets, inputs = map(torch.cat, zip(*max(kept.values(), key=len)))
    facts = _beside_a_constant(outputs, targets, loss_fn) | _rare(outputs, targets)
    facts |= _scale(inputs, torch.cat(first or [inputs]), state.config.get("columns"))
    owned = {id(p) for p in _parameters(now.optimizer)}
    idlers = [k for k, p in named if (id(p) in owned) != (k in moved) and facts["loss"]]
    facts |= {"idle": len(idlers), "idlers": _some(idlers)}
    units = [(1 - ever.float().mean().item(), name) for name, ever in on.items()]
    facts |= dict(zip(("dead", "relu"), max(units, default=())))
    facts |= {
        "full": taken / before[1],
        "seconds": sum(row.get("seconds", 0.0) for row in state.history[-1:]),
    }
    if facts["seconds"] >= _SLOW and len(times) > 1:
        facts |= _speed(now, sample, times, loss_fn, step)
    return facts


def _copied(state: State) -> State:
    """A copy that steps without changing; of the model's wraps it has amp."""
    now = state._replace(model=_bare(state.model), scheduler=None, per_step=False)
    now = copy.deepcopy(now)
    if not now.model.training:
        now.model.train()
    for group in now.optimizer.param_groups:
        group["lr"] = 0.0
    wraps = [m.dtype for m in state.model.modules() if isinstance(m, _Amp)]
    return now._replace(model=_Amp(now.model, wraps[0])) if wraps else now


def _hooked(model: nn.Module) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Of each ReLU the units ever on, and the first layer's inputs, filled by running."""
    on: dict[str, Tensor] = {}
    first: list[Tensor] = []
    called: dict[str, nn.Module] = {}

    def note(name: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if isinstance(module, nn.ReLU):
            units = (_columns(output) > 0).any(0)
            key = f"{name} ({len(units)} units)"  # it may serve several widths
            on[key] = on.get(key, units) | units
        elif called.setdefault("first", module) is module and not module.training:
            first.append(_columns(next(iter(inputs), None)))

    for name, module in model.named_modules():
        weighs = any(p.ndim > 1 for p in module.parameters(recurse=False))
        if weighs or isinstance(module, nn.ReLU):
            module.register_forward_hook(partial(note, name))
    return on, first


def _columns(x: Any) -> Tensor:
    """(rows, columns), a column for each channel; no rows of what is no such thing."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return torch.empty(0, 1)
    x = x[:, None] if x.ndim < 2 else x.movedim(1, -1) if x.ndim > 3 else x
    return x.detach().reshape(-1, x.shape[-1])


def _beside_a_constant(outputs: Tensor, targets: Tensor, loss_fn: Any) -> dict:
    """The loss, and that of one output for all rows: the mean output, or target."""
    alike = targets.is_floating_point() and outputs.shape == targets.shape
    means = [x.mean(0, keepdim=True) for x in (outputs, targets)[: 1 + alike]]
    guesses = [outputs, *(mean.expand_as(outputs) for mean in means)]
    losses = [_totals(loss_fn(guess, targets), len(targets)) for guess in guesses]
    loss, *flat = (_means(sums)["loss"] for sums in losses)
    return {"loss": loss, "flat": max(min(flat), 1e-12)}


def _rare(outputs: Tensor, targets: Tensor) -> dict[str, Any]:
    """Of the rarest class that is mostly not found: rows of the commonest for one."""
    if targets.is_floating_point() or targets.ndim > 1:
        return {}
    try:
        counts = confusion_matrix(outputs, targets).cpu().double()
    except ValueError:  # integers, but no classes
        return {}
    rows = counts.sum(1)
    found = counts.diagonal() / rows  # nan where there are none
    times = torch.where(found < 0.5, rows.max() / rows, 0.0)
    i = int(times.argmax())
    return {"rare": times[i].item(), "rarest": i, "found": found[i].item()}


def _scale(inputs: Tensor, first: Tensor, names: Any) -> dict[str, Any]:
    """How far the first layer's inputs are off scale, and the columns of one value."""
    if min(len(inputs), len(first)) < 2:
        return {}
    std, mean = torch.std_mean(first.cpu().double(), dim=0, correction=0)
    far = max(std.max().item(), mean.abs().max().item(), 1 / (std.max().item() or 1))
    alike = (inputs == inputs[0]).all(0).tolist()
    same = [str(name) for name, one in zip(names or range(len(alike)), alike) if one]
    return {"far": far, "same": len(same), "constants": _some(same)}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def _speed(state: State, batch: Batch, times: list, loss_fn: Any, step: Callable):
    """The share of waiting, and times the rows a second by larger batches and bf16."""

    def pace(state: State, batch: Batch) -> float:
        steps = (_means(step(state, batch, loss_fn=loss_fn)[1]) for _ in range(4))
        return len(batch[1]) / min([taken for taken, _ in _timed(steps)][1:])

    wait, work = np.mean(times[1:], 0)
    facts = {"wait": wait / (wait + work), "workers": min(4, os.cpu_count() or 1)}
    with suppress(RuntimeError):  # too little memory
        twice = _map(lambda t: torch.cat([t, t]), batch)
        facts["batch"] = pace(state, twice) / pace(state, batch)
        facts["twice"] = len(twice[1])
    with suppress(RuntimeError, ValueError):  # the device, or a layer, has no bf16
        half = state._replace(model=amp(state.model, "bf16"))
        facts["bf16"] = pace(half, batch) / pace(state, batch)
    return facts


def _timed(things: Iterable) -> Iterator[tuple[float, Any]]:
    """The seconds that each was waited for, and the thing."""
    start = time.perf_counter()
    for thing in things:
        yield time.perf_counter() - start, thing
        start = time.perf_counter()


def _memory(device: torch.device) -> tuple[float, float]:
    """GiB that were taken at most, and that there are."""
    with suppress(RuntimeError, ImportError):  # where there is no telling
        if device != CPU:
            total = torch.accelerator.get_memory_info(device)[1]
            return torch.accelerator.max_memory_allocated(device) / 2**30, total / 2**30
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        status = Path("/proc/self/status")
        if status.exists():  # Linux's ru_maxrss begins at that of the parent process
            peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
            return int(peak[1]) / 2**20 if peak else 0.0, there
        import resource

        unit = 2**30 if sys.platform == "darwin" else 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, there
    return 0.0, math.inf


# ------------------------------------------------------------- 11 command line

OPTIMIZERS: dict[str, Callable] = {
    name.lower(): getattr(torch.optim, name)
    for name in ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad")
}
LOSSES: dict[str, LossFn] = {
    "l1": F.l1_loss,
    "mse": F.mse_loss,
    "huber": F.huber_loss,
    "cross_entropy": F.cross_entropy,
    "bce": lambda logits, y: F.binary_cross_entropy_with_logits(
        logits[:, 0], y.float()
    ),
}
LINE = {"model": "linear", "loss": "l1", "optimizer": "sgd", "lr": 0.01}
LINE |= {"ratios": (0.8, 0.2), "shuffle": False}
TABLE = {"model": "mlp", "optimizer": "adam", "lr": 0.001, "batch_size": 32}
TABLE |= {"ratios": (0.7, 0.15, 0.15), "shuffle": True, "patience": 20}
FACTS = {"columns", "classes", "shape", "outputs", "crc"}  # of the data, in a config
EVENTS = "events.out.tfevents.*"  # what TensorBoard's files are called
PARTS = {1: "train", 2: "val", 3: "test"}  # what the last of so many parts is called


class _Group(click.Group):
    """Turns a user's mistake into one line and exit code 1, Ctrl-C into 130."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(130)
        except click.exceptions.Exit:  # is a RuntimeError
            raise
        except OSError as error:
            reason = error.strerror and f"{error.filename}: {error.strerror}"
            raise click.ClickException(reason or str(error)) from error
        except _MISTAKES as error:
            reason = str(error).split("\n")[0]
            raise click.ClickException(reason or type(error).__name__) from error


# RuntimeError is torch's, for a model that does not fit the data
_MISTAKES = (ValueError, TypeError, ImportError, ArithmeticError, RuntimeError)


class _Number(click.FloatRange):
    """A number of a range, not NaN and not infinite."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__)
def main() -> None:
    """Train a PyTorch model on the tutorial's line, or on a table of your own."""


def _list(kind: type) -> Callable:
    """A click callback that reads 64,64 as a tuple of positive numbers."""

    def read(ctx: click.Context, option: click.Parameter, text: str | None) -> Any:
        try:
            numbers = None if text is None else tuple(map(kind, text.split(",")))
        except ValueError:
            numbers = (0,)
        if numbers and not all(0 < number < math.inf for number in numbers):
            what = f"must be numbers above 0 with commas between, got {text!r}"
            raise click.BadParameter(what, ctx, option)
        return numbers

    return read


def _read_config(ctx: click.Context, option: click.Parameter, path: str | None) -> None:
    """Take the file's values as defaults, which click checks as if they were typed."""
    config = _parsed(Path(path)) if path else {}
    known = {str(p.name) for p in ctx.command.params} - {"config"}
    for key, value in config.items():
        if key not in known | FACTS:
            near = difflib.get_close_matches(str(key), sorted(known), 1, 0)[0]
            raise ValueError(f"{path} has an unknown key, {key!r}: is it {near!r}?")
        if isinstance(value, Mapping):
            raise TypeError(f"{path}: {key} must be a value or a list, got {value}")
    ctx.default_map = {
        key: ",".join(map(str, value)) if isinstance(value, list) else str(value)
        for key, value in config.items()
        if value is not None and key not in FACTS
    }


def _parsed(path: Path) -> dict:
    """The content of a .yaml or .json file of KEY: VALUE."""
    read: Callable = json.loads
    damage: type[Exception] = ValueError
    if path.suffix != ".json":
        try:
            import yaml
        except ImportError:
            what = f"{path.name} needs PyYAML: pip install pyyaml"
            raise ImportError(what) from None
        read, damage = yaml.safe_load, yaml.YAMLError
    try:
        config = read(path.read_text("utf-8"))
    except (damage, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read: {reason}") from None
    if not isinstance(config, dict):
        raise TypeError(f"{path} must hold KEY: VALUE, got {config!r:.50}")
    return config


_count, _natural = click.IntRange(min=1), click.IntRange(0, 2**63 - 1)
_positive, _path = _Number(min=0, min_open=True), click.Path()


@main.command("fit")
@click.option(
    "--config",
    type=_path,
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="A .yaml or .json of options, such as a run's config.json.",
)
@click.option("--data", type=_path, help="A .csv with a header, or an .npz.")
@click.option("--samples", type=_count, default=50, help="Of the line, without --data.")
@click.option("--noise", type=_Number(min=0), default=0.0, help="Of the line: its std.")
@click.option("--target", help="The column, or array of the .npz, to predict.")
@click.option(
    "--task",
    type=click.Choice(["regression", "classification"]),
    help="Default: by the target.",
)
@click.option("--model", help="linear, mlp, or MODULE:FUNCTION(inputs, outputs).")
@click.option(
    "--hidden", default="64,64", callback=_list(int), help="Widths of the mlp."
)
@click.option("--epochs", type=_count, default=100, help="In all, after --resume too.")
@click.option("--batch-size", type=_count, help="Default: 32; all rows for the line.")
@click.option(
    "--loss",
    type=click.Choice(list(LOSSES)),
    help="Default: mse or cross_entropy; l1 for the line.",
)
@click.option(
    "--optimizer",
    type=click.Choice(list(OPTIMIZERS)),
    help="Default: adam; sgd for the line.",
)
@click.option("--lr", type=_positive, help="Default: 0.001; 0.01 for the line.")
@click.option(
    "--weight-decay", type=_Number(min=0), default=0.0, help="L2; of adamw, decoupled."
)
@click.option(
    "--scheduler",
    metavar="NAME[:KEY=VALUE,...]",
    help="step, cosine, plateau or onecycle.",
)
@click.option("--accumulate", type=_count, default=1, help="Pieces to eat a batch in.")
@click.option("--clip", type=_positive, help="Largest norm of the gradient.")
@click.option("--amp", type=click.Choice(["bf16", "fp16"]), help="Mixed precision.")
@click.option("--compile", is_flag=True, help="By torch.compile: for large models.")
@click.option("--patience", type=_natural, help="Epochs without gain; 0: no limit.")
@click.option(
    "--min-delta", type=_Number(min=0), default=0.0, help="The least that is a gain."
)
@click.option("--ratios", callback=_list(float), help="Such as 0.7,0.15,0.15.")
@click.option(
    "--shuffle/--no-shuffle",
    default=None,
    help="Rows, for split and batches. Default: shuffled; the line is not.",
)
@click.option("--seed", type=_natural, default=42, help="Of weights, order, split.")
@click.option("--device", default="auto", help="auto, cpu, cuda, mps ...")
@click.option("--workers", type=_natural, default=0, help="Processes that load.")
@click.option("--out", type=_path, help="Default: the next of runs/001, runs/002 ...")
@click.option(
    "--resume", is_flag=True, help="Go on with the run in --out, or the last."
)
@click.option("--overwrite", is_flag=True, help="Start anew in a used --out.")
@click.option("--save-every", type=_count, metavar="STEPS", help="Within epochs too.")
@click.option("--tensorboard", is_flag=True, help="To see with tensorboard --logdir.")
@click.option("--plot/--no-plot", default=None, help="Default: if matplotlib is there.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.pass_context
def _fit_command(ctx: click.Context, **options: Any) -> None:
    """Train, and leave last.pt, best.pt, history.csv, config.json in a run folder.

    By torchrun, torchrun's processes train together.
    """
    source = ctx.get_parameter_source
    order = [str(p.name) for p in ctx.command.params if p.name in options]
    options = {name: options[name] for name in order}  # not as they were typed
    typed = (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)
    given = {name for name in options if source(name) in typed}
    if options["data"]:
        options["data"] = str(Path(options["data"]).resolve())
    if options["resume"] and options["overwrite"]:
        raise click.UsageError("--resume and --overwrite exclude each other")
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        options |= {"resume": True, "overwrite": False}
    with _group():
        folder = _first_says(_run_folder(options["out"], options["resume"]))
        _fit_in(folder, options, given)


def _fit_in(folder: Path, options: dict, given: set[str]) -> None:
    used = (folder / "last.pt").exists()
    if used and not (options["resume"] or options["overwrite"]):
        raise click.UsageError(
            f"{folder} holds a run: go on with --resume, start anew with --overwrite, "
            "or name another folder with --out"
        )
    if options["resume"] and not used and not options["quiet"]:
        click.echo(f"{folder} has nothing to resume yet: starting it", err=True)
    if options["resume"] and used:
        config = _resumed(options, given, _checked(folder / "last.pt")["config"])
    else:
        config = _defaults(options)
    _fit(config, folder, options)


def _run_folder(out: str | None, resume: bool) -> Path:
    """--out, or the last of runs/001, runs/002 ... to resume, or the next free one."""
    if out:
        return Path(out)
    taken = [int(p.name) for p in Path("runs").glob("[0-9]*") if p.name.isdigit()]
    if resume and not taken:
        raise ValueError("--resume needs a run to go on with, none is in runs")
    return Path("runs") / f"{max(taken, default=0) + (not (resume and taken)):03}"


def _defaults(options: dict) -> dict:
    """The options that make a run, with the defaults of the line or of a table."""
    if bool(options["data"]) != bool(options["target"]):
        raise click.UsageError("--data and --target, what to predict, go together")
    if len(options["ratios"] or ()) > 3:
        raise click.UsageError("--ratios must be at most 3: train, val and test")
    aside = {"out", "resume", "overwrite", "tensorboard", "plot", "quiet"}
    defaults = TABLE if options["data"] else LINE
    config = {name: v for name, v in options.items() if name not in aside}
    return config | {name: v for name, v in defaults.items() if config[name] is None}


def _resumed(options: dict, given: set[str], config: dict) -> dict:
    """The options of the saved run, but for those that may change on the way."""
    free = {"epochs", "patience", "min_delta", "device", "workers", "save_every"}
    for name in sorted(given & config.keys() - free):
        if options[name] != config[name]:
            raise click.UsageError(
                f"--{name.replace('_', '-')} must stay {config[name]} in a resumed "
                f"run, got {options[name]}"
            )
    length = options["epochs"] if "epochs" in given else config["epochs"]
    fixed = (config["scheduler"] or "").startswith(("cosine", "onecycle"))
    if fixed and length != config["epochs"]:
        raise click.UsageError(
            f"--epochs must stay {config['epochs']}, which {config['scheduler']} was "
            f"made for, got {length}"
        )
    return config | {name: options[name] for name in given & free}


def _tables(config: dict) -> tuple[list[Batch], dict]:
    """The parts (train, val, test) of a run's data, and the config with its facts."""
    seed = config["seed"]
    if config["data"]:
        table = _read_like(config, config["data"], config["target"])
    else:
        line = make_data(config["samples"], noise=config["noise"], seed=seed)
        table = Table(*line, ("x",))
    kind = "classification" if table.classes else "regression"
    loss = config["loss"] or ("cross_entropy" if table.classes else "mse")
    if (loss in ("cross_entropy", "bce")) != bool(table.classes):
        raise ValueError(f"--loss {loss} does not go with a {kind}")
    if loss == "bce" and len(table.classes) != 2:
        raise ValueError(f"--loss bce takes 2 classes, got {len(table.classes)}")
    if config["task"] not in (None, kind):
        raise ValueError(f"--task must be {kind} for this data, got {config['task']}")
    outputs = 1 if loss == "bce" else len(table.classes) or math.prod(table.y.shape[1:])
    facts = {"task": kind, "loss": loss, "columns": table.columns, "outputs": outputs}
    facts |= {"classes": table.classes, "shape": tuple(table.X.shape[1:])}
    facts["crc"] = zlib.crc32(table.y.numpy().tobytes(), len(table.X))
    if config.get("crc", facts["crc"]) != facts["crc"]:
        raise ValueError(f"{config['data']} has changed since the run began")
    data, labels = (table.X, table.y), table.y if table.classes else None
    order = seed if config["shuffle"] else None
    parts = split(data, ratios=config["ratios"], seed=order, stratify=labels)
    return list(parts), config | facts


def _read_like(config: Mapping, path: str, target: str | None) -> Any:
    """Read a file as the run's own was read, where it was."""
    names = {"columns": config.get("columns", ()), "classes": config.get("classes", ())}
    table = read_table(path, target=target, task=config["task"], **names)
    must, shape = config.get("shape"), tuple(table.X.shape[1:])
    if must not in (None, shape):
        raise ValueError(f"{path}: rows must be of shape {must}, got {shape}")
    return table


def _model(config: Mapping, rows: Batch | None = None) -> nn.Module:
    """The model of a config, standardised by the rows; without, by a checkpoint."""
    torch.manual_seed(config["seed"])
    shape, outputs, name = config["shape"], config["outputs"], config["model"]
    if not all(type(number) is int for number in (*shape, outputs)):
        raise ValueError(f"shape and outputs must be numbers, got {shape}, {outputs}")
    layers: list[nn.Module] = []
    if name in ("linear", "mlp"):
        hidden = config["hidden"] if name == "mlp" else ()
        for inputs, width in pairwise((math.prod(shape), *hidden, outputs)):
            layers += [nn.ReLU(), nn.Linear(inputs, width)]
        layers[0] = nn.Flatten()
        layers = layers if len(shape) > 1 else layers[1:]
    else:
        layers = [_import(name, shape if len(shape) > 1 else shape[0], outputs)]
    if config["data"]:
        X, y = rows or (torch.zeros(1, *shape), torch.zeros(1, outputs))
        layers.insert(0, Standardize(X))
        if not config["classes"]:
            layers.append(Standardize(y, inverse=True))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def _import(name: str, *arguments: Any) -> nn.Module:
    """The model that MODULE:FUNCTION makes, looked for in the working folder too."""
    module, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(module), function)
        if not isinstance(make, FunctionType | type):  # a checkpoint may name os:execv
            raise TypeError(f"{function} is no Python function")
        model = make(*arguments)
    except Exception as error:  # whatever a user's own code may raise
        what = f"{type(error).__name__}: {error}".split("\n")[0]
        raise ValueError(
            f"--model must be linear, mlp or MODULE:FUNCTION, got {name} ({what})"
        ) from error
    finally:
        sys.path.pop(0)
    if not isinstance(model, nn.Module):
        raise TypeError(f"--model {name} must make a module, got {model!r}")
    return model


def _loss(config: Mapping, model: nn.Module) -> LossFn:
    """The loss of a config; a table's regression in standard deviations of the target."""
    loss, last = LOSSES[config["loss"]], list(model.modules())[-1]
    if not isinstance(last, Standardize):
        return loss
    return lambda prediction, y: loss(prediction / last.std, y / last.std)


def _scheduler(config: Mapping, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    """The scheduler that NAME[:KEY=VALUE,...] says, over the tutorial's parameters."""
    if not config["scheduler"]:
        return None
    name, _, text = config["scheduler"].partition(":")
    usual: dict[str, tuple[Callable, dict]] = {
        "step": (lr_scheduler.StepLR, {"step_size": 30, "gamma": 0.1}),
        "cosine": (lr_scheduler.CosineAnnealingLR, {"T_max": config["epochs"]}),
        "plateau": (ReduceLROnPlateau, {"factor": 0.1, "patience": 10}),
        "onecycle": (
            lr_scheduler.OneCycleLR,
            {"max_lr": config["lr"], "total_steps": steps},
        ),
    }
    try:
        make, options = usual[name]
        for part in filter(None, text.split(",")):
            key, value = part.split("=")
            options[key] = json.loads(value)
            if key in ("step_size", "T_max", "total_steps"):
                _at_least(key, options[key], 1)
        return make(optimizer, **options)
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"--scheduler must be NAME or NAME:KEY=VALUE,... with NAME one of "
            f"{', '.join(usual)}, got {config['scheduler']} ({error})"
        ) from error


def _pick_device(name: str) -> torch.device:
    if name == "auto":
        best = torch.accelerator.current_accelerator(check_available=True)
        name = best.type if best else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"--device {name} cannot be used: {reason}") from None


def _fit(config: dict, folder: Path, options: dict) -> None:
    """Train as the config says, in the folder, and print how it goes."""
    board = _tensorboard(folder) if options["tensorboard"] else _same
    first = _rank() == 0
    options["quiet"] |= not first
    parts, config = _tables(config)
    load = partial(make_loader, batch_size=config["batch_size"], seed=config["seed"])
    train = load(parts[0], shuffle=config["shuffle"], workers=config["workers"])
    val = make_loader(parts[1], batch_size=4096) if len(parts) > 1 else None
    model, state = _start(config, parts[0], config["epochs"] * len(train))
    last, best = folder / "last.pt", folder / "best.pt"
    state = _begun(state, last, options)._replace(config=config)
    if first:
        _write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    key = "val_loss" if val else "train_loss"
    patience, min_delta = config["patience"] or sys.maxsize, config["min_delta"]
    stop = partial(early_stopping, patience=patience, min_delta=min_delta, key=key)
    common = {"loss_fn": _loss(config, model), "epochs": config["epochs"]}
    common |= {"metrics": metrics if config["data"] else None, "seed": config["seed"]}
    common |= {"checkpoint": folder, "save_every": config["save_every"], "stop": stop}
    step = partial(train_step, accumulate=config["accumulate"], clip=config["clip"])
    try:
        progress = _progress(state, len(train), folder, options["quiet"], board)
        with progress as (count, watch):
            state = fit(state, train, val, step=count(step), on_epoch=watch, **common)
    except (KeyboardInterrupt, SystemExit):
        if first and last.exists():
            go_on = f"python -m kit fit --out {folder} --resume"
            go_on += " --tensorboard" * options["tensorboard"]
            click.echo(f"\ninterrupted and saved; go on with: {go_on}", err=True)
        raise
    if not first:
        return
    if not best.exists():
        raise FloatingPointError(f"no epoch had a finite {key}: lower the --lr")
    if not options["quiet"]:
        click.echo(_report(state, model, parts, folder))
    if options["plot"] is not False:
        _draw(state.history, folder / "curves.png", options)


def _begun(state: State, last: Path, options: dict) -> State:
    """The state that is saved, where it is to go on; a folder cleared to start anew."""
    if options["resume"] and last.exists():
        return load_checkpoint(state, last)
    if options["overwrite"]:
        for path in (last, last.with_name("best.pt"), *last.parent.glob(EVENTS)):
            path.unlink(missing_ok=True)
    return state


def _draw(history: Sequence[Row], path: Path, options: dict) -> None:
    """The curves as a picture; without matplotlib as text, on a terminal."""
    try:
        plot_history(history).savefig(path)
    except ImportError:
        if options["plot"]:
            raise
        if sys.stdout.isatty() and not options["quiet"]:
            click.echo("\n" + _chart(history))


def _start(config: dict, rows: Batch, steps: int) -> tuple[nn.Module, State]:
    """The bare model of a config, and the state of a run of so many steps."""
    model = _model(config, rows).to(_pick_device(config["device"]))
    shape = tuple(predict(model, rows[0][:2].clone()).shape)
    must = 2, config["outputs"]
    if shape != must:
        raise ValueError(f"--model must give {must} for 2 rows, got {shape}")
    options = {"lr": config["lr"], "weight_decay": config["weight_decay"]}
    make = OPTIMIZERS[config["optimizer"]]
    try:
        optimizer = make(model.parameters(), fused=True, **options)
    except (TypeError, RuntimeError):  # torch has none of its kind, for this device
        optimizer = make(model.parameters(), **options)
    scheduler = _scheduler(config, optimizer, steps)
    wrapped: Any = amp(model, config["amp"]) if config["amp"] else model
    if config["compile"]:  # wrapped.compile() would pass over an nn.Sequential
        # dynamic: or the numbers depend on which size comes first, also in a resume
        wrapped = torch.compile(wrapped, dynamic=False)
    return model, make_state(wrapped, optimizer, scheduler=scheduler)


@contextmanager
def _progress(
    state: State, steps: int, folder: Path, quiet: bool, board: Callable
) -> Iterator[tuple]:
    """A wrap for the step and an on_epoch, which write history.csv and show the run.

    On a terminal that is a bar over all steps, else a line for every tenth of the run.
    """
    epochs = state.config["epochs"]
    terminal = sys.stdout.isatty() and not quiet
    bar = click.progressbar(length=epochs * steps, hidden=not terminal)
    path = folder / "history.csv"
    header: list[str] = []  # of the file, once this run has written it

    def count(step: Callable) -> Callable:
        def counted(*args: Any, **options: Any) -> Any:
            bar.update(1)
            return step(*args, **options)

        return counted if terminal else step

    def watch(state: State) -> None:
        done, row = len(state.history), state.history[-1]
        if row.keys() <= set(header) and path.exists():
            with _naming(path), open(path, "a", encoding="utf-8", newline="") as file:
                file.write(_csv([row], header))
        else:
            header[:] = dict.fromkeys(chain(*state.history))
            _write_text(path, _csv(state.history))
        board(state)
        losses = [f"{k} {v:.4g}" for k, v in row.items() if k.endswith("loss")]
        bar.label = "  ".join([f"epoch {done}/{epochs}", *losses])
        if not quiet and not terminal and done % max(1, epochs // 10) == 0:
            click.echo(bar.label)

    with bar:
        bar.update(state.step)
        yield count, watch
        bar.render_progress()


def _tensorboard(folder: Path) -> Callable[[State], None]:
    """An on_epoch that writes rows, parameters and config as events of TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams
    except ImportError:
        what = "--tensorboard needs tensorboard: pip install tensorboard"
        raise ImportError(what) from None
    writer: Any = None

    def board(state: State) -> None:
        nonlocal writer
        rows = state.history[-1:]
        if writer is None:  # the first epoch of this process
            if not any(folder.glob(EVENTS)):
                rows = state.history  # of a run that began without --tensorboard
            # purge_step hides what a killed run wrote after its checkpoint
            writer = SummaryWriter(folder, purge_step=int(rows[0]["epoch"]))
            config = state.config.items()
            plain = {k: str(v) if isinstance(v, tuple) else v for k, v in config}
            for part in hparams(plain, rows[-1]):  # add_hparams would add a run
                writer.file_writer.add_summary(part)
        for row in rows:
            for key, value in row.items():
                writer.add_scalar(key, value, row["epoch"])
        for name, p in _bare(state.model).named_parameters():
            writer.add_histogram(_plain_key(name), p, row["epoch"])
        writer.flush()

    return board


def _write_text(path: Path, text: str) -> None:
    _write(path, lambda file: file.write(text.encode()))


def _csv(rows: Sequence[Mapping], header: Sequence[str] = ()) -> str:
    """The rows below their header, or below one that is there already."""
    text = io.StringIO()
    names = header or list(dict.fromkeys(chain(*rows)))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    if not header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _report(state: State, model: nn.Module, parts: list[Batch], folder: Path) -> str:
    """The history, the learned line, the scores of the last part, and where it all is."""
    history, config = state.history, state.config
    shown = sorted({round(i * (len(history) - 1) / 9) for i in range(10)})
    tables = [tabulate([history[i] for i in shown], headers="keys", floatfmt=".4g")]
    if not config["data"] and config["model"] == "linear":
        values = (p.item() for p in model.parameters())
        learned = zip(("weight", "bias"), values, (0.7, 0.3))
        tables.append(tabulate(learned, ["", "learned", "true"], floatfmt=".4f"))
    which = "weights of the last epoch"
    if len(parts) == 3:  # val has chosen the epoch, test has seen nothing
        which = f"weights of epoch {_best(history, 'val_loss', 0)}"
        model = _open(folder / "best.pt")[0].to(_device(state.optimizer))
    scores = _scores(model, config, parts[-1])
    tables.append(tabulate(scores.items(), [PARTS[len(parts)], which], floatfmt=".4g"))
    tables.append(f"{folder}: last.pt, best.pt, history.csv, config.json")
    return "\n" + "\n\n".join(tables)


def _chart(history: Sequence[Row], width: int = 50) -> str:
    """The losses as bars of eight heights, on a logarithmic scale, in a line each."""
    at = [round(i) for i in np.linspace(0, len(history) - 1, min(width, len(history)))]
    columns = {k: [history[i].get(k, math.nan) for i in at] for k in history[-1]}
    losses = {k: np.array(v) for k, v in columns.items() if k.endswith("loss")}
    known = np.concatenate(list(losses.values()))
    known = known[np.isfinite(known) & (known > 0)]
    low, high = (math.log(known.min()), math.log(known.max())) if len(known) else (0, 0)

    def bar(value: float) -> str:
        if not math.isfinite(value):
            return " "
        height = (math.log(value) - low) / (high - low or 1) if value > 0 else 0
        return "▁▂▃▄▅▆▇█"[round(7 * height)]

    rows = [(k, v[0], "".join(map(bar, v)), v[-1]) for k, v in losses.items()]
    return tabulate(rows, ["", "first", "", "last"], floatfmt=".4g")


def _scores(model: nn.Module, config: Mapping, part: Batch) -> Row:
    loader, loss_fn = make_loader(part, batch_size=4096), _loss(config, model)
    return evaluate(model, loader, loss_fn=loss_fn, metrics=metrics)


def _checked(path: str | Path) -> dict[str, Any]:
    """A checkpoint of `kit fit`, whose config says how to build its model."""
    content = read_checkpoint(path)
    if "outputs" not in content["config"]:
        raise ValueError(f"{path} was not written by kit fit, so its model is unknown")
    return content


def _open(path: str | Path) -> tuple[nn.Module, dict]:
    """The model of a checkpoint of `kit fit`, with its weights, and its config."""
    content = _checked(path)
    model = _model(content["config"])
    predict(model, torch.zeros(1, *content["config"]["shape"]))  # for lazy modules
    _fits(_shapes(content["model"]), _shapes(model.state_dict()), Path(path).name)
    model.load_state_dict(content["model"])
    return model, content["config"] | {"history": content["history"]}


@main.command("evaluate")
@click.argument("checkpoint", type=_path)
@click.option("--data", type=_path, help="Default: the last part of the run's own.")
def _evaluate_command(checkpoint: str, data: str | None) -> None:
    """Print the loss and the metrics of a checkpoint."""
    model, config = _open(checkpoint)
    if data and not config["data"]:
        raise ValueError(f"{checkpoint} is of the tutorial's line: leave --data out")
    if data:
        table = _read_like(config, data, config["target"])
        part, name = (table.X, table.y), Path(data).name
    else:
        parts, _ = _tables(config)
        part, name = parts[-1], PARTS[len(parts)]
    scores = _scores(model, config, part)
    click.echo(tabulate(scores.items(), [name, f"{len(part[0])} rows"], floatfmt=".4g"))


@main.command("predict")
@click.argument("checkpoint", type=_path)
@click.option("--data", type=_path, required=True, help="A file with its columns.")
@click.option("--output", type=_path, help="A .csv.  [default: print it]")
def _predict_command(checkpoint: str, data: str, output: str | None) -> None:
    """Predict the rows of a file, which need not have the target."""
    model, config = _open(checkpoint)
    table = _read_like(config, data, None)
    outputs = predict(model, make_loader((table.X,), batch_size=4096))
    names: Sequence[str] = ["prediction"]
    if outputs.shape[1] > 1:
        names = [f"prediction_{i}" for i in range(outputs.shape[1])]
    rows: list[dict] = [dict(zip(names, values)) for values in outputs.tolist()]
    if classes := config.get("classes"):
        logits = F.pad(outputs, (1, 0)) if outputs.shape[1] == 1 else outputs
        names = [f"p_{name}" for name in classes]
        rows = [
            {"prediction": classes[row.argmax()]} | dict(zip(names, row.tolist()))
            for row in logits.softmax(1)
        ]
    if output:
        _write_text(Path(output), _csv(rows))
    else:
        click.echo(_csv(rows), nl=False)


@main.command("export")
@click.argument("checkpoint", type=_path)
@click.argument("file", type=_path)
def _export_command(checkpoint: str, file: str) -> None:
    """Write a checkpoint's model to FILE.onnx or FILE.pt2, for use without kit."""
    model, config = _open(checkpoint)
    example = torch.randn(8, *config["shape"])
    if config["data"]:  # rows as they are before the standardisation
        scale: Any = next(model.children())
        example = example * scale.std + scale.mean
    facts = {key: config[key] for key in ("task", "target", "columns", "classes")}
    facts["metrics"] = {k: v for k, v in config["history"][-1].items() if v - v == 0}
    export(model, file, example=example, metadata=facts)
    click.echo(f"{file}: gives the numbers of {checkpoint}, for batches of any size")


@main.command("summary")
@click.argument("checkpoint", type=_path)
def _summary_command(checkpoint: str) -> None:
    """Print a checkpoint's parameters, how they were trained, and how well."""
    model, config = _open(checkpoint)
    history = config.pop("history")
    made = [(k, v) for k, v in config.items() if v not in (None, (), "")]
    click.echo(summary(model))
    click.echo("\n" + tabulate(made))
    click.echo("\n" + tabulate(history[-1:], headers="keys", floatfmt=".4g"))


@main.command("diagnose")
@click.argument("run", type=_path)
def _diagnose_command(run: str) -> None:
    """Say what ails a run folder, and what to try."""
    last = Path(run) / "last.pt"
    parts, config = _tables(_checked(last)["config"])
    load = partial(make_loader, batch_size=config["batch_size"], seed=config["seed"])
    train = load(parts[0], shuffle=config["shuffle"], workers=config["workers"])
    model, state = _start(config, parts[0], config["epochs"] * len(train))
    step = partial(train_step, accumulate=config["accumulate"], clip=config["clip"])
    state, loss_fn = load_checkpoint(state, last), _loss(config, model)
    findings = diagnose(state, train, loss_fn=loss_fn, step=step)
    click.echo("\n".join(findings) or "nothing found")


if __name__ == "__main__":
    main(prog_name="python -m kit")
