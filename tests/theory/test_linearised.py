import math
from collections.abc import Callable

import pytest
import torch

from flatwise import methods as M
from flatwise.methods import At, Evaluation, drive
from flatwise.theory import (
    MethodEdge,
    eigen_sam_edge,
    gd_edge,
    heavy_ball_edge,
    method_edge,
    nesterov_edge,
    sam_edge,
    usam_edge,
)
from flatwise.theory.quadratic import Surroundings, Training

LR, RHO, NORM = 0.5, 0.1, 0.02


def edge(method: M.Dialogue, momentum: float = 0.0, **options: float) -> MethodEdge:
    return method_edge(method, LR, NORM, momentum, **options)


def sam(rho: float, momentum: float = 0.0, lr: float = LR) -> float:
    return sam_edge(lr, rho, NORM, momentum)


# --- formulas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_known_edges_come_out(momentum: float) -> None:
    assert edge(M.SGD(), momentum).curvature == pytest.approx(heavy_ball_edge(LR, momentum), rel=1e-8)
    assert edge(M.SAM(RHO), momentum).curvature == pytest.approx(sam(RHO, momentum), rel=1e-6)
    assert edge(M.USAM(RHO), momentum).curvature == pytest.approx(usam_edge(LR / (1 + momentum), RHO), rel=1e-6)
    for alignment in (0.05, 0.9):
        found = edge(M.EigenSAM(RHO, 0.5), momentum, alignment=alignment)
        known = eigen_sam_edge(LR / (1 + momentum), RHO, 0.5, NORM, alignment)
        assert found.curvature == pytest.approx(known, rel=1e-6)
        assert found.multiplier == pytest.approx(-1, abs=1e-6)
        assert found.leaving == "turning back"


def test_nesterovs_edge_comes_out() -> None:
    found = method_edge(M.SGD(), LR, NORM, 0.9, nesterov=True)
    assert found.curvature == pytest.approx(nesterov_edge(LR, 0.9), rel=1e-8)


@pytest.mark.parametrize("gradient_norm", [1e-5, 1.0, 100.0])
def test_sams_edge_comes_out_at_any_gradient_norm(gradient_norm: float) -> None:
    found = method_edge(M.SAM(RHO), LR, gradient_norm)
    assert found.curvature == pytest.approx(sam_edge(LR, RHO, gradient_norm), rel=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("gradient_norm", [1e-9, 1e-12, 1e-20])
def test_an_edge_far_below_gradient_descents_is_found(gradient_norm: float, momentum: float) -> None:
    found = method_edge(M.SAM(0.05), 0.1, gradient_norm, momentum)
    assert found.curvature == pytest.approx(sam_edge(0.1, 0.05, gradient_norm, momentum), rel=1e-6)
    assert found.leaving == "turning back"


@pytest.mark.parametrize("gradient_norm", [1e-12, 1e-2])
def test_what_grows_at_any_curvature_has_no_edge_above_zero(gradient_norm: float) -> None:
    assert method_edge(M.XSAM(0.05, alpha=2.0), 0.1, gradient_norm).curvature == 0


SIGMA, DECAY = 0.5, 0.6
FRIENDLY = RHO * (1 + SIGMA * (1 - DECAY) / (1 + DECAY)) / (1 - SIGMA)
SAM_IN_OTHER_WORDS: dict[str, tuple[M.Dialogue, float]] = {
    "EGR": (M.GradientNorm(RHO), sam(RHO)),
    "ASAM": (M.ASAM(RHO, eta=0.5), sam(1.5 * RHO)),
    "GSAM": (M.GSAM(RHO, alpha=0.4), sam(1.4 * RHO)),
    "WSAM": (M.WSAM(RHO, gamma=0.75), sam(3 * RHO)),
    "SSAM": (M.Stable(M.SAM(RHO)), sam(RHO)),
    "X-SAM": (M.XSAM(RHO, alpha=0.2), sam(RHO, lr=0.8 * LR)),
    "friendly SAM": (M.FriendlySAM(RHO, SIGMA, DECAY), sam(FRIENDLY)),
    "late SAM": (M.Late(M.SAM(RHO)), sam(RHO)),
    "NSO": (M.NSO(RHO), gd_edge(LR)),
    "Trace-SAM": (M.TraceSAM(RHO), gd_edge(LR)),
    "eigenvalue penalty": (M.EigenvaluePenalty(RHO), gd_edge(LR)),
    "Dom-SGD": (M.by_name("dom-sgd"), gd_edge(LR)),
}


@pytest.mark.parametrize("name", SAM_IN_OTHER_WORDS)
def test_many_methods_have_sams_edge_with_another_rho_or_learning_rate(name: str) -> None:
    method, known = SAM_IN_OTHER_WORDS[name]
    assert edge(method).curvature == pytest.approx(known, rel=1e-6)


def test_what_is_drawn_cancels_at_an_alignment_too() -> None:
    for method in (M.NSO(RHO), M.TraceSAM(RHO)):
        assert math.isnan(edge(method).error)
        assert edge(method, alignment=0.5).curvature == pytest.approx(gd_edge(LR), rel=1e-6)


def test_momentum_sam_has_an_edge_below_the_heavy_balls() -> None:
    beta = 0.9
    known = 2 * (1 + beta) / (LR + 2 * RHO * (1 - beta) / NORM)
    assert edge(M.MomentumSAM(RHO), beta).curvature == pytest.approx(known, rel=1e-6)


@pytest.mark.parametrize("every", [2, 3, 5])
def test_interval_sam_is_at_its_edge_where_the_product_of_its_steps_is_minus_one(every: int) -> None:
    found = edge(M.Interval(M.SAM(RHO), every))

    def product(x: torch.Tensor) -> torch.Tensor:
        return (1 - LR * x * (1 + RHO * x / NORM)) * (1 - LR * x) ** (every - 1)

    x = torch.linspace(0, 1, 100_001, dtype=torch.float64) * found.curvature
    assert float(product(x).abs().max()) == pytest.approx(1, abs=1e-6)
    assert found.multiplier == pytest.approx(float(product(x[-1])), abs=1e-6)
    assert abs(found.multiplier) == pytest.approx(1, abs=1e-6)
    assert found.period == every


@pytest.mark.parametrize(("rho", "ratio"), [(0.01, 2.25), (0.1, 5.24), (1.0, 1.12)])
def test_interval_sams_edge_lies_between_sams_and_gradient_descents(rho: float, ratio: float) -> None:
    """How far above SAM's is no multiple of the period."""
    found = method_edge(M.Interval(M.SAM(rho), 5), 0.2, 0.02).curvature
    assert found / sam_edge(0.2, rho, 0.02) == pytest.approx(ratio, abs=0.005)
    assert found < gd_edge(0.2)


def test_stable_sams_edge_rises_with_the_alignment() -> None:
    a = 0.5
    x = edge(M.Stable(M.SAM(RHO)), alignment=a).curvature
    longer = 1 + RHO * x / NORM
    assert LR * x * longer / math.sqrt(1 - a * a + a * a * longer**2) == pytest.approx(2, rel=1e-6)
    assert sam(RHO) < x < gd_edge(LR)


def test_friendly_sams_edge_rises_with_the_alignment_since_its_mean_does_not_follow_the_swing() -> None:
    a = 0.5
    x = edge(M.FriendlySAM(RHO, SIGMA, DECAY), alignment=a).curvature
    along = 1 + SIGMA * (1 - DECAY) / (1 + DECAY)
    norm = math.hypot((1 - SIGMA) * math.sqrt(1 - a * a), along * a)
    assert x == pytest.approx(sam(RHO * along / norm), rel=1e-6)


def test_momentum_sams_edge_takes_the_swing_of_the_momentum_in() -> None:
    a, beta = 0.6, 0.5
    x = edge(M.MomentumSAM(RHO), beta, alignment=a).curvature
    swing = 2 * NORM * a / (LR * x)  # of the momentum, which is 1 / lr of the steps
    steady = NORM * math.sqrt(1 - a * a) / (1 - beta)
    response = 1 + RHO * (2 / LR) / math.hypot(swing, steady)
    assert LR * x * response == pytest.approx(2 * (1 + beta), rel=1e-6)


def test_frob_sams_edge_in_the_mean_is_usams() -> None:
    found = edge(M.FrobSAM(0.005, strength=0.1, samples=2), draws=16)
    assert 0 < found.error < 0.5
    assert abs(found.curvature - usam_edge(LR, 0.1)) < 4 * found.error


# --- what is no edge, or none that holds ------------------------------------------------------------------------------


def test_reverse_sam_runs_away_above_the_gradient_norm_by_rho() -> None:
    found = edge(M.ReverseSAM(RHO))
    assert found.curvature == pytest.approx(NORM / RHO, rel=1e-6)
    assert found.leaving == "running away"


def test_methods_that_leave_the_eigenvector_alone_have_no_edge() -> None:
    for method in (M.XSAM(RHO, alpha=1.0), M.by_name("bulk-sgd")):
        found = edge(method)
        assert math.isinf(found.curvature)
        assert found.leaving == ""
    assert edge(M.XSAM(RHO, alpha=2.0)).curvature == 0


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a kick": (lambda: edge(M.EigenSAM(RHO)), "not in proportion"),
    "the kicks of LookSAM": (lambda: edge(M.LookSAM(RHO)), "not in proportion"),
    "nothing left of the gradient": (lambda: edge(M.FriendlySAM(RHO)), "not in proportion"),
    "a period": (lambda: edge(M.Interval(M.SAM(RHO), 3), alignment=0.1), "with a period of 3"),
    "a decision": (lambda: edge(M.AESAM(RHO)), "decides by the data"),
    "the loss": (lambda: edge(M.PRGD()), "value of the loss"),
    "no momentum": (lambda: edge(M.MomentumSAM(RHO)), "momentum, which must be above 0"),
    "nothing drawn": (lambda: edge(M.SAM(RHO), draws=2), "draws must be"),
    "Nesterov alone": (lambda: method_edge(M.SGD(), LR, NORM, nesterov=True), "nesterov has no effect"),
    "lr": (lambda: method_edge(M.SGD(), 0.0, NORM), "lr must be finite and > 0"),
    "gradient norm": (lambda: method_edge(M.SGD(), LR, math.nan), "gradient_norm must be"),
    "momentum": (lambda: edge(M.SGD(), 1.0), "momentum must be"),
    "alignment": (lambda: edge(M.SGD(), alignment=1.0), "alignment must be"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_multipliers_is_refused_with_the_reason(name: str) -> None:
    call, said = REFUSED[name]
    with pytest.raises(ValueError, match=said):
        call()


def test_a_class_is_no_method() -> None:
    with pytest.raises(TypeError, match=r"flatwise\.methods"):
        method_edge(M.SAM, LR, NORM)  # type: ignore[arg-type]


def test_a_text_is_no_number() -> None:
    with pytest.raises(TypeError, match="lr must be a number"):
        method_edge(M.SGD(), "0.1", NORM)  # type: ignore[arg-type]


# --- the training behind it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.97, 1.03])
@pytest.mark.parametrize(
    ("method", "momentum"),
    [
        (M.SAM(RHO), 0.0),
        (M.GSAM(RHO), 0.0),
        (M.FriendlySAM(RHO, 0.5), 0.0),
        (M.MomentumSAM(RHO), 0.9),
        (M.SAM(RHO), 0.3),
    ],
)
def test_small_components_shrink_below_the_edge_and_grow_above(
    method: M.Dialogue, momentum: float, share: float
) -> None:
    curvature = share * edge(method, momentum).curvature
    training = Training(method, curvature, Surroundings(LR, NORM, momentum))
    memory = training.settled().nudged(0, 1e-6 * NORM / curvature)
    sizes: list[float] = []
    for _ in range(150):
        memory = training.step(memory)
        sizes.append(abs(float(memory.place[0])))
    assert (max(sizes[-20:]) > max(sizes[20:40])) == (share > 1)


def test_a_measured_matrix_changes_nothing_in_a_memory() -> None:
    training = Training(M.FriendlySAM(RHO, 0.5), 0.3, Surroundings(LR, NORM))
    memory = training.settled()
    before = [vector.clone() for vector in memory.vectors()]
    training.after_a_period(memory.nudged(1, 1.0))
    assert all(torch.equal(a, b) for a, b in zip(before, memory.vectors(), strict=True))
    assert len(before) == 2


# --- Eigen-SAM where several eigenvalues are close --------------------------------------------------------------------


def eigen_sam_on_a_quadratic(eigenvalues: list[float], alpha: float, every: int) -> tuple[float, float, torch.Tensor]:
    """Train on it for long: the gradient norm, the |cos| of the gradient with the tracked vector, and that vector."""
    values = torch.tensor([*eigenvalues, 0.0], dtype=torch.float64)
    place = torch.randn(len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.01
    slope = torch.zeros_like(place)
    slope[-1] = NORM
    method = M.EigenSAM(RHO, alpha, every)
    state = method.init([place])

    def gradient(at: At) -> Evaluation:
        displaced = at.displacement()
        there = place if displaced is None or displaced[0] is None else place + displaced[0]
        return Evaluation((values * there**2).sum() / 2 + (slope * there).sum(), [values * there + slope])

    for _ in range(400):
        state.weights = [place + 1.0]
        (direction,) = drive(method, gradient, state)
        assert direction is not None
        place, state.step = place - LR * direction, state.step + 1
    (g,), (v,) = gradient(At.weights()).gradient, state.vectors["eigenvector"]
    assert g is not None
    assert v is not None
    return float(g.norm()), abs(float(g @ v / g.norm())), v


@pytest.mark.parametrize("alpha", [0.2, 1.0])
@pytest.mark.parametrize("top", [[0.45], [0.45] * 5, [0.45, 0.44, 0.43]])
def test_eigen_sams_edge_is_that_of_the_vector_it_tracks(top: list[float], alpha: float) -> None:
    values = [*top, *(0.1 * x for x in range(1, 4)), *[0.02] * 5]
    norm, cosine, vector = eigen_sam_on_a_quadratic(values, alpha, 10)
    curvature = float(vector[:-1].square() @ torch.tensor(values, dtype=torch.float64))
    assert curvature == pytest.approx(eigen_sam_edge(LR, RHO, alpha, norm, cosine), rel=1e-3)
    assert curvature < 0.7 * sam_edge(LR, RHO, norm)
