import json

import pytest

from flatwise.measurements import Plan


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"what": ("trase",)}, "no quantity 'trase'; did you mean 'trace'"),
        ({"what": ()}, "one or more quantities"),
        ({"what": ("trace", "trace")}, "each of them once"),
        ({"top": 0}, "top must be a whole number of at least 1, not 0"),
        ({"lowest": -1}, "lowest must be a whole number of at least 0"),
        ({"tol": 1.0}, "tol must be above 0 and below 1"),
        ({"samples": 0}, "samples must be a whole number of at least 1"),
        ({"what": ("trace",), "top": 3}, "top 3 has no effect without eigenvalues in what"),
        ({"what": ("density",), "tol": 0.1}, "tol 0.1 has no effect without eigenvalues or landscape"),
        ({"landscape": "plane"}, "landscape plane has no effect without landscape in what"),
        ({"what": ("eigenvalues", "landscape"), "landscape": "plane", "top": 1}, "top must be at least 2"),
        ({"what": ("landscape",), "reach": 0.0}, "reach must be a finite number above 0"),
        ({"max_memory": "2 gigs"}, "max_memory must be a number of bytes above 0, such as 2GB"),
        ({"max_memory": "0"}, "max_memory must be a number of bytes above 0"),
    ],
)
def test_a_bad_value_is_answered_with_one_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Plan(**settings)


def test_only_the_defaults_that_have_an_effect_are_written_out():
    settled = Plan(what=("trace",)).settled()
    assert (settled.trace_samples, settled.probes, settled.top) == (30, None, None)
    assert Plan(what=("landscape",)).settled().landscape == "line"


def test_the_key_stands_for_what_is_measured_and_not_for_how_it_was_written():
    assert Plan().settled().key() == Plan(top=3, tol=0.01).settled().key()
    keys = {Plan(**other).settled().key() for other in ({}, {"top": 4}, {"seed": 1}, {"dtype": "float64"})}
    assert len(keys) == 4


def test_a_plan_survives_json():
    plan = Plan(what=("eigenvalues", "density"), top=5, max_memory="2GB", split="test").settled()
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    with pytest.raises(ValueError, match="has no 'tpo'; did you mean 'top'"):
        Plan.from_dict({"what": ["trace"], "tpo": 1})


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2e9), ("500 MB", 5e8), ("1e9", 1e9), ("1.5GiB", 1.5 * 2**30), ("1024", 1024)]
)
def test_memory_is_a_number_of_bytes_with_or_without_a_unit(text, size):
    assert Plan(max_memory=text).memory() == size
