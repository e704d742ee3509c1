"""Operators beyond the Hessian on two gloo processes, started once: they are those of one process."""

import pytest
import torch
from curvature import operator_workers


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What both ranks found, by scenario."""
    folder = tmp_path_factory.mktemp("two-processes")
    torch.multiprocessing.spawn(operator_workers.run, args=(str(folder),), nprocs=2)
    found = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    return {name: (found[0][name], found[1][name]) for name in found[0]}


@pytest.mark.parametrize(
    ("kind", "shares", "tolerance"), [("ddp", "unequal", 1e-6), ("ddp", "one without", 1e-6), ("fsdp", "equal", 1e-5)]
)
def test_they_equal_those_of_one_process(results, kind, shares, tolerance):
    expected = operator_workers.one_process(shares)
    for found in results[f"{kind} {shares}"]:
        assert not isinstance(found, str), found
        assert found.keys() >= {"block 0", "block 2", "restricted", "gradients", "along"}
        for name, value in found.items():
            assert (value - expected[name]).norm() <= tolerance * expected[name].norm(), name


def test_what_sharded_parameters_do_not_allow(results):
    for words in results["refused"]:
        assert not isinstance(words, str), words
        assert words[0].startswith("no Gauss-Newton products: FSDP2 shards the parameters")
        assert words[1].startswith("layer Jacobians of parameters sharded by FSDP2 are not possible")
