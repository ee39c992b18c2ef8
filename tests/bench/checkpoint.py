"""What saving a large state costs the run that saves it, beside a copy in memory.

    python tests/bench/checkpoint.py [--width 2048] [--rounds 3]

The default is a state of 400 MB: eight square layers, and Adam's two moments of each.

copy    of every tensor of the state
save    save_checkpoint: the state is written and flushed to the disk while all waits
stall   what fit adds between a step that is saved and the next one
lost    what the whole run takes longer for each save: the thread that writes shares the
        cores with the training, and the end of the run waits for the last file
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import kit

STEPS, EVERY, SAVES = 35, 10, 4  # after steps 10, 20 and 30, and at the end


def make_state(width):
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(8)))
    return kit.make_state(model, torch.optim.Adam(model.parameters(), fused=True))


def tensors(state):
    for moments in state.optimizer.state.values():
        yield from moments.values()
    yield from state.model.state_dict().values()


def train(state, folder=None):
    """The seconds of the run, of its steps, and from the end of a step to the next one."""
    begins, ends = [], []

    def step(state, batch, *, loss_fn, forward):
        begins.append(time.perf_counter())
        result = kit.train_step(state, batch, loss_fn=loss_fn, forward=forward)
        ends.append(time.perf_counter())
        return result

    X = torch.randn(128 * STEPS, state.model[0].in_features)
    options = {"loss_fn": nn.MSELoss(), "epochs": 1, "step": step}
    if folder:
        # best.pt would be one file more
        options |= {"checkpoint": folder, "save_every": EVERY, "best": lambda _: False}
    kit.fit(state, kit.make_loader((X, X), batch_size=128), **options)
    whole = time.perf_counter() - begins[0]
    steps = [end - begin for begin, end in zip(begins, ends)]
    gaps = [begin - end for begin, end in zip(begins[1:], ends)]
    return whole, steps, gaps


def measure(width, folder):
    without, _, _ = train(make_state(width))
    Path(folder, "last.pt").unlink(missing_ok=True)  # fit would not replace it
    state = make_state(width)
    whole, steps, gaps = train(state, folder)

    start = time.perf_counter()
    copies = [tensor.clone() for tensor in tensors(state)]
    copied = time.perf_counter()
    kit.save_checkpoint(state, Path(folder, "saved.pt"))
    saved = time.perf_counter()

    size = sum(tensor.nbytes for tensor in copies) / 1e6
    stall = statistics.median(gaps[EVERY - 1 :: EVERY])
    print(
        f"{size:.0f} MB: step {statistics.median(steps):.3f} s, "
        f"copy {copied - start:.3f} s, save {saved - copied:.3f} s; "
        f"stall {stall:.3f} s, lost {(whole - without) / SAVES:.3f} s a save",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    train(make_state(given.width))  # warms up
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.rounds):
            measure(given.width, folder)
