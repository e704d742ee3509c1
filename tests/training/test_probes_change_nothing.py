"""A training that is measured is bitwise the training that is not, whatever is measured, also where measuring is broken off."""

import copy
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from curvature.networks import Recurrent
from methods.cases import CASES
from test_objective import cross_entropy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import flatwise as fw
from flatwise import Objective
from flatwise import vectors as V
from flatwise.curvature import (
    EigenTracker,
    by_layer,
    curvature_gradient,
    diagonal,
    directional_curvature,
    frobenius_norm,
    gauss_newton,
    hessian,
    hessian_blocks,
    spectral_density,
    top_eigenpairs,
    trace,
)
from flatwise.landscape import line

# --- what is measured -------------------------------------------------------------------------------------------------


def by_engine(engine):
    return lambda objective: top_eigenpairs(hessian(objective, engine), max_products=3)


def outputs(model, batch):
    return model(batch[0])


def cross_entropy_of(logits, batch):
    return nn.functional.cross_entropy(logits, batch[1])


def along_random(objective):
    return line(objective, V.random_like(objective.weights, 0), [-0.1, 0.1])


PROBES = {
    "value": lambda objective: objective.value(),
    "gradient": lambda objective: objective.gradient(),
    "product": lambda objective: objective.hvp(objective.weights),
    "check": lambda objective: objective.check(),
    "preflight": lambda objective: objective.preflight(),
    "forecast": lambda objective: objective.forecast(),
    "subset": lambda objective: objective.subset(3).value(),
    "displaced": lambda objective: objective.displaced().__enter__().__exit__(),
    "top eigenpairs, double": by_engine("double"),
    "top eigenpairs, differences": by_engine("differences"),
    "top eigenpairs, one-sided": by_engine("one-sided"),
    "tracker": lambda objective: EigenTracker(k=2).update(hessian(objective)),
    "trace": lambda objective: trace(hessian(objective), 4),
    "spectral density": lambda objective: spectral_density(hessian(objective), probes=1, steps=2),
    "Frobenius norm": lambda objective: frobenius_norm(hessian(objective), 2),
    "diagonal": lambda objective: diagonal(hessian(objective), 2),
    "directional curvature": lambda objective: directional_curvature(hessian(objective), objective.gradient()),
    "curvature gradient": lambda objective: curvature_gradient(objective, objective.gradient()),
    "blocks": lambda objective: [trace(H, 4) for H in hessian_blocks(objective, by_layer(objective)).values()],
    "Gauss-Newton": lambda objective: trace(gauss_newton(objective, outputs, cross_entropy_of, check=False), 4),
    "landscape": along_random,
}
"""A new measurement joins by one line."""


class Everything:
    """All of them; and what lives along a run: a tracker, and an operator that may keep a graph from before the last step."""

    def __init__(self):
        self.tracker, self.operator = EigenTracker(threshold=0.1, budget=6), None

    def __call__(self, objective):
        for probe in PROBES.values():
            probe(objective)
        self.operator = self.operator or hessian(objective)
        self.tracker.update(self.operator)


@pytest.fixture(autouse=True)
def few_products():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="not converged|differences of gradients agree")
        yield


# --- what is trained --------------------------------------------------------------------------------------------------


def dropping():
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 3))


def convolutional():
    conv = nn.Conv2d(1, 3, 2, bias=False), nn.BatchNorm2d(3), nn.GELU(), nn.Dropout2d(0.3)
    return nn.Sequential(
        nn.Unflatten(1, (1, 1, 5)), nn.ConstantPad2d((0, 0, 0, 2), 0.5), *conv, nn.Flatten(), nn.Linear(24, 3)
    )


class Sequences(nn.Module):
    def __init__(self):
        super().__init__()
        self.expand, self.drop, self.inner = nn.Linear(5, 8), nn.Dropout(0.3), Recurrent()

    def forward(self, x):
        return self.inner(self.drop(self.expand(x)).view(-1, 4, 2))


def in_bfloat16(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        return cross_entropy(model, batch)


@dataclass(frozen=True)
class Setting:
    network: Callable[[], nn.Module]
    loss: Callable = cross_entropy
    mode: str = "eval"
    batches: tuple[int, ...] = (7, 4)

    @property
    def measured(self):
        """On a single batch an operator may keep its graph from product to product."""
        return list(zip(*(t[: sum(self.batches)].split(self.batches) for t in samples()), strict=True))


SETTINGS = {
    "dropout and BatchNorm": Setting(dropping, mode="train"),
    "convolutions": Setting(convolutional, batches=(11,)),
    "LSTM": Setting(Sequences, mode="current", batches=(11,)),
    "bfloat16 autocast": Setting(dropping, loss=in_bfloat16),
}


def samples(count=18):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 5, generator=generator), torch.randint(3, (count,), generator=generator)


def augmented(rows):
    """As people write it, with the global generators of Python and NumPy."""
    x, y = (torch.stack(parts) for parts in zip(*rows, strict=True))
    return x * random.uniform(0.9, 1.1) + float(np.random.normal(scale=0.1)), y


class Training:
    """Two epochs of a loop of one's own: shuffled by a generator, augmented, dropping out; measured between steps."""

    def __init__(self, setting, method, probe):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        self.model, self.loss, self._probe = setting.network(), setting.loss, probe
        self.shuffling = torch.Generator().manual_seed(5)
        data = TensorDataset(*samples())
        self.loader = DataLoader(data, 6, shuffle=True, generator=self.shuffling, collate_fn=augmented)
        base = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.optimizer = fw.SharpnessAware(base, method, model=self.model)
        self.objective = Objective(self.model, setting.loss, setting.measured, mode=setting.mode)
        self.losses = []

    def run(self):
        for _ in range(2):
            for batch in self.loader:
                for p in self.optimizer.passes():
                    p.backward(self.loss(self.model, batch))
                self.optimizer.step()
                self.losses.append(self.optimizer.diagnostics["loss"])
                if len(self.losses) in (1, 4):
                    self._probe(self.objective)
        return self

    def state(self):
        return [
            self.losses,
            {name: t.clone() for name, t in self.model.state_dict().items()},
            self.optimizer.state_dict(),
            (torch.get_rng_state(), self.shuffling.get_state(), random.getstate(), np.random.get_state()[1].tolist()),
        ]


SOME = ("sgd", "sam", "eigen-sam")
RUNS = [(name, case) for name in SETTINGS for case in CASES if case.name in SOME or name == "dropout and BatchNorm"]


@pytest.mark.parametrize(("name", "case"), RUNS, ids=[f"{name}-{case.name}" for name, case in RUNS])
def test_a_run_with_every_probe_on_is_bitwise_the_run_without(name, case):
    plain, measured = (Training(SETTINGS[name], case.method, probe).run() for probe in (lambda _: None, Everything()))
    assert_same(measured.state(), plain.state())
    assert plain.losses[-1] != plain.losses[0]


def test_the_comparison_would_see_a_random_number_more():
    drawing = lambda _: torch.rand(1)
    runs = [Training(SETTINGS["LSTM"], CASES[0].method, probe).run() for probe in (lambda _: None, drawing)]
    with pytest.raises(AssertionError):
        assert_same(*(run.state() for run in runs))


# --- one by one, and broken off ---------------------------------------------------------------------------------------


def snapshot(model, optimizer):
    """All that a measurement could leave behind; with what must be the same object, not only equal."""
    modules, tensors = list(model.modules()), [*model.parameters(), *model.buffers()]
    values = [
        [t.detach().clone() for t in tensors],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        [m.training for m in modules],
        [sorted(vars(m)) for m in modules],
        [len(hooks) for m in modules for name, hooks in vars(m).items() if name.endswith("_hooks")],
        [len(t._backward_hooks or ()) + len(getattr(t, "_post_accumulate_grad_hooks", None) or ()) for t in tensors],
        copy.deepcopy(optimizer.state_dict()),
        (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()),
        (torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()),
        (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
        (torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.enabled),
    ]
    places = [t.data_ptr() for t in tensors] + [id(p.grad) for p in model.parameters()] + [id(t) for t in tensors]
    return values, places


def assert_same(found, expected):
    """Equal, bitwise, and in the same places; what is not is named."""
    assert list(differences(found, expected)) == []


def differences(a, b, path="state"):
    if isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or not torch.equal(a, b):
            yield path
    elif isinstance(a, dict) and a.keys() == b.keys():
        for key in a:
            yield from differences(a[key], b[key], f"{path}[{key!r}]")
    elif isinstance(a, (list, tuple)) and len(a) == len(b):
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from differences(one, other, f"{path}[{i}]")
    elif a != b:
        yield path


class Failing:
    """A loss that raises at its n-th call: in the forward pass, or in its backward."""

    def __init__(self, error, where):
        self.error, self.where, self.left = error, where, -1

    def __call__(self, model, batch):
        loss = cross_entropy(model, batch)
        self.left -= 1
        if self.left == 0 and self.where == "forward":
            raise self.error
        if self.left == 0 and loss.requires_grad:  # where only values are wanted there is no backward
            loss.register_hook(self._raise)
        return loss

    def _raise(self, grad):
        raise self.error


def prepared(name, loss=None):
    """A model in the middle of a training, with gradients, mixed modes and one frozen parameter."""
    setting = SETTINGS[name]
    training = Training(setting, CASES[0].method, lambda _: None).run()
    model = training.model
    next(model.parameters()).requires_grad_(False)
    next(m for m in model.modules() if isinstance(m, (nn.Dropout, nn.Dropout2d))).eval()
    cross_entropy(model, samples()).backward()
    return training, Objective(model, loss or setting.loss, setting.measured, mode=setting.mode)


@pytest.mark.parametrize("name", SETTINGS)
def test_no_probe_leaves_anything_behind(name):
    training, objective = prepared(name)
    before = snapshot(training.model, training.optimizer)
    for probe in PROBES.values():
        probe(objective)
        assert_same(snapshot(training.model, training.optimizer), before)


@pytest.mark.parametrize("probe", PROBES)
def test_a_measurement_between_forward_and_backward_leaves_the_pending_graph_alone(probe):
    def gradients(probe):
        training, objective = prepared("dropout and BatchNorm")
        training.model.zero_grad()
        loss = cross_entropy(training.model, samples())
        probe(objective)
        loss.backward()
        return [p.grad for p in training.model.parameters()]

    assert_same(gradients(PROBES[probe]), gradients(lambda _: None))


NOT_BROKEN = {"forward": {"displaced"}, "backward": {"value", "check", "subset", "displaced", "landscape"}}
"""They do not call the loss, or not its derivative."""


@pytest.mark.parametrize("where", NOT_BROKEN)
@pytest.mark.parametrize(("name", "error"), [("dropout and BatchNorm", KeyError), ("LSTM", KeyboardInterrupt)])
def test_nor_does_one_that_is_broken_off(name, error, where):
    failing = Failing(error("now"), where)
    training, objective = prepared(name, failing)
    before, broken = snapshot(training.model, training.optimizer), set()
    for measured, probe in PROBES.items():
        for call in (1, 3, 7, 9, 10):
            failing.left = call
            fresh = copy.copy(objective)
            fresh._preflights = {}  # what it has found out costs calls, too
            try:
                probe(fresh)
            except error:
                broken.add(measured)
            failing.left = -1
            assert_same(snapshot(training.model, training.optimizer), before)
    assert broken >= set(PROBES) - NOT_BROKEN[where]


@pytest.mark.parametrize("name", PROBES)
def test_measuring_inside_an_autocast_region_leaves_the_step_around_it_alone(name):
    """The region keeps copies of the weights; a measurement must neither spoil them nor leave those of another place."""

    def gradients(probe):
        torch.manual_seed(0)
        model, data = dropping().eval(), samples()
        with torch.autocast("cpu", torch.bfloat16):
            cross_entropy(model, data)
            probe(Objective(model, cross_entropy, [data]))
            loss = cross_entropy(model, data)
        return torch.autograd.grad(loss, list(model.parameters()))

    assert_same(gradients(PROBES[name]), gradients(lambda _: None))
