import pytest

from flatwise import methods
from flatwise.training import Settings, TrainConfig, hyper, resolved
from flatwise.training.setup import affordable, build_method, evaluations_in, method_settings, values_of


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("samples=3", hyper.Hyper("samples", 3)),
        ("rho=0.5", hyper.Hyper("rho", 0.5)),
        ("rho=.5", hyper.Hyper("rho", 0.5)),
        ("scaled=all", hyper.Hyper("scaled", "all")),
        ("on=true", hyper.Hyper("on", True)),
        ("stop=null", hyper.Hyper("stop", None)),
        ("tsam.tilt=1e-1", hyper.Hyper("tilt", 0.1, "tsam")),
        ("eigen-sam.source=power", hyper.Hyper("source", "power", "eigen-sam")),
        ("list=[1]", hyper.Hyper("list", "[1]")),
    ],
)
def test_a_word_is_a_name_and_a_value_for_one_method_or_for_all(word, expected):
    assert hyper.read(word) == expected


@pytest.mark.parametrize("word", ["samples", "samples=", "=3", ".samples=3", "two words=3", ""])
def test_anything_else_is_refused(word):
    with pytest.raises(ValueError, match="hyper takes words such as samples=3"):
        Settings(hyper=(word,))


def test_what_is_written_is_read_again():
    values = {"a": 1, "b": 0.25, "c": True, "d": "text", "e": None, "f": 1e-9}
    assert {entry.name: entry.value for entry in map(hyper.read, hyper.write(values))} == values


def test_a_word_for_one_method_goes_before_a_word_for_all():
    words = ("samples=3", "nso.samples=1", "tsam.tilt=5")
    assert hyper.for_method(words, "tsam") == {"samples": 3, "tilt": 5}
    assert hyper.for_method(words, "nso") == {"samples": 1}


@pytest.mark.parametrize(
    "settings", [{"hyper": ("a=1", "a=2")}, {"hyper": ("rho=0.1",), "rho": 0.2}, {"hyper": ("x.a=1", "x.a=1")}]
)
def test_a_hyperparameter_is_given_once(settings):
    with pytest.raises(ValueError, match="is given twice"):
        Settings(**settings)


def test_resolved_settings_name_every_hyperparameter_and_are_resolved_already():
    plain = resolved(TrainConfig(method="tsam", rho=0.1, hyper=("tsam.tilt=5",)))
    assert plain.rho == 0.1
    assert set(plain.hyper) == {"radius=20.0", "tilt=5", "samples=3"}
    assert resolved(plain) == plain
    assert build_method(plain) == methods.TSAM(rho=0.1, tilt=5)


@pytest.mark.parametrize("method", methods.names())
def test_every_method_is_built_from_its_resolved_settings(method):
    config = resolved(TrainConfig(method=method))
    assert resolved(config) == config
    assert build_method(config, 1000) == methods.by_name(
        method, **{"late-sam": {"start": 750}, "ae-sam": {"steps": 1000}}.get(method, {})
    )


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"method": "tsam", "hyper": ("tlt=1",)}, "tlt 1 has no effect with method tsam; .* did you mean 'tilt'"),
        ({"method": "sgd", "hyper": ("tilt=1",)}, "tilt 1 has no effect with method sgd; .* there is none"),
        ({"method": "sam", "hyper": ("tsam.tilt=1",)}, "hyper tsam.tilt has no effect with method sam"),
        ({"method": "nso", "hyper": ("samples=0",)}, "samples must be at least 1"),
    ],
)
def test_a_hyperparameter_that_a_method_does_not_take_is_refused(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        resolved(TrainConfig(**config))


def test_a_share_of_the_run_becomes_a_number_of_steps():
    late = TrainConfig(method="late-sam", hyper=("start=0.5", "stop=0.75"))
    assert (build_method(late, 200).start, build_method(late, 200).stop) == (100, 150)
    assert build_method(TrainConfig(method="late-sam", hyper=("start=40",)), 200).start == 40
    # what AE-SAM calls start is no number of steps
    assert build_method(TrainConfig(method="ae-sam", hyper=("start=0.5",)), 200).start == 0.5


def test_the_random_numbers_of_a_method_hang_on_the_seed_of_the_run():
    assert values_of(TrainConfig(method="nso", seed=7))["seed"] == 7
    assert build_method(resolved(TrainConfig(method="nso", seed=7))).seed == 7
    assert build_method(TrainConfig(method="nso", seed=7, hyper=("seed=1",))).seed == 1


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({"method": "sgd"}, 100),
        ({"method": "sam"}, 50),
        ({"method": "eigen-sam"}, 48),
        ({"method": "tsam"}, 16),
        ({"method": "late-sam"}, 80),
        ({"method": "late-sam", "hyper": ("start=0.2", "stop=0.6")}, 71),
        ({"method": "late-sam", "hyper": ("start=40",)}, 70),
        ({"method": "sam", "evaluations": 1}, 1),
        ({"method": "ae-sam"}, None),
        ({"method": "sam", "evaluations": None}, None),
    ],
)
def test_a_budget_pays_for_the_steps_whose_evaluations_it_holds(config, steps):
    budget = TrainConfig(**{"evaluations": 100, **config})
    assert affordable(budget) == steps
    if steps is not None and steps > 1:
        assert evaluations_in(budget, steps) <= 100 < evaluations_in(budget, steps + 1)


def test_defaults_in_a_run_are_those_of_the_methods_but_for_numbers_of_steps():
    for name in methods.names():
        own, here = methods.settings(name), method_settings(name)
        assert own.keys() == here.keys()
        assert {key for key in own if own[key] != here[key]} <= {"start", "steps"}
