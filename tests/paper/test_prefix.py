"""Prefixes of attentions (P-tuning v2) against sums written out here and against transformers' own cache."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_backbones import ALL, TEXT, batch_of, greedy, one_step, run_on
from torch import Tensor, nn
from transformers import DynamicCache

from adalora_bench.errors import PromiseBroken, UserError
from adalora_bench.inserts.prefix import Prefix, PrefixedDisentangled, attend, extended, prefixes, sites
from adalora_bench.methods.base import Facts
from adalora_bench.methods.run import Run
from adalora_bench.settings.compose import method_settings
from adalora_bench.settings.config import build


def made(name: str, **changes: Any) -> Any:
    return build(method_settings(name, changes), "method")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Asking(nn.Module):
    """What the attention function reads of the module that calls it."""

    def __init__(self, keys: Tensor, values: Tensor, *, causal: bool, groups: int = 1) -> None:
        super().__init__()
        self.prefix = Prefix(keys, values)
        self.is_causal = causal
        self.num_key_value_groups = groups


def by_hand(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """One query (width,) over keys (m, width)."""
    weights = [math.exp(scale * float(q @ key)) for key in k]
    return sum((w * value for w, value in zip(weights, v, strict=True)), start=torch.zeros(v.shape[1])) / sum(
        weights
    )


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [None, "bool", "number"])
def test_attention_over_prefix_and_tokens_by_hand(causal: bool, masked: str | None) -> None:
    """softmax over the prefix (always seen) and the tokens that the mask leaves; two heads share the keys of one."""
    q, k, v = drawn(1, 2, 3, 4), drawn(1, 1, 3, 4, seed=1), drawn(1, 1, 3, 4, seed=2)
    module = Asking(drawn(1, 2, 4, seed=3), drawn(1, 2, 4, seed=4), causal=causal, groups=2).eval()
    may = torch.ones(3, 3, dtype=torch.bool)
    if masked:
        may = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 1]], dtype=torch.bool)
    elif causal:
        may = may.tril()
    mask: Tensor | None = None
    if masked == "bool":
        mask = may[None, None]
    elif masked == "number":
        mask = torch.zeros(1, 1, 3, 3, dtype=torch.float64).masked_fill(~may, -math.inf)
    out, _ = attend(module, q, k, v, mask, scaling=0.5)
    for head in range(2):
        for i in range(3):
            keys = torch.cat([module.prefix.keys[0], k[0, 0][may[i]]])
            values = torch.cat([module.prefix.values[0], v[0, 0][may[i]]])
            torch.testing.assert_close(out[0, i, head], by_hand(q[0, head, i], keys, values, 0.5))


@torch.no_grad()
def test_one_query_behind_a_cache_sees_everything() -> None:
    q, k, v = drawn(1, 1, 1, 4), drawn(1, 1, 3, 4, seed=1), drawn(1, 1, 3, 4, seed=2)
    module = Asking(drawn(1, 2, 4, seed=3), drawn(1, 2, 4, seed=4), causal=True)
    out, _ = attend(module, q, k, v, None, scaling=1.0)
    keys, values = torch.cat([module.prefix.keys[0], k[0, 0]]), torch.cat([module.prefix.values[0], v[0, 0]])
    torch.testing.assert_close(out[0, 0, 0], by_hand(q[0, 0, 0], keys, values, 1.0))
    module.prefix.enabled = False
    out, _ = attend(module, q, k, v, None, scaling=1.0)
    torch.testing.assert_close(out[0, 0, 0], by_hand(q[0, 0, 0], k[0, 0], v[0, 0], 1.0))


def test_a_mask_grows_to_the_left() -> None:
    like = torch.zeros(1, 1, 2, 2)
    seen = torch.tensor([[[[True, False], [True, True]]]])
    assert extended(None, 2, None, like=like) is None
    grown = extended(seen, 2, None, like=like)
    assert grown is not None
    assert grown.tolist() == [[[[True, True, True, False], [True, True, True, True]]]]
    grown = extended(seen, 1, torch.tensor(-3.0), like=like)
    assert grown is not None
    assert grown.tolist() == [[[[-3.0, 0.0, -math.inf], [-3.0, 0.0, 0.0]]]]


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
def test_decoders_agree_with_transformers_own_past_key_values(name: str) -> None:
    """The same prefix in a cache, with positions that count real tokens only."""
    run, bare = run_on(name, made("ptuning_v2", tokens=3)), run_on(name)
    ids = batch_of(name)["input_ids"]
    n, length = ids.shape
    cache = DynamicCache()
    for layer, prefix in enumerate(prefixes(run.model)):
        cache.update(*(x.detach().expand(n, -1, -1, -1) for x in (prefix.keys, prefix.values)), layer)
    with torch.no_grad():
        expected = bare.model.body(  # type: ignore[operator, union-attr]
            input_ids=ids,
            attention_mask=torch.ones(n, 3 + length, dtype=torch.long),
            position_ids=torch.arange(length).expand(n, -1),
            past_key_values=cache,
        ).logits
        found = run.model.body(input_ids=ids, use_cache=True)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(found.logits, expected, rtol=1e-5, atol=1e-5)
    assert found.past_key_values.get_seq_length() == length  # the prefix is not in the cache


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("method", ["ptuning_v2", "spt", "lst"])
def test_generation_with_a_cache_says_what_it_says_without(name: str, method: str) -> None:
    chosen = made(method, lr=0.05)
    run = run_on(name, chosen)
    for _ in range(3):  # away from a ladder's zero
        one_step(chosen, run, batch_of(name))
    cached, plain = greedy(run, name)
    assert cached == plain
    bare, _ = greedy(run_on(name), name)
    assert cached != bare  # or nothing would be shown


@pytest.mark.parametrize("name", ALL)
def test_every_attention_has_a_prefix_and_every_prefix_a_gradient(name: str) -> None:
    run = run_on(name, made("ptuning_v2", tokens=3))
    found = list(prefixes(run.model))
    count = {"tiny_bart": 6}.get(name, 2)  # encoder, decoder and cross attention, two blocks
    heads = 1 if name == "tiny_llama" else 2
    assert [prefix.keys.shape for prefix in found] == [(heads, 3, 16)] * count
    run.model(**batch_of(name)).square().sum().backward()
    for prefix in found:
        assert prefix.keys.grad is not None
        assert bool(prefix.keys.grad.any())
        assert prefix.values.grad is not None
        assert bool(prefix.values.grad.any())
    trained = {id(p) for p in run.trainable_parameters()} - {id(p) for p in run.head}
    assert trained == {id(p) for prefix in found for p in prefix.parameters()}


@pytest.mark.parametrize("name", ALL)
def test_padding_does_not_change_the_others_and_a_prefix_that_is_off_changes_nothing(name: str) -> None:
    run, bare = run_on(name, made("ptuning_v2", tokens=3)), run_on(name)
    inputs = batch_of(name)
    short = {key: value[1:, :5] for key, value in inputs.items()}
    with torch.no_grad():
        last = run.model(**inputs)
        alone = run.model(**short)
        torch.testing.assert_close(last[-len(alone) :], alone, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(last, bare.model(**inputs), rtol=0, atol=1e-6)
        for prefix in prefixes(run.model):
            prefix.enabled = False
        torch.testing.assert_close(run.model(**inputs), bare.model(**inputs), rtol=1e-5, atol=1e-6)


def deberta(**changes: Any) -> tuple[PrefixedDisentangled, dict[str, Any]]:
    """The first attention, and what it is called with."""
    run = run_on("tiny_deberta_v2", made("ptuning_v2", tokens=3))
    site = next(m for m in run.model.modules() if isinstance(m, PrefixedDisentangled))
    called: dict[str, Any] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        called.setdefault("args", args)
        called.setdefault("named", named)

    site.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        run.model(**batch_of("tiny_deberta_v2"))
    return site, called


@torch.no_grad()
def test_deberta_prefix_takes_its_share_and_leaves_the_tokens_in_proportion() -> None:
    """share_j = e^{s_j} / (Z_tokens + Z_prefix): among the tokens the quotients are those of the bare attention."""
    site, call = deberta()
    hidden, mask = call["args"][:2]
    named = {k: v for k, v in call["named"].items() if k not in ("output_attentions",)}
    context, shares = site(hidden, mask, True, **named)
    bare_context, bare = site.base(hidden, mask, True, **named)
    assert shares.shape[-1] == bare.shape[-1] + 3
    torch.testing.assert_close(shares.sum(-1), torch.ones_like(shares[..., 0]))
    real = mask[0, 0, 0].bool()
    tokens = shares[0, :, :, 3:][..., real]
    left = 1 - shares[0, :, :, :3].sum(-1, keepdim=True)
    torch.testing.assert_close(tokens, left * bare[0][..., real], rtol=1e-4, atol=1e-6)
    # the prefix's scores by hand, sqrt(3 * width) as DeBERTa scales three terms; Z_tokens from any one token's score
    q = site.base.query_proj(hidden)[0].unflatten(-1, (2, 16)).transpose(0, 1)
    scores = q @ site.prefix.keys.transpose(1, 2) / math.sqrt(3 * 16)
    quotient = shares[0, :, :, :3] / shares[0, :, :, :1]
    torch.testing.assert_close(quotient, (scores - scores[..., :1]).exp(), rtol=1e-4, atol=1e-5)
    own = (
        left * bare_context[0].unflatten(-1, (2, 16)).transpose(0, 1)
        + shares[0, :, :, :3] @ site.prefix.values
    )
    torch.testing.assert_close(context[0], own.transpose(0, 1).flatten(1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_deberta_without_relative_positions_is_plain_attention_by_hand() -> None:
    site, call = deberta()
    base: Any = site.base
    base.relative_attention, base.pos_att_type = False, []
    hidden, mask = call["args"][:2]
    context, _ = site(hidden, mask)
    q, k, v = (
        p(hidden)[1].unflatten(-1, (2, 16)).transpose(0, 1)
        for p in (base.query_proj, base.key_proj, base.value_proj)
    )
    for head in range(2):
        keys = torch.cat([site.prefix.keys[head], k[head, :5]])  # the second row has five real tokens
        values = torch.cat([site.prefix.values[head], v[head, :5]])
        for i in range(5):
            found = context[1, i].unflatten(-1, (2, 16))[head]
            torch.testing.assert_close(found, by_hand(q[head, i], keys, values, 0.25), rtol=1e-4, atol=1e-5)


def test_a_second_backbone_keeps_its_own_attention() -> None:
    run, other = run_on("tiny_bert", made("ptuning_v2")), run_on("tiny_bert")
    assert run.model.body.config._attn_implementation == "adalora_bench_prefix"  # type: ignore[union-attr]
    assert other.model.body.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


def test_start_is_a_normal_draw_of_the_given_width() -> None:
    numbers = torch.cat(
        [
            p.keys.detach().flatten()
            for p in prefixes(run_on("tiny_bert", made("ptuning_v2", tokens=500)).model)
        ]
    )
    assert abs(float(numbers.std()) - 1) < 0.02
    numbers = torch.cat(
        [
            p.values.detach().flatten()
            for p in prefixes(run_on("tiny_bert", made("ptuning_v2", tokens=500, init_std=0.02)).model)
        ]
    )
    assert abs(float(numbers.std()) - 0.02) < 4e-4


def test_a_prefix_that_never_moved_is_no_result() -> None:
    method = made("ptuning_v2")
    run = run_on("tiny_bert", method)
    with pytest.raises(PromiseBroken, match="did not move"):
        method.check(run)
    one_step(method, run, batch_of("tiny_bert"))
    method.check(run)


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    model = nn.Linear(2, 2)
    run = Run(model, {"": "k"}, total_steps=1, steps_per_epoch=1, settings=None, generator=None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="bert, roberta, gpt2, llama, bart, deberta-v2, not on None"):
        sites(run.model, run.modules)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"targets": ["q"]}, r"\[k, v\]"),
        ({"tokens": 0}, "method.tokens=0"),
        ({"init_std": 0.0}, "init_std=0.0"),
        ({"dropout": 1.0}, "dropout=1.0"),
    ],
)
def test_refusals(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        made("ptuning_v2", **changes)


def test_a_backbone_without_attentions_is_refused_with_the_number() -> None:
    with pytest.raises(UserError, match="names 0 layers"):
        made("ptuning_v2").precheck(Facts(total_steps=9, steps_per_epoch=9, warmup=0, modules=0))
