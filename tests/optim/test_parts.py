"""m-sharpness: one dialogue per part, directions averaged."""

import pytest
import torch
from methods.cases import RHO, every_method, every_transcribed_method
from optim.problems import (
    BASES,
    assert_same,
    batches,
    build,
    flat,
    halves,
    loss_of,
    mlp,
    norm_net,
    snapshot,
    step_by_passes,
    train,
)
from reference import transcriptions

from flatwise import SharpnessAware, methods

SIZES = (4, 6, 6)


def by_each_part(run, batch):
    parts = halves(batch, SIZES)
    for p in run.opt.passes(parts=3, each=True):
        p.backward(loss_of(run.model, parts[p.part]))
    run.opt.step()


@every_transcribed_method
def test_each_part_has_a_dialogue_of_its_own(case):
    data = batches(10, dtype=torch.float64)
    run = build(case.method, dtype=torch.float64)
    train(run, data, by_each_part)
    model = mlp(torch.float64)
    params = list(model.parameters())
    base = BASES["sgd"](params)
    for batch in data:
        parts = [case.transcription(lambda part=part: loss_of(model, part), params) for part in halves(batch, SIZES)]
        transcriptions.take_step(base, params, [sum(ts) / 3 for ts in zip(*parts)])
    torch.testing.assert_close(flat(run.params), flat(params), rtol=0, atol=case.double_tolerance)


def test_dialogues_per_part_differ_from_the_dialogue_of_the_whole():
    data = batches(10, dtype=torch.float64)
    apart, whole = (build(methods.SAM(rho=RHO), dtype=torch.float64) for _ in range(2))
    train(apart, data, by_each_part)
    train(whole, data, step_by_passes)
    assert (flat(apart.params) - flat(whole.params)).abs().max() > 1e-4


@every_method
def test_one_part_is_the_whole(case):
    def by_one_part(run, batch):
        for p in run.opt.passes(parts=1, each=True):
            assert p.part == 0
            p.backward(loss_of(run.model, batch))
        run.opt.step()

    one, whole = build(case.method), build(case.method)
    train(one, batches(5), by_one_part)
    train(whole, batches(5), step_by_passes)
    assert_same(snapshot(one), snapshot(whole))


@pytest.mark.parametrize("method", [methods.FriendlySAM(rho=RHO), methods.LookSAM(rho=RHO, every=1)])
def test_what_is_remembered_is_of_the_first_part(method):
    """A mean over parts would be wrong for some, such as eigenvectors, whose sign is arbitrary."""
    apart, first = (build(method, dtype=torch.float64) for _ in range(2))
    (batch,) = batches(1, dtype=torch.float64)
    by_each_part(apart, batch)
    step_by_passes(first, halves(batch, SIZES)[0])
    (name,) = method.init([]).vectors
    memory = lambda run: flat([entry[f"flatwise.{name}"] for entry in run.opt.state_dict()["state"].values()])
    assert torch.equal(memory(apart), memory(first))


def test_every_part_is_visited_once_in_each_evaluation():
    run = build(methods.SAM(rho=RHO))
    parts = halves(batches(1)[0])
    visits = {}
    for each in (False, True):
        visits[each] = []
        for p in run.opt.passes(parts=2, each=each):
            visits[each].append((p.part, p.at_weights))
            p.backward(loss_of(run.model, parts[p.part]))
        run.opt.step()
    assert visits[False] == [(0, True), (1, True), (0, False), (1, False)]
    assert visits[True] == [(0, True), (0, False), (1, True), (1, False)]


@every_method
def test_running_statistics_advance_once_for_every_part(case):
    run = build(case.method, net=norm_net)
    train(run, batches(2), by_each_part)
    assert run.model[1].num_batches_tracked.item() == 6


@pytest.mark.parametrize("parts", [0, -1, 2.5, True, "3"])
def test_parts_out_of_range_are_refused(parts):
    run = build(methods.SAM())
    before = snapshot(run)
    with pytest.raises((ValueError, TypeError), match="parts"):
        for _ in run.opt.passes(parts=parts):
            pass
    assert_same(snapshot(run), before)


def test_each_without_parts_is_refused():
    run = build(methods.SAM())
    with pytest.raises((ValueError, TypeError), match="each"):
        for _ in run.opt.passes(each=True):
            pass


def test_an_exception_in_a_later_part_undoes_the_buffers_of_the_parts_before():
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3))
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    opt = SharpnessAware(base, methods.SAM(0.1), model=model)
    before = {name: t.clone() for name, t in model.state_dict().items()}

    def step():
        for p in opt.passes(parts=2, each=True):
            if p.part == 1:
                raise KeyError
            p.backward(model(torch.randn(5, 4)).square().mean())

    with pytest.raises(KeyError):
        step()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
