"""Plain convolutional networks: with BatchNorm, or with layer normalisation over the channels."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from flatwise.tasks.normalisation import LayerNorm
from flatwise.tasks.shapes import channels
from flatwise.tasks.task import Task


def cnn6(task: Task, width: float = 1.0) -> nn.Sequential:
    """Six 3x3 convolutions with BatchNorm and ReLU, 16-16-32-32-64-64 channels times `width`.

    The size is halved after the second and the fourth; the mean over what is left goes into one linear layer.
    """
    if not width > 0:
        raise ValueError(f"width must be a positive factor on the number of channels, not {width}")
    sizes = [channels("cnn6", task, smallest=8), *(max(1, round(width * c)) for c in (16, 16, 32, 32, 64, 64))]
    one, two, three, four, five, six = (_with_batch_norm(a, b) for a, b in pairwise(sizes))
    halved = [one, two, nn.MaxPool2d(2), three, four, nn.MaxPool2d(2), five, six]
    return nn.Sequential(*halved, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], task.num_classes))


def cnn_ln(task: Task, blocks: int = 2) -> nn.Sequential:
    """The CNN of arXiv 2309.12488's code: in each block a 3x3 convolution to 16, 32 ... channels, ReLU, LayerNorm, 2x2 max-pool.

    LayerNorm is over the channels at each pixel. Kernels are Glorot normal, biases zero; what is left goes flat into one linear
    layer. Whether the paper's figures have two blocks, the default of its code, is not known.

    Raises:
        ValueError: no images, or images too small for so many blocks.
    """
    if blocks < 1:
        raise ValueError(f"blocks must be at least 1, not {blocks}")
    sizes = [channels("cnn-ln", task, smallest=2**blocks), *(16 * 2**i for i in range(blocks))]
    layers = [layer for a, b in pairwise(sizes) for layer in _with_layer_norm(a, b)]
    height, width = (side // 2**blocks for side in task.train_inputs.shape[2:])
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(sizes[-1] * height * width, task.num_classes)).apply(glorot)


def glorot(module: nn.Module) -> None:
    """Glorot's normal initialisation, and no bias at first."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.xavier_normal_(module.weight)
        nn.init.zeros_(cast(Tensor, module.bias))


def _with_batch_norm(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def _with_layer_norm(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), LayerNorm(after, dim=1, eps=1e-6), nn.MaxPool2d(2)]
