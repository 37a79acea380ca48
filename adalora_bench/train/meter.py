"""Seconds by phase, tokens, peak memory, and the floating-point operations of one step."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


class Meter:
    """Counts of one unit. `state` and `load` carry them through a checkpoint."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {"load": 0.0, "train": 0.0, "evaluate": 0.0}
        self.tokens: dict[str, int] = {"real": 0, "processed": 0}
        self.flops: dict[str, int] = {}
        self._earlier_peak = 0  # bytes, of the processes before this one that trained the same unit
        _reset_peak_memory()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Wall-clock seconds spent inside are added to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def count_tokens(self, real: int, processed: int) -> None:
        self.tokens["real"] += real
        self.tokens["processed"] += processed

    def state(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "tokens": self.tokens,
            "flops": self.flops,
            "peak_memory_bytes": self.peak_memory_bytes(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.seconds, self.tokens, self.flops = state["seconds"], state["tokens"], state["flops"]
        self._earlier_peak = state["peak_memory_bytes"]

    def peak_memory_bytes(self) -> int:
        """Peak of this unit: the device's allocator on a GPU, the resident set of the process on a CPU."""
        return max(self._earlier_peak, _peak_memory_bytes())


@contextmanager
def count_flops(meter: Meter) -> Iterator[None]:
    """Count one training step: matrix products and attention, forward and backward.

    Element-wise work counts 0. With the tokens of the same step it gives a cost per token; a step that scores costs
    more than one that does not, so the sum over a run is not derived from it.
    """
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def attention_backward(grad_out: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_backward_flop_count(grad_out, query, key, value))

    # torch has formulas for the attention kernels of GPUs only
    on_cpu = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    before = meter.tokens["processed"]
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        yield
    meter.flops = {
        "first_step": counter.get_total_flops(),
        "first_step_tokens": meter.tokens["processed"] - before,
    }


def _peak_memory_bytes() -> int:
    if torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _reset_peak_memory() -> None:
    """Start a new peak, since one worker runs many units. Where the system has no such switch, peaks accumulate."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    switch = Path("/proc/self/clear_refs")
    if switch.exists():
        try:
            switch.write_text("5")
        except PermissionError:  # a locked-down container: the peak is then the worker's, an upper bound
            return
