"""The benchmark of a step's cost: every method is in it, and the kinds of steps that are timed make up what the method claims."""

import importlib

import pytest
import torch
from torch import nn

import flatwise as fw

bench = importlib.import_module("benchmarks.step_cost")
every_name = pytest.mark.parametrize("name", fw.methods.names())


def small():
    return bench.Problem(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(12, 8), 3)


def evaluations(kind):
    """How often the network runs in a step of this kind, after the first ones."""
    problem = small()
    step = bench.built(kind, lambda: problem)
    runs = []
    problem.model.register_forward_hook(lambda *_: runs.append(1))
    step()
    return len(runs)


@every_name
def test_the_kinds_of_steps_cost_together_what_the_method_claims(name):
    kinds = bench.kinds(name)
    assert sum(kind.share for kind in kinds) == pytest.approx(1.0)
    found = sum(kind.share * evaluations(kind) for kind in kinds)
    assert found == pytest.approx(bench.EVALUATIONS.get(name, fw.methods.by_name(name).cost))


@pytest.mark.parametrize("name", bench.PEERS)
def test_a_step_of_the_other_package_is_two_evaluations(name):
    """Its LookSAM's too."""
    pytest.importorskip("pytorch_optimizer")
    assert sum(kind.share * evaluations(kind) for kind in bench.PEERS[name]) == pytest.approx(2.0)


def test_a_repeat_measures_every_contender_against_the_base():
    network = bench.Network("small", small, rounds=2, warm=1)
    found = bench.measured(network, ["usam", "interval-sam"], repeats=2)
    assert found.keys() == {"usam", "interval-sam", "base step, ms"}
    assert all(len(values) == 2 and min(values) > 0 for values in found.values())


def test_the_table_has_the_median_and_the_range_of_each_method():
    results = {"mlp": {"sam": [2.0, 2.2, 2.1], "pytorch_optimizer sam": [2.5], "base step, ms": [1.0]}}
    _, _, *rows = bench.table(results).splitlines()
    assert rows == ["| sam | 2 | 2.10 (2.00 to 2.20) |", "| sam of `pytorch_optimizer` | 2 | 2.50 (2.50 to 2.50) |"]
