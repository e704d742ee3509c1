"""Two gloo processes, started once: the Trainer and Accelerate under DistributedDataParallel and FSDP2 equal one process."""

import pytest
import torch
from frameworks import ranks
from frameworks.language import language_model, loss_of, plain_loop, sequences
from frameworks.ranks import METHODS, REFUSED_ON_TWO, STEPS, share
from optim.problems import batches, flat, mlp, norm_net, seeded
from optim.problems import loss_of as class_loss
from reference import transcriptions

import flatwise as fw


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What both ranks found, by scenario."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(ranks.run, args=(str(folder),), nprocs=2)
    found = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    return {name: (found[0][name], found[1][name]) for name in found[0]}


def in_turn(data, each):
    """The samples of each step: the trainer deals micro-batches of 2 to the ranks in turn."""
    return [data[i : i + each] for i in range(0, len(data), each)]


def test_a_trainer_on_two_processes_equals_a_plain_loop_on_one(results):
    """With accumulation, and unequal numbers of predictions on the ranks."""
    model, records = plain_loop(METHODS["sam"], in_turn(sequences(8 * STEPS), 8))
    for rank in results["trainer"]:
        torch.testing.assert_close(rank["weights"], flat(model.parameters()), rtol=0, atol=1e-6)
        assert rank["loss"] == pytest.approx([loss for loss, *_ in records], rel=1e-5)
        assert rank["model"] == "DistributedDataParallel"
    assert torch.equal(results["trainer"][0]["weights"], results["trainer"][1]["weights"])


def test_a_trainer_whose_ranks_are_displaced_apart(results):
    """Each along its own gradient; the directions averaged, weighted by the numbers of predictions as the trainer does."""
    model = language_model()
    params = list(model.parameters())
    base = torch.optim.SGD(params, lr=0.1)
    for i, samples in enumerate(in_turn(sequences(4 * STEPS), 4)):
        count = lambda some: sum(int(s["labels"][1:].ne(-100).sum()) for s in some)
        directions = [
            [
                t * count(own) / count(samples)
                for t in transcriptions.sam(lambda own=own: loss_of(model, own), params, 0.1)
            ]
            for own in (samples[:2], samples[2:])
        ]
        for p, one, other in zip(params, *directions):
            p.grad = one + other
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        base.param_groups[0]["lr"] = 0.1 * (1 - i / STEPS)
        base.step()
    for rank in results["trainer, apart"]:
        torch.testing.assert_close(rank["weights"], flat(params), rtol=0, atol=1e-6)


def test_a_loss_that_is_not_finite_on_one_rank_skips_the_trainers_step_on_both(results):
    one, other = results["trainer, poisoned"]
    assert one["skipped"] == other["skipped"] == 1
    assert torch.isfinite(one["weights"]).all()
    assert torch.equal(one["weights"], other["weights"])


def alone(method):
    model = seeded(mlp)
    optimizer = fw.SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), method, model=model)
    for batch in batches(STEPS):
        for p in optimizer.passes():
            p.backward(class_loss(model, batch))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return flat(model.parameters())


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", METHODS)
def test_accelerate_on_two_processes_equals_one(results, kind, name):
    """With a micro-batch under no_sync in each pass, and clipping."""
    one, other = results[f"{kind} {name}"]
    assert torch.equal(one, other)
    torch.testing.assert_close(one, alone(METHODS[name]), rtol=0, atol=1e-6)


def test_the_optimizer_may_be_prepared_before_the_model(results):
    assert torch.equal(results["ddp, optimizer first"][0], results["ddp sam"][0])


def test_accelerate_with_ranks_displaced_apart(results):
    model = seeded(norm_net)
    params = list(model.parameters())
    pieces = [share(batches(1)[0], rank) for rank in range(2)]
    found = [transcriptions.sam(lambda piece=piece: class_loss(model, piece), params, 0.1) for piece in pieces]
    expected = torch.cat([(p - 0.1 * (one + other) / 2).reshape(-1) for p, one, other in zip(params, *found)])
    for weights in results["local"]:
        torch.testing.assert_close(weights, expected.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", REFUSED_ON_TWO)
def test_a_bad_use_of_two_processes_is_refused(results, name):
    """Among them unequal weights under FSDP2, where the first micro-batch's gradient is out of sight until it is averaged."""
    for text in results[name]:
        assert REFUSED_ON_TWO[name] in text
