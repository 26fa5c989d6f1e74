"""The one place where tensors cross into the extension: as byte views, kept alive by numpy."""

import numpy as np
import numpy.typing as npt
import torch

from tiermem.errors import InputError

__all__ = ["bytes_of", "float_rows", "id_vector", "new_float", "stored_rows"]

Bytes = npt.NDArray[np.uint8]


def bytes_of(tensor: torch.Tensor) -> Bytes:
    """The memory of a contiguous CPU tensor of at least one dimension as uint8; shares it, copies nothing."""
    if tensor.dtype == torch.bfloat16:
        # numpy has no such type.
        tensor = tensor.view(torch.uint8)
    array: Bytes = (tensor.detach() if tensor.requires_grad else tensor).numpy().view(np.uint8)
    return array


def id_vector(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Ids or offsets as contiguous int64 on the CPU.

    Raises:
        InputError: if it is no tensor that is an integer vector on the CPU; the message names it.
    """
    if (
        isinstance(tensor, torch.Tensor)
        and tensor.dtype is torch.int64
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.dim() == 1
        and tensor.is_contiguous()
    ):
        return tensor
    _on_cpu(name, tensor)
    if tensor.dtype not in (torch.int64, torch.int32):
        raise InputError(f"{name} has dtype {tensor.dtype}; ids and offsets are torch.int64 or torch.int32")
    if tensor.dim() != 1:
        raise InputError(f"{name} has {tensor.dim()} dimensions; expected 1")
    return tensor.to(torch.int64).contiguous()


def float_rows(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Values as contiguous float32 on the CPU.

    Raises:
        InputError: if they are no tensor, or not float32 on the CPU; the message names them.
    """
    _on_cpu(name, tensor)
    if tensor.dtype != torch.float32:
        raise InputError(f"{name} has dtype {tensor.dtype}; rows, weights and gradients are torch.float32")
    return tensor.detach().contiguous()


def stored_rows(name: str, tensor: torch.Tensor, dtype: torch.dtype, width: int) -> torch.Tensor:
    """Rows as a store keeps them, contiguous on the CPU.

    Raises:
        InputError: if they are no [n, width] of this dtype on the CPU; the message names them.
    """
    _on_cpu(name, tensor)
    if tensor.dtype != dtype or tensor.dim() != 2 or tensor.shape[1] != width:
        raise InputError(f"{name} are {dtype} [n, {width}], not {tensor.dtype} {list(tensor.shape)}")
    return tensor.detach().contiguous()


def new_float(*shape: int) -> torch.Tensor:
    """Memory for an output, not yet filled and not yet seen by anybody."""
    return torch.empty(shape, dtype=torch.float32)


def _on_cpu(name: str, tensor: torch.Tensor) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"{name} is of type {type(tensor).__name__}; expected a torch.Tensor")
    if tensor.device.type != "cpu":
        raise InputError(f"{name} is on {tensor.device}; expected a CPU tensor, call .cpu() first")
    if tensor.layout != torch.strided:
        raise InputError(f"{name} is {tensor.layout}; expected a dense tensor")
