"""Typed, frozen, validated configuration. Imports neither torch nor the extension."""

from tiermem.config.base import Config, load_toml, merge_overrides
from tiermem.config.device import DeviceSpec, DeviceState, Operation, PublishedPoint
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
from tiermem.config.fault import FaultConfig
from tiermem.config.hierarchy import BackendConfig, ClockMode, Hierarchy, LogConfig, TierConfig
from tiermem.config.names import available, resolve
from tiermem.config.optimizer import (
    LAMB,
    SGD,
    Adagrad,
    Adam,
    OptimizerConfig,
    PartialRowWiseAdam,
    Rounding,
    RowType,
    RowWiseAdagrad,
)
from tiermem.config.placement import Placement, TablePlacement
from tiermem.config.plan import PlanConfig, TargetConfig
from tiermem.config.serve import ServeConfig, ServePlacement, ServeRowType
from tiermem.config.synth import SynthConfig, SynthTable
from tiermem.config.tables import TableEntry, TableSet, TableSource

__all__ = [
    "LAMB",
    "SGD",
    "Adagrad",
    "Adam",
    "BackendConfig",
    "ClockMode",
    "ComputeConfig",
    "Config",
    "CriteoData",
    "DeviceSpec",
    "DeviceState",
    "Experiment",
    "FaultConfig",
    "Hierarchy",
    "LogConfig",
    "Ml100kData",
    "ModelConfig",
    "Operation",
    "OptimizerConfig",
    "PartialRowWiseAdam",
    "Placement",
    "PlanConfig",
    "PublishedPoint",
    "RecboleData",
    "Rounding",
    "RowType",
    "RowWiseAdagrad",
    "ServeConfig",
    "ServePlacement",
    "ServeRowType",
    "SynthConfig",
    "SynthTable",
    "SyntheticData",
    "TableEntry",
    "TablePlacement",
    "TableSet",
    "TableSource",
    "TargetConfig",
    "TierConfig",
    "TraceData",
    "TrainConfig",
    "available",
    "load_toml",
    "merge_overrides",
    "resolve",
]
