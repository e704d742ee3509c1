"""Distributed checkpoints: the next steps bitwise on as many processes, and the same on another number of them."""

import pytest
import torch
from distributed import on_checkpoints
from distributed.layouts import LAYOUTS
from distributed.test_ddp import assert_close, same_on_both
from torch_releases import gathers_what_is_sharded_twice

every_layout = pytest.mark.parametrize("kind", LAYOUTS)


@pytest.mark.parametrize(("kind", "base"), [(kind, base) for kind, base, _ in on_checkpoints.IN_MEMORY])
def test_state_dicts_resume_bitwise(two, kind, base):
    for continued, resumed in two[f"{kind} in memory {base}"]:
        assert torch.equal(continued, resumed)


@every_layout
def test_checkpoints_on_disk_resume_bitwise(two, kind):
    for continued, resumed in two[f"{kind} on disk"]:
        assert torch.equal(continued, resumed)


@every_layout
def test_what_two_processes_saved_one_continues(two, kind):
    ((continued, _), _) = two[f"{kind} on disk"]
    assert_close(on_checkpoints.read_by_one(two.folder, kind), continued)


@pytest.mark.parametrize("kind", [*LAYOUTS, "tensor parallel"])
def test_what_one_process_saved_two_continue(two, kind):
    assert_close(same_on_both(two[f"{kind} of one"]), on_checkpoints.uninterrupted())


@pytest.mark.parametrize("kind", ["hybrid", pytest.param("sharded twice", marks=gathers_what_is_sharded_twice)])
def test_what_one_process_saved_four_continue(four, kind):
    found = four[f"{kind} of one"]
    assert all(torch.equal(found[0], other) for other in found)
    assert_close(found[0], on_checkpoints.uninterrupted())


@every_layout
def test_the_eigenvector_is_in_the_checkpoint(two, kind):
    """Whole, whoever saved it: of norm one, and the same from either number of processes."""
    vectors = []
    for name in (f"two-{kind}", "one"):
        model, opt = on_checkpoints.started(on_checkpoints.network())
        on_checkpoints.load(model, opt, f"{two.folder}/{name}")
        vectors.append(on_checkpoints.vector_of(opt))
    torch.testing.assert_close(torch.linalg.vector_norm(vectors[0]).item(), 1.0)
    torch.testing.assert_close(vectors[0], vectors[1], rtol=0, atol=1e-6)
