"""The layer: delta() is what forward adds, however the layer grows, shrinks or computes; gradients are autograd's."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adalora_bench.lowrank import adapter as adapter_module
from adalora_bench.lowrank import function
from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock

IN, OUT, TOKENS = 5, 7, 6
PATHS = ("low", "merged", "dense", "branch")
FROZEN_PATHS = (*PATHS, "kept", "kept branch")  # where A and B are frozen
BASES = ("linear", "no bias", "conv1d")


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def block(rank: int, *, seed: int, gates: list[float] | None = None, reserve: bool = False) -> RankBlock:
    gate = draw(rank, seed=seed + 2) if gates is None else torch.tensor(gates, dtype=torch.float64)
    a, b = draw(rank, IN, seed=seed), draw(rank, OUT, seed=seed + 1)
    return RankBlock(a, b, gate, train_gate=True, reserve=reserve)


def make(kind: str = "linear", *, ranks: tuple[int, ...] = (2, 1), out_gate: bool = False) -> LowRankLinear:
    base: nn.Linear | Conv1D
    if kind == "conv1d":
        base = Conv1D(OUT, IN).double()
        base.weight.data = draw(IN, OUT, seed=90)
        base.bias.data = draw(OUT, seed=91)
    else:
        base = nn.Linear(IN, OUT, bias=kind == "linear").double()
        base.weight.data = draw(OUT, IN, seed=90)
        if kind == "linear":
            base.bias.data = draw(OUT, seed=91)
    layer = LowRankLinear(base, scale=0.7, role="q")
    for i, rank in enumerate(ranks):
        layer.append(block(rank, seed=10 * i))
    if out_gate:
        layer.out_gate = nn.Parameter(draw(OUT, seed=80))
    return layer


class HalfMask(nn.Module):
    """A dropout whose mask is known."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.arange(x.numel()).reshape(x.shape) % 2) * 2


def take(path: str, layer: LowRankLinear, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the next forward go this way, where it may."""

    def forced(*_: object, gates_only: bool, merge: bool, scores: bool) -> str:
        wanted = path.removesuffix("branch").strip() or "low"
        allowed = ("low", *(("kept",) if gates_only else ()), *(("merged", "dense") if merge else ()))
        return wanted if wanted in allowed else "low"

    monkeypatch.setattr(adapter_module, "cheapest_path", forced)
    layer.dropout = HalfMask() if path.endswith("branch") else None  # type: ignore[assignment]


def dense(layer: LowRankLinear) -> Tensor:
    """dW (out, in) from the formula, one rank after the other."""
    total = torch.zeros(OUT, IN, dtype=torch.float64)
    for b in layer.rank_blocks():
        for i in range(b.rank):
            if b.alive[i]:
                total = total + layer.scale * b.gate[i] * b.b[i][:, None] * b.a[i][None, :]
    return total if layer.out_gate is None else layer.out_gate[:, None] * total


def reference(layer: LowRankLinear, x: Tensor, dw: Tensor) -> Tensor:
    """What the layer must return, with plain autograd all the way."""
    bias = getattr(layer.base, "bias", None)
    branch = HalfMask()(x.reshape(-1, IN)).reshape(x.shape) if layer.dropout is not None else x
    y = x @ layer.weight.T + branch @ dw.T
    return y if bias is None else y + bias


def assert_close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


# -- delta() is forward minus base --------------------------------------------------------------------------


@pytest.mark.parametrize("out_gate", [False, True])
@pytest.mark.parametrize("path", ["low", "merged"])
@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("ranks", [(), (0,), (2,), (2, 1, 3)])
def test_delta_is_forward_minus_base(
    kind: str, path: str, out_gate: bool, ranks: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make(kind, ranks=ranks, out_gate=out_gate)
    take(path, layer, monkeypatch)
    assert_close(layer.delta(), dense(layer).detach())
    for want in (False, True):
        layer.want_delta_grad = want
        for x in (draw(2, 3, IN), draw(IN)):
            assert_close(layer(x) - layer.base(x), x @ layer.delta().T)


def test_dropout_acts_on_the_branch_and_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make()
    take("branch", layer, monkeypatch)
    x = draw(TOKENS, IN)
    assert_close(layer(x), reference(layer, x, layer.delta()))
    layer.eval()
    assert_close(layer(x), layer.base(x) + x @ layer.delta().T)
    assert LowRankLinear(nn.Linear(2, 2), scale=1, role="q", dropout=0.0).dropout is None


@pytest.mark.parametrize("path", ["low", "merged"])
@pytest.mark.parametrize("kind", BASES)
def test_grow_kill_compact_and_merge_keep_the_output(
    kind: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make(kind, ranks=(3,), out_gate=True)
    take(path, layer, monkeypatch)
    x = draw(TOKENS, IN)

    before = layer(x)
    layer.append(block(2, seed=50, gates=[0.0, 0.0]))  # a gate of 0 adds nothing
    assert_close(layer(x), before)
    assert (layer.rank, layer.stored_rank) == (5, 5)

    first = next(layer.rank_blocks())
    dw = layer.delta()
    gone = layer.scale * first.gate[1] * torch.outer(layer.out_gate * first.b[1], first.a[1])  # type: ignore[operator]
    first.kill(torch.tensor([False, True, False]))
    assert_close(layer.delta(), (dw - gone).detach())
    assert (layer.rank, layer.stored_rank) == (4, 5)

    pruned = layer(x)
    layer.compact()
    assert_close(layer(x), pruned)
    assert (layer.rank, layer.stored_rank) == (4, 4)
    merged = layer.merge()
    assert type(merged) is type(layer.base)
    assert_close(merged(x), layer(x))
    assert_close(layer(x), pruned)  # merge left the layer as it was


def test_reserve_is_stored_and_used_but_not_counted() -> None:
    layer = make(ranks=(2,))
    reserve = layer.append(block(3, seed=60, reserve=True))
    assert (layer.rank, layer.stored_rank) == (2, 5)
    assert_close(layer.delta(), dense(layer).detach())
    reserve.reserve = False
    assert layer.rank == 5
    layer.remove(reserve)
    assert (layer.rank, len(list(layer.parameters()))) == (2, 2 + 3)


def test_dead_ranks_get_no_gradient() -> None:
    layer = make(ranks=(3,))
    only = next(layer.rank_blocks())
    only.kill(torch.tensor([True, False, False]))
    only.kill(torch.tensor([False, False, True]))  # kills add up
    assert only.alive.tolist() == [False, True, False]
    layer(draw(TOKENS, IN)).square().sum().backward()
    for p in (only.a, only.b, only.gate):
        assert p.grad is not None
        assert not p.grad[[0, 2]].any()
        assert p.grad[1].any()


def test_compact_moves_rows_and_their_grad() -> None:
    layer = make(ranks=(3, 2))
    layer(draw(TOKENS, IN)).sum().backward()
    first, second = layer.rank_blocks()
    first.gate.requires_grad_(False)
    old = {name: getattr(first, name) for name in ("a", "b", "gate")}
    gone = second.a
    untouched = make(ranks=(1,)).compact()
    first.kill(torch.tensor([False, True, False]))
    second.kill(torch.tensor([True, True]))
    moved = layer.compact()
    assert untouched == {}
    assert list(layer.rank_blocks()) == [first]
    assert moved[gone][0].shape == (0, IN)
    for name, before in old.items():
        after, keep = moved[before]
        assert after is getattr(first, name)
        assert keep.tolist() == [0, 2]
        assert torch.equal(after, before[[0, 2]])
        assert torch.equal(after.grad, before.grad[[0, 2]])
        assert after.requires_grad is before.requires_grad is (name != "gate")
    assert (first.alive_ranks, first.alive.tolist()) == (2, [True, True])


def test_ranks_of_the_three_parts_must_agree() -> None:
    with pytest.raises(ValueError, match="2, 1, 2"):
        RankBlock(torch.zeros(2, IN), torch.zeros(1, OUT), torch.zeros(2))


# -- gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("want", [False, True])
@pytest.mark.parametrize("out_gate", [False, True])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", BASES)
def test_gradients_are_those_of_the_dense_formula(
    kind: str, path: str, out_gate: bool, want: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every choice of what is frozen, of the input, the factors, the base weight and the bias."""
    layer = make(kind, ranks=(2,), out_gate=out_gate)
    take(path, layer, monkeypatch)
    layer.want_delta_grad = want
    only = next(layer.rank_blocks())
    x, weights = draw(2, 3, IN), draw(2, 3, OUT, seed=5)
    bias = getattr(layer.base, "bias", None)
    optional = [t for t in (layer.out_gate, bias) if t is not None]
    tensors = [x, only.a, only.b, only.gate, layer.base.weight, *optional]
    for needs in product([False, True], repeat=len(tensors)):
        if not any(needs):
            continue
        for tensor, need in zip(tensors, needs, strict=True):
            tensor.requires_grad_(need)
        wanted = [t for t in tensors if t.requires_grad]
        layer.delta_grad = None
        got = torch.autograd.grad((layer(x) * weights).sum(), wanted)
        expected = torch.autograd.grad(
            (reference(layer, x, dense(layer)) * weights).sum(), wanted, allow_unused=True
        )
        for g, e in zip(got, expected, strict=True):
            assert e is not None
            assert_close(g, e)


@pytest.mark.parametrize("want", [False, True])
@pytest.mark.parametrize("rank", [2, 9])
@pytest.mark.parametrize("path", FROZEN_PATHS)
@pytest.mark.parametrize("kind", BASES)
def test_gradients_of_the_gates_with_frozen_factors(
    kind: str, path: str, rank: int, want: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A and B as VeRA and a frozen AFLoRA have them, below and above the width of the layer."""
    layer = make(kind, ranks=(rank,), out_gate=True).requires_grad_(False)
    take(path, layer, monkeypatch)
    layer.want_delta_grad = want
    only = next(layer.rank_blocks())
    x, weights = draw(2, 3, IN), draw(2, 3, OUT, seed=5)
    tensors = [x, only.gate, layer.out_gate]
    assert_close(layer(x), reference(layer, x, dense(layer)))
    for needs in product([False, True], repeat=3):
        if not any(needs):
            continue
        for tensor, need in zip(tensors, needs, strict=True):
            tensor.requires_grad_(need)
        wanted = [t for t in tensors if t.requires_grad]
        layer.delta_grad = None
        got = torch.autograd.grad((layer(x) * weights).sum(), wanted)
        expected = torch.autograd.grad((reference(layer, x, dense(layer)) * weights).sum(), wanted)
        for g, e in zip(got, expected, strict=True):
            assert_close(g, e)
        if want:
            source = HalfMask()(x) if path.endswith("branch") else x
            assert_close(layer.delta_grad, weights.reshape(-1, OUT).T @ source.reshape(-1, IN))


@pytest.mark.parametrize("ranks", [(), (2,), (2, 1)])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", BASES)
def test_delta_grad_is_the_dense_gradient_summed_over_micro_batches(
    kind: str, path: str, ranks: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make(kind, ranks=ranks, out_gate=True)
    take(path, layer, monkeypatch)
    layer.want_delta_grad = True
    dw = layer.delta().detach().requires_grad_()
    for seed in range(3):
        x = draw(TOKENS, IN, seed=seed)
        layer(x).square().sum().backward()
        reference(layer, x, dw).square().sum().backward()
    assert layer.delta_grad is not None
    assert dw.grad is not None
    torch.testing.assert_close(layer.delta_grad, dw.grad, rtol=1e-12, atol=1e-12)


def test_delta_grad_survives_a_weight_that_trains() -> None:
    """The sum over micro-batches must not share memory with the gradient of the weight."""
    layer = make()
    layer.base.weight.requires_grad_(True)
    layer.want_delta_grad = True
    for seed in range(2):
        layer(draw(TOKENS, IN, seed=seed)).square().sum().backward()
    assert_close(layer.delta_grad, layer.base.weight.grad)
    layer.delta_grad.zero_()
    assert layer.base.weight.grad.any()


def test_delta_grad_is_made_only_when_asked_for_and_never_in_evaluation() -> None:
    layer = make()
    layer(draw(TOKENS, IN)).sum().backward()
    assert layer.delta_grad is None
    layer.want_delta_grad = True
    with torch.no_grad():
        layer(draw(TOKENS, IN))
    assert layer.delta_grad is None


def test_delta_grad_of_a_frozen_branch_is_still_delivered() -> None:
    layer = make().requires_grad_(False)
    layer.want_delta_grad = True
    x = draw(TOKENS, IN)
    layer(x).sum().backward()
    assert_close(layer.delta_grad, torch.ones(OUT, TOKENS, dtype=torch.float64) @ x)


@pytest.mark.parametrize("want", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_gradients_reach_every_block_and_only_those_that_train(
    path: str, want: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make(ranks=(2, 1, 3))
    take(path, layer, monkeypatch)
    layer.want_delta_grad = want
    first, second, third = layer.rank_blocks()
    for asleep in (second.a, second.gate, third.b):
        asleep.requires_grad_(False)
    x = draw(TOKENS, IN)
    layer(x).square().sum().backward()
    wanted = [p for p in layer.blocks.parameters() if p.requires_grad]
    expected = torch.autograd.grad(reference(layer, x, dense(layer)).square().sum(), wanted)
    for p, e in zip(wanted, expected, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, e, rtol=1e-12, atol=1e-12)
    assert (second.a.grad, second.gate.grad, third.b.grad) == (None, None, None)
    assert first.a.grad is not None


@pytest.mark.parametrize("path", ["low", "merged", "dense"])
def test_gradcheck_by_finite_differences(path: str) -> None:
    shapes = [(3, IN), (OUT, IN), (OUT,), (3,), (OUT,), (2, IN), (1, IN), (2, OUT), (1, OUT)]
    tensors = [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    torch.autograd.gradcheck(
        lambda *t: function.LowRankFunction.apply(*t[:5], 0.7, path, None, *t[5:]), tensors
    )


@pytest.mark.parametrize(
    "tokens, out, width, rank, gates_only, path",
    [
        (2048, 384, 384, 8, False, "merged"),  # the choices that timings of single layers gave, docs/log.md
        (2048, 1536, 384, 8, False, "merged"),
        (1024, 3072, 768, 8, False, "low"),
        (128, 768, 768, 8, False, "low"),
        (2048, 384, 384, 4, True, "merged"),  # AFLoRA, frozen
        (128, 768, 768, 4, True, "low"),
        (2048, 384, 384, 1024, True, "dense"),  # VeRA
        (2048, 384, 1536, 1024, True, "dense"),
        (2048, 1536, 384, 256, True, "merged"),
        (1024, 768, 3072, 1024, True, "kept"),
        (128, 768, 768, 256, True, "kept"),
        (10**9, 768, 768, 0, False, "low"),
    ],
)
def test_the_path_of_least_work(
    tokens: int, out: int, width: int, rank: int, gates_only: bool, path: str
) -> None:
    assert function.cheapest_path(tokens, out, width, rank, gates_only=gates_only) == path
    unmerged = "kept" if gates_only and rank > 32 else "low"
    assert function.cheapest_path(tokens, out, width, rank, gates_only=gates_only, merge=False) == unmerged


# -- memory -------------------------------------------------------------------------------------------------


def saved_for_backward(layer: nn.Module, x: Tensor) -> dict[int, Tensor]:
    """Storages that wait for backward, by address; parameters, which are there anyway, are left out."""
    kept: dict[int, Tensor] = {}
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    return kept


def size(kept: dict[int, Tensor]) -> int:
    return sum(t.untyped_storage().nbytes() for t in kept.values())


@pytest.mark.parametrize("want", [False, True])
@pytest.mark.parametrize("path", ["low", "merged"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_the_input_and_small_factors_are_saved(
    precision: str, path: str, want: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig
    from peft.tuners.lora import Linear as PeftLinear

    n, width, height, rank = 256, 96, 128, 4
    x = draw(n, width, dtype=torch.float32).requires_grad_()
    layer = LowRankLinear(nn.Linear(width, height), scale=2.0, role="q")
    layer.append(RankBlock(torch.randn(rank, width), torch.randn(rank, height), torch.ones(rank)))
    layer.want_delta_grad = want
    take(path, layer, monkeypatch)
    config = LoraConfig(r=rank, lora_alpha=8, lora_dropout=0.0)
    peft_layer = PeftLinear(nn.Linear(width, height), "default", config=config, r=rank, lora_alpha=8)
    peft_layer.requires_grad_(False)
    for name, p in peft_layer.named_parameters():
        p.requires_grad_("lora_" in name)

    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        ours, theirs = saved_for_backward(layer, x), saved_for_backward(peft_layer, x)
    shapes = [tuple(t.shape) for t in ours.values()]
    assert (height, width) not in shapes
    assert (width, height) not in shapes
    assert shapes.count((n, width)) == 1
    assert (n, height) not in shapes
    assert size(ours) <= size(theirs), f"{size(ours)} bytes are kept, {size(theirs)} by peft"


@pytest.mark.parametrize("train_b", [False, True])
@pytest.mark.parametrize("path", ["low", "kept", "merged"])
def test_the_input_is_not_kept_where_a_is_frozen(
    path: str, train_b: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the other gradients want of it is h (n, rank)."""
    layer = make(ranks=(2,), out_gate=True)
    take(path, layer, monkeypatch)
    layer.base.requires_grad_(False)
    only = next(layer.rank_blocks())
    only.a.requires_grad_(False)
    only.b.requires_grad_(train_b)
    n = 11
    shapes = [tuple(t.shape) for t in saved_for_backward(layer, draw(n, IN).requires_grad_()).values()]
    assert (n, IN) not in shapes
    assert shapes.count((n, 2)) == 1
    with torch.no_grad():
        assert not saved_for_backward(layer, draw(n, IN))


# -- reduced precision --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [False, True])
def test_autocast_computes_in_bf16_and_hands_back_fp32_gradients(
    dropout: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make(out_gate=True).float()
    take("branch" if dropout else "merged", layer, monkeypatch)
    layer.want_delta_grad = True
    exact = make(out_gate=True)
    take("branch" if dropout else "merged", exact, monkeypatch)
    exact.want_delta_grad = True
    x = draw(TOKENS, IN)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            y = layer(x.float())
            assert y.dtype == torch.bfloat16
            y.float().square().sum().backward()
    for _ in range(2):
        z = exact(x)
        z.square().sum().backward()
    torch.testing.assert_close(y.double(), z, rtol=0.05, atol=0.1)
    pairs = [(p.grad, q.grad) for p, q in zip(layer.parameters(), exact.parameters(), strict=True)]
    for got, expected in [*pairs, (layer.delta_grad, exact.delta_grad)]:
        assert (got is None) == (expected is None)
        if got is not None:
            assert got.dtype == torch.float32
            assert torch.linalg.vector_norm(got - expected) < 0.03 * torch.linalg.vector_norm(expected)


def test_autocast_never_rounds_a_small_update_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16(1 + 2^-10) is 1: the merged path would lose the update, so it is not taken there."""
    layer = LowRankLinear(nn.Linear(4, 3, bias=False), scale=1.0, role="q")
    layer.base.weight.data = torch.ones(3, 4)
    layer.append(RankBlock(torch.eye(1, 4), torch.full((1, 3), 2.0**-10), torch.ones(1)))
    take("merged", layer, monkeypatch)
    x = torch.tensor([[1.0, -1.0, 0.0, 0.0]])  # W x = 0
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert torch.equal(y.float(), torch.full((1, 3), 2.0**-10))
