import math

import pytest

from flatwise.runs import Run, RunError, RunWarning

CONFIG = {"method": "sam", "rho": 0.05, "widths": (128, 128), "subset": None}


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", CONFIG, {"python": "3.13"})


def test_a_new_run_reads_back(run):
    again = Run.open(run.path)
    assert again == run
    assert again.config == CONFIG | {"widths": [128, 128]}
    assert again.environment == {"python": "3.13"}
    assert (again.status, again.summary, again.metrics(), again.checkpoints()) == ("unfinished", {}, [], [])


def test_the_same_configuration_opens_the_run_that_is_there(run):
    run.append({"step": 1})
    again = Run.create(str(run.path), CONFIG, {"python": "3.14"})
    assert again.metrics() == [{"step": 1}]
    assert again.environment == {"python": "3.13"}


def test_a_configuration_with_nan_equals_itself(tmp_path):
    Run.create(tmp_path, {"rho": math.nan}, {})
    assert math.isnan(Run.create(tmp_path, {"rho": math.nan}, {}).config["rho"])


def test_another_configuration_is_refused_and_the_difference_named(run):
    with pytest.raises(
        RunError, match=r"rho was 0.05, is 0.1, seed was not set, is 3\); choose another --out or delete it"
    ):
        Run.create(run.path, CONFIG | {"rho": 0.1, "seed": 3}, {})
    assert Run.open(run.path).config["rho"] == 0.05


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"other files \(thesis.tex\)"):
        Run.create(tmp_path, CONFIG, {})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunError, match="is a file"):
        Run.create(tmp_path / "thesis.tex", CONFIG, {})


def test_a_folder_left_by_a_kill_during_creation_is_used(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "environment.json").write_text("{")
    (tmp_path / ".config.json.tmp").write_text("{")
    assert Run.create(tmp_path, CONFIG, {}).environment == {}


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(RunError, match="there is no run folder"):
        Run.open(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"no config.json and no environment.json"):
        Run.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunError, match=r"it has no environment.json"):
        Run.create(tmp_path, {}, {})


@pytest.mark.parametrize("content", ["", '{"rho": 0.', "[]"])
def test_a_damaged_configuration_is_named(run, content):
    (run.path / "config.json").write_text(content)
    with pytest.raises(RunError, match=r"config.json is damaged"):
        Run.open(run.path)


def test_rewind_forgets_what_came_later(run):
    for step in (0, 10, 20, 30):
        run.append({"step": step, "loss": math.nan})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 40')
    run.finish("diverged", {})
    with pytest.warns(RunWarning, match="line 5"):
        run.rewind(20)
    assert [r["step"] for r in run.metrics()] == [0, 10, 20]
    assert run.status == "unfinished"
    run.append({"step": 30})
    assert [r["step"] for r in run.metrics()] == [0, 10, 20, 30]


def test_checkpoints_are_listed_oldest_first(run):
    for step in (200_000_000, 100, 99_999_999, 20):
        run.checkpoint_path(step).write_bytes(b"")
    (run.path / "checkpoints" / ".step-00000300.pt.tmp").write_bytes(b"")
    assert run.checkpoint_path(100).name == "step-00000100.pt"
    assert run.checkpoints() == [run.checkpoint_path(step) for step in (20, 100, 99_999_999, 200_000_000)]


def test_done_is_remembered(run):
    run.finish("finished", {"test_accuracy": 0.95, "edge": math.inf})
    again = Run.open(run.path)
    assert (again.status, again.summary) == ("finished", {"test_accuracy": 0.95, "edge": math.inf})
    with pytest.raises(ValueError, match="finished or diverged, not as 'done'"):
        run.finish("done", {})


@pytest.mark.parametrize(
    "content",
    [
        '{"status"',
        "[]",
        "{}",
        '{"status": "finished"}',
        '{"status": "finished", "summary": 3}',
        '{"status": "finished", "summary": {}}',
        '{"status": ["finished"], "summary": {"steps": 3}}',
        '{"status": "done", "summary": {"steps": 3}}',
    ],
)
def test_a_damaged_mark_counts_as_unfinished(run, content):
    (run.path / "done.json").write_text(content)
    with pytest.warns(RunWarning, match="done.json is damaged.*counts as unfinished"):
        assert run.status == "unfinished"
    with pytest.warns(RunWarning, match="counts as unfinished"):
        assert run.summary == {}
