from dataclasses import replace

import pytest

from flatwise.experiments.edge import gd_arm, ratios_of, sam_arm
from flatwise.training import resolved, train


def test_the_arms_are_the_protocol():
    config = resolved(sam_arm(0.2, 0.3).config)
    assert (config.data, config.widths, config.init, config.loss) == (
        "digits-full",
        (200, 200, 200),
        "glorot",
        "squared-error",
    )
    assert (config.batch_size, config.momentum, config.weight_decay, config.schedule) == (0, 0.0, 0.0, "constant")
    assert (config.lr, config.rho, config.steps) == (0.2, 0.3, 1500)
    assert (gd_arm(2.0).config.lr, gd_arm(2.0).config.steps) == (2.0, 6000)


def test_gradient_descent_arrives_at_two_over_the_learning_rate_and_sam_stays_far_below(tmp_path):
    small = {"subset": 100, "widths": (32, 32), "probe_every": 10}
    gd = train(replace(gd_arm(2.0).config, steps=200, **small), tmp_path / "gd")
    found = ratios_of(gd, "GD")
    assert found.to_edge == found.to_gd_edge == pytest.approx(1, abs=0.1)
    assert found.arrived is not None
    assert "top eigenvalue / edge" in str(found)

    sam = ratios_of(train(replace(sam_arm(0.5, 0.3).config, steps=200, **small), tmp_path / "sam"), "SAM")
    assert sam.to_gd_edge < 0.5
    assert sam.to_edge > 2 * sam.to_gd_edge
