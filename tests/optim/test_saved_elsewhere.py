"""Other ways to save and to copy: the next step is bitwise that of the original, at every step of a refresh cycle."""

import copy
import io
import itertools
import pickle
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from methods.cases import every_displacing_method, every_method
from optim.problems import (
    assert_same,
    batches,
    build,
    every_base,
    flat,
    loss_of,
    norm_net,
    seeded,
    snapshot,
    step_by_closure,
    step_by_passes,
    train,
)
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import flatwise as fw
from flatwise import methods

STEPS = 5  # Eigen-SAM's vector is refreshed at 0 and 3


def fresh(case, base):
    return build(case.method, base, norm_net)


def by_distributed_checkpoint(run, again, path):
    """To disk and back; every tensor is read into its place."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(single process|ShardedTensor|no_dist).*")
        model, optimizer = get_state_dict(run.model, run.opt)
        dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=path)
        model, optimizer = get_state_dict(again.model, again.opt)
        content = {"model": model, "optimizer": optimizer}
        dcp.load(content, checkpoint_id=path)
    set_state_dict(again.model, again.opt, model_state_dict=content["model"], optim_state_dict=content["optimizer"])


def by_safetensors(run, again, path):
    """The weights as everybody ships them; the optimizer's tensors under flat names, its groups beside them."""
    save_model(run.model, f"{path}.model")
    state = run.opt.state_dict()
    tensors = {f"{i}/{name}": t for i, entry in state["state"].items() for name, t in entry.items() if t is not None}
    save_file(tensors, f"{path}.optimizer")
    load_model(again.model, f"{path}.model")
    read = {i: {} for i in state["state"]}
    for key, t in load_file(f"{path}.optimizer").items():
        i, name = key.split("/")
        read[int(i)][name] = t
    again.opt.load_state_dict({"state": read, "param_groups": copy.deepcopy(state["param_groups"])})


def by_mapped_file(run, again, path):
    """`mmap=True` reads tensors out of the file when they are used; nothing may write back into them."""
    torch.save({"model": run.model.state_dict(), "optimizer": run.opt.state_dict()}, path)
    content = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    again.model.load_state_dict(content["model"])
    again.opt.load_state_dict(content["optimizer"])


def by_weights_only(run, again, path):
    file = io.BytesIO()
    torch.save({"model": run.model.state_dict(), "optimizer": run.opt.state_dict()}, file)
    file.seek(0)
    content = torch.load(file, weights_only=True, map_location=torch.device("cpu"))
    again.model.load_state_dict(content["model"])
    again.opt.load_state_dict(content["optimizer"])


WAYS = [by_distributed_checkpoint, by_safetensors, by_mapped_file, by_weights_only]


def everything(run):
    """A snapshot without the order of names, which files do not keep."""
    return in_order(snapshot(run))


def in_order(record):
    if isinstance(record, dict):
        return {key: in_order(record[key]) for key in sorted(record, key=str)}
    return [in_order(entry) for entry in record] if isinstance(record, list) else record


@pytest.mark.parametrize("way", WAYS)
@every_base
@every_method
def test_the_next_step_is_bitwise_the_same(case, base, way, tmp_path):
    """Loaded into objects that have just been made, and into others that have gone their own way."""
    run, used = fresh(case, base), fresh(case, base)
    for i, batch in enumerate(batches(STEPS)):
        again = used if i % 2 else fresh(case, base)
        way(run, again, tmp_path / str(i))
        assert_same(everything(again), everything(run), f"loaded after step {i}")
        step_by_closure(again, batch)
        step_by_closure(run, batch)
        assert_same(everything(again), everything(run), f"one step after loading after step {i}")
        train(used, [batch])


@every_base
@every_method
def test_the_names_in_a_checkpoint_are_there_from_the_start(case, base):
    """A distributed checkpoint is read into the entries that are there already: what came later would be lost."""
    run = fresh(case, base)
    before = {i: {name for name in entry if "flatwise" in name} for i, entry in run.opt.state_dict()["state"].items()}
    train(run, batches(STEPS))
    after = {i: {name for name in entry if "flatwise" in name} for i, entry in run.opt.state_dict()["state"].items()}
    assert before == after
    assert all(before.values())


@every_base
@every_method
def test_training_does_not_write_into_a_file_that_was_mapped(case, base, tmp_path):
    run, again = fresh(case, base), fresh(case, base)
    train(run, batches(4))
    by_mapped_file(run, again, tmp_path / "file")
    before = (tmp_path / "file").read_bytes()
    train(again, batches(4))
    assert (tmp_path / "file").read_bytes() == before


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


def saved_whole(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


every_copy = pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved_whole])


@every_copy
@every_base
@every_method
def test_a_copy_of_the_whole_continues_bitwise(case, base, copied):
    run = fresh(case, base)
    for batch in batches(STEPS):
        twin = copied(run)
        assert twin.opt.base is twin.base
        assert twin.opt.param_groups is twin.base.param_groups
        step_by_passes(twin, batch)
        step_by_passes(run, batch)
        assert_same(snapshot(twin), snapshot(run))


def open_dialogue(run, batch, at):
    """The iterator of a dialogue left open in pass `at`, or None when there are not that many."""
    passes = iter(run.opt.passes())
    for i, p in enumerate(passes):
        if i == at:
            return passes
        p.backward(loss_of(run.model, batch))
    return None


@every_copy
@every_displacing_method
def test_a_copy_in_the_midst_of_passes_is_of_the_step_before(case, copied):
    """The optimizer puts the weights back first, and takes its model along; both then go on alike."""
    (batch,) = batches(1)
    for at in itertools.count():
        run = fresh(case, "sgd")
        before = flat(run.params)
        kept = open_dialogue(run, batch, at)
        if kept is None:
            break
        opt = copied(run.opt)
        twin = type(run)(opt.model, opt.base, opt)
        assert torch.equal(flat(twin.params), before)
        assert torch.equal(flat(run.params), before)
        step_by_closure(twin, batch)
        step_by_closure(run, batch)
        assert_same(snapshot(twin), snapshot(run))
    assert at > 1


@every_copy
@every_displacing_method
def test_a_copy_after_the_passes_and_before_the_step_steps_nothing(case, copied):
    """The direction is not part of it, as gradients are not part of torch's copies of an optimizer."""
    (batch,) = batches(1)
    run = fresh(case, "sgd")
    for p in run.opt.passes():
        p.backward(loss_of(run.model, batch))
    opt = copied(run.opt)
    with pytest.raises(RuntimeError, match="passes"):
        opt.step()
    assert torch.equal(flat(opt.model.parameters()), flat(run.params))
    run.opt.step()


@every_base
@every_method
def test_a_checkpoint_can_be_loaded_into_another_precision(case, base):
    """The base optimizer's tensors and ours follow the parameters, as torch's do."""
    run, again = build(case.method, base), build(case.method, base, dtype=torch.float64)
    train(run, batches(4))
    again.model.load_state_dict(run.model.state_dict())
    again.opt.load_state_dict(run.opt.state_dict())
    for i, p in enumerate(again.params):
        entry = again.opt.state_dict()["state"][i]
        assert {t.dtype for name, t in entry.items() if t.shape == p.shape and name != "step"} <= {torch.float64}
    doubled = [(x.double(), y) for x, y in batches(2, seed=4)]
    train(run, batches(2, seed=4))
    train(again, doubled)
    torch.testing.assert_close(flat(run.params).double(), flat(again.params), rtol=0, atol=1e-3)


class Scaled(nn.Module):
    """Its first parameter is a single number: its part of a vector looks like a number of the method's own."""

    def __init__(self):
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.tensor(1.5)), nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x) * self.scale


@pytest.mark.parametrize("way", WAYS)
@every_method
def test_a_parameter_that_is_a_single_number(case, way, tmp_path):
    run, again = (build(case.method, net=lambda dtype: seeded(Scaled)) for _ in range(2))
    train(run, batches(4))
    way(run, again, tmp_path / "file")
    for one in (run, again):
        train(one, batches(3, seed=5))
    assert_same(everything(again), everything(run))


def test_shared_weights_are_saved_once_and_stay_shared(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 3), nn.Linear(3, 3))
        model[2].weight = model[1].weight
        return model

    method = methods.EigenSAM(rho=0.1, alpha=0.5, every=3, iterations=2)
    runs = [build(method, net=lambda dtype: seeded(tied)) for _ in range(2)]
    train(runs[0], batches(4))
    by_safetensors(runs[0], runs[1], tmp_path / "file")
    for run in runs:
        train(run, batches(3, seed=5))
        assert run.model[2].weight is run.model[1].weight
    assert_same(everything(runs[1]), everything(runs[0]))


@every_base
@every_method
def test_a_checkpoint_needs_no_library_of_ours_to_be_read(case, base):
    """Plain tensors in torch's own structure, so that `weights_only` needs no safe globals."""
    run = build(case.method, base)
    train(run, batches(2))
    for entry in run.opt.state_dict()["state"].values():
        assert all(type(value) is torch.Tensor for value in entry.values())


def test_the_schedule_of_rho_goes_on_where_it_was(tmp_path):
    """It counts the steps of the checkpoint, and is itself pickled with the optimizer."""
    schedule = fw.schedules.Linear(1.0, 0.0, steps=6)
    make = lambda: build(methods.SAM(rho=0.1), net=norm_net, rho_schedule=schedule)
    run, again = make(), make()
    data = batches(6)
    train(run, data[:3])
    by_mapped_file(run, again, tmp_path / "file")
    twin = pickled(run)
    for one in (run, again, twin):
        train(one, data[3:])
        assert one.opt.diagnostics["displacement_norm"] == pytest.approx(0.1 / 6, rel=1e-3)
        assert_same(everything(one), everything(run))
