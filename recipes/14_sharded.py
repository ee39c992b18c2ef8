"""A model in shards: each process holds a part of every weight.

    python recipes/14_sharded.py

DistributedDataParallel keeps a whole model in every process. A model that does not fit
there is divided: torch's fully_shard leaves each process a part of the weights, of the
gradients and of what the optimizer keeps. Before a layer computes, its weights are
gathered; afterwards they are let go.

kit.fit does not do this, so the script has a step of its own and a short loop. The step
is used three times: in one process by kit.fit, as a reference; by two processes, which
stop half way and save a file; and in one process again, which loads that file and ends
where the reference ended.

prints:

                                      epochs  steps  train_loss  numbers held
    one process, kit.fit                  10     30     0.02749        14,403
    process 0 of two, in shards            5     15     0.08165         7,299
    process 1 of two, in shards            5     15     0.08165         7,104
    one process, from that file           10     30     0.02749        14,403

    the weights differ by less than 1e-5: True
"""

import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import kit

FILE = Path("models/sharded.pt")
DEVICE = "cpu"  # "cuda" on a machine with GPUs; then nccl takes the place of gloo
mse = nn.functional.mse_loss


# --- 1 The model, whole or in shards ---------------------------------------------------


def make_state(*, shard=False):
    torch.manual_seed(42)
    model = nn.Sequential(
        nn.Linear(8, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 1),
    )
    if shard:
        mesh = init_device_mesh(DEVICE, (dist.get_world_size(),))
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)

    # After fully_shard, which puts other parameters in the place of the model's own.
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return kit.make_state(model, optimizer)


def make_loader():
    """47 rows in batches of 16: the last one has 15, which is odd on purpose."""
    inputs = torch.randn(47, 8, generator=torch.Generator().manual_seed(1))
    targets = inputs.square().mean(dim=1, keepdim=True)
    return kit.make_loader((inputs, targets), batch_size=16, shuffle=True, seed=1)


# --- 2 A step of one's own ---------------------------------------------------------------


def step(state, batch, *, loss_fn, forward=None, clip=1.0):
    """One update on a batch that every process has; each uses a part of its rows.

    It takes and returns what kit.train_step does, so that kit.fit can use it too.
    loss_fn takes reduction="sum".
    """
    model, optimizer = state.model, state.optimizer
    rank, world = 0, 1
    if dist.is_initialized():
        rank, world = dist.get_rank(), dist.get_world_size()

    inputs, targets = batch
    rows = len(inputs)
    begin, end = rows * rank // world, rows * (rank + 1) // world

    # A process without rows takes one that counts nothing: all of them have to compute,
    # because each has a part of the weights that the others need.
    own = slice(begin, max(end, begin + 1))
    total = loss_fn(model(inputs[own]), targets[own], reduction="sum")
    total = total * min(1, end - begin)

    # The mean over all rows. fully_shard divides the sum of the gradients by the number
    # of processes, so that they have to be larger by as much.
    optimizer.zero_grad()
    (total * world / rows).backward()

    # The norm of the whole gradient: torch adds up the squares of all shards.
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    if world > 1:
        norm = norm.full_tensor()
    optimizer.step()

    total = total.detach()
    if world > 1:
        dist.all_reduce(total)
    totals = {
        "loss": float(total),
        "weight": rows,
        "grad_norm": float(norm) * rows,  # a total, too: divided by the weight in a row
    }
    return state._replace(step=state.step + 1), totals


def train(state, loader, *, epochs):
    """The loop that fit would be, without its checkpoints, signals and validation."""
    # Every pass over the loader has another order. After a resume, pass by those of the
    # epochs that are done.
    for _ in state.history:
        for _ in loader:
            pass

    for epoch in range(len(state.history) + 1, epochs + 1):
        state.model.train()
        sums = {}
        for batch in loader:
            state, totals = step(state, batch, loss_fn=mse)
            for name, total in totals.items():
                sums[name] = sums.get(name, 0.0) + total

        weight = sums.pop("weight")
        row = {"epoch": epoch, "step": state.step}
        for name, total in sums.items():
            row[f"train_{name}"] = total / weight
        state = state._replace(history=(*state.history, row))
    return state


# --- 3 A file that any number of processes can load ----------------------------------------


def save(state, path):
    """Write whole tensors, gathered from all processes, by the parameters' names."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model, optimizer = get_state_dict(state.model, state.optimizer, options=options)
    content = {
        "model": model,
        "optimizer": optimizer,
        "step": state.step,
        "history": list(state.history),
    }

    # All processes have to call get_state_dict, but only the first gets the tensors.
    if not dist.is_initialized() or dist.get_rank() == 0:
        path.parent.mkdir(exist_ok=True)
        beside = path.with_suffix(".tmp")
        torch.save(content, beside)
        os.replace(beside, path)  # so that the file is the old one or the new one
    if dist.is_initialized():
        dist.barrier()  # nobody goes on before it is there


def load(state, path):
    """Fill a state, whole or in shards, from such a file."""
    content = torch.load(path, weights_only=True)
    set_state_dict(
        state.model,
        state.optimizer,
        model_state_dict=content["model"],
        optim_state_dict=content["optimizer"],
        options=StateDictOptions(full_state_dict=True),
    )
    return state._replace(step=content["step"], history=tuple(content["history"]))


# --- 4 Three runs ------------------------------------------------------------------------


def count_held(state):
    """How many numbers this process holds: weights, and Adam's two for each."""
    held = 0
    for parameter in state.model.parameters():
        moments = state.optimizer.state[parameter]
        for tensor in (parameter, moments["exp_avg"], moments["exp_avg_sq"]):
            if hasattr(tensor, "to_local"):  # the part of a sharded tensor
                tensor = tensor.to_local()
            held += tensor.numel()
    return held


def report(name, state):
    row = state.history[-1]
    held = f"{count_held(state):,}"
    print(
        f"{name:32}  {row['epoch']:6}  {state.step:5}  {row['train_loss']:10.5f}"
        f"  {held:>12}",
        flush=True,
    )


def in_one_process():
    print(f"{'':32}  epochs  steps  train_loss  numbers held", flush=True)
    straight = kit.fit(make_state(), make_loader(), loss_fn=mse, epochs=10, step=step)
    report("one process, kit.fit", straight)

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run([*torchrun, "--nproc-per-node", "2", __file__], check=True)

    state = load(make_state(), FILE)
    state = kit.fit(state, make_loader(), loss_fn=mse, epochs=10, step=step)
    report("one process, from that file", state)

    largest = 0.0
    for one, other in zip(straight.model.parameters(), state.model.parameters()):
        difference = (one.detach() - other.detach()).abs().max()
        largest = max(largest, float(difference))
    print()
    print("the weights differ by less than 1e-5:", largest < 1e-5)


def in_a_process_of_torchrun():
    dist.init_process_group("gloo")
    state = train(make_state(shard=True), make_loader(), epochs=5)
    save(state, FILE)

    for rank in range(dist.get_world_size()):
        if rank == dist.get_rank():
            report(f"process {rank} of two, in shards", state)
        dist.barrier()  # so that they print one after the other
    dist.destroy_process_group()
    time.sleep(0.05)  # or gloo's threads could fail when Python ends


if __name__ == "__main__":
    if "RANK" in os.environ:
        in_a_process_of_torchrun()
    else:
        in_one_process()
