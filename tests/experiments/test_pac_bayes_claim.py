"""The PAC-Bayes claim: the bound's formula, the forms of the noisy error, and what is seen at a checkpoint."""

import math
from dataclasses import asdict

import pytest
import torch
from torch.func import functional_call

from flatwise.experiments.claims.listed import CLAIMS
from flatwise.experiments.claims.pac_bayes import AGREEING, Study, agreement, bound, complexity, measure, noisy_error
from flatwise.report.verdicts import judged
from flatwise.runs import Run

PRESET = CLAIMS["pac-bayes"].preset("smoke")
LOOK = {
    "samples": 101,
    "size": 10,
    "moved": 2.0,
    "loss": 0.1,
    "eigenvalue": 3.0,
    "trace": 4.0,
    "trace_error": 0.5,
    "sigmas": [0.1, 1.0],
    "train": [[0.2, 0.01], [0.5, 0.02]],
    "test": [[0.3, 0.01], [0.6, 0.03]],
}


def test_the_complexity_is_mcallesters():
    normal = torch.distributions.MultivariateNormal
    spread = 0.25 * torch.eye(3, dtype=torch.float64)
    prior, posterior = (normal(torch.tensor(m, dtype=torch.float64), spread) for m in ([0.0, 0, 0], [0.0, 2, 0]))
    divergence = float(torch.distributions.kl_divergence(posterior, prior))
    expected = math.sqrt((divergence + math.log(2 * 101 / 0.05)) / 200)
    assert complexity(LOOK, 0.5) == pytest.approx(expected)


def test_noisy_errors_of_the_three_forms():
    assert noisy_error(LOOK, "drawn", 1) == pytest.approx(0.54)
    assert noisy_error(LOOK, "trace", 1) == pytest.approx(2.6 / math.log(2))
    assert noisy_error(LOOK, "eigenvalue", 0) == pytest.approx((0.1 + 0.005 * 30) / math.log(2))


def test_the_bound_is_the_best_over_sigmas_with_its_own_slack():
    value, slack = bound(LOOK, "drawn")
    assert value == pytest.approx(0.54 + complexity(LOOK, 1.0))
    assert slack == pytest.approx(value - 0.66)


def test_the_bound_holds_for_a_gaussian_posterior_on_a_known_distribution():
    """One weight, x normal, the label its sign, the predictor sign(w x): the error with noise is known exactly."""
    start, weight, sigma, samples = 0.5, 1.0, 0.4, 400
    noise = torch.distributions.Normal(0.0, 1.0)
    wrong = float(noise.cdf(torch.tensor(-weight / sigma)))
    look = {"samples": samples, "moved": weight - start, "sigmas": [sigma], "train": [[wrong, 0.0]]}
    value, slack = bound(look | {"test": [[wrong, 0.0]]}, "drawn")
    assert slack == pytest.approx(complexity(look, sigma))
    assert wrong < value < 1


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [([1, 2, 3], [4, 5, 6], 1.0), ([1, 2, 3], [6, 5, 4], -1.0), ([1, 2, 3], [5, 4, 6], 1 / 3), ([1, 1], [1, 2], 0.0)],
)
def test_the_agreement_of_orders_counts_pairs(first, second, expected):
    assert agreement(first, second) == pytest.approx(expected)


@pytest.mark.parametrize(("seeds", "verdict"), [(AGREEING, "confirmed"), (AGREEING - 1, "undecided")])
def test_enough_seeds_that_agree_in_the_order_decide(seeds, verdict):
    def arm(moved, loss):
        look = {"samples": 1000, "moved": moved, "sigmas": [0.1], "size": 10, "eigenvalue": 0.1, "loss": 0.1}
        look |= {"trace": 0.1, "trace_error": 0.01, "train": [[0.1, 0.01]], "test": [[0.1, 0.01]], "step": 1}
        return {"looks": [look], "summary": {"test_loss": loss}}

    found = [{name: arm(1.0 + i, 0.1 * i) for i, name in enumerate(PRESET["arms"])}]
    outcome = CLAIMS["pac-bayes"].judge(PRESET, [found] * seeds)
    (order,) = [judged(asdict(c)) for c in outcome.criteria if c.name == "order, top eigenvalue"]
    assert list(order.values) == [1.0] * seeds
    assert order.verdict == verdict


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trial of one arm, with its folder and what was told."""
    folder, told = tmp_path_factory.mktemp("pac-bayes"), []
    preset = PRESET | {"arms": {"SGD": {"method": "sgd"}}, "sigmas": [1e-9, 0.3]}
    found = measure(preset, {}, 100, folder, lambda done, total: told.append((done, total)))
    return found["SGD"]["looks"], Study(preset, Run.open(folder / "arm-0")), told


def test_every_checkpoint_but_the_first_is_looked_at(made):
    looks, _, told = made
    assert [look["step"] for look in looks] == [1, 2]
    assert 0 < looks[0]["moved"] < looks[1]["moved"]
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]


def test_without_noise_the_errors_are_those_of_the_weights(made):
    look = made[0][-1]
    assert look["test"][0] == pytest.approx([look["test_error"], 0.0])
    assert look["train"][0][1] == 0.0
    assert look["test"][1][1] > 0


def test_curvature_is_that_of_the_dense_hessian(made):
    looks, study, _ = made
    study.looks()
    names = [name for name, _ in study.model.named_parameters()]
    parameters = [p.detach() for p in study.model.parameters()]
    sizes = [p.numel() for p in parameters]

    def loss(flat):
        pieces = [t.view_as(p) for t, p in zip(flat.split(sizes), parameters, strict=True)]
        outputs = functional_call(study.model, dict(zip(names, pieces, strict=True)), (study.task.train_inputs,))
        return torch.nn.functional.cross_entropy(outputs, study.task.train_targets)

    matrix = torch.autograd.functional.hessian(loss, torch.cat([p.flatten() for p in parameters])).double()
    assert looks[-1]["eigenvalue"] == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=2e-2)
    assert looks[-1]["trace"] == pytest.approx(float(matrix.trace()), abs=5 * looks[-1]["trace_error"] + 1e-6)
    assert looks[-1]["size"] == sum(sizes)
    assert looks[-1]["record"]["engine"] == "double"
