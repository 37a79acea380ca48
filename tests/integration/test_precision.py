"""Which precisions and devices a run may have, and where one is refused."""

from __future__ import annotations

import pytest
import torch

from adalora_bench.errors import UserError
from adalora_bench.settings import prepare
from adalora_bench.settings.compose import compose_cells
from adalora_bench.train.device import backend, check_precision, require_devices


@pytest.mark.parametrize("backbone", ["deberta_v3_base", "roberta_base", "llama2_7b"])
def test_fp16_is_offered_for_no_backbone(backbone: str) -> None:
    (cell,) = compose_cells(
        ["method=lora", "task=rte", f"backbone={backbone}", "scale=paper", "train.precision=fp16"]
    )
    with pytest.raises(UserError, match=r"unknown value of train.precision 'fp16'.* Valid: bf16, fp32"):
        prepare.check_late_failures(cell, prepare.Assets())


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


def test_several_processes_on_gpus_want_one_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert (backend(cpu), backend(gpu)) == ("gloo", "cpu:gloo,cuda:nccl")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    require_devices(gpu, 2)
    require_devices(cpu, 3)
    with pytest.raises(UserError, match="processes=3 on GPUs takes one for each, and this unit sees 2"):
        require_devices(gpu, 3)
    names = ["method=lora", "task=toy", "scale=smoke"]
    monkeypatch.setattr("adalora_bench.settings.compose.devices", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    compose_cells([*names, "processes=2"])
    compose_cells([*names, "processes=3", "device=cpu"])
    with pytest.raises(UserError, match="processes=3 takes a GPU for each, but there are 2; use device=cpu"):
        compose_cells([*names, "processes=3"])
