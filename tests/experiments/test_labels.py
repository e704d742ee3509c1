import pytest

from flatwise import methods
from flatwise.experiments.labels import label


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("sgd", "SGD"),
        ("sam", "SAM"),
        ("eigen-sam", "Eigen-SAM"),
        ("x-sam", "X-SAM"),
        ("ae-sam", "AE-SAM"),
        ("gradient-norm", "Gradient norm"),
        ("eigenvalue-penalty", "Eigenvalue penalty"),
        ("dom-sgd", "Dom-SGD"),
        ("looksam", "LookSAM"),
        ("sam-equal-norm", "SAM at equal norm"),
    ],
)
def test_names_as_people_read_them(name, read):
    assert label(name) == read


def test_no_two_methods_are_read_alike():
    assert len({label(name) for name in methods.names()}) == len(methods.names())
