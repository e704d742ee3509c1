"""`torch.compile`d models train like eager ones, are compiled once, and find everything where it was at the step before."""

from itertools import pairwise

import pytest
import torch
import torch._dynamo
from methods.cases import RHO, every_displacing_method, every_method
from optim.problems import (
    BASES,
    assert_same,
    batches,
    build,
    every_base,
    flat,
    loss_of,
    noisy_net,
    norm_net,
    step_by_closure,
    step_by_passes,
    train,
)
from torch.optim.lr_scheduler import CosineAnnealingLR

import flatwise as fw
from flatwise import methods
from flatwise import vectors as V

QUICK = {"backend": "aot_eager", "fullgraph": True}
# Where one method is enough: it evaluates in training and in evaluation mode, and keeps gradients.
BOTH_MODES = methods.EigenSAM(rho=RHO, alpha=0.5, every=3, iterations=2)
# Of every tensor that it traces, also where it is no leaf; warnings are errors here.
dynamo_looks_at_grad = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def no_recompilation():
    return torch._dynamo.config.patch(error_on_recompile=True)


def model_in_place(model):
    model.compile(**QUICK)
    return model, loss_of


def model_wrapped(model):
    return torch.compile(model, **QUICK), loss_of


def loss_function(model):
    return model, torch.compile(loss_of, **QUICK)


@every_method
def test_compiled_equals_eager_and_is_compiled_in_the_first_step_only(case):
    """Training mode, and evaluation mode where the method probes: no more than that, over refreshes too."""
    check(case.method, model_in_place)


@pytest.mark.parametrize("form", [model_wrapped, loss_function])
def test_it_does_not_matter_what_is_compiled(form):
    check(BOTH_MODES, form)


def check(method, form):
    eager, inner = build(method, net=noisy_net), noisy_net()
    model, loss_fn = form(inner)
    opt = fw.SharpnessAware(BASES["sgd"](model.parameters()), method, model=model)

    def step(batch):
        def closure():
            loss = loss_fn(model, batch)
            loss.backward()
            return loss

        return opt.step(closure)

    first, *rest = batches(7)
    torch.manual_seed(3)
    losses = [step(first)]
    with no_recompilation():
        losses += [step(batch) for batch in rest]
    torch.manual_seed(3)
    expected = train(eager, [first, *rest])
    torch.testing.assert_close(torch.stack(losses), torch.stack(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(inner.state_dict(), eager.model.state_dict(), rtol=0, atol=1e-6)


@every_displacing_method
def test_a_new_rho_learning_rate_and_scale_at_every_step_compile_nothing_anew(case):
    schedule = fw.schedules.Linear(0.5, 1.5, steps=6)
    run, eager = (build(case.method, net=norm_net, rho_schedule=schedule) for _ in range(2))
    run.model.compile(**QUICK)
    first, *rest = batches(6)
    for one in (run, eager):
        scheduler = CosineAnnealingLR(one.opt, T_max=8)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1)
        step_by_passes(one, first, scaler)
        with no_recompilation():
            for batch in rest:
                scheduler.step()
                step_by_passes(one, batch, scaler)
        assert scaler.get_scale() == 64.0 * 2**6
    torch.testing.assert_close(run.model.state_dict(), eager.model.state_dict(), rtol=0, atol=1e-5)


def test_batches_of_many_sizes_are_one_compilation():
    run, eager = build(BOTH_MODES, net=norm_net), build(BOTH_MODES, net=norm_net)
    run.model.compile(**QUICK, dynamic=True)
    first, *rest = [batches(1, size=size, seed=size)[0] for size in (16, 12, 7, 16, 5)]
    step_by_closure(run, first)
    with no_recompilation():
        train(run, rest)
    train(eager, [first, *rest])
    torch.testing.assert_close(run.model.state_dict(), eager.model.state_dict(), rtol=0, atol=1e-5)


@every_base
@every_method
def test_nothing_moves_in_memory(case, base):
    """Weights, buffers, and the base optimizer's state: a CUDA graph holds their addresses."""
    run = build(case.method, base, noisy_net)

    def addresses():
        state = [v for entry in run.base.state.values() for v in entry.values() if isinstance(v, torch.Tensor)]
        return [t.data_ptr() for t in (*run.params, *run.model.buffers(), *state)]

    seen = []
    for step in (step_by_closure, step_by_passes, step_by_closure, step_by_passes):
        step(run, batches(1)[0])
        seen.append(addresses())
    assert all(before == after for before, after in pairwise(seen))


@every_base
def test_the_bases_step_can_be_compiled(base):
    """With the learning rate in a tensor, as torch asks for; a schedule then compiles nothing anew."""
    tensor_lr = {
        "sgd": lambda params: torch.optim.SGD(params, lr=torch.tensor(0.1), momentum=0.9, weight_decay=1e-2),
        "adamw": lambda params: torch.optim.AdamW(params, lr=torch.tensor(1e-2), weight_decay=1e-2),
    }
    compiled, eager = build(BOTH_MODES, tensor_lr[base]), build(BOTH_MODES, tensor_lr[base])
    compiled.base.step = torch.compile(compiled.base.step, backend="aot_eager")
    schedulers = [CosineAnnealingLR(run.opt, T_max=8) for run in (compiled, eager)]
    graphs = []
    for batch in batches(5):
        for run, scheduler in zip((compiled, eager), schedulers):
            step_by_closure(run, batch)
            scheduler.step()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert 0 < graphs[1] == graphs[-1]
    torch.testing.assert_close(flat(compiled.params), flat(eager.params), rtol=0, atol=1e-5)


@pytest.mark.parametrize("operation", ["scale", "scale_", "add", "add_"])
def test_a_factor_in_a_tensor_is_no_constant_of_compiled_code(operation):
    compiled = torch.compile(getattr(V, operation), **QUICK)
    vector = [torch.ones(3), None, torch.ones(2, 2)]
    arguments = lambda: (V.clone(vector), vector) if "add" in operation else (V.clone(vector),)
    compiled(*arguments(), torch.tensor(0.5))
    with no_recompilation():
        for factor in (0.25, -3.0, 1.0, 0.0):
            ours, plain = arguments(), arguments()
            result = compiled(*ours, torch.tensor(factor))
            expected = getattr(V, operation)(*plain, factor)
            assert_same(ours[0] if result is None else result, plain[0] if expected is None else expected)


@dynamo_looks_at_grad
def test_a_closure_can_be_compiled_with_its_backward():
    run, eager = build(BOTH_MODES), build(BOTH_MODES)

    @torch.compile(backend="aot_eager")
    def forward_and_backward(inputs, targets):
        loss = torch.nn.functional.cross_entropy(run.model(inputs), targets)
        loss.backward()
        return loss

    for batch in batches(4):
        run.opt.step(lambda batch=batch: forward_and_backward(*batch))
        step_by_closure(eager, batch)
    torch.testing.assert_close(flat(run.params), flat(eager.params), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_compiled_by_inductor():
    run, eager = build(BOTH_MODES, net=norm_net), build(BOTH_MODES, net=norm_net)
    run.model.compile(fullgraph=True)
    first, *rest = batches(7)
    step_by_closure(run, first)
    with no_recompilation():
        train(run, rest)
    train(eager, [first, *rest])
    torch.testing.assert_close(run.model.state_dict(), eager.model.state_dict(), rtol=0, atol=1e-4)


@dynamo_looks_at_grad
@pytest.mark.slow
def test_backward_graphs_are_captured_once_by_compiled_autograd():
    run, eager = build(BOTH_MODES, net=norm_net), build(BOTH_MODES, net=norm_net)
    run.model.compile(**QUICK)
    torch._dynamo.utils.counters.clear()
    captures = []
    with torch._dynamo.compiled_autograd._enable(torch.compile(**QUICK)):
        for batch in batches(5):
            step_by_closure(run, batch)
            captures.append(torch._dynamo.utils.counters["compiled_autograd"]["captures"])
    train(eager, batches(5))
    assert captures == [2] * 5, "one in training mode, one in evaluation mode"
    torch.testing.assert_close(run.model.state_dict(), eager.model.state_dict(), rtol=0, atol=1e-6)


def test_a_model_can_be_compiled_after_the_optimizer_was_made():
    run, eager = build(BOTH_MODES, net=norm_net), build(BOTH_MODES, net=norm_net)
    data = batches(6)
    train(run, data[:3])
    run.model.compile(**QUICK)
    train(run, data[3:])
    train(eager, data)
    torch.testing.assert_close(run.model.state_dict(), eager.model.state_dict(), rtol=0, atol=1e-6)
