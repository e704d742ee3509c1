"""skorch: a mixin that trains a scikit-learn style net with any method."""

from __future__ import annotations

import dataclasses
import difflib
from typing import TYPE_CHECKING, Any, ClassVar

from skorch import NeuralNet
from skorch.utils import TeeGenerator
from torch import nn

from flatwise.methods import SAM, Method
from flatwise.optim import SharpnessAware

if TYPE_CHECKING:
    _Net = NeuralNet
else:
    _Net = object


class SharpnessAwareMixin(_Net):
    """Before `NeuralNetClassifier` (or any other net of skorch) in the bases.

        class Classifier(SharpnessAwareMixin, NeuralNetClassifier):
            pass

        net = Classifier(Network, optimizer=torch.optim.SGD, optimizer__lr=0.1, method=SAM(), method__rho=0.05)

    `optimizer` stays the base optimizer's class. Parameters are set in the scikit-learn way: a grid may run over `method` and its
    fields, `method__rho` and so on; set between two calls of `partial_fit`, they hold from the next step on. Callbacks that
    change gradients (`GradientNormClipping`) see the direction, once a step. Losses and predictions are those of the step's
    first pass.

    Args:
        method: an instance from `flatwise.methods`, or a class of it; its fields follow as `method__<name>`.

    Raises:
        TypeError, ValueError: an argument is not what it should be; skorch checks arguments in `initialize()`.
    """

    prefixes_: ClassVar[list[str]] = [*NeuralNet.prefixes_, "method"]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse bases in an order, or in a company, in which steps would not be the method's."""
        super().__init_subclass__(**kwargs)
        names = [base.__name__ for base in cls.__mro__]
        if "NeuralNet" in names[: names.index(SharpnessAwareMixin.__name__)]:
            raise TypeError(f"class {cls.__name__}: SharpnessAwareMixin must stand before the net in the bases")
        if "AccelerateMixin" in names:
            raise TypeError(
                f"class {cls.__name__}: AccelerateMixin steps by itself; write the loop with flatwise.frameworks.accelerate"
            )

    def __init__(self, *args: Any, method: Method | type[Method] = SAM(), **kwargs: Any) -> None:  # noqa: B008
        super().__init__(*args, **kwargs)
        self.method = method

    def initialize_optimizer(self, triggered_directly: Any = None) -> Any:
        """Make the base optimizer as skorch does, and the method's around it."""
        method = _method_of(self)
        _check(self)
        super().initialize_optimizer(triggered_directly)
        parts = [getattr(self, name + "_") for name in self._modules + self._criteria]
        model = nn.ModuleList([part for part in parts if isinstance(part, nn.Module)])
        self.optimizer_ = SharpnessAware(self.optimizer_, method, model=model)
        self.optimizer_.zero_grad()  # of what an optimizer before this one has left
        return self

    def initialize_virtual_params(self) -> None:
        """Let `set_params` reach a net that is trained already."""
        super().initialize_virtual_params()
        self._register_virtual_param(["method", "method__*"], _set_method)

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """One step on a batch; the loss and prediction of its first pass."""
        steps: list[dict[str, Any]] = []
        for p in self.optimizer_.passes():
            step = self.train_step_single(batch, **fit_params)
            p.record(step["loss"])
            steps += [step] if p.counts else []
        named = TeeGenerator(self.get_all_learnable_params())
        self.notify("on_grad_computed", named_parameters=named, batch=batch, training=True)
        self.optimizer_.step()
        return steps[0]


def _check(net: Any) -> None:
    if isinstance(net.optimizer, type) and issubclass(net.optimizer, SharpnessAware):
        raise TypeError(
            "optimizer is the base optimizer's class, such as torch.optim.SGD; SharpnessAware is made around it"
        )
    if "rho" in net.get_params_for("optimizer"):
        raise ValueError("optimizer__rho belongs to the method: set method__rho")
    others = [name for name in net._optimizers if name != "optimizer"]
    if others:
        raise ValueError(f"SharpnessAwareMixin steps one optimizer, this net has also {', '.join(others)}")


def _method_of(net: Any) -> Method:
    """The net's method, with the fields that were set as `method__<name>`."""
    method: Any = net.method() if isinstance(net.method, type) else net.method
    fields: dict[str, Any] = net.get_params_for("method")
    known = list(getattr(method, "__dataclass_fields__", ()))
    for name in fields.keys() - known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        hint = f"; did you mean method__{near[0]}?" if near else ""
        raise ValueError(f"{type(method).__name__} has no field {name}{hint}")
    return dataclasses.replace(method, **fields) if fields else method


def _set_method(net: Any, name: str, value: Any) -> None:
    """A new method anew; another setting of the same method from the next step on, with all that it remembers."""
    setattr(net, name, value)
    method = _method_of(net)
    if type(method) is type(net.optimizer_.method):
        net.optimizer_.method = method
    else:
        net._initialize_optimizer(reason="Re-initializing optimizer because the method was re-set.")
