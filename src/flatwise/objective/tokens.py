"""How many predictions a batch of a language model holds: what its loss is a mean over, and so what the batch must count for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

IGNORED = -100
"""The label of a token that is not predicted, in torch and in Hugging Face's models."""


def tokens(batch: Any, *, labels: str = "labels", shift: bool = True, ignore_index: int = IGNORED) -> float:
    """The number of tokens that are predicted in a batch: the weight of a batch whose loss is a mean over tokens.

    `fw.Objective(model, loss_fn, batches, weight=fw.objective.tokens)`; with other settings by `functools.partial`.

    Args:
        batch: a mapping as Hugging Face's models take it, with labels of shape (..., length); without labels the inputs are
            predicted, except where the attention mask is 0.
        labels: the name of the labels in the batch.
        shift: whether the model predicts the next token, so that the first label of each sequence does not count.
        ignore_index: labels that do not count.

    Raises:
        TypeError: the batch is no mapping.
        ValueError: it has neither labels nor input_ids.
    """
    found = labels_of(batch, labels, ignore_index)
    return float(((found[..., 1:] if shift else found) != ignore_index).sum())


def labels_of(batch: Any, labels: str = "labels", ignore_index: int = IGNORED) -> Tensor:
    """The labels of a batch, not shifted; the input tokens, where it has none and they are not masked.

    Raises:
        TypeError: the batch is no mapping.
        ValueError: it has neither labels nor input_ids.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"batch must be a mapping with labels or input_ids, as language models take it, got {type(batch).__name__}; "
            "for others pass weight=lambda batch: (targets != -100).sum()"
        )
    if batch.get(labels) is not None:
        return batch[labels]
    if batch.get("input_ids") is None:
        raise ValueError(f"the batch has neither {labels!r} nor 'input_ids', but {', '.join(map(repr, batch))}")
    mask = batch.get("attention_mask")
    inputs: Tensor = batch["input_ids"]
    return inputs if mask is None else inputs.masked_fill(mask == 0, ignore_index)
