"""The method's state inside the optimizer's state dict.

Distributed checkpoints keep only `state` and `param_groups`, by parameter. So everything of ours is an entry
`flatwise.<name>` of each parameter: its part of a vector, or a number as a 0-d tensor.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor

from flatwise.methods import State
from flatwise.vectors import Vector

PREFIX = "flatwise."
OF_ANOTHER_METHOD = (
    "the optimizer's checkpoint does not fit: {name} of parameter {i} is missing, so another method wrote it, or it is damaged. "
    "To start this method anew from the base optimizer's state, drop the entries 'flatwise.*' from every record in ['state']"
)
STEP, SEED, SKIPPED = "step", "seed", "skipped"


def merged(theirs: dict[str, Any], state: State, skipped: int) -> dict[str, Any]:
    """The base optimizer's state dict with ours added; the base's own records are copied, never written into."""
    entries: dict[Any, dict[str, Any]] = {}
    for i in _indices(theirs):
        entries[i] = {**theirs["state"].get(i, {}), **_entry(state, skipped, i)}
    return {**theirs, "state": entries}


def split(merged: dict[str, Any], initial: State) -> tuple[dict[str, Any], State, int]:
    """The base optimizer's state dict, our state, and the count of skipped steps.

    Raises:
        ValueError: entries of ours are missing or of another shape; without any, the method starts anew.
    """
    theirs = {**merged, "state": {i: _without_ours(entry) for i, entry in merged["state"].items()}}
    theirs["state"] = {i: entry for i, entry in theirs["state"].items() if entry}
    entries = [merged["state"].get(i, {}) for i in _indices(merged)]
    if not any(name.startswith(PREFIX) for entry in entries for name in entry):
        if initial.vectors:
            warnings.warn("this checkpoint holds no state of the method: it starts anew", UserWarning, stacklevel=3)
        return theirs, initial, 0
    numbers = {name: n for name, n in _numbers(entries[0]).items() if name not in initial.vectors}
    skipped = int(numbers.pop(SKIPPED, 0))
    state = State(int(numbers.pop(STEP)), int(numbers.pop(SEED)))
    state.vectors = {name: _vector(name, entries, vector) for name, vector in initial.vectors.items()}
    state.numbers = initial.numbers | numbers
    return theirs, state, skipped


def extended(known: State, initial: State) -> State:
    """The state after a parameter group was added at the end: what is known, and the initial rest."""
    state = known.copy()
    state.vectors = {
        name: [*known.vectors[name], *new[len(known.vectors[name]) :]] for name, new in initial.vectors.items()
    }
    return state


def handed_over(known: State, initial: State) -> State:
    """The state after another method took over: what is known, where that is what the new one remembers, else the initial one."""
    same = (known.vectors.keys(), known.numbers.keys()) == (initial.vectors.keys(), initial.numbers.keys())
    state = known.copy() if same else initial
    state.step, state.seed = known.step, initial.seed
    return state


def _indices(state_dict: dict[str, Any]) -> list[Any]:
    return [i for group in state_dict["param_groups"] for i in group["params"]]


def _entry(state: State, skipped: int, i: int) -> dict[str, Tensor]:
    counts = {STEP: state.step, SEED: state.seed, SKIPPED: skipped}
    entry = {PREFIX + name: torch.tensor(value) for name, value in counts.items()}
    entry |= {PREFIX + name: torch.tensor(value, dtype=torch.float64) for name, value in state.numbers.items()}
    vectors = {PREFIX + name: vector[i] for name, vector in state.vectors.items()}
    return entry | {name: t for name, t in vectors.items() if t is not None}


def _without_ours(entry: dict[str, Any]) -> dict[str, Any]:
    """A copy of the base's record: torch would go on working in the tensors of the dict that was loaded."""
    return {name: copy.deepcopy(value) for name, value in entry.items() if not name.startswith(PREFIX)}


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    ours = {name.removeprefix(PREFIX): value for name, value in entry.items() if name.startswith(PREFIX)}
    missing = {STEP, SEED} - ours.keys()
    if missing:
        raise ValueError(f"the optimizer's checkpoint is damaged: {PREFIX}{missing.pop()} is missing")
    return {name: float(value) for name, value in ours.items() if isinstance(value, Tensor) and value.dim() == 0}


def _vector(name: str, entries: list[dict[str, Any]], like: Vector) -> Vector:
    found: Vector = []
    for i, (entry, t) in enumerate(zip(entries, like, strict=True)):
        saved = entry.get(PREFIX + name)
        if t is None or not isinstance(saved, Tensor):
            raise ValueError(OF_ANOTHER_METHOD.format(name=PREFIX + name, i=i))
        if saved.shape != t.shape:
            shapes = f"{tuple(saved.shape)}, not {tuple(t.shape)}"
            raise ValueError(
                f"the optimizer's checkpoint does not fit: {PREFIX}{name} of parameter {i} has shape {shapes}"
            )
        found.append(saved.to(t.device, t.dtype, copy=True))
    return found
