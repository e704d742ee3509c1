"""Hooks on gradients, watched: autograd does not notice one that computes without a graph, and second derivatives go wrong."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Hook: TypeAlias = Callable[[Tensor], Tensor | None]


class Hooks(TorchFunctionMode):
    """Inside, every hook of the parameters, and every one that is registered on a tensor, is watched as it runs.

    Those of the nodes of a graph (`z.grad_fn.register_hook`) cannot be seen.

    Args:
        parameters: what is differentiated.

    Attributes:
        cut: whether a hook that got a gradient with a graph gave back one without.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self._own: list[tuple[Any, dict[int, Hook]]] = [(p, p._backward_hooks) for p in parameters if p._backward_hooks]
        self.cut = False

    def __enter__(self) -> Hooks:
        for parameter, hooks in self._own:
            parameter._backward_hooks = OrderedDict((key, self._watched(hook)) for key, hook in hooks.items())
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        for parameter, hooks in self._own:
            parameter._backward_hooks = hooks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.register_hook:
            tensor, hook = args
            args = tensor, self._watched(hook)
        return func(*args, **(kwargs or {}))

    def _watched(self, hook: Hook) -> Hook:
        @wraps(hook)
        def watched(gradient: Tensor) -> Tensor | None:
            had = gradient.requires_grad
            found = hook(gradient)
            self.cut |= (
                found is not None and had and not found.requires_grad and bool(found.any())
            )  # 0 has no derivative
            return found

        return watched
