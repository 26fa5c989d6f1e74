"""FBGEMM's table-batched embedding on the CPU, in `compare_peers.py`.

The lowest calls are `torch.ops.fbgemm.split_embedding_codegen_forward_cpu` and
`split_embedding_backward_codegen_rowwise_adagrad_cpu`, which its module reaches through autograd.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from compare_peers_torch import small_page_tensor
from compare_peers_workloads import EPSILON, LEARNING_RATE, Shape, Side, Table, Work, fill, prepare

DISTRIBUTION, VERSION = "fbgemm-gpu-cpu", "1.8.0"
FORWARD = "split_embedding_codegen_forward_cpu"
BACKWARD = "split_embedding_backward_codegen_rowwise_adagrad_cpu"
_TRAINING = "fbgemm_gpu.split_table_batched_embeddings_ops_training"
_COMMON = "fbgemm_gpu.split_table_batched_embeddings_ops_common"
_CONFIGS = "fbgemm_gpu.split_embedding_configs"


def is_installed() -> bool:
    """Whether the package is there at all."""
    return importlib.util.find_spec("fbgemm_gpu") is not None


def verify() -> dict[str, str]:
    """Loads FBGEMM, and says what was loaded; fails if it is not the package that `make peers` installs."""
    package = importlib.import_module("fbgemm_gpu")
    importlib.import_module(_TRAINING)
    parts = Path(str(package.__file__)).parts
    assert "site-packages" in parts, f"fbgemm_gpu was loaded from {package.__file__}"
    found = metadata.version(DISTRIBUTION)
    assert found == VERSION, f"{DISTRIBUTION} is {found}, not {VERSION}: make peers"
    for name in (FORWARD, BACKWARD):
        kernels = torch._C._dispatch_has_kernel_for_dispatch_key(f"fbgemm::{name}", "CPU")
        assert kernels, f"torch.ops.fbgemm.{name} has no CPU kernel"
    return {"distribution": DISTRIBUTION, "version": found, "package": "/".join(parts[-3:-1])}


def ignores_stochastic_rounding() -> bool:
    """Whether fp16 rows get the same bits with and without it, after steps that round."""
    shape = Shape(name="", title="", tables=(Table(500, 64, 5),), bags=100, batches=4, row_type="fp16")
    work = prepare(shape)
    found = []
    for stochastic in (False, True):
        side = Fbgemm(work, stochastic=stochastic)
        for batch in range(shape.batches):
            side.train(batch)
        found.append(side.rows(0))
    return torch.equal(*found)


class Fbgemm(Side):
    """`SplitTableBatchedEmbeddingBagsCodegen` with row-wise AdaGrad; bounds check WARNING, its default."""

    def __init__(self, work: Work, *, stochastic: bool = False, small_pages: bool = False) -> None:
        super().__init__(work)
        training: Any = importlib.import_module(_TRAINING)
        common: Any = importlib.import_module(_COMMON)
        configs: Any = importlib.import_module(_CONFIGS)
        kinds = configs.SparseType
        shape = work.shape
        location, device = common.EmbeddingLocation.HOST, training.ComputeDevice.CPU
        self.module = training.SplitTableBatchedEmbeddingBagsCodegen(
            [(table.rows, table.dim, location, device) for table in shape.tables],
            optimizer=configs.EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=LEARNING_RATE,
            eps=EPSILON,
            weights_precision=kinds.FP16 if shape.row_type == "fp16" else kinds.FP32,
            output_dtype=kinds.FP32,
            stochastic_rounding=stochastic,
            pooling_mode=common.PoolingMode.SUM,
        )
        self._unchecked = common.BoundsCheckMode.NONE.value
        self._checked = self.module.bounds_check_mode_int
        if small_pages:
            weights = self.module.weights_host
            weights.data = small_page_tensor(weights.numel(), weights.dtype)
        for position, table in enumerate(self.tables()):
            fill(shape, position, table)
        self._weights = self.module.weights_host.detach()
        self._rate = torch.tensor(LEARNING_RATE)
        self._forward = getattr(torch.ops.fbgemm, FORWARD).default
        self._backward = getattr(torch.ops.fbgemm, BACKWARD).default
        self._pooling = int(self.module.pooling_mode)

    def tables(self) -> list[torch.Tensor]:
        """Weights of all tables, [rows, D] each: views."""
        return [weights.detach() for weights in self.module.split_embedding_weights()]

    def pooled(self, batch: int) -> Sequence[torch.Tensor]:
        """`None` is what the module, too, passes for sample weights that there are none of."""
        module, lookups = self.module, self.work.batches[batch]
        with torch.no_grad():
            output: torch.Tensor = self._forward(
                self._weights, module.weights_offsets, module.D_offsets, module.total_D,
                module.hash_size_cumsum, lookups.all_ids, lookups.all_offsets, self._pooling, None, 0,
            )  # fmt: skip
        return (output,)

    def forward(self, batch: int) -> Sequence[torch.Tensor]:
        lookups = self.work.batches[batch]
        return (self.module(lookups.all_ids, lookups.all_offsets),)

    def forward_unchecked(self, batch: int) -> Sequence[torch.Tensor]:
        """`forward` without its check of ids and offsets."""
        self.module.bounds_check_mode_int = self._unchecked
        outputs = self.forward(batch)
        self.module.bounds_check_mode_int = self._checked
        return outputs

    def train(self, batch: int) -> None:
        (output,) = self.forward(batch)
        output.backward(self.work.all_gradients)  # type: ignore[no-untyped-call]

    def train_by_operators(self, batch: int) -> None:
        """The same without module and autograd, and without a check of ids."""
        self.pooled(batch)
        module, lookups = self.module, self.work.batches[batch]
        self._backward(
            self.work.all_gradients, self._weights, module.weights_placements, module.weights_offsets,
            module.D_offsets, module.max_D, module.hash_size_cumsum, module.total_hash_size_bits,
            lookups.all_ids, lookups.all_offsets, self._pooling, None,
            module.optimizer_args.stochastic_rounding, module.momentum1_host, module.momentum1_placements,
            module.momentum1_offsets, self._rate, EPSILON,
        )  # fmt: skip

    def rows(self, table: int) -> torch.Tensor:
        return self.tables()[table].float()

    def split(self, outputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        widths = [table.dim for table in self.work.shape.tables]
        return torch.split(outputs[0], widths, dim=1)

    @property
    def held_bytes(self) -> float:
        return float(self._weights.nbytes + self.module.momentum1_host.nbytes)
