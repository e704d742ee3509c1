"""`load_data`: a task by name, with a subset, label noise and augmentation, all seeded."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias

from flatwise.tasks import sampling
from flatwise.tasks.digits import digits, digits_full
from flatwise.tasks.names import check_data_name
from flatwise.tasks.source import Source, by_pixel_means
from flatwise.tasks.task import Augment, Task

Preprocess: TypeAlias = Literal["standard", "centred"]


def load_data(
    name: str,
    *,
    root: str | None = None,
    seed: int = 0,
    subset: int | None = None,
    label_noise: float = 0.0,
    augment: bool = False,
    preprocess: Preprocess = "standard",
) -> Task:
    """Load a task. The same arguments give the same task, bit for bit; the global random state is left alone.

    Args:
        name: One of `data_names()`, `folder:PATH`, `text:FILE` or `module:function`.
        root: The folder that holds the downloadable data sets. None: the environment variable FLATWISE_DATA, then a cache
            below XDG_CACHE_HOME or ~/.cache into which they are downloaded on first use.
        seed: Draws the split where one is drawn, the subset, and the label noise.
        subset: Train on so many samples, drawn without replacement; only these are decoded. The test data stays whole.
        label_noise: The fraction of the training labels, 0 to 1, replaced by a class drawn uniformly among all classes, the
            true one included. Test labels are never touched.
        augment: Give the task its augmentation: random crop, and horizontal flip where that keeps the meaning. A `Task` of
            the user's own keeps its own `augment` when this is True, and loses it when False.
        preprocess: "standard": as suits the data. "centred": pixels / 256, less the mean of each pixel over the training samples
            that are used, as arXiv 2309.12488's code does; for images that are not centred by themselves.

    Raises:
        ValueError: An unknown name (the nearest is named), data that is missing or does not fit, a setting out of range or
            without effect.
        TypeError: What `module:function` returned is not a task.
    """
    check_data_name(name)
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise must be a fraction between 0 and 1, not {label_noise}")
    source = _preprocessed(name, _source(name, root, seed), preprocess)
    train = source.train.take(sampling.subset(len(source.train), subset, seed))
    inputs, test_inputs = source.standardise(train.inputs(), source.test.inputs())
    targets = sampling.noisy_labels(train.targets, label_noise, source.num_classes, seed)
    return Task(
        name=name,
        train_inputs=inputs,
        train_targets=targets,
        test_inputs=test_inputs,
        test_targets=source.test.targets,
        num_classes=source.num_classes,
        augment=_augmentation(name, source) if augment else None,
        notes=source.said() + _changes(len(train), subset, label_noise, augment, seed),
    )


def _source(name: str, root: str | None, seed: int) -> Source:
    kind, colon, rest = name.partition(":")
    if colon and kind not in ("folder", "text"):
        from flatwise.tasks.users import user_data

        return user_data(name, root, seed)
    if root is not None and (colon or name.startswith("digits")):
        raise ValueError(f"the data root {root} has no effect on {name!r}, which is not looked up there; leave it away")
    if kind == "text" and colon:
        from flatwise.tasks.text import text_file

        return text_file(rest)
    if colon:
        from flatwise.tasks.folders import folder

        return folder(rest, seed)
    if name == "digits":
        return digits(seed)
    if name == "digits-full":
        return digits_full()
    if name == "tinyshakespeare":
        from flatwise.tasks.text import tinyshakespeare

        return tinyshakespeare(root)
    from flatwise.tasks.downloads import download  # torchvision takes a second to import

    return download(name, root)


def _preprocessed(name: str, source: Source, preprocess: Preprocess) -> Source:
    if preprocess == "standard":
        return source
    if preprocess != "centred":
        raise ValueError(f"preprocess must be 'standard' or 'centred', not {preprocess!r}")
    if not source.pixels:
        raise ValueError(f"preprocess centred has no effect on {name!r}, which are no images with pixels of 0 to 255")
    said = "Pixels / 256, less the mean of each pixel over the training samples used."
    return replace(source, standardise=by_pixel_means, standardised=said)


def _augmentation(name: str, source: Source) -> Augment:
    if source.augment is None:
        raise ValueError(f"augment crops and flips images [N, C, H, W], which the samples of {name!r} are not")
    return source.augment


def _changes(size: int, subset: int | None, label_noise: float, augment: bool, seed: int) -> str:
    """What was done to the training data, as sentences to follow the notes of the source."""
    done = [
        f"A random subset of {size:,} training samples." if subset is not None else "",
        f"{100 * label_noise:g} % of the training labels are random." if label_noise else "",
        "Training batches are augmented." if augment else "",
        f"Drawn with seed {seed}." if subset is not None or label_noise else "",
    ]
    return "".join(f" {sentence}" for sentence in done if sentence)
