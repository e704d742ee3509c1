import shutil

import pytest
import torch
from measurements.runs import dense_hessian, small_run

from flatwise.measurements import Plan, measure
from flatwise.measurements.checkpoints import Checkpoint, checkpoints_of
from flatwise.runs import RunError
from flatwise.tasks.sampling import subset

PLAN = Plan(
    what=("eigenvalues", "trace", "density", "frobenius"), top=2, tol=1e-4, trace_samples=60, probes=3, dtype="float64"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs") / "run")


def steps(found):
    return [checkpoint.step for checkpoint in found]


def test_checkpoints_are_chosen_by_words_and_by_steps(run):
    assert steps(checkpoints_of(run.path, ["all"])) == [0, 4, 7, 8]
    assert steps(checkpoints_of(run.path, ["first", "last"])) == [0, 8]
    assert steps(checkpoints_of(run.path, ["8,4", "8"])) == [4, 8]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [("frist", "not by 'frist'; did you mean 'first'"), ("5", "no checkpoint of step 5; there are 0, 4, 7, 8")],
)
def test_a_checkpoint_that_is_not_there_is_answered_with_what_there_is(run, word, sentence):
    with pytest.raises(ValueError, match=sentence):
        checkpoints_of(run.path, [word])


def test_the_numbers_are_those_of_the_dense_hessian(run):
    found = measure(checkpoints_of(run.path, ["8"])[0].build(PLAN), PLAN)
    hessian, gradient, loss = dense_hessian(run, 8)
    exact, vectors = torch.linalg.eigh(hessian)
    scale = exact.abs().max().item()
    top, lowest = found["eigenvalues"]["top"], found["eigenvalues"]["lowest"]
    assert found["loss"] == pytest.approx(loss.item())
    assert found["gradient_norm"] == pytest.approx(gradient.norm().item())
    assert top["values"] == pytest.approx(exact.flip(0)[:2].tolist(), abs=1e-6 * scale)
    assert lowest["values"] == pytest.approx(exact[:1].tolist(), abs=1e-6 * scale)
    assert max(top["residuals"] + lowest["residuals"]) <= 2e-4 * scale
    aligned = (gradient @ vectors[:, -1]).abs() / gradient.norm()
    assert found["eigenvalues"]["alignment_gradient"] == pytest.approx(aligned.item(), abs=1e-3)
    for name, number in {"trace": exact.sum(), "frobenius": exact.norm()}.items():
        assert abs(found[name]["value"] - number.item()) <= 4 * found[name]["standard_error"]
    negative = found["density"]["negative"]
    share = (exact.clamp(max=0).sum().abs() / exact.abs().sum()).item()
    assert abs(negative["value"] - share) <= 4 * negative["standard_error"] + 0.02 * share
    assert found["record"]["step"] == 8
    assert found["record"]["dtype"] == "float64"
    assert all(found[name]["products"] > 0 and found[name]["seconds"] > 0 for name in PLAN.what)


def test_drawn_samples_are_recorded_and_are_those_of_the_seed(run):
    plan = Plan(what=("eigenvalues",), lowest=0, tol=1e-5, samples=20, seed=3, dtype="float64")
    found = measure(checkpoints_of(run.path, ["4"])[0].build(plan), plan)
    hessian, _, loss = dense_hessian(run, 4, subset(60, 20, 3))
    assert found["loss"] == pytest.approx(loss.item())
    assert found["eigenvalues"]["top"]["values"][0] == pytest.approx(
        torch.linalg.eigvalsh(hessian)[-1].item(), rel=1e-6
    )
    data = found["data"]
    assert (data["samples"], data["of"], data["seed"], data["split"]) == (20, 60, 3, "train")
    with pytest.raises(ValueError, match="samples is 61, but digits has only 60 of the train split"):
        checkpoints_of(run.path, ["4"])[0].build(Plan(samples=61))


def test_initial_weights_of_which_none_are_kept_are_rebuilt_from_the_seed(run, tmp_path):
    copy = shutil.copytree(run.path, tmp_path / "copy")
    (copy / "checkpoints" / "step-00000000.pt").unlink()
    rebuilt, kept = (checkpoints_of(path, ["first"])[0] for path in (copy, run.path))
    assert (rebuilt.file, kept.file) == (None, "step-00000000.pt")
    weights = [source.build(Plan()).objective.weights for source in (rebuilt, kept)]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_batches_cut_for_memory_give_the_same_numbers(run):
    source = checkpoints_of(run.path, ["last"])[0]
    plain, cut = (
        measure(source.build(plan), plan)
        for plan in (Plan(what=("eigenvalues",)), Plan(what=("eigenvalues",), max_memory="30kB"))
    )
    assert cut["eigenvalues"]["top"]["values"] == pytest.approx(plain["eigenvalues"]["top"]["values"], rel=1e-3)


def test_data_and_mode_are_chosen(run):
    subject = checkpoints_of(run.path, ["last"])[0].build(Plan(split="test", mode="train", batch_size=300))
    assert subject.data["of"] == 797
    assert subject.objective.mode == "train"
    assert [len(targets) for _, targets in subject.objective.data] == [300, 300, 197]


def test_a_checkpoint_that_vanished_or_does_not_fit_is_named(run, tmp_path):
    with pytest.raises(RunError, match=r"step-00000006.pt cannot be read"):
        Checkpoint(str(run.path), 6, "step-00000006.pt").build(Plan())
    copy = shutil.copytree(run.path, tmp_path / "copy")
    settings = (copy / "config.json").read_text()
    (copy / "config.json").write_text(settings.replace("3\n  ]", "4\n  ]"))
    with pytest.raises(RunError, match="do not fit the model"):
        Checkpoint(str(copy), 8, "step-00000008.pt").build(Plan())
