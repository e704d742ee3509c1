"""Problems 20 to 23 and 25: measuring curvature."""

from __future__ import annotations

import copy
import gc
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import flatwise as fw
from benchmarks.peers.finding import check, outcome, relative
from benchmarks.peers.small import batches, loss_of, network
from flatwise.curvature import chunked_cross_entropy, from_matrix, spectral_density

CRITERION = nn.CrossEntropyLoss()
Data = list[tuple[Tensor, Tensor]]


# --- four ways to the same number -------------------------------------------------------------------------------------


def flatwise(model: nn.Module, data: Data, loss: Any = loss_of) -> fw.curvature.Operator:
    return fw.curvature.hessian(fw.Objective(model, loss, data, mode="train"))


def flatwise_product(model: nn.Module, data: Data) -> Tensor:
    operator = flatwise(model, data)
    return torch.cat([h.reshape(-1) for h in operator([torch.ones_like(t) for t in operator.like])])


def curvlinops_product(model: nn.Module, data: Data) -> Tensor:
    from curvlinops import HessianLinearOperator

    parameters = list(model.parameters())
    operator = HessianLinearOperator(model, CRITERION, parameters, data, check_deterministic=False)
    return torch.cat([h.reshape(-1) for h in operator @ [torch.ones_like(p) for p in parameters]])


def eigenthings_product(model: nn.Module, data: Data) -> Tensor:
    from hessian_eigenthings import HessianOperator

    operator = HessianOperator(model, data, loss_of)
    return operator.matvec(torch.ones(operator.size))


def pyhessian_product(model: nn.Module, data: Data) -> Tensor:
    from pyhessian import hessian

    measured = hessian(model, CRITERION, dataloader=data, cuda=False)
    _, product = measured.dataloader_hv_product([torch.ones_like(p) for p in model.parameters()])
    return torch.cat([h.reshape(-1) for h in product])


PEERS = {
    "curvlinops-for-pytorch": curvlinops_product,
    "hessian-eigenthings": eigenthings_product,
    "PyHessian": pyhessian_product,
}


def by_differences(make: Any, data: Data) -> Tensor:
    """The product with ones in float64 from gradients ahead and behind, with nobody's library."""
    model = make().double().train()
    parameters = list(model.parameters())

    def gradient(length: float) -> Tensor:
        with torch.no_grad():
            for p in parameters:
                p.add_(length)
        total = sum(len(batch[0]) for batch in data)
        loss = sum(loss_of(model, (x.double(), y)) * (len(x) / total) for x, y in data)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            for p in parameters:
                p.sub_(length)
        return torch.cat(
            [torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1) for g, p in zip(found, parameters)]
        )

    return (gradient(1e-5) - gradient(-1e-5)) / 2e-5


def off(product: Any, make: Any, data: Data) -> str:
    """How far a product is from the right one, or what is said in its place."""

    def error() -> str:
        right = by_differences(make, data)
        found = product(make(), data).double()
        return relative(float((found - right).norm() / right.norm()))

    return outcome(error)


def rows(problem: int, asked: str, make: Any, data: Data, peers: dict[str, Any] | None = None) -> None:
    """A row for each peer: its product, and ours."""
    for peer, product in (peers or PEERS).items():
        check(problem, peer, asked)(
            lambda product=product: (off(product, make, data), off(flatwise_product, make, data))
        )


# --- 20: memory -------------------------------------------------------------------------------------------------------


def left_behind(measure: Any, times: int = 20) -> int:
    """Tensors that are still there after measuring so many times, before the collector of cycles has run."""
    measure()
    gc.collect()
    gc.disable()
    count = lambda: sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
    before = count()
    for _ in range(times):
        measure()
    found = count() - before
    gc.enable()
    return found


@check(20, "torch", "tensors left behind by `loss.backward(create_graph=True)` on twenty networks that were dropped")
def cycle() -> tuple[str, str]:
    def theirs() -> None:
        loss_of(network(), batches(1)[0]).backward(create_graph=True)

    def ours() -> None:
        operator = flatwise(network(), batches(1))
        operator([torch.ones_like(t) for t in operator.like])

    return f"{left_behind(theirs)}, until cycles are collected", str(left_behind(ours))


@check(20, "PyHessian", "the same of twenty top eigenvalues (today's `zero_grad` breaks the cycle)")
def leak() -> tuple[str, str]:
    from pyhessian import hessian

    model = network()
    (batch,) = batches(1)
    theirs = left_behind(lambda: hessian(model, CRITERION, data=batch, cuda=False).eigenvalues(maxIter=5))
    own = left_behind(lambda: fw.curvature.top_eigenpairs(flatwise(model, [batch]), tol=0.1))
    return str(theirs), str(own)


# --- 21: language models ----------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else [result]:
            self.size = max(self.size, t.numel() if isinstance(t, Tensor) else 0)
        return result


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.layer = nn.Embedding(8000, 16), nn.Linear(16, 16)
        self.lm_head = nn.Linear(16, 8000, bias=False)

    def hidden(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.layer(self.embedding(tokens)))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.hidden(tokens))


def whole(model: LanguageModel, tokens: Tensor) -> Tensor:
    return CRITERION(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def in_chunks(model: LanguageModel, tokens: Tensor) -> Tensor:
    return chunked_cross_entropy(model.hidden(tokens[:, :-1]), model.lm_head.weight, tokens[:, 1:], chunk=32)


@check(21, "hessian-eigenthings", "the largest tensor in a product; 512 tokens, 8,000 words, 256,528 parameters")
def logits() -> tuple[str, str]:
    from hessian_eigenthings import HessianOperator

    tokens = torch.randint(8000, (1, 513), generator=torch.Generator().manual_seed(1))
    model = LanguageModel()
    operator = HessianOperator(model, [tokens], whole)
    with Largest() as theirs:
        right = operator.matvec(torch.ones(operator.size))
    mine = fw.Objective(model, in_chunks, [tokens], mode="train")
    mine.preflight()
    with Largest() as ours:
        product = mine.differentiated_twice([torch.ones_like(p) for p in mine.weights])
    apart = float((torch.cat([h.reshape(-1) for h in product]) - right).norm() / right.norm())
    return (
        f"{theirs.size:,} numbers",
        f"{ours.size:,} numbers in chunks of 32 tokens; the products agree to {apart:.0e}",
    )


# --- 22, 23: layers ---------------------------------------------------------------------------------------------------


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention, self.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 4, 6)
        x = torch.nn.functional.scaled_dot_product_attention(x, x, x) + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.net[1:], self.net[0](x), use_reentrant=False)


class Partial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.unused = network(), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def with_norm() -> nn.Module:
    return network(norm=True)


SEQUENCES = [(torch.randn(8, 24, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3)]
rows(22, "a product through attention", Attending, SEQUENCES)
rows(
    23,
    "a product through BatchNorm in training mode (PyHessian goes to evaluation mode)",
    with_norm,
    batches(1),
    {name: PEERS[name] for name in ("curvlinops-for-pytorch", "PyHessian")},
)
rows(
    23,
    "a product through activation checkpointing",
    Checkpointed,
    batches(1),
    {"curvlinops-for-pytorch": curvlinops_product},
)
rows(25, "a product where a layer is not used", Partial, batches(1))
inputs, targets = batches(1, size=32)[0]
UNEQUAL = list(zip(inputs.split([30, 2]), targets.split([30, 2])))
rows(25, "a product over batches of 30 and of 2 samples", network, UNEQUAL)


@check(23, "hessian-eigenthings", "BatchNorm's statistics after one product in training mode")
def statistics() -> tuple[str, str]:
    def moved(product: Any) -> str:
        model = with_norm()
        before = copy.deepcopy(model.state_dict())
        product(model, batches(1))
        same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        return "as they were" if same else "moved on"

    return moved(eigenthings_product), moved(flatwise_product)


@check(23, "PyHessian", "the model's mode after a measurement")
def mode() -> tuple[str, str]:
    def after(product: Any) -> str:
        model = network().train()
        product(model, batches(1))
        return f"training is {model.training}"

    return after(pyhessian_product), after(flatwise_product)


# --- 25: numbers ------------------------------------------------------------------------------------------------------


def known_spectrum() -> tuple[nn.Module, Data, list[float]]:
    """A trained network, whose largest eigenvalues stand out; the three largest, from its whole Hessian in float64."""
    model, data = network(), batches(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for _ in range(200):
        for batch in data:
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    optimizer.zero_grad()
    wide = copy.deepcopy(model).double()
    operator = fw.curvature.hessian(fw.Objective(wide, loss_of, [(x.double(), y) for x, y in data]), engine="double")
    columns = torch.eye(operator.size, dtype=torch.float64)
    shapes = [t.shape for t in operator.like]
    cut = lambda c: [part.view(s) for part, s in zip(c.split([s.numel() for s in shapes]), shapes)]
    matrix = torch.stack([torch.cat([h.reshape(-1) for h in operator(cut(c))]) for c in columns])
    return model, data, torch.linalg.eigvalsh(matrix).flip(0)[:3].tolist()


def ours_at(model: nn.Module, data: Data, k: int) -> str:
    pairs = fw.curvature.top_eigenpairs(flatwise(model, data), k=k)
    return f"{listed(pairs.values)}, residuals {listed(pairs.residuals)}"


def listed(values: Any) -> str:
    return ", ".join(f"{float(v):.4g}" for v in values)


@check(25, "hessian-eigenthings", "the largest eigenvalue by its Lanczos method at its defaults, no residual asked for")
def default_accuracy() -> tuple[str, str]:
    from hessian_eigenthings import HessianOperator, lanczos

    model, data, right = known_spectrum()
    torch.manual_seed(0)
    found = lanczos(HessianOperator(model, data, loss_of), k=1)
    return f"{listed(found.eigenvalues)}; exact {right[0]:.4g}", f"{ours_at(model, data, 1)}; exact {right[0]:.4g}"


@check(25, "PyHessian", "the three largest eigenvalues at its defaults")
def deflation() -> tuple[str, str]:
    from pyhessian import hessian

    model, data, right = known_spectrum()
    torch.manual_seed(0)
    values, _ = hessian(copy.deepcopy(model), CRITERION, dataloader=data, cuda=False).eigenvalues(top_n=3)
    return f"{listed(values)}; exact {listed(right)}", f"{ours_at(model, data, 3)}; exact {listed(right)}"


@check(25, "PyHessian", "its spectral density (0.1 is the newest release on PyPI)")
def density() -> tuple[str, str]:
    from pyhessian import hessian

    theirs = outcome(lambda: hessian(network(), CRITERION, data=batches(1)[0], cuda=False).density(iter=10))
    spectrum = torch.tensor([0.0] * 30 + [1.0] * 20 + [5.0] * 10, dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    found = spectral_density(from_matrix(basis @ torch.diag(spectrum) @ basis.T), probes=16, steps=8)
    shares = [found.below(b).value - found.below(a).value for a, b in ((-1, 0.5), (0.5, 2), (2, 6))]
    return theirs, f"shares {listed(shares)} for 1/2, 1/3, 1/6 of a known spectrum"
