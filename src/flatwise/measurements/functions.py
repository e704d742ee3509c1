"""A function of the user's own that returns what is to be measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from torch import nn

from flatwise.measurements.plan import Plan
from flatwise.measurements.subject import Subject
from flatwise.objective import Objective
from flatwise.tasks.sampling import globally_seeded
from flatwise.tasks.users import accepts, check_call, resolve

WANTED = "(model, loss_fn, data), a flatwise.Objective, or a mapping of names to these"


@dataclass(frozen=True)
class Own:
    """What a function `module:function` returns.

    Attributes:
        function: its name.
        entry: which of several things that it returns; None where it returns one.
        checkpoint: what is handed to its argument `checkpoint`.
        data_root: what is handed to its argument `data_root`.
    """

    function: str
    entry: str | None = None
    checkpoint: str | None = None
    data_root: str | None = None

    @property
    def label(self) -> str:
        """The entry, or the function, and the checkpoint."""
        return ", ".join([self.entry or self.function, *([self.checkpoint] if self.checkpoint else [])])

    def build(self, plan: Plan) -> Subject:
        """Call the function, and take the entry.

        Raises:
            TypeError: it needs other arguments, or returns something else.
            ValueError: it has no such entry any more, or a setting has no effect on it.
        """
        for entry, objective in objectives(self, plan):
            if entry == self.entry:
                return Subject(objective, {"function": self.function})
        raise ValueError(f"{self.function!r} returned no {self.entry!r} this time")

    def to_dict(self) -> dict[str, Any]:
        """Itself as JSON values."""
        return {"kind": "function", **asdict(self)}


def objectives(own: Own, plan: Plan) -> Iterator[tuple[str | None, Objective]]:
    """What the function returns, with names where it returns several; built one after the other as they are asked for.

    The function is called with those of `seed`, `checkpoint` and `data_root` that it names; torch's global CPU generator is
    seeded meanwhile.

    Raises:
        TypeError: it needs other arguments, or returns something else.
        ValueError: a setting has no effect on it, or it raises something itself.
    """
    _refuse_settings_of_data(own.function, plan)
    function = resolve(own.function)
    keywords = _keywords(own, plan, function)
    with globally_seeded(plan.seed):
        returned = _called(own, function, keywords)
        if _is_one(returned):
            yield None, _objective(own.function, returned, plan)
            return
        for name, thing in _entries(own.function, returned):
            yield name, _objective(f"{own.function} ({name})", thing, plan)


def _called(own: Own, function: Callable[..., Any], keywords: dict[str, Any]) -> Any:
    try:
        return function(**keywords)
    except Exception as error:
        raise ValueError(f"{own.label!r} raised {type(error).__name__}: {error}") from error


def _refuse_settings_of_data(name: str, plan: Plan) -> None:
    for setting in ("samples", "split", "batch_size", "dtype"):
        if (value := getattr(plan, setting)) is not None:
            raise ValueError(f"{setting} {value} has no effect on {name!r}, whose data and model are its own")


def _keywords(own: Own, plan: Plan, function: Callable[..., Any]) -> dict[str, Any]:
    given = {name: value for name in ("checkpoint", "data_root") if (value := getattr(own, name)) is not None}
    for name, value in given.items():
        if not accepts(function, name):
            raise ValueError(f"{name} {value} has no effect: {own.function!r} takes no argument {name!r}")
    keywords = given | ({"seed": plan.seed} if accepts(function, "seed") else {})
    check_call(own.function, function, **keywords)
    return keywords


def _is_one(returned: Any) -> bool:
    """Whether it is a single thing to measure, or an attempt at one."""
    is_triple = isinstance(returned, tuple) and len(returned) > 0 and isinstance(returned[0], nn.Module)
    return isinstance(returned, Objective) or is_triple


def _entries(name: str, returned: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(returned, nn.Module) or not isinstance(returned, Iterable):
        raise TypeError(f"{name!r} must return {WANTED}, not {type(returned).__name__}")
    several = cast("Iterable[Any]", returned)
    pairs = cast("Mapping[Any, Any]", several).items() if isinstance(several, Mapping) else several
    seen: set[str] = set()
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(f"{name!r} must return {WANTED}, or an iterable of (name, thing); it gave {_kind(pair)}")
        if not pair[0] or pair[0] in seen:
            raise ValueError(
                f"the networks of {name!r} must have different names, but {pair[0]!r} comes twice or is empty"
            )
        seen.add(pair[0])
        yield pair
    if not seen:
        raise ValueError(f"{name!r} returned nothing to measure; it must return {WANTED}")


def _objective(name: str, thing: Any, plan: Plan) -> Objective:
    if isinstance(thing, Objective):
        for setting in ("mode", "max_memory"):
            if (value := getattr(plan, setting)) is not None:
                raise ValueError(f"{setting} {value} has no effect on {name!r}, which is an Objective with its own")
        return thing
    if not isinstance(thing, (tuple, list)) or len(cast("tuple[Any, ...]", thing)) != 3:
        raise TypeError(f"{name!r} must return {WANTED}, not {_kind(thing)}")
    model, loss_fn, data = cast("tuple[Any, Any, Any]", thing)
    try:
        return Objective(model, loss_fn, data, plan.mode or "eval", seed=plan.seed, max_memory=plan.memory())
    except (TypeError, ValueError) as error:
        raise type(error)(f"what {name!r} returned cannot be measured: {error}") from error


def _kind(thing: Any) -> str:
    if isinstance(thing, (tuple, list)):
        return f"{len(cast('tuple[Any, ...]', thing))} things"
    return type(thing).__name__
