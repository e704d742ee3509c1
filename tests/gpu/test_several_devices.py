"""Parameters on several devices: norms, displacements and scales reach all of them."""

import pytest
import torch
from gpu.devices import gpu, two_gpus
from methods.cases import RHO, every_displacing_method, every_method
from optim.problems import batches, build, closure_of, flat, halves, seeded, step_by_closure, step_by_passes
from torch import nn

from flatwise import methods
from flatwise import vectors as V

every_pair = pytest.mark.parametrize(
    "pair",
    [
        ("cpu", "cpu"),
        pytest.param(("cuda", "cpu"), marks=gpu),
        pytest.param(("cpu", "cuda"), marks=gpu),
        pytest.param(("cuda:0", "cuda:1"), marks=two_gpus),
    ],
    ids=lambda pair: " and ".join(pair),
)


class Split(nn.Module):
    """Its first half on one device and its second on another; inputs and outputs live on the CPU."""

    def __init__(self, pair):
        super().__init__()
        self.pair = pair
        self.first, self.norm, self.last = nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Linear(10, 3)
        self.first.to(pair[0])
        self.norm.to(pair[1])
        self.last.to(pair[1])

    def forward(self, x):
        x = torch.tanh(self.first(x.to(self.pair[0])))
        return self.last(self.norm(x.to(self.pair[1]))).to("cpu")


def split(pair):
    return lambda dtype=torch.float32: seeded(lambda: Split(pair)).to(dtype)


one_device = split(("cpu", "cpu"))


def everywhere(run):
    return flat([p.cpu() for p in run.params])


def by_two_closures(run, batch):
    return run.opt.step([closure_of(run, part) for part in halves(batch)])


STEPS = [step_by_closure, step_by_passes, by_two_closures]


@every_pair
@pytest.mark.parametrize("step", STEPS)
@every_method
def test_they_train_like_a_model_on_one_device(case, step, pair):
    """The tracked eigenvector amplifies rounding, hence the tolerance."""
    run, reference = build(case.method, net=split(pair)), build(case.method, net=one_device)
    for batch in batches(5):
        step(run, batch)
        step(reference, batch)
    torch.testing.assert_close(everywhere(run), everywhere(reference), rtol=0, atol=1e-3)


@every_pair
@every_displacing_method
def test_a_rho_for_each_device_reaches_its_own(case, pair):
    groups = lambda model: [
        {"params": model.last.parameters(), "rho": 2 * RHO},
        {"params": model.norm.parameters(), "rho": 0.0},
        {"params": model.first.parameters()},
    ]
    run, reference = (build(case.method, net=net, groups=groups) for net in (split(pair), one_device))
    for batch in batches(4):
        step_by_closure(run, batch)
        step_by_closure(reference, batch)
    torch.testing.assert_close(everywhere(run), everywhere(reference), rtol=0, atol=1e-3)
    assert run.opt.diagnostics["displacement_norm"] == pytest.approx(
        reference.opt.diagnostics["displacement_norm"], rel=1e-3
    )


@pytest.mark.parametrize(
    "pair", [pytest.param(("cuda", "cuda"), marks=gpu), pytest.param(("cuda:0", "cuda:1"), marks=two_gpus)], ids=str
)
@every_method
def test_a_scaler_reaches_all_devices(case, pair):
    run, reference = build(case.method, net=split(pair)), build(case.method, net=split(pair))
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    for batch in batches(4):
        for p in run.opt.passes(scaler):
            p.backward(nn.functional.cross_entropy(run.model(batch[0]).to(pair[1]), batch[1].to(pair[1])))
        scaler.step(run.opt)
        scaler.update()
        step_by_closure(reference, batch)
    torch.testing.assert_close(everywhere(run), everywhere(reference), rtol=0, atol=1e-3)


@every_pair
def test_the_algebra_reaches_all_devices(pair):
    spread = lambda *values: [torch.full((3,), v, device=d) for v, d in zip(values, pair)]
    a, b = spread(1.0, 2.0), spread(3.0, -1.0)
    for factor in (torch.tensor(0.5, device=pair[0]), torch.tensor(0.5, device=pair[1]), 0.5):
        assert [t[0].item() for t in V.add(a, b, factor)] == [2.5, 1.5]
        assert [t[0].item() for t in V.scale(a, factor)] == [0.5, 1.0]
        into, scaled = V.clone(a), V.clone(a)
        V.add_(into, b, factor)
        V.scale_(scaled, factor)
        assert [t[0].item() for t in into] == [2.5, 1.5]
        assert [t[0].item() for t in scaled] == [0.5, 1.0]
    assert V.dot(a, b).item() == 3.0
    assert V.norm(a).item() == pytest.approx(15**0.5)
    assert V.norm(V.unit(b)).item() == pytest.approx(1.0)


@every_pair
def test_weights_are_restored_on_all_devices(pair):
    run = build(methods.EigenSAM(rho=RHO, alpha=0.5, every=1, iterations=2), net=split(pair))
    before, places = everywhere(run), [(p.device, p.data_ptr()) for p in run.params]
    for batch in batches(2):
        for i, p in enumerate(run.opt.passes()):
            p.backward(nn.functional.cross_entropy(run.model(batch[0]), batch[1]))
            if i == 3:
                break
        assert torch.equal(everywhere(run), before)
        assert [(p.device, p.data_ptr()) for p in run.params] == places
