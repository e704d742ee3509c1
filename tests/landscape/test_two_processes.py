"""Two gloo processes that share the data, or the parameters, find the slices that one process finds."""

import pytest
import torch
from curvature.workers import batches
from landscape import workers


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("landscapes")
    torch.multiprocessing.spawn(workers.run, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_shared_data_gives_the_same_slices_and_statistics(results):
    data = [batch for rank in range(2) for batch in batches(workers.SIZES[rank], rank)]
    along, between, samples = workers.slices(workers.normalised(), data)
    for (found_along, found_between, found_samples), _ in results:
        assert found_along == pytest.approx(along, rel=1e-10)
        assert found_between == pytest.approx(between, rel=1e-6)
        assert found_samples == samples == 19
    assert results[0][0] == results[1][0]


def test_sharded_parameters_give_the_same_line_and_are_back(results):
    expected = workers.whole()
    for _, (losses, back) in results:
        assert losses == pytest.approx(expected, rel=1e-10)
        assert back
