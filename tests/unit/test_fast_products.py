"""Float32 products by oneDNN: as exact as torch's own, asked for inside the context alone, and said in the record."""

from __future__ import annotations

import pytest
import torch

from adalora_bench.train import device
from adalora_bench.train.device import fast_products, products_by

CPU = torch.device("cpu")


def error(rows: int, inside: int, outside: int) -> float:
    """Of a layer's product, forward and backward, against float64, relative to the largest number."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(rows, inside, generator=draw)
    layer = torch.nn.Linear(inside, outside)
    exact = torch.nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double()).detach()
    found = layer(x)
    found.sum().backward()
    gradient = x.double().sum(0).expand(outside, inside)
    assert layer.weight.grad is not None
    return max(
        float((found.detach() - exact).abs().max() / exact.abs().max()),
        float((layer.weight.grad - gradient).abs().max() / gradient.abs().max()),
    )


@pytest.mark.parametrize(
    "shape", [(7, 16, 16), (64, 384, 1536), (640, 384, 384), (640, 384, 8), (33, 8, 384)]
)
def test_products_stay_float32(shape: tuple[int, int, int]) -> None:
    with fast_products(CPU):
        assert error(*shape) < 5e-6


def test_attention_stays_float32() -> None:
    draw = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, 3, 20, 8, generator=draw) for _ in range(3))
    exact = torch.softmax(q.double() @ k.double().mT / 8**0.5, -1) @ v.double()
    with fast_products(CPU):
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert float((found - exact).abs().max()) < 2e-6


def test_settings_of_torch_are_as_before() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(KeyError), fast_products(CPU):
        raise KeyError
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert torch.backends.cuda.flash_sdp_enabled()


def facts(**changed: object) -> dict[str, object]:
    return {"cpu_name": "AMD EPYC", "avx512_f": True, "amx_tile": False, "amx_bf16": False} | changed


@pytest.mark.parametrize(
    ("changed", "on"),
    [
        ({}, True),
        ({"cpu_name": "Intel(R) Xeon(R) Platinum 8592+"}, False),
        ({"avx512_f": False}, False),
        ({"amx_tile": True, "amx_bf16": True}, False),  # there oneDNN would calculate in bf16
        ({"cpu_name": None}, False),
    ],
)
def test_only_where_mkl_is_slow(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, object], *, on: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: facts(**changed))
    monkeypatch.setattr(device, "_as_exact_as_float32", lambda: True)
    with fast_products(CPU) as fast:
        assert fast is on
        assert products_by() == ("oneDNN" if on else "torch")
    assert products_by() == "torch"


def test_not_where_products_are_less_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", facts)
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor,
        "__matmul__",
        lambda a, b: (
            product(a.bfloat16(), b.bfloat16()).float() if a.dtype == torch.float32 else product(a, b)
        ),
    )
    with fast_products(CPU) as fast:
        assert not fast
        assert products_by() == "torch"


def test_not_on_a_gpu() -> None:
    with fast_products(torch.device("cuda")) as fast:
        assert not fast
