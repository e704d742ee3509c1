"""The claims by name. A claim listed here joins `flatwise reproduce`, `flatwise list claims` and the tests of all claims."""

from __future__ import annotations

from difflib import get_close_matches

from flatwise.experiments.claims.accuracy import EIGEN_SAM_ACCURACY, VIT_FINETUNING
from flatwise.experiments.claims.averages import FLAT_OR_AVERAGED
from flatwise.experiments.claims.base_optimizers import BASE_OPTIMIZERS
from flatwise.experiments.claims.claim import Claim
from flatwise.experiments.claims.eigen_sam import ALIGNMENT_IS_POOR, TOP_EIGENVALUE
from flatwise.experiments.claims.eigen_sam_edge import EIGEN_SAM_EDGE
from flatwise.experiments.claims.free import FREE_EIGENVECTOR
from flatwise.experiments.claims.generalisation import GENERALISATION
from flatwise.experiments.claims.grids import RHO_ALPHA_STUDY
from flatwise.experiments.claims.layerwise import LAYERWISE_JACOBIAN_ALIGNMENT
from flatwise.experiments.claims.margins import MARGIN_BY_RESCALING
from flatwise.experiments.claims.method_edges import METHOD_EDGES
from flatwise.experiments.claims.overhead import OVERHEAD
from flatwise.experiments.claims.pac_bayes import PAC_BAYES
from flatwise.experiments.claims.quality import TIME_TO_QUALITY
from flatwise.experiments.claims.sam_edge import SAM_EDGE
from flatwise.experiments.claims.subspaces import TINY_SUBSPACES
from flatwise.experiments.claims.third_order_sde import THIRD_ORDER_SDE

CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        *SAM_EDGE,
        EIGEN_SAM_EDGE,
        METHOD_EDGES,
        ALIGNMENT_IS_POOR,
        TOP_EIGENVALUE,
        THIRD_ORDER_SDE,
        *GENERALISATION,
        FREE_EIGENVECTOR,
        FLAT_OR_AVERAGED,
        PAC_BAYES,
        LAYERWISE_JACOBIAN_ALIGNMENT,
        MARGIN_BY_RESCALING,
        TINY_SUBSPACES,
        EIGEN_SAM_ACCURACY,
        VIT_FINETUNING,
        OVERHEAD,
        RHO_ALPHA_STUDY,
        BASE_OPTIMIZERS,
        TIME_TO_QUALITY,
    )
}


def claim_by_name(name: str) -> Claim:
    """The claim of that name.

    Raises:
        ValueError: there is none; the nearest is named.
    """
    if name not in CLAIMS:
        near = get_close_matches(name, CLAIMS, n=1, cutoff=0.0)[0]
        raise ValueError(f"no claim is called {name!r}; did you mean {near!r}? There are: {', '.join(CLAIMS)}")
    return CLAIMS[name]
