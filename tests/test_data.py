"""Section 1, data: the line, splitting, loaders whose order is a function."""

import os
from collections import Counter
from itertools import chain

import pytest
import torch
from helpers import Draws, draws, make_state, random_state, refused
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

import kit


def test_the_line_is_the_tutorials_and_its_noise_the_seeds():
    X, y = kit.make_data()
    assert X.shape == y.shape == (50, 1) and X.dtype == y.dtype == torch.float32
    assert torch.allclose(X, torch.arange(0, 1, 0.02)[:, None])
    assert torch.allclose(y[:4, 0], torch.tensor([0.3000, 0.3140, 0.3280, 0.3420]))
    X, y = kit.make_data(20_000, noise=0.5, seed=1)
    assert float((y - 0.7 * X - 0.3).std()) == pytest.approx(0.5, rel=0.03)
    assert torch.equal(y, kit.make_data(20_000, noise=0.5, seed=1)[1])
    assert not torch.equal(y, kit.make_data(20_000, noise=0.5, seed=2)[1])


# ------------------------------------------------------------------------------ split


SIZES = {
    (0.8, 0.2): [40, 10],
    (0.7, 0.2, 0.1): [35, 10, 5],  # 50 * 0.7 is 35 in spite of floats
    (0.58, 0.42): [29, 21],  # 50 * 0.58 is 28.999999999999996
    (1 / 3, 1 / 3, 1 / 3): [16, 16, 18],
}


@pytest.mark.parametrize("ratios", SIZES)
def test_split_keeps_the_order_of_the_rows(ratios):
    parts = kit.split(kit.make_data(), ratios=ratios)
    assert [len(x) for x, _ in parts] == SIZES[ratios]
    assert torch.equal(torch.cat([x for x, _ in parts]), kit.make_data()[0])


def test_a_seed_shuffles_rows_with_their_targets():
    X = torch.arange(50)
    parts = kit.split((X, X * 10), seed=3)
    rows = torch.cat([x for x, _ in parts])
    assert not torch.equal(rows, X) and torch.equal(rows.sort().values, X)
    assert all(torch.equal(x * 10, t) for x, t in parts)
    first = [kit.split((X, X), seed=seed)[0][0] for seed in (3, 4)]
    assert torch.equal(parts[0][0], first[0]) and not torch.equal(*first)


@pytest.mark.parametrize("seed", [None, 1])
def test_stratify_deals_out_every_class(seed):
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    data, ratios = (torch.arange(100), labels), (0.7, 0.2, 0.1)
    parts = kit.split(data, ratios=ratios, seed=seed, stratify=labels)
    for (rows, classes), ratio in zip(parts, ratios):
        expected = torch.tensor([60, 30, 10]) * ratio
        assert (classes.bincount(minlength=3) - expected).abs().max() <= 1
        assert torch.equal(labels[rows], classes)
    assert sorted(chain(*(rows.tolist() for rows, _ in parts))) == list(range(100))
    with refused("stratify"):
        kit.split(data, stratify=labels[:60])


class Doubled(TensorDataset):
    """A subclass may compute its rows, so they are taken one by one."""

    def __getitem__(self, row):
        return tuple(2 * t for t in super().__getitem__(row))


@pytest.mark.parametrize("seed", [None, 5])
def test_a_dataset_is_cut_as_its_tensors_would_be(seed):
    options = {"ratios": (0.7, 0.15, 0.15), "seed": seed}
    data = Doubled(*kit.make_data())
    parts = kit.split(data, **options)
    for part, expected in zip(parts, kit.split(kit.make_data(), **options)):
        ((x, y),) = kit.make_loader(part)
        assert isinstance(part, Subset)
        assert torch.equal(x, 2 * expected[0]) and torch.equal(y, 2 * expected[1])
    ((x, _),) = kit.make_loader(data)
    assert torch.equal(x, 2 * kit.make_data()[0])


def test_what_cannot_be_split_or_loaded_is_refused():
    for ratios in ((0.5, 0.6), (1.5, -0.5), (float("nan"), 1.0), ()):
        with refused("ratios must be above 0 and sum to 1"):
            kit.split(kit.make_data(), ratios=ratios)
    with refused("50 rows are too few"):
        kit.split(kit.make_data(), ratios=(0.99, 0.005, 0.005))
    X, endless = torch.zeros(4, 1), Dataset()
    for data in (X, (X.numpy(), X.numpy()), (X, X[:3]), (), "rows", {"X": X}, endless):
        for function in (kit.split, kit.make_loader):
            with refused("data must (be|have)|as many rows each"):
                function(data)
    for options, words in (
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"workers": -1}, "workers"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"n": 0}, "rows of data must be at least 1, got 0"),
        ({"batch_size": 30, "drop_last": True}, "drop_last|rows"),
    ):
        with refused(words):
            ids(**options)


# ------------------------------------------------------------------ make_loader: order


def ids(n=23, **options):
    """A loader of its rows' own numbers."""
    rows = torch.arange(n)
    return kit.make_loader((rows, rows), **options)


def epochs(loader, n):
    return [torch.cat([x for x, _ in loader]).tolist() for _ in range(n)]


def run_epochs(loader, n, seed=0):
    """The rows that kit.run gives to the step, epoch by epoch."""
    seen, orders = [], []

    def step(state, batch, *, loss_fn, forward):
        seen.extend(batch[0].tolist())
        return state._replace(step=state.step + 1), {"loss": 0.0, "weight": 1}

    state = make_state(nn.Linear(1, 1))
    for _ in kit.run(state, loader, loss_fn=None, epochs=n, step=step, seed=seed):
        orders.append(list(seen))
        seen.clear()
    return orders


SHUFFLED = {"batch_size": 5, "shuffle": True}


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = epochs(ids(seed=1, **SHUFFLED), 4)
    assert all(sorted(order) == list(range(23)) for order in orders)
    assert len(set(map(tuple, orders))) == 4
    assert epochs(ids(seed=1, **SHUFFLED), 4) == orders
    assert epochs(ids(seed=2, **SHUFFLED), 1)[0] not in orders
    assert epochs(ids(batch_size=5), 2) == [list(range(23))] * 2
    used = ids(seed=1, **SHUFFLED)
    next(iter(used)), epochs(used, 2)
    assert run_epochs(used, 4, seed=9) == orders  # run's seed is not the loader's


def test_sizes_of_batches_are_as_asked():
    def sizes(**options):
        loader = ids(**options)
        lengths = [len(x) for x, _ in loader]
        assert isinstance(loader, DataLoader) and len(loader) == len(lengths)
        return lengths

    assert sizes(batch_size=10) == sizes(batch_size=10, shuffle=True) == [10, 10, 3]
    assert sizes() == sizes(batch_size=23) == sizes(batch_size=100) == [23]
    assert sizes(batch_size=10, drop_last=True) == [10, 10]
    assert sizes(batch_size=10, n=20, drop_last=True) == [10, 10]
    assert len(sizes(batch_size=10, steps=5)) == 5
    orders = epochs(ids(drop_last=True, **SHUFFLED), 3)
    assert len({frozenset(order) for order in orders}) == 3  # other rows are left out


@pytest.mark.parametrize("steps", [2, 3, 4, 7])
def test_steps_cut_an_endless_stream_into_epochs(steps):
    """12 rows in batches of 4, reshuffled whenever all have been seen."""
    options = {"batch_size": 4, "shuffle": True, "steps": steps}
    orders = run_epochs(ids(12, **options), 6)
    assert [len(order) for order in orders] == [4 * steps] * 6
    stream = list(chain(*orders))
    passes = [stream[i : i + 12] for i in range(0, len(stream) // 12 * 12, 12)]
    assert all(sorted(rows) == list(range(12)) for rows in passes)
    assert len(set(map(tuple, passes))) == len(passes)
    assert epochs(ids(12, **options), 6) == orders
    counts = Counter(chain(*run_epochs(ids(10, **options), 9)))  # 10 rows: not evenly
    assert len(counts) == 10 and max(counts.values()) - min(counts.values()) <= 1


# ------------------------------------------------------------ make_loader: the batches


class InPlace(nn.Linear):
    """Scales its inputs in place, and so makes them part of the graph."""

    def forward(self, x):
        x *= self.bias
        return super().forward(x)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("size", [8, None])
def test_a_model_that_works_in_place_changes_no_data(size, shuffle):
    data = kit.make_data()
    loader = kit.make_loader(data, batch_size=size, shuffle=shuffle)
    options = {"loss_fn": nn.L1Loss(), "epochs": 3}
    kit.fit(make_state(InPlace(1, 1)), loader, loader, **options)
    assert all(map(torch.equal, data, kit.make_data()))


@pytest.mark.parametrize("workers", [0, 2])
def test_collate_fn_makes_the_batch(workers):
    sequences = [torch.arange(length) for length in (3, 1, 2, 5, 4)]
    pad = nn.utils.rnn.pad_sequence
    options = {"batch_size": 2, "collate_fn": pad, "workers": workers}
    batches = kit.make_loader(Subset(sequences, range(5)), **options)
    assert [x.shape for x in batches] == [(3, 2), (5, 2), (4, 1)]


# -------------------------------------------------------- make_loader: random numbers


class Traced(Draws):
    """Rows that tell their process beside what they have drawn."""

    def __getitem__(self, row):
        return torch.tensor([os.getpid(), *draws()]).double()


def collate_and_draw(rows):
    x = default_collate(rows)
    return torch.cat([x, torch.tensor([draws()] * len(x)).double()], 1)


@pytest.mark.parametrize("collate_fn", [None, collate_and_draw])
def test_draws_all_differ_whatever_the_workers(collate_fn):
    before, seen = random_state(), {}
    options = {"batch_size": 3, "shuffle": True, "collate_fn": collate_fn}
    kit.make_data(noise=0.1, seed=1), kit.split(kit.make_data(), seed=1)
    for seed, workers in ((7, 0), (7, 2), (8, 0)):
        loader = kit.make_loader(Traced(13), seed=seed, workers=workers, **options)
        seen[seed, workers] = torch.cat([x for _ in range(2) for x in loader])
        assert random_state() == before
    numbers, with_workers, other = (x[:, 1:] for x in seen.values())
    assert all(len(set(column.tolist())) == 26 for column in numbers[:, :3].T)
    assert torch.equal(numbers, with_workers)
    assert not set(numbers.flatten().tolist()) & set(other.flatten().tolist())
    pids = [set(half[:, 0].tolist()) for half in seen[7, 2].split(13)]
    assert pids[0] == pids[1] and len(pids[0]) == 2  # the workers persist
