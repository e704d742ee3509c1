import sys
from itertools import count

import pytest
import torch

import flatwise as fw
from flatwise.measurements import Plan, Request, measure

_numbers = count()
PREFACE = """
import torch, flatwise as fw
from torch import nn

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

def network():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))

def data():
    return [(torch.randn(n, 4), torch.randint(3, (n,))) for n in (12, 7)]
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Write a module of the user's into the current folder; gives the name of a function in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(code, function="make"):
        name = f"measured_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(PREFACE + code)
        return f"{name}:{function}"

    return write


def units(name, plan=None, **settings):
    return Request([name], plan or Plan(), **settings).units()


def test_model_loss_and_data_are_measured_as_they_are(mine):
    name = mine("def make(seed): return network(), loss, data()")
    (unit,) = units(name, Plan(what=("eigenvalues",), tol=1e-5))
    assert unit.name == name
    found = measure(unit.source.build(unit.plan), unit.plan)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = sys.modules[name.partition(":")[0]]
        model, loss, data = module.make(0)
    hessian = fw.curvature.hessian(fw.Objective(model, loss, data, mode="eval"))
    basis = torch.eye(hessian.size)
    rows = [hessian([t.view_as(p) for t, p in zip(e.split(sizes(model)), model.parameters())]) for e in basis]
    exact = torch.linalg.eigvalsh(torch.stack([torch.cat([t.flatten() for t in row]) for row in rows]).double())
    assert found["eigenvalues"]["top"]["values"][0] == pytest.approx(exact[-1].item(), rel=1e-4)
    assert found["eigenvalues"]["lowest"]["values"][0] == pytest.approx(exact[0].item(), rel=1e-3)
    assert found["record"]["samples"] == 19


def sizes(model):
    return [p.numel() for p in model.parameters()]


def test_the_same_seed_gives_the_same_network_and_another_seed_another(mine):
    name = mine("def make(): return network(), loss, data()")
    losses = [float(units(name, Plan(seed=s))[0].source.build(Plan(seed=s)).objective.value()) for s in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_several_networks_have_names(mine):
    code = """
def make():
    yield "wide net", (network(), loss, data())
    yield "objective", fw.Objective(network(), loss, data(), mode="eval")
def mapping(): return dict(make())
"""
    name = mine(code)
    assert [unit.name for unit in units(name)] == ["wide net", "objective"]
    assert [unit.place.name for unit in units(name)] == ["00-wide-net.json", "01-objective.json"]
    assert [unit.name for unit in units(name.replace("make", "mapping"))] == ["wide net", "objective"]
    for unit in units(name):
        assert float(unit.source.build(unit.plan).objective.value()) > 0


def test_checkpoints_go_to_the_function_one_after_the_other(mine):
    name = mine(
        "def make(checkpoint, data_root=None): return network().double(), loss, [(x.double(), y) for x, y in data()]"
    )
    found = units(name, checkpoints=["a.pt", "b.pt"])
    assert [unit.name for unit in found] == [f"{name}, a.pt", f"{name}, b.pt"]
    assert len({unit.place for unit in found}) == 2


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("def make(): return 3", "must return .*not int"),
        ("def make(): return network()", "must return .*not Sequential"),
        ("def make(): return network(), loss", "must return .*not 2 things"),
        ("def make(): return {}", "returned nothing to measure"),
        ("def make(): return {'a': 3}", r"\(a\)' must return .*not int"),
        ("def make(): return [3]", "an iterable of"),
        ("def make(): return [('a', (network(), loss, data()))] * 2", "'a' comes twice"),
        ("def make(): return network(), 3, data()", "cannot be measured: loss_fn must be a function"),
        ("def make(): return network(), loss, iter(data())", "cannot be measured: data is a one-shot iterator"),
        (
            "def make(): return network(), nn.CrossEntropyLoss(), data()",
            "cannot be measured: loss_fn is called with .*, but CrossEntropyLoss takes outputs and targets",
        ),
        (
            "def make(): return network(), lambda a, b: nn.functional.cross_entropy(a, b), data()",
            "a loss_fn is called with the model and a batch",
        ),
        ("def make(x): return network(), loss, data()", "does not fit its signature"),
        ("def mkae(): pass", "did you mean 'mkae'"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is(mine, code, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        units(mine(code))


@pytest.mark.parametrize(
    ("code", "settings", "sentence"),
    [
        ("def make(): return network(), loss, data()", {"samples": 5}, "samples 5 has no effect"),
        ("def make(): return network(), loss, data()", {"dtype": "float64"}, "dtype float64 has no effect"),
        ("def make(): return fw.Objective(network(), loss, data())", {"mode": "eval"}, "mode eval has no effect"),
        ("def make(): return network(), loss, data()", {"top": 52}, "top is 52, but .* has only 51 parameters"),
        ("def make(): return network(), loss, data()", {"max_memory": "10"}, "one sample takes"),
    ],
)
def test_a_setting_without_effect_or_beyond_the_network_is_refused(mine, code, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        units(mine(code), Plan(**settings))


def test_arguments_that_the_function_does_not_name_are_refused(mine):
    name = mine("def make(): return network(), loss, data()")
    for settings in ({"checkpoints": ["a.pt"]}, {"data_root": "here"}):
        with pytest.raises(ValueError, match=r"has no effect: .*takes no argument"):
            units(name, **settings)


LANGUAGE = """
from frameworks.language import language_model, sequences, stacked

def make():
    data = sequences(9)
    batches = [dict(zip(("input_ids", "labels"), stacked(part))) for part in (data[:5], data[5:])]
    tokens = lambda batch: int(batch["labels"][:, 1:].ne(-100).sum())
    return fw.Objective(language_model(), lambda model, batch: model(**batch).loss, batches, "eval", weight=tokens)
"""


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_hugging_face_model_is_measured_with_its_tokens_as_weights(mine):
    pytest.importorskip("transformers")
    from frameworks.language import language_model, loss_of, sequences

    plan = Plan(what=("eigenvalues",), top=1, lowest=0, tol=1e-3)
    (unit,) = units(mine(LANGUAGE), plan)
    found = measure(unit.source.build(plan), plan)
    model, data = language_model().eval(), sequences(9)
    assert found["loss"] == pytest.approx(loss_of(model, data).item(), rel=1e-5)
    whole = fw.curvature.hessian(fw.Objective(model, loss_of, [data], "eval", weight=len))
    exact = fw.curvature.top_eigenpairs(whole, tol=1e-4).values[0]
    assert found["eigenvalues"]["top"]["values"][0] == pytest.approx(exact, rel=1e-3)
    assert found["record"]["samples"] == sum(int(s["labels"][1:].ne(-100).sum()) for s in data)


def test_a_module_that_cannot_be_imported_is_named(mine):
    with pytest.raises(ValueError, match="cannot import 'no_such_module'"):
        units("no_such_module:make")
