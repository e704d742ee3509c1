"""Small data sets in the layouts that torchvision and ImageFolder read, written for tests."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image


def write_mnist(root: Path, num_train: int = 6, num_test: int = 4, folder: str = "MNIST") -> np.ndarray:
    """`folder/raw` as torchvision leaves it, with pixels 0 .. 255 in a known pattern; returns the training pixels."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", num_train), ("t10k", num_test)):
        images = (np.arange(count * 28 * 28) % 256).astype(np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, count, 28, 28) + images.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())
    return (np.arange(num_train * 28 * 28) % 256).reshape(num_train, 28, 28)


def write_images(path: Path, classes: dict[str, int], size: tuple[int, int] = (12, 10)) -> None:
    """`path/CLASS/0.png ...`: images of one gray each, brighter from one to the next."""
    for name, count in classes.items():
        (path / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", size, (10 + i, 20 + i, 30 + i)).save(path / name / f"{i}.png")
