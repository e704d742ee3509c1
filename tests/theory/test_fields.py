"""What SAM follows, and its expansion in rho, against brute force and against the method itself."""

import pytest
import torch
from theory.equations import network, slope
from torch.func import functional_call

import flatwise as fw
from flatwise.theory import Ensemble, drift
from flatwise.theory.fields import curvature_slope, gradient, sam, sam_expansion

RADII = [0.2, 0.1, 0.05, 0.025]


def flat(vector):
    return torch.cat([t.reshape(-1) for t in vector])


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_expansion_leaves_the_power_of_rho_that_its_order_says(order):
    ensemble = Ensemble(network())
    x = ensemble.weights.unsqueeze(0)
    apart = [(ensemble.fields(sam(r), x) - ensemble.fields(sam_expansion(r, order), x)).mean(0).norm() for r in RADII]
    assert slope(RADII, apart) == pytest.approx(order, abs=0.05)


def test_the_gradient_is_that_of_the_objective():
    objective = network()
    found = Ensemble(objective).fields(gradient, flat(objective.weights).unsqueeze(0)).mean(0)[0]
    torch.testing.assert_close(found, flat(objective.gradient()))


def test_the_second_order_term_is_the_gradient_of_the_gradient_norm():
    objective = network()
    batch = objective.data[0]
    parameters = objective.parameters()
    g = torch.autograd.grad(objective.loss(batch), parameters, create_graph=True)
    expected = flat(torch.autograd.grad(flat(g).norm(), parameters))
    ensemble = Ensemble(objective)
    x = ensemble.weights.unsqueeze(0)
    found = (ensemble.fields(sam_expansion(1.0, 2), x) - ensemble.fields(gradient, x))[0, 0]
    torch.testing.assert_close(found, expected)


def test_along_the_top_eigenvector_the_third_derivative_is_the_gradient_of_the_top_eigenvalue():
    objective = network()
    ensemble = Ensemble(objective)
    x, (inputs, targets) = ensemble.weights, objective.data[0]

    def loss(y):
        names = [name for name, _ in objective.model.named_parameters()]
        outputs = functional_call(objective.model, dict(zip(names, ensemble.parts(y))), (inputs,))
        return torch.nn.functional.cross_entropy(outputs, targets)

    top = lambda y: torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, y, create_graph=True))[-1]
    y = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(top(y), y)
    v = torch.linalg.eigh(torch.autograd.functional.hessian(loss, x))[1][:, -1]
    torch.testing.assert_close(curvature_slope(loss, x, v), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", [fw.methods.SGD(), fw.methods.SAM(rho=0.1)], ids=["sgd", "sam"])
def test_the_drift_read_off_a_method_is_the_mean_of_its_field(method):
    ensemble = Ensemble(network())
    field = sam(0.1) if isinstance(method, fw.methods.SAM) else gradient
    expected = -ensemble.fields(field, ensemble.weights.unsqueeze(0)).mean(0)[0]
    torch.testing.assert_close(flat(drift(method, ensemble.objective)), expected)


def test_reading_a_drift_changes_nothing():
    objective = network()
    before = flat(objective.weights).clone()
    state = fw.methods.FriendlySAM().init(objective.weights)
    drift(fw.methods.FriendlySAM(), objective, state)
    assert torch.equal(flat(objective.weights), before)
    assert state.numbers == {"begun": 0.0}
    assert all(p.grad is None for p in objective.parameters())


@pytest.mark.parametrize("method", [fw.methods.ASAM(rho=0.3), fw.methods.Late(fw.methods.ASAM(rho=0.3), start=0)])
def test_a_method_that_goes_by_names_is_told_those_of_the_model(method):
    """For a whole batch: the method's own first step of SGD with learning rate 1."""
    objective = network()
    whole = objective.on([tuple(map(torch.cat, zip(*objective.data)))])
    expected = flat(drift(method, whole))
    before = flat(whole.weights).clone()
    optimizer = fw.SharpnessAware(torch.optim.SGD(whole.parameters(), lr=1.0), method, model=whole.model)
    for p in optimizer.passes():
        p.backward(whole.loss(whole.data[0]))
    optimizer.step()
    torch.testing.assert_close(flat(whole.weights) - before, expected)


def test_the_drift_along_a_momentum_is_that_of_the_state():
    objective = network()
    method = fw.methods.MomentumSAM(rho=0.2)
    state = method.init(objective.weights)
    state.momentum = [torch.ones_like(w) for w in objective.weights]
    found = flat(drift(method, objective, state))
    with objective.displaced() as place:
        place.to(state.momentum, -0.2 / flat(state.momentum).norm().item())
        expected = -flat(objective.gradient())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("around", [lambda method: method, fw.methods.Stable])
def test_a_method_that_needs_a_momentum_is_not_taken_for_sgd(around):
    objective = network()
    method = around(fw.methods.MomentumSAM())
    for state in (None, method.init(objective.weights)):
        with pytest.raises(ValueError, match=r"there is none here: pass a state that has it"):
            drift(method, objective, state)


def test_a_method_that_chooses_samples_has_no_drift_here():
    with pytest.raises(ValueError, match="the losses of single samples, which an objective does not show"):
        drift(fw.methods.ESAM(gamma=0.5), network())


def test_at_a_zero_gradient_sam_stays():
    ensemble = Ensemble(network())
    still = ensemble.fields(lambda loss: sam(0.5)(lambda x: 0 * loss(x)), ensemble.weights.unsqueeze(0))
    assert torch.equal(still, torch.zeros_like(still))


@pytest.mark.parametrize("order", [0, 4, 2.5, "3", None])
def test_other_orders_are_refused(order):
    with pytest.raises(ValueError, match="order"):
        sam_expansion(0.1, order)
