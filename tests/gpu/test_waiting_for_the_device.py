"""A step waits for the device once: to learn whether everything was finite."""

import warnings

import pytest
import torch
from gpu.devices import batches_on, build_on, gpu
from methods.cases import every_method
from optim.problems import closure_of, halves, noisy_net, step_by_closure, step_by_passes

pytestmark = gpu


def waits(action):
    """How often `action` made the host wait, by torch's own record."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            action()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(w.message) for w in caught)


def by_two_closures(run, batch):
    return run.opt.step([closure_of(run, part) for part in halves(batch)])


def by_two_parts(run, batch):
    parts = halves(batch)
    for p in run.opt.passes(parts=2):
        p.backward(torch.nn.functional.cross_entropy(run.model(parts[p.part][0]), parts[p.part][1]))
    run.opt.step()


def test_the_record_sees_a_wait():
    x = torch.ones(3, device="cuda")
    assert waits(lambda: x.sum().item()) == 1
    assert waits(lambda: x.sum()) == 0


@pytest.mark.parametrize("step", [step_by_closure, step_by_passes, by_two_closures, by_two_parts])
@pytest.mark.parametrize("base", ["sgd", "adamw"])
@every_method
def test_a_step_waits_once(case, base, step):
    """After the first one, at which Eigen-SAM refreshes its vector."""
    run = build_on("cuda", case.method, base, noisy_net)
    first, second, third = batches_on("cuda", 3)
    step(run, first)
    assert waits(lambda: step(run, second)) == 1
    assert waits(lambda: step(run, third)) == 1


@every_method
def test_with_a_scaler_only_its_own_wait_is_added(case):
    run = build_on("cuda", case.method, net=noisy_net)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    first, second, _ = batches_on("cuda", 3)
    step_by_passes(run, first, scaler)
    assert waits(lambda: step_by_passes(run, second, scaler)) == 2


@every_method
def test_no_operation_but_that_one_may_wait(case):
    """The same by the mode that raises, up to the moment when the step asks."""
    run = build_on("cuda", case.method, net=noisy_net)
    first, second, _ = batches_on("cuda", 3)
    step_by_closure(run, first)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing CUDA operation") as caught:
            step_by_closure(run, second)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert any(entry.path.name == "step.py" and "flatwise" in entry.path.parts for entry in caught.traceback)
