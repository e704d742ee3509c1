"""Four small networks with their data, for `flatwise.experiments.free_eigenvector`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from flatwise.tasks import build_model, load_data
from flatwise.tasks.sampling import globally_seeded, permutation
from flatwise.tasks.text import tinyshakespeare_text

TEXT, CONTEXT, PIECES, HELD_OUT = 200_000, 32, 2400, 500
"""Characters of the text that are used, and in a piece of it; pieces to train on, pieces to test on."""

IMAGES, TEST_IMAGES = 5000, 2000


@dataclass(frozen=True)
class Problem:
    """A network, its data and how it is trained.

    Attributes:
        model: with its initial weights, on the CPU.
        inputs: of the training data, [N, ...].
        targets: class indices, [N] or, for text, [N, T].
        test_inputs, test_targets: likewise.
        batch: samples in a batch; what is left of an epoch is dropped.
        epochs: how many.
        lr, rho: at the start of the cosine, and throughout.
        measured: curvature is that of so many training samples.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    batch: int
    epochs: int
    lr: float
    rho: float
    measured: int

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.epochs * (len(self.inputs) // self.batch)

    def at(self, step: int, seed: int) -> tuple[Tensor, Tensor]:
        """The batch of a step: a pure function of step and seed."""
        epoch, index = divmod(step, len(self.inputs) // self.batch)
        order = permutation(len(self.inputs), seed * 1000 + epoch, "free eigenvector, batches")
        chosen = order[index * self.batch : (index + 1) * self.batch]
        return self.inputs[chosen], self.targets[chosen]


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy over samples, or over all characters."""
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def digits(seed: int) -> Problem:
    """MLP 64-128-128-10 on digits, 20 % of the training labels random."""
    task = load_data("digits", seed=seed, label_noise=0.2)
    model = build_model("mlp", task, seed, widths=(128, 128))
    data = (task.train_inputs, task.train_targets, task.test_inputs, task.test_targets)
    return Problem(model, *data, batch=64, epochs=40, lr=0.05, rho=0.1, measured=len(task.train_inputs))


def cnn(seed: int) -> Problem:
    """Six convolutions without BatchNorm on CIFAR-10, pooled to 16x16."""
    return _images(seed, batch_norm=False)


def cnn_batchnorm(seed: int) -> Problem:
    """The same with BatchNorm after each convolution."""
    return _images(seed, batch_norm=True)


def transformer(seed: int) -> Problem:
    """Two blocks on the characters of tiny Shakespeare, downloaded if need be."""
    text = tinyshakespeare_text()[:TEXT]
    letters = {letter: i for i, letter in enumerate(sorted(set(text)))}
    codes = torch.tensor([letters[letter] for letter in text])
    pieces = codes[: len(codes) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    pieces = pieces[permutation(len(pieces), seed, "free eigenvector, text")[: PIECES + HELD_OUT]]
    train, test = pieces[:PIECES], pieces[PIECES:]
    with globally_seeded(seed):
        model = Transformer(len(letters))
    data = (train[:, :-1], train[:, 1:], test[:, :-1], test[:, 1:])
    return Problem(model, *data, batch=32, epochs=2, lr=0.1, rho=0.05, measured=128)


PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "digits": digits,
    "cnn": cnn,
    "cnn-batchnorm": cnn_batchnorm,
    "transformer": transformer,
}


class Transformer(nn.Module):
    """Characters [B, T] to the logits of the next, [B, T, letters]."""

    def __init__(self, letters: int, width: int = 48, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.letter = nn.Embedding(letters, width)
        self.place = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)), nn.LayerNorm(width))
        self.logits = nn.Linear(width, letters)

    def forward(self, letters: Tensor) -> Tensor:
        """The logits of the characters after each."""
        return self.logits(self.blocks(self.letter(letters) + self.place))


class Block(nn.Module):
    """Causal attention and a GELU layer, each after LayerNorm. Attention is written out, so that it differentiates twice."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] to the same."""
        x = x + self.mixed(self._attention(self.before(x)))
        return x + self.feed(self.between(x))

    def _attention(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.queries_keys_values(x).view(batch, length, 3, self.heads, -1)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(width // self.heads)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        return (scores.masked_fill(future, -math.inf).softmax(-1) @ values).transpose(1, 2).reshape(x.shape)


def _images(seed: int, *, batch_norm: bool) -> Problem:
    task = load_data("cifar10", seed=seed, subset=IMAGES)
    test = permutation(len(task.test_inputs), seed, "free eigenvector, test")[:TEST_IMAGES]
    with globally_seeded(seed):
        model = _six_convolutions(batch_norm)
    data = (_pooled(task.train_inputs), task.train_targets, _pooled(task.test_inputs[test]), task.test_targets[test])
    return Problem(model, *data, batch=128, epochs=4, lr=0.03, rho=0.05, measured=256)


def _pooled(images: Tensor) -> Tensor:
    return functional.avg_pool2d(images, 2).contiguous(memory_format=torch.channels_last)


def _six_convolutions(batch_norm: bool) -> nn.Sequential:
    sizes = (3, 16, 16, 32, 32, 64, 64)
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers += [_convolution(a, b), *([nn.BatchNorm2d(b)] if batch_norm else []), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i in (1, 3) else []
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], 10))
    return model.to(memory_format=torch.channels_last)


def _convolution(channels: int, out: int) -> nn.Conv2d:
    """With Kaiming's normal initialisation: torch's own leaves this depth without BatchNorm where it began."""
    layer = nn.Conv2d(channels, out, 3, padding=1)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(cast(Tensor, layer.bias))
    return layer
