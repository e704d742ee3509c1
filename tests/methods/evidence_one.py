"""Evidence for the methods that ascend along gradients of the same batch: SAM, its scalings, mixtures, and savings."""

import functools
import itertools

import torch
import torch.nn.functional as F
from methods.evidence import STEPS, Evidence, by_samples, largest_difference, loss_on
from optim.problems import batches, build, flat, halves, loss_of, mlp, seeded
from reference import family_one, peers
from torch import nn

import flatwise as fw
from flatwise import methods

RHO = 0.1
SIZES = (4, 6, 6)
WEIGHTS = [True, False, True, False]  # the tensors of `mlp` that have "weight" in their name
PEERS = 1e-6  # their norms are float32: 50 steps differ by up to some 1e-7


def data(count=STEPS):
    return batches(count, dtype=torch.float64)


# --- how a step is driven ---------------------------------------------------------------------------------------------


def by_parts(run, batch):
    """A dialogue for each part of a batch: m-sharpness."""
    parts = halves(batch, SIZES)
    for p in run.opt.passes(parts=len(SIZES), each=True):
        p.backward(loss_of(run.model, parts[p.part]))
    run.opt.step()


def losses_of_parts(loss):
    """The losses of the same parts, from that of the whole batch."""
    ends = list(itertools.accumulate(SIZES, initial=0))
    return [functools.partial(loss, some=slice(start, end)) for start, end in itertools.pairwise(ends)]


# --- pytorch_optimizer ------------------------------------------------------------------------------------------------


def without_biases(dtype=torch.float64):
    layers = lambda: nn.Sequential(nn.Linear(6, 10, bias=False), nn.Tanh(), nn.Linear(10, 3, bias=False))
    return seeded(layers).to(dtype)


def one_tensor(dtype=torch.float64):
    return seeded(lambda: nn.Linear(6, 3, bias=False)).to(dtype)


def from_peer(method, train, net=mlp, step=by_samples, base="sgd", dtype=torch.float64):
    """The largest difference between a run of ours and the model that `train(model, data)` returns."""
    run = build(method, base, net=net, dtype=dtype)
    for batch in batches(STEPS, dtype=dtype):
        step(run, batch)
    theirs = train(net(dtype), batches(STEPS, dtype=dtype))
    return largest_difference(flat(run.params), flat(theirs.parameters()))


def peer(name, **options):
    return functools.partial(peers.with_fresh_gradients, name, **options)


def m_sam_from_peer():
    in_parts = lambda model, data: peers.m_sam(model, [halves(batch, SIZES) for batch in data], RHO)
    return from_peer(methods.SAM(rho=RHO), in_parts, step=by_parts)


def plain(model, data):
    """SGD alone, from the second step on; the first is SAM's."""
    peers.with_fresh_gradients("SAM", model, data[:1], {"lr": 0.1}, rho=RHO)
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in data[1:]:
        peers.closure_of(model, base, batch)()
        base.step()
    return model


def ae_sam_at_both_ends():
    """SAM at every step where the threshold is far below, never again where it is far above."""
    always = from_peer(methods.AESAM(rho=RHO, start=-1e6, end=-1e6), peer("SAM", rho=RHO))
    sgd = lambda params: torch.optim.SGD(params, lr=0.1)
    never = from_peer(methods.AESAM(rho=RHO, start=1e6, end=1e6), plain, base=sgd)
    return max(always, never)


# --- closed forms -----------------------------------------------------------------------------------------------------


class Point(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))


def end_of(method, start, loss, lr=0.1, steps=STEPS):
    """Where plain gradient descent along the method's direction ends."""
    model = Point(start)
    opt = fw.SharpnessAware(torch.optim.SGD(model.parameters(), lr=lr), method, model=model)
    for _ in range(steps):
        for p in opt.passes():
            p.backward(loss(model.w))
        opt.step()
    return model.w.detach()


def ascents_from_a_bowl():
    """In a round bowl all ascents go straight outwards: |w| + rho shrinks by 1 - lr times the curvature at every step."""
    start, curvature, lr = [3.0, -4.0], 0.3, 0.1
    end = end_of(methods.SAM(rho=RHO, ascents=3), start, lambda w: curvature / 2 * w @ w, lr)
    radius = (5.0 + RHO) * (1 - lr * curvature) ** STEPS - RHO
    return largest_difference(end, radius / 5.0 * torch.tensor(start, dtype=torch.float64))


def usam_on_a_quadratic():
    """Every component shrinks by 1 - lr (h + rho h^2) at every step."""
    start, h, lr = [1.0, -2.0, 0.5], torch.tensor([4.0, 1.0, -0.3], dtype=torch.float64), 0.1
    end = end_of(methods.USAM(rho=RHO), start, lambda w: (h * w * w).sum() / 2, lr)
    return largest_difference(end, torch.tensor(start, dtype=torch.float64) * (1 - lr * (h + RHO * h**2)) ** STEPS)


def x_sam_along_its_vector():
    """Along the eigenvector, w + rho shrinks by 1 - lr (1 - alpha) h at every step, whatever the sign of the vector."""
    alpha, h, lr = 0.4, torch.tensor([2.0, 0.5], dtype=torch.float64), 0.1
    expected = torch.tensor([(3.0 + RHO) * (1 - lr * (1 - alpha) * 2.0) ** 10 - RHO, 0.0], dtype=torch.float64)
    differences = []
    for sign in (1.0, -1.0):
        vector = lambda known, weights, sign=sign: [[torch.tensor([sign, 0.0], dtype=torch.float64)]]
        method = methods.XSAM(rho=RHO, alpha=alpha, source=vector)
        end = end_of(method, [3.0, 0.0], lambda w: (h * w * w).sum() / 2, lr, steps=10)
        differences.append(largest_difference(end, expected))
    return max(differences)


def momentum_sam_is_nesterov():
    """With rho = lr * momentum * |v|, in other variables: torch's Nesterov keeps the place where the gradient is taken."""
    lr, momentum = 0.1, 0.9
    model = mlp(torch.float64)
    base = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    buffers = lambda: [base.state[p]["momentum_buffer"] for p in model.parameters() if p in base.state]
    ahead = lambda step, _: lr * momentum * flat(buffers()).norm().item() if step else 0.0
    opt = fw.SharpnessAware(base, methods.MomentumSAM(rho=1.0), model=model, rho_schedule=ahead)
    twin = mlp(torch.float64)
    nesterov = torch.optim.SGD(twin.parameters(), lr=lr, momentum=momentum, nesterov=True)
    for batch in data():
        for p in opt.passes():
            p.backward(loss_of(model, batch))
        opt.step()
        peers.closure_of(twin, nesterov, batch)()
        nesterov.step()
    looked_at = [p.detach() - lr * momentum * v for p, v in zip(model.parameters(), buffers())]
    return largest_difference(flat(looked_at), flat(twin.parameters()))


def esam_by_trying_all_subsets():
    """The half of six samples, of all twenty halves, that rises most: its mean gradient is the direction."""
    batch = batches(1, size=6, dtype=torch.float64)[0]
    run = build(methods.ESAM(rho=1.0, beta=1.0, gamma=0.5), dtype=torch.float64)
    g = torch.autograd.grad(loss_of(run.model, batch), run.params)
    length = flat(g).norm()
    there = [(p + t / length).detach().requires_grad_() for p, t in zip(run.params, g)]
    names = [name for name, _ in run.model.named_parameters()]
    displaced = torch.func.functional_call(run.model, dict(zip(names, there)), (batch[0],))
    after = F.cross_entropy(displaced, batch[1], reduction="none")
    rise = (after - loss_on(run.model, batch)(reduction="none")).detach()
    best = max(itertools.combinations(range(6), 3), key=lambda subset: rise[list(subset)].sum())
    expected = torch.autograd.grad(after[list(best)].mean(), there)
    for p in run.opt.passes():
        p.backward(p.chosen(F.cross_entropy(run.model(batch[0]), batch[1], reduction="none")).mean())
    return largest_difference(flat([p.grad for p in run.params]), flat(expected))


# --- the registry -----------------------------------------------------------------------------------------------------


def transcribed(function, **hyperparameters):
    return functools.partial(function, **hyperparameters)


def drawn(step, count, beta=0.6):
    """Which tensors ESAM displaces: the same draws as the method's."""
    generator = torch.Generator().manual_seed(step)
    return [chance < beta for chance in torch.rand(count, generator=generator).tolist()]


VECTOR = [
    torch.full((p.numel(),), (-1.0) ** i, dtype=p.dtype).view_as(p)
    for i, p in enumerate(mlp(torch.float64).parameters())
]
VECTOR = [t / flat(VECTOR).norm() for t in VECTOR]

EVIDENCE = {
    "sam": Evidence(
        methods.SAM(rho=RHO),
        transcribed(family_one.sam_with_ascents, rho=RHO, ascents=1),
        "pytorch_optimizer 4.1 SAM",
        lambda: from_peer(methods.SAM(rho=RHO), peer("SAM", rho=RHO)),
        independent_tolerance=PEERS,
    ),
    "sam, three ascents": Evidence(
        methods.SAM(rho=RHO, ascents=3),
        transcribed(family_one.sam_with_ascents, rho=RHO, ascents=3),
        "closed form in a round bowl",
        ascents_from_a_bowl,
    ),
    "sam, a dialogue for each part": Evidence(
        methods.SAM(rho=RHO),
        transcribed(family_one.m_sam, rho=RHO, parts=losses_of_parts),
        "pytorch_optimizer 4.1 SAM, of each part",
        m_sam_from_peer,
        independent_tolerance=PEERS,
        step=by_parts,
    ),
    "usam": Evidence(
        methods.USAM(rho=RHO),
        transcribed(family_one.usam, rho=RHO),
        "closed form on a quadratic",
        usam_on_a_quadratic,
    ),
    "asam": Evidence(
        methods.ASAM(rho=1.0),
        transcribed(family_one.asam, rho=1.0, eta=0.01, scaled=WEIGHTS),
        "pytorch_optimizer 4.1 SAM(adaptive=True), without biases and eta",
        lambda: from_peer(methods.ASAM(rho=1.0, eta=0.0), peer("SAM", rho=1.0, adaptive=True), without_biases),
        independent_tolerance=PEERS,
    ),
    "asam, all tensors": Evidence(
        methods.ASAM(rho=1.0, scaled="all"),
        transcribed(family_one.asam, rho=1.0, eta=0.01, scaled=[True] * 4),
        "pytorch_optimizer 4.1 SAM(adaptive=True), without eta",
        lambda: from_peer(methods.ASAM(rho=1.0, eta=0.0, scaled="all"), peer("SAM", rho=1.0, adaptive=True)),
        independent_tolerance=PEERS,
    ),
    "gsam": Evidence(
        methods.GSAM(rho=RHO, alpha=0.7),
        transcribed(family_one.gsam, rho=RHO, alpha=0.7),
        "pytorch_optimizer 4.1 GSAM",
        lambda: from_peer(methods.GSAM(rho=RHO, alpha=0.7), functools.partial(peers.gsam, rho=RHO, alpha=0.7)),
        independent_tolerance=PEERS,
    ),
    "wsam": Evidence(
        methods.WSAM(rho=RHO, gamma=0.7),
        transcribed(family_one.wsam, rho=RHO, gamma=0.7),
        "pytorch_optimizer 4.1 WSAM(decouple=False)",
        lambda: from_peer(
            methods.WSAM(rho=RHO, gamma=0.7), functools.partial(peers.wsam, rho=RHO, gamma=0.7, decouple=False)
        ),
        independent_tolerance=PEERS,
    ),
    "friendly-sam": Evidence(
        methods.FriendlySAM(rho=RHO, sigma=0.8, decay=0.9),
        transcribed(family_one.friendly_sam, rho=RHO, sigma=0.8, decay=0.9),
        "pytorch_optimizer 4.1 FriendlySAM",
        lambda: from_peer(
            methods.FriendlySAM(rho=RHO, sigma=0.8, decay=0.9), peer("FriendlySAM", rho=RHO, sigma=0.8, lmbda=0.9)
        ),
        independent_tolerance=PEERS,
    ),
    "looksam": Evidence(
        methods.LookSAM(rho=RHO, every=3),
        transcribed(family_one.looksam, rho=RHO, every=3, alpha=0.7),
        "pytorch_optimizer 4.1 LookSAM, on one tensor",
        lambda: from_peer(methods.LookSAM(rho=RHO, every=3), peer("LookSAM", rho=RHO, k=3, alpha=0.7), one_tensor),
        independent_tolerance=1e-5,  # it adds 1e-8 to the length of a vector that is short
    ),
    "momentum-sam": Evidence(
        methods.MomentumSAM(rho=RHO),
        transcribed(family_one.momentum_sam, rho=RHO, momentum=0.9, weight_decay=1e-2),
        "torch's SGD(nesterov=True), where rho is lr * momentum * |v|",
        momentum_sam_is_nesterov,
    ),
    "ae-sam": Evidence(
        methods.AESAM(rho=RHO, steps=30, decay=0.8),
        transcribed(family_one.ae_sam, rho=RHO, steps=30, start=1.0, end=-1.0, decay=0.8),
        "pytorch_optimizer 4.1 SAM and torch's SGD, at thresholds far off",
        ae_sam_at_both_ends,
        independent_tolerance=PEERS,
    ),
    "esam": Evidence(
        methods.ESAM(rho=RHO),
        transcribed(family_one.esam, rho=RHO, beta=0.6, gamma=1.0, drawn=drawn),
        "pytorch_optimizer 4.1 SAM, where beta is 1",
        lambda: from_peer(methods.ESAM(rho=RHO, beta=1.0), peer("SAM", rho=RHO)),
        independent_tolerance=PEERS,
    ),
    "esam, half of the samples": Evidence(
        methods.ESAM(rho=RHO, gamma=0.5),
        transcribed(family_one.esam, rho=RHO, beta=0.6, gamma=0.5, drawn=drawn),
        "the best of all subsets of a batch",
        esam_by_trying_all_subsets,
    ),
    "x-sam": Evidence(
        methods.XSAM(rho=RHO, alpha=0.5, source=lambda known, weights: [VECTOR]),
        transcribed(family_one.x_sam, rho=RHO, alpha=0.5, vector=VECTOR),
        "closed form along the eigenvector of a quadratic",
        x_sam_along_its_vector,
    ),
}
