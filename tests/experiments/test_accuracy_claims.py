"""The tables of accuracy: what their presets train, what is counted beforehand, and what their numbers are made of."""

import math
import os
import sys
from dataclasses import replace

import pytest
import torch

from flatwise.cli.main import main
from flatwise.experiments.claims import accuracy, gpu_hours, paper_presets
from flatwise.experiments.claims.listed import claim_by_name
from flatwise.experiments.claims.trainings import train_arms
from flatwise.runs import Run
from flatwise.tasks.downloads import download
from flatwise.training import resolved, train

TABLE, VIT = claim_by_name("eigen-sam-accuracy"), claim_by_name("vit-finetuning")


def quiet(done, total):
    del done, total


def test_the_papers_table_has_twelve_cells_with_all_their_settings():
    preset = TABLE.preset("paper")
    cells = TABLE.cells(preset)
    assert {(cell["data"], cell["model"]) for cell in cells} == {
        (data, model)
        for data in ("cifar10", "cifar100", "fashion-mnist", "svhn")
        for model in ("resnet18", "resnet50", "wrn-28-10")
    }
    for cell in cells:
        *choosing, sgd, sam, eigen, control = map(resolved, accuracy.trainings(preset, cell, seed=3))
        assert [config.alpha for config in choosing] == [0.05, 0.1, 0.2]
        assert {(config.method, config.validation) for config in choosing} == {("eigen-sam", 0.1)}
        assert [config.method for config in (sgd, sam, eigen, control)] == ["sgd", "sam", "eigen-sam", "sam"]
        assert (eigen.every, eigen.iterations, eigen.hyper) == (100, 5, ("source=power",))
        for config in (sgd, sam, eigen, control):
            assert (config.batch_size, config.epochs, config.momentum, config.schedule) == (256, 200, 0.9, "cosine")
            assert (config.lr, config.augment) == (0.01 if config.data == "svhn" else 0.1, True)
            assert (config.weight_decay, config.validation, config.seed) == (5e-4, 0, 3)


def test_what_was_not_recovered_is_a_parameter():
    preset = paper_presets.classification(weight_decay=5e-5, rho=0.2)
    assert preset["shared"]["weight_decay"] == 5e-5
    assert {cell["rho"] for cell in preset["cells"]} == {0.2}
    assert paper_presets.vit(lr=0.1, epochs=3)["shared"]["epochs"] == 3


@pytest.mark.parametrize(
    ("model", "data", "giga"),
    [  # three times the published 0.56, 1.30 and 5.25 billion multiplications of the forward passes, and an addition each
        ("resnet18", "cifar10", 3.33),
        ("resnet50", "cifar10", 7.78),
        ("wrn-28-10", "cifar10", 31.46),
    ],
)
def test_the_operations_of_a_pass_are_those_known(model, data, giga):
    assert gpu_hours.pass_flops(model, data) == pytest.approx(giga * 1e9, rel=2e-3)


def test_hours_follow_from_evaluations_and_operations():
    preset = TABLE.preset("paper")
    cell = next(cell for cell in preset["cells"] if (cell["data"], cell["model"]) == ("cifar10", "resnet18"))
    work = gpu_hours.work(TABLE.trainings(preset, cell))
    # 200 epochs of 196 steps; SGD one gradient, SAM two, Eigen-SAM two and 5 of every 100; three times on 176 steps an epoch.
    epoch, eigen = 196, 2.05
    assert work.evaluations == pytest.approx(200 * (epoch * (1 + 2 + eigen + 2) + 3 * 176 * eigen))
    assert work.passes == pytest.approx(200 * (50_000 * (5 + eigen) + 3 * 45_000 * eigen), rel=1e-3)
    assert work.hours == pytest.approx(work.passes * work.pass_flops / (0.3 * 82.6e12) / 3600)


def test_a_dry_run_at_the_papers_scale_counts_and_reads_no_data(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("FLATWISE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "eigen-sam-accuracy", "--scale", "paper", "--dry-run", "--seeds", "2"])
    assert not ended.value.code
    head, *cells = capsys.readouterr().out.splitlines()
    assert "GPU hours a seed" in head
    assert "for 2 seeds" in head
    assert len(cells) == 12
    assert all("GFLOP" in line and "gradient evaluations" in line and line.endswith("GPU hours") for line in cells)


def test_trainings_that_claims_share_are_counted_once_and_cells_alike_together(capsys):
    names = ["alignment-is-poor", "top-eigenvalue", "base-optimizers", "rho-alpha-study"]
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", *names, "--scale", "paper", "--dry-run"])
    assert not ended.value.code
    said = capsys.readouterr().out.splitlines()
    assert "top-eigenvalue: the trainings of alignment-is-poor" in said
    assert [line.split(":")[0] for line in said if not line.startswith(" ")] == names
    assert any(line.startswith("  6 cells like resnet18 on cifar10: 3.33 GFLOP") for line in said)


def test_alpha_is_the_best_on_held_out_samples_and_all_arms_use_it(tmp_path):
    preset = TABLE.preset("smoke")
    cell = preset["cells"][0]
    told = []
    found = TABLE.measure(preset, cell, 0, tmp_path, lambda done, total: told.append(done / total))
    assert found["alpha"] in cell["alphas"]
    choosing = accuracy.trainings(preset, cell)[:2]
    again = {}
    for config in choosing:
        arms = {"shared": config.to_dict() | {"hyper": []}, "arms": {"one": {}}}
        again[config.alpha] = train_arms(arms, {}, 0, tmp_path / str(config.alpha), quiet)["one"]["summary"]
    best = max(cell["alphas"], key=lambda alpha: again[alpha]["validation_accuracy"])
    assert found["alpha"] == best
    control, eigen = found["SAM at equal norm"]["summary"], found["Eigen-SAM"]["summary"]
    assert control["mean_displacement_norm"] == pytest.approx(eigen["mean_displacement_norm"], rel=1e-4)
    assert told == sorted(told)
    assert told[-1] == 1


def test_fine_tuning_starts_from_a_run_trained_before(tmp_path):
    preset = VIT.preset("smoke")
    found = VIT.measure(preset, preset["cells"][0], 0, tmp_path, quiet)
    assert Run.open(tmp_path / "before").status == "finished"
    assert all(0 <= found[arm]["summary"]["test_accuracy"] <= 1 for arm in ("SGD", "SAM", "Eigen-SAM"))
    again = VIT.measure(preset, preset["cells"][0], 0, tmp_path, quiet)
    assert again == found


def test_the_mean_over_cells_decides_seed_by_seed():
    def arm(points):
        return {"summary": {"test_accuracy": points / 100}}

    def cell(sgd, sam, eigen):
        return {"SGD": arm(sgd), "SAM": arm(sam), "Eigen-SAM": arm(eigen), "SAM at equal norm": arm(sam), "alpha": 0.2}

    seeds = [[cell(80, 82, 83), cell(90, 91, 90)], [cell(81, 81, 83), cell(90, 92, 93)]]
    preset = {"cells": [{"model": "a", "data": "x"}, {"model": "b", "data": "y", "subset": 7}]}
    outcome = TABLE.judge(preset, seeds)
    by_name = {criterion.name: criterion for criterion in outcome.criteria}
    decisive = [criterion for criterion in outcome.criteria if criterion.decisive]
    assert [criterion.name for criterion in decisive] == [
        "all cells: Eigen-SAM less SAM",
        "all cells: Eigen-SAM less SGD",
    ]
    assert decisive[0].values == pytest.approx([0.0, 1.5])
    assert decisive[1].values == pytest.approx([1.5, 2.5])
    assert decisive[0].least == decisive[1].least == 0
    assert by_name["b on y, 7 images: Eigen-SAM less SAM"].values == pytest.approx([-1.0, 1.0])
    assert by_name["a on x: SGD"].values == pytest.approx([80, 81])
    (heat,) = outcome.panels
    assert heat.values[0] == pytest.approx([0, 1, 2.5, 1])
    assert "a on x 0.2, 0.2" in outcome.notes[0]


def test_a_diverged_training_leaves_no_number():
    gone = {"summary": {}}
    cells = [dict.fromkeys(("SGD", "SAM", "Eigen-SAM", "SAM at equal norm"), gone) | {"alpha": 0.2}]
    outcome = TABLE.judge({"cells": [{"model": "a", "data": "x"}]}, [cells])
    assert all(math.isnan(value) for criterion in outcome.criteria for value in criterion.values)


@pytest.mark.parametrize("name", list(paper_presets.DATASETS))
def test_what_is_known_of_a_data_set_beforehand_is_so(name):
    root = os.environ.get("FLATWISE_DATA")
    if root is None:
        pytest.skip("needs image data: set FLATWISE_DATA to a folder that holds it")
    try:
        source = download(name, root)
    except ValueError as error:
        pytest.skip(str(error))
    known = paper_presets.DATASETS[name]
    assert len(source.train) <= known.train  # a user may have a part of it
    assert source.num_classes == known.num_classes
    assert source.train.take(torch.tensor([0])).inputs().shape[1:] == torch.Size(known.shape)


RANDOM = """
import torch
def samples():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *{shape}, generator=generator)
    targets = torch.tensor([0, {classes} - 1])
    return images, targets, images, targets
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "cell"),
    [(claim.preset("paper"), cell) for claim in (TABLE, VIT) for cell in claim.preset("paper")["cells"]],
    ids=lambda value: f"{value['model']}-{value['data']}" if "model" in value else "",
)
def test_every_cell_of_the_papers_takes_a_step_at_full_size(preset, cell, tmp_path, monkeypatch):
    known = paper_presets.DATASETS[cell["data"]]
    (tmp_path / "random_images.py").write_text(RANDOM.format(shape=known.shape, classes=known.num_classes))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = accuracy.trainings(preset, cell)[-2]
    assert config.method == "eigen-sam"
    changes = {"data": "random_images:samples", "batch_size": 2, "epochs": None, "steps": 1, "probe_samples": 2}
    run = train(replace(config, pretrained=None, **changes), tmp_path / "run")
    sys.modules.pop("random_images")
    assert run.status == "finished"
    assert run.summary["evaluations"] >= 2 + 5
    assert run.summary["skipped"] == 0
