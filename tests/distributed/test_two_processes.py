"""Two gloo processes, started once: DDP and FSDP2 equal one process, per-rank perturbation, overflow, checkpoints."""

import copy

import pytest
import torch
from distributed import workers
from distributed.workers import (
    METHODS,
    SHORT,
    STEPS,
    data,
    flat,
    loss_of,
    network,
    share,
    step,
    step_by_closure,
    wrapped,
)
from reference import transcriptions

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What both ranks found, by scenario."""
    folder = tmp_path_factory.mktemp("two-processes")
    torch.multiprocessing.spawn(workers.run, args=(str(folder),), nprocs=2)
    found = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    return {name: (found[0][name], found[1][name]) for name in found[0]}


def both(results, name):
    a, b = results[name]
    assert not isinstance(a, str), a
    assert not isinstance(b, str), b
    return a, b


def one_process(method, base="sgd", steps=STEPS):
    model = network()
    opt = wrapped(model, method, base)
    for batch in data(steps):
        step(opt, model, batch)
    return flat(model)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_equal_one(results, kind, name):
    a, b = both(results, f"{kind} {name}")
    assert torch.equal(a, b)
    torch.testing.assert_close(
        a, one_process(METHODS[name], steps=8 if name in SHORT else STEPS), rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ["sam", "eigen-sam"])
def test_two_processes_equal_one_with_adamw(results, kind, name):
    a, b = both(results, f"{kind} adamw {name}")
    assert torch.equal(a, b)
    torch.testing.assert_close(a, one_process(METHODS[name], "adamw"), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["gradient-norm", "eigen-sam"])
def test_gradients_that_are_views_into_buckets(results, name):
    a, b = both(results, f"bucket views {name}")
    assert torch.equal(a, b)
    torch.testing.assert_close(a, one_process(METHODS[name], steps=8), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_closures_equal_passes(results, kind):
    a, _ = both(results, f"{kind} closures")
    assert torch.equal(a, both(results, f"{kind} passes")[0])


@pytest.mark.parametrize("how", ["accumulated", "recorded"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_micro_batches_equal_the_full_batch(results, kind, how):
    """Also where gradients are not synchronised before the last micro-batch."""
    a, b = both(results, f"{kind} {how}")
    assert torch.equal(a, b)
    torch.testing.assert_close(a, one_process(METHODS["sam"], steps=8), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_the_loss_is_the_mean_over_ranks(results, kind):
    a, b = both(results, f"{kind} losses")
    model = network()
    opt = wrapped(model, METHODS["sam"])
    expected = torch.tensor([float(step_by_closure(opt, model, batch)) for batch in data(5)])
    assert torch.equal(a, b)
    torch.testing.assert_close(a, expected, rtol=1e-4, atol=1e-5)


def local_reference(name):
    """The average over ranks of each rank's own dialogue, transcribed."""
    rule = getattr(transcriptions, name.replace("-", "_"))
    model = network()
    params = list(model.parameters())
    base = torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-2)
    for batch in data():
        halves = [
            rule(lambda r=r, batch=batch: loss_of(model, share(batch, r)), params, METHODS[name].rho) for r in range(2)
        ]
        transcriptions.take_step(base, params, [(s + t) / 2 for s, t in zip(*halves)])
    return flat(model)


@pytest.mark.parametrize("name", ["sam", "reverse-sam", "gradient-norm"])
def test_local_perturbation_averages_the_dialogues_of_the_ranks(results, name):
    a, b = both(results, f"local {name}")
    assert torch.equal(a, b)
    tolerance = TOLERANCE if name != "gradient-norm" else 2e-3
    torch.testing.assert_close(a, local_reference(name), rtol=0, atol=tolerance)


def test_local_perturbation_differs_from_the_global_one(results):
    assert (both(results, "local sam")[0] - both(results, "ddp sam")[0]).abs().max() > 100 * TOLERANCE


def test_which_perturbation_happened(results):
    """Local: each rank was displaced along its own gradient. Global: both along the mean."""
    a, b = both(results, "first pass")
    assert not torch.allclose(a["local"], b["local"], atol=1e-3)
    assert torch.equal(a["global"], b["global"])
    assert torch.equal(a["local weights"], b["local weights"])
    model = network()
    params = list(model.parameters())
    for rank, found in enumerate((a, b)):
        g = transcriptions.gradient(lambda rank=rank: loss_of(model, share(data(1)[0], rank)), params)
        expected = torch.cat([0.1 * t.reshape(-1) / transcriptions.norm(g) for t in g])
        torch.testing.assert_close(found["local"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("evaluation", [0, 1])
@pytest.mark.parametrize("kind", ["ddp", "fsdp", "local"])
def test_an_overflow_on_one_rank_skips_the_step_on_all(results, kind, evaluation):
    a, b = both(results, f"{kind} overflow in {evaluation}")
    assert a["unmoved"] == b["unmoved"] == [False, False, True, False, False]
    assert a["skipped"] == b["skipped"] == 1
    assert torch.equal(a["weights"], b["weights"])
    assert torch.isfinite(a["weights"]).all()


@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_distributed_checkpoints_resume_bitwise(results, kind, base):
    for continued, again in both(results, f"{kind} resumed {base}"):
        assert torch.equal(again, continued)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_an_exception_restores_the_weights(results, kind):
    for before, restored, after, expected in both(results, f"{kind} interrupted"):
        assert torch.equal(restored, before)
        assert torch.equal(after, expected)
        assert not torch.equal(after, before)


@pytest.mark.parametrize("scenario", ["fsdp local", "bare local"])
def test_local_perturbation_is_refused_where_it_cannot_be_had(results, scenario):
    for found in results[scenario]:
        assert found is not None
        assert "DistributedDataParallel" in found


def test_one_process_is_the_same_run_twice():
    """Otherwise the comparisons above say nothing."""
    assert torch.equal(one_process(METHODS["eigen-sam"]), one_process(copy.deepcopy(METHODS["eigen-sam"])))
