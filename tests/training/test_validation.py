import pytest
import torch

from flatwise.training import TrainConfig, train
from flatwise.training.loop import load_split, load_task
from flatwise.training.validation import held_out

NOISY = TrainConfig(label_noise=0.4, seed=3, validation=0.2)


def key(inputs):
    return {tuple(row) for row in inputs.flatten(1).tolist()}


def test_the_training_data_is_split_in_two_and_nothing_is_lost():
    whole = load_task(TrainConfig(label_noise=0.4, seed=3))
    task, (inputs, targets) = load_split(NOISY)
    assert (len(task.train_inputs), len(inputs), len(targets)) == (800, 200, 200)
    assert not key(task.train_inputs) & key(inputs)
    assert key(task.train_inputs) | key(inputs) == key(whole.train_inputs)
    assert "200 of 1,000 training samples are held out" in task.notes


def test_noise_stays_in_the_held_out_labels_and_the_test_data_is_as_it_was():
    clean, noisy = (load_split(TrainConfig(label_noise=noise, seed=3, validation=0.2)) for noise in (0.0, 0.4))
    assert torch.equal(clean[1][0], noisy[1][0])
    assert 0.2 < (clean[1][1] != noisy[1][1]).float().mean() < 0.5
    assert torch.equal(clean[0].test_targets, noisy[0].test_targets)


def test_the_split_hangs_on_the_seed():
    one, again, other = (load_split(TrainConfig(subset=50, validation=0.3, seed=seed))[1][0] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_without_a_share_nothing_is_held_out():
    task = load_task(TrainConfig())
    assert held_out(task, 0.0, 0) == (task, None)


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_at_least_one_sample_goes_and_one_stays(share):
    with pytest.raises(ValueError, match="at least 1 must go and 1 stay"):
        held_out(load_task(TrainConfig(subset=20)), share, 0)


def test_a_run_measures_on_the_held_out_samples_and_never_trains_on_them(tmp_path):
    config = TrainConfig(subset=100, validation=0.3, widths=(8,), steps=6, probe_every=3)
    run = train(config, tmp_path / "run")
    probes = [record for record in run.metrics() if record["kind"] == "probe"]
    assert all("validation_loss" in probe and "validation_accuracy" in probe for probe in probes)
    assert run.summary["validation_accuracy"] == probes[-1]["validation_accuracy"]
    assert probes[0]["on"].startswith("70 training samples")
    assert "validation_loss" not in train(TrainConfig(subset=50, widths=(8,), steps=2), tmp_path / "plain").summary
