"""The top of the spectrum of a trained network: flatwise beside other packages, in gradients and in memory.

pip install -r benchmarks/curvature/requirements.txt
python -m benchmarks.curvature --quick               # one network, one round, small pictures for the memory
python -m benchmarks.curvature                       # three networks, six rounds: hours; on a machine with nothing else to do
python -m benchmarks.curvature --only "top 1"        # one part, the others as they were
python -m benchmarks.tracking                        # along a training
python -m benchmarks.curvature --only page --write docs/curvature-cost.md

Networks, their exact eigenvalues and results are kept in a folder (--folder), so every part can be run again alone. CIFAR-10 is
taken from the folder of the environment variable FLATWISE_DATA.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.curvature import cost, memory
from benchmarks.curvature.contenders import installed
from benchmarks.curvature.page import page
from benchmarks.curvature.problems import problem
from benchmarks.curvature.results import FOLDER, Results
from benchmarks.curvature.training import TRAININGS


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    kind = "quick" if options.quick else "results"
    results = Results(options.folder / (kind if options.model == "cnn6" else f"{kind}-{options.model}"))
    for name, question in cost.QUESTIONS.items():
        if options.only in (None, name):
            measure_cost(question, options, results)
    if options.only in (None, "memory"):
        measure_memory(options, results)
    if options.write:
        options.write.write_text(page(results), encoding="utf-8")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.curvature", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = [*cost.QUESTIONS, "memory", "page"]
    parser.add_argument("--only", choices=parts, help="one part of it; page: none, only write the page")
    parser.add_argument("--quick", action="store_true", help="little of everything; its results are kept apart")
    parser.add_argument(
        "--model", default="cnn6", choices=TRAININGS, help="resnet18 is measured on 64 images, and kept apart"
    )
    parser.add_argument(
        "--rounds", type=int, default=6, help="how often everybody is timed; 0: counts only, on a busy machine"
    )
    parser.add_argument("--networks", type=int, default=3, help="how many are trained and measured")
    parser.add_argument("--contender", help="only those whose name begins so")
    parser.add_argument("--side", type=int, default=224, help="of the pictures for the memory, in pixels")
    parser.add_argument("--processes", type=int, default=memory.RUNS, help="for the memory of each contender")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where networks and results are kept")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write all results that are there as Markdown")
    return parser.parse_args()


def measure_cost(question: cost.Question, options: argparse.Namespace, results: Results) -> None:
    print(f"{question.name}: within {cost.WITHIN:.0%} of exact", flush=True)
    networks, rounds = (1, min(1, options.rounds)) if options.quick else (options.networks, options.rounds)
    problems = [problem(TRAININGS[options.model], seed, options.folder) for seed in range(networks)]
    contenders = [c for c in installed() if c.name.startswith(options.contender or "")]
    rows = cost.measure(question, contenders, problems, rounds)
    for row in rows if rounds else []:
        print("  timed:  ", cost.line(row), flush=True)
    if not options.contender:
        results.save(question.name, [asdict(row) for row in rows], problems=[p.facts() for p in problems])


def measure_memory(options: argparse.Namespace, results: Results) -> None:
    size = memory.Size(8, 64) if options.quick else memory.Size(32, options.side)
    print(f"memory: ResNet-50, {size.images} pictures of {size.side} x {size.side}", flush=True)
    chosen = {row["contender"]: row["settings"] for row in results.rows("top 1")}
    rows = memory.measure(chosen, size, runs=1 if options.quick else options.processes)
    results.save("memory", [asdict(row) for row in rows], size=asdict(size))


if __name__ == "__main__":
    main()
