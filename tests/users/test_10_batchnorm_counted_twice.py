"""Problem 10: BatchNorm statistics are counted twice.

davda54/sam #17; with the recipe of its README (momentum 0 in the second pass) runs diverge in #30 and #40; bayesian-sam #2.
pytorch_optimizer 4.1 and sam-pytorch advance the statistics in both passes unless the script prevents it.
"""

import torch
from users.plain import batches, loss_of, momentum_sgd, network

import flatwise as fw


def prepared(method):
    model = network(norm=True)
    return model, fw.SharpnessAware(momentum_sgd(model.parameters()), method, model=model)


def step(model, optimizer, batch):
    for p in optimizer.passes():
        p.backward(loss_of(model, batch))
    optimizer.step()


def test_statistics_advance_as_in_one_forward_at_the_weights():
    """Method by method, also where some passes only measure."""
    for method in (
        fw.methods.SGD(),
        fw.methods.SAM(0.1),
        fw.methods.EigenSAM(0.1, every=2),
        fw.methods.ReverseSAM(0.1),
    ):
        model, optimizer = prepared(method)
        for number, batch in enumerate(batches(5), start=1):
            plain, _ = prepared(method)
            plain.load_state_dict(model.state_dict())
            plain(batch[0])
            step(model, optimizer, batch)
            assert model[1].num_batches_tracked == number
            for name, buffer in plain.named_buffers():
                assert torch.equal(model.get_buffer(name), buffer), name


def test_it_is_on_by_default_and_the_momentum_is_never_touched():
    model, optimizer = prepared(fw.methods.SAM(0.1))
    seen = []
    for p in optimizer.passes():
        seen.append((model[1].momentum, model[1].training))
        p.backward(loss_of(model, batches(1)[0]))
    assert seen == [(0.1, True)] * 2


def test_an_exception_in_the_second_pass_leaves_no_statistics_behind():
    model, optimizer = prepared(fw.methods.SAM(0.1))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        for p in optimizer.passes():
            loss = loss_of(model, batches(1)[0])
            if not p.at_weights:
                raise KeyError
            p.backward(loss)
    except KeyError:
        pass
    assert all(torch.equal(model.get_buffer(name), buffer) for name, buffer in before.items())
