"""Section 1: the line, splitting, loaders whose order is a function, reading tables."""

import csv
import gc
import multiprocessing
import os
import pickle
import random
import re
import sys
import tracemalloc
import warnings
import zipfile
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    random_split,
)

import kit

# ---------------------------------------------------------------- make_data, split


def test_the_line_is_the_tutorials():
    X, y = kit.make_data()
    assert X.shape == y.shape == (50, 1) and X.dtype == y.dtype == torch.float32
    assert torch.allclose(X, torch.arange(0, 1, 0.02)[:, None])
    assert torch.allclose(
        y[:5, 0], torch.tensor([0.3000, 0.3140, 0.3280, 0.3420, 0.3560])
    )
    X, y = kit.make_data(8, weight=-2.0, bias=1.0)
    assert torch.equal(y, 1 - 2 * X) and len(X) == 8


def test_the_noise_is_drawn_from_the_seed_with_its_standard_deviation():
    X, y = kit.make_data(20_000, noise=0.5, seed=1)
    assert float((y - 0.7 * X - 0.3).std()) == pytest.approx(0.5, rel=0.03)
    assert torch.equal(y, kit.make_data(20_000, noise=0.5, seed=1)[1])
    assert not torch.equal(y, kit.make_data(20_000, noise=0.5, seed=2)[1])


def test_a_line_without_noise_draws_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    kit.make_data()
    kit.make_data(noise=0.1, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_line_of_no_points_is_refused():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        kit.make_data(0)


@pytest.mark.parametrize(
    ("ratios", "sizes"),
    [
        ((0.8, 0.2), [40, 10]),
        ((0.7, 0.15, 0.15), [35, 7, 8]),
        ((0.7, 0.2, 0.1), [35, 10, 5]),  # 50 * 0.7 is 35 in spite of floats
        ((1 / 3, 1 / 3, 1 / 3), [16, 16, 18]),
        ((1.0,), [50]),
    ],
)
def test_every_part_has_its_share_of_the_rows_in_their_order(ratios, sizes):
    X, y = kit.make_data()
    parts = kit.split((X, y), ratios=ratios)
    assert [len(x) for x, _ in parts] == [len(t) for _, t in parts] == sizes
    assert torch.equal(torch.cat([x for x, _ in parts]), X)
    assert torch.equal(torch.cat([t for _, t in parts]), y)


def test_a_seed_shuffles_the_rows_together_and_the_same_way_again():
    X = torch.arange(50)
    before = torch.get_rng_state()
    parts = kit.split((X, X * 10), seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    rows = torch.cat([x for x, _ in parts])
    assert not torch.equal(rows, X) and torch.equal(rows.sort().values, X)
    assert all(torch.equal(x * 10, t) for x, t in parts)
    again = kit.split([X, X * 10], seed=3)
    assert all(torch.equal(x, z) for (x, _), (z, _) in zip(parts, again))
    assert not torch.equal(parts[0][0], kit.split((X, X), seed=4)[0][0])


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_stratify_gives_every_part_its_share_of_each_class(seed):
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    parts = kit.split(
        (torch.arange(100), labels),
        ratios=(0.7, 0.2, 0.1),
        seed=seed,
        stratify=labels,
    )
    for (rows, classes), ratio in zip(parts, (0.7, 0.2, 0.1)):
        share = torch.tensor([60, 30, 10]) * ratio
        assert (classes.bincount(minlength=3) - share).abs().max() <= 1
        assert torch.equal(labels[rows], classes)
    assert sorted(chain(*(rows.tolist() for rows, _ in parts))) == list(range(100))


def test_a_dataset_is_cut_as_its_tensors_would_be():
    X, y = kit.make_data()
    for seed in (None, 5):
        cut = kit.split((X, y), ratios=(0.7, 0.15, 0.15), seed=seed)
        parts = kit.split(TensorDataset(X, y), ratios=(0.7, 0.15, 0.15), seed=seed)
        for part, (x, t) in zip(parts, cut, strict=True):
            assert isinstance(part, Dataset) and len(part) == len(x)
            assert torch.equal(torch.stack([row for row, _ in part]), x)
            assert torch.equal(torch.stack([value for _, value in part]), t)


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1)


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ((0.5, 0.6), "ratios must be above 0 and sum to 1"),
        ((0.8, 0.1), "ratios must be above 0 and sum to 1"),
        ((1.5, -0.5), "ratios must be above 0 and sum to 1"),
        ((1.0, 0.0), "ratios must be above 0 and sum to 1"),
        ((float("nan"), 1.0), "ratios must be above 0 and sum to 1"),
        ((), "ratios must be above 0 and sum to 1"),
        ((0.99, 0.005, 0.005), "50 rows are too few"),
    ],
)
def test_ratios_that_cannot_be_are_refused(ratios, words):
    with pytest.raises(ValueError, match=words):
        kit.split(kit.make_data(), ratios=ratios)


@pytest.mark.parametrize(
    "data",
    [
        torch.zeros(4, 1),
        np.zeros((4, 1)),
        (np.zeros((4, 1)), np.zeros((4, 1))),
        (torch.zeros(4, 1), None),
        (),
        "rows",
        5,
        None,
        {"X": torch.zeros(4, 1)},
        Endless(),
        (torch.zeros(4, 1), torch.zeros(3, 1)),
    ],
    ids=lambda data: type(data).__name__,
)
@pytest.mark.parametrize("function", [kit.split, kit.make_loader])
def test_what_is_no_table_and_no_dataset_is_refused_in_one_line(function, data):
    words = "data must be a tuple|data must have a length|as many rows each"
    with pytest.raises((ValueError, TypeError), match=words) as error:
        function(data)
    assert "\n" not in str(error.value)


def test_stratify_must_have_a_class_for_every_row():
    for labels in (torch.zeros(3), torch.zeros(60)):
        with pytest.raises(ValueError, match="stratify"):
            kit.split(kit.make_data(), stratify=labels)


# --------------------------------------------------------------------- make_loader


def ids(n=23, **options):
    """A loader of its rows' own numbers."""
    rows = torch.arange(n)
    return kit.make_loader((rows, rows), **options)


def epochs(loader, n):
    return [torch.cat([x for x, _ in loader]).tolist() for _ in range(n)]


def run_epochs(loader, n, history=(), seed=0):
    """The rows that kit.run gives to the step, epoch by epoch."""
    model = nn.Linear(1, 1)
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.0))
    state = state._replace(history=history, step=len(loader) * len(history))
    seen = []

    def step(state, batch, *, loss_fn):
        seen.extend(batch[0].tolist())
        return state._replace(step=state.step + 1), {"loss": 0.0, "weight": 1}

    orders = []
    for _ in kit.run(state, loader, loss_fn=None, epochs=n, step=step, seed=seed):
        orders.append(list(seen))
        seen.clear()
    return orders


def test_the_order_is_a_function_of_seed_and_epoch():
    options = {"batch_size": 5, "shuffle": True}
    orders = epochs(ids(seed=1, **options), 4)
    assert all(sorted(order) == list(range(23)) for order in orders)
    assert len(set(map(tuple, orders))) == 4
    assert epochs(ids(seed=1, **options), 4) == orders
    assert epochs(ids(seed=2, **options), 1) != orders[:1]


def test_run_takes_the_epochs_order_whatever_was_iterated_before():
    options = {"batch_size": 5, "shuffle": True, "seed": 1}
    orders = epochs(ids(**options), 4)
    used = ids(**options)
    next(iter(used)), epochs(used, 2)
    assert run_epochs(used, 4) == orders
    assert run_epochs(used, 4, seed=9) == orders  # run's seed is not the loader's
    row = {"epoch": 0, "step": 5, "train_loss": 0.0}
    assert run_epochs(ids(**options), 4, history=(row,)) == orders[1:]


def test_the_order_is_that_of_the_rows_unless_shuffled():
    assert epochs(ids(batch_size=5), 2) == [list(range(23))] * 2


def test_the_last_batch_is_short_and_none_makes_one_batch():
    def sizes(**options):
        loader = ids(**options)
        lengths = [len(x) for x, _ in loader]
        assert isinstance(loader, DataLoader) and len(loader) == len(lengths)
        return lengths

    assert sizes(batch_size=10) == sizes(batch_size=10, shuffle=True) == [10, 10, 3]
    assert sizes() == sizes(batch_size=23) == sizes(batch_size=100) == [23]
    assert sizes(batch_size=1, n=2) == [1, 1]


class Counted(torch.Tensor):
    """A tensor that counts how often it is indexed."""

    calls = 0

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        indexing = (torch.Tensor.__getitem__, torch.Tensor.index_select)
        cls.calls += function in (*indexing, torch.stack, torch.cat)
        return super().__torch_function__(function, types, arguments, options or {})


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", [tuple, list, TensorDataset])
def test_tensors_in_memory_are_indexed_once_per_batch(kind, shuffle):
    X, y = (torch.arange(100.0).as_subclass(Counted) for _ in range(2))
    data = TensorDataset(X, y) if kind is TensorDataset else kind([X, y])
    loader = kit.make_loader(data, batch_size=8, shuffle=shuffle)
    Counted.calls = 0
    batches = list(loader)
    assert Counted.calls == 2 * len(loader) == 2 * 13
    assert all(torch.equal(x, t) for x, t in batches)
    assert sorted(chain(*(x.tolist() for x, _ in batches))) == list(range(100))


class InPlace(nn.Module):
    """Scales its inputs in place, and so makes them part of the graph."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.linear = nn.Linear(1, 1)

    def forward(self, x):
        x *= self.scale
        return self.linear(x)


def val_losses_in_place(train, val):
    torch.manual_seed(0)
    model = InPlace()
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.1))
    state = kit.fit(state, train, val, loss_fn=nn.L1Loss(), epochs=3)
    return [row["val_loss"] for row in state.history]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("size", [8, None])
def test_a_model_that_changes_its_inputs_in_place_changes_no_data(size, shuffle):
    data = kit.make_data()
    train, val = (
        kit.make_loader(data, batch_size=size, shuffle=s) for s in (shuffle, 0)
    )
    val_losses_in_place(train, val)
    assert all(map(torch.equal, data, kit.make_data()))
    assert not data[0].requires_grad


@pytest.mark.parametrize("shuffle", [False, True])
def test_data_that_takes_gradients_gets_them_of_every_batch(shuffle):
    X, model = torch.ones(9, 2, requires_grad=True), nn.Linear(2, 1)
    train = kit.make_loader((X, torch.ones(9, 1)), batch_size=3, shuffle=shuffle)
    state = kit.make_state(model, torch.optim.SGD(model.parameters(), lr=0.0))
    kit.fit(state, train, loss_fn=lambda output, _: output.mean(), epochs=1)
    torch.testing.assert_close(X.grad, model.weight.detach().expand(9, 2) / 3)


def test_a_model_that_changes_its_inputs_in_place_trains_as_on_copies():
    ours = kit.make_loader(kit.make_data(), batch_size=8)
    copies = DataLoader(TensorDataset(*kit.make_data()), batch_size=8)
    assert val_losses_in_place(ours, ours) == val_losses_in_place(copies, copies)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_worker_sends_a_batch_and_not_what_it_is_a_part_of(kind, shuffle):
    X = torch.zeros(100, 3) if kind == "memory" else mapped(np.zeros((100, 3)))
    loader = kit.make_loader([X], batch_size=10, shuffle=shuffle, workers=1)
    for (x,) in loader:
        assert x.untyped_storage().nbytes() == x.nbytes


class Draws(Dataset):
    """Rows that draw from the three global generators, as an augmentation does."""

    def __len__(self):
        return 13

    def __getitem__(self, row):
        draws = [random.random(), np.random.rand(), torch.rand(()).item()]
        return torch.tensor([row, os.getpid(), *draws], dtype=torch.float64), row


def global_states():
    state = np.random.get_state()
    return [
        random.getstate(),
        (state[1].tolist(), *state[2:]),
        torch.get_rng_state().tolist(),
    ]


def test_a_datasets_draws_differ_but_are_the_same_whatever_the_workers():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before, seen = global_states(), {}
    for workers in (0, 2):
        loader = kit.make_loader(
            Draws(), batch_size=3, shuffle=True, seed=7, workers=workers
        )
        seen[workers] = torch.cat([x for _ in range(2) for x, _ in loader])
        assert global_states() == before
    draws = seen[0][:, 2:]
    assert draws.shape == (26, 3)
    assert all(len(set(column.tolist())) == 26 for column in draws.T)
    assert torch.equal(draws, seen[2][:, 2:])
    assert torch.equal(seen[0][:, 0], seen[2][:, 0])
    pids = [set(half[:, 1].tolist()) for half in seen[2].split(13)]
    assert pids[0] == pids[1] and len(pids[0]) == 2  # the workers persist
    assert os.getpid() not in pids[0]
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    again = kit.make_loader(Draws(), batch_size=3, shuffle=True, seed=7)
    assert torch.equal(torch.cat([x for x, _ in again])[:, 2:], draws[:13])
    other = kit.make_loader(Draws(), batch_size=3, shuffle=True, seed=8)
    assert not set(draws.flatten().tolist()) & set(
        torch.cat([x for x, _ in other])[:, 2:].flatten().tolist()
    )


def test_iterating_draws_nothing_from_the_global_generators():
    before = global_states()
    for loader in (
        ids(batch_size=5, shuffle=True),
        kit.make_loader(TensorDataset(torch.zeros(9, 1)), batch_size=2, shuffle=True),
        kit.make_loader(Draws(), batch_size=5, shuffle=True),
    ):
        for _ in range(2):
            list(loader)
    assert global_states() == before


class Rows(TensorDataset):
    """A TensorDataset whose rows may be anything, so they are taken one by one."""


class Doubled(TensorDataset):
    def __getitem__(self, row):
        return tuple(2 * t for t in super().__getitem__(row))


class Mirrored(Subset):
    def __getitem__(self, row):
        return tuple(-t for t in super().__getitem__(row))

    def __getitems__(self, rows):
        return [self[row] for row in rows]


SUBSETS = {
    "a list": lambda data: Subset(data, [3, 1, 4, 1, 5, 9, 2, 6]),
    "from the end": lambda data: Subset(data, [-1, 0, -23, 5]),
    "a range": lambda data: Subset(data, range(20, 2, -3)),
    "a tensor": lambda data: Subset(data, torch.arange(20, 3, -1)),
    "tensors": lambda data: Subset(data, list(torch.arange(9))),
    "an array of bytes": lambda data: Subset(data, np.array([1, 0, 7], np.uint8)),
    "nested": lambda data: Subset(Subset(data, range(1, 23, 2)), [-1, 3, 3, 0]),
    "random_split": lambda data: random_split(data, [20, 3])[0],
    "split": lambda data: kit.split(data)[1],
    "split with a seed": lambda data: kit.split(data, seed=1)[0],
    "split twice": lambda data: kit.split(kit.split(data, seed=1)[0], seed=2)[0],
    "one that stands in columns": lambda data: Subset(data, torch.tensor([[3], [5]])),
    "a mask": lambda data: Subset(data, [True, True, True]),
}


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("name", SUBSETS)
def test_a_subset_of_tensors_gives_the_batches_that_its_rows_one_by_one_do(
    name, shuffle
):
    tensors = torch.randn(23, 3), torch.arange(23), torch.randn(23, 2, 2)
    options = {"batch_size": 3, "shuffle": shuffle, "seed": 5}
    loaders = []
    for kind in (TensorDataset, Rows):
        torch.manual_seed(0)  # for random_split
        loaders.append(kit.make_loader(SUBSETS[name](kind(*tensors)), **options))
    for _ in range(2):
        for batch, expected in zip(*loaders, strict=True):
            assert all(map(torch.equal, batch, expected))


def test_a_subset_of_tensors_is_indexed_once_per_batch_too():
    X, y = (torch.arange(100.0).as_subclass(Counted) for _ in range(2))
    part = Subset(kit.split(TensorDataset(X, y), seed=0)[0], range(50))
    for shuffle in (False, True):
        loader = kit.make_loader(part, batch_size=8, shuffle=shuffle)
        Counted.calls = 0
        batches = list(loader)
        assert Counted.calls == 2 * len(loader) == 2 * 7
        assert sum(len(x) for x, _ in batches) == len(loader.dataset) == 50


def test_a_dataset_of_ones_own_makes_its_rows_itself():
    X = torch.arange(1.0, 9.0)
    for data, expected in (
        (Doubled(X), 2 * X),
        (Subset(Doubled(X), range(8)), 2 * X),
        (Mirrored(TensorDataset(X), range(8)), -X),
        (Subset(Mirrored(TensorDataset(X), range(8)), range(8)), -X),
    ):
        ((rows,),) = kit.make_loader(data)
        assert torch.equal(rows, expected)


def test_a_subset_of_rows_that_there_are_not_is_refused():
    data = TensorDataset(torch.zeros(4))
    with pytest.raises(IndexError, match="4 is out of bounds"):
        list(kit.make_loader(Subset(data, [0, 4])))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": -3}, "batch_size must be at least 1, got -3"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"n": 0}, "rows of data must be at least 1, got 0"),
    ],
)
def test_a_loader_of_nothing_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ids(**options)


# ---------------------------------------------------------------------- memory_map


def mapped(array, name="m.npy"):
    """The array as a mapped tensor, out of a file of its own."""
    if name.endswith(".npy"):
        np.save(name, array)
        return kit.memory_map(name)
    np.savez(name, before=np.arange(3, dtype=np.int8), X=array, after=np.arange(9))
    return kit.memory_map(name, "X")


@pytest.mark.parametrize("kind", "?bBhHiIlLefdFD")
def test_a_mapped_tensor_is_the_array_that_numpy_loads(kind):
    for shape in ((7,), (5, 3), (4, 2, 3), (0, 3)):
        array = (100 * np.random.default_rng(0).random(shape)).astype(kind)
        for file in ("m.npy", "m.npz") if kind not in "FD" else ("m.npy",):
            tensor, expected = mapped(array, file), torch.from_numpy(array)
            assert type(tensor) is torch.Tensor and tensor.dtype == expected.dtype
            assert torch.equal(tensor, expected)
            assert torch.equal(tensor.clone(), expected)


@pytest.mark.parametrize("kind", ["F", "D"])
def test_complex_numbers_that_torch_would_crash_on_are_refused(kind):
    arrays = {"a" * i: np.full(9, 1j, kind) for i in range(1, 20)}
    np.savez("m.npz", **arrays)
    refused = 0
    for name in arrays:
        try:
            assert torch.equal(
                kit.memory_map("m.npz", name) * 1j, torch.full((9,), -1 + 0j)
            )
        except ValueError as error:
            assert f"{name} in m.npz must start at a multiple of" in str(error)
            refused += 1
    assert 0 < refused < 19


def test_every_array_of_an_npz_is_found_wherever_it_stands_in_the_file():
    rng = np.random.default_rng(0)
    arrays = {"a" * i: rng.random((9, 4), np.float32) for i in range(1, 9)}
    np.savez("m.npz", **arrays)
    odd, model = 0, nn.Linear(4, 2)
    for name, array in arrays.items():
        tensor, expected = kit.memory_map("m.npz", name), torch.from_numpy(array)
        odd += tensor.data_ptr() % 4 > 0  # where no float32 stands by itself
        for shuffle in (False, True):
            options = {"batch_size": 4, "shuffle": shuffle}
            for data in zip(
                *(kit.make_loader([t], **options) for t in (tensor, expected))
            ):
                assert torch.equal(*(model(x) for (x,) in data))
        assert torch.equal(tensor.sum(0), expected.sum(0))
    assert odd


@pytest.mark.parametrize("version", [1, 2])
def test_both_versions_of_the_header_are_read(version):
    with open("m.npy", "wb") as file:
        np.lib.format.write_array(file, X, (version, 0))
    assert torch.equal(kit.memory_map("m.npy"), torch.from_numpy(X))


def bad_arrays():
    """Files that cannot be mapped: name of the file, and of the array, and the words."""
    np.savez("ok.npz", X=X, y=np.arange(4.0))
    whole = Path("ok.npz").read_bytes()
    np.save("cut.npy", X)
    os.truncate("cut.npy", Path("cut.npy").stat().st_size - 1)
    write(whole[: len(whole) // 2], "cut.npz")
    write(b"", "empty.npy"), write(b"", "empty.npz"), write("a,y\n1,2\n", "t.csv")
    with zipfile.ZipFile("short.npz", "w") as archive:
        archive.writestr("X.npy", Path("cut.npy").read_bytes())
        archive.writestr("y.npy", Path("cut.npy").read_bytes())  # more than is missing
        archive.writestr("text.npy", "no array")
    np.savez_compressed("zip.npz", X=X)
    np.save("pickle.npy", np.array([1, None]), allow_pickle=True)
    np.save("big.npy", X.astype(">f4"))
    np.save("text.npy", X.astype(str))
    np.save("pairs.npy", np.zeros(3, "i4,f4"))
    np.save("long.npy", X.astype(np.longdouble))
    np.save("one.npy", np.float32(1))
    np.save("columns.npy", np.asfortranarray(X))
    return [
        ("ok.npz", None, "name must be one of X, y in ok.npz, got None"),
        ("ok.npz", "Z", "name must be one of X, y in ok.npz, got 'Z'"),
        ("cut.npy", "X", "name is for .npz files, got 'X' for cut.npy"),
        ("zip.npz", "X", "X in zip.npz is compressed: save it with numpy.savez, or as"),
        ("cut.npy", None, "cut.npy is damaged: it ends before (4, 2) of float64"),
        ("short.npz", "X", "X in short.npz is damaged: it ends before (4, 2)"),
        ("short.npz", "text", "text in short.npz is damaged or no .npy: "),
        ("cut.npz", "X", "cut.npz is damaged or no .npz: "),
        ("empty.npz", "X", "empty.npz is damaged or no .npz: "),
        ("empty.npy", None, "empty.npy is damaged or no .npy: "),
        ("t.csv", None, "t.csv is damaged or no .npy: "),
        ("pickle.npy", None, "pickle.npy must hold numbers that torch has"),
        ("pickle.npy", None, ", got object"),
        ("big.npy", None, "in this machine's byte order, got >f4"),
        ("text.npy", None, "numbers that torch has"),
        ("pairs.npy", None, "numbers that torch has"),
        ("long.npy", None, "numbers that torch has"),
        ("one.npy", None, "one.npy must hold rows, one after the other, got a single"),
        ("columns.npy", None, "rows, one after the other, got Fortran order"),
    ]


def test_what_cannot_be_mapped_is_refused_in_one_line_with_its_mend():
    for file, name, words in bad_arrays():
        with pytest.raises(ValueError, match=re.escape(words)) as error:
            kit.memory_map(file, name)
        assert str(error.value).isprintable(), error.value
    for name in ("there.npy", "there.npz"):
        with pytest.raises(FileNotFoundError, match=name):
            kit.memory_map(name)


@pytest.mark.parametrize("file", ["m.npy", "m.npz"])
def test_a_change_of_a_mapped_tensor_stays_in_memory(file):
    tensor = mapped(np.zeros((1000, 8), "f4"), file)
    before = Path(file).read_bytes()
    tensor[::2] += 1
    assert tensor.sum() == 4000 and Path(file).read_bytes() == before
    assert kit.memory_map(file, "X" if file == "m.npz" else None).sum() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="how Linux lends memory")
def test_a_file_larger_than_the_machines_memory_is_mapped():
    """Linux refuses mode "c" of numpy's memmap here."""
    rows = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4096
    sparse("m.npy", rows, 1024)
    tensor = kit.memory_map("m.npy")
    assert tensor.shape == (rows, 1024) and not tensor[-1].any()
    tensor[-1] += 1
    loader = kit.make_loader((tensor[-9:], tensor[-9:]), batch_size=4, shuffle=True)
    assert sum(x.sum() for x, _ in loader) == 1024


def sparse(name, rows, columns):
    """A file of zeros, float32 (rows, columns), that takes no place on the disk."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)}
    with open(name, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 4 * rows * columns)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [tuple, TensorDataset, "split"])
def test_a_mapped_tensor_gives_the_batches_of_one_in_memory(kind, workers):
    X, y = torch.randn(40, 3), torch.randn(40)
    files = mapped(X.numpy(), "X.npz"), mapped(y.numpy(), "y.npy")
    for shuffle in (False, True):
        options = {"batch_size": 7, "shuffle": shuffle, "workers": workers}
        loaders = []
        for tensors in ((X, y), files):
            data = tensors if kind is tuple else TensorDataset(*tensors)
            data = kit.split(data, seed=3)[0] if kind == "split" else data
            loaders.append(kit.make_loader(data, **options))
        for _ in range(2):
            for batch, expected in zip(*loaders, strict=True):
                assert all(map(torch.equal, batch, expected))


def test_workers_that_would_copy_the_file_are_refused():
    X = mapped(np.zeros((9, 2)))
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        with pytest.raises(ValueError, match="workers must be 0, got 2: unless forked"):
            kit.make_loader([X[:5]], workers=2)
        kit.make_loader([X.clone()], workers=2)
        kit.make_loader([X])
    finally:
        multiprocessing.set_start_method(method, force=True)


def test_parts_in_order_are_views_of_the_file():
    X = mapped(np.zeros((50, 3)))
    for (part,) in kit.split([X]):
        assert part.untyped_storage().data_ptr() == X.untyped_storage().data_ptr()


def read_by(loader, batches):
    """The bytes that this process has the disk read for so many batches."""
    import resource  # not on every system

    before = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
    for _ in islice(loader, batches):
        pass
    return 512 * (resource.getrusage(resource.RUSAGE_SELF).ru_inblock - before)


def uncached(name):
    """Have the system forget what it holds of the file in memory."""
    with open(name, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.skipif(sys.platform != "linux", reason="counts what the disk reads")
@pytest.mark.parametrize("kind", ["m.npy", "a view of m.npz"])
def test_a_shuffled_batch_reads_its_rows_from_the_disk_and_little_else(kind):
    X = np.random.default_rng(0).random((64_000, 256), np.float32)  # 64 MB
    X = mapped(X)[::2] if kind == "m.npy" else mapped(X, "m.npz")[1000:]
    options = {"batch_size": 64, "shuffle": True}
    list(kit.make_loader([X[:256]], **options))  # imports, and what else is done once
    loader = kit.make_loader([X], **options)
    uncached(kind[-5:])
    if not read_by(loader, 1):
        pytest.skip("this file system reads from no disk")
    uncached(kind[-5:])
    assert read_by(loader, 10) <= 11 * 64 * 8192  # two pages a row


def test_what_is_in_memory_already_is_not_asked_for(monkeypatch):
    X, calls = mapped(np.zeros((10_000, 8))), []
    monkeypatch.setattr(kit, "_ask_for", lambda *arguments: calls.append(arguments))
    batches = list(kit.make_loader([X], batch_size=10, shuffle=True))
    assert 100 <= len(calls) < len(batches) / 4


PEAK = """
import sys, numpy as np, torch, kit
from pathlib import Path
from torch import nn
from torch.utils.data import TensorDataset

def anonymous():  # memory that is no page of a file, MB
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if "RssAnon" in line)

torch.set_num_threads(1)
state = kit.make_state(m := nn.Linear(1024, 1), torch.optim.SGD(m.parameters(), lr=0.1))
before, peak = anonymous(), []
load = kit.memory_map if sys.argv[1] == "mapped" else lambda p: torch.from_numpy(np.load(p))
X = load("X.npy")
data = TensorDataset(X, torch.zeros(len(X), 1))

def step(*arguments, **options):
    peak.append(anonymous() - before)
    return kit.train_step(*arguments, **options)

for part, shuffle in ((data, False), (kit.split(data, seed=0)[0], True)):
    loader = kit.make_loader(part, batch_size=256, shuffle=shuffle)
    kit.fit(state, loader, loss_fn=nn.MSELoss(), epochs=1, step=step)
print(max(peak) / (X.nbytes / 1e6))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_training_on_a_mapped_file_takes_a_tenth_of_it_in_memory(child):
    sparse("X.npy", 75_000, 1024)
    ways = "mapped", "loaded"
    processes = [child("-c", PEAK, way) for way in ways]  # both at once
    shares = {}
    for way, process in zip(ways, processes):
        printed, errors = process.communicate(timeout=120)
        assert not errors, errors
        shares[way] = float(printed)
    assert shares["mapped"] < 0.1 and shares["loaded"] > 0.9


# ---------------------------------------------------------------------- read_table


def write(text, name="t.csv"):
    """Write a file in the working folder, which is the test's own."""
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


def read(text, name="t.csv", target="y", **options):
    return kit.read_table(write(text, name), target=target, **options)


def refusal(name, target="y", **options):
    """The one line that refuses a file, which names it."""
    with pytest.raises(ValueError) as error:
        kit.read_table(name, target=target, **options)
    message = str(error.value)
    assert len(message.splitlines()) == 1 and message.isprintable()
    assert name in message
    return message


def test_the_numbers_of_a_csv_are_those_that_numpy_reads():
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=(200, 5)) * 10.0 ** generator.integers(-30, 30, 5)
    names = ["a", "b, quoted", 'c "double"', "größe", "y"]
    with open("t.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([names, *numbers.tolist()])
    expected = np.loadtxt("t.csv", np.float64, delimiter=",", skiprows=1, quotechar='"')
    assert np.array_equal(expected, numbers)
    table = kit.read_table("t.csv", target="y")
    assert table.columns == tuple(names[:4]) and table.classes == ()
    assert table.X.dtype == table.y.dtype == torch.float32
    np.testing.assert_array_equal(table.X, expected[:, :4].astype("f4"))
    np.testing.assert_array_equal(table.y, expected[:, 4:].astype("f4"))


@pytest.mark.parametrize(
    "text",
    [
        "a,y\n1,2\n3,4\n",
        "\ufeffa,y\n1,2\n3,4\n",  # a byte order mark, as Excel writes
        "a,y\r\n1,2\r\n3,4\r\n",
        "a,y\r1,2\r3,4\r",
        "a,y\n1,2\n3,4",
        '"a","y"\n"1","2"\n"3","4"\n',
        " a , y\n 1 ,  2\n3,4 \n",
        "a,y\n\n1,2\n\n\n3,4\n\n",
        "\n\na,y\n1,2\n3,4\n",
        "a,y\n1e0,+2\n3.000,.4e1\n",
    ],
)
def test_a_csv_may_be_written_in_many_ways(text):
    table = read(text)
    assert table.X.tolist() == [[1], [3]] and table.y.tolist() == [[2], [4]]
    assert table.columns == ("a",)


def test_upper_case_suffixes_are_read():
    assert read("a,y\n1,2\n", name="T.CSV").X.tolist() == [[1]]


def test_one_row_and_a_constant_column_are_read():
    assert read("a,b,y\n1,5,3\n").y.tolist() == [[3]]
    assert read("a,b,y\n1,5,3\n2,5,4\n").X.tolist() == [[1, 5], [2, 5]]


def test_large_and_small_numbers_that_float32_holds_are_read():
    table = read("a,b,y\n3e38,3e38,-3e38\n1e-50,-0,0\n")
    assert table.X.tolist() == [[float(np.float32(3e38))] * 2, [0, 0]]


BAD_CSV = {
    "an empty cell": ("a,b,y\n1,2,3\n1,,3\n", "line 3, column b", "empty"),
    "a cell of blanks": ("a,b,y\n1,2,3\n1,  ,3\n", "line 3, column b", "empty"),
    "two empty cells": ("a,b,y\n1,2,3\n,,3\n", "line 3, column a", "empty"),
    "an empty target": ("a,b,y\n1,2,3\n1,2,\n", "line 3, column y", "empty"),
    "a word": ("a,b,y\n1,2,3\n1,six,3\n", "line 3, column b", "'six' is not a number"),
    "a word in the target": ("a,y\n1,2\n1,x\n", "line 3, column y", "'x' is not a num"),
    "a code for nothing": (
        "a,b,y\n1,NA,3\n",
        "line 2, column b",
        "'NA' is not a number",
    ),
    "NaN": ("a,b,y\n1,2,3\n1,NaN,3\n", "line 3, column b", "'NaN'", "number"),
    "inf": ("a,b,y\n1,2,3\n1,-inf,3\n", "line 3, column b", "'-inf'", "number"),
    "two infs": ("a,b,y\n1,2,3\ninf,-inf,3\n", "line 3, column a", "'inf'", "number"),
    "beyond float32": ("a,b,y\n1,1e39,3\n", "line 2, column b", "'1e39'", "number"),
    "beyond float64": ("a,b,y\n1,1e400,3\n", "line 2, column b", "'1e400'", "number"),
    "two that cancel": ("a,b,y\n1e39,-1e39,3\n", "line 2, column a", "'1e39'"),
    "two that nearly cancel": ("a,b,y\n3e38,-4e38,3\n", "line 2, column b", "'-4e38'"),
    "a decimal comma": ('a,b,y\n1,"2,5",3\n', "line 2, column b", "'2,5' is not a n"),
    "after blank lines": ("a,y\n\n\n1,2\n\nx,2\n", "line 6, column a", "'x'"),
    "after a cell of two lines": ('a,y\n"\n1",2\nx,2\n', "line 4, column a", "'x'"),
    "a short row": ("a,b,y\n1,2,3\n1,2\n", "line 3", "2 cells under 3 headers"),
    "a long row": ("a,b,y\n1,2,3\n1,2,3,4\n", "line 3", "4 cells under 3 headers"),
    "a short first row": ("a,b,y\n1,2\n", "line 2", "2 cells under 3 headers"),
    "a duplicate header": ("a,a,y\n1,2,3\n", "line 1, column 2", "'a'", "twice"),
    "a duplicate target": ("a,y,y\n1,2,3\n", "line 1, column 3", "'y'", "twice"),
    "an empty header": ("a,,y\n1,2,3\n", "line 1, column 2", "empty"),
    "a comma too many": ("a,y,\n1,2,\n", "line 1, column 3", "empty"),
    "a header of two lines": ('"a\nb",y\nx,2\n', "line 3", "'x' is not a number"),
    "no target": ("a,b\n1,2\n", "no column 'y'", "a, b"),
    "another separator": ("a;b;y\n1;2;3\n", "no column 'y'", "a;b;y"),
    "only the target": ("y\n1\n2\n", "no column beside", "'y'"),
    "only a header": ("a,b,y\n", "no rows"),
    "nothing at all": ("", "has no"),
    "one class": ("a,y\n1,cat\n2,cat\n", "y", "only one class", "'cat'"),
    "an empty class": ("a,y\n1,cat\n2,\n", "line 3, column y", "empty"),
    "not UTF-8": (b"a,y\n1,2\n" + b"\xe9,3\n", "utf-8"),
    "UTF-16": ("a,y\n1,2\n".encode("utf-16"), "utf-8"),
    "zeros of C": ("a,y\n\0,2\n", "line 2, column a", "is not a number"),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_a_bad_csv_is_refused_with_its_line_its_column_and_its_value(name):
    text, *words = BAD_CSV[name]
    message = refusal(write(text))
    assert all(word in message for word in words), message


@pytest.mark.parametrize("value", ["nan", "inf", "1e39"])
def test_a_first_target_that_is_not_finite_makes_no_classes(value):
    message = refusal(write(f"a,y\n1,{value}\n2,3\n3,4\n"))
    assert "line 2, column y" in message and f"'{value}'" in message


@pytest.mark.parametrize("values", [("six", "3", "4"), ("3", "six", "4")])
def test_a_word_among_the_targets_numbers_is_refused_wherever_it_stands(values):
    text = "a,y\n" + "".join(f"1,{value}\n" for value in values)
    message = refusal(write(text))
    assert "column y" in message and "'six'" in message
    table = kit.read_table("t.csv", target="y", task="classification")
    assert table.classes == ("3", "4", "six")


def test_a_missing_class_is_no_class_of_its_own():
    message = refusal(write("a,y\n1,0\n2,nan\n3,1\n"), task="classification")
    assert "line 3, column y" in message and "'nan'" in message


@pytest.mark.parametrize("text", ["", "\n\n", "a,b\n"])
def test_a_file_without_rows_is_refused_without_a_target_too(text):
    assert "no" in refusal(write(text), target=None)


def test_columns_of_text_are_named_in_one_line_with_what_to_do():
    text = "rooms,city,street,y\n1,Rome,x,3\n2,Paris,z,4\n"
    message = refusal(write(text))
    assert "line 2" in message and "city, street" in message
    assert "rooms" not in message and "encode" in message
    message = refusal(write("rooms,city,y\n1,Rome,3\n2,Paris,4\n"))
    assert "column city" in message and "'Rome'" in message and "encode" in message


def test_string_targets_become_classes_in_sorted_order():
    for text in ("a,y\n1,dog\n2,cat\n3, dog\n", "a,y\n\n1,dog\n2,cat\n3,dog\n"):
        table = read(text)
        assert table.classes == ("cat", "dog") and table.y.dtype == torch.int64
        assert table.y.tolist() == [1, 0, 1] and table.X.tolist() == [[1], [2], [3]]


def test_numbers_are_classes_where_the_task_says_so():
    table = read("a,y\n1,10\n2,9\n3,10\n", task="classification")
    assert table.classes == ("9", "10") and table.y.tolist() == [1, 0, 1]
    table = read("a,y\n1,10\n2,9\n3,10\n")
    assert table.classes == () and table.y.tolist() == [[10], [9], [10]]


def test_text_is_no_target_of_a_regression():
    message = refusal(write("a,y\n1,dog\n2,cat\n"), task="regression")
    assert "line 2, column y" in message and "'dog' is not a number" in message


def test_another_file_is_read_as_the_first_one_was():
    first = read("a,b,y\n1,2,dog\n3,4,cat\n")
    text = "note,b,y,a\nhm,2,dog,1\n,4,dog,3\n"
    table = read(text, columns=first.columns, classes=first.classes)
    assert torch.equal(table.X, first.X) and table.y.tolist() == [1, 1]
    assert table.columns == first.columns and table.classes == first.classes
    table = read("b,note,a\n2,hm,1\n4,hm,3\n", target=None, columns=first.columns)
    assert torch.equal(table.X, first.X) and table.y is None
    message = refusal(write("a,y\n1,dog\n"), columns=first.columns)
    assert "no column 'b'" in message and "a, y" in message


def test_an_unknown_class_is_refused_with_its_line():
    options = {"classes": ("cat", "dog"), "task": "classification"}
    message = refusal(write("a,y\n1,dog\n2,cow\n"), **options)
    assert "'cow'" in message and "cat, dog" in message
    assert "line 3, column y" in message
    np.savez("t.npz", X=np.zeros((2, 1)), y=np.array(["dog", "cow"]))
    message = refusal("t.npz", **options)
    assert "'cow'" in message and "cat, dog" in message


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_a_folder_or_a_missing_file_is_named(suffix):
    with pytest.raises(OSError, match=f"there{suffix}"):
        kit.read_table(f"there{suffix}", target="y")
    Path(f"there{suffix}").mkdir()
    with pytest.raises(OSError, match=f"there{suffix}"):
        kit.read_table(f"there{suffix}", target="y")


@pytest.mark.parametrize("name", ["t.txt", "t", "t.csv.gz"])
def test_other_kinds_of_files_are_refused(name):
    assert ".csv or .npz" in refusal(write("a,y\n1,2\n", name))


# -------------------------------------------------------------------- .npz


X = np.random.default_rng(0).normal(size=(4, 2))


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i1", "i8", "u2", "?"])
def test_an_npz_of_numbers_is_read_as_numpy_reads_it(kind):
    numbers, values = (10 * X).astype(kind), np.arange(4).astype("f8")
    np.savez("t.npz", X=numbers, y=values, more=np.array(["a"]))
    table = kit.read_table("t.npz", target="y")
    assert table.columns == ("x0", "x1") and table.X.dtype == torch.float32
    np.testing.assert_array_equal(table.X, numbers.astype("f4"))
    np.testing.assert_array_equal(table.y, values[:, None])
    assert kit.read_table("t.npz").y is None


def test_an_npz_may_be_compressed_hold_images_or_many_targets():
    images = np.random.default_rng(1).normal(size=(4, 3, 5, 5)).astype("f4")
    np.savez_compressed("t.npz", X=images, y=X)
    table = kit.read_table("t.npz", target="y")
    np.testing.assert_array_equal(table.X, images)
    np.testing.assert_array_equal(table.y, X.astype("f4"))
    assert table.columns == ()


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["v", "u", "v", "u"], ("u", "v"), [1, 0, 1, 0]),
        ([b"v", b"u", b"v", b"u"], ("u", "v"), [1, 0, 1, 0]),
        ([True, False, True, True], ("False", "True"), [1, 0, 1, 1]),
        ([10, 9, 10, 10], ("9", "10"), [1, 0, 1, 1]),
        ([[10], [9], [10], [10]], ("9", "10"), [1, 0, 1, 1]),
    ],
)
def test_an_npz_may_hold_classes(labels, classes, numbers):
    np.savez("t.npz", X=X, y=np.array(labels))
    table = kit.read_table("t.npz", target="y", task="classification")
    assert table.classes == classes and table.y.tolist() == numbers
    assert table.y.dtype == torch.int64
    if np.array(labels).dtype.kind not in "iu":  # as the same words in a .csv would
        assert kit.read_table("t.npz", target="y").classes == classes


Y = np.arange(4.0)
NAN, HUGE = X.copy(), X.copy()
NAN[2, 1], HUGE[2, 1] = np.nan, 1e39
BAD_NPZ = {
    "no X": ({"Z": X, "y": Y}, "'X'", "Z, y"),
    "no target": ({"X": X, "z": Y}, "'y'", "X, z"),
    "more targets than rows": ({"X": X, "y": np.arange(5.0)}, "(4, 2)", "(5,)"),
    "a target of no rows": ({"X": X, "y": np.array(1.0)}, "(4, 2)", "()"),
    "a vector for X": ({"X": Y, "y": Y}, "(4,)"),
    "no columns": ({"X": X[:, :0], "y": Y}, "(4, 0)"),
    "no rows": ({"X": X[:0], "y": Y[:0]}, "no rows"),
    "text in X": ({"X": X.astype(str), "y": Y}, "numbers", "(4, 2)"),
    "complex X": ({"X": X * 1j, "y": Y}, "numbers", "complex"),
    "NaN in X": ({"X": NAN, "y": Y}, "X[2, 1]", "finite"),
    "too large for float32": ({"X": HUGE, "y": Y}, "X[2, 1]", "finite"),
    "inf in the target": ({"X": X, "y": np.array([0, 1, np.inf, 3])}, "y[2]", "finite"),
    "a target too large": ({"X": X, "y": Y * 1e39}, "y[1]", "finite"),
    "one class": ({"X": X, "y": np.array(["u"] * 4)}, "only one class", "'u'"),
    "two classes a row": ({"X": X, "y": X.astype(str)}, "(4, 2)"),
    "pickled objects": ({"X": X, "y": np.array([1, None, "a", 2])}, "y"),
}


@pytest.mark.parametrize("name", BAD_NPZ)
def test_a_bad_npz_is_refused_with_its_array_and_its_shape(name):
    arrays, *words = BAD_NPZ[name]
    np.savez("t.npz", **arrays)
    message = refusal("t.npz")
    assert all(word in message for word in words), message
    assert "allow_pickle" not in message.replace("allow_pickle=False", "")


def test_text_is_no_target_of_a_regression_in_an_npz():
    np.savez("t.npz", X=X, y=np.array(["u", "v", "u", "v"]))
    assert "y" in refusal("t.npz", task="regression")


def test_an_npz_for_other_columns_is_refused_with_their_names():
    np.savez("t.npz", X=X, y=Y)
    assert kit.read_table("t.npz", columns=("x0", "x1")).X.shape == (4, 2)
    for columns in (("x0", "x1", "x2"), ("rooms", "age")):
        message = refusal("t.npz", columns=columns)
        assert "(4, 2)" in message and ", ".join(columns) in message


def damaged():
    """Files that are no .npz, or no longer."""
    np.savez("whole.npz", X=X, y=Y)
    np.savez_compressed("pressed.npz", X=X, y=Y)
    np.save("array.npy", X)
    with zipfile.ZipFile("texts.npz", "w") as archive:
        archive.writestr("X.npy", "no array")
        archive.writestr("y.npy", "no array")
    whole, pressed = (Path(f"{n}.npz").read_bytes() for n in ("whole", "pressed"))
    return {
        "half a file": whole[: len(whole) // 2],
        "its first bytes": whole[:10],
        "a flipped bit": whole[:150] + bytes([whole[150] ^ 1]) + whole[151:],
        "a flipped bit, compressed": pressed[:60] + b"\xff" + pressed[61:],
        "no bytes": b"",
        "text": b"X,y\n1,2\n",
        "a pickle": pickle.dumps({"X": [1]}),
        "a single array": Path("array.npy").read_bytes(),
        "an archive of texts": Path("texts.npz").read_bytes(),
    }


def test_a_damaged_npz_is_refused():
    for name, content in damaged().items():
        write(content, "t.npz")
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            assert "allow_pickle" not in refusal("t.npz"), name
            gc.collect()  # a file that was left open would warn now
        assert not warned, name


# ------------------------------------------------------------------- large tables

MEASURE = """
import resource, sys, kit
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
table = kit.read_table("t.csv", target="y")
unit = 1 if sys.platform == "darwin" else 1024
print((peak() - before) * unit / (table.X.numel() * 4), *table.X.shape)
"""


def large(rows, kinds=("0", "1", "2", "3", "4", "5", "6")):
    """Write a table of 20 columns whose target has seven values."""
    cells = [",".join(f"{i * j % 997 / 7:.4f}" for j in range(20)) for i in range(1000)]
    lines = "".join(f"{row},{kinds[i % 7]}\n" for i, row in enumerate(cells))
    header = ",".join(f"c{i}" for i in range(20)) + ",y\n"
    return write((header + rows // 1000 * lines).encode())


@pytest.mark.skipif(os.name != "posix", reason="measures with the resource module")
def test_a_large_csv_is_read_in_three_times_its_array(child):
    large(100_000)
    printed, errors = child("-c", MEASURE).communicate(timeout=120)
    assert not errors, errors
    times, rows, columns = printed.split()
    assert (rows, columns) == ("100000", "20")
    assert float(times) < 3


@pytest.mark.parametrize("kind", ["numbers", "classes", "npz"])
def test_no_kind_of_table_takes_much_more_than_three_times_its_array(kind):
    name = large(20_000, [f"class number {i}" for i in range(7)])
    if kind == "numbers":
        large(20_000)
    if kind == "npz":
        np.savez(name := "t.npz", X=np.ones((20_000, 20)), y=np.arange(20_000.0))
    kit.read_table(name, target="y")
    tracemalloc.start()
    try:
        table = kit.read_table(name, target="y")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert bool(table.classes) == (kind == "classes")
    assert peak / (table.X.numel() * 4) < 3.5
