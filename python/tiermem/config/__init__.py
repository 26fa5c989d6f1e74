"""Typed, frozen, validated configuration. Imports neither torch nor the extension."""

from tiermem.config.base import Config, load_toml, merge_overrides
from tiermem.config.device import DeviceSpec
from tiermem.config.experiment import (
    ComputeConfig,
    CriteoData,
    Experiment,
    Ml100kData,
    ModelConfig,
    RecboleData,
    SyntheticData,
    TraceData,
    TrainConfig,
)
from tiermem.config.hierarchy import BackendConfig, Hierarchy, TierConfig
from tiermem.config.names import available, resolve
from tiermem.config.optimizer import SGD, OptimizerConfig, RowWiseAdagrad

__all__ = [
    "SGD",
    "BackendConfig",
    "ComputeConfig",
    "Config",
    "CriteoData",
    "DeviceSpec",
    "Experiment",
    "Hierarchy",
    "Ml100kData",
    "ModelConfig",
    "OptimizerConfig",
    "RecboleData",
    "RowWiseAdagrad",
    "SyntheticData",
    "TierConfig",
    "TraceData",
    "TrainConfig",
    "available",
    "load_toml",
    "merge_overrides",
    "resolve",
]
