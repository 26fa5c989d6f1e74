"""Tables of serving, for `loadgen` and `tune`."""

import dataclasses
from typing import Any

from tiermem.report import Table
from tiermem.serve.ablate import Variant
from tiermem.serve.loadgen import LoadResult, MemoryUse
from tiermem.units import format_bytes

__all__ = ["load_document", "memory_table", "variant_document", "variants_table"]

_HEADS = (
    "engine", "queries/s", "of the first", "p50 ms", "p99 ms", "rows cached", "lists pooled", "reads a query",
    "bus bytes a query", "media bytes a query", "hedged", "memory",
)  # fmt: skip


def variants_table(title: str, variants: list[Variant], note: str) -> Table:
    """A line for each engine at its highest rate."""
    first = variants[0].result
    problems = (f"{variant.name}: {variant.problem}." for variant in variants if variant.problem)
    rows = tuple(_row(variant, first) for variant in variants)
    return Table(title, _HEADS, rows, "\n".join((note, *problems)))


def _row(variant: Variant, first: LoadResult | None) -> tuple[str, ...]:
    result, memory = variant.result, variant.memory
    if result is None or memory is None:
        return (variant.name, "none", *("",) * (len(_HEADS) - 2))
    queries = max(1, result.queries)
    return (
        variant.name,
        f"{result.queries_per_s:,.0f}",
        f"{result.queries_per_s / first.queries_per_s:.2f}" if first is not None else "",
        f"{result.quantile_ms('p50'):.2f}",
        f"{result.quantile_ms('p99'):.2f}",
        f"{_hit_rate(result):.1%}",
        f"{result.caches.list_hit_rate:.1%}",
        f"{(result.reads.reads) / queries:,.1f}",
        format_bytes(result.reads.bus_bytes / queries),
        format_bytes(result.media_bytes / queries),
        f"{result.reads.hedged / max(1, result.reads.reads):.1%}",
        format_bytes(_memory_bytes(memory)),
    )


def _hit_rate(result: LoadResult) -> float:
    if result.pages:
        return 1 - result.page_misses / result.pages
    return result.caches.row_hit_rate


def _memory_bytes(memory: MemoryUse) -> int:
    """What is in use, not what there would be."""
    return sum(value for key, value in dataclasses.asdict(memory).items() if key != "total_bytes")


def memory_table(memory: MemoryUse) -> Table:
    """Where the memory goes."""
    rows = (
        ("tables in memory", memory.fixed_bytes),
        ("index maps", memory.index_map_bytes),
        ("cached rows", memory.row_cache_bytes),
        ("pooled results", memory.pooled_bytes),
        ("buffers", memory.buffer_bytes),
        ("updated rows", memory.update_bytes),
        ("all", memory.total_bytes),
    )
    return Table("Memory", ("what", "bytes"), tuple((what, format_bytes(nbytes)) for what, nbytes in rows))


def load_document(result: LoadResult) -> dict[str, Any]:
    """A run, for programs and for a digest: nothing of the host."""
    values = dataclasses.asdict(result)
    values["row_hit_rate"] = result.caches.row_hit_rate
    values["list_hit_rate"] = result.caches.list_hit_rate
    return values


def variant_document(variant: Variant) -> dict[str, Any]:
    """An engine at its highest rate."""
    return {
        "name": variant.name,
        "problem": variant.problem,
        "memory": None if variant.memory is None else dataclasses.asdict(variant.memory),
        "result": None if variant.result is None else load_document(variant.result),
    }
