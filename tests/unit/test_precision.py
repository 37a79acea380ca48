"""Which precisions a run may have, and where one is refused."""

from __future__ import annotations

import pytest
import torch

from adalora_bench import prepare
from adalora_bench.compose import compose_cells
from adalora_bench.errors import UserError
from adalora_bench.run import check_precision


@pytest.mark.parametrize("backbone", ["deberta_v3_base", "roberta_base", "llama2_7b"])
def test_fp16_is_offered_for_no_backbone(backbone: str) -> None:
    (cell,) = compose_cells(
        ["method=lora", "task=rte", f"backbone={backbone}", "scale=paper", "train.precision=fp16"]
    )
    with pytest.raises(UserError, match=r"unknown value of train.precision 'fp16'.* Valid: bf16, fp32"):
        prepare.check_late_failures(cell, {})


def test_bf16_is_refused_on_a_gpu_that_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old card")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(UserError, match="train.precision=bf16, but an old card has no bf16; use .*fp32"):
        check_precision("bf16", gpu)
    check_precision("fp32", gpu)
    check_precision("bf16", cpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    check_precision("bf16", gpu)
