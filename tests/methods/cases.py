"""The methods under test. A new method joins the tests of all methods and the matrix of seams by being listed in EVERY.

Hyper-parameters are larger than the papers' defaults, so that on small networks a mistake shows. CASES are those few that stand
for the others in the many tests of the optimizer itself.
"""

from dataclasses import dataclass

import pytest
import torch
from reference import transcriptions

from flatwise import methods
from flatwise import vectors as V

RHO = 0.1


@dataclass(frozen=True)
class Case:
    name: str
    method: object
    transcription: object = None  # direction(loss, params), where the paper's rule needs no memory
    single_tolerance: float = 2e-5  # after 50 steps in float32
    double_tolerance: float = 1e-10  # after 50 steps in float64
    selects: bool = False  # goes on with part of the samples: a loop shows their losses, and no closure can
    unclaimed: int = 0  # evaluations a step beyond what the method's cost says

    def with_rho(self, rho):
        return self.method.with_rho(rho)

    @property
    def needs_momentum(self):
        """Whether it is refused around a base optimizer without."""
        return "momentum" in self.method.needs


def fixed_space(known, weights):
    """Orthonormal vectors that take no look at the loss: the means over the tensors at even places, and at odd ones."""
    return [V.unit([_filled(w, i % len(known) == j) for i, w in enumerate(weights)]) for j, _ in enumerate(known)]


def _filled(w, on):
    return None if w is None else torch.full_like(w, float(on), requires_grad=False)


CASES = [
    Case("sgd", methods.SGD(), transcriptions.sgd),
    Case("sam", methods.SAM(rho=RHO), lambda loss, params: transcriptions.sam(loss, params, RHO)),
    Case("eigen-sam", methods.EigenSAM(rho=RHO, alpha=0.5, every=3, iterations=2)),
    Case(
        "reverse-sam", methods.ReverseSAM(rho=RHO), lambda loss, params: transcriptions.reverse_sam(loss, params, RHO)
    ),
    Case(
        "gradient-norm",
        methods.GradientNorm(rho=RHO),
        lambda loss, params: transcriptions.gradient_norm(loss, params, RHO),
        single_tolerance=2e-3,  # the Hessian-vector product is a difference of gradients
        double_tolerance=1e-6,
    ),
]

EVERY = [
    *CASES,
    Case("usam", methods.USAM(rho=RHO), lambda loss, params: transcriptions.usam(loss, params, RHO)),
    Case(
        "asam", methods.ASAM(rho=1.0, scaled="all"), lambda loss, params: transcriptions.asam(loss, params, 1.0, 0.01)
    ),
    Case("eigenvalue-penalty", methods.EigenvaluePenalty(rho=RHO, every=3, iterations=2)),
    Case("tsam", methods.TSAM(rho=RHO, radius=2.0, tilt=5.0, samples=2)),
    Case("ssam", methods.Stable(methods.SAM(rho=RHO))),
    Case("trace-sam", methods.TraceSAM(rho=RHO, strength=0.7, samples=2)),
    Case("det-sam", methods.DetSAM(rho=RHO, half_width=0.1, samples=2)),
    Case("frob-sam", methods.FrobSAM(rho=RHO, strength=0.5)),
    Case("nso", methods.NSO(rho=RHO, samples=2, clean=0.3)),
    Case("x-sam", methods.XSAM(rho=RHO, alpha=0.5, every=3, iterations=2)),
    Case("gsam", methods.GSAM(rho=RHO)),
    Case("wsam", methods.WSAM(rho=RHO, gamma=0.7)),
    Case("friendly-sam", methods.FriendlySAM(rho=RHO)),
    Case("looksam", methods.LookSAM(rho=RHO, every=3)),
    Case("momentum-sam", methods.MomentumSAM(rho=RHO)),
    Case("ae-sam", methods.AESAM(rho=RHO, steps=20)),
    Case("esam", methods.ESAM(rho=RHO)),
    Case("late-sam", methods.Late(methods.SAM(rho=RHO), start=3)),
    Case("interval-sam", methods.Interval(methods.SAM(rho=RHO), every=3)),
    Case("dom-sgd", methods.Dominant(methods.SGD(), k=2, every=2, subspace=fixed_space)),
    Case("bulk-sgd", methods.Bulk(methods.SGD(), k=2, every=2, subspace=fixed_space)),
    Case("prgd", methods.PRGD(every=4)),
]

# The same with other settings, which take other ways through the optimizer.
VARIANTS = [
    Case("sam, two ascents", methods.SAM(rho=RHO, ascents=2)),
    Case("asam, weights alone", methods.ASAM(rho=1.0)),
    Case("eigen-sam, power", methods.EigenSAM(rho=RHO, alpha=0.5, every=3, iterations=2, source="power")),
    Case("eigen-sam, lanczos", methods.EigenSAM(rho=RHO, alpha=0.5, every=3, iterations=2, source="lanczos")),
    Case("eigen-sam, free", methods.EigenSAM(rho=RHO, alpha=0.5, source="free")),
    Case("eigen-sam, function", methods.EigenSAM(rho=RHO, alpha=0.5, every=3, source=fixed_space)),
    Case("esam, half the samples", methods.ESAM(rho=RHO, gamma=0.5), selects=True),
    # The gradient at the weights, which TSAM does not ask for.
    Case("ssam around tsam", methods.Stable(methods.TSAM(rho=RHO, radius=2.0, samples=2)), unclaimed=1),
    Case("late eigen-sam", methods.Late(methods.EigenSAM(rho=RHO, alpha=0.5, every=3, iterations=2), start=2, stop=5)),
    Case("dom-sgd around sam", methods.Dominant(methods.SAM(rho=RHO), k=2, every=2, subspace=fixed_space)),
]

DISPLACING = [case for case in CASES if hasattr(case.method, "rho")]
TRANSCRIBED = [case for case in CASES if case.transcription]


def parametrized(cases):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


every_method = parametrized(CASES)
every_listed_method = parametrized(EVERY)
every_way = parametrized([*EVERY, *VARIANTS])
every_displacing_way = parametrized([case for case in [*EVERY, *VARIANTS] if hasattr(case.method, "rho")])
every_listed_displacing_method = parametrized([case for case in EVERY if hasattr(case.method, "rho")])
every_displacing_method = parametrized(DISPLACING)
every_transcribed_method = parametrized(TRANSCRIBED)
