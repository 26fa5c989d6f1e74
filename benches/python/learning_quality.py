"""What a row type costs in quality: test AUC after training with it against fp32 rows, over several seeds.

`python benches/python/learning_quality.py [--small] [--seeds N] [--task NAME ...] [--optimizer NAME ...]
[--types NAME ...] [--json FILE]` prints Markdown tables and one JSON object. Tasks: ml-100k (the demo's model
and settings) and synthetic (planted structure, the best possible AUC is known), which is trained with either
optimizer; with sgd the learning rate was chosen so small that plain rounding loses updates. All rows are in
DRAM, the clock is virtual, one torch thread. A seed decides data or split, initial values and batches; every
type trains on the same ones, which is checked, so differences are taken seed by seed. MovieLens-100K is
fetched as by `tiermem data fetch ml-100k` if it is not there. Eight seeds take seven minutes on one core.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import math
import os
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning_quality_data import PlantedTask, planted
from markdown import markdown_table
from scipy import stats
from tiermem import _core
from tiermem.config import SGD, Experiment, Hierarchy, Rounding, RowType, RowWiseAdagrad
from tiermem.data import Dataset, fetch_ml_100k, load_dataset
from tiermem.data.accesses import Bags
from tiermem.results import canonical, host, write_text
from tiermem.train import Trainer

TASKS = ("ml-100k", "synthetic")
OPTIMIZERS = ("rowwise_adagrad", "sgd")
BOUND = 0.002
"""The most that the mean of the differences to fp32 may be, either way, where there is a target."""
_BASE = "fp32"
_SEEDS, _SEEDS_SMALL = 8, 2
_UNUSED = 3
"""A part of the split that nobody asks for."""
_QUANTILE = 0.975
"""Upper end of a two-sided interval of 95 %."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A way of storing rows."""

    row_type: RowType
    rounding: Rounding = "stochastic"
    has_target: bool = False


KINDS = {
    _BASE: Kind(row_type="fp32"),
    "fp16 stochastic": Kind(row_type="fp16", has_target=True),
    "bf16 stochastic": Kind(row_type="bf16", has_target=True),
    "int8 stochastic": Kind(row_type="int8"),
    "fp16 nearest": Kind(row_type="fp16", rounding="nearest"),
    "bf16 nearest": Kind(row_type="bf16", rounding="nearest"),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What is trained: an experiment, and the data of a seed with the best AUC on it, where it is known."""

    name: str
    about: str
    experiment: Experiment
    data: Callable[[int], tuple[Dataset, float | None]]


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """One training run."""

    auc: float
    batches_checksum: int
    """Of the ids of all training steps, in order."""
    weights_digest: str
    seconds: float


def _demo() -> Experiment:
    """The experiment of the demo's first act, all rows in DRAM."""
    experiment = Experiment.load("demo-quality")
    return experiment.replace(hierarchy=Hierarchy.load("dram").model_dump(), budgets={})


def _ml_100k(*, small: bool) -> Problem:
    fetch_ml_100k()
    experiment = _demo()
    if small:
        experiment = experiment.replace(train={**experiment.train.model_dump(), "epochs": 1})

    def data(seed: int) -> tuple[Dataset, float | None]:
        dataset = load_dataset(experiment.data, seed)
        if small:
            used = np.arange(len(dataset)) % 8 == 0
            split = np.where(used, dataset.split, _UNUSED).astype(np.uint8)
            dataset = dataclasses.replace(dataset, split=split)
        return dataset, None

    return Problem(
        name=f"ml-100k, {experiment.train.optimizer.name}",
        about="MovieLens-100K, the demo's model and settings; test AUC at the best epoch in validation",
        experiment=experiment,
        data=data,
    )


def _synthetic(optimizer: str, *, small: bool) -> Problem:
    small_task = PlantedTask(rows=(100, 200, 500, 1_000), train_samples=6_000, test_samples=3_000)
    task = small_task if small else PlantedTask()
    demo = _demo()
    adagrad = optimizer == "rowwise_adagrad"
    rows = RowWiseAdagrad(lr=0.02) if adagrad else SGD(lr=1.5e-3)
    train_changes = {
        "optimizer": rows.model_dump(),
        "epochs": 1 if small else 2 if adagrad else 4,
        "batch_size": 128 if small else 256,
        # With rows that move so slowly, slower dense layers leave the start of training to chance.
        "dense_lr": 1e-3 if adagrad else 2e-3,
        "dense_weight_decay": 0.0,
    }
    model_changes = {"dense_layers": (), "over_layers": (64,)}
    table_rows = f"{task.rows[0]:,} to {task.rows[-1]:,}"
    return Problem(
        name=f"synthetic, {optimizer}",
        about=f"Clicks with planted structure: {len(task.rows)} features of {table_rows} ids, Zipf exponent"
        f" {task.zipf_exponent}, {task.train_samples:,} training and {task.test_samples:,} test samples;"
        " test AUC after the last epoch",
        experiment=demo.replace(
            train={**demo.train.model_dump(), **train_changes},
            model={**demo.model.model_dump(), **model_changes},
        ),
        data=functools.partial(planted, task),
    )


def problems(tasks: Sequence[str], optimizers: Sequence[str], *, small: bool) -> list[Problem]:
    """What is asked for, in the order of the report."""
    found = []
    if "ml-100k" in tasks:
        found.append(_ml_100k(small=small))
    if "synthetic" in tasks:
        found += [_synthetic(optimizer, small=small) for optimizer in optimizers]
    return found


def train(experiment: Experiment, dataset: Dataset) -> Outcome:
    """One run."""
    checksum = 0

    def see(bags: tuple[Bags, ...]) -> None:
        nonlocal checksum
        for bag in bags:
            checksum = zlib.crc32(bag.ids.data, checksum)

    began_s = time.perf_counter()
    run = Trainer(experiment, dataset, name="bench", capture=see).fit()
    scores = run.test
    assert scores is not None, "there is a test part"
    return Outcome(scores["auc"], checksum, run.weights_digest, time.perf_counter() - began_s)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, its standard error, range."""
    return {
        "mean": statistics.fmean(values),
        "standard_error": statistics.stdev(values) / math.sqrt(len(values)),
        "min": min(values),
        "max": max(values),
        "values": list(values),
    }


def measure(problem: Problem, names: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """All types on all seeds; the types of one seed run one after the other."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in names}
    best: list[float] = []
    for seed in seeds:
        dataset, best_auc = problem.data(seed)
        if best_auc is not None:
            best.append(best_auc)
        for name in names:
            kind = KINDS[name]
            model = problem.experiment.model.replace(row_type=kind.row_type, rounding=kind.rounding)
            experiment = problem.experiment.replace(seed=seed, model=model.model_dump())
            outcomes[name].append(train(experiment, dataset))
        of_seed = {name: found[-1] for name, found in outcomes.items()}
        base = of_seed[_BASE]
        assert {each.batches_checksum for each in of_seed.values()} == {base.batches_checksum}
        digests = {each.weights_digest for each in of_seed.values()}
        assert len(digests) == len(of_seed), "each type trained its own weights"
        seconds = sum(each.seconds for each in of_seed.values())
        print(f"# {problem.name}, seed {seed}: {seconds:.1f} s", file=sys.stderr, flush=True)
    settings, model = problem.experiment.train, problem.experiment.model
    return {
        "about": problem.about,
        "parameters": {
            "dim": model.dim,
            "dense_layers": model.dense_layers,
            "over_layers": model.over_layers,
            "epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "optimizer": _said(settings.optimizer.model_dump()),
            "dense_optimizer": f"AdamW, lr {settings.dense_lr:g},"
            f" weight_decay {settings.dense_weight_decay:g}",
        },
        "seeds": list(seeds),
        "best_possible_auc": spread(best) if best else None,
        "types": {name: _compared(name, found, outcomes[_BASE]) for name, found in outcomes.items()},
    }


def _said(optimizer: dict[str, Any]) -> str:
    """Name and values; text, since JSON here has nine decimals."""
    values = [f"{key} {value:g}" for key, value in optimizer.items() if key != "name" and value]
    return ", ".join([optimizer["name"], *values])


def _compared(name: str, found: Sequence[Outcome], base: Sequence[Outcome]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "auc": spread([each.auc for each in found]),
        "seconds_per_run": statistics.fmean(each.seconds for each in found),
    }
    if name == _BASE:
        return values
    less = spread([ours.auc - theirs.auc for ours, theirs in zip(found, base, strict=True)])
    target = {"bound": BOUND, "met": abs(less["mean"]) <= BOUND} if KINDS[name].has_target else None
    # Student's t: few seeds make the interval wide.
    half_width = float(stats.t.ppf(_QUANTILE, len(found) - 1)) * less["standard_error"]
    interval = (less["mean"] - half_width, less["mean"] + half_width)
    return {
        **values,
        "minus_fp32": {**less, "interval_95": interval},
        "target": target,
        "loses": interval[1] < 0,
    }


def document(sections: dict[str, dict[str, Any]], *, small: bool, command: str) -> dict[str, Any]:
    """The JSON object."""
    return {
        "bench": "learning_quality",
        "small": small,
        "command": command,
        "sections": sections,
        "targets_missed": [
            f"{name}: {kind}"
            for name, section in sections.items()
            for kind, values in section["types"].items()
            if values.get("target") and not values["target"]["met"]
        ],
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "build_profile": _core.BUILD_PROFILE,
        "host": host(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }


def _row(name: str, values: dict[str, Any]) -> tuple[str, ...]:
    auc = f"{values['auc']['mean']:.4f}"
    less = values.get("minus_fp32")
    if less is None:
        return name, auc, "", "", "", ""
    verdict = "-"
    if values["target"] is not None:
        verdict = "met" if values["target"]["met"] else "missed"
    return (
        name,
        auc,
        f"{less['mean']:+.5f}",
        f"{less['standard_error']:.5f}",
        f"{less['min']:+.5f} to {less['max']:+.5f}",
        verdict,
    )


def _plain_rounding(types: dict[str, dict[str, Any]]) -> list[str]:
    found = []
    for name, values in types.items():
        if KINDS[name].rounding == "nearest":
            low, high = values["minus_fp32"]["interval_95"]
            says = "loses" if values["loses"] else "is not seen to lose"
            found.append(f"{name} {says} (95 % interval {low:+.5f} to {high:+.5f})")
    return [f"Plain rounding against fp32: {'; '.join(found)}.", ""] if found else []


def lines(name: str, section: dict[str, Any]) -> list[str]:
    """Markdown of one section."""
    parameters = section["parameters"]
    said = [
        f"### {name}",
        "",
        f"{section['about']}. Columns {parameters['dim']}, hidden layers {parameters['dense_layers']} and"
        f" {parameters['over_layers']}, epochs {parameters['epochs']}, batch {parameters['batch_size']};"
        f" rows: {parameters['optimizer']}; dense layers: {parameters['dense_optimizer']}.",
        "",
    ]
    fp32 = section["types"][_BASE]["auc"]
    seeds = f"{len(section['seeds'])} seeds"
    said.append(f"fp32 over {seeds}: {fp32['min']:.4f} to {fp32['max']:.4f}.")
    best = section["best_possible_auc"]
    if best is not None:
        said[-1] += f" Best possible, by the true probabilities: {best['min']:.4f} to {best['max']:.4f}."
    heads = (
        "rows", f"test AUC, mean of {seeds}", "minus fp32, mean", "standard error", "least to most",
        f"mean within {BOUND:g}",
    )  # fmt: skip
    said += ["", *markdown_table(heads, [_row(kind, values) for kind, values in section["types"].items()])]
    return said + _plain_rounding(section["types"])


def _at_least_two(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"{number} seeds have no standard error; give at least 2")
    return number


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a size that the checks run")
    parser.add_argument("--seeds", type=_at_least_two, metavar="N", help="1 to N; default: 8, small 2")
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), help="default: all")
    parser.add_argument(
        "--optimizer",
        nargs="+",
        choices=OPTIMIZERS,
        default=list(OPTIMIZERS),
        help="of the rows of the synthetic task; default: both, one after the other",
    )
    parser.add_argument(
        "--types",
        nargs="+",
        choices=tuple(KINDS),
        default=list(KINDS),
        metavar="NAME",
        help=f"beside {_BASE}: {', '.join(KINDS)}; default: all",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON to this file")
    options = parser.parse_args(arguments)
    if options.seeds is None:
        options.seeds = _SEEDS_SMALL if options.small else _SEEDS
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    torch.set_num_threads(1)
    command = " ".join(["learning_quality.py", *(sys.argv[1:] if arguments is None else arguments)])
    names = [name for name in KINDS if name == _BASE or name in options.types]
    seeds = range(1, options.seeds + 1)
    sections = {
        problem.name: measure(problem, names, seeds)
        for problem in problems(options.task, options.optimizer, small=options.small)
    }
    found = canonical(document(sections, small=options.small, command=command))
    for name, section in found["sections"].items():
        print("\n".join(lines(name, section)))
    about = found["host"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    print(f"{command}: {found['build_profile']} build, {found['threads']} torch thread, OMP_NUM_THREADS")
    print(f"{found['omp_num_threads']}; {about['processor']}, {about['cores']} cores, {about['system']};")
    print(f"{versions}; {found['date']}\n")
    print(json.dumps(found))
    if options.json is not None:
        write_text(options.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
