"""Where a unit is calculated: the device, whether it can do what is asked, and how processes on it talk."""

from __future__ import annotations

import torch

from adalora_bench.errors import UserError


def check_precision(precision: str, device: torch.device) -> None:
    """UserError: bf16 on a GPU that calculates without it. fp16 is not offered: DeBERTa's attention overflows in it."""
    if (
        precision == "bf16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise UserError(
            f"train.precision=bf16, but {torch.cuda.get_device_name(device)} has no bf16; use train.precision=fp32."
        )


def choose_device(name: str) -> torch.device:
    """auto takes a GPU where torch sees one.

    Raises:
        UserError: cuda was asked for and this build of torch sees none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no GPU; use device=cpu.")
    use_gpu = name != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_gpu else "cpu")


def backend(device: torch.device) -> str:
    """torch.distributed's backend for processes on this device; on GPUs small scores are also added on the CPU."""
    return "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"


def require_devices(device: torch.device, processes: int) -> None:
    """UserError: several processes on GPUs, and this unit does not see one for each."""
    if device.type == "cuda" and torch.cuda.device_count() < processes:
        raise UserError(
            f"processes={processes} on GPUs takes one for each, and this unit sees {torch.cuda.device_count()}; use "
            f"device=cpu, or launch.gpus={processes} on a cluster."
        )
