"""Problem 1: "SAM requires closure, but it was not provided".

davda54/sam #66, kozistr/pytorch_optimizer #64; in romilbert/samformer #14 users delete the assertion. The peers name the
missing argument and leave it at that. Here the error shows the loops, ready to paste, and there is a helper for those who
would rather not write a closure.
"""

import textwrap
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from users.plain import batches, flat, loss_of, momentum_sgd, network, sam_by_hand

import flatwise as fw


def prepared():
    model = network()
    return model, fw.SharpnessAware(momentum_sgd(model.parameters()), fw.methods.SAM(rho=0.1), model=model)


def loops_in_the_error():
    """What the error shows to somebody who called `loss.backward(); optimizer.step()`, as pieces of code."""
    model, optimizer = prepared()
    loss_of(model, batches(1)[0]).backward()
    with pytest.raises(RuntimeError, match="more than once a step") as caught:
        optimizer.step()
    shown = str(caught.value).split(":\n\n", 1)[1]
    return [textwrap.dedent(piece) for piece in shown.split("\n\n")[:3]]


def test_the_error_shows_the_closure_the_loop_and_the_helper():
    closure, loop, helper = loops_in_the_error()
    assert "def closure():" in closure
    assert "optimizer.passes()" in loop
    assert "fw.two_pass" in helper


@pytest.mark.parametrize("which", range(3))
def test_each_piece_of_code_in_the_error_takes_a_step_of_sam(which):
    code = loops_in_the_error()[which]
    (inputs, targets) = batches(1)[0]
    model, optimizer = prepared()
    exec(code, {"fw": fw, "model": model, "optimizer": optimizer, "loss_fn": F.cross_entropy} | locals())
    reference = network()
    sam_by_hand(reference, momentum_sgd(reference.parameters()), lambda: loss_of(reference, (inputs, targets)), 0.1)
    torch.testing.assert_close(flat(model), flat(reference))


def test_two_pass_trains_without_a_closure():
    model, optimizer = prepared()
    reference = network()
    base = momentum_sgd(reference.parameters())
    train_step = fw.two_pass(optimizer, model, F.cross_entropy)
    for inputs, targets in batches(20):
        loss = train_step(inputs, targets)
        whole = partial(loss_of, reference, (inputs, targets))
        expected = sam_by_hand(reference, base, whole, 0.1)
        torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(flat(model), flat(reference))
