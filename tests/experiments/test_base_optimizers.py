"""Whether Eigen-SAM carries over: what is compared with what, over which settings."""

import pytest

from flatwise.experiments.claims.base_optimizers import BASE_OPTIMIZERS, EQUAL, judge
from flatwise.training import TrainConfig
from flatwise.training.setup import resolved

PRESET = BASE_OPTIMIZERS.preset("small")


def arms(points, top):
    """A cell with the accuracy (in per cent) and the top eigenvalue of each arm, in the order of the preset."""
    values = zip(PRESET["arms"], points, top, strict=True)
    return {arm: {"summary": {"test_accuracy": p / 100, "top_eigenvalue": t}} for arm, p, t in values}


def seed(*shifts):
    """Eigen-SAM ahead by so many points in each setting, and as many halvings of the top eigenvalue below SAM."""
    return [arms([80, 90, 90 + s, 90], [8, 4, 4 / 2**s, 2]) for s in shifts]


def test_the_reference_does_not_decide():
    outcome = judge(PRESET, [seed(9, 1, 1, 1, 2, 0), seed(-9, 1, 1, 1, 2, 0)])
    points, *ratios = [c for c in outcome.criteria if c.decisive]
    assert points.values == pytest.approx([1.0, 1.0])
    assert [c.name.split(":")[0] for c in ratios] == ["other weight decay", "label smoothing", "AdamW"]
    assert [c.values[0] for c in ratios] == pytest.approx([-1.0, -2.0, 0.0])


def test_equal_displacement_accompanies():
    outcome = judge(PRESET, [seed(1, 1, 1, 1, 1, 1)])
    (control,) = (c for c in outcome.criteria if "equal norm" in c.name)
    assert not control.decisive
    assert control.values == pytest.approx([0.0])


def test_each_setting_has_numbers_of_its_own_and_a_column():
    outcome = judge(PRESET, [seed(0, 1, 2, 3, 4, 5)])
    own = {c.name: c.values for c in outcome.criteria if c.name.endswith("points") and not c.decisive}
    assert own["wd 5e-3: points"] == pytest.approx([3.0])
    accuracy = outcome.panels[0]
    assert accuracy.columns == PRESET["names"]
    row = accuracy.values[accuracy.rows.index("Eigen-SAM")]
    assert row == pytest.approx([90.0, 91.0, 92.0, 93.0, 94.0, 95.0])
    assert accuracy.rows[0] == EQUAL


@pytest.mark.parametrize("scale", BASE_OPTIMIZERS.scales)
def test_every_setting_can_be_trained_and_belongs_to_one_group(scale):
    preset = BASE_OPTIMIZERS.preset(scale)
    assert len(preset["names"]) == len(preset["cells"])
    assert sorted(i for cells in preset["groups"].values() for i in cells) == list(range(len(preset["cells"])))
    for cell in preset["cells"]:
        for arm in preset["arms"].values():
            resolved(TrainConfig.from_dict(preset["shared"] | cell | arm))
