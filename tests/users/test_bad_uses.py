"""Twelve bad uses of a plain loop: every row of the table in docs/bad-uses.md is run, and its sentence is read from there."""

import builtins
import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from users.plain import batches, loss_of, momentum_sgd, network

import flatwise as fw

PAGE = Path(__file__).parents[2] / "docs" / "bad-uses.md"
ROW = re.compile(r"^\| (?P<number>\d+) \| .+ \| `(?P<kind>\w+)` \| (?P<sentence>.+) \|$", re.MULTILINE)
ROWS = {int(row["number"]): row for row in ROW.finditer(PAGE.read_text(encoding="utf-8"))}
BATCH = batches(1)[0]


def as_any_other_optimizer(model, optimizer):
    loss_of(model, BATCH).backward()
    optimizer.step()


def loss_from_before_the_passes(model, optimizer):
    loss = loss_of(model, BATCH)
    for p in optimizer.passes():
        p.backward(loss)


def backward_that_nobody_told(model, optimizer):
    for _ in optimizer.passes():
        loss_of(model, BATCH).backward()


def closure_that_returns_nothing(model, optimizer):
    def closure():
        loss_of(model, BATCH).backward()

    optimizer.step(closure)


def loss_in_place_of_a_closure(model, optimizer):
    optimizer.step(loss_of(model, BATCH))


def accumulated_outside(model, optimizer):
    def closure():
        loss = loss_of(model, BATCH)
        loss.backward()
        return loss

    loss_of(model, BATCH).backward()
    optimizer.step(closure)


def closure_through_a_scaler(model, optimizer):
    scaler = torch.amp.GradScaler("cpu")

    def closure():
        loss = loss_of(model, BATCH)
        scaler.scale(loss).backward()
        return loss

    closure()
    scaler.step(optimizer, closure)


def clipped_within_a_pass(model, optimizer):
    for p in optimizer.passes():
        p.backward(loss_of(model, BATCH))
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()


def class_as_base(model, _):
    fw.SharpnessAware(torch.optim.SGD, fw.methods.SAM(rho=0.1), model=model)


def without_the_model(model, _):
    fw.SharpnessAware(momentum_sgd(model.parameters()), fw.methods.SAM(rho=0.1))


def unscaled_within_a_pass(model, optimizer):
    scaler = torch.amp.GradScaler("cpu")
    for number, p in enumerate(optimizer.passes(scaler)):
        p.backward(loss_of(model, BATCH))
        if number == 0:
            scaler.unscale_(optimizer)


def scaled_by_hand(model, optimizer):
    scaler = torch.amp.GradScaler("cpu")
    for p in optimizer.passes(scaler):
        p.backward(scaler.scale(loss_of(model, BATCH)))


USES = dict(
    enumerate(
        [
            as_any_other_optimizer,
            loss_from_before_the_passes,
            backward_that_nobody_told,
            closure_that_returns_nothing,
            loss_in_place_of_a_closure,
            accumulated_outside,
            closure_through_a_scaler,
            clipped_within_a_pass,
            class_as_base,
            without_the_model,
            unscaled_within_a_pass,
            scaled_by_hand,
        ],
        start=1,
    )
)


def prepared():
    model = network(norm=True)
    return model, fw.SharpnessAware(momentum_sgd(model.parameters()), fw.methods.SAM(rho=0.1), model=model)


def good_step(model, optimizer):
    optimizer.zero_grad()
    for p in optimizer.passes():
        p.backward(loss_of(model, BATCH))
    optimizer.step()
    return copy.deepcopy(model.state_dict())


def kind_of(row):
    return getattr(builtins, row["kind"])


def test_the_page_has_twelve():
    assert list(ROWS) == list(USES) == list(range(1, 13))


@pytest.mark.parametrize("number", USES)
def test_a_bad_use_gets_the_sentence_of_the_page(number):
    model, optimizer = prepared()
    kind, sentence = kind_of(ROWS[number]), ROWS[number]["sentence"]
    expecting = pytest.warns if issubclass(kind, Warning) else pytest.raises
    with expecting(kind, match="^" + re.escape(sentence)):
        USES[number](model, optimizer)


@pytest.mark.parametrize("number", [number for number in USES if ROWS[number]["kind"].endswith("Error")])
def test_after_an_error_the_next_good_step_is_as_if_it_had_not_been(number):
    model, optimizer = prepared()
    buffers_before = {name: b.clone() for name, b in model.named_buffers()}
    with pytest.raises(kind_of(ROWS[number])):
        USES[number](model, optimizer)
    with torch.no_grad():
        for name, buffer in model.named_buffers():  # a forward outside of a pass is the user's own
            buffer.copy_(buffers_before[name])
    expected = good_step(*prepared())
    for name, value in good_step(model, optimizer).items():
        assert torch.equal(value, expected[name]), name
