"""Problem 9: "models didn't learn anything" with sharded parameters.

fairscale #989; composer PR #3259. Under FSDP2 the usual restoration `p.data = old` never reaches the sharded weights, so
training walks uphill; pytorch_optimizer 4.1 raises instead, on the square of a norm that is spread over ranks.
"""

import torch
from users.plain import batches, flat, loss_of, momentum_sgd, network, sam_by_hand
from users.processes import STEPS


def test_fsdp2_on_two_processes_equals_sam_by_hand_on_one(two_processes):
    model = network()
    base = momentum_sgd(model.parameters())
    losses = [
        sam_by_hand(model, base, lambda batch=batch: loss_of(model, batch), 0.1).item() for batch in batches(1) * STEPS
    ]
    a, b = two_processes["problem 9"]
    assert torch.equal(a["weights"], b["weights"])
    torch.testing.assert_close(a["weights"], flat(model), rtol=0, atol=1e-6)
    torch.testing.assert_close(a["losses"], torch.tensor(losses), rtol=0, atol=1e-6)
    assert a["losses"][-1] < 0.9 * a["losses"][0]


def test_after_the_passes_the_shards_are_what_they_were(two_processes):
    for found in two_processes["problem 9"]:
        assert found["restored"]


def test_the_displacement_has_the_norm_rho_over_all_shards(two_processes):
    for found in two_processes["problem 9"]:
        assert abs(found["displacement norm"] - 0.1) < 1e-6
