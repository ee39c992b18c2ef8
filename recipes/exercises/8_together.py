"""Exercise 8, together: AMP, accumulation and ONNX, and what each of them changes.

    python recipes/exercises/8_together.py

The same network is trained in float32, in bf16, and in bf16 with accumulation, and is
exported to ONNX at the end. Each technique goes to its own place: amp wraps the model,
accumulate is bound to the step, export takes the trained model. How fast they are
depends on the machine: bf16 is slower than float32 on a CPU that was not made for it.

prints (figures vary):

    12 epochs on batches of 512 rows
                            loss  kept, MB  ms a step
    float32                 0.03      0.54       3.39
    bf16                    0.03      0.30       1.87
    bf16, accumulate=4      0.03      0.10       5.51

    the exported file, beside torch in float32
    rows   torch, ms  ONNX, ms   largest difference
       1       0.086     0.005             0.000002
     512       0.657     0.099             0.000011
"""

import sys
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that a clone finds kit.py

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.benchmark import Timer

import kit

device = "cuda" if torch.cuda.is_available() else "cpu"

# Which of the first three inputs is the largest in size?
X = torch.randn(2048, 8, generator=torch.Generator().manual_seed(42))
y = X[:, :3].abs().argmax(1)
loader = kit.make_loader((X, y), batch_size=512, shuffle=True)


def make_network():
    torch.manual_seed(42)
    network = nn.Sequential(
        nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 3)
    )
    return network.to(device)


# --- Train -------------------------------------------------------------------------


def kept_for_backward(state, step):
    """The most megabytes that a forward pass keeps for its backward pass."""
    weights = {parameter.data_ptr() for parameter in state.model.parameters()}
    megabytes = []

    def forward(model, batch):  # called for every micro-batch
        inputs, targets = batch
        kept = {}

        def keep(tensor):
            if tensor.data_ptr() not in weights:
                kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = model(inputs)
        megabytes.append(sum(kept.values()) / 1e6)
        return outputs, targets

    step(state, next(iter(loader)), loss_fn=nn.CrossEntropyLoss(), forward=forward)
    return max(megabytes)


print("12 epochs on batches of 512 rows")
print(f"{'':22}{'loss':>6}{'kept, MB':>10}{'ms a step':>11}")
for name, precision, accumulate in (
    ("float32", None, 1),
    ("bf16", "bf16", 1),
    ("bf16, accumulate=4", "bf16", 4),
):
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    model = kit.amp(network, precision) if precision else network
    step = partial(kit.train_step, accumulate=accumulate)

    state = kit.make_state(model, optimizer)
    state = kit.fit(state, loader, loss_fn=nn.CrossEntropyLoss(), epochs=12, step=step)

    loss = state.history[-1]["train_loss"]
    seconds = median(row["seconds"] for row in state.history) / len(loader)
    megabytes = kept_for_backward(state, step)
    print(f"{name:22}{loss:6.2f}{megabytes:10.2f}{1000 * seconds:11.2f}")


# --- Export and compare ------------------------------------------------------------

# export leaves the wrap out and compares the file's answers with the model's before it
# writes it. ONNX Runtime saves the work of Python and of torch around the arithmetic,
# which for one row is nearly all of the time.
path = kit.export(model, "models/together.onnx", example=X[:8])

import onnxruntime  # not at the top: export says what to install

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(path, options)


def milliseconds(call):
    timer = Timer("call()", globals={"call": call})  # in one thread
    return 1000 * timer.blocked_autorange(min_run_time=0.05).median


network.cpu()
print()
print("the exported file, beside torch in float32")
print(f"{'rows':>4}{'torch, ms':>12}{'ONNX, ms':>10}{'largest difference':>21}")
for rows in (1, 512):
    by_torch = partial(kit.predict, network, X[:rows])
    by_onnx = partial(session.run, ["output"], {"input": X[:rows].numpy()})
    difference = (by_torch() - torch.tensor(by_onnx()[0])).abs().max().item()
    print(
        f"{rows:4}{milliseconds(by_torch):12.3f}{milliseconds(by_onnx):10.3f}"
        f"{difference:21.6f}"
    )
