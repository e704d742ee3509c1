import json

import pytest

from flatwise.training import Settings, TrainConfig, resolved


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"lr": -1.0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be a finite number"),
        ({"lr": "0.1"}, "lr must be a finite number"),
        ({"momentum": 1.0}, "momentum must be below 1"),
        ({"weight_decay": -1e-4}, "weight_decay must be at least 0"),
        ({"label_noise": 1.5}, "label_noise must be at most 1"),
        ({"batch_size": 1.5}, "batch_size must be a whole number"),
        ({"batch_size": True}, "batch_size must be a whole number"),
        ({"widths": ()}, "widths must be a list of whole numbers above 0"),
        ({"widths": (64, 0)}, "widths must be a list of whole numbers above 0"),
        ({"loss": "mse"}, "loss must be one of cross-entropy, squared-error"),
        ({"rho_schedule": "line"}, "rho_schedule must be one of constant, linear, cosine, learning-rate"),
        ({"eigen_tol": 0.0}, "eigen_tol must be above 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**32}, "seed must be below 4294967296"),
        ({"seed": 10**23 - 1}, "seed must be below 4294967296"),
        ({"augment": 1}, "augment must be true or false"),
        ({"epochs": 2, "steps": 10}, "epochs 2 has no effect when steps is given"),
        ({"optimizer": "adamw", "momentum": 0.9}, "momentum 0.9 has no effect with optimizer adamw"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
        ({"validation": 1.0}, "validation must be below 1"),
        ({"validation": -0.1}, "validation must be at least 0"),
        ({"parts": 1}, "parts must be at least 2"),
        ({"evaluations": 0}, "evaluations must be at least 1"),
        ({"evaluations": 10, "steps": 5}, "steps 5 has no effect when evaluations is given"),
        ({"trace_samples": 3}, "trace_samples must be 0 for no trace, or at least 4"),
        ({"hyper": ["a=1"]}, "hyper must be a list of words"),
        ({"hyper": ("a",)}, "hyper takes words such as samples=3"),
    ],
)
def test_a_bad_value_is_answered_with_one_sentence(setting, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**setting)


def test_settings_survive_json():
    config = TrainConfig(method="eigen-sam", alpha=0.1, widths=(32, 16), steps=7, seed=3, hyper=("source=power",))
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_misspelt_key_names_the_nearest():
    with pytest.raises(ValueError, match="no setting 'label_nose'; did you mean 'label_noise'"):
        TrainConfig.from_dict({"label_nose": 0.2})


def test_a_settings_file_keeps_the_defaults_of_what_it_does_not_name(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"method": "sgd", "widths": [8]}')
    assert TrainConfig.from_file(path) == TrainConfig(method="sgd", widths=(8,))


@pytest.mark.parametrize(("text", "sentence"), [("{", "not readable as JSON"), ("[1]", "no JSON object")])
def test_a_broken_settings_file_is_named(tmp_path, text, sentence):
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        TrainConfig.from_file(path)


def test_the_command_makes_the_same_settings_again(tmp_path):
    tyro = pytest.importorskip("tyro")
    more = {"hyper": ("ascents=2",), "curvature": False, "evaluations": 90, "validation": 0.1, "parts": 4}
    config = TrainConfig(
        method="sam", rho=0.1, widths=(8, 4), augment=True, lr=0.2, rho_schedule="cosine", seed=2, **more
    )
    words = config.command(tmp_path).split()
    assert words[:2] == ["flatwise", "train"]
    assert words[-2:] == ["--out", str(tmp_path)]
    assert tyro.cli(TrainConfig, args=words[2:-2]) == config


def test_defaults_that_depend_on_others_are_written_out():
    plain = resolved(TrainConfig(method="eigen-sam"))
    assert (plain.rho, plain.alpha, plain.every, plain.iterations) == (0.05, 0.2, 100, 5)
    assert (plain.epochs, plain.lr, plain.momentum) == (40, 0.05, 0.9)
    adamw = resolved(TrainConfig(method="sgd", optimizer="adamw", steps=5))
    assert (adamw.rho, adamw.epochs, adamw.lr, adamw.momentum) == (None, None, 0.001, None)
    assert resolved(plain) == plain


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (TrainConfig(method="sam", alpha=0.2), "alpha 0.2 has no effect with method sam"),
        (TrainConfig(method="sgd", rho=0.1), "rho 0.1 has no effect with method sgd"),
        (TrainConfig(method="egen-sam"), "did you mean 'eigen-sam'"),
        (TrainConfig(data="digit"), "did you mean 'digits'"),
        (TrainConfig(model="resnet-18"), "did you mean 'resnet18'"),
        (TrainConfig(rho=-0.1), "rho"),
        (TrainConfig(method="sgd", rho_schedule="linear"), "rho_schedule linear has no effect with method sgd"),
        (TrainConfig(rho=0.0, rho_schedule="cosine"), "rho_schedule cosine has no effect with rho 0"),
        (
            TrainConfig(rho_schedule="learning-rate", schedule="constant"),
            "rho_schedule learning-rate has no effect with schedule constant",
        ),
    ],
)
def test_what_does_not_fit_together_is_answered_before_anything_runs(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        resolved(config)


def test_settings_of_a_comparison_have_neither_method_nor_seed():
    names = {"method", "seed"}
    assert names & Settings().to_dict().keys() == set()
    assert names <= TrainConfig().to_dict().keys()
