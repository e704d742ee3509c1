"""Problem 14: the learning-rate scheduler sees other groups than the base optimizer.

davda54/sam #28; composer PR #3259; pytorch_optimizer 3.9's GSAM ("KeyError: 'lr'", as sam-pytorch has it today); accelerate
#3394 and #4142, where frameworks swap parameters. And the warning "Detected call of lr_scheduler.step() before
optimizer.step()", which is false for a two-step SAM. (In these tests every warning is an error.)
"""

import copy
import pickle

import torch
from users.plain import batches, flat, loss_of, momentum_sgd, network, sam_by_hand

import flatwise as fw


def prepared():
    model = network()
    return model, fw.SharpnessAware(momentum_sgd(model.parameters()), fw.methods.SAM(0.1), model=model)


def step(model, optimizer, batch):
    for p in optimizer.passes():
        p.backward(loss_of(model, batch))
    optimizer.step()


def assert_shared(optimizer):
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.state is optimizer.base.state
    optimizer.param_groups[0]["lr"] = 0.123
    assert optimizer.base.param_groups[0]["lr"] == 0.123


def test_a_scheduler_on_the_wrapper_sets_the_learning_rate_of_the_base():
    model, optimizer = prepared()
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=10)
    reference = network()
    base = momentum_sgd(reference.parameters())
    expected = torch.optim.lr_scheduler.OneCycleLR(base, max_lr=0.3, total_steps=10)
    for batch in batches(10):
        step(model, optimizer, batch)
        sam_by_hand(reference, base, lambda batch=batch: loss_of(reference, batch), 0.1)
        assert scheduler.get_last_lr() == expected.get_last_lr()
        scheduler.step()
        expected.step()
    torch.testing.assert_close(flat(model), flat(reference))


def test_a_step_after_passes_counts_as_a_step_for_the_scheduler():
    """No warning that the scheduler was stepped first, and none that it was not."""
    model, optimizer = prepared()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    for batch in batches(2):
        step(model, optimizer, batch)
        scheduler.step()


def test_the_groups_are_the_same_objects_after_whatever_happens_to_an_optimizer():
    model, optimizer = prepared()
    assert_shared(optimizer)
    step(model, optimizer, batches(1)[0])
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_shared(optimizer)
    assert_shared(copy.deepcopy(optimizer))
    assert_shared(pickle.loads(pickle.dumps(optimizer)))
    optimizer.param_groups = [dict(group) for group in optimizer.param_groups]
    assert_shared(optimizer)


def test_parameters_that_a_framework_swaps_in_the_groups_are_trained():
    """As Accelerate does under FSDP2: the same list and dictionaries, other parameters in them."""
    model, optimizer = prepared()
    step(model, optimizer, batches(1)[0])
    other = network()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    optimizer.param_groups[0]["params"] = list(other.parameters())
    optimizer.model = other
    before, unused = flat(other), flat(model)
    step(other, optimizer, batches(1)[0])
    reference = network()
    with torch.no_grad():
        for p in reference.parameters():
            p.mul_(0.5)
    sam_by_hand(reference, momentum_sgd(reference.parameters()), lambda: loss_of(reference, batches(1)[0]), 0.1)
    assert not torch.equal(flat(other), before)
    torch.testing.assert_close(flat(other), flat(reference))
    assert torch.equal(flat(model), unused)
