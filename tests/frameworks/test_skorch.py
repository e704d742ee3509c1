"""skorch: real trainings compared with a plain loop, scikit-learn's ways with them, and what people do wrong."""

import copy
import pickle

import numpy
import pytest
import torch
from frameworks.loops import DATA, EPOCHS, distance, few_methods
from frameworks.misuse import assert_every_row_is_tested, assert_refused, assert_warned
from methods.cases import every_method
from optim.problems import flat, noisy_net
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import Checkpoint, GradientNormClipping, LRScheduler
from skorch.hf import AccelerateMixin
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import flatwise as fw
from flatwise.frameworks.skorch import SharpnessAwareMixin
from flatwise.methods import SAM, SGD, EigenSAM, ReverseSAM

PAGE = "skorch.md"
X = torch.cat([batch[0] for batch in DATA]).numpy()
Y = torch.cat([batch[1] for batch in DATA]).numpy()
SETTINGS = {
    "criterion": nn.CrossEntropyLoss,
    "optimizer": torch.optim.SGD,
    "optimizer__momentum": 0.9,
    "lr": 0.1,
    "max_epochs": EPOCHS,
    "batch_size": 16,
    "train_split": None,
    "verbose": 0,
}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = noisy_net()

    def forward(self, inputs):
        return self.net(inputs)


class Classifier(SharpnessAwareMixin, NeuralNetClassifier):
    pass


class Regressor(SharpnessAwareMixin, NeuralNetRegressor):
    pass


def make(method=None, cls=Classifier, **settings):
    given = {} if method is None else {"method": method}
    return cls(Network, **given, **(SETTINGS | settings))


def fit(net, times=1):
    """Random numbers start anew, for the data loader draws some."""
    torch.manual_seed(0)
    for _ in range(times):
        net.partial_fit(X, Y)
    return net


def plain(method, clip=None, gamma=1.0, epochs=EPOCHS):
    """The network after training by a loop of one's own, and the loss of each step."""
    torch.manual_seed(0)
    model, losses = noisy_net(), []
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = fw.SharpnessAware(base, method, model=model)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)
    loader = DataLoader(TensorDataset(torch.tensor(X), torch.tensor(Y)), batch_size=16)
    for _ in range(epochs):
        for inputs, targets in loader:
            for p in optimizer.passes():
                p.backward(nn.functional.cross_entropy(model(inputs), targets))
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            losses.append(optimizer.diagnostics["loss"])
        schedule.step()
    return model, losses


def losses_of(net):
    return [batch["train_loss"] for epoch in net.history for batch in epoch["batches"]]


# --- training ---------------------------------------------------------------------------------------------------------


@every_method
def test_training_equals_a_plain_loop(case):
    net = fit(make(case.method))
    model, losses = plain(case.method)
    assert distance(net.module_.net, model) == 0
    assert losses_of(net) == losses
    assert int(net.module_.net[1].num_batches_tracked) == len(losses) == 12


def test_a_method_of_one_pass_is_skorch_without_us():
    net, untouched = fit(make(SGD())), fit(make(cls=NeuralNetClassifier))
    assert distance(net.module_, untouched.module_) == 0
    assert losses_of(net) == losses_of(untouched)


@few_methods
def test_the_direction_is_clipped_once(case):
    net = fit(make(case.method, callbacks=[GradientNormClipping(0.3)]))
    assert distance(net.module_.net, plain(case.method, clip=0.3)[0]) == 0
    assert distance(net.module_.net, plain(case.method)[0]) > 1e-3


def test_learning_rate_schedules_act_on_the_optimizer():
    schedule = LRScheduler(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    net = fit(make(SAM(0.1), callbacks=[schedule]))
    assert distance(net.module_.net, plain(SAM(0.1), gamma=0.5)[0]) == 0


def test_a_regression_becomes_better():
    targets = (X @ numpy.ones((6, 3), dtype=numpy.float32)) / 3
    net = make(SAM(0.01), Regressor, criterion=nn.MSELoss, max_epochs=10, lr=0.05).fit(X, targets)
    assert net.history[-1, "train_loss"] < 0.7 * net.history[0, "train_loss"]


# --- the ways of scikit-learn -----------------------------------------------------------------------------------------


def test_fields_of_the_method_are_parameters():
    net = make(SAM(), method__rho=0.1)
    assert net.get_params()["method__rho"] == 0.1
    assert fit(net).optimizer_.method == SAM(0.1)
    assert make(EigenSAM, method__every=7).initialize().optimizer_.method == EigenSAM(every=7)


def test_a_clone_trains_like_the_original():
    net = make(SAM(), method__rho=0.1)
    fit(net)
    again = fit(clone(net))
    assert again.module_ is not net.module_
    assert distance(again.module_, net.module_) == 0


@pytest.mark.parametrize("grid", [{"method__rho": [0.0, 0.1]}, {"method": [SGD(), SAM(0.1)]}], ids=["field", "method"])
def test_a_grid_runs_over_methods_and_their_fields(grid):
    search = GridSearchCV(make(None, max_epochs=1), grid, cv=2)
    search.fit(X, Y)
    assert len(search.cv_results_["mean_test_score"]) == 2
    (name, value), method = next(iter(search.best_params_.items())), search.best_estimator_.optimizer_.method
    assert (method.rho if name == "method__rho" else method) == value


def test_it_works_at_the_end_of_a_pipeline():
    pipeline = make_pipeline(StandardScaler(), make(SAM(0.1)))
    pipeline.set_params(classifier__method__rho=0.2)
    assert 0 <= pipeline.fit(X, Y).score(X, Y) <= 1
    assert pipeline.named_steps["classifier"].optimizer_.method == SAM(0.2)


def test_training_goes_on_after_partial_fit():
    assert distance(fit(make(SAM(0.1)), times=2).module_.net, plain(SAM(0.1), epochs=2 * EPOCHS)[0]) == 0


def test_a_new_rho_keeps_the_momentum():
    net = fit(make(SAM(0.1)))
    optimizer, momentum = net.optimizer_, flat([s["momentum_buffer"] for s in net.optimizer_.state.values()]).clone()
    net.set_params(method__rho=0.2)
    assert net.optimizer_ is optimizer
    assert net.optimizer_.method == SAM(0.2)
    assert torch.equal(flat([s["momentum_buffer"] for s in net.optimizer_.state.values()]), momentum)


def test_a_new_method_starts_anew():
    net = fit(make(SAM(0.1)))
    net.set_params(method=ReverseSAM(0.1))
    assert net.optimizer_.method == ReverseSAM(0.1)
    assert not net.optimizer_.state
    fit(net)
    assert net.optimizer_.diagnostics["evaluations"] == 2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
@few_methods
def test_a_copy_continues_bitwise(case, copied):
    net = fit(make(case.method))
    other = copied(net)
    assert other.optimizer_.model[0] is other.module_
    assert distance(fit(other).module_, fit(net).module_) == 0


@few_methods
def test_a_checkpoint_continues_bitwise(case, tmp_path):
    keep = Checkpoint(dirname=tmp_path, monitor=None)
    net = fit(make(case.method, callbacks=[keep]))
    resumed = make(case.method).initialize()
    resumed.load_params(checkpoint=keep)
    assert distance(fit(resumed).module_, fit(net).module_) == 0


# --- bad uses ---------------------------------------------------------------------------------------------------------


def our_class_as_the_optimizer():
    Classifier(Network, optimizer=fw.SharpnessAware).initialize()


def rho_of_the_optimizer():
    fit(make(SAM(), optimizer__rho=0.1))


def a_misspelt_field():
    make(SAM(), method__roh=0.1).initialize()


def a_field_of_another_method():
    fit(make(SAM())).set_params(method__alpha=0.1)


def no_method():
    make("sam").initialize()


def the_mixin_last():
    class Last(NeuralNetClassifier, SharpnessAwareMixin):
        pass


def with_accelerate():
    class Both(SharpnessAwareMixin, AccelerateMixin, NeuralNetClassifier):
        pass


def two_optimizers():
    class Two(Classifier):
        def initialize_optimizer(self, *args):
            self.second_ = torch.optim.SGD(self.module_.parameters(), lr=0.1)
            return super().initialize_optimizer(*args)

    make(SAM(), Two).initialize()


def lbfgs():
    Classifier(Network, optimizer=torch.optim.LBFGS).initialize()


class StepsByItself(Classifier):
    """As skorch's guide to accumulation has it."""

    def train_step(self, batch, **fit_params):
        step = self.train_step_single(batch, **fit_params)
        self.optimizer_.step()
        self.optimizer_.zero_grad()
        return step


class NoBackward(Classifier):
    def train_step_single(self, batch, **fit_params):
        predicted = self.infer(batch[0])
        return {"loss": self.get_loss(predicted, batch[1]), "y_pred": predicted}


class Mixes(Classifier):
    def get_loss(self, *args, **kwargs):
        return float(numpy.random.beta(1, 1)) * super().get_loss(*args, **kwargs)


class ClipsEachPass(Classifier):
    def train_step(self, batch, **fit_params):
        for p in self.optimizer_.passes():
            p.backward(self.get_loss(self.infer(batch[0]), batch[1]))
            nn.utils.clip_grad_norm_(self.module_.parameters(), 0.1)
        self.optimizer_.step()
        return {"loss": torch.zeros(()), "y_pred": torch.zeros(())}


def a_function_that_wraps():
    wrap = lambda params, **settings: fw.SharpnessAware(torch.optim.SGD(params, **settings), SAM())
    fit(make(cls=NeuralNetClassifier, optimizer=wrap))


REFUSED = {
    "our class": (our_class_as_the_optimizer, TypeError, "optimizer is the base optimizer's class"),
    "optimizer__rho": (rho_of_the_optimizer, ValueError, "optimizer__rho belongs to the method: set method__rho"),
    "misspelt": (a_misspelt_field, ValueError, "SAM has no field roh; did you mean method__rho?"),
    "another method's field": (a_field_of_another_method, ValueError, "SAM has no field alpha"),
    "a name for a method": (no_method, TypeError, "method must be one of flatwise.methods"),
    "the mixin last": (the_mixin_last, TypeError, "SharpnessAwareMixin must stand before the net"),
    "accelerate": (with_accelerate, TypeError, "AccelerateMixin steps by itself"),
    "two optimizers": (two_optimizers, ValueError, "this net has also second"),
    "lbfgs": (lbfgs, ValueError, "LBFGS evaluates the loss itself"),
    "a train_step of one's own": (lambda: fit(make(SAM(), StepsByItself)), RuntimeError, "step() alone cannot do it"),
    "no backward": (lambda: fit(make(SAM(), NoBackward)), ValueError, "no parameter received a gradient in this pass"),
}
WARNED = {
    "a function that wraps": (a_function_that_wraps, "SharpnessAware was made without model=..."),
    "mixup": (
        lambda: fit(make(SAM(), Mixes)),
        "random numbers were drawn from Python's or numpy's global generator",
    ),
    "clipping in the loop": (lambda: fit(make(SAM(), ClipsEachPass)), "gradients were changed within a pass"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_use_is_refused_in_words(name):
    assert_refused(PAGE, *REFUSED[name])


@pytest.mark.parametrize("name", WARNED)
def test_a_dangerous_use_is_warned_of_once(name):
    assert_warned(PAGE, *WARNED[name])


def test_every_row_of_the_recipe_is_tested():
    assert_every_row_is_tested(PAGE, [row[-1] for row in (REFUSED | WARNED).values()])
