"""Evidence for the methods with random points, eigenvectors, a hand in the update, and those around other methods."""

import functools

import torch
import torch.nn.functional as F
from methods.evidence import STEPS, Evidence, largest_difference
from optim.problems import BASES, batches, build, flat, loss_of, mlp, step_by_passes
from reference import family_two, peers
from torch.func import functional_call

import flatwise as fw
from flatwise import methods
from flatwise import vectors as V
from flatwise.curvature import eigenspace
from flatwise.methods import At, Evaluation, State, drive
from flatwise.methods.noise import gaussian

RHO = 0.1
PRODUCTS = 1e-7  # they are differences of gradients
RITZ = 2e-5  # with 25 products the vector is within some 1e-5 of the exact one
THIRD = 5e-6  # also second differences of gradients come in, where the eigenvector is not the displacement
SPACE = 1e-9  # brute force twice: eigh rounds differently by the order of summation
H = torch.diag(torch.tensor([8.0, 3.0, 1.0, 0.2, -2.0], dtype=torch.float64))
W = torch.tensor([0.3, -1.0, 0.7, 2.0, 0.4], dtype=torch.float64)
NETWORK = mlp(torch.float64)
NAMES = [name for name, _ in NETWORK.named_parameters()]
ALL = batches(4, dtype=torch.float64)  # the first of the batches of a run


def draws(seed=0):
    """The standard normal vectors that a method of that seed draws for `mlp`, by step and sample."""
    like = [p.detach() for p in mlp(torch.float64).parameters()]
    return lambda step, sample: list(gaussian(State(step=step, weights=like), seed, sample + 1))[sample]


def start_vector():
    return V.random_like([p.detach() for p in mlp(torch.float64).parameters()], 0)


def transcribed(function, **hyperparameters):
    return functools.partial(function, **hyperparameters)


# --- a pure loss, and what a method makes of it -----------------------------------------------------------------------


def loss_at(weights, batch):
    """The loss of `mlp` at any weights, as a function."""
    network = lambda inputs: functional_call(NETWORK, dict(zip(NAMES, weights)), (inputs,))
    return loss_of(network, batch)


def answer(loss, weights):
    """Answers requests by autograd, and remembers the displacements that were asked for."""

    def evaluate(at):
        displacement = at.displacement() or V.zeros_like(weights)
        evaluate.places.append(displacement)
        moved = [(w + d).detach().requires_grad_() for w, d in zip(weights, displacement)]
        value = loss(moved)
        return Evaluation(value.detach(), list(torch.autograd.grad(value, moved)))

    evaluate.places = []
    return evaluate


def from_objective(method, objective):
    """The direction against the gradient, by autograd, of `objective(loss, weights, places)`, the places being held fixed."""
    weights, batch = [p.detach() for p in mlp(torch.float64).parameters()], ALL[0]
    loss = lambda w: loss_at(w, batch)
    state = method.init(weights)
    state.weights, state.step = weights, 3
    evaluate = answer(loss, weights)
    found = drive(method, evaluate, state)
    moving = [w.clone().requires_grad_() for w in weights]
    losses = [loss([w + d for w, d in zip(moving, place)]) for place in evaluate.places]
    expected = torch.autograd.grad(objective(losses), moving)
    return largest_difference(flat(found), flat(expected))


def tilted(losses):
    """Of each two places the second counts."""
    return torch.logsumexp(5.0 * torch.stack(losses[1::2]), dim=0) / 5.0


def universal(losses, rho, psi, phi):
    here, *there = losses
    rises = [(loss - here) / rho**2 for loss in there]
    return here + 0.7 * rho**2 * phi(sum(psi(rise) for rise in rises) / len(rises))


def with_variance(losses, rho, strength):
    return losses[0] + strength / (2 * rho**2) * torch.stack(losses[1:]).var()


# --- closed forms -----------------------------------------------------------------------------------------------------


def quadratic_end(method, rule, steps=20, lr=0.02):
    """The end of gradient descent along the method's direction on w'Hw/2, against `rule(w, g)` for the direction."""
    found = expected = W
    state = method.init([W])
    for step in range(steps):
        state.weights, state.step = [found], step
        found = found - lr * drive(method, answer(lambda w: w[0] @ H @ w[0] / 2, [found]), state)[0]
        expected = expected - lr * rule(expected, H @ expected)
    return largest_difference(found, expected)


def tilted_on_a_quadratic(w, g):
    """Eigen-SAM's direction where the top eigenvector is the first axis: its component is lifted, the rest shrinks."""
    u = g / g.norm()
    rest = u.clone()
    rest[0] = 0
    along = u - rest
    c = u[0].abs()
    return H @ (w + RHO * ((1 + 0.5 * (1 - c**2) / c) * along + (1 - 0.5 * c) * rest))


def lanczos_on_a_quadratic():
    """On one Hessian the space is complete after as many steps as there are weights, and v exact until it is refreshed."""
    method = methods.EigenSAM(rho=RHO, alpha=0.5, every=100, iterations=5, source="lanczos")
    state = method.init([W])
    state.weights = [W]
    found = [drive_on(H, W, method, state, step) for step in range(5)]
    return largest_difference(found[-1], tilted_on_a_quadratic(W, H @ W))


def drive_on(h, w, method, state, step):
    state.step = step
    return drive(method, answer(lambda w: w[0] @ h @ w[0] / 2, [w]), state)[0]


def eigenvalue_gradient(weights, batch):
    """Of the largest eigenvalue of the Hessian, by autograd through `torch.linalg.eigh`; and the eigenvector."""
    sizes, flat_weights = [w.numel() for w in weights], flat(weights).requires_grad_()
    loss = lambda x: loss_at([part.view_as(w) for part, w in zip(x.split(sizes), weights)], batch)
    h = torch.autograd.functional.hessian(loss, flat_weights, create_graph=True)
    values, vectors = torch.linalg.eigh((h + h.T) / 2)
    return torch.autograd.grad(values[-1], flat_weights)[0], vectors[:, -1].detach()


def penalty_through_eigh():
    rho, batch = 1.0, ALL[0]
    weights = [p.detach() for p in mlp(torch.float64).parameters()]
    slope, v = eigenvalue_gradient(weights, batch)
    vector = [part.view_as(w) for part, w in zip(v.split([w.numel() for w in weights]), weights)]
    method = methods.EigenvaluePenalty(rho=rho, source=lambda known, weights: [vector])
    state = method.init(weights)
    state.weights = weights
    evaluate = answer(lambda w: loss_at(w, batch), weights)
    found = flat(drive(method, evaluate, state))
    return largest_difference(found - flat(evaluate(At.weights()).gradient), rho**2 / 2 * slope)


# --- other optimizers -------------------------------------------------------------------------------------------------


def sgd_itself():
    run, model = build(methods.SGD(), dtype=torch.float64), mlp(torch.float64)
    base = BASES["sgd"](model.parameters())
    for batch in batches(STEPS, dtype=torch.float64):
        step_by_passes(run, batch)
        peers.closure_of(model, base, batch)()
        base.step()
    return largest_difference(flat(run.params), flat(model.parameters()))


def plain_sgd_and_peer(method, at):
    """Without momentum a peer's SAM may take over from torch's SGD at any step, and back."""
    run = build(method, lambda params: torch.optim.SGD(params, lr=0.1), dtype=torch.float64)
    model = mlp(torch.float64)
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    for step, batch in enumerate(batches(STEPS, dtype=torch.float64)):
        step_by_passes(run, batch)
        if at(step):
            peers.with_fresh_gradients("SAM", model, [batch], {"lr": 0.1}, rho=RHO)
        else:
            peers.closure_of(model, base, batch)()
            base.step()
    return largest_difference(flat(run.params), flat(model.parameters()))


# --- the top eigenspace -----------------------------------------------------------------------------------------------


def exact_space(known, weights):
    """The top eigenvectors of the mean loss of `ALL` at any weights of `mlp`, by brute force."""
    params = [w.detach().clone().requires_grad_() for w in weights]
    h = family_two.hessian_matrix(lambda: sum(loss_at(params, batch) for batch in ALL) / len(ALL), params)
    vectors = torch.linalg.eigh((h + h.T) / 2).eigenvectors
    return [family_two.parts_of(vectors[:, -1 - i], params) for i in range(len(known))]


def lanczos_against_brute_force(method):
    """A run that looks through `eigenspace(objective)` against one that looks at the whole Hessian."""
    run, twin = build(methods.SGD(), dtype=torch.float64), build(methods.SGD(), dtype=torch.float64)
    found = eigenspace(fw.Objective(run.model, loss_of, ALL), tol=1e-8)
    for setup, space in ((run, found), (twin, exact_space)):
        with_space = method(methods.SGD(), k=2, every=5, subspace=space)
        setup.opt = fw.SharpnessAware(setup.base, with_space, model=setup.model)
        for batch in batches(6, dtype=torch.float64):
            step_by_passes(setup, batch)
    return largest_difference(flat(run.params), flat(twin.params))


def margin_short_of_the_largest():
    """Of three points of one class in the plane it is 1, along the first axis; gradient descent misses it by 5 %."""
    points = torch.tensor([[1.0, 3.0], [1.0, -1.0], [2.0, 0.5]], dtype=torch.float64)
    w = torch.tensor([-0.2, 1.0], dtype=torch.float64)
    method = methods.PRGD(every=20, growth=1.5)
    state = method.init([w])
    for step in range(320):
        state.weights, state.step = [w], step
        direction = drive(method, answer(lambda w: torch.exp(-points @ w[0]).mean(), [w]), state)
        w = w + method.update(state, [w], V.scale(direction, -0.1))[0]
    return 1 - ((points @ w).amin() / w.norm()).item()


# --- the registry -----------------------------------------------------------------------------------------------------

RANDOM = {"rho": RHO, "samples": 3, "draw": draws(seed=7)}
TILTED = {"radius": 2.0, "tilt": 5.0, **RANDOM}
CUBE = family_two.in_a_cube(0.1)
REFRESHED = {"rho": RHO, "alpha": 0.5, "every": 5}

EVIDENCE = {
    "sgd": Evidence(methods.SGD(), family_two.sgd, "torch's SGD itself", sgd_itself, independent_tolerance=0.0),
    "reverse-sam": Evidence(
        methods.ReverseSAM(rho=RHO),
        transcribed(family_two.with_reverse_sam, rho=RHO),
        "closed form on a quadratic",
        lambda: quadratic_end(methods.ReverseSAM(rho=RHO), lambda w, g: H @ (w - RHO * g / g.norm())),
    ),
    "gradient-norm": Evidence(
        methods.GradientNorm(rho=RHO),
        transcribed(family_two.with_gradient_norm, rho=RHO),
        "closed form on a quadratic",
        lambda: quadratic_end(methods.GradientNorm(rho=RHO), lambda w, g: g + RHO * H @ g / g.norm()),
        tolerance=PRODUCTS,
        independent_tolerance=PRODUCTS,
    ),
    "eigen-sam": Evidence(
        methods.EigenSAM(**REFRESHED, iterations=25),
        transcribed(family_two.with_eigen_sam, **REFRESHED),
        "closed form on a quadratic",
        lambda: quadratic_end(methods.EigenSAM(rho=RHO, alpha=0.5, every=1, iterations=5), tilted_on_a_quadratic),
        tolerance=RITZ,
        independent_tolerance=PRODUCTS,
    ),
    "eigen-sam, power iteration": Evidence(
        methods.EigenSAM(**REFRESHED, iterations=3, source="power"),
        transcribed(family_two.with_eigen_sam, **REFRESHED, find=family_two.power_iteration(3, draw=start_vector)),
        "closed form on a quadratic",
        lambda: quadratic_end(
            methods.EigenSAM(rho=RHO, alpha=0.5, every=1, iterations=60, source="power"), tilted_on_a_quadratic
        ),
        tolerance=PRODUCTS,
        independent_tolerance=1e-6,
    ),
    "eigen-sam, stochastic Lanczos": Evidence(
        methods.EigenSAM(**REFRESHED, iterations=4, source="lanczos"),
        transcribed(family_two.with_stochastic_lanczos, **REFRESHED, iterations=4, draw=start_vector),
        "closed form on a quadratic, from the step on where the space is complete",
        lanczos_on_a_quadratic,
        tolerance=PRODUCTS,
        independent_tolerance=1e-6,
    ),
    "eigenvalue-penalty": Evidence(
        methods.EigenvaluePenalty(rho=RHO, every=5, iterations=25),
        transcribed(family_two.eigenvalue_penalty, rho=RHO, every=5),
        "autograd through eigh of the Hessian",
        penalty_through_eigh,
        tolerance=THIRD,
        independent_tolerance=1e-5,
    ),
    "tsam": Evidence(
        methods.TSAM(rho=RHO, radius=2.0, tilt=5.0, samples=3, seed=7),
        transcribed(family_two.tsam, **TILTED),
        "autograd of the tilted loss",
        lambda: from_objective(methods.TSAM(rho=RHO, radius=2.0, tilt=5.0, samples=3), tilted),
    ),
    "ssam": Evidence(
        methods.Stable(methods.SAM(rho=RHO)),
        transcribed(family_two.ssam, rho=RHO),
        "closed form on a quadratic",
        lambda: quadratic_end(
            methods.Stable(methods.SAM(rho=RHO)), lambda w, g: g.norm() * F.normalize(g + RHO * H @ g / g.norm(), dim=0)
        ),
    ),
    "ssam, around un-normalised SAM": Evidence(
        methods.Stable(methods.USAM(rho=RHO)),
        transcribed(family_two.ssam, rho=RHO, within="usam"),
        "closed form on a quadratic",
        lambda: quadratic_end(
            methods.Stable(methods.USAM(rho=RHO)), lambda w, g: g.norm() * F.normalize(g + RHO * H @ g, dim=0)
        ),
    ),
    "trace-sam": Evidence(
        methods.TraceSAM(rho=RHO, strength=0.7, samples=3, seed=7),
        transcribed(family_two.universal, strength=0.7, point=family_two.on_the_sphere, **family_two.TRACE, **RANDOM),
        "autograd of the whole loss",
        lambda: from_objective(
            methods.TraceSAM(rho=RHO, strength=0.7, samples=3), lambda f: universal(f, RHO, **family_two.TRACE)
        ),
    ),
    "det-sam": Evidence(
        methods.DetSAM(rho=1.0, strength=0.7, half_width=0.1, samples=3, seed=7),
        transcribed(family_two.universal, strength=0.7, point=CUBE, **family_two.DET, **RANDOM | {"rho": 1.0}),
        "autograd of the whole loss",
        lambda: from_objective(
            methods.DetSAM(rho=1.0, strength=0.7, half_width=0.1, samples=3),
            lambda f: universal(f, 1.0, **family_two.DET),
        ),
    ),
    "frob-sam": Evidence(
        methods.FrobSAM(rho=RHO, strength=0.5, samples=3, seed=7),
        transcribed(family_two.frob_sam, strength=0.5, **RANDOM),
        "autograd of the whole loss",
        lambda: from_objective(methods.FrobSAM(rho=RHO, strength=0.5, samples=3), lambda f: with_variance(f, RHO, 0.5)),
    ),
    "nso": Evidence(
        methods.NSO(rho=RHO, samples=3, seed=7),
        transcribed(family_two.nso, clean=0.0, **RANDOM),
        "the gradient on a quadratic, where noise cancels",
        lambda: quadratic_end(methods.NSO(rho=10.0, samples=2), lambda w, g: g),
    ),
    "nso, with the gradient at the weights": Evidence(
        methods.NSO(rho=RHO, samples=3, clean=0.3, seed=7),
        transcribed(family_two.nso, clean=0.3, **RANDOM),
        "autograd of the whole loss",
        lambda: from_objective(
            methods.NSO(rho=RHO, samples=3, clean=0.3), lambda f: 0.3 * f[0] + 0.7 * sum(f[1:]) / len(f[1:])
        ),
    ),
    "late-sam": Evidence(
        methods.Late(methods.SAM(rho=RHO), start=20),
        transcribed(family_two.sam_at_some_steps, rho=RHO, at=lambda step: step >= 20),
        "torch's SGD, then pytorch_optimizer 4.1 SAM",
        lambda: plain_sgd_and_peer(methods.Late(methods.SAM(rho=RHO), start=20), lambda step: step >= 20),
        independent_tolerance=1e-6,
    ),
    "interval-sam": Evidence(
        methods.Interval(methods.SAM(rho=RHO), every=3),
        transcribed(family_two.sam_at_some_steps, rho=RHO, at=lambda step: step % 3 == 0),
        "pytorch_optimizer 4.1 SAM and torch's SGD by turns",
        lambda: plain_sgd_and_peer(methods.Interval(methods.SAM(rho=RHO), every=3), lambda step: step % 3 == 0),
        independent_tolerance=1e-6,
    ),
    "dom-sgd": Evidence(
        methods.Dominant(methods.SGD(), k=2, every=10, subspace=exact_space),
        lambda params, base, losses: family_two.projected(params, base, losses, losses[:4], 2, 10, inside=True),
        "Lanczos on the objective against brute force",
        lambda: lanczos_against_brute_force(methods.Dominant),
        tolerance=SPACE,
        independent_tolerance=1e-7,
    ),
    "bulk-sgd": Evidence(
        methods.Bulk(methods.SGD(), k=2, every=10, subspace=exact_space),
        lambda params, base, losses: family_two.projected(params, base, losses, losses[:4], 2, 10, inside=False),
        "Lanczos on the objective against brute force",
        lambda: lanczos_against_brute_force(methods.Bulk),
        tolerance=SPACE,
        independent_tolerance=1e-7,
    ),
    "prgd": Evidence(
        methods.PRGD(every=7, growth=1.1),
        transcribed(family_two.prgd, every=7, growth=1.1),
        "the largest margin of separable points, which gradient descent misses by 5 %",
        margin_short_of_the_largest,
        independent_tolerance=1e-3,
    ),
}
