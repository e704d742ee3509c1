"""Parameters that cannot be displaced are refused before anything happens, with the way out; and the way out works."""

import pytest
import torch
from methods.cases import every_method
from optim.problems import BASES, batches, build, loss_of, seeded, step_by_closure, train, weights
from torch import nn

import flatwise as fw
from flatwise import methods


def complex_layer():
    return nn.Linear(6, 3, dtype=torch.complex64)


def valueless_layer():
    return nn.Linear(6, 3, device="meta")


def partly_valueless_model():
    return nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 3, device="meta"))


def lazy_layer():
    return nn.LazyLinear(3)


REFUSED = {
    complex_layer: "complex parameters are not supported: hold real and imaginary parts in two real parameters",
    valueless_layer: r"parameters on the meta device .* \(model.to_empty",
    partly_valueless_model: r"parameters on the meta device .* \(model.to_empty",
    lazy_layer: "run one batch through it before an optimizer gets them",
}


@pytest.mark.parametrize("model", REFUSED)
@every_method
def test_they_are_refused_at_once(case, model):
    layer = model()
    with pytest.raises(ValueError, match=REFUSED[model]):
        fw.SharpnessAware(torch.optim.SGD(layer.parameters(), lr=0.1), case.method, model=layer)


@pytest.mark.parametrize("model", REFUSED)
@pytest.mark.parametrize("params", [lambda m: m.parameters(), lambda m: list(m.parameters())])
@every_method
def test_they_are_refused_as_another_group_and_nothing_changes(case, params, model):
    run, twin = build(case.method), build(case.method)
    data = batches(3)
    train(run, data[:1])
    train(twin, data[:1])
    with pytest.raises(ValueError, match=REFUSED[model]):
        run.opt.add_param_group({"params": params(model())})
    assert len(run.opt.param_groups) == 1
    train(run, data[1:])
    train(twin, data[1:])
    assert all(torch.equal(p, q) for p, q in zip(run.params, twin.params))


def test_a_single_parameter_can_be_added_as_torch_allows():
    run = build(methods.SAM(rho=0.1))
    extra = nn.Parameter(torch.ones(3))
    run.opt.add_param_group({"params": extra})
    assert run.opt.param_groups[1]["params"][0] is extra


def test_named_parameters_can_be_added_as_torch_allows():
    model = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 3))
    opt = fw.SharpnessAware(BASES["sgd"](model[0].named_parameters()), methods.SAM(rho=0.1), model=model)
    opt.add_param_group({"params": model[1].named_parameters(prefix="1")})
    assert [len(group["params"]) for group in opt.param_groups] == [2, 2]
    assert opt.param_groups[1]["param_names"] == ["1.weight", "1.bias"]


def test_a_model_with_lazy_buffers_only_is_refused_too():
    model = nn.Sequential(nn.Linear(6, 3), nn.LazyBatchNorm1d(affine=False))
    with pytest.raises(ValueError, match="run one batch through it"):
        fw.SharpnessAware(BASES["sgd"](model.parameters()), methods.SAM(rho=0.1), model=model)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@every_method
def test_lazy_modules_train_after_one_batch(case):
    model = seeded(lambda: nn.Sequential(nn.LazyLinear(10), nn.LazyBatchNorm1d(), nn.Tanh(), nn.LazyLinear(3)))
    (batch,) = batches(1)
    seeded(lambda: model(batch[0]))
    run = build(case.method, net=lambda dtype: model)
    losses = [float(step_by_closure(run, batch)) for _ in range(6)]
    assert losses[-1] < losses[0]
    assert run.model[1].num_batches_tracked.item() == 1 + 6


@every_method
def test_a_model_from_the_meta_device_trains_once_it_has_values(case):
    model = nn.Sequential(nn.Linear(6, 10, device="meta"), nn.Tanh(), nn.Linear(10, 3, device="meta"))
    model.to_empty(device="cpu")
    seeded(lambda: [layer.reset_parameters() for layer in (model[0], model[2])])
    run = build(case.method, net=lambda dtype: model)
    losses = [float(loss) for loss in train(run, batches(1) * 6)]
    assert losses[-1] < losses[0]


class ComplexFrozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.phases = nn.Parameter(torch.randn(3, dtype=torch.complex64), requires_grad=False)

    def forward(self, x):
        return (self.layer(x) * self.phases).real


@every_method
def test_complex_parameters_that_the_optimizer_does_not_hold_are_nobodys_business(case):
    run = build(case.method, net=lambda dtype: seeded(ComplexFrozen), groups=lambda model: model.layer.parameters())
    before = weights(run)
    for batch in batches(3):
        for p in run.opt.passes():
            p.backward(loss_of(run.model, batch))
        run.opt.step()
    assert [torch.equal(p, old) for p, old in zip(run.params, before)] == [True, False, False]
