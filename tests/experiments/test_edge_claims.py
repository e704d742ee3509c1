"""The claims about the edges of methods: what is measured along a full-batch training, and what decides."""

import math

import pytest
import torch

from flatwise import methods
from flatwise.experiments.claims.eigen_sam_edge import EIGEN_SAM_EDGE
from flatwise.experiments.claims.method_edges import METHOD_EDGES, edge_of
from flatwise.experiments.claims.method_following import follow_method, late
from flatwise.optim import SharpnessAware
from flatwise.tasks import build_model, load_data
from flatwise.theory import eigen_sam_edge, sam_edge
from flatwise.training.setup import squared_error

ARMS = {
    "SAM": {"method": "sam", "lr": 0.2, "momentum": 0.3, "hyper": {"rho": 0.1}},
    "Eigen-SAM": {"method": "eigen-sam", "lr": 0.2, "hyper": {"rho": 0.1, "alpha": 0.5, "every": 2}},
}
PRESET = {"widths": [2], "steps": 8, "measured": 3, "eigenvalues": 2, "arms": ARMS}


def followed(arm, tmp_path, **changes):
    return follow_method(PRESET | changes, {"arm": arm}, 1, tmp_path, lambda done, total: None)


@pytest.fixture(scope="module")
def by_hand():
    """Seven steps of the same training: the weights before each, the batch, the model, and the optimizer after the last."""
    task = load_data("digits-full", seed=1)
    model = build_model("mlp", task, 1, widths=(2,), init="glorot")
    method = methods.EigenSAM(rho=0.1, alpha=0.5, every=2)
    optimizer = SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.2), method, model=model)
    places = []
    for _ in range(7):
        places.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))
        for p in optimizer.passes():
            p.backward(squared_error(model(task.train_inputs), task.train_targets))
        optimizer.step()
    return places, model, task, optimizer


def test_what_is_measured_is_that_of_the_weights_before_the_step(by_hand, tmp_path):
    places, model, task, optimizer = by_hand
    run = followed("Eigen-SAM", tmp_path)
    assert run["step"] == [3, 6]
    shapes = [p.shape for p in model.parameters()]

    def loss(flat):
        parts = flat.split([s.numel() for s in shapes])
        named = {n: t.view(s) for (n, _), t, s in zip(model.named_parameters(), parts, shapes, strict=True)}
        return squared_error(torch.func.functional_call(model, named, (task.train_inputs,)), task.train_targets)

    place = places[6].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(place), place, create_graph=True)
    matrix = torch.stack([torch.autograd.grad(entry, place, retain_graph=True)[0] for entry in gradient])
    gradient = gradient.detach()
    values, vectors = torch.linalg.eigh(matrix)
    assert run["gradient_norm"][1] == pytest.approx(float(gradient.norm()), rel=1e-4)
    assert run["eigenvalues"][1] == pytest.approx([float(values[-1]), float(values[-2])], rel=1e-3)
    cosine = abs(float(vectors[:, -1] @ gradient / gradient.norm()))
    assert abs(run["cosines"][1][0]) == pytest.approx(cosine, abs=0.03)
    tracked = torch.cat([entry["flatwise.eigenvector"].flatten() for entry in optimizer.state_dict()["state"].values()])
    assert run["tracked_value"][1] == pytest.approx(float(tracked @ matrix @ tracked), rel=1e-3)
    assert run["tracked_cosine"][1] == pytest.approx(abs(float(tracked @ gradient / gradient.norm())), abs=1e-3)
    assert run["displacement_norm"][1] == pytest.approx(optimizer.diagnostics["displacement_norm"], rel=1e-4)


def test_measuring_more_often_changes_nothing_about_the_training(tmp_path):
    seldom, often = (followed("SAM", tmp_path / str(measured), measured=measured) for measured in (3, 1))
    assert [often["loss"][often["step"].index(step)] for step in seldom["step"]] == seldom["loss"]


@pytest.mark.parametrize("arm", ARMS)
def test_an_interrupted_training_goes_on_as_if_nothing_had_been(tmp_path, arm):
    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    cell, steps = {"arm": arm}, []
    with pytest.raises(KeyboardInterrupt):
        follow_method(PRESET, cell, 1, tmp_path / "stopped", stop)
    again = follow_method(PRESET, cell, 1, tmp_path / "stopped", lambda done, total: steps.append(done))
    assert steps[0] == 4  # from the checkpoint at step 3
    assert again == followed(arm, tmp_path / "whole")


def test_the_caller_draws_on_as_if_nothing_had_been(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    followed("SAM", tmp_path, steps=2)
    assert torch.equal(torch.rand(3), expected)


def test_a_training_that_diverges_is_followed_until_then(tmp_path):
    preset = PRESET | {"steps": 40, "arms": {"GD": {"method": "sgd", "lr": 1e6}}}
    run = follow_method(preset, {"arm": "GD"}, 1, tmp_path, lambda done, total: None)
    assert len(run.get("step", [])) < 12
    assert math.isnan(late(preset, run, lambda at: 1.0))


def test_the_late_median_is_of_the_second_half_and_missing_where_a_training_ended_early():
    preset = {"steps": 8, "measured": 2}
    assert late(preset, {"step": [2, 4, 6]}, [10.0, 1.0, 3.0].__getitem__) == 2.0
    assert math.isnan(late(preset, {"step": [2]}, [10.0].__getitem__))
    assert math.isnan(late(preset, {}, float))


# --- verdicts ---------------------------------------------------------------------------------------------------------


def eigen_sam_run(arm, share, cosine=0.3, norm=0.02, of_sam=0.5):
    """A training whose tracked curvature is this share of the derived edge, and its top eigenvalue `of_sam` of SAM's."""
    hyper = arm["hyper"]
    derived = eigen_sam_edge(arm["lr"], hyper["rho"], hyper.get("alpha", 0.0), norm, cosine)
    number = 40
    return {
        "step": [15 * (i + 1) for i in range(number - 1)],
        "gradient_norm": [norm] * number,
        "eigenvalues": [[of_sam * sam_edge(arm["lr"], hyper["rho"], norm)] * 5] * number,
        "cosines": [[0.1] * 5] * number,
        "displacement_norm": [hyper["rho"]] * number,
        "reversal": [-1.0] * number,
        "tracked_value": [share * derived] * number,
        "tracked_cosine": [cosine] * number,
    }


def eigen_sam_criteria(share):
    preset = EIGEN_SAM_EDGE.preset("small")
    outcome = EIGEN_SAM_EDGE.judge(preset, [[eigen_sam_run(arm, share) for arm in preset["arms"].values()]] * 2)
    return {c.name: c for c in outcome.criteria}, outcome


def test_eigen_sam_is_judged_by_the_edge_of_the_tracked_vector():
    criteria, outcome = eigen_sam_criteria(0.97)
    decisive = [c for c in criteria.values() if c.decisive]
    assert [c.values for c in decisive[:-1]] == [pytest.approx([0.97, 0.97])] * 4
    assert decisive[-1].name == "top eigenvalue / SAM's edge, alpha 1"
    assert decisive[-1].values == pytest.approx([0.5, 0.5])
    assert {(c.least, c.most) for c in decisive[:-1]} == {(0.9, 1.1)}
    assert len(criteria) == len(outcome.criteria)
    assert len(outcome.panels) == 5


def test_a_training_that_ended_early_leaves_its_criteria_without_a_number():
    preset = EIGEN_SAM_EDGE.preset("small")
    outcome = EIGEN_SAM_EDGE.judge(preset, [[{}] * 5, [{}] * 5])
    assert all(math.isnan(value) for c in outcome.criteria for value in c.values)
    assert not outcome.panels


def test_an_arm_is_judged_by_its_own_edge():
    preset = METHOD_EDGES.preset("small")
    runs = []
    for arm in preset["arms"].values():
        run = {"gradient_norm": [0.02], "cosines": [[0.3, 0.4]]}
        edge = edge_of(arm, run, 0)
        steps = [15 * (i + 1) for i in range(39)]
        many = {"step": steps, "edge": [edge] * 39, "eigenvalues": [[1.05 * edge, edge]] * 39}
        runs.append(many | {"gradient_norm": [0.02] * 39})
    outcome = METHOD_EDGES.judge(preset, [runs, runs])
    for criterion in outcome.criteria:
        if criterion.name.startswith("to its edge"):
            assert criterion.values == pytest.approx([1.05, 1.05])
    assert sum(c.decisive for c in outcome.criteria) == sum(arm["held"] for arm in preset["arms"].values())


def test_an_aligned_arm_has_the_edge_of_the_whole_share_in_the_span():
    arm = {"method": "ssam", "lr": 0.2, "hyper": {"rho": 0.1}, "aligned": True}
    run = {"gradient_norm": [0.02], "cosines": [[0.3, -0.4]]}
    x, a = edge_of(arm, run, 0), 0.5
    longer = 1 + 0.1 * x / 0.02
    assert 0.2 * x * longer / math.sqrt(1 - a * a + a * a * longer**2) == pytest.approx(2, rel=1e-6)


@pytest.mark.parametrize("claim", [EIGEN_SAM_EDGE, METHOD_EDGES], ids=lambda claim: claim.name)
def test_the_smoke_scale_runs_through(claim, tmp_path):
    preset = claim.preset("smoke")
    cells = enumerate(claim.cells(preset))
    seed = [claim.measure(preset, cell, 0, tmp_path / str(i), lambda done, total: None) for i, cell in cells]
    outcome = claim.judge(preset, [seed, seed])
    assert len(outcome.panels) == len(preset["arms"])
    assert all(math.isfinite(value) for c in outcome.criteria for value in c.values)
