"""Problem 8: a perturbation per device under DistributedDataParallel (m-sharpness).

davda54/sam #18 asks for it; #78 shows that the README's recipe, `no_sync` around backward alone, does nothing: the forward
must be inside too. The same mistake was mended elsewhere in 2026 (LoongForge PR #163).
"""

import pytest
import torch
from users.plain import batches, loss_of, network

RHO = 0.1


def displacement_of(data):
    """`rho g / |g|` on some data, in one process."""
    model = network()
    gradient = torch.autograd.grad(loss_of(model, data), list(model.parameters()))
    gradient = torch.cat([g.reshape(-1) for g in gradient])
    return RHO * gradient / gradient.norm()


@pytest.mark.parametrize("perturb", ["local", "groups"])
def test_each_rank_or_group_of_ranks_is_displaced_along_its_own_gradient(two_processes, perturb):
    (batch,) = batches(1)
    for rank, found in enumerate(two_processes["problem 8"]):
        share = [tensor.chunk(2)[rank] for tensor in batch]
        torch.testing.assert_close(found[f"{perturb} displacement"], displacement_of(share), rtol=0, atol=1e-6)


def test_global_displaces_all_ranks_along_the_mean_gradient(two_processes):
    (batch,) = batches(1)
    for found in two_processes["problem 8"]:
        torch.testing.assert_close(found["global displacement"], displacement_of(batch), rtol=0, atol=1e-6)


def test_either_way_the_ranks_hold_the_same_weights_afterwards(two_processes):
    a, b = two_processes["problem 8"]
    for name in ("local", "global", "groups"):
        assert torch.equal(a[f"{name} weights"], b[f"{name} weights"])
    torch.testing.assert_close(a["groups weights"], a["local weights"], rtol=0, atol=1e-7)
    assert not torch.allclose(a["local weights"], a["global weights"], rtol=0, atol=1e-5)
