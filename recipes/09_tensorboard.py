"""TensorBoard: curves and histograms to look at in a browser (section 9.2).

    python recipes/09_tensorboard.py

Three learning rates are tried. Each run writes its losses, its learning rate, the
histograms of its parameters and its hyper-parameters to a folder of its own. Then

    tensorboard --logdir runs/board

shows them together, at http://localhost:6006. `log` below is all that is needed: fit
calls it after every epoch. The last part is about a run that is interrupted and
resumed, where some epochs would be shown twice.

prints:

    three runs of 100 epochs
    learning rate  lowest val_loss  folder
            0.001           0.5134  runs/board/lr=0.001
             0.01           0.0066  runs/board/lr=0.01
              0.1           0.0047  runs/board/lr=0.1

    curves:     epoch, step, lr, train_loss, val_loss, seconds, lowest
    histograms: weight, bias

    a run of 8 epochs, killed after 5 and resumed from epoch 3
    a new writer     epochs shown: 1 2 3 4 5 4 5 6 7 8
    with purge_step  epochs shown: 1 2 3 4 5 6 7 8
"""

import logging
import shutil
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

import kit

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter
except ImportError:
    sys.exit("this recipe needs tensorboard: pip install tensorboard")

logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells what it purges


def log(writer, state):
    """Write the epoch that has just ended. For fit: on_epoch=partial(log, writer)."""
    row = state.history[-1]
    epoch = row["epoch"]

    # Every number of the row is a curve: train_loss, val_loss, lr, seconds ...
    for name, value in row.items():
        writer.add_scalar(name, value, epoch)

    # And every parameter is a histogram. unwrap, because the names inside of amp,
    # torch.compile or DistributedDataParallel would differ from those outside.
    for name, parameter in kit.unwrap(state.model).named_parameters():
        writer.add_histogram(name, parameter, epoch)

    writer.flush()  # so that the browser, and a killed run, have it now


def open_writer(folder, state):
    """A writer that goes on where the state is.

    A killed run may have written epochs that its last checkpoint does not know, and
    that will be trained again. purge_step hides everything from that epoch on.
    """
    return SummaryWriter(folder, purge_step=len(state.history) + 1)


def make_state(lr):
    torch.manual_seed(42)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return kit.make_state(model, optimizer, scheduler=StepLR(optimizer, 50, 0.1))


def read_curve(folder, name):
    """A curve as TensorBoard reads it: a list of (epoch, value)."""
    events = EventAccumulator(str(folder)).Reload().Scalars(name)
    return [(event.step, event.value) for event in events]


def main():
    train_data, val_data = kit.split(kit.make_data())
    train = kit.make_loader(train_data)
    val = kit.make_loader(val_data)
    shutil.rmtree("runs/board", ignore_errors=True)  # of an earlier call

    print("three runs of 100 epochs")
    print(f"{'learning rate':>13}  {'lowest val_loss':>15}  folder")
    for lr in (0.001, 0.01, 0.1):
        folder = Path(f"runs/board/lr={lr}")
        state = make_state(lr)

        with open_writer(folder, state) as writer:
            state = kit.fit(
                state,
                train,
                val,
                loss_fn=nn.L1Loss(),
                epochs=100,
                on_epoch=partial(log, writer),
            )
            lowest = min(row["val_loss"] for row in state.history)

            # The tab HPARAMS compares the runs. Without run_name, add_hparams would
            # make a run of its own, beside this one.
            writer.add_hparams({"lr": lr}, {"lowest": lowest}, run_name=".")

        print(f"{lr:13}  {lowest:15.4f}  {folder}")

    # What TensorBoard will show of the last run.
    tags = EventAccumulator(str(folder)).Reload().Tags()
    print()
    print("curves:    ", ", ".join(tags["scalars"]))
    print("histograms:", ", ".join(tags["histograms"]))

    # A run that is killed: five epochs are in TensorBoard, three in the checkpoint.
    options = {"loss_fn": nn.L1Loss(), "epochs": 8}
    print()
    print("a run of 8 epochs, killed after 5 and resumed from epoch 3")
    for name, make_writer in {
        "a new writer": lambda folder, state: SummaryWriter(folder),
        "with purge_step": open_writer,
    }.items():
        folder = Path("runs/board") / name.replace(" ", "-")

        with SummaryWriter(folder) as writer:
            for state in kit.run(make_state(0.01), train, val, **options):
                log(writer, state)
                if len(state.history) == 3:
                    kit.save_checkpoint(state, "models/killed.pt")
                if len(state.history) == 5:
                    break

        state = kit.load_checkpoint(make_state(0.01), "models/killed.pt")
        with make_writer(folder, state) as writer:
            kit.fit(state, train, val, on_epoch=partial(log, writer), **options)

        epochs = [epoch for epoch, value in read_curve(folder, "val_loss")]
        print(f"{name:15}  epochs shown:", *epochs)


if __name__ == "__main__":
    main()
