"""Two gloo processes, started once: with data or parameters spread over them, curvature is that of one process."""

import pytest
import torch
from curvature import workers
from curvature.workers import SHARES, batches, loss_of, measured, network, whole

import flatwise as fw


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


def one_process(shares, ranks=(0, 1), dtype=torch.float64):
    data = [batch for rank in ranks for batch in batches(SHARES[shares][rank], rank, dtype)]
    return measured(fw.Objective(network(dtype), loss_of, data))


def check(found, expected, tolerance=1e-6):
    for name in ("value", "value alone", "gradient", "product", "eigenvalues"):
        if name in found:
            scale = expected[name].abs().max().item()
            torch.testing.assert_close(found[name].double(), expected[name].double(), rtol=0, atol=tolerance * scale)
    assert found["record"]["samples"] == expected["record"]["samples"]


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("kind", ["ddp", "group"])
def test_data_over_two_processes_equal_one_process(results, kind, shares):
    """Also with unequal batches, unequal numbers of them, and a process without any."""
    a, b = both(results, f"{kind} {shares}")
    for found in (a, b):
        check(found, one_process(shares))
        assert found["record"]["engine"] == "double"
        assert found["record"]["processes"] == 2
    assert torch.equal(a["eigenvector"], b["eigenvector"])


@pytest.mark.parametrize(("kind", "shares"), [("ddp", "one without"), ("fsdp", "unequal")])
def test_batches_are_cut_on_each_process_as_it_needs(results, kind, shares):
    for found in both(results, f"{kind} bounded"):
        check(found, one_process(shares))
        assert found["largest"] <= 3


def test_a_process_may_measure_alone(results):
    for rank, found in enumerate(both(results, "alone")):
        check(found, one_process("equal", ranks=[rank]))
        assert found["record"]["processes"] == 1


@pytest.mark.parametrize(("engine", "tolerance"), [("forward", 1e-6), ("differences", 1e-6), ("one-sided", 1e-5)])
def test_every_engine_is_averaged_over_processes(results, engine, tolerance):
    for found in both(results, f"ddp {engine}"):
        assert found["record"]["engine"] == engine
        check(found, one_process("unequal"), tolerance)


@pytest.mark.parametrize(
    ("name", "shares", "tolerance"),
    [
        ("fsdp", "unequal", 1e-6),
        ("hybrid", "unequal", 1e-6),
        ("fsdp float32", "equal", 1e-3),
        ("fsdp one-sided", "equal", 1e-5),
    ],
)
def test_sharded_parameters_equal_one_process(results, name, shares, tolerance):
    """By differences of gradients, weighted by samples although FSDP2 averages over processes."""
    a, b = both(results, name)
    for found in (a, b):
        dtype = getattr(torch, found["record"]["dtype"])
        check(found, one_process(shares, dtype=dtype), tolerance)
        assert found["record"]["engine"] == ("one-sided" if "one-sided" in name else "differences")
    assert torch.equal(a["product"], b["product"])


def test_sharded_parameters_are_differentiated_by_differences_and_the_record_says_why(results):
    for found in both(results, "fsdp"):
        assert found["record"]["reason"] == "FSDP2 shards the parameters, and only backward reaches them"
        assert 0 < found["record"]["error"] < 1e-7


def test_tensor_parallel_parameters_are_differentiated_twice_where_torch_does_it_right(results):
    a, b = both(results, "tensor parallel")
    for found in (a, b):
        check(found, one_process("equal"))
        wrong = "Redistribute" in found["record"]["reason"]  # in torch 2.9 it has another second derivative
        assert found["record"]["engine"] == ("differences" if wrong else "double")
    assert torch.equal(a["eigenvector"], b["eigenvector"])


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_measuring_between_backward_and_step_changes_nothing(results, kind):
    for with_measurements, without in zip(
        both(results, f"{kind} trained True"), both(results, f"{kind} trained False"), strict=True
    ):
        assert torch.equal(with_measurements, without)


def test_an_exception_puts_sharded_weights_back(results):
    for before, after in both(results, "interrupted"):
        assert torch.equal(before, after)
        assert torch.equal(before, whole(network().parameters()))


def test_a_plain_model_among_several_processes_is_measured_alone_with_one_warning(results):
    for alone, *meant in both(results, "unwrapped"):
        (words,) = alone
        assert "torch.distributed runs 2 processes, but the model is neither" in words
        assert "group=torch.distributed.group.WORLD" in words
        assert "group=None for this process alone" in words
        assert meant == [[]] * 5


def test_what_sharded_parameters_do_not_allow_is_refused(results):
    for alone, twice, factor in both(results, "refused"):
        assert "no process can evaluate a sharded model alone" in alone
        assert r"no exact product: FSDP2 shards the parameters" in twice
        assert "gradient divide factor" in factor
