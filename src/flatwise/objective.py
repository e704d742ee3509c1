"""The training loss as a function of the weights: its value, gradient and Hessian-vector products, on a model and data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, SequentialSampler

from flatwise.modules import Mode, RandomState, devices, measuring
from flatwise.vectors import Vector

Loss: TypeAlias = Callable[[Any, Any], Tensor]


class Objective:
    """The loss of `model` on `data`: the mean over all samples, also where batches are of unequal size.

    Measuring changes nothing: not `.grad`, buffers, modes or torch's random state, also when it raises. Every evaluation sees
    the same random numbers, so that with dropout in training mode this is one function too. (Data that draws from NumPy's or
    Python's own random generators is outside of this.) The weights are read anew at each call, and so is which of them require
    grad. Wrappers by DistributedDataParallel and `torch.compile` are looked through: they cannot be differentiated twice.

    Args:
        model: the network; `loss_fn` receives it as its first argument.
        loss_fn: `loss_fn(model, batch)` returns the mean loss over the batch, a scalar tensor.
        data: batches that can be gone through again and again: a list, or a `DataLoader`. A loader that shuffles is frozen, its
            batches listed once and kept in memory, with a warning.
        mode: the mode in which the model is evaluated: "current", "eval" or "train".
        weight: `weight(batch)` returns the share of a batch in the mean, a number >= 0; batches of weight 0 are left out. By
            default the number of samples, the leading size of the first tensor found in the batch.
        seed: of the random numbers that the evaluations draw.

    Raises:
        TypeError: an argument of the wrong kind, such as data that can be gone through only once.
        ValueError: an unknown mode, or no parameter that requires grad.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss,
        data: Iterable[Any],
        mode: Mode = "current",
        weight: Callable[[Any], float] | None = None,
        *,
        seed: int = 0,
    ) -> None:
        _check_arguments(model, loss_fn, mode, weight)
        self.model = _unwrapped(model)
        self.loss_fn = loss_fn
        self.mode: Mode = mode
        self.seed = seed
        self._weight = samples if weight is None else weight
        self._parameters()
        self.data = _repeatable(data, seed)

    @property
    def weights(self) -> Vector:
        """The parameters that require grad, in the order of `model.parameters()`: a live view without autograd history."""
        return [p.detach() for p in self._parameters()]

    def value(self) -> Tensor:
        """The loss, a 0-d tensor in at least float32."""
        return self._mean(lambda loss: [loss])[0]

    def gradient(self) -> Vector:
        """The gradient, over all parameters that require grad; parameters that the loss does not use have zeros."""
        return self.value_and_gradient()[1]

    def value_and_gradient(self) -> tuple[Tensor, Vector]:
        """The loss and its gradient, from one pass over the data."""
        parameters = self._parameters()
        loss, *gradient = self._mean(lambda loss: [loss, *_derivative([loss], parameters)])
        return loss, _cast(gradient, parameters)

    def hvp(self, vector: Sequence[Tensor | None]) -> Vector:
        """The Hessian times `vector`, exact, by differentiating twice; None in the vector counts as zero.

        Raises:
            ValueError: the vector has not the shape of the weights.
        """
        parameters = self._parameters()
        along = _fitting(vector, parameters)
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
            return _cast(self._mean(lambda loss: _hessian_product(loss, parameters, along)), parameters)

    def _parameters(self) -> list[nn.Parameter]:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("the model has no parameter that requires grad, so there is nothing to differentiate")
        return parameters

    def _mean(self, measure: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
        """The weighted mean of what `measure` makes of each batch's loss, kept in at least float32 as it runs."""
        mean: list[Tensor] = []
        total = 0.0
        with self._evaluation():
            for batch in self.data:
                if weight := _checked_weight(self._weight(batch)):
                    total += weight
                    _blend(mean, measure(_checked_loss(self.loss_fn(self.model, batch))), weight / total)
        if not mean:
            raise ValueError("the data holds no samples; it must give at least one batch at every pass over it")
        return mean

    @contextmanager
    def _evaluation(self) -> Generator[None]:
        with measuring(self.model, self.mode), _generator_kept(self.data):
            _set_seed(self.seed, devices([*self.model.parameters(), *self.model.buffers()]))
            with torch.inference_mode(False), torch.enable_grad():
                yield


def samples(batch: Any) -> int:
    """The number of samples in a batch: the leading size of the first tensor in nested tuples, lists and mappings.

    Raises:
        ValueError: there is no tensor with a leading size in it.
    """
    first = next(_tensors(batch), None)
    if first is None or first.ndim == 0:
        raise ValueError(f"no tensor with a leading size in a batch of type {type(batch).__name__}; pass weight=...")
    return first.shape[0]


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for part in batch.values():
            yield from _tensors(part)
    elif isinstance(batch, (tuple, list)):
        for part in batch:
            yield from _tensors(part)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module inside the wrappers of DistributedDataParallel and `torch.compile`."""
    while True:
        inner: Any = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else None
        inner = getattr(model, "_orig_mod", inner)
        if inner is None:
            return model
        model = inner


# --- derivatives ------------------------------------------------------------------------------------------------------


def _derivative(
    outputs: list[Tensor], parameters: list[nn.Parameter], along: list[Tensor] | None = None, *, again: bool = False
) -> list[Tensor]:
    """The derivative of `outputs` along `along`, zeros for unused parameters; differentiable once more if `again`."""
    found = torch.autograd.grad(outputs, parameters, along, create_graph=again, allow_unused=True)
    both = zip(parameters, cast(Vector, found), strict=True)
    return [torch.zeros_like(p) if d is None else d for p, d in both]


def _hessian_product(loss: Tensor, parameters: list[nn.Parameter], along: list[Tensor]) -> list[Tensor]:
    gradient = _derivative([loss], parameters, again=True)
    curved = [(g, v) for g, v in zip(gradient, along, strict=True) if g.requires_grad]
    if not curved:  # the loss is linear in the weights
        return [torch.zeros_like(p) for p in parameters]
    return _derivative([g for g, _ in curved], parameters, [v.to(g.dtype) for g, v in curved])


def _blend(mean: list[Tensor], values: Sequence[Tensor], share: float) -> None:
    """`mean += share * (values - mean)`, in place; the first values fill the empty list, copied as they may be aliased."""
    wide = [v.detach().to(torch.promote_types(v.dtype, torch.float32), copy=not mean) for v in values]
    if mean:
        torch._foreach_lerp_(mean, wide, share)
    else:
        mean.extend(wide)


def _cast(values: Sequence[Tensor], parameters: Sequence[Tensor]) -> Vector:
    return [v.to(p.dtype) for v, p in zip(values, parameters, strict=True)]


# --- the data ---------------------------------------------------------------------------------------------------------


def _repeatable(data: Any, seed: int) -> Iterable[Any]:
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise TypeError(
            f"data must be a list of batches or a DataLoader, got {type(data).__name__}; wrap a batch as [batch]"
        )
    if isinstance(data, Iterator):
        raise TypeError("data is a one-shot iterator, which is empty at the second pass; pass list(data) instead")
    return _frozen(data, seed) if isinstance(data, DataLoader) and _may_shuffle(data) else data


def _may_shuffle(loader: DataLoader[Any]) -> bool:
    """Whether the order may differ from pass to pass: every sampler but those known to keep it."""
    if isinstance(loader.dataset, IterableDataset):
        return False
    batches = loader.batch_sampler
    sampler = loader.sampler if batches is None else getattr(batches, "sampler", batches)
    if isinstance(sampler, DistributedSampler):
        return sampler.shuffle
    return not isinstance(sampler, (SequentialSampler, list, tuple, range))


def _frozen(loader: DataLoader[Any], seed: int) -> list[Any]:
    warnings.warn("the DataLoader shuffles: its batches are listed once and kept in memory", UserWarning, stacklevel=4)
    random = RandomState()
    try:
        with _generator_kept(loader):
            _set_seed(seed, [])
            return list(loader)
    finally:
        random.restore()


@contextmanager
def _generator_kept(data: Iterable[Any]) -> Generator[None]:
    """Leave a DataLoader's own random generator as it was: going through the loader draws from it."""
    generator = getattr(data, "generator", None)
    state = generator.get_state() if isinstance(generator, torch.Generator) else None
    try:
        yield
    finally:
        if isinstance(generator, torch.Generator) and state is not None:
            generator.set_state(state)


def _set_seed(seed: int, places: Iterable[torch.device]) -> None:
    """Seed the CPU and the given devices alone; `torch.manual_seed` would reach devices whose state nobody has saved."""
    torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
    for device in places:
        if device.type != "cpu":
            state = torch.Generator(device).manual_seed(seed).get_state()
            torch.get_device_module(device).set_rng_state(state, device)


# --- what cannot be right ---------------------------------------------------------------------------------------------


def _check_arguments(model: Any, loss_fn: Any, mode: Any, weight: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function of (model, batch), got {type(loss_fn).__name__}")
    if mode not in get_args(Mode):
        raise ValueError(f'mode must be "current", "eval" or "train", got {mode!r}')
    if weight is not None and not callable(weight):
        raise TypeError(f"weight must be a function of the batch, got {type(weight).__name__}")


def _checked_weight(weight: Any) -> float:
    number = float(weight)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"the weight of a batch must be a finite number >= 0, got {number}")
    return number


def _checked_loss(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss_fn must return the mean loss as a scalar tensor, got {type(loss).__name__}")
    if loss.numel() != 1 or not loss.is_floating_point():
        raise ValueError(
            f"loss_fn must return one real number, got {loss.dtype} of shape {tuple(loss.shape)}; take the mean"
        )
    if not loss.requires_grad:
        raise ValueError("the loss does not depend on any parameter that requires grad; was it detached?")
    return loss.reshape(())


def _fitting(vector: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor]:
    """The vector with zeros for None, on the devices of the parameters."""
    if len(vector) != len(parameters):
        raise ValueError(
            f"the vector has {len(vector)} entries, the model {len(parameters)} parameters that require grad"
        )
    for i, (v, p) in enumerate(zip(vector, parameters, strict=True)):
        if v is not None and v.shape != p.shape:
            raise ValueError(f"entry {i} of the vector has shape {tuple(v.shape)}, its parameter {tuple(p.shape)}")
    return [
        torch.zeros_like(p) if v is None else v.detach().to(p.device) for v, p in zip(vector, parameters, strict=True)
    ]
