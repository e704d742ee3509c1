"""The claim about averaged weights: its averages and its schedule, against plain transcriptions."""

import math

import pytest
import torch

from flatwise.experiments.claims.averages import ARMS, Averaging, accuracy, measure
from flatwise.experiments.claims.listed import CLAIMS

PRESET = CLAIMS["flat-or-averaged"].preset("smoke")
MLP, CNN = (cell | {"settings": cell["settings"] | {"batch_size": 16}, "epochs": 4} for cell in PRESET["cells"])


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_both_methods_take_as_many_evaluations():
    runs = {name: Averaging(PRESET, MLP, name, True, 100) for name in ("SGD", "SAM")}
    assert runs["SGD"].steps == 16
    assert runs["SAM"].steps == 8
    for run in runs.values():
        run.train(lambda done, total: None)
    assert len({seen["evaluations"] for run in runs.values() for seen in run.found().values()}) == 1


def test_the_learning_rate_goes_to_zero_or_stays_at_half():
    falling, staying = (Averaging(PRESET, MLP, "SGD", averaged, 100) for averaged in (False, True))
    assert falling.rate(0) == staying.rate(0) == pytest.approx(0.05)
    assert falling.rate(8) == staying.rate(8) == pytest.approx(0.025)
    assert falling.rate(15) == pytest.approx(0.025 * (1 + math.cos(math.pi * 15 / 16)))
    assert staying.rate(15) == pytest.approx(0.025)


def test_averages_are_those_of_the_weights_after_the_steps():
    run, after = Averaging(PRESET, MLP, "SAM", True, 100), []
    run.train(lambda done, total: after.append(flat(run.model)))
    expected = after[0]
    for weights in after[1:]:
        expected = 0.98 * expected + 0.02 * weights
    assert torch.allclose(flat(run.ema), expected, atol=1e-6)
    assert torch.allclose(flat(run.swa), after[7], atol=1e-6)


def test_the_mean_is_over_epochs_of_the_second_half():
    run, after = Averaging(PRESET, MLP, "SGD", True, 100), []
    run.train(lambda done, total: after.append(flat(run.model)))
    assert torch.allclose(flat(run.swa), (after[11] + after[15]) / 2, atol=1e-6)


def test_averaged_networks_have_statistics_of_their_own():
    run = Averaging(PRESET, CNN, "SGD", True, 100)
    run.train(lambda done, total: None)
    run.found()
    inputs = [run.batches.at(step)[0] for step in range(run.batches.per_epoch)]
    first = run.swa.module[0]
    with torch.no_grad():
        means = torch.stack([first[0](x).mean((0, 2, 3)) for x in inputs]).mean(0)
    assert torch.allclose(first[1].running_mean, means, atol=1e-5)


def test_the_accuracy_is_in_percent():
    run = Averaging(PRESET, MLP, "SGD", False, 100)
    right = (run.model(run.task.test_inputs).argmax(1) == run.task.test_targets).double().mean()
    assert accuracy(run.model, run.task) == pytest.approx(100 * float(right))


def test_all_arms_are_measured_and_progress_only_grows(tmp_path):
    told = []
    found = measure(PRESET, PRESET["cells"][0], 100, tmp_path, lambda done, total: told.append((done, total)))
    assert set(found) == set(ARMS)
    assert all(seen["eigenvalue"] > 0 for seen in found.values())
    assert told == sorted(told)
    assert told[-1] == (4000, 4000)


def test_the_figure_has_a_point_for_each_arm():
    cell = {arm: {"accuracy": 50.0 + i, "eigenvalue": 2.0**i} for i, arm in enumerate(ARMS)}
    (panel,) = CLAIMS["flat-or-averaged"].judge({"cells": [{"name": "a"}]}, [[cell], [cell]]).panels
    assert [(line.label, line.x, line.y) for line in panel.lines] == [
        (arm, [2.0**i], [50.0 + i]) for i, arm in enumerate(ARMS)
    ]
