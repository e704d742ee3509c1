"""Vision transformers: torchvision's ViT-B/16, also with its ImageNet weights, and small ones for small images."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from flatwise.tasks.shapes import channels
from flatwise.tasks.task import Task

SIDE = 224
"""Pixels that ViT-B/16 works on."""


class Enlarged(nn.Module):
    """A network for large images in colour, fed with smaller ones: resized to 224x224 (bilinear), gray ones repeated.

    Args:
        network: maps [B, 3, 224, 224] to logits.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 1 or 3, H, W] to logits [B, num_classes]."""
        large = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        return self.network(large.expand(-1, 3, -1, -1))


def vit_b_16(task: Task, pretrained: bool = False) -> Enlarged:
    """torchvision's ViT-B/16 on images resized to 224x224, with a new last layer of zeros (torchvision's own choice).

    Args:
        task: gives channels (1 or 3) and classes.
        pretrained: start from torchvision's weights for ImageNet-1K, downloaded on first use (330 MB).

    Raises:
        ValueError: images with another number of channels, or weights that are not there and cannot be downloaded.
    """
    from torchvision.models import ViT_B_16_Weights  # a second of import
    from torchvision.models import vit_b_16 as vit

    if (found := channels("vit-b-16", task, smallest=8)) not in (1, 3):
        raise ValueError(f"vit-b-16 needs images with 1 or 3 channels, but those of {task.name} have {found}")
    trained = _downloaded(ViT_B_16_Weights.IMAGENET1K_V1) if pretrained else None
    model = vit(num_classes=task.num_classes)
    if trained is not None:
        head = {name: value for name, value in model.state_dict().items() if name.startswith("heads.")}
        model.load_state_dict(trained | head)
    return Enlarged(model)


def small_vit(task: Task, layers: int, width: int) -> nn.Module:
    """torchvision's VisionTransformer on 16 patches, a quarter of the image's side each; heads are 16 wide.

    Few patches make it fast on a CPU, and quick to learn from few steps. Images are square, their side a multiple of 4.

    Raises:
        ValueError: images of another shape, a width that is no multiple of 16, or no layer.
    """
    from torchvision.models import VisionTransformer  # a second of import

    name = f"vit-{layers}-{width}"
    if layers < 1 or width < 16 or width % 16:
        raise ValueError(f"{name}: one layer at least, and a width that is a multiple of 16")
    count, side = channels(name, task, smallest=8), _side(name, task)
    model = VisionTransformer(
        image_size=side,
        patch_size=side // 4,
        num_layers=layers,
        num_heads=width // 16,
        hidden_dim=width,
        mlp_dim=4 * width,
        num_classes=task.num_classes,
    )
    return model if count == 3 else _gray(model, count)


def _side(name: str, task: Task) -> int:
    """The side of square images that can be cut into 4x4 patches."""
    height, width = task.train_inputs.shape[2:]
    if height != width or height % 4:
        raise ValueError(
            f"{name} needs square images whose side is a multiple of 4, but {task.name} has {height}x{width}"
        )
    return height


def _gray(model: nn.Module, count: int) -> nn.Module:
    """The same network for images with so many channels: its first layer anew, as torchvision draws it."""
    old = cast(nn.Conv2d, model.conv_proj)
    new = nn.Conv2d(count, old.out_channels, cast(Any, old.kernel_size), stride=cast(Any, old.stride))
    nn.init.trunc_normal_(new.weight, std=(1 / new.weight[0].numel()) ** 0.5)
    nn.init.zeros_(cast(Tensor, new.bias))
    model.conv_proj = new
    return model


def _downloaded(weights: Any) -> dict[str, Tensor]:
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise ValueError(
            f"torchvision's ImageNet weights of vit-b-16 are not in torch's cache and cannot be downloaded ({error}); connect to "
            "the network, or copy vit_b_16-c867db91.pth into $TORCH_HOME/hub/checkpoints"
        ) from error
