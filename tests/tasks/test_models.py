import sys

import pytest
import torch
from torch import nn

from flatwise.tasks import Task, build_model

NAMES = ["mlp", "cnn6", "resnet18"]


def task(channels=1, size=8, num_classes=10):
    inputs = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1])
    return Task("images", inputs, targets, inputs, targets, num_classes)


def parameters(model):
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "size", "num_classes"), [(1, 8, 10), (3, 9, 3), (3, 32, 2)])
def test_models_fit_their_task(name, channels, size, num_classes):
    images = task(channels, size, num_classes)
    model = build_model(name, images, seed=0)
    assert model.training
    assert model(images.train_inputs).shape == (2, num_classes)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_weights_and_the_global_state_stays(name):
    state = torch.get_rng_state()
    one = parameters(build_model(name, task(), seed=1))
    torch.rand(1)
    two, other = parameters(build_model(name, task(), seed=1)), parameters(build_model(name, task(), seed=2))
    assert all(map(torch.equal, one, two))
    assert not all(map(torch.equal, one, other))
    torch.set_rng_state(state)
    build_model(name, task(), seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_mlp_has_the_widths_and_initialisation_asked_for():
    model = build_model("mlp", task(), seed=0, widths=(200, 200, 200), init="glorot")
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert [m.in_features for m in linear] == [64, 200, 200, 200]
    assert [m.out_features for m in linear] == [200, 200, 200, 10]
    assert all(m.bias.abs().max() == 0 for m in linear)
    # 40,000 normal weights of variance 2 / (200 + 200); four standard errors of their standard deviation are 1.4 %.
    assert linear[1].weight.std().item() == pytest.approx(0.005**0.5, rel=0.015)
    weight = linear[1].weight.detach()
    assert (weight / weight.std()).pow(4).mean().item() == pytest.approx(3, abs=0.15)


def test_the_default_mlp_is_torchs_own():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        layers = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)]
        plain = nn.Sequential(nn.Flatten(), *layers)
    assert all(map(torch.equal, parameters(build_model("mlp", task(), seed=5)), parameters(plain)))


def test_cnn6_has_six_convolutions_of_the_widths_of_the_protocol():
    def widths(**options):
        modules = build_model("cnn6", task(3, 16), seed=0, **options).modules()
        return [m.out_channels for m in modules if isinstance(m, nn.Conv2d)]

    assert widths() == [16, 16, 32, 32, 64, 64]
    assert widths(width=0.5) == [8, 8, 16, 16, 32, 32]
    assert widths(width=0.01) == [1] * 6


def test_resnet18_keeps_small_images_large():
    model = build_model("resnet18", task(3, 32), seed=0)
    stem = model.maxpool(model.relu(model.bn1(model.conv1(torch.zeros(1, 3, 32, 32)))))
    assert stem.shape == (1, 64, 32, 32)
    assert sum(p.numel() for p in model.parameters()) == 11_173_962


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("mpl", {}, ValueError, "no model is called 'mpl': did you mean 'mlp'"),
        ("mlp", {"width": 3}, TypeError, "'mlp' is called with task, width, which does not fit .*'width'"),
        ("mlp", {"widths": ()}, ValueError, "widths must name the size of every hidden layer"),
        ("mlp", {"widths": (10, 0)}, ValueError, "widths must name the size of every hidden layer"),
        ("mlp", {"init": "xavier"}, ValueError, "init must be 'default' or 'glorot', not 'xavier'"),
        ("cnn6", {"width": 0}, ValueError, "width must be a positive factor"),
    ],
)
def test_what_cannot_be_built_is_refused(name, options, error, message):
    with pytest.raises(error, match=message):
        build_model(name, task(), seed=0, **options)


@pytest.mark.parametrize("name", ["cnn6", "resnet18"])
def test_convolutions_need_images(name):
    vectors = Task("rows", torch.zeros(2, 5), torch.tensor([0, 1]), torch.zeros(2, 5), torch.tensor([0, 1]), 2)
    with pytest.raises(ValueError, match=rf"{name} needs images .* but rows has \[5\]"):
        build_model(name, vectors, seed=0)
    with pytest.raises(ValueError, match="8x8 or larger"):
        build_model(name, task(1, 6), seed=0)


USERS = """
import torch
from torch import nn
def of_task(task, hidden=3):
    size = task.train_inputs[0].numel()
    return nn.Sequential(nn.Flatten(), nn.Linear(size, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, task.num_classes))
def alone(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
def wrong_size(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
def too_small(): return nn.Sequential(nn.Flatten(), nn.Linear(63, 10))
def broken(): return {}["x"]
def no_module(task): return 3
def no_tensor():
    class Pair(nn.Module):
        def forward(self, x): return x, x
    return Pair()
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(USERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "my_models"
    sys.modules.pop("my_models", None)


def test_users_models_are_built_seeded_and_left_untouched(mine):
    state = torch.get_rng_state()
    one, two = (build_model(f"{mine}:of_task", task(), seed=3, hidden=4) for _ in range(2))
    assert all(map(torch.equal, parameters(one), parameters(two)))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.training
    assert one[2].num_batches_tracked == 0
    assert one[1].out_features == 4
    assert build_model(f"{mine}:alone", task(), seed=0)(torch.zeros(5, 1, 8, 8)).shape == (5, 10)


@pytest.mark.parametrize(
    ("function", "options", "error", "message"),
    [
        ("wrong_size", {}, ValueError, r"must map 2 samples to \[2, 10\] logits, but gives \[2, 7\]"),
        ("no_tensor", {}, ValueError, "but gives tuple"),
        ("broken", {}, ValueError, r"broken' failed \(KeyError: 'x'\); --debug shows where"),
        ("too_small", {}, ValueError, r"too_small' failed \(RuntimeError: mat1 and mat2"),
        ("no_module", {}, TypeError, "must return a torch.nn.Module, not int"),
        ("alone", {"hidden": 3}, TypeError, "is called with hidden, which does not fit"),
    ],
)
def test_wrong_models_of_users_are_refused(mine, function, options, error, message):
    with pytest.raises(error, match=message):
        build_model(f"{mine}:{function}", task(), seed=0, **options)
