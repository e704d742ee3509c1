"""The losses of an objective's batches at many weights at once, as functions of flat vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils import _pytree as pytree

from flatwise.objective import Objective
from flatwise.objective.derivatives import load_forward_mode, twice_differentiable

Flat: TypeAlias = Callable[[Tensor], Tensor]
"""A function of a flat vector of weights, [d]."""

Field: TypeAlias = Callable[[Flat], Flat]
"""From the loss of a batch to a vector [d] at given weights [d], both as functions of the weights: its gradient, or SAM's."""


class Ensemble:
    """Paths through the weights of one network: a matrix [P, d], each row all parameters that require grad, flattened.

    The batches of the objective stand for the mini-batches of training, each drawn with the same probability; they must
    be of one size. Everything is computed in the precision of the weights (float64 for orders of convergence), for all
    paths in one call (`torch.func.vmap`), or one after the other where the model does not allow that.

    Args:
        objective: the loss and its batches.
        vectorised: whether to use vmap; False: one path at a time.
        chunk: paths in one call at most, >= 1, to save memory; None: all.

    Raises:
        ValueError: batches of several sizes, a loss that draws random numbers or changes buffers, or a chunk without vmap.
    """

    def __init__(self, objective: Objective, *, vectorised: bool = True, chunk: int | None = None) -> None:
        if chunk is not None and not vectorised:
            raise ValueError("chunk has no effect without vmap, which takes one path at a time; leave it out")
        self.objective = objective
        self.vectorised = vectorised
        self.chunk = chunk
        self._bound = _Bound(objective)
        self._batches, self._rebuild = _stacked(list(objective.data))
        self._check()
        load_forward_mode()

    @property
    def count(self) -> int:
        """The number of batches, M."""
        return len(self._batches[0])

    @property
    def weights(self) -> Tensor:
        """The weights that the model has now, [d]."""
        return torch.cat([p.detach().reshape(-1) for p in self.objective.parameters()])

    def parts(self, x: Tensor) -> list[Tensor]:
        """A flat vector [d] as tensors of the parameters' shapes."""
        shapes = [p.shape for p in self.objective.parameters()]
        return [p.reshape(shape) for p, shape in zip(x.split([s.numel() for s in shapes]), shapes, strict=True)]

    def losses(self, x: Tensor) -> Tensor:
        """The loss of every batch at every path, [M, P]."""
        return self.fields(lambda loss: loss, x)

    def fields(self, field: Field, x: Tensor) -> Tensor:
        """A field of every batch at every path, [M, P, d]."""
        function = self._of(field)
        shared = [None] * len(self._batches)
        with self.objective.evaluation(), twice_differentiable(self.objective.model):
            if self.vectorised:
                paths = vmap(function, (0, *shared), chunk_size=self.chunk)
                return vmap(paths, (None, *[0] * len(shared)))(x, *self._batches).detach()
            rows = [[function(y, *[t[k] for t in self._batches]) for y in x] for k in range(self.count)]
        return torch.stack([torch.stack(row) for row in rows]).detach()

    def drawn(self, field: Field, x: Tensor, which: Tensor) -> Tensor:
        """A field at every path, of a batch for each of them: [P, d] from x [P, d] and the numbers of the batches [P]."""
        function, own = self._of(field), [t[which] for t in self._batches]
        with self.objective.evaluation(), twice_differentiable(self.objective.model):
            if self.vectorised:
                return vmap(function, chunk_size=self.chunk)(x, *own).detach()
            rows = [function(y, *[t[i] for t in own]) for i, y in enumerate(x)]
        return torch.stack(rows).detach()

    def _of(self, field: Field) -> Callable[..., Tensor]:
        """The field as a function of weights and the tensors of a batch."""
        return lambda y, *tensors: field(lambda z: self._loss(z, tensors))(y)

    def _loss(self, x: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
        batch = self._rebuild(tensors)
        found: Any = functional_call(self._bound, dict(zip(self._bound.names, self.parts(x), strict=True)), (batch,))
        return found

    def _check(self) -> None:
        if self.objective.preflight().draws:
            raise ValueError(
                "the loss draws random numbers (dropout?), so it is no function of the weights: use mode='eval'"
            )
        training = self.objective.mode == "train" or (
            self.objective.mode == "current" and self.objective.model.training
        )
        if training and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.objective.model.modules()):
            raise ValueError(
                "BatchNorm in training mode changes its buffers: use mode='eval', or another normalisation"
            )


def ensemble_of(objective: Objective | Ensemble) -> Ensemble:
    """The ensemble of an objective, or the ensemble itself.

    Raises:
        TypeError: it is neither, but a model, say.
        ValueError: the objective does not serve (see `Ensemble`).
    """
    if isinstance(objective, Ensemble):
        return objective
    if not isinstance(cast(object, objective), Objective):
        raise TypeError(
            "the losses must be a flatwise.Objective(model, loss, batches) or an Ensemble of one, "
            f"got {type(objective).__name__}"
        )
    return Ensemble(objective)


class _Bound(nn.Module):
    """Model and loss as one module, whose parameters can be exchanged for a call."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.model = objective.model
        self._objective = objective
        own = {id(p) for p in objective.parameters()}
        self.names = [name for name, p in self.named_parameters() if id(p) in own]

    def forward(self, batch: Any) -> Tensor:
        """The loss of a batch."""
        return self._objective.loss_fn(self._objective.model, batch)


def _stacked(batches: list[Any]) -> tuple[list[Tensor], Callable[[tuple[Tensor, ...]], Any]]:
    """The tensors of the batches along a new first dimension, and a function that makes a batch of such tensors again."""
    flat = [pytree.tree_flatten(batch) for batch in batches]
    leaves, spec = flat[0]
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    shapes = {tuple(tuple(found[i].shape) for i in places) for found, _ in flat}
    if len(shapes) != 1:
        raise ValueError(
            "the batches are of several sizes, but stand for mini-batches of one: drop the last (drop_last=True)"
        )

    def rebuild(tensors: tuple[Tensor, ...]) -> Any:
        own = dict(zip(places, tensors, strict=True))
        return pytree.tree_unflatten([own.get(i, leaf) for i, leaf in enumerate(leaves)], spec)

    return [torch.stack([found[i] for found, _ in flat]) for i in places], rebuild
