"""Exercise 8 Together: AMP, accumulation and ONNX, and what each of them changes.

    python recipes/exercise_8_together.py

amp wraps the model, accumulate binds the step, export unwraps the model again. The loss
stays; what backward must keep falls. Speed is the machine's, and goes to stderr. Watch:
bf16 is slower than float32 on hardware not made for it; pieces cost time; ONNX spares
what is around the arithmetic, which for one row is most of it.

prints:

    float32        loss 0.03, 0.55 MB kept for backward
    bf16           loss 0.03, 0.31 MB kept for backward
    bf16, 4 pieces loss 0.03, 0.10 MB kept for backward
    ONNX gives torch's numbers for 1 row and for 512
"""

import sys
from functools import partial
from pathlib import Path
from statistics import median

sys.path.append(str(Path(__file__).parents[1]))  # a clone without an install

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer

import kit

device = "cuda" if torch.cuda.is_available() else "cpu"
X = torch.randn(2048, 8, generator=torch.Generator().manual_seed(42))
y = X[:, :3].abs().argmax(1)  # three classes
loader = kit.make_loader((X, y), batch_size=512, shuffle=True)
fit = partial(kit.fit, train=loader, loss_fn=F.cross_entropy, epochs=12)


def kept(state, step):
    """The most megabytes that a step keeps for backward, beside the weights."""
    weights = {p.data_ptr() for p in state.model.parameters()}
    sizes, totals = {}, []

    def pack(t):
        sizes[t.data_ptr()] = t.nbytes * (t.data_ptr() not in weights)
        totals.append(sum(sizes.values()) / 1e6)
        return t

    def unpack(t):
        sizes.clear()  # backward has begun: what is packed next is the next piece's
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        step(state, next(iter(loader)), loss_fn=F.cross_entropy)
    return max(totals)


def seconds(call):
    timer = Timer("call()", globals={"call": call})  # on one thread
    return timer.blocked_autorange(min_run_time=0.05).median


results = []
for name, pieces in (("float32", 1), ("bf16", 1), ("bf16, 4 pieces", 4)):
    torch.manual_seed(42)
    layers = nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()
    model = nn.Sequential(*layers, nn.Linear(128, 3)).to(device)
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    wrapped = kit.amp(model, "bf16") if "bf16" in name else model
    step = partial(kit.train_step, accumulate=pieces)
    state = fit(kit.make_state(wrapped, adam), step=step)
    time = median(row["seconds"] for row in state.history)
    results.append((state.history[-1]["train_loss"], kept(state, step), time))
    print("{:14} loss {:.2f}, {:.2f} MB kept for backward".format(name, *results[-1]))
    print(f"{name}: {results[0][2] / time:.2f} of float32's speed", file=sys.stderr)

path = kit.export(wrapped, "models/together.onnx", example=X[:8])
import onnxruntime  # not before: export says what to install

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
run = onnxruntime.InferenceSession(path, options).run
for rows in (X[:1], X[:512]):
    onnx = partial(run, ["output"], {"input": rows.numpy()})
    torch.testing.assert_close(torch.tensor(onnx()[0]), kit.predict(model.cpu(), rows))
    faster = seconds(partial(kit.predict, model, rows)) / seconds(onnx)
    print(f"ONNX, {len(rows)} rows: {faster:.1f} of torch's speed", file=sys.stderr)
print("ONNX gives torch's numbers for 1 row and for 512")

losses, sizes, _ = zip(*results)
assert max(losses) - min(losses) < 0.005 and sizes[0] > 1.5 * sizes[1] > 3 * sizes[2]
