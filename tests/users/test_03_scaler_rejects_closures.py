"""Problem 3: "Closure use is not currently supported if GradScaler is enabled".

davda54/sam #79, #11, #7; nblt/F-SAM #2; the sentence is torch's own. Passing the closure by position slips through (as
Accelerate does), and then nobody unscales: with pytorch_optimizer 4.1 the update is 65,536 times too large.
"""

import pytest
import torch
from users.plain import batches, flat, loss_of, momentum_sgd, network

import flatwise as fw


def prepared():
    model = network()
    return model, fw.SharpnessAware(momentum_sgd(model.parameters()), fw.methods.SAM(rho=0.1), model=model)


def step_with(scaler, model, optimizer, batch):
    for p in optimizer.passes(scaler):
        with torch.autocast("cpu", torch.float16):
            loss = loss_of(model, batch)
        p.backward(loss)
    scaler.step(optimizer)
    scaler.update()


def test_both_gradients_are_unscaled_with_the_same_scale():
    """In float32 a scale that is a power of two changes no bit, so any mistake with it shows."""
    model, optimizer = prepared()
    unscaled, other = prepared()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for batch in batches(10):
        for p in optimizer.passes(scaler):
            p.backward(loss_of(model, batch))
        scaler.step(optimizer)
        scaler.update()
        for p in other.passes():
            p.backward(loss_of(unscaled, batch))
        other.step()
    assert torch.equal(flat(model), flat(unscaled))


def test_float16_autocast_trains_as_float32_does_up_to_rounding():
    model, optimizer = prepared()
    exact, other = prepared()
    scaler = torch.amp.GradScaler("cpu")
    for batch in batches(10):
        step_with(scaler, model, optimizer, batch)
        for p in other.passes():
            p.backward(loss_of(exact, batch))
        other.step()
    torch.testing.assert_close(flat(model), flat(exact), rtol=0, atol=5e-3)


def test_the_scaler_is_updated_once_a_step():
    model, optimizer = prepared()
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1)
    for batch in batches(4):
        step_with(scaler, model, optimizer, batch)
    assert scaler.get_scale() == 64 * 2**4


@pytest.mark.parametrize("by", ["position", "name"])
def test_a_closure_through_a_raw_scaler_is_refused(by):
    model, optimizer = prepared()
    scaler = torch.amp.GradScaler("cpu")
    before = flat(model)

    def closure():
        loss = loss_of(model, batches(1)[0])
        scaler.scale(loss).backward()
        return loss

    closure()  # the gradient that the peers want before the step
    if by == "position":
        with pytest.raises(RuntimeError, match=r"optimizer\.passes\(scaler\)"):
            scaler.step(optimizer, closure)
    else:  # torch itself is first
        with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
            scaler.step(optimizer, closure=closure)
    assert torch.equal(flat(model), before)
