import pytest

from flatwise.experiments.arms import arms_of, baseline_of, pairs_of
from flatwise.training import Settings


def test_settings_go_to_the_methods_that_have_them():
    arms = {arm.name: arm for arm in arms_of(["sgd", "sam", "eigen-sam"], Settings(rho=0.1, alpha=0.3, every=10))}
    assert list(arms) == ["sgd", "sam", "eigen-sam", "sam-equal-norm"]
    assert arms["sgd"].config.rho is None
    assert (arms["sam"].config.rho, arms["sam"].config.alpha) == (0.1, None)
    assert (arms["eigen-sam"].config.rho, arms["eigen-sam"].config.alpha, arms["eigen-sam"].config.every) == (
        0.1,
        0.3,
        10,
    )


def test_a_schedule_of_rho_goes_to_the_methods_that_have_a_rho():
    arms = {arm.name: arm for arm in arms_of(["sgd", "eigen-sam"], Settings(rho_schedule="linear"))}
    found = {name: arm.config.rho_schedule for name, arm in arms.items()}
    assert found == {"sgd": "constant", "eigen-sam": "linear", "sam-equal-norm": "linear"}


def test_the_control_of_equal_norm_comes_with_eigen_sam_unless_it_is_not_wanted():
    control = arms_of(["eigen-sam"], Settings())[-1]
    assert (control.name, control.role, control.norm_of, control.config.method) == (
        "sam-equal-norm",
        "control",
        "eigen-sam",
        "sam",
    )
    assert [arm.name for arm in arms_of(["eigen-sam"], Settings(), equal_norm=False)] == ["eigen-sam"]
    assert [arm.name for arm in arms_of(["sam", "sgd"], Settings())] == ["sam", "sgd"]


@pytest.mark.parametrize(
    ("methods", "settings", "sentence"),
    [
        (["sam", "sam"], Settings(), "names one twice"),
        (["sgd", "sam"], Settings(alpha=0.1), "alpha has no effect with sgd, sam"),
        (["sgd"], Settings(rho_schedule="linear"), "rho_schedule has no effect with sgd"),
        (["sgd", "smm"], Settings(), "did you mean 'sam'"),
    ],
)
def test_bad_requests_are_answered_at_once(methods, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        arms_of(methods, settings)


def test_every_arm_is_compared_with_the_baseline_and_no_pair_comes_twice():
    arms = arms_of(["sam", "sgd", "eigen-sam"], Settings())
    assert baseline_of(arms) == "sgd"
    assert pairs_of(arms, "sgd") == [
        ("eigen-sam", "sam"),
        ("eigen-sam", "sam-equal-norm"),
        ("sam", "sgd"),
        ("eigen-sam", "sgd"),
        ("sam-equal-norm", "sgd"),
    ]
    without = arms_of(["sam", "eigen-sam"], Settings())
    assert baseline_of(without) == "sam"
    assert pairs_of(without, "sam") == [
        ("eigen-sam", "sam"),
        ("eigen-sam", "sam-equal-norm"),
        ("sam-equal-norm", "sam"),
    ]
