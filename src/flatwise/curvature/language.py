"""The loss of Hugging Face's causal language models, without all logits at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from flatwise.curvature.recompute import chunked_cross_entropy
from flatwise.objective.tokens import IGNORED, labels_of

FEW = 8
"""Tokens on which the model is compared with its parts."""

_TOKENS = ("input_ids", "inputs_embeds")


def causal_lm_loss(chunk: int = 1024, ignore_index: int = IGNORED) -> Callable[[nn.Module, Any], Tensor]:
    """A loss function for an `Objective`: the mean cross-entropy of the next token, of `chunk` rows of logits at a time.

    For Hugging Face's causal language models whose logits are those of a linear layer on the last hidden states, tied or not:
    GPT-2, Llama, Mistral, Qwen, OPT, Phi and the like, also under PEFT. At the first batch that a model sees this is compared
    with the logits of the model itself. Batches are mappings as these models take them; without labels the inputs are predicted,
    except where the attention mask is 0. As it is a mean over tokens, pass `weight=fw.objective.tokens`.

    Args:
        chunk: rows of logits, tokens that is, that exist at a time, >= 1.
        ignore_index: labels that do not count.

    Raises:
        ValueError: when called: the model is not of this kind, such as one that caps its logits.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    return _Loss(chunk, ignore_index)


class _Loss:
    def __init__(self, chunk: int, ignore_index: int) -> None:
        self._chunk = chunk
        self._ignore = ignore_index
        self._known: WeakSet[nn.Module] = WeakSet()

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        body, head = _parts(model)
        labels = labels_of(batch, ignore_index=self._ignore)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        if model not in self._known:
            _compare(model, body, head, inputs)
            self._known.add(model)
        hidden = body(**inputs, use_cache=False).last_hidden_state[..., :-1, :]
        targets = labels[..., 1:].to(hidden.device)
        return chunked_cross_entropy(
            hidden, head.weight, targets, head.bias, chunk=self._chunk, ignore_index=self._ignore
        )


def _parts(model: Any) -> tuple[nn.Module, nn.Linear]:
    """What computes the hidden states, and the layer that makes logits of them."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT: adapters are inside
    body = getattr(inner, "base_model", inner)
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if body is inner or type(head) is not nn.Linear:
        raise ValueError(f"{_SORRY.format(type(model).__name__)}: it has no body with one linear layer for the logits")
    return body, head


_SORRY = "causal_lm_loss does not know how {} makes its loss (write your own with chunked_cross_entropy)"


def _compare(model: nn.Module, body: nn.Module, head: nn.Module, inputs: Mapping[str, Any]) -> None:
    """One forward of a few tokens: the head must see the last hidden states, and its outputs must be the logits."""
    seen: dict[str, Any] = {}
    hooks = [
        body.register_forward_hook(lambda module, args, output: seen.update(hidden=_last(output))),
        head.register_forward_hook(lambda module, args, output: seen.update(into=args[0], out=output)),
    ]
    try:
        with torch.no_grad(), _random_state_kept(head):
            logits = model(**{name: inputs[name][:1, :FEW] for name in _TOKENS if name in inputs}).logits
    finally:
        for hook in hooks:
            hook.remove()
    if not (_same(seen.get("hidden"), seen.get("into")) and _same(seen.get("out"), logits)):
        raise ValueError(
            f"{_SORRY.format(type(model).__name__)}: its logits are not the output layer's on the last hidden states"
        )


def _last(output: Any) -> Tensor | None:
    return getattr(output, "last_hidden_state", None)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and torch.equal(a.to(b.dtype), b)


def _random_state_kept(module: nn.Module) -> Any:
    """Dropout masks of the evaluation are the same whether there was a comparison before or not."""
    place = next(module.parameters()).device
    others = [] if place.type == "cpu" else [place]
    return torch.random.fork_rng(others, device_type=place.type if others else "cuda")
