import pytest
import torch
from curvature.spectra import rotated
from torch import nn

from flatwise import Objective
from flatwise import vectors as V
from flatwise.curvature import from_matrix, hessian, top_eigenpairs


def test_an_operator_multiplies_by_its_matrix():
    matrix = rotated([3, 2, -1, 0.5])
    H = from_matrix(matrix)
    assert H.size == 4
    vector = torch.arange(4, dtype=torch.float64)
    torch.testing.assert_close(H([vector]), [matrix @ vector])


def test_a_matrix_can_act_on_several_shapes():
    matrix = rotated([3, 2, -1, 0.5, 7, 1])
    like = [torch.zeros(2, 2, dtype=torch.float64), None, torch.zeros((), dtype=torch.float32), torch.zeros(1)]
    H = from_matrix(matrix, like)
    product = H([torch.tensor([[1.0, 2], [3, 4]]).double(), None, torch.tensor(5.0), torch.tensor([6.0])])
    expected = matrix @ torch.arange(1, 7, dtype=torch.float64)
    torch.testing.assert_close(
        torch.cat([t.reshape(-1).double() for t in V.present(product)]), expected, rtol=1e-6, atol=0
    )
    assert product[1] is None
    assert [t.dtype for t in V.present(product)] == [torch.float64, torch.float32, torch.float32]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.ones(2, 3), "must be square, real and not empty, got torch.float32 of shape"),
        (torch.ones(3), "must be square"),
        (torch.ones(0, 0), "not empty"),
        (torch.ones(2, 2, dtype=torch.int64), "must be square, real and not empty, got torch.int64"),
        (torch.tensor([[1.0, 2], [0, 1]]), "must be finite and symmetric"),
        (torch.tensor([[1.0, float("nan")], [float("nan"), 1]]), "must be finite and symmetric"),
    ],
)
def test_matrices_that_are_none_are_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        from_matrix(matrix)
    with pytest.raises(ValueError, match="the matrix has 2 rows, the template 3 coordinates"):
        from_matrix(torch.eye(2), [torch.zeros(3)])


def test_the_hessian_is_taken_at_the_weights_of_the_moment():
    torch.manual_seed(0)
    model = nn.Linear(2, 1, bias=False)

    def quartic(model, batch):
        return (model(batch) ** 4).mean()

    H = hessian(Objective(model, quartic, [torch.eye(2)]))
    assert H.size == 2
    for weights in ([1.0, 2.0], [3.0, -1.0]):
        with torch.no_grad():
            model.weight.copy_(torch.tensor([weights]))
        top = max(6 * w * w for w in weights)  # the mean of w1**4 and w2**4 has the Hessian diag(6 w**2)
        assert top_eigenpairs(H, tol=1e-5).values[0] == pytest.approx(top)
