"""Inference with tables on storage-class memory.

Source: Ardestani et al., Supporting Massive DLRM Inference through Software Defined Memory, arXiv 2110.11489.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiermem.serve.engine import Answer, Engine, EngineStats, Query
    from tiermem.serve.loadgen import LoadResult, Simulator

__all__ = ["Answer", "Engine", "EngineStats", "LoadResult", "Query", "Simulator"]

# Virtual time needs no torch, so what needs it is imported when it is asked for.
_HOMES = {
    **dict.fromkeys(("Answer", "Engine", "EngineStats", "Query"), "tiermem.serve.engine"),
    **dict.fromkeys(("LoadResult", "Simulator"), "tiermem.serve.loadgen"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 (each name has its own type, above)
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tiermem.serve' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        if error.name == "torch":
            raise ImportError(f"tiermem.serve.{name} needs PyTorch: pip install 'tiermem[train]'") from error
        raise
