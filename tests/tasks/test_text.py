import pytest
import torch

from flatwise.tasks import load_data
from flatwise.tasks.downloads import cache_folder
from flatwise.tasks.text import corpus

LINES = [f"line {i:04d} of the play\n" for i in range(200)]


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No data anywhere: neither the variable nor a cache."""
    monkeypatch.delenv("FLATWISE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty cache"))


@pytest.fixture
def play(tmp_path):
    (tmp_path / "play.txt").write_text("".join(LINES))
    return f"text:{tmp_path / 'play.txt'}"


def characters(codes):
    return "".join(map(chr, codes.flatten().tolist()))


def test_the_targets_are_the_characters_that_follow(play):
    task = load_data(play)
    text = "".join(LINES[:180])
    assert task.num_classes == 128
    assert task.train_inputs.shape == task.train_targets.shape == ((len(text) - 1) // 64, 64)
    number = task.train_inputs.numel()
    assert characters(task.train_inputs) == text[:number]
    assert characters(task.train_targets) == text[1 : number + 1]


def test_a_tenth_of_the_lines_at_the_end_is_held_out(play):
    task = load_data(play)
    assert "".join(LINES[180:]).startswith(characters(task.test_inputs))
    assert "the last 20 of 200 lines for testing" in task.notes


def test_of_a_long_text_ten_thousand_lines_are_held_out():
    source = corpus("long", "a line\n" * 25_000)
    assert (len(source.train), len(source.test)) == ((7 * 15_000 - 1) // 64, (7 * 10_000 - 1) // 64)


def test_a_text_that_is_not_ascii_has_its_own_characters_as_classes():
    source = corpus("verse", "zäh\n" * 400)
    assert source.num_classes == 4
    assert source.train.inputs()[0, :5].tolist() == [2, 3, 1, 0, 2]  # newline, h, z, ä in the order of their codes


def test_noise_and_subset_work_on_characters(play):
    plain, noisy = load_data(play, seed=1, subset=20), load_data(play, seed=1, subset=20, label_noise=0.25)
    assert torch.equal(plain.train_inputs, noisy.train_inputs)
    changed = (plain.train_targets != noisy.train_targets).float().mean()
    assert 0.2 < changed <= 0.25


def test_shakespeare_is_found_below_the_root_the_variable_and_the_cache(tmp_path, monkeypatch):
    def put(folder, lines):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tinyshakespeare.txt").write_text("".join(LINES[:lines]))

    def found(**where):
        return len(load_data("tinyshakespeare", **where).train_targets)

    put(cache_folder(), 100)
    cached = found()
    put(tmp_path / "variable", 120)
    monkeypatch.setenv("FLATWISE_DATA", str(tmp_path / "variable"))
    variable = found()
    put(tmp_path / "root", 150)
    assert cached < variable < found(root=str(tmp_path / "root"))
    with pytest.raises(ValueError, match=r"tinyshakespeare is not below .*, which should hold tinyshakespeare.txt"):
        load_data("tinyshakespeare", root=str(tmp_path / "elsewhere"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe", "cannot be read .*name a file in UTF-8"),
        (b"short\n" * 20, "is too short"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_data(f"text:{tmp_path / 'mine.txt'}")


def test_settings_for_images_have_no_effect_on_text(play):
    with pytest.raises(ValueError, match="augment crops and flips images"):
        load_data(play, augment=True)
    with pytest.raises(ValueError, match="preprocess centred has no effect on 'text:"):
        load_data(play, preprocess="centred")
    with pytest.raises(ValueError, match="the data root x has no effect"):
        load_data(play, root="x")
