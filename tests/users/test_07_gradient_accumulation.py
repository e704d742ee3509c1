"""Problem 7: SAM with gradient accumulation.

davda54/sam #62 ("impossible") and #3; nblt/F-SAM #3; Lightning #17650. A trainer that accumulates calls the optimizer at the
last micro-batch only: the closure then runs that one alone, and its gradient is added to what the others left.
"""

import pytest
import torch
from users.plain import batches, flat, loss_of, momentum_sgd, network, sam_by_hand

import flatwise as fw

SIZES = [7, 5, 4]  # of the micro-batches; unequal, as the last one of an epoch often is


def prepared():
    model = network(dtype=torch.float64)
    return model, fw.SharpnessAware(momentum_sgd(model.parameters()), fw.methods.SAM(rho=0.1), model=model)


def whole_batches(data):
    """SAM by hand on the batches in one piece."""
    model = network(dtype=torch.float64)
    base = momentum_sgd(model.parameters())
    for batch in data:
        sam_by_hand(model, base, lambda batch=batch: loss_of(model, batch), 0.1)
    return flat(model)


def pieces(batch, sizes=SIZES):
    return list(zip(*(tensor.split(sizes) for tensor in batch)))


def test_several_backward_calls_in_each_pass_are_one_batch():
    model, optimizer = prepared()
    data = batches(10, dtype=torch.float64)
    for batch in data:
        for p in optimizer.passes():
            for piece in pieces(batch):
                p.backward(loss_of(model, piece), weight=len(piece[0]))
        optimizer.step()
    torch.testing.assert_close(flat(model), whole_batches(data))


def test_a_list_of_closures_is_one_batch():
    """One closure a micro-batch; they may zero gradients, and each pass runs all of them."""
    model, optimizer = prepared()
    data = batches(10, dtype=torch.float64)

    def closure_of(piece):
        def closure():
            optimizer.zero_grad()
            loss = loss_of(model, piece)
            loss.backward()
            return loss

        return closure

    for batch in data:
        loss = optimizer.step([closure_of(piece) for piece in pieces(batch, [8, 8])])
    torch.testing.assert_close(flat(model), whole_batches(data))
    assert loss.ndim == 0


def test_a_framework_that_runs_backward_itself_records_each_micro_batch():
    model, optimizer = prepared()
    data = batches(10, dtype=torch.float64)
    for batch in data:
        for p in optimizer.passes():
            for piece in pieces(batch):
                loss = loss_of(model, piece)
                loss.backward()  # accelerator.backward(loss), fabric.backward(loss), self.manual_backward(loss)
                p.record(loss, weight=len(piece[0]))
        optimizer.step()
    torch.testing.assert_close(flat(model), whole_batches(data))


def test_two_pass_cuts_the_batch_itself():
    model, optimizer = prepared()
    data = batches(10, dtype=torch.float64)
    train_step = fw.two_pass(optimizer, model, torch.nn.functional.cross_entropy, micro_batches=3)
    for inputs, targets in data:
        train_step(inputs, targets)
    torch.testing.assert_close(flat(model), whole_batches(data))


def test_two_pass_on_two_processes(two_processes):
    a, b = two_processes["two pass"]
    assert torch.equal(a, b)
    torch.testing.assert_close(a.double(), whole_batches(batches(8, dtype=torch.float64)), rtol=0, atol=1e-5)


def test_unequal_shares_of_two_processes_are_one_batch(two_processes):
    """Also where the ranks have different numbers of samples: the mean is over samples, not over ranks."""
    a, b = two_processes["problem 7"]
    assert torch.equal(a, b)
    torch.testing.assert_close(a.double(), whole_batches(batches(8, dtype=torch.float64)), rtol=0, atol=1e-5)


def test_micro_batches_outside_of_the_step_are_told_with_the_way_out():
    """What `accumulate_grad_batches` amounts to: backward on the first micro-batch, the closure on the last."""
    model, optimizer = prepared()
    first, last = batches(2, dtype=torch.float64)
    loss_of(model, first).backward()

    def closure():
        loss = loss_of(model, last)
        loss.backward()
        return loss

    with pytest.warns(UserWarning, match="To accumulate micro-batches, run all of them in each pass"):
        optimizer.step(closure)
