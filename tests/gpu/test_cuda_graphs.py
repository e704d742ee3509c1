"""CUDA graphs replay into the same memory: what a method keeps must not be overwritten, what a graph holds must not move."""

import sys

import pytest
import torch
from gpu.devices import batches_on, build_on, gpu
from methods.cases import every_method
from optim.problems import batches, closure_of, flat, halves, loss_of, mlp, norm_net, step_by_closure, step_by_passes

STEPS = 8  # the first ones warm up and record

# Inductor warns about what it finds on the device at hand: too few multiprocessors, no TensorFloat-32.
pytestmark = [gpu, pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def by_two_closures(run, batch):
    return run.opt.step([closure_of(run, part) for part in halves(batch)])


def by_two_backwards(run, batch):
    for p in run.opt.passes():
        for part in halves(batch):
            p.backward(loss_of(run.model, part))
    run.opt.step()


def by_scaler(run, batch):
    step_by_passes(run, batch, torch.amp.GradScaler("cuda", init_scale=1024.0))


@pytest.mark.parametrize("step", [step_by_closure, step_by_passes, by_two_closures, by_two_backwards, by_scaler])
@pytest.mark.parametrize("net", [mlp, norm_net])
@every_method
def test_reduced_overhead_trains_like_eager(case, net, step):
    run, eager = build_on("cuda", case.method, net=net), build_on("cuda", case.method, net=net)
    run.model.compile(mode="reduce-overhead")
    for batch in batches_on("cuda", STEPS):
        step(run, batch)
        step(eager, batch)
    assert "torch._inductor.cudagraph_trees" in sys.modules, "what we copy by is gone"
    torch.testing.assert_close(run.model.state_dict(), eager.model.state_dict(), rtol=0, atol=1e-3)


@every_method
def test_a_loss_computed_in_the_graph_is_returned_as_it_was(case):
    run, eager = build_on("cuda", case.method, net=mlp), build_on("cuda", case.method, net=mlp)
    compiled = torch.compile(loss_of, mode="reduce-overhead")

    def closure(batch):
        loss = compiled(run.model, batch)
        loss.backward()
        return loss

    losses, expected = [], []
    for batch in batches_on("cuda", STEPS):
        losses.append(run.opt.step(lambda batch=batch: closure(batch)))
        expected.append(step_by_closure(eager, batch))
    torch.testing.assert_close(torch.stack(losses), torch.stack(expected), rtol=0, atol=1e-3)


@pytest.mark.parametrize("step", [step_by_closure, by_two_closures, by_two_backwards, by_scaler])
@every_method
def test_graphed_callables_train_like_eager(case, step):
    """Their backward hands out the same memory at each replay."""
    size = 16 if step in (step_by_closure, by_scaler) else 8
    run, eager = build_on("cuda", case.method, net=mlp), build_on("cuda", case.method, net=mlp)
    run.model = torch.cuda.make_graphed_callables(run.model, (torch.randn(size, 6, device="cuda"),))
    for batch in batches_on("cuda", STEPS):
        step(run, batch)
        step(eager, batch)
    torch.testing.assert_close(flat(run.params), flat(eager.params), rtol=0, atol=1e-4)


@every_method
def test_a_whole_forward_and_backward_can_be_replayed(case):
    """The user's own capture: gradients appear in memory of the graph, and are shown to the pass as views of it."""
    run, eager = build_on("cuda", case.method, net=mlp), build_on("cuda", case.method, net=mlp)
    inputs, targets = torch.zeros(16, 6, device="cuda"), torch.zeros(16, dtype=torch.long, device="cuda")
    graph, loss, gradients = captured(run.model, (inputs, targets))
    for x, y in batches_on("cuda", STEPS):
        inputs.copy_(x)
        targets.copy_(y)
        for p in run.opt.passes():
            graph.replay()
            for parameter, gradient in zip(run.params, gradients):
                parameter.grad = gradient.detach()
            p.record(loss)
        run.opt.step()
        step_by_closure(eager, (x, y))
    torch.testing.assert_close(flat(run.params), flat(eager.params), rtol=0, atol=1e-4)


def captured(model, batch):
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            torch.autograd.grad(loss_of(model, batch), list(model.parameters()))
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = loss_of(model, batch)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
    return graph, loss, gradients


@every_method
def test_the_weights_a_graph_reads_stay_where_they_are(case):
    """An evaluation graph recorded once sees every step of the training that goes on beside it."""
    run = build_on("cuda", case.method, net=mlp)
    x = batches(1)[0][0].to("cuda")
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside), torch.no_grad():
        run.model(x)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = run.model(x)
    for batch in batches_on("cuda", 4):
        step_by_closure(run, batch)
        graph.replay()
        with torch.no_grad():
            torch.testing.assert_close(out, run.model(x))
