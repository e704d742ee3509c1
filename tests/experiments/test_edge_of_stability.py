"""The published claim, on real images: full-batch SAM runs on its own edge of stability, far below 2/lr. Minutes, so slow."""

import pytest

from flatwise.experiments.edge import ratios_of, sam_arm
from flatwise.training import train


@pytest.mark.slow
@pytest.mark.parametrize(("lr", "rho"), [(0.2, 0.3), (0.5, 0.1)])
def test_full_batch_sam_runs_on_its_own_edge(tmp_path, lr, rho):
    arm = sam_arm(lr, rho)
    run = train(arm.config, tmp_path / "run")
    ratios = ratios_of(run, arm.label)
    assert 0.9 <= ratios.to_edge <= 1.1
    assert ratios.to_gd_edge < 0.2
