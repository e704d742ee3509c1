"""MNIST, Fashion-MNIST and CIFAR-10 through torchvision: found where the user has them, or downloaded once into a cache."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision import datasets

from flatwise.tasks.augment import CropAndFlip
from flatwise.tasks.folders import image_folder, image_split
from flatwise.tasks.source import Source, Split, by_known_moments

VARIABLE = "FLATWISE_DATA"


@dataclass(frozen=True)
class Download:
    """A data set of torchvision's: its class, its folder, the moments of its training pixels, whether a flip is harmless."""

    make: Callable[..., Any]
    folder: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool


DOWNLOADS = {
    "mnist": Download(datasets.MNIST, "MNIST", (0.1307,), (0.3081,), flip=False),
    "fashion-mnist": Download(datasets.FashionMNIST, "FashionMNIST", (0.2860,), (0.3530,), flip=True),
    "cifar10": Download(
        datasets.CIFAR10, "cifar-10-batches-py", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), flip=True
    ),
}


def download(name: str, root: str | None) -> Source:
    """The data set `name`: below `root` if given, else below `FLATWISE_DATA`, else in the cache, downloaded if need be.

    The layouts are torchvision's own (`MNIST/raw`, `FashionMNIST/raw`, `cifar-10-batches-py`); CIFAR-10 is also found as images
    in `cifar10/{train,test}/CLASS/*`. Inputs are standardised by the known mean and standard deviation of the training pixels.

    Raises:
        ValueError: It is not below `root`, or is nowhere and cannot be downloaded.
    """
    spec = DOWNLOADS[name]
    train, test = _given(name, spec, root) if root is not None else _anywhere(name, spec)
    notes = f"{name}: {len(train):,} / {len(test):,} images, standardised by mean {spec.mean} and standard deviation {spec.std}."
    return Source(train, test, 10, notes, by_known_moments(spec.mean, spec.std), CropAndFlip(spec.flip))


def cache_folder() -> Path:
    """Where downloads go: `flatwise` below XDG_CACHE_HOME, or below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flatwise"


def into_cache(folder: str, fetch: Callable[[str], object], cache: Path) -> None:
    """Have `fetch(root)` make `root/folder`, and move it to `cache/folder` when it is complete.

    An interrupted download leaves no half data set in the cache, and of two processes that download at once one wins.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="download-", dir=cache) as unfinished:
        fetch(unfinished)
        with suppress(OSError):  # another process was first
            (Path(unfinished) / folder).rename(cache / folder)


def _given(name: str, spec: Download, root: str) -> tuple[Split, Split]:
    found = _find(name, spec, Path(root).expanduser())
    if found is None:
        raise ValueError(
            f"{name} is not below {root}, which should hold {_layout(name, spec)}; name another data root or none"
        )
    return found


def _anywhere(name: str, spec: Download) -> tuple[Split, Split]:
    cache, variable = cache_folder(), os.environ.get(VARIABLE)
    for place in [Path(variable).expanduser(), cache] if variable else [cache]:
        if (found := _find(name, spec, place)) is not None:
            return found
    try:
        into_cache(spec.folder, lambda root: spec.make(root, download=True), cache)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"{name} is neither below {VARIABLE} ({variable or 'not set'}) nor in {cache}, and cannot be downloaded ({reason}); "
            f"connect to the network, or set {VARIABLE} to a folder that holds {_layout(name, spec)}"
        ) from error
    return _from_torchvision(spec, cache)


def _layout(name: str, spec: Download) -> str:
    return f"{spec.folder} or cifar10/{{train,test}}/CLASS/*.jpg" if name == "cifar10" else f"{spec.folder}/raw"


def _find(name: str, spec: Download, root: Path) -> tuple[Split, Split] | None:
    with suppress(RuntimeError):  # torchvision's "Dataset not found"
        return _from_torchvision(spec, root)
    if name == "cifar10" and (root / name).is_dir():
        return _from_images(root / name)
    return None


def _from_images(path: Path) -> tuple[Split, Split]:
    """CIFAR-10 as images in folders; their alphabetical order is the order of its classes."""
    return image_split(image_folder(path / "train"), side=32), image_split(image_folder(path / "test"), side=32)


def _from_torchvision(spec: Download, root: Path) -> tuple[Split, Split]:
    return _split(spec.make(str(root), train=True)), _split(spec.make(str(root), train=False))


def _split(dataset: Any) -> Split:
    """A data set that torchvision holds as bytes, [N, H, W] or [N, H, W, C], as a split of [C, H, W] with pixels 0 to 1."""
    pixels = torch.as_tensor(dataset.data)
    pixels = pixels.permute(0, 3, 1, 2) if pixels.ndim == 4 else pixels.unsqueeze(1)
    return Split(torch.as_tensor(dataset.targets, dtype=torch.int64), lambda indices: pixels[indices] / 255)
