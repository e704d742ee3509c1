"""Fifty steps of every method equal a plain transcription of its paper, in float32 and float64."""

import copy

import pytest
import torch
from methods.cases import every_transcribed_method
from optim.problems import BASES, batches, build, every_base, flat, loss_of, mlp, step_by_closure, step_by_passes, train
from reference import transcriptions

from flatwise.methods import EigenSAM

every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
STEPS = 50


def transcribed(direction, base, data, dtype):
    """The weights after a run of the transcription with a plain base optimizer."""
    model = mlp(dtype)
    params = list(model.parameters())
    optimizer = BASES[base](params)
    for batch in data:
        loss = lambda batch=batch: loss_of(model, batch)
        transcriptions.take_step(optimizer, params, direction(loss, params))
    return flat(params)


def trained(method, base, data, dtype, step=step_by_closure):
    run = build(method, base, dtype=dtype)
    train(run, data, step)
    return flat(run.params)


@every_dtype
@every_base
@every_transcribed_method
def test_fifty_steps_equal_the_transcription(case, base, dtype):
    data = batches(STEPS, dtype=dtype)
    tolerance = case.double_tolerance if dtype == torch.float64 else case.single_tolerance
    expected = transcribed(case.transcription, base, data, dtype)
    found = trained(case.method, base, data, dtype)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@every_transcribed_method
def test_the_transcription_differs_from_the_base_by_more_than_the_tolerance(case):
    """Otherwise the test above could not fail."""
    data = batches(STEPS)
    plain = transcribed(transcriptions.sgd, "sgd", data, torch.float32)
    found = transcribed(case.transcription, "sgd", data, torch.float32)
    if case.name != "sgd":
        assert (found - plain).abs().max() > 5 * case.single_tolerance


def tracked(run):
    """The vector that Eigen-SAM used in the last step, from the checkpoint."""
    state = run.opt.state_dict()["state"]
    return [state[i]["flatwise.eigenvector"].clone() for i in range(len(run.params))]


@every_dtype
@every_base
def test_eigen_sam_equals_the_transcription_with_the_vector_it_tracks(base, dtype):
    method = EigenSAM(rho=0.1, alpha=0.5, every=7, iterations=3)
    run = build(method, base, dtype=dtype)
    model = mlp(dtype)
    params = list(model.parameters())
    optimizer = BASES[base](params)
    for batch in batches(STEPS, dtype=dtype):
        step_by_closure(run, batch)
        loss = lambda batch=batch: loss_of(model, batch)
        direction = transcriptions.eigen_sam(loss, params, method.rho, method.alpha, tracked(run))
        transcriptions.take_step(optimizer, params, direction)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(flat(run.params), flat(params), rtol=0, atol=tolerance)


def with_vector(run, vector):
    """Give a run between two refreshes the vector to use, through its checkpoint."""
    state = copy.deepcopy(run.opt.state_dict())
    for i, part in enumerate(vector):
        state["state"][i]["flatwise.eigenvector"] = part
    run.opt.load_state_dict(state)


@every_base
def test_eigen_sam_with_the_exact_eigenvector_equals_the_transcription(base):
    method = EigenSAM(rho=0.1, alpha=0.5, every=1000, iterations=1)
    data = batches(STEPS, dtype=torch.float64)
    run = build(method, base, dtype=torch.float64)
    step_by_closure(run, data[0])
    twin = build(method, base, dtype=torch.float64)
    twin.model.load_state_dict(run.model.state_dict())
    twin.base.load_state_dict(copy.deepcopy(run.base.state_dict()))
    _, v = transcriptions.top_eigenvector(lambda: loss_of(run.model, data[0]), run.params)
    vector = [part.view_as(p) for part, p in zip(v.split([p.numel() for p in run.params]), run.params)]
    with_vector(run, vector)
    for batch in data[1:]:
        step_by_passes(run, batch)
        loss = lambda batch=batch: loss_of(twin.model, batch)
        direction = transcriptions.eigen_sam(loss, twin.params, method.rho, method.alpha, vector)
        transcriptions.take_step(twin.base, twin.params, direction)
    torch.testing.assert_close(flat(run.params), flat(twin.params), rtol=0, atol=1e-10)
    assert torch.equal(flat(tracked(run)), v)
