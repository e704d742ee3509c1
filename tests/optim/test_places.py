"""Where the requests of a method lead: `along`, `offset` and `displaced`, with groups that have a rho of their own."""

from dataclasses import dataclass

import pytest
import torch
from methods.cases import RHO
from optim.problems import batches, build, flat, loss_of, weights

from flatwise import vectors as V
from flatwise.methods import At, Dialogue

MAKES = {"along": At.along, "offset": At.offset, "displaced": At.displaced}


@dataclass(frozen=True)
class Asking(Dialogue):
    """Asks for one place: a length times the weights themselves, without some of them."""

    how: str
    length: float
    absent: tuple[int, ...] = ()
    rho: float = RHO

    def passes(self, state):
        vector = V.restrict(V.clone(state.weights), [i not in self.absent for i in range(len(state.weights))])
        there = yield MAKES[self.how](vector, self.length)
        return there.release()


def asked(how, length, ratios=(1.0, 1.0), absent=()):
    """For each parameter its weights, and how far it was displaced; the norm that the diagnostics tell."""
    groups = lambda model: [
        {"params": model[place].parameters(), "rho": ratio * RHO} for place, ratio in zip((0, 2), ratios)
    ]
    run = build(Asking(how, length, absent), dtype=torch.float64, groups=groups)
    (batch,) = batches(1, dtype=torch.float64)
    start = weights(run)
    for p in run.opt.passes():
        moved = [now - before for now, before in zip(weights(run), start)]
        p.backward(loss_of(run.model, batch))
    assert torch.equal(flat(run.params), flat(start))
    return start, moved, run.opt.diagnostics["displacement_norm"]


@pytest.mark.parametrize("ratios", [(1.0, 1.0), (1.0, 3.0), (0.5, 0.0), (0.0, 2.0)])
@pytest.mark.parametrize("length", [0.25, -0.25])
def test_an_offset_is_the_vector_itself_in_proportion_to_each_groups_rho(length, ratios):
    start, moved, norm = asked("offset", length, ratios)
    expected = [length * ratios[i // 2] * w for i, w in enumerate(start)]
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-15)
    assert abs(norm) == pytest.approx(float(flat(expected).norm()))


@pytest.mark.parametrize("ratios", [(1.0, 1.0), (1.0, 3.0), (0.0, 2.0)])
def test_along_takes_the_norm_over_what_is_displaced_before_the_groups_rho(ratios):
    start, moved, _ = asked("along", 0.25, ratios)
    norm = flat([w for i, w in enumerate(start) if ratios[i // 2]]).norm()
    torch.testing.assert_close(
        moved, [0.25 * ratios[i // 2] * w / norm for i, w in enumerate(start)], rtol=0, atol=1e-15
    )


@pytest.mark.parametrize("ratios", [(1.0, 1.0), (1.0, 3.0), (0.0, 2.0)])
def test_displaced_does_not_ask_for_groups(ratios):
    start, moved, _ = asked("displaced", 0.25, ratios)
    torch.testing.assert_close(moved, [0.25 * w for w in start], rtol=0, atol=1e-15)


@pytest.mark.parametrize("how", MAKES)
def test_where_the_vector_has_none_nothing_moves(how):
    _, moved, norm = asked(how, 0.25, absent=(1, 2))
    assert not any(moved[i].any() for i in (1, 2))
    assert all(moved[i].any() for i in (0, 3))
    assert norm == pytest.approx(float(flat(moved).norm()))
