"""Problem 4: what to do when the first pass overflows.

juntang-zhuang/GSAM #2 and its unmerged #3. In davda54/sam and pytorch_optimizer 4.1 a NaN in the first gradient makes all
weights NaN, since every weight is displaced along `g / |g|`.
"""

import copy

import pytest
import torch
from users.plain import batches, flat, loss_of, momentum_sgd, network

import flatwise as fw

BAD = 3


@pytest.mark.parametrize("bad_pass", [0, 1])
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaler"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(scaled, bad_pass):
    model = network(norm=True)
    optimizer = fw.SharpnessAware(momentum_sgd(model.parameters()), fw.methods.SAM(rho=0.1), model=model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
    for number, batch in enumerate(batches(6)):
        before, momentum = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.base.state_dict())
        for i, p in enumerate(optimizer.passes(scaler)):
            overflow = torch.inf if (number, i) == (BAD, bad_pass) else 1.0
            p.backward(loss_of(model, batch) * overflow)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        if number == BAD:
            assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
            torch.testing.assert_close(optimizer.base.state_dict(), momentum, rtol=0, atol=0)
            assert scaler is None or scaler.get_scale() == 512  # backed off, once
        else:
            assert not torch.equal(model.state_dict()["0.weight"], before["0.weight"])
    assert torch.isfinite(flat(model)).all()
    assert optimizer.diagnostics["skipped"] == 1
