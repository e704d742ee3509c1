"""Every method equals a slow transcription of its paper over 50 steps, and stands a check that the same hand did not write."""

import pytest
from methods.evidence import difference_from_the_base, difference_from_transcription, every_evidence

from flatwise import methods

EVIDENCE = every_evidence()
every_entry = pytest.mark.parametrize("name", EVIDENCE)


def test_every_method_has_evidence():
    assert {name.partition(",")[0] for name in EVIDENCE} == set(methods.names())


@every_entry
def test_an_entry_is_about_the_method_of_its_name(name):
    assert type(EVIDENCE[name].method) is type(methods.by_name(name.partition(",")[0]))


@every_entry
def test_fifty_steps_equal_the_transcription_of_the_paper(name):
    assert difference_from_transcription(name) <= EVIDENCE[name].tolerance


@every_entry
def test_the_transcription_differs_from_the_base_by_more_than_the_tolerance(name):
    """Otherwise the test above could not fail."""
    if name != "sgd":
        assert difference_from_the_base(name) > 1000 * EVIDENCE[name].tolerance


@every_entry
def test_the_independent_check_agrees(name):
    assert EVIDENCE[name].independent() <= EVIDENCE[name].independent_tolerance
