"""How often tables can be refreshed, and what a fleet pays for hosts that warm up.

Software Defined Memory (arXiv 2110.11489) argues from endurance and from cold caches; the formulas are ours.
"""

import dataclasses
from collections.abc import Sequence

from tiermem.config import DeviceSpec
from tiermem.serve.loadgen import WarmUpPart

__all__ = ["RefreshPlan", "least_refresh_interval_s", "refresh_plan"]

LIFE_YEARS = 5
"""How long a device must last: assumed."""
_SECONDS_PER_YEAR = 365.25 * 86_400
_WARM_SHARE = 0.95
"""A cache is warm when its hit rate is at this share of what it ends at."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RefreshPlan:
    """Refreshing all tables on the device, from cold caches."""

    least_interval_s: float
    """Between two refreshes, so that the device lasts; 0: it has no limit."""
    warm_up_s: float
    """Until the caches are warm, at the rate of the load."""
    warming_share: float
    """Of the hosts of a fleet that refresh evenly staggered at that interval, those that are warming;
    0 without one."""


def least_refresh_interval_s(spec: DeviceSpec, nbytes: int, *, life_years: float = LIFE_YEARS) -> float:
    """Seconds between two refreshes of `nbytes` that use a device up in so many years.

    Endurance is rated for random writes; a refresh writes in order, each byte once.
    """
    endurance = spec.wear.endurance_bytes * spec.wear.write_amplification_percent / 100
    return nbytes * life_years * _SECONDS_PER_YEAR / endurance if endurance else 0.0


def refresh_plan(
    spec: DeviceSpec, nbytes: int, warm_up: Sequence[WarmUpPart], queries_per_s: float
) -> RefreshPlan:
    """What refreshing costs a host and a fleet.

    Args:
        spec: of the device.
        nbytes: of the tables on it.
        warm_up: from cold caches, part by part.
        queries_per_s: of a host.
    """
    interval_s = least_refresh_interval_s(spec, nbytes)
    final = warm_up[-1].caches.row_hit_rate if warm_up else 0.0
    warm = next((part.queries for part in warm_up if part.caches.row_hit_rate >= _WARM_SHARE * final), 0)
    warm_up_s = warm / queries_per_s
    share = min(1.0, warm_up_s / interval_s) if interval_s else 0.0
    return RefreshPlan(least_interval_s=interval_s, warm_up_s=warm_up_s, warming_share=share)
