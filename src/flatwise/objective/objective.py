"""The loss of a model on data: what is evaluated, where, and how often."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from flatwise.modules import Mode, devices, measuring, sharded
from flatwise.objective import arguments, averages, derivatives, determinism, forecast, looks, micro_batches, preflight
from flatwise.objective.averages import Group, Mean, Part
from flatwise.objective.batches import generator_kept, repeatable, samples, slices
from flatwise.objective.displacement import Displacement
from flatwise.objective.forecast import Forecast
from flatwise.objective.preflight import Preflight
from flatwise.objective.randomness import python_seeded, set_seed
from flatwise.objective.subsets import drawn
from flatwise.vectors import Vector

Loss: TypeAlias = Callable[[Any, Any], Tensor]


class Objective:
    """The loss of `model` on `data`: the mean over all samples, also where batches are of unequal size.

    Measuring changes nothing: not `.grad`, buffers, modes or random states, also when it raises. Every evaluation sees the same
    random numbers of torch, Python and NumPy, so that with dropout in training mode this is one function too. The weights are
    read anew at each call, and so is which of them require grad. Wrappers by DistributedDataParallel and `torch.compile` are
    looked through: they cannot be differentiated twice.

    On several processes every one of them makes the same calls, with its own share of the data, and gets the same answers: the
    means over all samples of all processes.

    Args:
        model: the network; `loss_fn` receives it as its first argument.
        loss_fn: `loss_fn(model, batch)` returns the mean loss over the batch, a scalar tensor.
        data: batches that can be gone through again and again: a list, or a `DataLoader`. A loader that shuffles is frozen, its
            batches listed once and kept in memory, with a warning.
        mode: the mode in which the model is evaluated: "current", "eval" or "train".
        weight: `weight(batch)` returns the share of a batch in the mean, a number >= 0; batches of weight 0 are left out. By
            default the number of samples, the leading size of the first tensor in the batch.
        seed: of the random numbers that the evaluations draw.
        group: the process group over which the data is shared. "auto": that of DistributedDataParallel or FSDP2 where the model
            is wrapped by one of them, otherwise this process alone, with a warning if there are others. None: this process alone.
        micro_batch: cut batches into parts of at most so many samples, >= 1, where memory is short. The loss must be a mean
            over samples, which is checked.
        max_memory: in bytes; cut batches so that a product takes no more besides weights and data, as `forecast` sees it.

    Raises:
        TypeError: an argument of the wrong kind, such as data that can be gone through only once.
        ValueError: an argument out of its range, or no parameter that requires grad.
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
        group: Group | Literal["auto"] | None = "auto",
        micro_batch: int | None = None,
        max_memory: float | None = None,
    ) -> None:
        arguments.check_arguments(model, loss_fn, mode, weight)
        arguments.check_limits(micro_batch, max_memory)
        self.groups = averages.groups_of(model, group)
        self.model = _unwrapped(model)
        self.loss_fn = loss_fn
        self.mode: Mode = mode
        self.seed = seed
        self.micro_batch = micro_batch
        self.max_memory = max_memory
        self._weight = samples if weight is None else weight
        self.is_checked = False
        self.drawn: str | None = None
        self._shards = sharded(self.model)
        self._by_backward: bool | None = True if self._shards else None
        self._graph = True
        self._chosen: frozenset[nn.Parameter] | None = None
        self._preflights: dict[Any, Preflight] = {}
        self._samples: float | None = None
        self._planned, self._cut = False, cast("int | None", None)
        self.parameters()
        self.data = repeatable(data, seed)

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def weights(self) -> Vector:
        """The parameters that require grad, in the order of `model.parameters()`: a live view without autograd history."""
        return [p.detach() for p in self.parameters()]

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that require grad; those that `limited` chose, where it did."""
        found = arguments.differentiable(self.model)
        return found if self._chosen is None else arguments.chosen(found, self._chosen)

    @property
    def device(self) -> torch.device:
        """Where the first of its parameters is."""
        return self.parameters()[0].device

    @property
    def samples(self) -> float:
        """The number of samples of all processes, or what `weight` made of them. The first time it may go through the data."""
        if self._samples is None:
            self.mean(lambda part: self._scalar(), self._scalar())
        return cast(float, self._samples)

    @property
    def processes(self) -> int:
        """How many processes share the data."""
        return averages.size_of(self.groups)

    @property
    def in_step(self) -> bool:
        """Whether the processes must evaluate their batches in step, since each holds a part of the parameters."""
        return bool(self.groups and self._shards)

    def on(self, data: Iterable[Any]) -> Objective:
        """The same objective on other data, such as some of its batches."""
        return self._with(data=repeatable(data, self.seed), drawn=None, _samples=None, is_checked=False)

    def subset(self, count: int, seed: int = 0) -> Objective:
        """The same objective on a fixed random subset of its samples, which the record of what is measured names.

        It takes one pass over the data. The samples are kept in memory, in batches as large as those of the data: to measure
        while training, on as many as a training batch holds.

        Args:
            count: how many samples, >= 1; where processes share the data, each draws so many of its own.
            seed: of the choice. The same seed draws the same samples from the same data.

        Raises:
            TypeError: count is not an integer.
            ValueError: it is below 1, or there are fewer samples.
        """
        arguments.check_subset(count)
        with self.evaluation():
            data, total = drawn(self.data, count, seed)
        note = f"{count} of {total} samples, drawn by seed {seed}"
        return self._with(data=data, drawn=note, _samples=None, is_checked=False)

    def limited(self, parameters: Iterable[nn.Parameter]) -> Objective:
        """The same objective as a function of some of its parameters alone: Vectors run over these, and nothing else is computed.

        Raises:
            ValueError: none of them requires grad.
        """
        chosen = frozenset(parameters)
        arguments.chosen(self.parameters(), chosen)
        return self._with(_chosen=chosen)

    def alone(self) -> Objective:
        """The same objective on the data of this process alone."""
        return self._with(groups=[], _samples=None)

    def uncut(self) -> Objective:
        """The same objective with whole batches."""
        return self._with(micro_batch=None, max_memory=None, _planned=True, _cut=None)

    def without_noise(self) -> Objective:
        """The same objective, in evaluation mode if the loss draws random numbers."""
        return self._with(mode="eval") if self.preflight().draws else self

    def without_graph(self) -> Objective:
        """The same objective for its value alone: no graph is kept, so it is faster and takes less memory.

        A loss that differentiates something itself cannot do without one; a loss that cannot be differentiated can.
        """
        self.plan()
        return self._with(_graph=False)

    def _with(self, **changes: Any) -> Objective:
        other = copy.copy(self)
        vars(other).update(changes)
        return other

    # --- what it gives ------------------------------------------------------------------------------------------------

    def value(self) -> Tensor:
        """The loss, a 0-d tensor in at least float32."""
        return self.mean(lambda part: [self._whole(self._share(part))], self._scalar())[0]

    def gradient(self) -> Vector:
        """The gradient, over all parameters that require grad; parameters that the loss does not use have zeros."""
        return self.value_and_gradient()[1]

    def value_and_gradient(self) -> tuple[Tensor, Vector]:
        """The loss and its gradient, from one pass over the data."""
        loss, *gradient = self.wide_value_and_gradient()
        return loss, _cast(gradient, self.parameters())

    def wide_value_and_gradient(self) -> list[Tensor]:
        """The loss, followed by the gradient in at least float32, also where the weights are coarser."""
        parameters = self.parameters()
        return self.mean(lambda part: self._differentiated(part, parameters), [*self._scalar(), *parameters])

    def hvp(self, vector: Sequence[Tensor | None]) -> Vector:
        """The Hessian times `vector`, exact, by differentiating twice; None in the vector counts as zero.

        Raises:
            ValueError: the vector has not the shape of the weights.
            RuntimeError: the loss cannot be differentiated twice; `fw.curvature.hessian` goes another way then.
        """
        if not (found := self.preflight()).twice:
            raise RuntimeError(
                f"no exact product: {found.reason}. fw.curvature.hessian(objective) takes differences instead"
            )
        return self.differentiated_twice(vector)

    def differentiated_twice(self, vector: Sequence[Tensor | None]) -> Vector:
        """`hvp`, unchecked: wrong where an operation has a wrong second derivative."""
        parameters = self.parameters()
        along = arguments.fitting(vector, parameters)
        with derivatives.twice_differentiable(self.model):
            product = self.mean(
                lambda part: derivatives.hessian_product(self.loss(part.batch), parameters, along), parameters
            )
        return _cast(product, parameters)

    def displaced(self, home: Vector | None = None) -> Displacement:
        """A context in which the weights are moved, to evaluate elsewhere; at its end they are back, bitwise.

        `with objective.displaced() as place: place.to(vector, 0.1); objective.value()`

        Args:
            home: a copy of the weights as they are now, if there is one already: it is what they are put back to.
        """
        return Displacement(self.weights, self._reshard, home)

    # --- whether it can be trusted, and what it costs -----------------------------------------------------------------

    def check(self) -> None:
        """Make sure, once, that two evaluations agree: that the loss is one function. Costs two forward passes over the data.

        Raises:
            RuntimeError: they do not. The message names the cause: shuffling, augmentation, random numbers of its own.
        """
        if not self.is_checked:
            determinism.check(self)
            self.is_checked = True

    def preflight(self) -> Preflight:
        """Whether the loss can be differentiated twice: tried on a few samples, once as long as `state` stays."""
        state = self.state()
        if state not in self._preflights:
            self._preflights = {state: preflight.preflight(self)}
        return self._preflights[state]

    def forecast(self) -> Forecast:
        """What a gradient and a product will cost in seconds and memory, from evaluations on a few samples."""
        return forecast.forecast(self)

    # --- for those who build on it ------------------------------------------------------------------------------------

    def mean(self, measure: Callable[[Part], Sequence[Tensor]], like: Sequence[Tensor]) -> list[Tensor]:
        """The mean, over all samples of all processes, of what `measure` makes of a batch, in at least float32.

        Args:
            measure: from a part of the data to tensors.
            like: the shapes, dtypes and devices of these, for processes without samples.
        """
        mean = Mean(like)
        self.plan()
        with self.evaluation():
            for part in self.parts():
                mean.add(measure(part), part.weight)
        values = mean.over([] if self.in_step else self.groups)
        self._samples = mean.total
        return values

    @contextmanager
    def evaluation(self) -> Generator[None]:
        """Inside, the model is in its mode, random numbers are seeded and gradients as asked for; afterwards all is as before."""
        torch.clear_autocast_cache()  # a region around all of this may hold copies of the weights as they were
        with (
            micro_batches.advised(),
            measuring(self.model, self.mode),
            generator_kept(self.data),
            python_seeded(self.seed),
            derivatives.eagerly(),
        ):
            set_seed(self.seed, devices([*self.model.parameters(), *self.model.buffers()]))
            try:
                with torch.inference_mode(False), torch.enable_grad() if self._graph else derivatives.without_graph():
                    yield
            finally:
                self._reshard()

    def parts(self) -> Iterator[Part]:
        """The batches of this process, cut where asked for; with sharded parameters in step with the other processes."""
        own = self.own_parts()
        return averages.in_step(own, self.groups, self.device) if self.in_step else own

    def own_parts(self) -> Iterator[Part]:
        """The batches of this process, cut where asked for, without those of weight 0."""
        size = self._cut
        for whole in self.data:
            for batch in [whole] if size is None else slices(whole, size):
                if weight := self.counts(batch):
                    yield Part(batch, weight)

    def first(self) -> Any:
        """The first batch of this process, uncut; None if it has none."""
        return next((batch for batch in self.data if self.counts(batch)), None)

    def counts(self, batch: Any) -> float:
        """What a batch counts in the mean: its samples, or its weight."""
        return arguments.checked_weight(self._weight(batch))

    def beginning(self, batch: Any, size: int) -> Any:
        """The first of the parts of a batch, of at most so many samples, that counts: the first samples may predict no token."""
        return next((part for part in slices(batch, size) if self.counts(part)), batch)

    def loss(self, batch: Any) -> Tensor:
        """The loss of a batch, a 0-d tensor with its graph."""
        try:
            loss = self.loss_fn(self.model, batch)
        except Exception as error:
            arguments.explain(error, self.data)
            raise
        return arguments.checked_loss(loss)

    def state(self) -> tuple[Any, ...]:
        """What may change from call to call, besides values: autocast, which parameters require grad, and the modes."""
        free = looks.autocast(self.device), *(p.requires_grad for p in self.model.parameters())
        return free if self.mode != "current" else free + tuple(m.training for m in self.model.modules())

    def plan(self) -> None:
        """Choose, once, how to cut batches, and make sure that the loss allows it."""
        if self._planned or (self.micro_batch is None and self.max_memory is None):
            return
        size = self.micro_batch
        if self.max_memory is not None:
            size = self.forecast().micro_batch(self.max_memory)
        if not averages.all_agree(self.groups, size is None, self.device):
            micro_batches.check_mean(self.uncut(), size or 1)
        self._cut, self._planned = size, True

    # --- private ------------------------------------------------------------------------------------------------------

    def _scalar(self) -> list[Tensor]:
        first = self.parameters()[0]
        return [torch.zeros((), device=first.device, dtype=first.dtype)]

    def _differentiated(self, part: Part, parameters: list[nn.Parameter]) -> list[Tensor]:
        """The loss of a part and its gradient."""
        loss = self._share(part)
        if self._by_backward is None:
            self._by_backward = bool(derivatives.custom_functions(loss))
        if self._by_backward:
            gradient = derivatives.gradient_by_backward(loss, parameters, self.model.parameters())
        else:
            gradient = derivatives.gradient([loss], parameters)
        return [self._whole(loss), *gradient]

    def _share(self, part: Part) -> Tensor:
        loss = self.loss(part.batch)
        return loss if part.share == 1.0 else loss * part.share

    def _whole(self, loss: Tensor) -> Tensor:
        """The loss over all processes, where that is not left to the mean over all parts."""
        return averages.mean_over(self.groups, loss) if self.in_step else loss

    def _reshard(self) -> None:
        """Drop the gathered copies of FSDP2's shards, which do not know that the shards have moved."""
        for module in self._shards:
            module.reshard()


def _unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module inside the wrappers of DistributedDataParallel and `torch.compile`."""
    while True:
        inner: Any = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else None
        inner = getattr(model, "_orig_mod", inner)
        if inner is None:
            return model
        model = inner


def _cast(values: Sequence[Tensor], parameters: Sequence[Tensor]) -> Vector:
    return [v.to(p.dtype) for v, p in zip(values, parameters, strict=True)]
