"""DistributedDataParallel: two processes equal one; one dialogue for all, or one for each rank."""

import pytest
import torch
from distributed import references
from distributed.layouts import FEW, METHODS, STEPS, data, flat, network, share
from distributed.on_ddp import VARIANTS, Forked, with_norm
from optim.problems import BASES, loss_of
from reference import transcriptions

TOLERANCE = 1e-8
LOCAL = [name for name, method in METHODS.items() if not method.adaptive]


def same_on_both(results):
    a, b = results
    assert torch.equal(a, b)
    return a


def assert_close(found, expected, atol=TOLERANCE):
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_equal_one(two, name):
    assert_close(same_on_both(two[f"ddp {name}"]), references.alone(name, STEPS))


def test_two_processes_equal_one_in_float32(two):
    assert_close(same_on_both(two["float32 sam"]), references.alone("sam", STEPS), atol=1e-6)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "statistics over ranks"])
def test_however_it_is_configured_two_processes_equal_one(two, variant):
    assert_close(same_on_both(two[variant]), references.alone("eigen-sam", FEW))


def test_batch_statistics_over_ranks_are_those_of_one_process(two):
    """A module that communicates in its forward, as SyncBatchNorm does, in every pass."""
    expected = references.alone("eigen-sam", FEW, net=with_norm)
    assert_close(same_on_both(two["statistics over ranks"]), expected)


@pytest.mark.parametrize("perturb", ["global", "local"])
def test_parameters_that_one_rank_or_none_uses(two, perturb):
    """The mean over ranks counts a parameter as zero where it is not used; one that nobody uses is left alone."""
    model = Forked()
    body = list(model.body.parameters())
    params = [*body, *model.of_second.parameters()]
    base = BASES["sgd"](params)
    direction = {"global": along_the_mean, "local": along_each}[perturb]
    for batch in data(FEW):
        losses = [lambda r=r, batch=batch: loss_of(lambda x: model(x, r), share(batch, r)) for r in range(2)]
        transcriptions.take_step(base, params, direction(losses, body, params))
    assert_close(same_on_both(two[f"forked {perturb}"]), flat(model))


def along_the_mean(losses, body, params):
    return transcriptions.sam(lambda: sum(loss() for loss in losses) / 2, params, METHODS["sam"].rho)


def along_each(losses, body, params):
    """The first rank uses the body alone."""
    first = transcriptions.sam(losses[0], body, METHODS["sam"].rho)
    first += [torch.zeros_like(p) for p in params[len(body) :]]
    return [(s + t) / 2 for s, t in zip(first, transcriptions.sam(losses[1], params, METHODS["sam"].rho))]


@pytest.mark.parametrize("place", [0, 1], ids=["global", "local"])
def test_running_statistics_are_those_of_plain_passes(two, place):
    """The first rank's, which every forward begins with, and this rank's samples."""
    for found in two["running statistics"]:
        for name, buffer in found[2].items():
            assert torch.equal(found[place][name], buffer)


def test_a_model_may_be_wrapped_after_the_optimizer_was_made(two):
    assert_close(same_on_both(two["wrapped late"]), references.alone("eigen-sam", FEW))


def test_the_state_of_the_base_optimizer_may_be_sharded(two):
    assert_close(same_on_both(two["sharded state, global"]), references.alone("eigen-sam", FEW, "adamw"))
    expected = references.apart("eigen-sam", references.shared_out(FEW), "adamw")
    assert_close(same_on_both(two["sharded state, local"]), expected)


def test_a_forward_without_gradients_may_follow_backward(two):
    found = same_on_both(two["looked at after backward"])
    assert_close(found, references.alone("eigen-sam", FEW))


def test_a_deep_copy_continues_alike(two):
    for original, copy in two["copied"]:
        assert torch.equal(original, copy)


# --- a dialogue for each rank -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOCAL)
def test_local_perturbation_averages_the_dialogues_of_the_ranks(two, name):
    assert_close(same_on_both(two[f"local {name}"]), references.apart(name, references.shared_out(STEPS)))


def test_local_perturbation_differs_from_the_global_one(two):
    assert (two["local sam"][0] - two["ddp sam"][0]).abs().max() > 1e-3


def test_which_perturbation_happened(two):
    """Local: each rank was displaced along its own gradient. Global: both along the mean."""
    a, b = two["first pass"]
    assert not torch.allclose(a["local"], b["local"], atol=1e-3)
    assert torch.equal(a["global"], b["global"])
    assert torch.equal(a["local weights"], b["local weights"])
    model, (batch,) = network(), data(1)
    params = list(model.parameters())
    for rank, found in enumerate((a, b)):
        g = transcriptions.gradient(lambda rank=rank: loss_of(model, share(batch, rank)), params)
        expected = torch.cat([METHODS["sam"].rho * t.reshape(-1) / transcriptions.norm(g) for t in g])
        assert_close(found["local"], expected, atol=1e-15)


def test_around_backward_only_no_sync_would_do_nothing(two):
    """Why local perturbation leaves forward and backward unsynchronised: torch averages otherwise."""
    (around_backward, around_both), (other_around_backward, other_around_both) = two["gradients under no_sync"]
    assert torch.equal(around_backward, other_around_backward)
    assert not torch.allclose(around_both, other_around_both, atol=1e-3)
