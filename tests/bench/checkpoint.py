"""What saving a large state costs the run that saves it, beside a copy in memory.

    python tests/bench/checkpoint.py [WIDTH]

The state is eight square layers, 2048 wide, and Adam's two moments of each: 400 MB.

copy    of every tensor of the state
save    save_checkpoint: the state is written and flushed to the disk while all waits
stall   what fit adds between a step that is saved and the next one
lost    what the whole run takes longer for each save, whose thread shares the cores
"""

import time
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import nn
from turns import argument

import kit

STEPS, EVERY, SAVES = 35, 10, 4  # after steps 10, 20 and 30, and at the end


def make_state(width):
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(8)))
    return kit.make_state(model, torch.optim.Adam(model.parameters(), fused=True))


def train(state, **options):
    """The seconds of the run, and from the end of a step to the next."""
    begins, ends = [], []

    def step(state, batch, *, loss_fn, forward):
        begins.append(time.perf_counter())
        result = kit.train_step(state, batch, loss_fn=loss_fn, forward=forward)
        ends.append(time.perf_counter())
        return result

    X = torch.randn(128 * STEPS, state.model[0].in_features)
    loader = kit.make_loader((X, X), batch_size=128)
    kit.fit(state, loader, loss_fn=nn.MSELoss(), epochs=1, step=step, **options)
    gaps = [begin - end for begin, end in zip(begins[1:], ends)]
    return time.perf_counter() - begins[0], gaps


def measure(width, folder):
    without, _ = train(make_state(width))
    state = make_state(width)
    # best.pt would be one file more
    options = {"checkpoint": folder, "save_every": EVERY, "best": lambda _: False}
    seconds, gaps = train(state, **options)

    content = [state.model.state_dict(), *state.optimizer.state.values()]
    start = time.perf_counter()
    copies = [tensor.clone() for part in content for tensor in part.values()]
    copied = time.perf_counter()
    kit.save_checkpoint(state, f"{folder}/saved.pt")
    saved = time.perf_counter()

    size = sum(tensor.nbytes for tensor in copies) / 1e6
    print(f"{size:.0f} MB: copy {copied - start:.3f} s, save {saved - copied:.3f} s;")
    print(f"stall {median(gaps[EVERY - 1 :: EVERY]):.3f} s,")
    print(f"lost {(seconds - without) / SAVES:.3f} s a save", flush=True)


if __name__ == "__main__":
    train(make_state(argument(2048)))  # warms up
    for _ in range(3):
        with TemporaryDirectory() as folder:
            measure(argument(2048), folder)
