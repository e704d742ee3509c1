from pathlib import Path

from flatwise.experiments.demo import comparisons
from flatwise.training import resolved


def test_the_demonstration_is_the_protocol():
    studies = comparisons(Path("demo"))
    main, edge = studies[Path("demo")], studies[Path("demo/edge")]
    assert [arm.name for arm in main.arms] == ["sgd", "sam", "eigen-sam", "reverse-sam", "sam-equal-norm"]
    assert len(main.seeds) >= 5
    assert main.edge == "edge"
    assert {("eigen-sam", "sam"), ("eigen-sam", "sam-equal-norm"), ("sam", "sgd")} <= set(main.pairs)
    for arm in main.arms:
        config = resolved(arm.config)
        assert (config.label_noise, config.batch_size, config.epochs, config.lr) == (0.2, 64, 40, 0.05)
        assert (config.momentum, config.weight_decay, config.widths) == (0.9, 5e-4, (128, 128))
        assert config.rho in (None, 0.1)
    assert edge.kind == "edge"
    assert {arm.name for arm in edge.arms} == {"gd", "sam", "eigen-sam"}
    for arm in edge.arms:
        config = resolved(arm.config)
        assert (config.batch_size, config.momentum, config.weight_decay, config.schedule) == (0, 0.0, 0.0, "constant")


def test_runs_that_others_wait_for_start_first_and_the_waiting_ones_last():
    jobs = comparisons(Path("demo"))[Path("demo")].jobs(Path("demo"))
    names = [job.folder.parent.name for job in jobs]
    assert names[:5] == ["eigen-sam"] * 5
    assert names[-5:] == ["sam-equal-norm"] * 5
    assert all(job.after == [Path(f"demo/runs/eigen-sam/seed-{seed}")] for seed, job in enumerate(jobs[-5:]))
