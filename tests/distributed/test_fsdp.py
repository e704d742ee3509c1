"""FSDP2: two processes that shard the weights equal one."""

import pytest
import torch
from distributed import references
from distributed.layouts import FEW, METHODS, SAM, data, network, share
from distributed.on_fsdp import VARIANTS, steps_of
from distributed.test_ddp import assert_close, same_on_both
from optim.problems import BASES, loss_of
from reference import transcriptions
from torch.func import functional_call


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_equal_one(two, name):
    assert_close(same_on_both(two[f"fsdp {name}"]), references.alone(name, steps_of(name)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_however_it_is_configured_two_processes_equal_one(two, variant):
    assert_close(same_on_both(two[variant]), references.alone("eigen-sam", FEW))


def test_weights_that_stay_gathered_follow_the_base_optimizer(two):
    """Also for a method that displaces nothing: with set_reshard_after_backward(False) torch alone would keep the old ones."""
    assert_close(same_on_both(two["kept after backward sgd"]), references.alone("sgd", FEW))


def test_mixed_precision_computes_in_bfloat16_and_averages_in_float32(two):
    """Against the same in one process: float32 weights, each half of the batch computed on a bfloat16 copy of them."""
    model = network().float()
    params = list(model.parameters())
    base = BASES["sgd"](params)

    def loss_in_half(batch):
        halved = {name: p.bfloat16() for name, p in model.named_parameters()}
        return loss_of(lambda x: functional_call(model, halved, (x.bfloat16(),)), batch)

    for batch in data(FEW, torch.float32):
        loss = lambda batch=batch: sum(loss_in_half(share(batch, r)).float() for r in range(2)) / 2
        transcriptions.take_step(base, params, transcriptions.sam(loss, params, SAM.rho))
    expected = torch.cat([p.detach().reshape(-1) for p in params])
    torch.testing.assert_close(same_on_both(two["mixed precision"]), expected, rtol=0, atol=1e-6)


def test_a_process_without_weights_does_not_step_out_of_line_at_lr_zero(two):
    """Whether a step only makes the base's state is a question to all shards; alone the empty one said yes, and the rest hung."""
    assert same_on_both(two["without passes at lr 0"]) == pytest.approx(4.0)  # of two ones in each of four places
