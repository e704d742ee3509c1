"""The names of data sets and models, each with one line about it. Imports nothing heavy: `--help` reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from re import fullmatch

DATA: Mapping[str, str] = {
    "digits": "handwritten digits, 8x8, 1,000 train / 797 test; comes with scikit-learn, no download",
    "digits-full": "the same 1,797 digits, centred, all of them for training: for full-batch experiments",
    "mnist": "handwritten digits, 28x28, 60,000 train / 10,000 test; downloaded on first use",
    "fashion-mnist": "clothing, 28x28, 60,000 train / 10,000 test; downloaded on first use",
    "cifar10": "photographs in colour, 32x32, 50,000 train / 10,000 test; downloaded on first use",
    "cifar100": "photographs in colour, 32x32, 100 classes, 50,000 train / 10,000 test; downloaded on first use",
    "svhn": "house numbers in colour, 32x32, 73,257 train / 26,032 test; downloaded on first use",
    "tinyshakespeare": "characters of plays, 128 classes, sequences of 64, the next one to be predicted; downloaded",
    "text:FILE": "your text, likewise: the end of it is the test data",
    "folder:PATH": "your images, as PATH/{train,test}/CLASS/* or PATH/CLASS/*",
    "module:function": "your function, which returns a Task or (train_inputs, train_targets, test_inputs, test_targets)",
}

MODELS: Mapping[str, str] = {
    "mlp": "fully connected, ReLU; two hidden layers of 128 unless widths says otherwise",
    "cnn6": "six 3x3 convolutions with BatchNorm, 16-16-32-32-64-64 channels, for images of 8x8 and larger",
    "cnn-ln": "two 3x3 convolutions with LayerNorm, 16-32 channels, as in the edge-of-stability study of SAM",
    "resnet18": "torchvision's ResNet-18 with the stem for small images (3x3, stride 1, no max-pool)",
    "resnet50": "torchvision's ResNet-50 with the same stem",
    "wrn-28-10": "Wide ResNet, 28 convolutions deep and 10 times wide: 36.5 million parameters",
    "wrn-D-K": "a Wide ResNet of other depth (10, 16, 22 ...) and width, as wrn-10-2",
    "vit-b-16": "torchvision's ViT-B/16 on images resized to 224x224; with pretrained imagenet its ImageNet weights",
    "vit-L-W": "a small vision transformer for small images, as vit-4-64: L layers, W wide, 16 patches",
    "transformer": "decoder for text: 6 layers, 8 heads of 32, 128 wide, as in the edge-of-stability study of SAM",
    "transformer-L-W": "one of L layers, W wide, heads of 16, as transformer-2-64",
    "module:function": "your function(task) or function(), which returns a torch.nn.Module",
}


FAMILIES: Mapping[str, str] = {"wrn": "wrn-D-K", "vit": "vit-L-W", "transformer": "transformer-L-W"}
"""Models with two numbers in their name, and how these are written above."""


def data_names() -> list[tuple[str, str]]:
    """Every data set that `load_data` knows, with one line about it."""
    return list(DATA.items())


def model_names() -> list[tuple[str, str]]:
    """Every model that `build_model` knows, with one line about it."""
    return list(MODELS.items())


def check_data_name(name: str) -> None:
    """Raise ValueError, naming the nearest data set, unless `name` is one, `folder:PATH`, `text:FILE` or `module:function`."""
    _check("data set", name, DATA)


def check_model_name(name: str) -> None:
    """Raise ValueError, naming the nearest model, unless `name` is one or `module:function`."""
    if sized(name) is None:
        _check("model", name, MODELS)


def sized(name: str) -> tuple[str, int, int] | None:
    """The family of models and the two numbers in a name like wrn-10-2; None for other names."""
    found = fullmatch(r"([a-z]+)-([0-9]+)-([0-9]+)", name)
    return (found[1], int(found[2]), int(found[3])) if found and found[1] in FAMILIES else None


def _check(what: str, name: str, known: Iterable[str]) -> None:
    plain = [k for k in known if ":" not in k and k not in FAMILIES.values()]
    before, colon, after = name.partition(":")
    if name in plain or (colon and before and after):
        return
    nearest = get_close_matches(name.lower(), plain, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? There are" if nearest else "there are"
    raise ValueError(f"no {what} is called {name!r}: {hint} {', '.join(known)}")
