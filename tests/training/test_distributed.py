"""One run on several processes is the run of one, to rounding: weights, metrics, checkpoints."""

import math
import signal
from dataclasses import replace

import pytest
import torch
from distributed import processes
from torch import nn
from training.on_two_processes import BASE, FEW, LAYOUTS, MORE, ONLY_DDP, REFUSED

from flatwise.runs import Run
from flatwise.training import TrainConfig, train
from flatwise.training.batch_norm import BatchNormOverProcesses, share_statistics
from flatwise.training.batches import CHUNK, Batches
from flatwise.training.distributed import World
from flatwise.training.distributed import processes as world_of
from flatwise.training.loop import load_task, surroundings


class Killed(Exception):
    pass


def kill(done, total):
    if done == 4:
        raise Killed


def begin(folder):
    """One process, killed after the checkpoint of step 3."""
    with pytest.raises(Killed):
        train(FEW["eigen-sam"], folder, progress=kill)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What two processes found, by scenario, and the folder with their runs."""
    folder = tmp_path_factory.mktemp("two")
    for parallel in LAYOUTS:
        begin(folder / f"{parallel} begun")
    return processes.results_of("training.on_two_processes:SCENARIOS", 2, folder), folder


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    """The same for what takes longer."""
    folder = tmp_path_factory.mktemp("more")
    return processes.results_of("training.on_two_processes:SLOW", 2, folder), folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process, by name; made once."""
    folder, runs = tmp_path_factory.mktemp("one"), {}

    def made(name):
        if name not in runs:
            runs[name] = train((FEW | MORE | ONLY_DDP)[name], folder / name)
        return runs[name]

    return made


def content(run):
    return torch.load(run.checkpoints()[-1], weights_only=True)


def assert_close(found, expected, where=""):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name in expected:
            assert_close(found[name], expected[name], f"{where} {name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, pair in enumerate(zip(found, expected)):
            assert_close(*pair, f"{where} {i}")
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9, msg=lambda m: f"{where}: {m}")
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-9), (where, found, expected)
    else:
        assert found == expected, where


NOT_COMPARED = ("seconds", "products", "residual", "top_eigenvalue_residual")
"""Times, and how the search of an eigenvector went."""


def comparable(run):
    """Metrics and final numbers."""
    records = [*run.metrics(), run.summary]
    return [{name: value for name, value in record.items() if name not in NOT_COMPARED} for record in records]


def assert_same(run, other):
    assert run.status == other.status == "finished"
    ours, theirs = content(run), content(other)
    for part in ("step", "model", "optimizer"):
        assert_close(ours[part], theirs[part], part)
    assert_close(comparable(run), comparable(other))


@pytest.mark.parametrize("parallel", LAYOUTS)
@pytest.mark.parametrize("name", FEW)
def test_two_processes_leave_the_run_of_one(shared, alone, name, parallel):
    found, folder = shared
    assert found[f"{parallel} {name}"] == ["finished", "finished"]
    assert_same(Run.open(folder / f"{parallel} {name}"), alone(name))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", LAYOUTS)
@pytest.mark.parametrize("name", MORE)
def test_two_processes_leave_the_run_of_one_with_more_settings(more, alone, name, parallel):
    found, folder = more
    assert found[f"{parallel} {name}"] == ["finished", "finished"]
    assert_same(Run.open(folder / f"{parallel} {name}"), alone(name))


@pytest.mark.slow
def test_methods_that_project_on_a_subspace_find_it_on_every_process(more, alone):
    """Where the search for it ends, at a residual of 0.01, hangs on rounding; so it does in a single process."""
    found, folder = more
    assert found["ddp dom-sgd"] == ["finished", "finished"]
    ours, theirs = (content(run)["model"] for run in (Run.open(folder / "ddp dom-sgd"), alone("dom-sgd")))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-4)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", LAYOUTS)
def test_a_run_that_diverges_ends_on_both(more, parallel):
    found, folder = more
    assert found[f"{parallel} diverging"] == ["diverged", "diverged"]
    assert "training loss became" in Run.open(folder / f"{parallel} diverging").summary["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", LAYOUTS)
def test_two_processes_share_a_compiled_network(more, alone, parallel):
    found, folder = more
    assert found[f"{parallel} compiled"] == ["finished", "finished"]
    assert_same(Run.open(folder / f"{parallel} compiled"), alone("sam, BatchNorm"))


@pytest.mark.parametrize("parallel", LAYOUTS)
def test_two_processes_continue_what_one_began(shared, alone, parallel):
    found, folder = shared
    assert found[f"{parallel} begun"] == ["finished", "finished"]
    assert_same(Run.open(folder / f"{parallel} begun"), alone("eigen-sam"))


@pytest.mark.parametrize("parallel", LAYOUTS)
def test_a_stop_asked_of_one_process_stops_both_and_one_continues(shared, alone, parallel):
    found, folder = shared
    assert found[f"{parallel} stopped"] == [(4, signal.SIGTERM)] * 2
    stopped = Run.open(folder / f"{parallel} stopped")
    assert stopped.status == "unfinished"
    assert content(stopped)["step"] == 4
    assert len(content(stopped)["random"]) == 2
    assert_same(train(FEW["eigen-sam"], stopped.path), alone("eigen-sam"))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", LAYOUTS)
def test_two_processes_that_resume_go_on_bitwise_with_dropout_too(more, parallel):
    found, folder = more
    assert found[f"{parallel} resumed"] == ["finished", "finished"]
    resumed, whole = (content(Run.open(folder / f"{parallel} {name}")) for name in ("stopped", "noisy"))
    assert all(torch.equal(t, whole["model"][name]) for name, t in resumed["model"].items())
    assert not torch.equal(whole["random"][0][0], whole["random"][1][0])


REASONS = {
    "too few samples": "one of them would have no sample of the smallest, which has 1: choose another batch size",
    "samples are chosen": "esam cannot be had with parallel ddp: it goes on with samples chosen from the whole batch",
    "a subspace of shards": "dom-sgd cannot be had with parallel fsdp2: the Hessian's eigenvectors are of whole weights",
    "channels last": "channels_last cannot be had with parallel fsdp2",
    "a misspelt model": "did you mean 'mlp'",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shared_is_refused_by_all_and_said_by_the_first(shared, name):
    first, second = shared[0][name]
    assert first.startswith("ValueError")
    assert REASONS[name] in first
    assert second.startswith("Refused: process 0: ")


def test_nothing_refused_leaves_a_folder(shared):
    assert not (shared[1] / "ddp refused").exists()


def test_what_fails_on_one_process_fails_on_all(shared):
    first, second = shared[0]["fails together"]
    assert first[0] == ["ValueError: 0 fails", "ValueError: process 1: 1 fails"]
    assert second[0] == ["Refused: process 0: 0 fails", "Refused: process 1: 1 fails"]
    assert first[1:] == (0, 0, 1, [0, 1])
    assert second[1:] == (0, 1, 1, [0, 1])


# --- one process ------------------------------------------------------------------------------------------------------


def test_a_process_alone_is_a_world_that_shares_with_nobody():
    x = torch.arange(5)
    with world_of() as world:
        assert world.share(x, x)[0] is x
        assert (world.highest(3), world.gathered("a"), world.told(lambda: 4)) == (3, ["a"], 4)
        assert world.command("flatwise train") == "flatwise train"


def test_parallel_on_one_process_is_refused(tmp_path):
    with pytest.raises(ValueError, match="parallel fsdp2 has no effect on one process"):
        train(BASE, tmp_path / "run", parallel="fsdp2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="device cuda takes one GPU for each process of a machine, and torch sees 0"):
        train(BASE, tmp_path / "run", device="cuda")


def test_every_process_draws_numbers_of_its_own_and_the_first_those_of_one_alone():
    for seed in (0, 2**32 - 1):
        drawn = []
        for world in (World(), *(World(rank=rank, size=3) for rank in range(3))):
            with surroundings(TrainConfig(seed=seed), world):
                drawn.append(torch.rand(4).tolist())
        assert drawn[0] == drawn[1]
        assert len(set(map(tuple, drawn))) == 3


def test_shares_are_consecutive_and_differ_by_one_sample_at_most():
    x = torch.arange(11)
    shares = [World(rank=rank, size=3).share(x)[0] for rank in range(3)]
    assert torch.equal(torch.cat(shares), x)
    assert [len(share) for share in shares] == [4, 4, 3]


@pytest.mark.parametrize(
    ("samples", "size", "parts", "fewest"),
    [(101, 32, None, 5), (96, 32, None, 32), (101, 0, None, 101), (101, 32, 2, 2), (101, 32, 40, 1), (96, 33, 4, 7)],
)
def test_the_smallest_piece_of_all_batches_is_known_before(samples, size, parts, fewest):
    task = load_task(replace(BASE, subset=samples))
    batches = Batches(task, size, seed=0)
    assert batches.smallest_piece(parts) == fewest
    lengths = [len(batches.at(step)[1]) for step in range(batches.per_epoch)]
    split = [len(t) for n in lengths for t in torch.arange(n).tensor_split(min(parts or 1, n))]
    assert min(split) == fewest


def test_pieces_that_pass_through_the_model_at_once_count():
    many = torch.zeros(CHUNK + 3, 1, 8, 8), torch.zeros(CHUNK + 3).long()
    task = replace(load_task(BASE), train_inputs=many[0], train_targets=many[1])
    assert Batches(task, 0, seed=0).smallest_piece(None) == 3


def test_layers_that_are_somebodys_own_keep_their_statistics():
    class Own(nn.BatchNorm1d):
        pass

    model = nn.Sequential(nn.BatchNorm1d(3), Own(3), nn.LayerNorm(3))
    names = list(model.state_dict())
    share_statistics(model)
    assert [type(m) for m in model] == [BatchNormOverProcesses, Own, nn.LayerNorm]
    assert list(model.state_dict()) == names


@pytest.fixture
def a_group_of_one(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


LAYERS = {
    "of vectors": (lambda **k: nn.BatchNorm1d(3, **k), (7, 3)),
    "of sequences": (lambda **k: nn.BatchNorm1d(3, **k), (7, 3, 5)),
    "of images": (lambda **k: nn.BatchNorm2d(3, **k), (4, 3, 5, 6)),
    "of volumes": (lambda **k: nn.BatchNorm3d(3, **k), (2, 3, 4, 5, 6)),
}
OPTIONS = [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_normalising_over_processes_is_torchs_layer_for_one_process(a_group_of_one, name, options):
    make, shape = LAYERS[name]
    generator = torch.Generator().manual_seed(0)
    theirs, ours = (make(**options).double() for _ in range(2))
    share_statistics(ours)
    for training in (True, True, False):
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 1
        for layer in (theirs, ours):
            layer.train(training)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [layer(x) for layer, x in zip((theirs, ours), inputs)]
        for y in outputs:
            y.cos().sum().backward()
        torch.testing.assert_close(outputs[1], outputs[0])
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_normalising_keeps_the_dtype_of_bfloat16(a_group_of_one):
    layer = nn.BatchNorm1d(3)
    share_statistics(layer)
    assert layer(torch.randn(4, 3).bfloat16()).dtype == torch.bfloat16
