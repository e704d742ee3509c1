import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flatwise.tasks import Task, build_model, check_model_name
from flatwise.tasks.normalisation import LayerNorm


def images(channels=3, size=32, num_classes=10):
    inputs = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1])
    return Task("images", inputs, targets, inputs, targets, num_classes)


def text(length=64, vocabulary=128):
    tokens = torch.randint(vocabulary, (2, length), generator=torch.Generator().manual_seed(0))
    return Task("text", tokens, tokens, tokens, tokens, vocabulary)


def size_of(name, task):
    with torch.device("meta"):
        model = build_model(name, task, seed=0)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "task", "parameters"),
    [
        ("resnet18", images(), 11_173_962),
        ("resnet50", images(), 23_520_842),
        ("wrn-28-10", images(), 36_479_194),
        ("wrn-28-10", images(num_classes=100), 36_536_884),
        ("wrn-16-8", images(), 10_961_370),
        ("wrn-40-4", images(), 8_949_210),
        ("vit-b-16", images(), 85_806_346),
        # Two convolutions with LayerNorm on 28x28 pixels: 9*16+16 + 32, 9*16*32+32 + 64, 32*7*7*10 + 10.
        ("cnn-ln", images(1, 28), 192 + 4_704 + 15_690),
        # Embeddings 128*128 + 64*128; in each layer 3 (128*256 + 256) + 256*128 + 128 + 128*512 + 512 + 512*128 + 128 + 4*128;
        # at the end 2*128 + 128*128 + 128.
        ("transformer", text(), 24_576 + 6 * 264_192 + 16_768),
    ],
)
def test_models_at_the_papers_size_have_their_parameters(name, task, parameters):
    assert size_of(name, task) == parameters


@pytest.mark.parametrize("name", ["resnet50", "wrn-10-1", "vit-1-16", "cnn-ln"])
@pytest.mark.parametrize(("channels", "size", "num_classes"), [(1, 8, 10), (3, 16, 3), (1, 28, 4)])
def test_models_of_images_fit_their_task(name, channels, size, num_classes):
    task = images(channels, size, num_classes)
    assert build_model(name, task, seed=0)(task.train_inputs).shape == (2, num_classes)


@pytest.mark.parametrize("name", ["wrn-10-1", "vit-1-16", "cnn-ln", "transformer-1-16"])
def test_the_seed_decides_the_weights(name):
    task = text(8, 5) if name.startswith("transformer") else images(1, 8)
    one, two, other = (list(build_model(name, task, seed=seed).parameters()) for seed in (1, 1, 2))
    assert all(map(torch.equal, one, two))
    assert not all(map(torch.equal, one, other))


def test_a_wide_resnet_has_its_depth_and_widths():
    def widths(name):
        modules = build_model(name, images(1, 8), seed=0).modules()
        return [m.out_channels for m in modules if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]

    assert widths("wrn-10-1") == [16, 16, 16, 32, 32, 64, 64]
    assert widths("wrn-16-2") == [16] + [32] * 4 + [64] * 4 + [128] * 4


def test_a_wide_block_is_the_papers():
    model = build_model("wrn-10-2", images(), seed=0).eval()
    block, x = model.groups[1][0], torch.randn(2, 32, 8, 8)
    active = x.clamp(min=0)  # BatchNorm in evaluation mode is the identity up to its epsilon when nothing was learnt
    inner = F.conv2d(active, block.conv1.weight, stride=2, padding=1).clamp(min=0)
    wanted = F.conv2d(inner, block.conv2.weight, padding=1) + F.conv2d(active, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), wanted, rtol=1e-3, atol=1e-3)


def test_a_character_sees_only_those_before_it():
    task = text(12, 7)
    model = build_model("transformer-2-32", task, seed=0)
    changed = task.train_inputs.clone()
    changed[:, 8] = (changed[:, 8] + 1) % 7
    one, two = model(task.train_inputs), model(changed)
    assert one.shape == (2, 12, 7)
    torch.testing.assert_close(one[:, :8], two[:, :8])
    assert (one[:, 8:] - two[:, 8:]).abs().amax(-1).min() > 1e-4


def test_attention_is_torchs():
    block = build_model("transformer-1-32", text(12, 7), seed=0).blocks[0]
    x = torch.randn(3, 12, 32)
    q, k, v = (layer(x).view(3, 12, 2, 16).transpose(1, 2) for layer in (block.queries, block.keys, block.values))
    wanted = block.mix(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(3, 12, 32))
    torch.testing.assert_close(block._attention(x), wanted)


def test_the_decoder_starts_as_haiku_does():
    model = build_model("transformer", text(), seed=0)
    widen = model.blocks[3].widen
    assert widen.weight.std().item() == pytest.approx((2 / 6 / 128) ** 0.5, rel=0.02)
    assert model.logits.weight.std().item() == pytest.approx((1 / 128) ** 0.5, rel=0.03)
    assert widen.weight.abs().max() <= 2 * (2 / 6 / 128) ** 0.5 / 0.8796
    assert model.tokens.weight.abs().max() <= 0.04
    assert all(m.bias.abs().max() == 0 for m in model.modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize("dim", [-1, 1])
def test_our_layer_norm_is_torchs(dim):
    ours, x = LayerNorm(6, dim=dim).double(), torch.randn(4, 6, 3, 6, dtype=torch.float64)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    wanted = F.layer_norm(x.movedim(dim, -1), (6,), ours.weight, ours.bias).movedim(-1, dim)
    torch.testing.assert_close(ours(x), wanted)


def test_our_layer_norm_has_right_third_derivatives():
    ours, x = LayerNorm(5).double(), torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: torch.autograd.grad(ours(x).pow(3).sum(), x, create_graph=True)[0], x)


def test_gray_images_are_repeated_and_enlarged_for_vit():
    from flatwise.tasks.vit import Enlarged

    seen = Enlarged(nn.Identity())(images(1, 8).train_inputs)
    assert seen.shape == (2, 3, 224, 224)
    assert torch.equal(seen[:, 0], seen[:, 2])
    flat = Enlarged(nn.Identity())(torch.full((1, 3, 32, 32), 0.7))
    torch.testing.assert_close(flat, torch.full((1, 3, 224, 224), 0.7))


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("wrn-11-1", images(), "wrn-11-1: the depth must be 6 n"),
        ("wrn-10-0", images(), "the width at least 1"),
        ("vit-4-50", images(), "vit-4-50: .* multiple of 16"),
        ("vit-4-64", images(3, 30), "vit-4-64 needs square images .* 30x30"),
        ("vit-b-16", images(2), "needs images with 1 or 3 channels, but those of images have 2"),
        ("transformer-0-64", text(), "one layer at least"),
        ("transformer", images(), "transformer needs sequences of tokens"),
        ("mlp", text(), "mlp gives one class to a sample, but text has one for every token"),
        ("cnn-ln", text(), r"cnn-ln needs images .* text has \[64\]"),
        ("wrn-1-2-3", images(), "no model is called 'wrn-1-2-3': did you mean 'wrn-28-10'"),
        ("wrn-D-K", images(), "no model is called 'wrn-D-K'"),
    ],
)
def test_what_cannot_be_built_is_refused(name, task, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, task, seed=0)


def test_blocks_of_the_normalised_network_are_an_option():
    convolutions = [m for m in build_model("cnn-ln", images(), seed=0, blocks=3) if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [16, 32, 64]
    with pytest.raises(ValueError, match="blocks must be at least 1"):
        build_model("cnn-ln", images(), seed=0, blocks=0)


def test_names_with_sizes_are_known_without_torch():
    code = (
        "import sys, flatwise.tasks as t; t.check_model_name('wrn-16-4'); t.check_data_name('text:a'); "
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    check_model_name("vit-2-32")


@pytest.mark.slow
def test_without_network_the_imagenet_weights_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    code = (
        "from flatwise.tasks import build_model, load_data; "
        "build_model('vit-b-16', load_data('digits'), seed=0, pretrained=True)"
    )
    closed = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https")}

    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | closed | {"no_proxy": ""}, capture_output=True, text=True
    )
    assert "ImageNet weights of vit-b-16 are not in torch's cache and cannot be downloaded" in done.stderr


@pytest.mark.slow
def test_the_imagenet_weights_are_taken_all_but_the_head(tmp_path, monkeypatch):
    from torchvision.models import vit_b_16

    with torch.device("meta"):
        shapes = {name: value.shape for name, value in vit_b_16().state_dict().items()}
    file = tmp_path / "hub" / "checkpoints" / "vit_b_16-c867db91.pth"
    file.parent.mkdir(parents=True)
    torch.save({name: torch.tensor(0.5).expand(shape) for name, shape in shapes.items()}, file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = build_model("vit-b-16", images(), seed=0, pretrained=True)
    halves = {name for name, value in model.network.state_dict().items() if bool((value == 0.5).all())}
    assert halves == set(shapes) - {"heads.head.weight", "heads.head.bias"}
