"""A study as numbers: what its digest is taken of, on any host."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tiermem.study.mtrains import Ablation, NodeStudy
from tiermem.study.nodes import Point

__all__ = ["document"]

_DIGITS = 5
"""Significant ones. What processors add differently shows in later digits."""


def document(study: NodeStudy) -> dict[str, Any]:
    """Everything that was found, rounded to five digits."""
    found = {
        "study": study.config.model_dump(mode="json"),
        "node": study.node.model_dump(mode="json"),
        "models": {each.name: _plain(each) for each in study.characters},
        "calibrations": [_plain(each) for each in study.calibrations],
        "scaled": [
            {
                "model": each.model,
                "scale": each.scale,
                "bytes": each.nbytes,
                "target_samples_per_s": each.target_samples_per_s,
                "systems": {name: _point(point) for name, point in each.systems.items()},
                "node_ratios": {name: each.ratio(name) for name in each.systems},
            }
            for each in study.scaled
        ],
        "curves": {name: [_point(point) for point in points] for name, points in study.curves.items()},
        "ablations": [_ablation(each) for each in study.ablations],
        "sensitivities": [_ablation(each) for each in study.sensitivities],
        "emulations": [
            {"plan": name, **_plain(each), "error": each.error} for name, each in study.emulations
        ],
    }
    rounded: dict[str, Any] = _rounded(found)
    return rounded


def _plain(value: Any) -> dict[str, Any]:  # noqa: ANN401 (a dataclass)
    plain: dict[str, Any] = dataclasses.asdict(value)
    return plain


def _point(point: Point | None) -> dict[str, Any] | None:
    if point is None:
        return None
    # Which of equal plans was found first says nothing of the system.
    return {key: value for key, value in _plain(point).items() if key not in ("plan", "gap")}


def _ablation(each: Ablation) -> dict[str, Any]:
    return {**_plain(each), "ratio": each.ratio}


def _rounded(value: Any) -> Any:  # noqa: ANN401 (a JSON value)
    if isinstance(value, Mapping):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
