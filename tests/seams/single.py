"""Seams within one process: how a step is driven, in which precision, with which base, what the network is made of."""

import contextlib
import copy
import io
import pickle

import torch
import torch.nn.functional as F
from optim.problems import (
    build,
    closure_of,
    halves,
    loss_of,
    mlp,
    noisy_net,
    norm_net,
    step_by_closure,
    step_by_passes,
    train,
)
from seams.seam import STEPS, Seam, along, data, slowly
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import flatwise as fw

# --- how a step is driven ---------------------------------------------------------------------------------------------


def by_closures(setup, batch):
    """Micro-batches of equal size, a closure each."""
    setup.opt.step([closure_of(setup, half) for half in halves(batch)])


def by_micro_batches(setup, batch):
    """Of unequal size, weighted."""
    for p in setup.opt.passes():
        for part in halves(batch, (4, 12)):
            p.backward(loss_of(setup.model, part), weight=len(part[0]))
    setup.opt.step()


def by_record(setup, batch):
    """Somebody else's backward."""
    for p in setup.opt.passes():
        for part in halves(batch):
            loss = loss_of(setup.model, part)
            loss.backward()
            p.record(loss)
    setup.opt.step()


def by_parts(setup, batch):
    """Every evaluation is the mean over two parts."""
    parts = halves(batch)
    for p in setup.opt.passes(parts=2):
        p.backward(loss_of(setup.model, parts[p.part]))
    setup.opt.step()


def by_each_part_twice(setup, batch):
    """A dialogue for each of two parts that are the same: their mean is one of them."""
    for p in setup.opt.passes(parts=2, each=True):
        p.backward(loss_of(setup.model, batch))
    setup.opt.step()


def after_an_interruption(setup, batch):
    """An exception in every pass in turn, and then the step."""
    for stop in range(3):
        with contextlib.suppress(KeyError):
            for number, p in enumerate(setup.opt.passes()):
                p.backward(loss_of(setup.model, batch))
                if number == stop:
                    raise KeyError
        setup.opt.zero_grad()
    step_by_passes(setup, batch)


def with_skipped_steps(setup, batch):
    """A batch that is not finite before each step."""
    step_by_closure(setup, (batch[0] * torch.inf, batch[1]))
    step_by_closure(setup, batch)


DRIVEN = {
    "step(closure)": step_by_closure,
    "step([closure, ...])": by_closures,
    "passes": step_by_passes,
    "unequal micro-batches": by_micro_batches,
    "record": by_record,
    "parts": by_parts,
    "each part": by_each_part_twice,
    "interrupted passes": after_an_interruption,
    "non-finite batches": with_skipped_steps,
}

# --- precision --------------------------------------------------------------------------------------------------------


def scaled(case, step):
    """A run through a GradScaler whose scale is a power of two."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=7)
    return along(lambda setup, batch: step(setup, batch, scaler))(case)


def clipped_step(setup, batch, scaler=None):
    for p in setup.opt.passes(scaler):
        p.backward(loss_of(setup.model, batch))
    if scaler is not None:
        scaler.unscale_(setup.opt)
    torch.nn.utils.clip_grad_norm_(setup.params, 0.2)
    if scaler is None:
        setup.opt.step()
    else:
        scaler.step(setup.opt)
        scaler.update()


def autocast(dtype):
    def step(setup, batch):
        for p in setup.opt.passes():
            with torch.autocast("cpu", dtype):
                loss = F.cross_entropy(setup.model(batch[0]), batch[1])
            p.backward(loss)
        setup.opt.step()

    return step


# --- groups -----------------------------------------------------------------------------------------------------------


def two_groups(model):
    return [{"params": model[0].parameters()}, {"params": model[2].parameters()}]


def groups_with_rho(case, *factors):
    """Of multiples of the method's rho, where it has one."""

    def groups(model):
        found = [{"params": model[0].parameters()}, {"params": model[2].parameters()}]
        for group, factor in zip(found, factors):
            if hasattr(case.method, "rho"):
                group["rho"] = factor * case.method.rho
        return found

    return groups


def with_a_group_added(case):
    first = lambda model: [{"params": model[0].parameters()}]
    setup = build(case.method, dtype=torch.float64, groups=first)
    setup.opt.add_param_group({"params": setup.model[2].parameters()})
    train(setup, data(), step_by_passes)
    return torch.cat([p.detach().reshape(-1) for p in setup.params])


def scheduled(case):
    """A schedule that stays at 1; without effect on a method that has no rho, and refused there."""
    schedule = fw.schedules.Linear(1.0, 1.0, steps=STEPS) if hasattr(case.method, "rho") else None
    return along(step_by_passes, rho_schedule=schedule)(case)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def by_torch_save(setup, fresh):
    file = io.BytesIO()
    torch.save({"model": setup.model.state_dict(), "optimizer": setup.opt.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh.model.load_state_dict(saved["model"])
    fresh.opt.load_state_dict(saved["optimizer"])
    return fresh


def by_distributed_state_dict(setup, fresh):
    state = copy.deepcopy(get_optimizer_state_dict(setup.model, setup.opt))
    fresh.model.load_state_dict(setup.model.state_dict())
    set_optimizer_state_dict(fresh.model, fresh.opt, state)
    return fresh


def by_deepcopy(setup, fresh):
    fresh.model, fresh.base, fresh.opt = copy.deepcopy((setup.model, setup.base, setup.opt))
    return fresh


def by_pickle(setup, fresh):
    fresh.model, fresh.base, fresh.opt = pickle.loads(pickle.dumps((setup.model, setup.base, setup.opt)))
    return fresh


def resumed(transfer):
    """Through a checkpoint after every seventh step."""

    def weights(case):
        setup = build(case.method, dtype=torch.float64)
        for number, batch in enumerate(data()):
            if number % 7 == 6:
                setup = transfer(setup, build(case.method, dtype=torch.float64))
            step_by_passes(setup, batch)
        return torch.cat([p.detach().reshape(-1) for p in setup.params])

    return weights


# --- compiled ---------------------------------------------------------------------------------------------------------


def compiled(case):
    torch.compiler.reset()
    setup = build(case.method, dtype=torch.float64)
    whole = torch.compile(setup.model, backend="aot_eager", fullgraph=True)
    setup.opt.model = whole

    def step(setup, batch):
        for p in setup.opt.passes():
            p.backward(F.cross_entropy(whole(batch[0]), batch[1]))
        setup.opt.step()

    train(setup, data(), step)
    return torch.cat([p.detach().reshape(-1) for p in setup.params])


# --- the rows ---------------------------------------------------------------------------------------------------------


def on(net, kind, base="sgd", step=step_by_passes, name="", **extra):
    return Seam(name, along(step, net, base), kind, reference=lambda case: slowly(case, net, base), **extra)


def in_groups(name, *factors):
    groups = lambda case: groups_with_rho(case, *factors)
    return Seam(
        name,
        lambda case: along(step_by_passes, groups=groups(case))(case),
        GROUPS,
        reference=lambda case: slowly(case, groups=groups(case)),
    )


BASES_WITH_MOMENTUM = {
    "AdamW": "adamw",
    "SGD, Nesterov": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    "Adam, foreach": lambda params: torch.optim.Adam(params, lr=1e-2, foreach=True),
    "AdamW, fused": lambda params: torch.optim.AdamW(params, lr=1e-2, fused=True),
    "NAdam": lambda params: torch.optim.NAdam(params, lr=1e-2),
}
BASES_WITHOUT = {
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=1e-3),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=1e-2),
}
BASE, PRECISION, RESUMED, GROUPS = "base optimizer", "precision and layers", "resumed every seventh step", "groups"

SINGLE = [
    *(
        Seam(name, along(step), "one step", takes_adaptive=step is not by_each_part_twice)
        for name, step in DRIVEN.items()
    ),
    *(on(mlp, BASE, base, name=name) for name, base in BASES_WITH_MOMENTUM.items()),
    *(on(mlp, BASE, base, name=name, has_momentum=False) for name, base in BASES_WITHOUT.items()),
    Seam("two groups", along(step_by_passes, groups=two_groups), GROUPS),
    Seam("add_param_group", with_a_group_added, GROUPS),
    in_groups("a rho for each group", 0.5, 2.0),
    in_groups("a group with rho 0", 1.0, 0.0),
    Seam("rho schedule", scheduled, GROUPS),
    Seam("torch.save", resumed(by_torch_save), RESUMED),
    Seam("distributed state dict", resumed(by_distributed_state_dict), RESUMED),
    Seam("deepcopy", resumed(by_deepcopy), RESUMED),
    Seam("pickle", resumed(by_pickle), RESUMED),
    on(norm_net, PRECISION, name="BatchNorm"),
    on(noisy_net, PRECISION, name="BatchNorm and dropout"),
    Seam("torch.compile", compiled, PRECISION, note="aot_eager, whole graph"),
    Seam("GradScaler", lambda case: scaled(case, step_by_passes), PRECISION),
    Seam(
        "GradScaler, unscale_, clipping",
        lambda case: scaled(case, clipped_step),
        PRECISION,
        reference=along(clipped_step),
        note="against clipping without scaler",
    ),
    Seam(
        "bfloat16 autocast",
        along(autocast(torch.bfloat16), dtype=torch.float32),
        PRECISION,
        tolerance=0.2,
        reference=lambda case: slowly(case, dtype=torch.float32),
        note="against float32",
    ),
]
