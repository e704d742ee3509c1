"""Problem 17: "Trying to backward through the graph a second time", "modified by an inplace operation".

davda54/sam #10 and #45; kozistr #66; google-research/sam #17; wandb/senpai #2086. The forward ran once, outside, and its loss is
used in both passes. The peers hand on torch's sentence, which does not name the cause, and leave the weights displaced.
"""

import pytest
import torch
from users.plain import batches, flat, loss_of, momentum_sgd, network

import flatwise as fw

CAUSE = "this loss was computed before the weights moved: every pass needs a forward of its own"


def prepared():
    model = network()
    return model, fw.SharpnessAware(momentum_sgd(model.parameters()), fw.methods.SAM(0.1), model=model)


def both_passes(optimizer, loss, retain=False):
    """The same loss in both; `retain` is what people try when torch suggests it."""
    for p in optimizer.passes():
        if retain and p.at_weights:
            loss.backward(retain_graph=True)
            p.record(loss)
        else:
            p.backward(loss)


@pytest.mark.parametrize("retain", [False, True], ids=["graph freed", "graph kept"])
def test_a_loss_from_before_the_weights_moved_is_named_as_the_cause(retain):
    model, optimizer = prepared()
    before = flat(model)
    loss = loss_of(model, batches(1)[0])
    with pytest.raises(RuntimeError, match=CAUSE):
        both_passes(optimizer, loss, retain)
    assert torch.equal(flat(model), before)


def test_the_same_in_a_closure():
    model, optimizer = prepared()
    before = flat(model)
    loss = loss_of(model, batches(1)[0])

    def closure():
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match=CAUSE):
        optimizer.step(closure)
    assert torch.equal(flat(model), before)


def test_the_next_step_is_as_if_nothing_had_been():
    model, optimizer = prepared()
    untouched, other = prepared()
    loss = loss_of(model, batches(1)[0])
    with pytest.raises(RuntimeError):
        both_passes(optimizer, loss)
    for m, o in ((model, optimizer), (untouched, other)):
        for p in o.passes():
            p.backward(loss_of(m, batches(1)[0]))
        o.step()
    assert torch.equal(flat(model), flat(untouched))
