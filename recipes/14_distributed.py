"""Several processes: the same script, the same steps, the same result.

    python recipes/14_distributed.py

trains in one process, then starts itself with torchrun, which is how one would start it
on a machine with two GPUs:

    torchrun --nproc-per-node 2 recipes/14_distributed.py

fit notices, and nothing in the script changes: a batch of 32 rows is still one step. Of
its rows each process takes its part, and torch's DistributedDataParallel averages the
gradients. So a schedule, clipping and the number of steps stay right, and the result is
that of one process, but for the rounding of sums that are added up in another order.

prints:

    processes  steps  train_loss  val_loss  val_accuracy
            1    140      0.1158    0.1460        0.9508
            2    140      0.1158    0.1460        0.9508

    the weights differ by less than 1e-4: True
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn

import kit

# torchrun tells every process its number, the rank, and how many there are.
RANK = int(os.environ.get("RANK", "0"))
PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))


def make_state():
    # Every process runs the whole script, so whatever is drawn at random must be drawn
    # from a seed, or each process would have other data and other weights.
    torch.manual_seed(42)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    adam = torch.optim.Adam(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=0.05, total_steps=140)
    return kit.make_state(model, adam, scheduler=schedule)


def train():
    """Is a point in four dimensions far from the origin? 20 epochs of 7 batches."""
    inputs = torch.randn(271, 4, generator=torch.Generator().manual_seed(42))
    classes = (inputs.square().sum(dim=1) > 3).long()
    train_data, val_data = kit.split((inputs, classes), ratios=(7 / 9, 2 / 9))

    # 210 rows in batches of 32. The last batch has 18, of which two processes take 9
    # each; where a batch has an odd number of rows, one process takes a row more, and
    # kit weighs it so that every row counts the same.
    return kit.fit(
        make_state(),
        kit.make_loader(train_data, batch_size=32, shuffle=True),
        kit.make_loader(val_data, batch_size=32),
        loss_fn=nn.CrossEntropyLoss(),
        metrics=kit.metrics,
        epochs=20,
        step=partial(kit.train_step, accumulate=4, clip=1.0),
    )


def report(state):
    row = state.history[-1]
    print(
        f"{PROCESSES:9}  {state.step:5}  {row['train_loss']:10.4f}"
        f"  {row['val_loss']:8.4f}  {row['val_accuracy']:12.4f}",
        flush=True,
    )


def main():
    if PROCESSES == 1:
        print("processes  steps  train_loss  val_loss  val_accuracy", flush=True)

    state = train()

    # All processes have the same state now. One of them prints it and saves it.
    if RANK == 0:
        report(state)
        kit.save_checkpoint(state, f"models/{PROCESSES}_processes.pt")

    if PROCESSES == 1:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*torchrun, "--nproc-per-node", "2", __file__]
        subprocess.run(command, check=True)

        largest = 0.0
        other = kit.read_checkpoint("models/2_processes.pt")["model"]
        for name, parameter in state.model.named_parameters():
            difference = (parameter.detach() - other[name]).abs().max()
            largest = max(largest, float(difference))
        print()
        print("the weights differ by less than 1e-4:", largest < 1e-4)


if __name__ == "__main__":
    main()
