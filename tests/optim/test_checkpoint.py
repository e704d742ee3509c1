"""State dicts: bitwise resume at every step, whose keys are whose, damaged ones, schedulers, distributed checkpoints."""

import copy
import io
import warnings

import pytest
import torch
from methods.cases import every_method
from optim.problems import (
    BASES,
    assert_same,
    batches,
    build,
    every_base,
    loss_of,
    mlp,
    noisy_net,
    snapshot,
    step_by_closure,
    step_by_passes,
    train,
)
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from flatwise import methods

STEPS = 12


def fresh(case, base):
    run = build(case.method, base, noisy_net)
    run.scheduler = CosineAnnealingLR(run.opt, T_max=STEPS)
    return run


def advance(run, data):
    for batch in data:
        step_by_closure(run, batch)
        run.scheduler.step()


def saved(run):
    file = io.BytesIO()
    parts = {"model": run.model, "opt": run.opt, "scheduler": run.scheduler}
    content = {name: part.state_dict() for name, part in parts.items()}
    torch.save(content | {"random": torch.get_rng_state()}, file)
    file.seek(0)
    return file


def resumed(case, base, file):
    run = fresh(case, base)
    content = torch.load(file)
    run.model.load_state_dict(content["model"])
    run.opt.load_state_dict(content["opt"])
    run.scheduler.load_state_dict(content["scheduler"])
    torch.set_rng_state(content["random"])
    return run


@every_base
@every_method
def test_resuming_after_any_step_continues_bitwise(case, base):
    data = batches(STEPS)
    torch.manual_seed(5)
    run = fresh(case, base)
    files = [saved(run)]
    for batch in data:
        advance(run, [batch])
        files.append(saved(run))
    expected = snapshot(run)
    for step, file in enumerate(files):
        again = resumed(case, base, file)
        advance(again, data[step:])
        assert_same(snapshot(again), expected, f"resumed after step {step}")


@every_method
def test_loading_into_a_run_under_way_replaces_its_state(case):
    data = batches(8)
    run, other = build(case.method), build(case.method)
    train(run, data[:4])
    train(other, batches(7, seed=9))
    other.model.load_state_dict(run.model.state_dict())
    other.opt.load_state_dict(run.opt.state_dict())
    train(run, data[4:])
    train(other, data[4:])
    assert_same(snapshot(other), snapshot(run))


@every_method
def test_a_state_dict_is_not_changed_by_what_happens_later(case):
    """What was loaded and what was saved stay apart from the run."""
    run, other = build(case.method), build(case.method)
    train(run, batches(4))
    state = copy.deepcopy(run.opt.state_dict())
    kept = copy.deepcopy(state)
    other.opt.load_state_dict(state)
    train(other, batches(4))
    assert_same(state, kept)


@every_base
@every_method
def test_our_entries_are_marked_and_the_base_never_sees_them(case, base):
    run = build(case.method, base)
    train(run, batches(4))
    state = run.opt.state_dict()
    assert set(state) == {"state", "param_groups"}
    plain = run.base.state_dict()
    for i, entries in state["state"].items():
        ours = {key for key in entries if key.startswith("flatwise.")}
        assert_same({key: value for key, value in entries.items() if key not in ours}, plain["state"][i])
    for entries in run.base.state.values():
        assert not any("flatwise" in str(key) for key in entries)
    if case.name == "eigen-sam":
        assert all(state["state"][i]["flatwise.eigenvector"].shape == p.shape for i, p in enumerate(run.params))


@every_base
@every_method
def test_the_groups_are_the_bases_own_objects(case, base):
    run = build(case.method, base)
    assert run.opt.param_groups is run.base.param_groups
    train(run, batches(2))
    run.opt.load_state_dict(copy.deepcopy(run.opt.state_dict()))
    assert run.opt.param_groups is run.base.param_groups
    run.opt.param_groups[0]["lr"] = 0.0123
    assert run.base.param_groups[0]["lr"] == 0.0123


def load_quietly(run, state):
    """A method with a memory may warn that it starts anew."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.opt.load_state_dict(state)


@every_method
def test_a_plain_state_of_the_base_optimizer_can_be_loaded(case):
    model = mlp()
    base = BASES["adamw"](model.parameters())
    for batch in batches(3):
        base.zero_grad()
        loss_of(model, batch).backward()
        base.step()
    run = build(case.method, "adamw")
    run.model.load_state_dict(model.state_dict())
    load_quietly(run, base.state_dict())
    assert_same(run.base.state_dict()["state"], base.state_dict()["state"])
    train(run, batches(2))
    assert run.base.state_dict()["state"][0]["step"] == 5


def missing_group(state):
    state["param_groups"].pop()


def missing_parameter(state):
    state["param_groups"][0]["params"].pop()


def no_state(state):
    del state["state"]


def no_groups(state):
    del state["param_groups"]


def short_vector(state):
    state["state"][0]["flatwise.eigenvector"] = torch.zeros(3)


def absent_vector(state):
    del state["state"][1]["flatwise.eigenvector"]


def text_for_vector(state):
    state["state"][0]["flatwise.eigenvector"] = "v"


DAMAGES = [missing_group, missing_parameter, no_state, no_groups, short_vector, absent_vector, text_for_vector]


@pytest.mark.parametrize("damage", DAMAGES)
@every_base
def test_a_damaged_state_is_refused_and_everything_stays_as_it_was(base, damage):
    method = methods.EigenSAM(rho=0.1, alpha=0.5, every=3, iterations=2)
    run, twin = build(method, base), build(method, base)
    data = batches(8)
    train(run, data[:4])
    train(twin, data[:4])
    damaged = copy.deepcopy(run.opt.state_dict())
    damage(damaged)
    before = snapshot(run)
    with pytest.raises((ValueError, TypeError, KeyError)):
        load_quietly(run, damaged)
    assert_same(snapshot(run), before)
    assert run.opt.param_groups is run.base.param_groups
    train(run, data[4:])
    train(twin, data[4:])
    assert_same(snapshot(run), snapshot(twin))


@every_method
def test_schedulers_work_on_the_wrapper_as_on_the_base(case):
    on_wrapper, on_base = build(case.method), build(case.method)
    first, second = CosineAnnealingLR(on_wrapper.opt, T_max=6), CosineAnnealingLR(on_base.base, T_max=6)
    for i, batch in enumerate(batches(6)):
        (step_by_passes if i % 2 else step_by_closure)(on_wrapper, batch)
        step_by_closure(on_base, batch)
        first.step()
        second.step()
        assert on_wrapper.base.param_groups[0]["lr"] == on_base.base.param_groups[0]["lr"]
    assert_same(on_wrapper.model.state_dict(), on_base.model.state_dict())


@every_method
def test_schedulers_see_a_step_through_a_scaler(case):
    run = build(case.method)
    scaler, scheduler = torch.amp.GradScaler("cpu"), CosineAnnealingLR(run.opt, T_max=6)
    for batch in batches(3):
        step_by_passes(run, batch, scaler)
        scheduler.step()
    assert run.base.param_groups[0]["lr"] == pytest.approx(0.05)


@every_base
@every_method
def test_distributed_checkpoints_hold_everything(case, base):
    """Through torch.distributed.checkpoint.state_dict, in one process: bitwise, into objects that never stepped."""
    data = batches(8)
    run, again = build(case.method, base), build(case.method, base)
    train(run, data[:4])
    state = copy.deepcopy(get_optimizer_state_dict(run.model, run.opt))
    again.model.load_state_dict(run.model.state_dict())
    set_optimizer_state_dict(again.model, again.opt, state)
    train(run, data[4:])
    train(again, data[4:])
    assert_same(snapshot(again), snapshot(run))


@every_method
def test_asking_for_a_distributed_checkpoint_before_the_first_step_changes_nothing(case):
    make = lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)
    asked, plain = build(case.method, make), build(case.method, make)
    before = copy.deepcopy(asked.model.state_dict())
    get_optimizer_state_dict(asked.model, asked.opt)
    assert_same(asked.model.state_dict(), before)
    train(asked, batches(4))
    train(plain, batches(4))
    assert_same(snapshot(asked), snapshot(plain))


@every_base
@every_method
def test_a_deep_copy_of_model_and_optimizer_continues_bitwise(case, base):
    run = build(case.method, base)
    data = batches(8)
    train(run, data[:4])
    twin = copy.deepcopy(run)
    assert twin.opt.base is twin.base
    assert twin.opt.param_groups is twin.base.param_groups
    train(run, data[4:])
    train(twin, data[4:])
    assert_same(snapshot(twin), snapshot(run))


@every_method
def test_step_hooks_run_once_a_step(case):
    run = build(case.method)
    calls = []
    run.opt.register_step_pre_hook(lambda *_: calls.append("before"))
    run.opt.register_step_post_hook(lambda *_: calls.append("after"))
    step_by_closure(run, batches(1)[0])
    step_by_passes(run, batches(1)[0])
    assert calls == ["before", "after"] * 2


@every_method
def test_a_one_cycle_schedule_moves_lr_and_momentum(case):
    run = build(case.method)
    schedule = OneCycleLR(run.opt, max_lr=0.2, total_steps=6)
    for batch in batches(4):
        step_by_closure(run, batch)
        schedule.step()
    assert run.base.param_groups[0]["momentum"] != 0.9
    assert "lr" in repr(run.opt)
