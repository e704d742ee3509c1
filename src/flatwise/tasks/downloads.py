"""Data sets through torchvision: found where the user has them, or downloaded once into a cache."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
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
    """A data set of torchvision's: its class, its folder, the moments of its training pixels, whether a flip is harmless.

    The class is called with the root, `train=True` or `train=False`, and `download=True` where it shall be downloaded.
    """

    make: Callable[..., Any]
    folder: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    num_classes: int = 10


def _svhn(root: str, *, train: bool, download: bool = False) -> Any:
    """SVHN in a folder of its own, and in the form of the others."""
    found: Any = datasets.SVHN(str(Path(root) / "svhn"), split="train" if train else "test", download=download)
    found.data, found.targets = found.data.transpose(0, 2, 3, 1), found.labels
    return found


DOWNLOADS = {
    "mnist": Download(datasets.MNIST, "MNIST", (0.1307,), (0.3081,), flip=False),
    "fashion-mnist": Download(datasets.FashionMNIST, "FashionMNIST", (0.2860,), (0.3530,), flip=True),
    "cifar10": Download(
        datasets.CIFAR10, "cifar-10-batches-py", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), flip=True
    ),
    "cifar100": Download(
        datasets.CIFAR100,
        "cifar-100-python",
        (0.5071, 0.4867, 0.4408),
        (0.2675, 0.2565, 0.2761),
        flip=True,
        num_classes=100,
    ),
    "svhn": Download(_svhn, "svhn", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), flip=False),
}


def download(name: str, root: str | None) -> Source:
    """The data set `name`: below `root` if given, else below `FLATWISE_DATA`, else in the cache, downloaded if need be.

    The layouts are torchvision's own (`MNIST/raw`, `FashionMNIST/raw`, `cifar-10-batches-py`, `cifar-100-python`, and
    `svhn/*_32x32.mat`); CIFAR-10 is also found as images in `cifar10/{train,test}/CLASS/*`. Inputs are standardised by the
    known mean and standard deviation of the training pixels.

    Raises:
        ValueError: It is not below `root`, or is nowhere and cannot be downloaded.
    """
    spec = DOWNLOADS[name]
    train, test = _given(name, spec, root) if root is not None else _anywhere(name, spec)
    notes = f"{name}: {len(train):,} / {len(test):,} images."
    standardised = f"Standardised by mean {spec.mean} and standard deviation {spec.std}."
    moments, augment = by_known_moments(spec.mean, spec.std), CropAndFlip(spec.flip)
    return Source(train, test, spec.num_classes, notes, moments, standardised, augment, pixels=True)


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


def places() -> list[Path]:
    """Where data is looked for unless it is said where: below `FLATWISE_DATA`, then in the cache."""
    variable = os.environ.get(VARIABLE)
    return [Path(variable).expanduser(), cache_folder()] if variable else [cache_folder()]


def _given(name: str, spec: Download, root: str) -> tuple[Split, Split]:
    found = _find(name, spec, Path(root).expanduser())
    if found is None:
        raise ValueError(
            f"{name} is not below {root}, which should hold {_layout(name, spec)}; name another data root or none"
        )
    return found


def _anywhere(name: str, spec: Download) -> tuple[Split, Split]:
    for place in places():
        if (found := _find(name, spec, place)) is not None:
            return found
    try:
        into_cache(spec.folder, partial(_fetch, spec), cache_folder())
    except (OSError, RuntimeError) as error:
        raise nowhere(name, _layout(name, spec), error) from error
    return _from_torchvision(spec, cache_folder())


def nowhere(name: str, layout: str, error: Exception) -> ValueError:
    """What to say of data that was not found, of which a folder should hold `layout`, and that cannot be downloaded."""
    reason, variable = str(error).strip().splitlines()[-1], os.environ.get(VARIABLE) or "not set"
    return ValueError(
        f"{name} is neither below {VARIABLE} ({variable}) nor in {cache_folder()}, and cannot be downloaded ({reason}); "
        f"connect to the network, or set {VARIABLE} to a folder that holds {layout}"
    )


def _fetch(spec: Download, root: str) -> None:
    for train in (True, False):
        spec.make(root, train=train, download=True)


def _layout(name: str, spec: Download) -> str:
    if name == "cifar10":
        return f"{spec.folder} or cifar10/{{train,test}}/CLASS/*.jpg"
    return {"svhn": "svhn/*_32x32.mat", "cifar100": spec.folder}.get(name, f"{spec.folder}/raw")


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
