"""A checkpoint goes from device to device, and training goes on where it was."""

import io

import pytest
import torch
from gpu.devices import batches_on, build_on, gpu
from methods.cases import every_method
from optim.problems import assert_same, every_base, flat, norm_net, snapshot, step_by_closure, train

ROUTES = [
    ("cpu", "cpu", "cpu"),
    pytest.param(("cuda", "cuda", "cuda"), marks=gpu),
    pytest.param(("cuda", "cpu", "cuda"), marks=gpu),
    pytest.param(("cpu", "cuda", "cpu"), marks=gpu),
]
every_route = pytest.mark.parametrize("route", ROUTES, ids="-".join)


def moved(run, again, where):
    file = io.BytesIO()
    torch.save({"model": run.model.state_dict(), "optimizer": run.opt.state_dict()}, file)
    file.seek(0)
    content = torch.load(file, map_location=where, weights_only=True)
    again.model.load_state_dict(content["model"])
    again.opt.load_state_dict(content["optimizer"])
    return again


@every_route
@every_base
@every_method
def test_there_and_back_again_the_next_step_is_bitwise_the_same(case, base, route):
    start, through, end = route
    run = build_on(start, case.method, base, norm_net)
    data = batches_on(start, 6)
    train(run, data[:4])
    there = moved(run, build_on(through, case.method, base, norm_net), through)
    again = moved(there, build_on(end, case.method, base, norm_net), end)
    for batch in data[4:]:
        step_by_closure(run, batch)
        step_by_closure(again, batch)
    assert_same(snapshot(again), snapshot(run))


@every_route
@every_base
@every_method
def test_on_another_device_training_goes_on(case, base, route):
    """Everything of the size of a parameter is where the parameter is."""
    start, through, _ = route
    run = build_on(start, case.method, base, norm_net)
    train(run, batches_on(start, 4))
    there = moved(run, build_on(through, case.method, base, norm_net), "cpu")
    state = there.opt.state_dict()["state"]
    for i, p in enumerate(there.params):
        assert all(t.device == p.device for t in state[i].values() if t.shape == p.shape)
    train(run, batches_on(start, 2, seed=5))
    train(there, batches_on(through, 2, seed=5))
    torch.testing.assert_close(flat(there.params).cpu(), flat(run.params).cpu(), rtol=0, atol=1e-3)
