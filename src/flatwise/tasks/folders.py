"""Images in folders, one folder per class, read by torchvision's ImageFolder. Only the images that are used are decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as F

from flatwise.tasks.augment import CropAndFlip
from flatwise.tasks.sampling import permutation
from flatwise.tasks.source import Source, Split, by_measured_moments

LARGEST_SIDE = 64
SMALLEST_SIDE = 8


def folder(path: str, seed: int) -> Source:
    """The images below `path`, as `{train,test}/CLASS/*`, or as `CLASS/*` of which a fifth is drawn for testing.

    Images are resized and cropped to squares as large as the first image's shorter side, but at least 8 and at most 64 pixels;
    they are read as RGB and standardised by the mean and standard deviation of each channel over the training images.

    Raises:
        ValueError: The folder is missing or empty, has fewer than two classes, or an image cannot be read.
    """
    place = Path(path).expanduser()
    train, test, classes, side, how = _given_splits(place) if _has_splits(place) else _drawn_splits(place, seed)
    notes = f"Images in {path}: {', '.join(classes[:10])}{' ...' if len(classes) > 10 else ''}; {side}x{side} pixels, {how}."
    standardised = "Standardised by the mean and standard deviation of each channel."
    return Source(train, test, len(classes), notes, by_measured_moments, standardised, CropAndFlip(), pixels=True)


def image_folder(path: Path) -> ImageFolder:
    """torchvision's ImageFolder over `path/CLASS/*`, with one clear sentence when there is none."""
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}")
    try:
        images = ImageFolder(str(path))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not hold images in one folder per class, as CLASS/*.jpg: {error}") from error
    if len(images.classes) < 2:
        found = f"{path} holds the folder {images.classes[0]!r} only"
        raise ValueError(f"{found}; put the images of every class into a folder of its own, two classes at least")
    return images


def image_split(images: ImageFolder, side: int) -> Split:
    """All images of a folder as a split, [3, side, side] each, pixels 0 to 1."""
    samples: list[tuple[str, int]] = images.samples
    paths = [path for path, _ in samples]
    return Split(
        torch.tensor(images.targets), lambda indices: _read([paths[i] for i in indices.tolist()], images, side)
    )


def _has_splits(path: Path) -> bool:
    return (path / "train").is_dir() and (path / "test").is_dir()


def _given_splits(path: Path) -> tuple[Split, Split, list[str], int, str]:
    train, test = image_folder(path / "train"), image_folder(path / "test")
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(f"train and test below {path} must hold the same classes, but differ in {', '.join(odd)}")
    side = _side(train)
    return image_split(train, side), image_split(test, side), train.classes, side, "split by their folders"


def _drawn_splits(path: Path, seed: int) -> tuple[Split, Split, list[str], int, str]:
    images = image_folder(path)
    side = _side(images)
    everything = image_split(images, side)
    order, num_test = permutation(len(everything), seed, "split"), max(1, len(everything) // 5)
    train, test = everything.take(order[num_test:]), everything.take(order[:num_test])
    return train, test, images.classes, side, f"a fifth drawn for testing with seed {seed}"


def _side(images: ImageFolder) -> int:
    first = _open(images, images.samples[0][0])
    return max(SMALLEST_SIDE, min(LARGEST_SIDE, *first.size))


def _read(paths: list[str], images: ImageFolder, side: int) -> Tensor:
    return torch.stack([F.pil_to_tensor(_square(_open(images, path), side)) for path in paths]) / 255


def _open(images: ImageFolder, path: str) -> Any:
    try:
        return images.loader(path)
    except OSError as error:
        raise ValueError(
            f"the image {path} cannot be read ({error}); replace it or take it out of the folder"
        ) from error


def _square(image: Any, side: int) -> Any:
    if image.size == (side, side):
        return image
    return F.center_crop(F.resize(image, [side]), [side])
