"""What is looked for in the first step only, for it cannot be seen in what a step computes."""

import random
import warnings

import numpy
import pytest
import torch
from methods.cases import DISPLACING, every_displacing_method, every_method
from optim.problems import batches, build, loss_of, step_by_passes

from flatwise.methods import SAM, SGD


def told(act):
    """The sentences it warns of, and the files where they point to."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [str(w.message) for w in caught], [w.filename for w in caught]


def steps(run, in_the_loop, count=3, **options):
    for batch in batches(count):
        for p in run.opt.passes(**options):
            p.backward(loss_of(run.model, batch))
            in_the_loop(run)
        run.opt.step()


DRAWS = {
    "python": lambda run: random.random(),
    "numpy": lambda run: numpy.random.rand(),
    "clipping": lambda run: torch.nn.utils.clip_grad_norm_(run.params, 0.1),
    "replaced": lambda run: [setattr(p, "grad", 2 * p.grad) for p in run.params],
    "schedule": lambda run: run.opt.param_groups[0].update(lr=run.opt.param_groups[0]["lr"] / 2),
}
SENTENCES = {
    "python": "random numbers were drawn from Python's or numpy's global generator",
    "numpy": "random numbers were drawn from Python's or numpy's global generator",
    "clipping": "gradients were changed within a pass",
    "replaced": "gradients were changed within a pass",
    "schedule": "the learning rate changed within the passes",
}


@pytest.mark.parametrize("name", DRAWS)
@every_displacing_method
def test_what_differs_between_passes_is_told_once_where_the_loop_stands(case, name):
    messages, files = told(lambda: steps(build(case.method), DRAWS[name]))
    assert [SENTENCES[name] in message for message in messages] == [True]
    assert files == [__file__]


@pytest.mark.parametrize("name", ["python", "numpy"])
def test_one_pass_may_draw_what_it_likes(name):
    steps(build(SGD()), DRAWS[name])


def test_noise_that_is_meant_to_be_fresh_is_no_surprise():
    steps(build(SAM(0.1), fresh_noise=True), DRAWS["numpy"])


@every_method
def test_several_micro_batches_and_torchs_own_noise_are_no_surprise(case):
    run = build(case.method)
    for batch in batches(2):
        for p in run.opt.passes():
            for _ in range(2):
                p.backward(loss_of(run.model, batch) + 0 * torch.rand(()))
        torch.nn.utils.clip_grad_norm_(run.params, 0.1)
        random.random()
        run.opt.step()


def test_a_later_step_is_not_looked_at():
    """It would take time in each of them."""
    run = build(DISPLACING[0].method)
    step_by_passes(run, batches(1)[0])
    steps(run, DRAWS["numpy"])
