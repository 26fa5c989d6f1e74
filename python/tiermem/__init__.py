"""tiermem: run, measure and plan recommendation models on memory that you do not have.

`import tiermem` loads neither torch nor the extension; a name loads what it needs when it is used.
"""

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiermem.config import (
        LAMB,
        SGD,
        Adagrad,
        Adam,
        BackendConfig,
        DeviceSpec,
        Experiment,
        FaultConfig,
        Hierarchy,
        PartialRowWiseAdam,
        Placement,
        RowWiseAdagrad,
        TierConfig,
    )
    from tiermem.embedding import (
        EmbeddingStore,
        Lookup,
        TableConfig,
        TieredEmbeddingBag,
        TieredEmbeddingBagCollection,
    )
    from tiermem.emulator import Device, open_device
    from tiermem.errors import (
        CapacityError,
        ClosedError,
        ConfigError,
        CorruptionError,
        DeviceError,
        InputError,
        TiermemError,
    )

__all__ = [
    "LAMB",
    "SGD",
    "Adagrad",
    "Adam",
    "BackendConfig",
    "CapacityError",
    "ClosedError",
    "ConfigError",
    "CorruptionError",
    "Device",
    "DeviceError",
    "DeviceSpec",
    "EmbeddingStore",
    "Experiment",
    "FaultConfig",
    "Hierarchy",
    "InputError",
    "Lookup",
    "PartialRowWiseAdam",
    "Placement",
    "RowWiseAdagrad",
    "TableConfig",
    "TierConfig",
    "TieredEmbeddingBag",
    "TieredEmbeddingBagCollection",
    "TiermemError",
    "__version__",
    "open_device",
]

_CONFIG = (
    "Adagrad",
    "Adam",
    "BackendConfig",
    "DeviceSpec",
    "Experiment",
    "FaultConfig",
    "Hierarchy",
    "LAMB",
    "PartialRowWiseAdam",
    "Placement",
    "RowWiseAdagrad",
    "SGD",
    "TierConfig",
)
_EMBEDDING = ("EmbeddingStore", "Lookup", "TableConfig", "TieredEmbeddingBag", "TieredEmbeddingBagCollection")
_EMULATOR = ("Device", "open_device")
_ERRORS = tuple(name for name in __all__ if name.endswith("Error"))
_HOMES = {
    **dict.fromkeys(_CONFIG, "tiermem.config"),
    **dict.fromkeys(_EMBEDDING, "tiermem.embedding"),
    **dict.fromkeys(_EMULATOR, "tiermem.emulator"),
    **dict.fromkeys(_ERRORS, "tiermem.errors"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 (each name has its own type, above)
    if name == "__version__":
        return metadata.version("tiermem")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tiermem' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        if error.name == "torch":
            raise ImportError(f"tiermem.{name} needs PyTorch: pip install 'tiermem[train]'") from error
        raise


def __dir__() -> list[str]:
    return __all__
