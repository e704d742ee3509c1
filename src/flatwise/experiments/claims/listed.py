"""The claims by name. A claim listed here joins `flatwise reproduce`, `flatwise list claims` and the tests of all claims."""

from __future__ import annotations

from difflib import get_close_matches

from flatwise.experiments.claims.claim import Claim
from flatwise.experiments.claims.eigen_sam import ALIGNMENT_IS_POOR, TOP_EIGENVALUE
from flatwise.experiments.claims.generalisation import GENERALISATION
from flatwise.experiments.claims.third_order_sde import THIRD_ORDER_SDE

CLAIMS: dict[str, Claim] = {
    claim.name: claim for claim in (ALIGNMENT_IS_POOR, TOP_EIGENVALUE, THIRD_ORDER_SDE, *GENERALISATION)
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
