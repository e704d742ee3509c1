"""The demonstration's folder after an update of the package."""

from dataclasses import replace

import pytest

from flatwise.cli.demo import Demo
from flatwise.experiments import demo as experiment
from flatwise.runs import Run, RunError, read_json


@pytest.fixture
def tiny(monkeypatch):
    """The demonstration's own code on settings of a few steps."""

    def use(epochs):
        monkeypatch.setattr(
            experiment, "SETTINGS", replace(experiment.SETTINGS, epochs=epochs, probe_every=0, subset=128)
        )
        monkeypatch.setattr(experiment, "STEPS", 2)
        monkeypatch.setattr(experiment, "GD_STEPS", 2)

    return use


def test_results_of_other_settings_are_set_aside(tiny, tmp_path, capsys):
    out = tmp_path / "demo"
    tiny(epochs=1)
    assert Demo(seeds=1, workers=1, out=out).run(["demo"]) == 0
    tiny(epochs=2)
    assert Demo(seeds=1, workers=1, out=out).run(["demo"]) == 0
    assert f"it is now {out}-1" in capsys.readouterr().out
    epochs = [read_json(folder / "runs/sam/seed-0/config.json")["epochs"] for folder in (tmp_path / "demo-1", out)]
    assert epochs == [1, 2]
    assert (out / "report.html").is_file()


def test_the_folder_of_another_comparison_is_refused(tiny, tmp_path):
    tiny(epochs=1)
    out = tmp_path / "mine"
    mine = Run.create(out / "runs/sam/seed-0", {"rho": 9.0}, {})
    with pytest.raises(RunError, match="holds another run"):
        Demo(seeds=1, workers=1, out=out).run(["demo"])
    assert Run.open(mine.path).config == {"rho": 9.0}
