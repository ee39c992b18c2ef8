"""What a checkpoint of 400 MB costs a run that saves it, beside a copy in memory.

    python tests/bench/checkpoint.py

copy: of every tensor of the state. save_checkpoint: written and flushed, while all
waits. stall: how long after a step that is saved the next one begins. lost: what the whole
run takes longer for each save, since the thread that writes and the training share the
cores, and the end of the run waits for the last one.
"""

import statistics
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

import kit

STEPS, EVERY = 40, 10


def make_state():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(8)))
    return kit.make_state(model, torch.optim.Adam(model.parameters(), fused=True))


def tensors(state):
    for group in state.optimizer.state.values():
        yield from group.values()
    yield from state.model.state_dict().values()


def train(state, folder=None):
    """The seconds of each step, those between two steps, and those of the whole run."""
    times = []

    def step(*arguments, **options):
        times.append(time.perf_counter())
        result = kit.train_step(*arguments, **options)
        times.append(time.perf_counter())
        return result

    X = torch.randn(128 * STEPS, 2048)
    loader = kit.make_loader((X, X), batch_size=128)
    options = {"checkpoint": folder, "save_every": EVERY} if folder else {}
    kit.fit(state, loader, loss_fn=nn.MSELoss(), epochs=1, step=step, **options)
    gaps = [after - before for before, after in pairwise(times)]
    return gaps[::2], gaps[1::2], time.perf_counter() - times[0]


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    state = make_state()
    train(state)
    size = sum(t.nbytes for t in tensors(state)) / 1e6
    print(f"{size:.0f} MB, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(3):
            copy = seconds(lambda: [t.clone() for t in tensors(state)])
            save = seconds(partial(kit.save_checkpoint, state, Path(folder, "a.pt")))
            _, _, without = train(make_state())
            Path(folder, "last.pt").unlink(missing_ok=True)
            steps, gaps, whole = train(make_state(), folder)
            step = statistics.median(steps)
            stall = statistics.median(gaps[EVERY - 1 :: EVERY])
            lost = (whole - without) / (STEPS // EVERY)
            print(
                f"step {step:.3f} s, copy {copy:.3f} s, save_checkpoint {save:.3f} s; "
                f"stall {stall:.3f} s, lost {lost:.3f} s a save"
            )
