"""Problem 18: which ASAM, and how far does it really move?

davda54/sam #81 (the reference code leaves biases and BatchNorm unscaled, others do not), #22 and #37 (the best rho is 2.0 in one
code and 0.5 in the other), Jeff-Zilence/TransGeo2022 #12 (rho diverges). A flag `adaptive=True` does not say which variant it
is, and nothing prints the length of the displacement: pytorch_optimizer 4.1 moves 0.05 far or several times that for the same
`rho=0.05`, depending on the flag and on the size of the weights. Here a variant is a method with a name, and every step
tells the length it moved.
"""

import pytest
import torch
from users.plain import batches, flat, loss_of, network

import flatwise as fw

METHODS = {
    "SAM": (fw.methods.SAM(rho=0.1), 0.1),
    "ReverseSAM": (fw.methods.ReverseSAM(rho=0.1), 0.1),
    "GradientNorm": (fw.methods.GradientNorm(rho=0.1), None),  # a short difference, of a length of its own choice
    "EigenSAM": (fw.methods.EigenSAM(rho=0.1, alpha=0.5, every=2), None),  # not renormalised: longer than rho
    "ASAM": (fw.methods.ASAM(rho=0.1), None),  # rho is a length in another metric
    "ASAM of davda54": (fw.methods.ASAM(rho=0.1, eta=0.0, scaled="all"), None),
}


def displacements(method, groups=None, steps=4):
    """What the weights moved by in each step's displaced pass, and what the optimizer says it was."""
    model = network()
    optimizer = fw.SharpnessAware(
        torch.optim.SGD(groups(model) if groups else model.parameters(), lr=0.1), method, model=model
    )
    for batch in batches(steps):
        before = flat(model)
        for p in optimizer.passes():
            moved = (flat(model) - before).norm()
            p.backward(loss_of(model, batch))
        optimizer.step()
        yield moved.item(), optimizer.diagnostics["displacement_norm"]


@pytest.mark.parametrize("name", METHODS)
def test_every_step_tells_the_length_of_its_displacement(name):
    method, rho = METHODS[name]
    for moved, told in displacements(method):
        assert told == pytest.approx(moved, rel=1e-3)
        assert rho is None or told == pytest.approx(rho, rel=1e-5)


def test_the_length_of_eigen_sam_is_above_rho_and_told():
    assert all(0.1 < told <= 0.1 * (1 + 0.5**2) ** 0.5 + 1e-6 for _, told in displacements(METHODS["EigenSAM"][0]))


def test_groups_with_a_rho_of_their_own_are_in_the_length():
    groups = lambda model: [
        {"params": list(model[0].parameters()), "rho": 0.4},
        {"params": list(model[2].parameters()), "rho": 0.0},
    ]
    for moved, told in displacements(fw.methods.SAM(rho=0.1), groups):
        assert told == pytest.approx(moved, rel=1e-3)
        assert told == pytest.approx(0.4, rel=1e-3)


def test_a_schedule_of_rho_is_in_the_length():
    model = network()
    optimizer = fw.SharpnessAware(
        torch.optim.SGD(model.parameters(), lr=0.1),
        fw.methods.SAM(rho=0.1),
        model=model,
        rho_schedule=fw.schedules.Linear(1.0, 0.2, steps=4),
    )
    told = []
    for batch in batches(5):
        for p in optimizer.passes():
            p.backward(loss_of(model, batch))
        optimizer.step()
        told.append(optimizer.diagnostics["displacement_norm"])
    assert told == pytest.approx([0.1, 0.08, 0.06, 0.04, 0.02], rel=1e-4)


def test_the_two_variants_of_asam_go_different_ways_and_say_how_far():
    lengths = [next(iter(displacements(METHODS[name][0])))[1] for name in ("SAM", "ASAM", "ASAM of davda54")]
    assert len({round(length, 4) for length in lengths}) == 3


def test_a_flag_that_would_not_say_which_variant_it_is_does_not_exist():
    with pytest.raises(TypeError, match="adaptive"):
        fw.methods.SAM(rho=0.5, adaptive=True)
