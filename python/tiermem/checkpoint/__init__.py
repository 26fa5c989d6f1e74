"""Snapshots of training runs, the run directories that hold them, and tables exported to be served."""

from tiermem.checkpoint.exported_model import ExportedModel, write_index_map
from tiermem.checkpoint.manifest import Manifest, TableShape
from tiermem.checkpoint.run_directory import (
    ResumePoint,
    claim,
    experiment_hash,
    find_resume_point,
    forget_experiment,
    list_snapshots,
    write_experiment,
)
from tiermem.checkpoint.snapshot import SnapshotFolder, load_state, rows_path, verify_snapshot
from tiermem.checkpoint.table_file import TableFile, TableHeader, write_table
from tiermem.checkpoint.table_rows import NarrowedScales, ScaleType

__all__ = [
    "ExportedModel",
    "Manifest",
    "NarrowedScales",
    "ResumePoint",
    "ScaleType",
    "SnapshotFolder",
    "TableFile",
    "TableHeader",
    "TableShape",
    "claim",
    "experiment_hash",
    "find_resume_point",
    "forget_experiment",
    "list_snapshots",
    "load_state",
    "rows_path",
    "verify_snapshot",
    "write_experiment",
    "write_index_map",
    "write_table",
]
