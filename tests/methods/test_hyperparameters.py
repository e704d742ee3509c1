"""Hyper-parameters out of range, names, and the shape that all methods share."""

import dataclasses
import math

import pytest
from methods.cases import EVERY, every_listed_displacing_method, every_listed_method

from flatwise import methods

BAD_RHO = [-0.1, math.nan, math.inf, -math.inf, None, "0.05"]


@pytest.mark.parametrize("rho", BAD_RHO)
@every_listed_displacing_method
def test_rho_must_be_a_finite_number_not_below_zero(case, rho):
    with pytest.raises((ValueError, TypeError), match="rho"):
        case.with_rho(rho)


@pytest.mark.parametrize("alpha", [-0.1, math.nan, math.inf, None, "0.2"])
def test_alpha_must_be_a_finite_number_not_below_zero(alpha):
    with pytest.raises((ValueError, TypeError), match="alpha"):
        methods.EigenSAM(alpha=alpha)


@pytest.mark.parametrize("name", ["every", "iterations"])
@pytest.mark.parametrize("value", [2.5, 0, -1, True, None, "3", math.nan, math.inf])
def test_counts_must_be_whole_numbers_above_zero(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        methods.EigenSAM(**{name: value})


def test_the_defaults_are_the_documented_ones():
    assert methods.SAM() == methods.SAM(rho=0.05)
    assert methods.EigenSAM() == methods.EigenSAM(rho=0.05, alpha=0.2, every=100, iterations=5)
    assert methods.ReverseSAM() == methods.ReverseSAM(rho=0.05)
    assert methods.GradientNorm() == methods.GradientNorm(rho=0.05)


@every_listed_method
def test_a_method_is_a_frozen_record(case):
    fields = dataclasses.fields(case.method)
    name = fields[0].name if fields else "rho"
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(case.method, name, 1.0)


@every_listed_method
def test_methods_are_found_by_name(case):
    assert methods.by_name(case.name, **hyperparameters(case.method)) == case.method


@every_listed_method
def test_the_settings_of_a_name_are_those_of_its_method(case):
    assert methods.settings(case.name).keys() == hyperparameters(case.method).keys()
    assert hyperparameters(methods.by_name(case.name)) == methods.settings(case.name)


def hyperparameters(method):
    """Those of the method, and of the one that it wraps."""
    own = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    within = own.pop("method", None)
    return own if within is None else own | hyperparameters(within)


def test_every_name_has_a_case_here():
    assert {case.name for case in EVERY} == set(methods.names())


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("samm", "sam"), ("eigensam", "eigen-sam"), ("revers-sam", "reverse-sam")]
)
def test_a_misspelt_method_is_answered_with_the_nearest(wrong, nearest):
    with pytest.raises(ValueError, match=nearest):
        methods.by_name(wrong)


def test_a_misspelt_hyperparameter_is_named():
    with pytest.raises((TypeError, ValueError), match="rh0"):
        methods.by_name("sam", rh0=0.1)
