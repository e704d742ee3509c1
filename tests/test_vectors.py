import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatwise import vectors as V

SHAPES = [(3, 2), (), (4,), (0, 2), (1, 1, 2)]
seeds = st.integers(0, 2**16)
factors = st.floats(-10, 10)


def vector(seed, dtype=torch.float64, holes=()):
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
    return [None if i in holes else t for i, t in enumerate(tensors)]


def flat(v):
    """The vector as one tensor, with zeros for None."""
    full = [
        torch.zeros(shape, dtype=torch.float64) if t is None else t.double() for t, shape in zip(v, SHAPES, strict=True)
    ]
    return torch.cat([t.reshape(-1) for t in full])


def holes_of(v):
    return [t is None for t in v]


# --- algebra, against the same on flat tensors ------------------------------------------------------------------------


@given(seeds, factors, st.sets(st.integers(0, 4)), st.sets(st.integers(0, 4)))
def test_linear_combinations(seed, factor, holes_a, holes_b):
    a, b = vector(seed, holes=holes_a), vector(seed + 1, holes=holes_b)
    torch.testing.assert_close(flat(V.scale(a, factor)), factor * flat(a))
    torch.testing.assert_close(flat(V.add(a, b, factor)), flat(a) + factor * flat(b))
    assert holes_of(V.scale(a, factor)) == holes_of(a)
    assert holes_of(V.add(a, b)) == [x and y for x, y in zip(holes_of(a), holes_of(b), strict=True)]


@given(seeds, factors, st.booleans(), st.sets(st.integers(0, 4)))
def test_in_place_forms_write_into_the_same_storage(seed, factor, as_tensor, holes):
    a, b = vector(seed, holes=holes), vector(seed + 1)
    before, places = flat(a), [None if t is None else t.data_ptr() for t in a]
    amount = torch.tensor(factor, dtype=torch.float64) if as_tensor else factor
    V.scale_(a, amount)
    torch.testing.assert_close(flat(a), factor * before)
    V.add_(a, b, amount)
    both = flat(V.restrict(b, [t is not None for t in a]))
    torch.testing.assert_close(flat(a), factor * before + factor * both)
    V.copy_(a, b)
    assert torch.equal(flat(a), both)
    assert [None if t is None else t.data_ptr() for t in a] == places


@pytest.mark.parametrize("add", [V.add_where_, V._add_where_unread_], ids=["on the CPU", "as on a device"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_added_where_a_condition_holds(add, dtype, as_tensor):
    a, b, factor = vector(1, dtype, holes={2}), vector(2, dtype), torch.tensor(0.3) if as_tensor else 0.3
    expected, untouched = V.clone(a), V.clone(a)
    V.add_(expected, b, factor)
    add(torch.tensor(True), a, b, factor)
    assert torch.equal(flat(a), flat(expected))
    add(torch.tensor(False), untouched, V.scale(b, math.nan), torch.tensor(math.nan) if as_tensor else 0.3)
    assert torch.equal(flat(untouched), flat(vector(1, dtype, holes={2})))


@pytest.mark.parametrize(
    ("t", "tolerance"),
    [
        (torch.randn(64, 2**18, generator=torch.Generator().manual_seed(0)), 1e-6),
        (torch.randn(64, 2**18, generator=torch.Generator().manual_seed(1)).t(), 1e-6),
        (torch.full((2**24,), 1 / 3), 3e-5),
    ],
    ids=["normal", "transposed", "constant"],
)
def test_sums_over_large_tensors_do_not_drift(t, tolerance):
    """Torch's own do on CPUs: the norm of the normal ones is 6e-4 too small, that of the constant ones 7e-3."""
    exact = t.double().norm().item()
    assert V.norm([t, None]).item() == pytest.approx(exact, rel=tolerance)
    assert V.dot([t], [t]).item() == pytest.approx(exact**2, rel=2 * tolerance)


@given(seeds, st.sets(st.integers(0, 4)), st.sets(st.integers(0, 4)))
def test_inner_products(seed, holes_a, holes_b):
    a, b = vector(seed, holes=holes_a), vector(seed + 1, holes=holes_b)
    x, y = flat(a), flat(b)
    torch.testing.assert_close(V.dot(a, b).double(), x @ y)
    torch.testing.assert_close(V.norm(a).double(), x.norm())
    torch.testing.assert_close(flat(V.unit(a)), x / x.norm() if x.norm() else x)
    cosine = x @ y / (x.norm() * y.norm()) if x.norm() * y.norm() else torch.zeros(()).double()
    torch.testing.assert_close(V.cosine(a, b).double(), cosine)


@given(seeds)
def test_projecting_out(seed):
    a, direction = vector(seed), V.unit(vector(seed + 1))
    rest = V.project_out(a, direction)
    assert abs(V.dot(rest, direction)) < 1e-12
    torch.testing.assert_close(flat(V.add(rest, direction, V.dot(a, direction))), flat(a))


def test_size_restrict_present_pairs():
    v = vector(0, holes=(2,))
    assert V.size(v) == 9
    assert holes_of(V.restrict(v, [True, False, True, True, True])) == [False, True, True, False, False]
    assert len(V.present(v)) == 4
    left, right = V.pairs(v, vector(1, holes=(0,)))
    assert [t.shape for t in left] == [t.shape for t in right] == [torch.Size(s) for s in ((), (0, 2), (1, 1, 2))]
    with pytest.raises(ValueError, match="zip"):
        V.dot(v, v[:2])


def test_copies_have_no_history_and_storage_of_their_own():
    v = [torch.ones(2, requires_grad=True), None]
    for copied in (V.clone(v), V.zeros_like(v)):
        assert not copied[0].requires_grad
        assert copied[0].data_ptr() != v[0].data_ptr()
        assert copied[1] is None


# --- corners ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [[], [None, None], [torch.zeros(0)]])
def test_empty_vectors(empty):
    assert V.norm(empty) == V.dot(empty, empty) == V.cosine(empty, empty) == V.size(empty) == 0
    assert V.norm(empty).dtype == torch.float32
    assert len(V.unit(empty)) == len(V.scale(empty, 2.0)) == len(V.add(empty, empty)) == len(empty)
    for change in (V.scale_, lambda v, f: V.add_(v, v, f), lambda v, f: V.copy_(v, v)):
        change(empty, 2.0)


def test_zero_is_not_a_nan():
    zero = [torch.zeros(3), None]
    assert torch.equal(V.unit(zero)[0], torch.zeros(3))
    assert V.cosine(zero, zero) == 0
    numbers = torch.tensor([0.0, 2.0, math.inf, math.nan, -4.0])
    assert V.reciprocal(numbers).tolist() == [0, 0.5, 0, 0, -0.25]


def test_a_norm_so_small_that_its_reciprocal_overflows_is_treated_as_zero():
    assert torch.isfinite(V.unit([torch.full((2,), 1e-42)])[0]).all()
    assert V.reciprocal(torch.tensor(1e-42)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_accumulates_in_float32_and_stays_half(dtype):
    v = [torch.full((300,), 300.0, dtype=dtype), torch.full((), 1.0, dtype=dtype)]
    assert V.norm(v).dtype == V.dot(v, v).dtype == torch.float32
    assert V.norm(v).item() == pytest.approx(300 * math.sqrt(300), rel=1e-5)  # its square is far above 65504
    assert V.dot(v, v).item() == pytest.approx(300**3, rel=1e-5)
    wide = torch.tensor(0.5)
    for result in (V.scale(v, wide), V.add(v, v, wide), V.unit(v), V.random_like(v, 0)):
        assert {t.dtype for t in result} == {dtype}
    V.scale_(v, wide)
    V.add_(v, V.clone(v), wide)
    assert v[1].item() == 0.75


def test_mixed_precisions_keep_each_tensor_as_it_is():
    v = [torch.ones(2, dtype=torch.float64), torch.ones(()), torch.ones(3, dtype=torch.bfloat16)]
    assert V.norm(v).dtype == V.dot(v, v).dtype == torch.float64
    for result in (V.unit(v), V.scale(v, torch.tensor(2.0, dtype=torch.float64)), V.project_out(v, V.unit(v))):
        assert [t.dtype for t in result] == [torch.float64, torch.float32, torch.bfloat16]
    assert V.epsilon(v) == torch.finfo(torch.bfloat16).eps
    assert V.epsilon(v[:2]) == V.epsilon([]) == torch.finfo(torch.float32).eps


# --- random vectors ---------------------------------------------------------------------------------------------------


def test_random_vectors_depend_on_seed_place_and_shape_alone():
    like = vector(0, holes=(2,))
    state = torch.get_rng_state()
    drawn = V.random_like(like, 7)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(flat(V.random_like(vector(1, holes=(2,)), 7)), flat(drawn))
    assert torch.equal(V.random_like(like[:1], 7)[0], drawn[0])
    assert not torch.equal(flat(V.random_like(like, 8)), flat(drawn))
    assert holes_of(drawn) == holes_of(like)
    same_shapes = V.random_like([torch.zeros(5), torch.zeros(5)], 7)
    assert not torch.equal(*same_shapes)


def test_random_vectors_are_standard_normal():
    sample = V.random_like([torch.zeros(20000)], 3)[0]
    assert abs(sample.mean()) < 0.03
    assert abs(sample.std() - 1) < 0.03
    assert abs((sample**4).mean() - 3) < 0.3


def test_sharded_tensors_give_what_whole_ones_give():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        whole = [torch.arange(6.0).reshape(3, 2), torch.ones(4)]
        sharded = [distribute_tensor(t, mesh, [Shard(0)]) for t in whole]
        assert V.norm(sharded) == V.norm(whole)
        assert V.dot(sharded, V.random_like(sharded, 2)) == V.dot(whole, V.random_like(whole, 2))
        assert torch.equal(V.unit(sharded)[0].full_tensor(), V.unit(whole)[0])
        V.add_(sharded, sharded, torch.tensor(2.0))
        V.scale_(sharded, torch.tensor(0.5))
        assert torch.equal(sharded[0].full_tensor(), 1.5 * whole[0])
        assert torch.equal(V.add(sharded, sharded, torch.tensor(2.0))[1].full_tensor(), 4.5 * whole[1])
    finally:
        torch.distributed.destroy_process_group()
