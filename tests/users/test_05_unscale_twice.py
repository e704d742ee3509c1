"""Problem 5: "unscale_() has already been called on this optimizer since the last update()".

Lightning #4427, transformers #23905, Swin-Transformer #311: a two-step SAM meets it too, since each of its gradients has to
be unscaled and torch's scaler keeps one state per optimizer and update. Here the passes unscale on their own, and the
scaler's state is the user's: one `unscale_` for clipping, as in any other loop.
"""

import torch
from torch import nn
from users.plain import batches, flat, loss_of, momentum_sgd, network

import flatwise as fw


def prepared():
    model = network()
    return model, fw.SharpnessAware(momentum_sgd(model.parameters()), fw.methods.SAM(rho=0.1), model=model)


def test_unscale_before_clipping_once_a_step():
    model, optimizer = prepared()
    plain, other = prepared()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for batch in batches(10):
        for p in optimizer.passes(scaler):
            p.backward(loss_of(model, batch))
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        for p in other.passes():
            p.backward(loss_of(plain, batch))
        expected = nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        other.step()
        assert norm > 0.1
        assert torch.equal(norm, expected)
    assert torch.equal(flat(model), flat(plain))


def test_two_optimizers_on_one_scaler_each_unscaled_on_its_own():
    """A network in two halves, SAM on one and plain SGD on the other; clipping for both."""
    model = network()
    optimizer = fw.SharpnessAware(momentum_sgd(model[0].parameters()), fw.methods.SAM(rho=0.1), model=model)
    plain = momentum_sgd(model[2].parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    before = loss_of(model, batches(1)[0]).item()
    for _ in range(20):
        for p in optimizer.passes(scaler):
            plain.zero_grad()
            p.backward(loss_of(model, batches(1)[0]))
        for each in (optimizer, plain):
            scaler.unscale_(each)
            nn.utils.clip_grad_norm_([p for group in each.param_groups for p in group["params"]], 1.0)
            scaler.step(each)
        scaler.update()
    assert loss_of(model, batches(1)[0]).item() < 0.7 * before
