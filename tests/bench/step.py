"""The cost of kit's loop beside a bare one: same model, same batches, same optimizer.

    python tests/bench/step.py

Bare: tensors in memory, index_select, no bookkeeping, validation included. Rounds
alternate; the ratio is taken within a round, the median over the rounds.
"""

import statistics
import time

import torch
from torch import nn

import kit


def mlp():
    return nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    )


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 10),
    )  # fmt: skip


def line():
    return nn.Linear(1, 1)


def rows(*shape, classes=0):
    X = torch.randn(*shape)
    flat = X.flatten(1).sum(1)
    return X, (flat > 0).long() if classes else flat[:, None]


JOBS = {  # model, optimizer, loss, train, val, batch size, epochs
    "line": (line, torch.optim.SGD, nn.functional.l1_loss,
             kit.make_data(40), kit.make_data(10), 8, 200),
    "table": (mlp, torch.optim.Adam, nn.functional.mse_loss,
              rows(50_000, 32), rows(10_000, 32), 256, 1),
    "images": (cnn, torch.optim.Adam, nn.functional.cross_entropy,
               rows(2000, 1, 28, 28, classes=2), rows(500, 1, 28, 28, classes=2), 64, 1),
}  # fmt: skip


def bare(model, optimizer, loss_fn, train, val, batch_size, epochs):
    X, y = train
    for _ in range(epochs):
        order = torch.randperm(len(X))
        for at in range(0, len(X), batch_size):
            chosen = order[at : at + batch_size]
            loss = loss_fn(model(X.index_select(0, chosen)), y.index_select(0, chosen))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            model.eval()
            loss_fn(model(val[0]), val[1]).item()
            model.train()


def with_kit(model, optimizer, loss_fn, train, val, batch_size, epochs):
    state = kit.make_state(model, optimizer)
    loader = kit.make_loader(train, batch_size=batch_size, shuffle=True)
    kit.fit(state, loader, kit.make_loader(val), loss_fn=loss_fn, epochs=epochs)


def seconds(loop, make, optimizer, *rest):
    torch.manual_seed(0)
    model = make()
    optimizer = optimizer(model.parameters(), lr=0.001)
    start = time.perf_counter()
    loop(model, optimizer, *rest)
    return time.perf_counter() - start


if __name__ == "__main__":
    for name, job in JOBS.items():
        seconds(bare, *job), seconds(with_kit, *job)
        pairs = [(seconds(bare, *job), seconds(with_kit, *job)) for _ in range(9)]
        ratios = sorted(ours / theirs for theirs, ours in pairs)
        print(
            f"{name:8} bare {statistics.median(b for b, _ in pairs):.3f} s, "
            f"kit / bare {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
