"""A small GPT, trained by steps (section 11, on text).

    python recipes/11_gpt.py

A language model guesses the next character from those before it. Large ones are trained
by steps, because nobody waits for an epoch of the whole internet: so many steps with a
learning rate that first rises (warm-up) and then falls (cosine), evaluated every so
many. make_loader(..., steps=50) makes an "epoch" of 50 batches from an endless shuffled
stream, and the rest follows: a row of the history, a checkpoint and a chance to stop
every 50 steps.

The text is made here, by a small grammar, so one can say what a perfect model
would do, and count how many of the sampled sentences are right.

prints:

    text: 115,351 characters, 23 different ones, such as
        the small boys hear a tree. the small girls want the moon. the old girl sees a t
    loss of a guess at random: 3.14
    loss of a perfect model:   0.25
    model: 106,135 parameters, 2 blocks

    a sample before training
        rslc  / leaawbececgkysy /  / trn tauhoc.acwbdinbrcugsymscetheaa /  ucl / o / ueeln

     step  learning rate  train_loss  val_loss  val_accuracy
       50        0.00593       1.858     1.029         0.636
      100        0.00515       0.600     0.387         0.817
      150        0.00377       0.352     0.324         0.828
      200        0.00223       0.316     0.307         0.831
      250        0.00104       0.300     0.298         0.831
      300        0.00060       0.295     0.297         0.829

    a sample after training
        some happy boys see the house.
        the small boy wants a tree.
        the old cows like the moon.
        the small girl sees a song.
        the red boy sees the re.

    grammatical: 191 of 209 sentences
"""

import math
import random
import re
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that a clone finds kit.py

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

import kit

# With 64 bits every CPU prints the same text. For speed, leave this line out.
torch.set_default_dtype(torch.float64)

CONTEXT = 48  # characters that the model sees
WIDTH = 64  # numbers that stand for a character
HEADS = 4
LAYERS = 2

STEPS = 300
EVALUATE_EVERY = 50
WARM_UP = 30
BATCH = 32  # windows of 48 characters


# --- 1 The text: "the small cats see a bird." ------------------------------------------

ARTICLES = ["the", "some"]
ADJECTIVES = ["small", "old", "red", "happy"]
NOUNS = ["cat", "dog", "bird", "cow", "girl", "boy"]
VERBS = ["see", "like", "hear", "want"]
OBJECTS = ["the moon", "a tree", "the house", "a song"]


def make_sentence(draw):
    words = [draw.choice(ARTICLES), draw.choice(ADJECTIVES), draw.choice(NOUNS)]
    words += [draw.choice(VERBS), draw.choice(OBJECTS)]

    # One cat sees, two cats see: the model has to look back over a word.
    if draw.random() < 0.5:
        words[2] += "s"
    else:
        words[3] += "s"
    return " ".join(words) + "."


def is_grammatical(sentence):
    subject = f"({'|'.join(ARTICLES)}) ({'|'.join(ADJECTIVES)}) ({'|'.join(NOUNS)})"
    verb = f"({'|'.join(VERBS)})"
    end = f"({'|'.join(OBJECTS)})\\."
    one = f"{subject} {verb}s {end}"
    many = f"{subject}s {verb} {end}"
    return re.fullmatch(f"{one}|{many}", sentence) is not None


draw = random.Random(42)
text = "\n".join(make_sentence(draw) for _ in range(4000))
alphabet = sorted(set(text))
code_of = {character: code for code, character in enumerate(alphabet)}

tokens = torch.tensor([code_of[character] for character in text])
train_tokens, val_tokens = kit.split((tokens,), ratios=(0.9, 0.1))

# All choices of a sentence are equally likely, so a perfect model loses, in nats:
choices = 2 * len(ARTICLES) * len(ADJECTIVES) * len(NOUNS) * len(VERBS) * len(OBJECTS)
perfect = 4000 * math.log(choices) / len(text)

print(f"text: {len(text):,} characters, {len(alphabet)} different ones, such as")
print("    " + text[:80].replace("\n", " "))
print(f"loss of a guess at random: {math.log(len(alphabet)):.2f}")
print(f"loss of a perfect model:   {perfect:.2f}")


# --- 2 Batches: windows of the text, and the same one character later -------------------


def windows(tokens, every):
    """Inputs and targets (N, CONTEXT); a window begins after so many characters."""
    cut = tokens.unfold(0, CONTEXT + 1, every)  # a view: no character is copied
    return cut[:, :-1], cut[:, 1:]


train = kit.make_loader(
    windows(train_tokens[0], every=1),
    batch_size=BATCH,
    shuffle=True,
    steps=EVALUATE_EVERY,  # what kit calls an epoch
)
val = kit.make_loader(windows(val_tokens[0], every=CONTEXT), batch_size=64)


# --- 3 The model ------------------------------------------------------------------------


class Block(nn.Module):
    """Attention, where characters look at earlier ones; then a net for each by itself."""

    def __init__(self):
        super().__init__()
        self.norm_1 = nn.LayerNorm(WIDTH)
        self.queries_keys_values = nn.Linear(WIDTH, 3 * WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)

        self.norm_2 = nn.LayerNorm(WIDTH)
        self.net = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH),
            nn.GELU(),
            nn.Linear(4 * WIDTH, WIDTH),
        )

    def attend(self, x):
        rows, length, width = x.shape
        queries, keys, values = self.queries_keys_values(x).chunk(3, dim=2)

        def by_head(t):  # (rows, heads, length, width of a head)
            return t.view(rows, length, HEADS, width // HEADS).transpose(1, 2)

        seen = F.scaled_dot_product_attention(
            by_head(queries),
            by_head(keys),
            by_head(values),
            is_causal=True,  # only what came before
        )
        return self.mix(seen.transpose(1, 2).reshape(rows, length, width))

    def forward(self, x):
        x = x + self.attend(self.norm_1(x))
        return x + self.net(self.norm_2(x))


class GPT(nn.Module):
    def __init__(self, characters):
        super().__init__()
        self.characters = nn.Embedding(characters, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(WIDTH)
        self.scores = nn.Linear(WIDTH, characters)

    def forward(self, tokens):
        """Scores of the next character, (rows, length, characters)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.characters(tokens) + self.positions(positions)
        return self.scores(self.norm(self.blocks(x)))


torch.manual_seed(42)
model = GPT(len(alphabet))
for module in model.modules():
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)  # torch's own, 1, is too large here

parameters = sum(p.numel() for p in model.parameters())
print(f"model: {parameters:,} parameters, {LAYERS} blocks")


# --- 4 Loss, optimizer, schedule ----------------------------------------------------------


def loss_fn(scores, targets):
    """Totals over the characters: kit adds them up, and divides by the weight."""
    scores = scores.flatten(0, 1)
    targets = targets.flatten()
    return {
        "loss": F.cross_entropy(scores, targets, reduction="sum"),
        "weight": len(targets),
        "accuracy": (scores.argmax(dim=1) == targets).sum(),
    }


# Weight decay for matrices, none for biases and norms.
matrices = [p for p in model.parameters() if p.ndim > 1]
others = [p for p in model.parameters() if p.ndim < 2]
optimizer = torch.optim.AdamW(
    [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0}],
    lr=6e-3,  # the highest
)


def factor(step):
    """What the learning rate is multiplied by: up in a line, down in half a cosine."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    done = (step - WARM_UP) / (STEPS - WARM_UP)
    return 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2


# per_step: the schedule counts steps; without it, it would count epochs.
state = kit.make_state(
    model, optimizer, scheduler=LambdaLR(optimizer, factor), per_step=True
)


# --- 5 Sampling -----------------------------------------------------------------------------


@torch.inference_mode()
def sample(model, length, *, seed=0):
    """Text of so many characters, each drawn by the probabilities that the model gives."""
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    tokens = [code_of["\n"]]
    for _ in range(length):
        context = torch.tensor([tokens[-CONTEXT:]])
        probabilities = model(context)[0, -1].softmax(dim=0)
        tokens.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    return "".join(alphabet[token] for token in tokens[1:])


print()
print("a sample before training")
print("    " + sample(model, 70).replace("\n", " / "))


# --- 6 Training -------------------------------------------------------------------------------

print()
print(" step  learning rate  train_loss  val_loss  val_accuracy")


def report(state):
    row = state.history[-1]
    print(
        f"{row['step']:5}  {row['lr']:13.5f}  {row['train_loss']:10.3f}"
        f"  {row['val_loss']:8.3f}  {row['val_accuracy']:12.3f}"
    )


state = kit.fit(
    state,
    train,
    val,
    loss_fn=loss_fn,
    epochs=STEPS // EVALUATE_EVERY,
    # Two micro-batches of 16 windows: the memory of 16, the gradient of 32. Then the
    # gradient's norm is cut to 1, because a rare large one would undo many steps.
    step=partial(kit.train_step, accumulate=2, clip=1.0),
    on_epoch=report,
)

print()
print("a sample after training")
sentences = sample(model, 6000).splitlines()[:-1]  # the last one is cut off
for sentence in sentences[:5]:
    print("    " + sentence)

# The val_loss stays above a perfect model's because a window of 48 characters begins
# in the middle of a sentence, where nobody can know how it began.
right = sum(is_grammatical(sentence) for sentence in sentences)
print()
print(f"grammatical: {right} of {len(sentences)} sentences")
