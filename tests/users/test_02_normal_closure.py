"""Problem 2: "a normal closure optimizer".

davda54/sam #8; skorch-dev/skorch #785 and #207. A trainer that owns the loop calls `optimizer.step(closure)` and nothing
else, as for `torch.optim.LBFGS`. pytorch_optimizer 4.1 wants a backward before that and does not notice when there was
none: its first step is plain SGD, and later ones ascend along what the batch before left in `.grad`.
"""

import pytest
import torch
from users.plain import batches, flat, loss_of, momentum_sgd, network, sam_by_hand

import flatwise as fw


def closure_of(model, optimizer, batch, calls):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        calls.append(loss.item())
        return loss

    return closure


def test_step_evaluates_the_closure_for_both_gradients_and_returns_the_first_loss():
    model, reference = network(), network()
    optimizer = fw.SharpnessAware(momentum_sgd(model.parameters()), fw.methods.SAM(rho=0.1), model=model)
    base = momentum_sgd(reference.parameters())
    for batch in batches(10):
        calls = []
        loss = optimizer.step(closure_of(model, optimizer, batch, calls))
        expected = sam_by_hand(reference, base, lambda batch=batch: loss_of(reference, batch), 0.1)
        assert len(calls) == 2
        assert loss.item() == calls[0] < calls[1]
        torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(flat(model), flat(reference))


def test_a_gradient_left_by_the_batch_before_is_no_part_of_the_step():
    first, second = batches(2)
    model, clean = network(), network()
    optimizer, other = (
        fw.SharpnessAware(momentum_sgd(m.parameters()), fw.methods.SAM(rho=0.1), model=m) for m in (model, clean)
    )
    loss_of(model, first).backward()
    with pytest.warns(UserWarning, match=r"\.grad holds gradients from a backward outside of it"):
        optimizer.step(closure_of(model, optimizer, second, []))
    other.step(closure_of(clean, other, second, []))
    assert torch.equal(flat(model), flat(clean))


def test_a_closure_without_backward_has_no_gradient_to_ascend_and_says_so():
    model = network()
    optimizer = fw.SharpnessAware(momentum_sgd(model.parameters()), fw.methods.SAM(rho=0.1), model=model)
    before = flat(model)
    with pytest.raises(ValueError, match=r"no parameter received a gradient.*loss\.backward\(\) in the closure"):
        optimizer.step(lambda: loss_of(model, batches(1)[0]))
    assert torch.equal(flat(model), before)
