"""The methods under test. A new method joins every test of the optimizer by being listed here.

Hyper-parameters are larger than the papers' defaults, so that on small networks a mistake shows.
"""

from dataclasses import dataclass, replace

import pytest
from reference import transcriptions

from flatwise import methods

RHO = 0.1


@dataclass(frozen=True)
class Case:
    name: str
    method: object
    transcription: object = None  # direction(loss, params), where the paper's rule needs no memory
    single_tolerance: float = 2e-5  # after 50 steps in float32
    double_tolerance: float = 1e-10  # after 50 steps in float64

    def with_rho(self, rho):
        return replace(self.method, rho=rho)


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

DISPLACING = [case for case in CASES if hasattr(case.method, "rho")]
TRANSCRIBED = [case for case in CASES if case.transcription]


def parametrized(cases):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


every_method = parametrized(CASES)
every_displacing_method = parametrized(DISPLACING)
every_transcribed_method = parametrized(TRANSCRIBED)
