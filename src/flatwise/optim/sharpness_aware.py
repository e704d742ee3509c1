"""SharpnessAware: a `torch.optim.Optimizer` that drives a method around any base optimizer."""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Callable, Generator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatwise import vectors as V
from flatwise.methods import Method, State
from flatwise.methods.checks import positive_integer
from flatwise.optim import checkpoint, checks, lightning_closures, messages, update, views
from flatwise.optim.alone import Alone, dense, without_passes
from flatwise.optim.backup import Backup
from flatwise.optim.first_step import FirstStep
from flatwise.optim.imitations import on_the_real_one
from flatwise.optim.leftovers import Leftovers
from flatwise.optim.passes import Pass, Passes, explained
from flatwise.optim.replicas import Perturb, Replicas
from flatwise.optim.schedules import RhoSchedule
from flatwise.optim.skips import Skips
from flatwise.optim.stage import Stage
from flatwise.optim.step import Step
from flatwise.optim.wrapping import Wrapping

Closure = Callable[[], Any]

# What pickle and deepcopy keep.
_KEPT = ("base", "defaults", "_method", "fresh_noise", "rho_schedule", "_perturb", "_model", "_memory", "_skipped")


class SharpnessAware(Wrapping):
    """A sharpness-aware method around a base optimizer, in two lines of an existing training loop.

        optimizer = SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.1), SAM(rho=0.05), model=model)
        loss = optimizer.step(closure)

    or, where accumulation, scaling, clipping and the forward are the loop's own:

        for p in optimizer.passes():
            p.backward(loss_fn(model(inputs), targets))
        optimizer.step()

    A parameter group of the base optimizer may have its own `rho`; 0 means that it is not displaced. The norm of a displacement
    is taken over all groups that are.

    Args:
        base_optimizer: any `torch.optim` optimizer but LBFGS; it takes the step along the method's direction.
        method: an instance from `flatwise.methods`.
        model: the module that is trained, wrapped or not; without it buffers, modes, DDP and FSDP2 are not looked after.
        perturb: "global": along the mean gradient of all replicas. For m-sharpness "local": a dialogue for each rank of a
            DistributedDataParallel; or a DeviceMesh of one dimension: one for each of its members, within which the model
            averages gradients itself (`mesh["replicate"]` where FSDP2 shards over `mesh["shard"]`).
        fresh_noise: draw new random numbers (dropout masks) in later evaluations in place of replaying the first one's.
        rho_schedule: a factor on every rho, from the steps taken and the first group's learning rate: one of
            `flatwise.schedules`, or any function `(step, lr) -> factor >= 0`.

    Raises:
        TypeError, ValueError: an argument is not what it should be; the message says what to pass.
    """

    def __init__(
        self,
        base_optimizer: Optimizer,
        method: Method,
        model: nn.Module | None = None,
        *,
        perturb: Perturb = "global",
        fresh_noise: bool = False,
        rho_schedule: RhoSchedule | None = None,
    ) -> None:
        checks.base(base_optimizer, SharpnessAware)
        checks.method(method)
        checks.model(model)
        checks.together(method, base_optimizer, model, perturb, rho_schedule)
        checks.group_rhos(base_optimizer.param_groups, method)
        if model is None:
            warnings.warn(messages.NO_MODEL, UserWarning, stacklevel=2)
        super().__init__(base_optimizer)
        self._method = method
        self.fresh_noise = fresh_noise
        self.rho_schedule = rho_schedule
        self._perturb: Perturb = perturb
        self._reset()
        self._leftovers.remember([p.grad for p in self._parameters()])  # of an earlier optimizer, perhaps
        self._link(model)
        checks.warn_if_lacking(model, self._parameters(), stacklevel=2)
        self._memory: State | None = None
        self._skipped = 0

    # --- a step -------------------------------------------------------------------------------------------------------

    @on_the_real_one
    def passes(self, scaler: Any = None, parts: int | None = None, each: bool = False) -> Passes:
        """The passes of one step, to iterate over: `for p in optimizer.passes(): p.backward(loss)`.

        After them, weights, mode and buffers are as after one plain pass and `.grad` holds the direction, times the scale where
        there is a scaler. A `break` or an exception in the loop restores the weights.

        Args:
            scaler: a `torch.amp.GradScaler`; afterwards `scaler.step(optimizer)` and `scaler.update()` as always.
            parts: yield every evaluation once for each of so many parts of the batch (`p.part`), and take the mean.
            each: a dialogue of its own for each part, the directions averaged: m-sharpness.

        Raises:
            TypeError, ValueError: parts is no positive integer, or each=True without parts or with an adaptive method.
        """
        return self._begin(scaler, parts, each)

    def _begin(self, scaler: Any, parts: int | None, each: bool, closure: object = None) -> Passes:
        self._restore()
        if parts is not None:
            positive_integer("parts", parts)
        checks.each(each, parts, self.method)
        self._leftovers.check(self._parameters(), closure)
        if self._outcome is not None and self._outcome.finite:
            self._leftovers.warn_unused(closure)
        self._replicas.check()
        self._forget()
        self._step = self._new_step(checks.scaler(scaler), parts or 1, each)
        dialogue = self._run(self._step)
        self._dialogue = weakref.ref(dialogue)
        return Passes(dialogue)

    def step(self, closure: Closure | Sequence[Closure] | None = None) -> Tensor | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step.

        Args:
            closure: zeroes gradients (or does not), runs forward and backward, returns the loss; evaluated as often as the
                method asks. A list of closures is one micro-batch each, and the gradient is the mean over them. Without one,
                the step after finished passes, or after a plain backward where the method asks for nothing else.

        Returns:
            The loss at the weights, or where a method never evaluates there (TSAM, MomentumSAM, NSO) at its first displaced
                place: the mean over closures and replicas, 0-d and detached; None without closure.

        Raises:
            ValueError, TypeError: the closure returned no loss or never called backward; the weights are restored.
            RuntimeError: called without closure for a method that needs passes, or in the midst of them; or with one through a
                GradScaler, or by Lightning or Accelerate while they accumulate.
        """
        inner, before_update = lightning_closures.taken_apart(closure)
        loss = None if inner is None else self._run_closures(checks.closures(inner), closure)
        if before_update is not None:
            before_update()
        self._finish()
        return loss

    @on_the_real_one
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, and with them the result of passes that no step has used. Closures may call it."""
        if not self._is_open():
            self._forget()
        self.base.zero_grad(set_to_none)

    @property
    @on_the_real_one
    def loss(self) -> Tensor | None:
        """The loss of the last step, as `step` returns it, 0-d. Does not wait for the device.

        None before the first step, and after one without passes (`loss.backward(); optimizer.step()`), whose loss nobody told.
        """
        return self._last.loss if self._last is not None else None

    @property
    @on_the_real_one
    def diagnostics(self) -> dict[str, float]:
        """Numbers of the last step: loss, gradient_norm, displacement_norm, evaluations, skipped, and the method's own.

        After a step without passes, whose loss nobody told, the loss is nan. Reading them waits for the device.
        """
        numbers = self._last.diagnostics() if self._last is not None else {}
        return numbers | {"skipped": float(self._skipped)}

    @property
    @on_the_real_one
    def method(self) -> Method:
        """The method. Another one may take over between two steps: it starts anew, but for the count of steps.

        What both remember under the same names is kept, so that one with another rho goes on as it was.
        """
        return self._method

    @method.setter
    @on_the_real_one
    def method(self, method: Method) -> None:
        checks.method(method)
        checks.together(method, self.base, self._model, self._perturb, self.rho_schedule)
        self._restore()
        self._method = method
        if self._memory is not None:
            self._memory = checkpoint.handed_over(self._memory, self._initial())

    @property
    @on_the_real_one
    def model(self) -> nn.Module | None:
        """The module that is trained. Set it anew where it was wrapped (DistributedDataParallel) after the optimizer was made."""
        return self._model

    @model.setter
    @on_the_real_one
    def model(self, model: nn.Module | None) -> None:
        checks.model(model)
        self._restore()
        if self._memory is not None and self._memory.step == 0:
            self._memory = None  # a framework may have asked for it before it replaced the parameters by shards
        self._link(model)
        checks.warn_if_lacking(model, self._parameters(), stacklevel=3)

    # --- groups and checkpoints -------------------------------------------------------------------------------

    @on_the_real_one
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer, with a `rho` of its own or without."""
        self._restore()
        checks.group(param_group)
        checks.ratios([*self.param_groups, param_group], self.method)
        checks.group_rhos([param_group], self.method)
        known = self._memory
        self.base.add_param_group(param_group)
        if known is not None:
            self._memory = checkpoint.extended(known, self._initial())

    @on_the_real_one
    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict, with the method's state under `flatwise.*` in each parameter's entry."""
        self._restore()
        return checkpoint.merged(self.base.state_dict(), self._remembered(), self._skipped)

    @on_the_real_one
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, or the base optimizer's own state dict (the method then starts anew).

        Raises:
            ValueError, KeyError: it does not fit; everything is left as it was.
        """
        self._restore()
        theirs, ours, skipped = checkpoint.split(state_dict, self._initial())
        self.base.load_state_dict(theirs)
        self._memory, self._skipped, self._skips = ours, skipped, Skips()
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and deepcopy keep: everything but the dialogue of the moment."""
        self._restore()
        return {name: self.__dict__[name] for name in _KEPT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle."""
        super().__setstate__(state)
        self._reset()
        self._link(self._model)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _initial(self) -> State:
        return self.method.init([p.detach() for p in self._parameters()])

    def _remembered(self) -> State:
        if self._memory is None:
            self._memory = self._initial()
        return self._memory

    def _new_step(self, scaler: Any, parts: int, each: bool) -> Step:
        parameters = self._parameters()
        ratios = checks.ratios(self.param_groups, self.method)

        def stage() -> Stage:
            return Stage(parameters, ratios, self._model, self._replicas, self._backup, self.fresh_noise)

        def state() -> State:
            return self._working_state(parameters, ratios)

        return Step(self._method_now(), state, stage, self._replicas, scaler, parts, each, (self, self.base))

    def _method_now(self) -> Method:
        if self.rho_schedule is None:
            return self.method
        lr = float(self.param_groups[0].get("lr", 1.0))
        return checks.scheduled(self.method, self.rho_schedule(self._remembered().step, lr))

    def _working_state(self, parameters: list[Tensor], ratios: list[float]) -> State:
        """The copy of the state that a dialogue may change; it is committed when the base optimizer has stepped."""
        state = self._remembered().copy()
        state.weights = [p if p.requires_grad else None for p in parameters]
        state.perturbed = [] if all(ratios) else [r > 0 for r in ratios]
        return views.shown(state, self.method, self.base, self._model)

    def _run_closures(self, closures: list[Closure], given: object) -> Tensor:
        """The passes of a step from closures; `given` is what came to `step`."""
        checks.not_under_scaler()
        checks.not_accumulated_outside()
        for p in self._begin(None, len(closures), False, given):
            with torch.enable_grad(), explained():
                loss = closures[p.part]()
            if len(closures) > 1 and p.is_waiting:
                raise ValueError(messages.CLOSURE_WITHOUT_SYNC)
            p.record(checks.loss(loss))
        return self._concluded().loss

    def _run(self, step: Step) -> Generator[Pass]:
        watch = FirstStep(self._replicas, self.param_groups, self.fresh_noise) if self._is_watched else None
        try:
            yield from step.run()
        finally:
            self._leftovers.remember([p.grad for p in self._parameters()])
        if watch is not None:
            watch.conclude(step)
        self._outcome = step
        self._last = step
        self._is_watched = False
        self._skipped += not step.finite

    def _is_open(self) -> bool:
        dialogue = self._dialogue() if self._dialogue is not None else None
        return dialogue is not None and inspect.getgeneratorstate(dialogue) != inspect.GEN_CLOSED

    def _restore(self) -> bool:
        """Leave a dialogue that is still open, with the weights as before it; say whether there was one."""
        was_open = self._is_open()
        if was_open:
            cast(Generator[Pass], cast(Any, self._dialogue)()).close()
        if self._outcome is None:
            if self._step is not None:
                self._step.abort()
            self._forget()
        return was_open

    def _link(self, model: nn.Module | None) -> None:
        self._model = model
        self._replicas = Replicas(model, self._parameters(), self._perturb)

    def _reset(self) -> None:
        self._backup = Backup()
        self._leftovers = Leftovers()
        self._skips = Skips()
        self._last: Step | Alone | None = None
        self._is_watched = True
        self._forget()

    def _forget(self) -> None:
        self._dialogue: weakref.ref[Generator[Pass]] | None = None
        self._step: Step | None = None
        self._outcome: Step | None = None

    def _concluded(self) -> Step:
        return cast(Step, self._outcome)

    def _finish(self) -> None:
        finite = self._step_alone() if self._outcome is None else self._step_after_passes(self._outcome)
        self._skips.note(finite)

    def _step_after_passes(self, outcome: Step) -> bool:
        checks.same_scaler(outcome.scaler)
        self._forget()
        if outcome.finite:
            self._advance(outcome.states[0])
        return outcome.finite

    def _advance(self, state: State) -> None:
        """The base optimizer's step, what the method makes of it, and only then the method's new state."""
        update.taken(self.base, self.method, state)
        state.step += 1
        self._memory = views.hidden(state)

    def _step_alone(self) -> bool:
        if self._restore():
            raise RuntimeError(messages.UNFINISHED)
        parameters = self._parameters()
        gradient = V.laid_out_like([p.grad for p in parameters], parameters)
        if checks.initialises(self.base, dense(gradient)):
            self._remembered()
            self.base.step()
            return True
        state = self._working_state(parameters, checks.ratios(self.param_groups, self.method))
        found = without_passes(self._method_now(), state, gradient)
        if found is None:
            raise RuntimeError(checks.needs_passes())
        direction, self._last = found
        finite = checks.seen_by_scaler() or self._last.finite()
        for p, d in zip(parameters, direction, strict=True):
            p.grad = d if finite else None
        self._leftovers.remember(direction)
        if finite:
            self._advance(state)
        self._skipped += not finite
        return finite
