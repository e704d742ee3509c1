"""Problem 6: timm turned SAM down, since implementations lack AMP or need "ugly hacks".

huggingface/pytorch-image-models #1366. What a training script of that kind has, at once: precision, accumulation with a last
micro-batch that is smaller, clipping, and data parallelism (two processes) in one loop.
"""

import pytest
import torch
from torch import nn
from users.plain import batches, flat, loss_of, momentum_sgd, network

import flatwise as fw

PRECISIONS = {"float32": (None, 1e-5), "bfloat16": (torch.bfloat16, 3e-2), "float16": (torch.float16, 5e-3)}


def train(precision, sizes, clip, data):
    """The loop of a training script, with every seam a switch."""
    model = network()
    optimizer = fw.SharpnessAware(momentum_sgd(model.parameters()), fw.methods.SAM(rho=0.1), model=model)
    dtype = PRECISIONS[precision][0]
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=dtype is torch.float16)
    for batch in data:
        for p in optimizer.passes(scaler):
            for piece in zip(*(tensor.split(sizes) for tensor in batch)):
                with torch.autocast("cpu", dtype, enabled=dtype is not None):
                    loss = loss_of(model, piece)
                p.backward(loss, weight=len(piece[0]))
        if clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
    return flat(model)


@pytest.mark.parametrize("clip", [None, 0.5], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("sizes", [[16], [8, 8], [6, 6, 4]], ids=["whole", "halves", "unequal"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_combination_trains_as_float32_on_whole_batches(precision, sizes, clip):
    data = batches(8)
    expected = train("float32", [16], clip, data)
    found = train(precision, sizes, clip, data)
    torch.testing.assert_close(found, expected, rtol=0, atol=PRECISIONS[precision][1])
    assert (found - flat(network())).abs().max() > 0.1


def test_all_of_it_on_two_processes_equals_one(two_processes):
    """float16 with a scaler, two unequal micro-batches a rank (the first without synchronisation), clipping."""
    a, b = two_processes["problem 6"]
    assert torch.equal(a, b)
    torch.testing.assert_close(a, train("float32", [16], 0.5, batches(8)), rtol=0, atol=PRECISIONS["float16"][1])
