"""Who is asked for the largest eigenvalues, and with which settings. What is not installed is left out."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

import flatwise as fw
from benchmarks.curvature.problems import Problem
from benchmarks.curvature.training import loss_of
from flatwise.vectors import Vector, present

Settings = dict[str, Any]


@dataclass(frozen=True)
class Search:
    """What is asked.

    Attributes:
        k: so many of the largest eigenvalues.
        seed: of random start vectors.
        settings: arguments of the package's own; empty for its defaults.
        start: the eigenvector of some steps earlier, or None for a cold start.
    """

    k: int
    seed: int
    settings: Settings = field(default_factory=dict)
    start: Vector | None = None


@dataclass(frozen=True)
class Found:
    """The answer: eigenvalues, and how many products it took."""

    values: Sequence[float]
    products: int


@dataclass(frozen=True)
class Contender:
    """A package, used in one way.

    Attributes:
        name: as the tables show it.
        package: as pip knows it.
        opened: from a problem, and whether to check that the loss is one function, to what can be used again and again.
        solve: answers a search with that.
        cold: settings for one eigenvalue, cheapest first.
        many: settings for several.
        warm: settings for one eigenvalue from a start vector; empty where the package takes none.
    """

    name: str
    package: str
    opened: Callable[[Problem, bool], Any]
    solve: Callable[[Any, Search], Found]
    cold: list[Settings]
    many: list[Settings]
    warm: list[Settings]

    @property
    def version(self) -> str | None:
        """What is installed; None where nothing is."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None


def scan(name: str, values: Sequence[Any], **fixed: Any) -> list[Settings]:
    """The same settings with one of them at each of these values."""
    return [{name: value, **fixed} for value in values]


TOLERANCES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 3e-3, 1e-3)

# --- flatwise ---------------------------------------------------------------------------------------------------------


def flatwise(engine: Any, **fixed: Any) -> Contender:
    def opened(problem: Problem, check: bool) -> tuple[fw.Objective, bool]:
        objective = fw.Objective(problem.model, loss_of, [problem.batch], mode="eval")
        fw.curvature.hessian(objective, engine=engine, check=check)
        return objective, check

    def solve(handle: tuple[fw.Objective, bool], search: Search) -> Found:
        objective, check = handle
        operator = fw.curvature.hessian(objective, engine=engine, check=check)
        pairs = fw.curvature.top_eigenpairs(operator, search.k, start=search.start, seed=search.seed, **search.settings)
        return Found(pairs.values, pairs.products)

    values: Settings = {"target": "values", **fixed}
    cold = scan("tol", (0.1, 0.05, 0.02, 0.01), **values) + scan("tol", (0.01, 3e-3), **fixed)
    many = scan("tol", (0.02, 0.01, 3e-3, 1e-3, 3e-4, 1e-4), search=0, **values)
    warm = [setting for search in (0, 1, 2, 5) for setting in scan("tol", (0.5, 0.1, 0.01), search=search, **values)]
    return Contender(f'flatwise, engine="{engine}"', "flatwise", opened, solve, cold, many, warm)


# --- PyHessian: power iteration with deflation, the graph of the gradient kept -----------------------------------------


def _pyhessian(problem: Problem, search: Search) -> Found:
    from pyhessian import hessian

    module = sys.modules[hessian.__module__]
    products: list[None] = []

    def counted(*arguments: Any, product: Any = module.hessian_vector_product) -> Any:
        products.append(None)
        return product(*arguments)

    torch.manual_seed(search.seed)
    with patch.object(module, "hessian_vector_product", counted):
        measured = hessian(problem.model, nn.CrossEntropyLoss(), data=problem.batch, cuda=False)
        values, _ = measured.eigenvalues(top_n=search.k, **search.settings)
    problem.model.zero_grad()  # what it leaves behind is a cycle
    return Found(sorted(values, reverse=True), len(products))


PYHESSIAN = Contender(
    "PyHessian",
    "PyHessian",
    lambda problem, check: problem,
    _pyhessian,
    cold=scan("tol", TOLERANCES, maxIter=1000),
    many=scan("tol", (1e-2, 1e-3, 1e-4, 1e-5), maxIter=300),
    warm=[],
)

# --- hessian-eigenthings: differentiated twice anew for each product ---------------------------------------------------


def _eigenthings(problem: Problem, check: bool) -> Any:
    from hessian_eigenthings import HessianOperator

    return HessianOperator(problem.model, [problem.batch], loss_of)


def _lanczos(operator: Any, search: Search) -> Found:
    from hessian_eigenthings import lanczos

    found = lanczos(operator, k=search.k, seed=search.seed, **search.settings)
    return Found(sorted(found.eigenvalues.tolist(), reverse=True), found.iterations)


def _power(operator: Any, search: Search) -> Found:
    from hessian_eigenthings import deflated_power_iteration, power_iteration_one

    if search.start is None:
        found = deflated_power_iteration(operator, k=search.k, seed=search.seed, **search.settings)
        return Found(sorted(found.eigenvalues.tolist(), reverse=True), found.iterations)
    start = torch.cat([t.reshape(-1) for t in present(search.start)])
    value, _, _, products, _ = power_iteration_one(operator, init=start, **search.settings)
    return Found([value], products)


LANCZOS = Contender(
    "hessian-eigenthings, lanczos",
    "hessian-eigenthings",
    _eigenthings,
    _lanczos,
    cold=scan("max_iter", (3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 20, 30), which="LA"),
    many=scan("max_iter", (20, 30, 40, 50, 60, 80, 100, 150, 200), which="LA", reorthogonalize=True),
    warm=[],
)
POWER = Contender(
    "hessian-eigenthings, power iteration",
    "hessian-eigenthings",
    _eigenthings,
    _power,
    cold=scan("tol", TOLERANCES, max_iter=1000),
    many=scan("tol", (1e-1, 3e-2, 1e-2, 1e-3, 1e-4), max_iter=300),
    warm=scan("max_iter", (1, 2, 3, 4, 5, 7, 10, 15, 20, 50)),
)

# --- curvlinops and SciPy ---------------------------------------------------------------------------------------------


def _curvlinops(problem: Problem, check: bool) -> Any:
    from curvlinops import HessianLinearOperator

    return HessianLinearOperator(
        problem.model, nn.CrossEntropyLoss(), problem.parameters, [problem.batch], check_deterministic=check
    ).to_scipy()


def _eigsh(operator: Any, search: Search) -> Found:
    from scipy.sparse.linalg import LinearOperator, eigsh

    products: list[None] = []

    def counted(vector: np.ndarray) -> np.ndarray:
        products.append(None)
        return operator.matvec(vector)

    if search.start is None:
        start = np.random.default_rng(search.seed).standard_normal(operator.shape[0])
    else:
        start = torch.cat([t.reshape(-1) for t in present(search.start)]).double().numpy()
    wrapped = LinearOperator(operator.shape, matvec=counted, dtype=operator.dtype)
    values = eigsh(wrapped, k=search.k, which="LA", v0=start, return_eigenvectors=True, **search.settings)[0]
    return Found(sorted(values.tolist(), reverse=True), len(products))


SMALL = [{"tol": tol, "ncv": ncv} for ncv in (3, 4, 6, 8, 10, 12, 16) for tol in (0.1, 0.01)]
"""eigsh takes as many products as its basis holds vectors before it looks: the smallest basis that does is the cheapest."""

CURVLINOPS = Contender(
    "curvlinops and scipy's eigsh",
    "curvlinops-for-pytorch",
    _curvlinops,
    _eigsh,
    cold=sorted(SMALL, key=lambda settings: settings["ncv"]) + scan("tol", (0.1, 0.01, 1e-3)),
    many=[{"tol": 0.1, "ncv": ncv} for ncv in (20, 25, 30, 40, 50, 60)] + scan("tol", (0.01, 1e-3)),
    warm=SMALL,
)

CONTENDERS = [
    flatwise("auto"),
    flatwise("double"),
    flatwise("one-sided", max_products=40),
    PYHESSIAN,
    LANCZOS,
    POWER,
    CURVLINOPS,
]


def installed() -> list[Contender]:
    """Those that can be run here."""
    missing = {c.package for c in CONTENDERS if c.version is None}
    for package in sorted(missing):
        print(f"{package} is not installed and left out: pip install -r benchmarks/curvature/requirements.txt")
    return [c for c in CONTENDERS if c.version is not None]
