"""Targets for every token, label smoothing, and trained weights to start from."""

import pytest
import torch
import torch.nn.functional as F

from flatwise.runs import Run, RunError
from flatwise.tasks import load_data
from flatwise.training import TrainConfig, checkpoints, resolved, train
from flatwise.training.loop import load_task
from flatwise.training.setup import build_loss, build_losses, build_network

LINES = [f"line {i:04d} of the play\n" for i in range(200)]
OUTPUTS = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def play(tmp_path):
    (tmp_path / "play.txt").write_text("".join(LINES))
    return f"text:{tmp_path / 'play.txt'}"


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.1}, {"loss": "squared-error"}])
def test_the_loss_is_the_mean_over_tokens_and_so_is_each_samples(settings):
    config = TrainConfig(**settings)
    one_by_one = [
        build_loss(config)(o[None], t[None]) for o, t in zip(OUTPUTS.flatten(0, 1), TARGETS.flatten(), strict=True)
    ]
    torch.testing.assert_close(build_loss(config)(OUTPUTS, TARGETS), torch.stack(one_by_one).mean())
    torch.testing.assert_close(build_losses(config)(OUTPUTS, TARGETS), torch.stack(one_by_one).view(3, 5).mean(1))
    flat = build_losses(config)(OUTPUTS[0], TARGETS[0])
    torch.testing.assert_close(flat, torch.stack(one_by_one[:5]))


def test_label_smoothing_spreads_its_share_over_all_classes():
    logs = OUTPUTS[0].log_softmax(-1)
    targets = 0.8 * F.one_hot(TARGETS[0], 7) + 0.2 / 7
    wanted = -(targets * logs).sum(-1)
    config = TrainConfig(label_smoothing=0.2)
    torch.testing.assert_close(build_loss(config)(OUTPUTS[0], TARGETS[0]), wanted.mean())
    torch.testing.assert_close(build_losses(config)(OUTPUTS[0], TARGETS[0]), wanted)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"label_smoothing": 0.1, "loss": "squared-error"},
            "label_smoothing 0.1 has no effect with loss squared-error",
        ),
        ({"label_smoothing": 1.0}, "label_smoothing must be below 1"),
        ({"preprocess": "centered"}, "preprocess must be one of standard, centred"),
    ],
)
def test_settings_that_do_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_a_text_is_trained_and_its_tokens_counted(play, tmp_path):
    settings = {"data": play, "model": "transformer-1-16", "steps": 3, "batch_size": 16, "lr": 0.5, "trace_samples": 0}
    config = TrainConfig(method="sam", **settings)
    run = train(config, tmp_path / "run")
    task, model = load_task(resolved(config)), build_network(config, load_data(play))
    model.load_state_dict(checkpoints.newest(run)["model"])
    with torch.no_grad():
        logits = model(task.test_inputs)
    right = (logits.argmax(-1) == task.test_targets).float().mean().item()
    assert run.summary["test_accuracy"] == pytest.approx(right)
    loss = F.cross_entropy(logits.flatten(0, 1), task.test_targets.flatten()).item()
    assert run.summary["test_loss"] == pytest.approx(loss, rel=1e-4)
    first, last = (
        record["train_loss"] for record in run.metrics() if record["kind"] == "probe" and "train_loss" in record
    )
    assert last < first


def test_centred_images_are_what_is_trained_on(tmp_path):
    from tasks.small_sets import write_mnist

    write_mnist(tmp_path)
    task = load_task(TrainConfig(data="mnist", data_root=str(tmp_path), preprocess="centred"))
    torch.testing.assert_close(task.train_inputs.mean(0), torch.zeros(1, 28, 28))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    settings = {"model": "cnn6", "steps": 3, "curvature": False, "subset": 100, "batch_size": 50}
    return train(TrainConfig(method="sgd", **settings), tmp_path_factory.mktemp("runs") / "first")


def test_a_run_starts_from_the_weights_of_another_with_a_new_last_layer(trained):
    config = TrainConfig(model="cnn6", pretrained=str(trained.path), seed=5)
    task = load_task(config)
    own, start = build_network(TrainConfig(model="cnn6", seed=5), task), build_network(config, task)
    before, found, plain = checkpoints.newest(trained)["model"], start.state_dict(), own.state_dict()
    last = [name for name in found if name.startswith(f"{len(start) - 1}.")]
    assert len(last) == 2
    assert all(torch.equal(found[name], plain[name] if name in last else before[name]) for name in found)
    assert found["0.1.num_batches_tracked"] == 3


def test_a_fine_tuned_run_is_continued_and_measured_like_any(trained, tmp_path):
    settings = {"model": "cnn6", "batch_size": 50, "subset": 100, "curvature": False, "pretrained": str(trained.path)}
    run = train(TrainConfig(method="sam", steps=2, **settings), tmp_path / "tuned")
    assert Run.open(run.path).summary["test_accuracy"] > 0
    assert run.config["pretrained"] == str(trained.path)


def test_weights_that_do_not_fit_are_refused(trained, tmp_path):
    task = load_data("digits")
    with pytest.raises(ValueError, match=r"is of another model: .* does not fit; name the model that it trained"):
        build_network(TrainConfig(model="mlp", pretrained=str(trained.path)), task)
    with pytest.raises(RunError):
        build_network(TrainConfig(model="cnn6", pretrained=str(tmp_path / "nothing")), task)
    with pytest.raises(ValueError, match="pretrained imagenet has no effect with model cnn6, only with vit-b-16"):
        resolved(TrainConfig(model="cnn6", pretrained="imagenet"))
