"""Troubleshooting: seven questions to ask when a training disappoints (section 12).

    python recipes/12_troubleshooting.py
    python recipes/12_troubleshooting.py runs/001

Each question is a plain function of the first half of this file, to be copied into a
project of your own. It is given a model, a batch, a history or the like, and returns
sentences: what is wrong, and after a colon what to try. It changes nothing. An empty
list means that it has found nothing, which is no proof that all is well.

The second half provokes each problem, prints what the function says of it, and then the
number that the fix was for, before and after. The second form asks about a run of
`kit fit` in a folder; MODULE:FUNCTION behind it names a model of your own.

prints (figures vary):

    1 Why does the loss not fall?
      a learning rate that is too small, 1e-05
        the learning rate 1e-05 is too small
            try: 0.01
      a learning rate that is too large, 10
        the learning rate 10 is too large
            try: 0.1
      a good one, 0.1
        nothing found
      a layer that is frozen by mistake, a bias that the optimizer was not given
        0.weight has no gradient
            try: is it frozen, detached or not used? requires_grad_(True), or take it out of the optimizer
        0.bias has no gradient
            try: is it frozen, detached or not used? requires_grad_(True), or take it out of the optimizer
        3.bias is not in the optimizer
            try: give it model.parameters()
      a loop without zero_grad
        gradients add up from step to step
            try: call optimizer.zero_grad()
        loss after 100 steps without zero_grad: 0.2058
        loss after 100 steps with zero_grad: 0.0002

    2 Does the model overfit?
        val_loss was 1.1 in epoch 14 and is now 2.6, while train_loss fell
            try: early stopping, more data, dropout, weight decay
                              epochs  train_loss  val_loss
      no fix                     300        0.00      2.65
      early stopping              19        0.85      1.17
      1000 rows, not 50          300        0.64      1.52
      dropout 0.5                300        0.36      1.31
      weight decay 1e-4          300        0.00      2.65
      weight decay 1             300        0.02      2.18

    3 Does it underfit?
      one layer: loss 0.09032
        the loss is 100% of a constant's
            try: a larger model, more epochs, less regularisation
      1 - 64 - 64 - 1: loss 0.00000
        nothing found

    4 Why is the training slow?
      400 rows that take 5 ms each: 2.17 s an epoch
        100% of the time is waiting for data
            try: workers=2, or prepare the data once and keep them as tensors
      400 rows, batches of 1: 0.83 s an epoch
        with twice the batch, rows are 1.8 times as fast
            try: a larger batch
      4000 rows, batches of 1000: 0.07 s an epoch
        the CPU is at its limit
            try: an accelerator, bf16, or torch.compile

    5 Why is there not enough memory?
      8192 rows at once
        a step needs 554 MB, 100 are free; of these weights and gradients take 1, the optimizer 0, activations 554
            try: a smaller batch, accumulate=6, checkpointing, or bf16
      the micro-batches of accumulate=8, 1024 rows at a time
        nothing found

    6 Are the classes imbalanced?
        class 1 has one row for 24 of the commonest class, and 10% of them are found
            try: class weights in the loss, or a WeightedRandomSampler
                                accuracy  of class 1 found
      no fix                        0.96              0.10
      class weights 1 : 10          0.90              0.65
      WeightedRandomSampler         0.80              0.76

    7 Are the inputs standardised?
        column 0 has mean 2000 and standard deviation 10.11
            try: kit.Standardize(training rows) as the first layer
        column 1 has mean 8.997e+04 and standard deviation 2880
            try: kit.Standardize(training rows) as the first layer
        column 2 is always 7
            try: leave it out
      the first row, by the tutorial's formula: 1.87  1.55  nan
      the first row, by kit.Standardize:        1.87  1.56  0.00
      loss, inputs as they are   149.0642
      loss, inputs standardised    0.0002
"""

import copy
import math
import os
import statistics
import sys
import time
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn
from torch.nn import functional as F

import kit

# ----------------------------------------------------- question 1: the loss does not fall


def plain_step(model, optimizer, batch, loss_fn):
    """The usual five lines."""
    inputs, targets = batch
    loss = loss_fn(model(inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def loss_does_not_fall(model, optimizer, batch, *, loss_fn, step=plain_step):
    """Try `step` on copies of the model, on one batch, which should be easy to learn.

    step(model, optimizer, batch, loss_fn) is the body of your own training loop.
    """
    found = []
    inputs, targets = batch

    # Does every parameter have a gradient, and does the optimizer know it?
    trial, _ = copy.deepcopy((model, optimizer))
    loss_fn(trial(inputs), targets).backward()
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for (name, p), copied in zip(model.named_parameters(), trial.parameters()):
        if copied.grad is None:
            found.append(
                f"{name} has no gradient: is it frozen, detached or not used? "
                "requires_grad_(True), or take it out of the optimizer"
            )
        elif id(p) not in known:
            found.append(f"{name} is not in the optimizer: give it model.parameters()")
    if found:
        return found

    # Two steps at a learning rate of 0 have the same gradient, unless the second one
    # is added to the first.
    trial, trial_optimizer = copy.deepcopy((model, optimizer))
    for group in trial_optimizer.param_groups:
        group["lr"] = 0.0
    norms = []
    for _ in range(2):
        torch.manual_seed(0)  # for dropout
        step(trial, trial_optimizer, batch, loss_fn)
        grads = [p.grad for p in trial.parameters() if p.grad is not None]
        norms.append(float(nn.utils.get_total_norm(grads)))
    if norms[0] > 0 and abs(norms[1] / norms[0] - 2) < 0.01:
        return ["gradients add up from step to step: call optimizer.zero_grad()"]

    # Does the loss fall at this learning rate, or at another one?
    lr = optimizer.param_groups[0]["lr"]
    before = float(loss_fn(model(inputs), targets).detach())
    after = {}
    for factor in (1, 0.1, 0.01, 0.001, 10, 100, 1000):
        trial, trial_optimizer = copy.deepcopy((model, optimizer))
        for group in trial_optimizer.param_groups:
            group["lr"] *= factor
        for _ in range(50):
            plain_step(trial, trial_optimizer, batch, loss_fn)
        loss = float(loss_fn(trial(inputs), targets).detach())
        after[factor] = loss if math.isfinite(loss) else math.inf

    if after[1] < 0.9 * before:
        return []
    best = min(after, key=after.get)
    if after[best] < 0.9 * before:
        size = "small" if best > 1 else "large"
        return [f"the learning rate {lr:g} is too {size}: {lr * best:g}"]
    return [
        "no learning rate helps: another optimizer, a larger model, or a look at the data"
    ]


# ------------------------------------------------------------- question 2: overfitting


def overfits(history):
    """Look for a val_loss that rises while the train_loss still falls."""
    history = [row for row in history if "val_loss" in row]
    if len(history) < 4:
        return []

    best = min(history, key=lambda row: row["val_loss"])
    latest = history[-3:]  # a mean over three, as one may be off by chance
    val_loss = sum(row["val_loss"] for row in latest) / 3
    train_loss = sum(row["train_loss"] for row in latest) / 3

    if val_loss > 1.1 * best["val_loss"] and train_loss < best["train_loss"]:
        text = (
            f"val_loss was {best['val_loss']:.2g} in epoch {best['epoch']} and is now "
            f"{val_loss:.2g}, while train_loss fell: early stopping, more data, "
            "dropout, weight decay"
        )
        return [text]
    return []


# ------------------------------------------------------------ question 3: underfitting


def underfits(outputs, targets, *, loss_fn, history=()):
    """Compare the loss with that of the best constant; look whether it still falls."""
    # What would a model know that has never looked at its inputs?
    if targets.is_floating_point():
        constant = targets.mean(dim=0).expand_as(outputs)
    else:
        counts = torch.bincount(targets, minlength=outputs.shape[1])
        constant = (counts / len(targets)).log().expand_as(outputs)

    found = []
    loss = float(loss_fn(outputs, targets))
    of_constant = float(loss_fn(constant, targets))
    if loss > 0.9 * of_constant:
        found.append(
            f"the loss is {loss / of_constant:.0%} of a constant's: a larger model, "
            "more epochs, less regularisation"
        )

    losses = [row["train_loss"] for row in history]
    if len(losses) >= 8:
        quarter = losses[-1 - len(losses) // 4] - losses[-1]
        whole = losses[0] - losses[-1]
        if quarter > 0.1 * whole > 0:
            found.append(
                f"{quarter / whole:.0%} of the loss's fall came in the last quarter of "
                "the epochs: more epochs, or a higher learning rate"
            )
    return found


# ------------------------------------------------------- question 4: training is slow


def training_is_slow(model, loader, *, loss_fn, batches=50):
    """Take the time of some batches: of waiting for them, and of working on them."""

    def work(inputs, targets):
        """Milliseconds of a forward and a backward pass."""
        start = time.perf_counter()
        loss = loss_fn(model(inputs), targets)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        float(gradients[0].sum())  # on an accelerator, this waits until it is done
        return 1000 * (time.perf_counter() - start)

    waiting, working = [], []
    start = time.perf_counter()
    for number, (inputs, targets) in enumerate(loader):
        if number > 0:  # the first one also waits for workers to start
            waiting.append(1000 * (time.perf_counter() - start))
            working.append(work(inputs, targets))
        if number == batches:
            break
        start = time.perf_counter()

    # Medians, so that a busy moment of the machine does not count.
    wait = statistics.median(waiting)
    share = wait / (wait + statistics.median(working))
    if share > 0.3:
        text = f"{share:.0%} of the time is waiting for data: "
        return [text + "workers=2, or prepare the data once and keep them as tensors"]

    # The last batch, and the same twice, in turns.
    once, twice = [], []
    for _ in range(15):
        once.append(work(inputs, targets))
        twice.append(work(torch.cat([inputs, inputs]), torch.cat([targets, targets])))
    faster = 2 * min(once) / min(twice)
    if faster > 1.5:
        return [
            f"with twice the batch, rows are {faster:.1f} times as fast: a larger batch"
        ]

    if next(model.parameters()).is_cpu:
        return ["the CPU is at its limit: an accelerator, bf16, or torch.compile"]
    return ["the accelerator is at its limit: bf16, or torch.compile"]


# --------------------------------------------------------- question 5: out of memory


def out_of_memory(model, optimizer, batch, *, loss_fn, available=None):
    """Count the bytes of a training step, without taking them.

    available is in bytes; None: what this machine has free, where that can be known.
    """
    if available is None:
        if torch.accelerator.is_available():
            available, _ = torch.accelerator.get_memory_info()
        else:
            available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    # Weights, their gradients, and what the optimizer keeps of each (Adam: 2, SGD: 0).
    weights = sum(p.nbytes for p in model.parameters())
    kept = 0
    for moments in optimizer.state.values():
        for value in moments.values():
            if isinstance(value, torch.Tensor):
                kept += value.nbytes

    # What the forward pass keeps for the backward pass grows with the rows, so it is
    # enough to note what two rows keep.
    inputs, targets = batch
    sizes = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = loss_fn(model(inputs[:2].clone()), targets[:2].clone())
    for p in model.parameters():
        sizes.pop(p.untyped_storage().data_ptr(), None)  # has been counted
    activations = sum(sizes.values()) * len(inputs) // 2
    del loss

    needed = 2 * weights + kept + activations
    if needed <= available:
        return []
    text = (
        f"a step needs {needed / 1e6:,.0f} MB, {available / 1e6:,.0f} are free; of these "
        f"weights and gradients take {2 * weights / 1e6:,.0f}, the optimizer "
        f"{kept / 1e6:,.0f}, activations {activations / 1e6:,.0f}: "
    )
    if activations > needed / 2:
        rows = max(1, int(len(inputs) * (available - 2 * weights - kept) / activations))
        pieces = math.ceil(len(inputs) / rows)
        return [text + f"a smaller batch, accumulate={pieces}, checkpointing, or bf16"]
    return [text + "a smaller model, or an optimizer that keeps less, such as SGD"]


# ----------------------------------------------------- question 6: imbalanced classes


def misses_a_class(outputs, targets):
    """Look for a rare class that is mostly taken for another one."""
    counts = kit.confusion_matrix(outputs, targets)
    rows = counts.sum(dim=1)  # how many rows each class has
    commonest = int(rows.max())

    found = []
    for number in range(len(rows)):
        if not 0 < rows[number] < commonest / 3:
            continue
        recall = float(counts[number, number] / rows[number])
        if recall < 0.5:
            found.append(
                f"class {number} has one row for {commonest / int(rows[number]):.0f} of "
                f"the commonest class, and {recall:.0%} of them are found: class "
                "weights in the loss, or a WeightedRandomSampler"
            )
    return found


# --------------------------------------------------- question 7: inputs of odd scales


def inputs_are_off_scale(inputs, names=None):
    """Look for columns that are far from a mean of 0 and a standard deviation of 1."""
    columns = inputs.flatten(1).double()
    names = names or [f"column {i}" for i in range(columns.shape[1])]

    found = []
    for name, column in zip(names, columns.T):
        known = column[~column.isnan()]  # nan is a gap
        mean, std = float(known.mean()), float(known.std(correction=0))
        if std == 0:
            found.append(f"{name} is always {mean:g}: leave it out")
        elif abs(mean) > 10 or not 0.1 < std < 10:
            found.append(
                f"{name} has mean {mean:.4g} and standard deviation {std:.4g}: "
                "kit.Standardize(training rows) as the first layer"
            )
    return found


# ---------------------------------------------------------- each problem, and its fix


def mlp(inputs=1, outputs=1, *, width=32, dropout=0.0):
    torch.manual_seed(42)
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(width, outputs),
    )


def train(
    model,
    data,
    val=None,
    *,
    loss_fn=F.mse_loss,
    lr=0.01,
    weight_decay=0.0,
    epochs=300,
    stop=None,
):
    """Train with AdamW, on all rows at once unless data is a loader."""
    adam = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    state = kit.make_state(model, adam)
    loader = [data] if isinstance(data, tuple) else data
    val = None if val is None else [val]
    return kit.fit(state, loader, val, loss_fn=loss_fn, epochs=epochs, stop=stop)


def say(found):
    for sentence in found or ["nothing found"]:
        problem, _, fix = sentence.partition(": ")
        print(f"    {problem}")
        if fix:
            print(f"        try: {fix}")


def question_1():
    batch = kit.make_data()
    names = {
        0.00001: "a learning rate that is too small",
        10.0: "a learning rate that is too large",
        0.1: "a good one",
    }
    for lr, name in names.items():
        print(f"  {name}, {lr:g}")
        torch.manual_seed(42)
        model = nn.Linear(1, 1)
        sgd = torch.optim.SGD(model.parameters(), lr=lr)
        say(loss_does_not_fall(model, sgd, batch, loss_fn=F.mse_loss))

    print(
        "  a layer that is frozen by mistake, a bias that the optimizer was not given"
    )
    model = mlp()
    model[0].requires_grad_(False)
    sgd = torch.optim.SGD([*model[0].parameters(), model[3].weight], lr=0.1)
    say(loss_does_not_fall(model, sgd, batch, loss_fn=F.mse_loss))

    print("  a loop without zero_grad")
    torch.manual_seed(42)
    model = nn.Linear(1, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    step = step_without_zero_grad
    say(loss_does_not_fall(model, sgd, batch, loss_fn=F.mse_loss, step=step))
    for name, step in {"without": step_without_zero_grad, "with": plain_step}.items():
        loss = loss_after(100, step, batch)
        print(f"    loss after 100 steps {name} zero_grad: {loss:.4f}")


def step_without_zero_grad(model, optimizer, batch, loss_fn):
    inputs, targets = batch
    loss = loss_fn(model(inputs), targets)
    loss.backward()
    optimizer.step()


def loss_after(steps, step, batch):
    torch.manual_seed(42)
    model = nn.Linear(1, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        step(model, sgd, batch, F.mse_loss)
    return kit.evaluate(model, [batch], loss_fn=F.mse_loss)["loss"]


def question_2():
    # 50 rows to train on, and half of the target is noise: they are learned by heart.
    draw = torch.Generator().manual_seed(42)
    inputs = torch.randn(150, 8, generator=draw)
    targets = inputs[:, :1] + torch.randn(150, 1, generator=draw)
    few, val = kit.split((inputs, targets), ratios=(1 / 3, 2 / 3))

    state = train(mlp(8), few, val)
    say(overfits(state.history))

    # Twenty times as many rows, for the fix that always helps.
    inputs = torch.randn(1000, 8, generator=draw)
    many = inputs, inputs[:, :1] + torch.randn(1000, 1, generator=draw)

    early = partial(kit.early_stopping, patience=5)
    states = {
        "no fix": state,
        "early stopping": train(mlp(8), few, val, stop=early),
        "1000 rows, not 50": train(mlp(8), many, val),
        "dropout 0.5": train(mlp(8, dropout=0.5), few, val),
        "weight decay 1e-4": train(mlp(8), few, val, weight_decay=1e-4),
        "weight decay 1": train(mlp(8), few, val, weight_decay=1.0),
    }
    print(f"  {'':22}{'epochs':>8}{'train_loss':>12}{'val_loss':>10}")
    for name, state in states.items():
        row = state.history[-1]
        losses = f"{row['train_loss']:12.2f}{row['val_loss']:10.2f}"
        print(f"  {name:22}{row['epoch']:8}{losses}")


def question_3():
    # A straight line cannot follow a parabola.
    x = torch.linspace(-1, 1, 250)[:, None]
    parabola = x, x**2
    small = nn.Linear(1, 1)
    large = nn.Sequential(
        nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    )
    for name, model in {"one layer": small, "1 - 64 - 64 - 1": large}.items():
        state = train(model, parabola, epochs=500)
        print(f"  {name}: loss {state.history[-1]['train_loss']:.5f}")
        outputs = kit.predict(model, x)
        say(underfits(outputs, x**2, loss_fn=F.mse_loss, history=state.history))


class SlowRows(torch.utils.data.TensorDataset):
    """Rows that take 5 milliseconds each, as a picture on a disk might."""

    def __getitem__(self, row):
        time.sleep(0.005)
        return super().__getitem__(row)


def question_4():
    inputs = torch.randn(4000, 128)
    targets = inputs[:, :1]
    slow_rows = SlowRows(inputs[:400], targets[:400])
    few_rows = inputs[:400], targets[:400]
    rows = inputs, targets

    layers = []
    for _ in range(8):
        layers += [nn.Linear(128, 128), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(128, 1))
    for name, loader in {
        "400 rows that take 5 ms each": kit.make_loader(slow_rows, batch_size=100),
        "400 rows, batches of 1": kit.make_loader(few_rows, batch_size=1),
        "4000 rows, batches of 1000": kit.make_loader(rows, batch_size=1000),
    }.items():
        state = train(copy.deepcopy(model), loader, epochs=2)
        print(f"  {name}: {state.history[-1]['seconds']:.2f} s an epoch")
        say(training_is_slow(model, loader, loss_fn=F.mse_loss))


def question_5():
    # 64 layers without weights: each keeps its output for the backward pass.
    model = nn.Sequential(nn.Linear(256, 256), *[nn.Tanh() for _ in range(64)])
    adam = torch.optim.Adam(model.parameters())
    batch = torch.randn(8192, 256), torch.randn(8192, 256)
    options = {"loss_fn": F.mse_loss, "available": 100e6}

    print("  8192 rows at once")
    say(out_of_memory(model, adam, batch, **options))
    print("  the micro-batches of accumulate=8, 1024 rows at a time")
    micro_batch = batch[0][:1024], batch[1][:1024]
    say(out_of_memory(model, adam, micro_batch, **options))


def question_6():
    # 80 rows of 2000 are of class 1, and its cloud of points overlaps that of class 0.
    draw = torch.Generator().manual_seed(42)
    classes = (torch.arange(2000) < 80).long()
    inputs = torch.randn(2000, 2, generator=draw) + classes[:, None]
    data = inputs, classes

    sampler = torch.utils.data.WeightedRandomSampler(
        torch.where(classes == 1, 1 / 80, 1 / 1920),  # as often as the other class
        num_samples=2000,
        generator=torch.Generator().manual_seed(42),
    )
    balanced = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*data), batch_size=2000, sampler=sampler
    )
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 10.0]))
    ways = {
        "no fix": (data, F.cross_entropy),
        "class weights 1 : 10": (data, weighted),
        "WeightedRandomSampler": (balanced, F.cross_entropy),
    }
    for name, (loader, loss_fn) in ways.items():
        torch.manual_seed(42)
        model = nn.Linear(2, 2)
        train(model, loader, loss_fn=loss_fn, lr=0.1, epochs=100)
        outputs = kit.predict(model, inputs)
        if name == "no fix":
            say(misses_a_class(outputs, classes))
            print(f"  {'':24}{'accuracy':>10}{'of class 1 found':>18}")

        counts = kit.confusion_matrix(outputs, classes)
        recall = float(counts[1, 1] / counts[1].sum())
        accuracy = kit.metrics(outputs, classes)["accuracy"]
        print(f"  {name:24}{accuracy:10.2f}{recall:18.2f}")


def question_7():
    draw = torch.Generator().manual_seed(42)
    inputs = torch.randn(150, 3, generator=draw)
    targets = inputs[:, :1] - inputs[:, 1:2]

    # A year, a price in cents, and a column that never changes.
    inputs = inputs * torch.tensor([10.0, 3000.0, 0.0]) + torch.tensor([2000, 9e4, 7])
    say(inputs_are_off_scale(inputs))

    # The tutorial's formula divides by the 0 of the third column.
    by_formula = (inputs - inputs.mean(dim=0)) / inputs.std(dim=0)
    by_kit = kit.Standardize(inputs)(inputs)
    print("  the first row, by the tutorial's formula:", show(by_formula[0]))
    print("  the first row, by kit.Standardize:       ", show(by_kit[0]))

    for name, model in {
        "as they are": mlp(3),
        "standardised": nn.Sequential(kit.Standardize(inputs), mlp(3)),
    }.items():
        state = train(model, (inputs, targets))
        print(f"  loss, inputs {name:14}{state.history[-1]['train_loss']:8.4f}")


def show(row):
    return "  ".join(f"{value:.2f}" for value in row.tolist())


# ------------------------------------------------------------- a run of `kit fit`


def examine(folder, own_model=None):
    """Ask a run folder what its files can answer: 1, 2, 3, 6 and 7."""
    last = Path(folder) / "last.pt"
    checkpoint = kit.read_checkpoint(last)
    history, config = checkpoint["history"], checkpoint["config"]
    inputs, targets, columns = read_data(config)
    with torch.no_grad():
        outputs = open_model(last, own_model)(inputs)
    is_class = not targets.is_floating_point()
    loss_fn = F.cross_entropy if is_class else F.mse_loss

    print("1", TITLES[0])
    first, final = history[0]["train_loss"], history[-1]["train_loss"]
    print(f"    train_loss {first:.4g} in the first epoch, {final:.4g} in the last")
    if not final < 0.9 * first:
        print("        try: loss_does_not_fall(model, optimizer, batch), of this file")

    print("2", TITLES[1])
    say(overfits(history))

    print("3", TITLES[2])
    say(underfits(outputs, targets, loss_fn=loss_fn, history=history))

    print("6", TITLES[5])
    say(misses_a_class(outputs, targets) if is_class else [])

    # Built-in models of a table standardise by themselves; a constant stays one.
    print("7", TITLES[6])
    sentences = inputs_are_off_scale(inputs, columns)
    say([sentence for sentence in sentences if " is always " in sentence])


def read_data(config):
    """The inputs, the targets and the names of the columns that a run was made with."""
    if not config["data"]:
        inputs, targets = kit.make_data()
        return inputs, targets, ["x"]
    table = kit.read_table(
        config["data"],
        target=config["target"],
        drop=config["drop"] or (),
        task=config["task"],
    )
    return table.inputs, table.targets, list(table.columns)


def open_model(checkpoint, own_model):
    """The model of a checkpoint of `kit fit`, by way of an exported file."""
    with TemporaryDirectory() as folder:
        exported = str(Path(folder) / "model.pt2")
        command = ["export", str(checkpoint), exported]
        if own_model is not None:
            command += ["--model", own_model]
        with redirect_stdout(StringIO()):
            kit.main(command, standalone_mode=False)
        return torch.export.load(exported).module()


QUESTIONS = {
    "Why does the loss not fall?": question_1,
    "Does the model overfit?": question_2,
    "Does it underfit?": question_3,
    "Why is the training slow?": question_4,
    "Why is there not enough memory?": question_5,
    "Are the classes imbalanced?": question_6,
    "Are the inputs standardised?": question_7,
}
TITLES = list(QUESTIONS)


def main():
    if len(sys.argv) > 1:
        examine(*sys.argv[1:3])
        return

    for number, (title, ask) in enumerate(QUESTIONS.items(), start=1):
        if number > 1:
            print()
        print(f"{number} {title}")
        ask()


if __name__ == "__main__":
    main()
