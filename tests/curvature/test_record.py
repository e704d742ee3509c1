"""What is recorded of a measurement, and who passes it on."""

import dataclasses
import io
import operator
from contextlib import contextmanager

import pytest
import torch
from curvature.networks import problem
from test_objective import cross_entropy

from flatwise import Objective
from flatwise.curvature import (
    EigenTracker,
    Record,
    frobenius_norm,
    from_matrix,
    hessian,
    spectral_density,
    top_eigenpairs,
    trace,
)


def test_an_operator_knows_how_it_came_about_and_passes_it_on():
    model, data, _ = problem("mlp", torch.float32)
    model[0].eval()
    H = hessian(Objective(model, cross_entropy, data, seed=3), step=120)
    pairs = top_eigenpairs(H)
    assert pairs.record is H.record
    assert dataclasses.asdict(pairs.record) == {
        "engine": "double",
        "reason": "differentiated twice",
        "error": 0.0,
        "step": 120,
        "samples": 11.0,
        "processes": 1,
        "parameters": 57,
        "mode": "current (mixed)",
        "seed": 3,
        "draws": False,
        "checked": True,
        "dtype": "float32",
        "autocast": None,
        "device": "cpu",
        "device_name": torch.backends.cpu.get_cpu_capability(),
        "tf32": False,
        "deterministic": False,
        "torch": str(torch.__version__),
        "subset": None,
    }


def test_every_estimate_passes_the_record_on():
    model, data, _ = problem("mlp")
    H = hessian(Objective(model, cross_entropy, data), step=4)
    density = spectral_density(H, probes=2, steps=3)
    for measured in (trace(H, 4), frobenius_norm(H, 2), density, density.mean(torch.square)):
        assert measured.record is H.record


def test_what_else_is_recorded():
    model, data, _ = problem("transformer layer", torch.float32)
    record = hessian(Objective(model, cross_entropy, data, mode="train", weight=lambda b: 2.0), check=False).record
    assert (record.draws, record.checked, record.samples, record.mode) == (True, False, 4.0, "train")
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("high")
    try:
        record = hessian(Objective(model, cross_entropy, data)).record
        assert record.deterministic
        assert record.tf32
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision("highest")


def test_autocast_is_recorded_whoever_opens_it():
    """The weights stay float32, and an exact product is that of a rounded loss."""
    model, data, _ = problem("mlp", torch.float32)
    half = torch.autocast("cpu", torch.bfloat16)
    inside = Objective(model, lambda model, batch: cross_entropy(half(model), batch), data)
    assert [hessian(inside).record.autocast, hessian(inside).record.dtype] == ["bfloat16", "float32"]
    outside = Objective(model, cross_entropy, data)
    found = [hessian(outside).record.autocast]
    with half:
        found.append(hessian(outside).record.autocast)
    found.append(hessian(outside).record.autocast)
    assert found == [None, "bfloat16", None]


@contextmanager
def precision_set(setting, precision):
    """One of torch's settings of how float32 is rounded, such as `mkldnn.matmul`; "" is that of all backends."""
    of = operator.attrgetter(setting)(torch.backends) if setting else torch.backends
    before = of.fp32_precision
    of.fp32_precision = precision
    try:
        yield
    finally:
        of.fp32_precision = before


@pytest.mark.parametrize(
    ("setting", "precision", "rounded"),
    [
        ("", "tf32", True),
        ("mkldnn.matmul", "bf16", True),
        ("mkldnn.conv", "bf16", True),
        ("mkldnn.matmul", "ieee", False),
        ("cuda.matmul", "tf32", False),
        ("cudnn.conv", "ieee", False),
    ],
)
def test_rounding_set_for_each_backend_is_recorded_where_it_is_that_of_the_device(setting, precision, rounded):
    """After such a setting torch's older getters raise."""
    model, data, _ = problem("LSTM", torch.float32)
    with precision_set(setting, precision):
        assert hessian(Objective(model, cross_entropy, data)).record.tf32 is rounded
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.allow_tf32


def test_operators_of_another_origin_have_no_record():
    H = from_matrix(torch.eye(3))
    assert (H.engine, H.reason, H.record, H.error) == (None, None, None, 0.0)
    assert top_eigenpairs(H).record is None


def test_a_tracker_saves_records_as_plain_values():
    tracker, again, file = EigenTracker(), EigenTracker(), io.BytesIO()
    model, data, _ = problem("mlp", torch.float32)
    tracker.update(hessian(Objective(model, cross_entropy, data), step=7))
    torch.save(tracker.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert isinstance(again.pairs.record, Record)
    assert again.pairs.record == tracker.pairs.record
    older = tracker.state_dict()
    del older["pairs"]["record"]
    again.load_state_dict(older)
    assert again.pairs.record is None
