"""A step of one's own: a GAN, with two networks that take turns (beyond section 7).

    python recipes/07_own_step.py

A generator turns noise into numbers, a discriminator tells real ones from made ones,
and each learns from the other. One loss and one update cannot say that: it takes a step
of one's own. The script writes one for real numbers around -2 and around 2, trains with
it, interrupts the training in the middle of an epoch, and resumes it to the last bit.

prints (figures vary):

    where the numbers are
                           near -2      near 2   elsewhere
    real                       49%         49%          1%
    made, untrained             0%          0%        100%
    made, epoch 1              20%         27%         53%
    made, epoch 2              28%         41%         31%
    made, epoch 5              42%         50%          8%
    made, epoch 10             43%         53%          5%
    made, epoch 20             48%         48%          4%

    the losses
    epoch   generator   discriminator
        1        1.51            0.51
        2        1.13            0.60
        5        0.88            0.67
       10        0.83            0.68
       20        0.80            0.68

    interrupted at step 1234, resumed from last.pt of step 1200
    the weights of the run above, to the last bit: yes

    100 steps with two optimizers, and with two groups of one
    the same weights, to the last bit: yes

    Adam and SGD in one: 2 epochs, and 1 epoch, a checkpoint, and 1 more
    the same weights, to the last bit: yes
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn

import kit

# --- The two networks in one module ------------------------------------------------

# A State has one model and one optimizer. So one module holds both networks, ...


class GAN(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
        )
        self.discriminator = nn.Sequential(
            nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
        )

    def forward(self, noise):  # what the model is used for once it is trained
        return self.generator(noise)


# ... and one optimizer has a group of parameters for each, with a learning rate of its
# own. That is as good as two optimizers, because torch's pass over every parameter that
# has no gradient: they neither move it nor change what they remember of it.


def make_state():
    torch.manual_seed(42)
    model = GAN()
    optimizer = torch.optim.Adam(
        [
            {"params": model.generator.parameters(), "lr": 0.001},
            {"params": model.discriminator.parameters(), "lr": 0.005},
        ],
        betas=(0.5, 0.9),
    )
    return kit.make_state(model, optimizer)


# --- The step ----------------------------------------------------------------------


def update(optimizer, loss, network):
    """One update of one network."""
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(loss, parameters)

    optimizer.zero_grad()  # no gradient anywhere, ...
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient  # ... but in this network
    optimizer.step()


def gan_step(state, batch, *, loss_fn, forward=None):
    """Teach the discriminator, then the generator, on one batch of real numbers."""
    gan = kit.unwrap(state.model)
    (real,) = batch
    rows = len(real)
    yes = torch.ones(rows, 1)
    no = torch.zeros(rows, 1)

    # The discriminator should say yes to what is real and no to what is made. detach:
    # this loss is no business of the generator's.
    made = gan.generator(torch.randn(rows, 4))
    says_of_real = loss_fn(gan.discriminator(real), yes)
    says_of_made = loss_fn(gan.discriminator(made.detach()), no)
    discriminator_loss = (says_of_real + says_of_made) / 2
    update(state.optimizer, discriminator_loss, gan.discriminator)

    # The generator should make what the discriminator says yes to.
    generator_loss = loss_fn(gan.discriminator(made), yes)
    update(state.optimizer, generator_loss, gan.generator)

    # Totals over the rows: the epoch's row in the history will hold their means.
    totals = {
        "loss": generator_loss.item() * rows,
        "discriminator_loss": discriminator_loss.item() * rows,
        "weight": rows,
    }
    return state._replace(step=state.step + 1), totals


# --- Train -------------------------------------------------------------------------

# Half of the real numbers are around -2, half around 2. With steps=100 an epoch is 100
# batches of a stream that never ends.
#
# GANs are delicate. With ReLU in place of Tanh, or with some other seeds, the generator
# makes only numbers near 2, or only numbers near -2. Each of them looks real, so that
# the discriminator has nothing to say against it: mode collapse.
generator = torch.Generator().manual_seed(42)
side = torch.randint(0, 2, (4096, 1), generator=generator) * 4.0 - 2.0
real = side + 0.4 * torch.randn(4096, 1, generator=generator)
loader = kit.make_loader((real,), batch_size=128, shuffle=True, steps=100)

EPOCHS = 20


def describe(numbers):
    near_minus_2 = ((numbers + 2).abs() < 1).float().mean().item()
    near_2 = ((numbers - 2).abs() < 1).float().mean().item()
    elsewhere = 1 - near_minus_2 - near_2
    return f"{near_minus_2:12.0%}{near_2:12.0%}{elsewhere:12.0%}"


noise = torch.randn(4096, 4, generator=generator)

print("where the numbers are")
print(f"{'':18}{'near -2':>12}{'near 2':>12}{'elsewhere':>12}")
print(f"{'real':18}{describe(real)}")

start = make_state()
print(f"{'made, untrained':18}{describe(kit.predict(start.model, noise))}")

for state in kit.run(
    start, loader, loss_fn=nn.BCEWithLogitsLoss(), epochs=EPOCHS, step=gan_step
):
    epoch = state.history[-1]["epoch"]
    if epoch in (1, 2, 5, 10, 20):
        name = f"made, epoch {epoch}"
        print(f"{name:18}{describe(kit.predict(state.model, noise))}")

# Neither loss falls to 0, for each network makes the other one's task harder. A
# discriminator that can only guess has a loss of ln 2, which is 0.69.
print()
print("the losses")
print(f"{'epoch':>5}{'generator':>12}{'discriminator':>16}")
for row in state.history:
    if row["epoch"] in (1, 2, 5, 10, 20):
        print(
            f"{row['epoch']:5}{row['train_loss']:12.2f}"
            f"{row['train_discriminator_loss']:16.2f}"
        )


# --- Interrupt and resume ----------------------------------------------------------

# The noise of a step is drawn from torch's generator, which kit seeds by the number of
# the step; the batches are computed from their number too. So a run that ends in the
# middle of epoch 13 and continues from last.pt makes the same weights as the run above.


def weights_of(state):
    return nn.utils.parameters_to_vector(state.model.parameters())


def step_that_stops(state, batch, **options):
    if state.step == 1234:
        raise KeyboardInterrupt
    return gan_step(state, batch, **options)


with TemporaryDirectory() as folder:
    options = {"loss_fn": nn.BCEWithLogitsLoss(), "epochs": EPOCHS}
    try:
        kit.fit(
            make_state(),
            loader,
            step=step_that_stops,
            checkpoint=folder,
            save_every=50,
            **options,
        )
    except KeyboardInterrupt:
        resumed = kit.load_checkpoint(make_state(), Path(folder, "last.pt"))

print()
print("interrupted at step 1234, resumed from last.pt of step", resumed.step)
resumed = kit.fit(resumed, loader, step=gan_step, **options)
equal = torch.equal(weights_of(resumed), weights_of(state))
print("the weights of the run above, to the last bit:", "yes" if equal else "no")


# --- As good as two optimizers? ----------------------------------------------------

# The same 100 steps, in a plain PyTorch loop with an Adam for each network.
plain = make_state().model
loss_fn = nn.BCEWithLogitsLoss()
generator_adam = torch.optim.Adam(
    plain.generator.parameters(), lr=0.001, betas=(0.5, 0.9)
)
discriminator_adam = torch.optim.Adam(
    plain.discriminator.parameters(), lr=0.005, betas=(0.5, 0.9)
)
by_kit = make_state()

for number in range(100):
    batch = (real[number * 32 : number * 32 + 32],)
    yes = torch.ones(32, 1)
    no = torch.zeros(32, 1)

    torch.manual_seed(number)
    made = plain.generator(torch.randn(32, 4))
    says_of_real = loss_fn(plain.discriminator(batch[0]), yes)
    says_of_made = loss_fn(plain.discriminator(made.detach()), no)
    discriminator_adam.zero_grad()
    ((says_of_real + says_of_made) / 2).backward()
    discriminator_adam.step()

    generator_adam.zero_grad()
    loss_fn(plain.discriminator(made), yes).backward()
    generator_adam.step()

    torch.manual_seed(number)
    by_kit, _ = gan_step(by_kit, batch, loss_fn=loss_fn)

equal = torch.equal(
    weights_of(by_kit), nn.utils.parameters_to_vector(plain.parameters())
)
print()
print("100 steps with two optimizers, and with two groups of one")
print("the same weights, to the last bit:", "yes" if equal else "no")


# --- Two optimizers of different classes -------------------------------------------

# Groups will not do where one network wants Adam and the other SGD. Then one optimizer
# may stand for both: the groups and the state are common property, so that torch's own
# state_dict saves them all.


class Both(torch.optim.Optimizer):
    def __init__(self, *optimizers):
        self.optimizers = optimizers
        groups = []
        for optimizer in optimizers:
            groups.extend(optimizer.param_groups)
        super().__init__(groups, {})
        self.share()

    def share(self):
        begin = 0
        for optimizer in self.optimizers:
            end = begin + len(optimizer.param_groups)
            optimizer.param_groups = self.param_groups[begin:end]
            optimizer.state = self.state
            begin = end

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)  # makes new groups and a new state
        self.share()


def make_mixed_state():
    torch.manual_seed(42)
    model = GAN()
    adam = torch.optim.Adam(model.generator.parameters(), lr=0.001)
    sgd = torch.optim.SGD(model.discriminator.parameters(), lr=0.01, momentum=0.9)
    return kit.make_state(model, Both(adam, sgd))


options["step"] = gan_step
options["epochs"] = 2
straight = kit.fit(make_mixed_state(), loader, **options)

options["epochs"] = 1
half = kit.fit(make_mixed_state(), loader, **options)
path = kit.save_checkpoint(half, "models/mixed.pt")

options["epochs"] = 2
resumed = kit.fit(kit.load_checkpoint(make_mixed_state(), path), loader, **options)

equal = torch.equal(weights_of(resumed), weights_of(straight))
print()
print("Adam and SGD in one: 2 epochs, and 1 epoch, a checkpoint, and 1 more")
print("the same weights, to the last bit:", "yes" if equal else "no")
