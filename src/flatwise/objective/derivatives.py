"""Derivatives of one loss: by `autograd.grad`, by `backward` where that alone is right, and twice."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatwise.vectors import Vector

_HARMLESS = {"_NoopSaveInputsBackward"}
"""Of non-reentrant activation checkpointing: marks the inputs, computes nothing."""


def gradient(
    outputs: list[Tensor],
    parameters: Sequence[Tensor],
    along: list[Tensor] | None = None,
    *,
    again: bool = False,
    keep: bool = False,
) -> list[Tensor]:
    """The derivative of `outputs` along `along`, zeros for unused parameters; differentiable once more if `again`.

    With `keep` the graph stays, for the next derivative of the same outputs.
    """
    found = torch.autograd.grad(
        outputs, parameters, along, create_graph=again, retain_graph=again or keep, allow_unused=True
    )
    return _dense(cast(Vector, found), parameters)


def hessian_product(loss: Tensor, parameters: Sequence[Tensor], along: Sequence[Tensor]) -> list[Tensor]:
    """The Hessian of the loss times `along`, by differentiating the gradient."""
    return differentiated(gradient([loss], parameters, again=True), parameters, along)


def differentiated(
    first: Sequence[Tensor], parameters: Sequence[Tensor], along: Sequence[Tensor], *, keep: bool = False
) -> list[Tensor]:
    """The derivative of a gradient with a graph of its own, along a vector; with `keep` the graph stays."""
    curved = [(g, v.to(g.dtype)) for g, v in zip(first, along, strict=True) if g.requires_grad]
    if not curved:  # the loss is linear in the weights
        return [torch.zeros_like(p) for p in parameters]
    return gradient([g for g, _ in curved], parameters, [v for _, v in curved], keep=keep)


def gradient_by_backward(loss: Tensor, parameters: Sequence[Tensor], others: Iterable[Tensor]) -> list[Tensor]:
    """The gradient as training computes it, through `.grad`, which every leaf gets back as it was.

    `autograd.grad` does not see FSDP2's shards, nor weights that an autograd function of the user's own uses unseen, as
    reentrant activation checkpointing does: it takes them for unused.

    Args:
        loss: a 0-d tensor.
        parameters: what to differentiate with respect to.
        others: leaves that the loss may also depend on; those that its graph shows need not be among them.
    """
    _refuse_hooks(parameters)
    leaves = list({id(t): t for t in [*parameters, *others, *_leaves(loss)]}.values())
    kept = [leaf.grad for leaf in leaves]
    try:
        for leaf in leaves:
            leaf.grad = None
        loss.backward()
        return _dense([p.grad for p in parameters], parameters)
    finally:
        for leaf, grad in zip(leaves, kept, strict=True):
            leaf.grad = grad


@contextmanager
def twice_differentiable(model: nn.Module) -> Generator[None]:
    """Kernels that have a second derivative: attention by its formula, recurrent layers without cuDNN."""
    recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if recurrent:
            stack.enter_context(_without_cudnn())
        yield


@contextmanager
def _without_cudnn() -> Generator[None]:
    """Nothing but the switch: `cudnn.flags` would set the precision of convolutions too, and fails for some settings of it."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def eagerly() -> AbstractContextManager[Any]:
    """Compiled parts of the model run as written: compiled code cannot be differentiated twice."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def load_forward_mode() -> None:
    """What torch loads at its first dual number; it complains about its own use of `torch.jit`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


@contextmanager
def without_graph() -> Generator[None]:
    """No graph, but the same numbers: without gradients, transformer layers in evaluation mode would compute in another way."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad=True")  # activation checkpointing
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def custom_functions(loss: Tensor) -> list[str]:
    """The names of the `torch.autograd.Function`s of somebody's own in the graph of a loss, sorted."""
    own: Any = torch.autograd.function.BackwardCFunction
    names = {n.name() for n in _nodes(loss) if isinstance(n, own)}
    return sorted(names - _HARMLESS)


def operations(loss: Tensor) -> set[str]:
    """The names of all operations in the graph of a loss."""
    return {n.name() for n in _nodes(loss)}


def _dense(found: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Zeros for None, strided for sparse, whole for partial sums over a mesh."""
    both = zip(parameters, found, strict=True)
    return [torch.zeros_like(p, requires_grad=False) if d is None else _placed(d, p) for p, d in both]


def _placed(derivative: Any, parameter: Any) -> Tensor:
    if derivative.is_sparse:
        return derivative.to_dense()
    if hasattr(derivative, "placements") and derivative.placements != parameter.placements:
        return derivative.redistribute(placements=parameter.placements)
    return derivative


def _refuse_hooks(parameters: Iterable[Any]) -> None:
    if any(getattr(p, "_post_accumulate_grad_hooks", None) for p in parameters):
        raise RuntimeError(
            "a parameter has a hook that runs when its .grad is accumulated (an optimizer step inside backward?); measuring "
            "must not run it, and this model can be differentiated through .grad alone. Remove the hook while measuring"
        )


def _leaves(loss: Tensor) -> list[Tensor]:
    return [node.variable for node in _nodes(loss) if hasattr(node, "variable")]


def _nodes(loss: Tensor) -> Iterator[Any]:
    """Every node of the graph of a loss, once."""
    waiting: list[Any] = [loss.grad_fn]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(following for following, _ in node.next_functions)
            yield node
