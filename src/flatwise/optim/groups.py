"""Parameter groups that differ in rho: normalisation layers and biases left where they are, or they alone displaced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn import Parameter

from flatwise.methods.checks import non_negative

REST, NORMS, BIASES = "rest", "norms", "biases"


def parameter_groups(
    model: nn.Module, *, rho: float | None = None, norms: float | None = 0.0, biases: float | None = 0.0
) -> list[dict[str, Any]]:
    """The trainable parameters of a model, grouped for a base optimizer.

        torch.optim.SGD(fw.parameter_groups(model), lr=0.1)                        # norms and biases are not displaced
        torch.optim.SGD(fw.parameter_groups(model, rho=0.0, norms=None), lr=0.1)   # only norms are (arXiv 2306.04226, SAM-ON)

    A rho of None stands for the method's own; 0 means that the group is trained but not displaced.

    Args:
        model: where the parameters come from; those that need no gradient are left out.
        rho: of everything else; >= 0.
        norms: of the weights and biases of normalisation layers (modules with "norm" in the name of their class); >= 0.
        biases: of the biases of all other modules; >= 0.

    Returns:
        One dictionary for each kind that the model has, to which more settings of the group can be added.

    Raises:
        TypeError, ValueError: a rho is no finite number >= 0.
    """
    ratios = {REST: rho, NORMS: norms, BIASES: biases}
    for name, value in ratios.items():
        if value is not None:
            non_negative(f"the rho of {name}", value)
    kinds: dict[str, list[Parameter]] = {name: [] for name in ratios}
    for kind, parameter in _sorted(model):
        kinds[kind].append(parameter)
    return [_group(found, ratios[name]) for name, found in kinds.items() if found]


def _sorted(model: nn.Module) -> Iterator[tuple[str, Parameter]]:
    """Each parameter once, also where two modules share it."""
    known: set[Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in known:
                known.add(parameter)
                yield _kind(module, name), parameter


def _kind(module: nn.Module, name: str) -> str:
    if "norm" in type(module).__name__.lower():
        return NORMS
    return BIASES if name.split("_")[0] == "bias" or name.endswith("bias") else REST


def _group(parameters: list[Parameter], rho: float | None) -> dict[str, Any]:
    return {"params": parameters} if rho is None else {"params": parameters, "rho": rho}
