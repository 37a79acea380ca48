"""Where a unit is calculated: the device, whether it can do what is asked, and how processes on it talk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from adalora_bench.errors import UserError

_onednn: Any = torch.backends.mkldnn  # its older name; torch's stubs do not know all that is in it


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


@contextmanager
def fast_products(device: torch.device) -> Iterator[bool]:
    """Float32 products by oneDNN instead of MKL inside the context, where that is faster and as exact; gives whether.

    MKL, which torch takes for float32 on x86, leaves AVX-512 aside on processors of AMD: 100 GFLOP/s against 220 of
    oneDNN on one core (docs/log.md). torch has one way to ask oneDNN for a float32 product: the permission to calculate
    it in bf16, of which oneDNN makes use on processors with bf16 tiles alone; elsewhere it stays in float32. Hence the
    conditions: AMD, AVX-512, no tiles, and a product that came out as exact. Attention is then taken as plain products,
    since torch's fused one calls oneDNN for pieces that are too small for it.
    """
    matmul = _onednn.matmul
    before = matmul.fp32_precision
    if device.type != "cpu" or not _mkl_is_slow():
        yield False
        return
    try:
        matmul.fp32_precision = "bf16"
        if not _as_exact_as_float32():
            matmul.fp32_precision = before
            yield False
            return
        with sdpa_kernel([SDPBackend.MATH]):
            yield True
    finally:
        matmul.fp32_precision = before


def products_by() -> str:
    """What calculates float32 products on the CPU now: `oneDNN` within `fast_products`, else `torch`'s choice."""
    return "oneDNN" if _onednn.matmul.fp32_precision == "bf16" else "torch"


def _mkl_is_slow() -> bool:
    facts = torch.cpu.get_capabilities()
    return (
        _onednn.is_available()
        and "AMD" in str(facts.get("cpu_name", ""))
        and bool(facts.get("avx512_f"))
        and not any(on for name, on in facts.items() if name.startswith("amx"))
    )


def _as_exact_as_float32() -> bool:
    """One product of a layer's size against float64: float32 errs by 4e-7 of the largest number, bf16 by 2e-3."""
    draw = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 384, generator=draw) for rows in (64, 128))
    exact = x.double() @ weight.double().T
    return bool((x @ weight.T - exact).abs().max() <= 1e-5 * exact.abs().max())
