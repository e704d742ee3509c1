"""Residual networks for small images: torchvision's ResNets with another stem, and Wide ResNets."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from flatwise.tasks.shapes import channels
from flatwise.tasks.task import Task


def resnet18(task: Task) -> nn.Module:
    """torchvision's ResNet-18, untrained, with the stem for small images: a 3x3 convolution of stride 1, no max-pool."""
    return _resnet("resnet18", task)


def resnet50(task: Task) -> nn.Module:
    """torchvision's ResNet-50, untrained, with the stem for small images: a 3x3 convolution of stride 1, no max-pool."""
    return _resnet("resnet50", task)


def _resnet(name: str, task: Task) -> nn.Module:
    from torchvision import models  # a second of import that the other models need not pay

    count = channels(name, task, smallest=8)
    model: Any = getattr(models, name)(weights=None, num_classes=task.num_classes)
    model.conv1 = nn.Conv2d(count, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


class WideResNet(nn.Module):
    """A Wide ResNet (arXiv 1605.07146): three groups of pre-activation blocks at full, half and quarter size; no dropout.

    Args:
        in_channels: of the images.
        num_classes: outputs.
        depth: 6 n + 4 for n blocks in each group; convolutions on the way, those of the shortcuts left out.
        width: the groups have 16, 32 and 64 channels times this.

    Raises:
        ValueError: the depth is not 6 n + 4.
    """

    def __init__(self, in_channels: int, num_classes: int, depth: int, width: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1 or width < 1:
            raise ValueError(
                f"wrn-{depth}-{width}: the depth must be 6 n + 4 (10, 16, 22, 28, 40 ...), and the width at least 1"
            )
        self.stem = _convolution(in_channels, 16)
        sizes = (16, 16 * width, 32 * width, 64 * width)
        groups = [_group(sizes[i], sizes[i + 1], blocks, stride=1 if i == 0 else 2) for i in range(3)]
        self.groups = nn.Sequential(*groups)
        self.norm, self.logits = nn.BatchNorm2d(sizes[-1]), nn.Linear(sizes[-1], num_classes)
        self.apply(_he)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, num_classes]."""
        features = F.relu(self.norm(self.groups(self.stem(images))))
        return self.logits(features.mean((2, 3)))


class WideBlock(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, twice, beside a shortcut: the identity, or 1x1 where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(before), _convolution(before, after, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(after), _convolution(after, after)
        self.shortcut = None if before == after else nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, C, H, W]; where the shape changes, the shortcut too starts behind the first BatchNorm and ReLU."""
        active = F.relu(self.norm1(x))
        branch = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return branch + (x if self.shortcut is None else self.shortcut(active))


def wide_resnet(task: Task, depth: int, width: int) -> WideResNet:
    """The Wide ResNet of that depth and width for the task's images."""
    return WideResNet(channels(f"wrn-{depth}-{width}", task, smallest=8), task.num_classes, depth, width)


def _group(before: int, after: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [WideBlock(after, after, 1) for _ in range(blocks - 1)]
    return nn.Sequential(WideBlock(before, after, stride), *rest)


def _convolution(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)


def _he(module: nn.Module) -> None:
    """He's normal initialisation by the outputs of each convolution, and no bias at first, as in the paper's code."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
