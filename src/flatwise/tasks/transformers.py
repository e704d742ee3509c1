"""A decoder of characters: causal attention, normalised before each layer (the network of arXiv 2309.12488's language task)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatwise.tasks.normalisation import LayerNorm
from flatwise.tasks.shapes import tokens
from flatwise.tasks.task import Task

_TRUNCATED = 0.87962566103423978
"""Standard deviation of a normal distribution of deviation 1 that is cut off at 2."""


class Decoder(nn.Module):
    """Tokens [B, T] to the logits of the next one, [B, T, vocabulary]. No dropout; input and output weights are not tied.

    Attention is written out and LayerNorm made of elementary operations, so that derivatives of every order are right.

    Args:
        vocabulary: how many tokens there are.
        length: the longest sequence; its positions are learnt.
        layers: blocks of attention and a fully connected layer.
        width: of the stream between them.
        heads: of each attention.
        key_size: of each head.
    """

    def __init__(self, vocabulary: int, length: int, layers: int, width: int, heads: int, key_size: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Parameter(torch.empty(length, width))
        self.blocks = nn.Sequential(*(Block(width, heads, key_size) for _ in range(layers)))
        self.norm, self.logits = LayerNorm(width), nn.Linear(width, vocabulary)
        for linear in (m for m in self.modules() if isinstance(m, nn.Linear)):
            _initialise(linear, scale=1.0 if linear is self.logits else 2.0 / layers)
        for embedding in (self.tokens.weight, self.positions):
            nn.init.trunc_normal_(embedding, std=0.02, a=-0.04, b=0.04)

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits of the token after each."""
        stream = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        return self.logits(self.norm(self.blocks(stream)))


class Block(nn.Module):
    """Causal attention, then two linear layers with GELU between, four times as wide; each on the normalised stream."""

    def __init__(self, width: int, heads: int, key_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.queries, self.keys, self.values = (nn.Linear(width, heads * key_size) for _ in range(3))
        self.mix = nn.Linear(heads * key_size, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, stream: Tensor) -> Tensor:
        """The stream [B, T, width] to the same."""
        stream = stream + self._attention(self.norm1(stream))
        return stream + self.narrow(F.gelu(self.widen(self.norm2(stream)), approximate="tanh"))

    def _attention(self, x: Tensor) -> Tensor:
        queries, keys, values = (self._split(layer(x)) for layer in (self.queries, self.keys, self.values))
        scores = queries @ keys.mT / math.sqrt(queries.shape[-1])
        future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -math.inf).softmax(-1) @ values
        return self.mix(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """[B, T, heads * size] to [B, heads, T, size]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def transformer(task: Task) -> Decoder:
    """The decoder of arXiv 2309.12488's code: 6 layers, 8 heads of key size 32, width 128."""
    return Decoder(task.num_classes, tokens("transformer", task), layers=6, width=128, heads=8, key_size=32)


def sized_transformer(task: Task, layers: int, width: int) -> Decoder:
    """A smaller or larger one: heads of key size 16 that together are as wide as the stream.

    Raises:
        ValueError: the width is no multiple of 16, or there is no layer.
    """
    if layers < 1 or width < 16 or width % 16:
        raise ValueError(f"transformer-{layers}-{width}: one layer at least, and a width that is a multiple of 16")
    length = tokens(f"transformer-{layers}-{width}", task)
    return Decoder(task.num_classes, length, layers, width, heads=width // 16, key_size=16)


def _initialise(linear: nn.Linear, scale: float) -> None:
    """Haiku's VarianceScaling: a normal distribution cut off at two deviations, of variance `scale / inputs`; no bias."""
    std = math.sqrt(scale / linear.in_features) / _TRUNCATED
    nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(linear.bias)
