"""Parts of claims that are made of stages: an interrupted one goes on after the last, as if nothing had been."""

import pytest
import torch

from flatwise.experiments.claims.listed import CLAIMS
from flatwise.experiments.claims.stages import Stages
from flatwise.runs import RunError

STAGED = ("third-order-sde", "flat-or-averaged", "free-eigenvector", "margin-by-rescaling")
SECONDS = ("seconds",)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def timeless(found):
    """Without what a clock has told."""
    if isinstance(found, dict):
        return {key: timeless(value) for key, value in found.items() if key not in SECONDS}
    return found


@pytest.mark.parametrize("name", STAGED)
def test_an_interrupted_part_goes_on_after_its_last_stage(name, tmp_path):
    claim = CLAIMS[name]
    preset = claim.preset("smoke")
    cell = claim.cells(preset)[0]
    known = []

    def stop(done, total):
        if done > 0.6 * total:
            known.extend(sorted(tmp_path.glob("stopped/*.json")))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        claim.measure(preset, cell, 100, tmp_path / "stopped", stop)
    assert known
    times = [file.stat().st_mtime_ns for file in known]
    found = claim.measure(preset, cell, 100, tmp_path / "stopped", lambda done, total: None)
    assert [file.stat().st_mtime_ns for file in known] == times
    assert timeless(found) == timeless(claim.measure(preset, cell, 100, tmp_path / "whole", lambda done, total: None))


def test_a_stage_of_other_settings_is_refused(tmp_path):
    assert Stages(tmp_path, {"lr": (0.1, 0.2)}).keep("first", lambda: {"loss": 1.0}) == {"loss": 1.0}
    assert Stages(tmp_path, {"lr": (0.1, 0.2)}).keep("first", lambda: {"loss": 2.0}) == {"loss": 1.0}
    with pytest.raises(RunError, match="other settings"):
        Stages(tmp_path, {"lr": (0.1, 0.3)}).keep("first", lambda: {"loss": 2.0})
