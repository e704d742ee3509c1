"""The names of data sets and models, each with one line about it. Imports nothing heavy: `--help` reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

DATA: Mapping[str, str] = {
    "digits": "handwritten digits, 8x8, 1,000 train / 797 test; comes with scikit-learn, no download",
    "digits-full": "the same 1,797 digits, centred, all of them for training: for full-batch experiments",
    "mnist": "handwritten digits, 28x28, 60,000 train / 10,000 test; downloaded on first use",
    "fashion-mnist": "clothing, 28x28, 60,000 train / 10,000 test; downloaded on first use",
    "cifar10": "photographs in colour, 32x32, 50,000 train / 10,000 test; downloaded on first use",
    "folder:PATH": "your images, as PATH/{train,test}/CLASS/* or PATH/CLASS/*",
    "module:function": "your function, which returns a Task or (train_inputs, train_targets, test_inputs, test_targets)",
}

MODELS: Mapping[str, str] = {
    "mlp": "fully connected, ReLU; two hidden layers of 128 unless widths says otherwise",
    "cnn6": "six 3x3 convolutions with BatchNorm, 16-16-32-32-64-64 channels, for images of 8x8 and larger",
    "resnet18": "torchvision's ResNet-18 with the stem for small images (3x3, stride 1, no max-pool)",
    "module:function": "your function(task) or function(), which returns a torch.nn.Module",
}


def data_names() -> list[tuple[str, str]]:
    """Every data set that `load_data` knows, with one line about it."""
    return list(DATA.items())


def model_names() -> list[tuple[str, str]]:
    """Every model that `build_model` knows, with one line about it."""
    return list(MODELS.items())


def check_data_name(name: str) -> None:
    """Raise ValueError, naming the nearest data set, unless `name` is one, `folder:PATH` or `module:function`."""
    _check("data set", name, DATA)


def check_model_name(name: str) -> None:
    """Raise ValueError, naming the nearest model, unless `name` is one or `module:function`."""
    _check("model", name, MODELS)


def _check(what: str, name: str, known: Iterable[str]) -> None:
    plain = [k for k in known if ":" not in k]
    before, colon, after = name.partition(":")
    if name in plain or (colon and before and after):
        return
    nearest = get_close_matches(name.lower(), plain, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? There are" if nearest else "there are"
    raise ValueError(f"no {what} is called {name!r}: {hint} {', '.join(known)}")
