"""Prefix replay gives the losses of plain passes, on any module, and runs only what lies behind the rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adalora_bench.errors import UserError
from adalora_bench.lowrank.ablation import first_order_losses, gates_of, plain_losses, replayed_losses
from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock
from adalora_bench.lowrank.replay import Replay

WIDTH = 6
Parts = list[Callable[[], Tensor]]


def adapt(model: nn.Module, names: Sequence[str], ranks: Sequence[int] = (2, 1)) -> list[LowRankLinear]:
    """Wrap these layers, with one block per entry of `ranks`; all numbers are random and the gates differ."""
    draw = torch.Generator().manual_seed(5)
    layers = []
    for name in names:
        parent, _, child = name.rpartition(".")
        layer = LowRankLinear(model.get_submodule(name), scale=0.7, role="q")
        like = layer.weight
        for rank in ranks:
            a, b, gate = (
                torch.randn(*shape, generator=draw, dtype=torch.float64).to(like)
                for shape in ((rank, layer.in_features), (rank, layer.out_features), (rank,))
            )
            layer.append(RankBlock(a=a / 2, b=b / 2, gate=1 + gate / 4))
        setattr(model.get_submodule(parent), child, layer)
        layers.append(layer)
    return layers


def every_rank(layers: Sequence[LowRankLinear]) -> list[tuple[int, int]]:
    return [(k, r) for k, layer in enumerate(layers) for r in range(layer.stored_rank)]


def agree(model: nn.Module, layers: Sequence[LowRankLinear], parts: Parts, tolerance: float) -> Tensor:
    """Replayed losses, after they were found to be those of plain passes and to differ from rank to rank."""
    ranks = every_rank(layers)
    plain = plain_losses(model, layers, parts, ranks)
    replayed = replayed_losses(model, layers, parts, ranks)
    torch.testing.assert_close(replayed, plain, rtol=0, atol=tolerance)
    apart = plain.sort(dim=0).values.diff(dim=0).median()
    assert float(apart) > tolerance, "ranks must count for this check to say anything"
    return replayed


def parts_of(model: nn.Module, shapes: Sequence[tuple[int, ...]] = ((3, WIDTH), (2, WIDTH))) -> Parts:
    draw = torch.Generator().manual_seed(9)
    inputs = [torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in shapes]
    return [lambda x=x: model(x).square().sum() / 7 for x in inputs]


class Counted:
    """Counts how often the forward of each module really runs. Before any wrapping."""

    def __init__(self, model: nn.Module) -> None:
        self.runs: dict[str, int] = {}
        for name, module in model.named_modules():
            self._count(name, module)

    def _count(self, name: str, module: nn.Module) -> None:
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self.runs[name] = self.runs.get(name, 0) + 1
            return original(*args, **kwargs)

        module.__dict__["forward"] = forward


def chain(length: int = 4) -> nn.Sequential:
    torch.manual_seed(3)
    steps: list[nn.Module] = []
    for _ in range(length):
        steps += [nn.Linear(WIDTH, WIDTH), nn.Tanh()]
    return nn.Sequential(*steps).double()


# -- any module ---------------------------------------------------------------------------------------------


def test_plain_sequential_in_float64() -> None:
    model = chain()
    layers = adapt(model, ["0", "2", "6"])
    agree(model, layers, parts_of(model), 1e-12)


@torch.no_grad()
def test_plain_passes_do_what_they_say() -> None:
    """By hand for one linear layer: y = W x + s sum_i g_i b_i a_i x."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH).double())
    (layer,) = adapt(model, ["0"])
    x = torch.randn(3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    losses = plain_losses(model, [layer], [lambda: model(x).sum()], [(0, 2), (0, 0)])
    factors = layer.factors()
    effects = [0.7 * factors.gate[i] * (x @ factors.a[i]).sum() * factors.b[i].sum() for i in range(3)]
    none = layer.base(x).sum()
    expected = [
        [none + effects[0] + effects[1], none + effects[2]],
        [none + effects[1] + effects[2], none + effects[0]],
    ]
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_only_what_is_behind_the_target_runs() -> None:
    model = chain(4)
    layers = adapt(model, ["0", "2", "4", "6"])
    counted = Counted(model)
    (part,) = parts_of(model, [(3, WIDTH)])
    model.eval()
    with torch.no_grad(), Replay(model, layers) as replay:
        replay.reference(part, only=False)
        counted.runs.clear()
        replay.variant(part, 2, 0)
    # activations behind the third adapted layer; adapted layers are computed by replay itself
    assert counted.runs == {"": 1, "5": 1, "7": 1}


def test_a_dead_rank_and_a_rank_of_zero_change_nothing() -> None:
    model = chain()
    layers = adapt(model, ["0", "2"])
    next(layers[0].rank_blocks()).kill(torch.tensor([True, False]))
    with torch.no_grad():
        next(layers[1].rank_blocks()).b[1] = 0
    parts = parts_of(model)
    with torch.no_grad():
        whole = float(sum(part() for part in parts))
        with gates_of(layers, [torch.zeros(3, dtype=torch.float64)] * 2):
            bare = float(sum(part() for part in parts))
    for losses in (plain_losses, replayed_losses):
        found = losses(model, layers, parts, [(0, 0), (1, 1)])
        torch.testing.assert_close(
            found, torch.tensor([[whole, bare]] * 2, dtype=torch.float64), rtol=0, atol=1e-12
        )


def test_out_gate_and_scale() -> None:
    model = chain()
    layers = adapt(model, ["0", "4"])
    layers[0].out_gate = nn.Parameter(torch.linspace(0.5, 2, WIDTH, dtype=torch.float64))
    agree(model, layers, parts_of(model), 1e-12)


def test_everything_is_put_back() -> None:
    model = chain()
    model[5] = nn.Dropout(0.5)
    layers = adapt(model, ["0", "2"])
    model.train()
    model[3].eval()
    own = object()
    model[1].__dict__["forward"] = wrapped = lambda x, keep=own: torch.tanh(x)
    model[0].base.weight.requires_grad_(False)
    weights = {name: (p, p.detach().clone(), p.grad) for name, p in model.named_parameters()}
    modes = [m.training for m in model.modules()]
    rng = torch.get_rng_state()
    for losses in (plain_losses, replayed_losses, first_order_losses):
        losses(model, layers, parts_of(model), every_rank(layers))
        for name, p in model.named_parameters():
            before, value, grad = weights[name]
            assert p is before
            assert torch.equal(p, value)
            assert p.grad is grad is None
        assert [m.training for m in model.modules()] == modes
        assert model[1].__dict__["forward"] is wrapped
        assert all("forward" not in m.__dict__ for m in model.modules() if m is not model[1])
        assert all(block.step_gate is None for layer in layers for block in layer.rank_blocks())
        assert torch.equal(torch.get_rng_state(), rng)


def test_everything_is_put_back_after_an_error() -> None:
    model = chain()
    layers = adapt(model, ["0"])

    def fails() -> Tensor:
        raise RuntimeError("no more rows")

    for losses in (plain_losses, replayed_losses, first_order_losses):
        with pytest.raises(RuntimeError, match="no more rows"):
            losses(model, layers, [fails], every_rank(layers))
        assert model.training
        assert not any("forward" in m.__dict__ for m in model.modules())
        assert all(block.step_gate is None for layer in layers for block in layer.rank_blocks())


# -- shapes of models ---------------------------------------------------------------------------------------


class Looped(nn.Module):
    """One module called three times in a loop, as ALBERT does, beside a list of modules."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.shared = nn.Linear(WIDTH, WIDTH)
        self.steps = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = torch.tanh(step(torch.tanh(self.shared(x))))
        return self.shared(x)


@pytest.mark.parametrize("names", [["shared"], ["steps.0", "steps.1"], ["shared", "steps.1"]])
def test_modules_that_are_called_several_times(names: list[str]) -> None:
    model = Looped()
    agree(model, adapt(model, names), parts_of(model), 1e-12)


class Named(nn.Module):
    """Arguments by name, None, a flag, a pair that is packed anew, a mask that is made anew, and a dict as output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.third = (nn.Linear(WIDTH, WIDTH).double() for _ in range(3))
        self.inner = Pair()
        self.last = nn.Linear(WIDTH, WIDTH).double()

    def forward(self, x: Tensor) -> Tensor:
        mask = (torch.arange(WIDTH) % 2).double()
        pair = (self.first(x), self.second(x))
        out = self.inner(pair=pair, mask=mask, extra=None, double=True)
        out = self.inner(pair=(out["sum"], out["rest"][0]), mask=mask, extra=out["sum"], double=False)
        out["more"] = self.third(out["sum"])
        out["rest"].append(out["more"])
        assert len(out["rest"]) == 2, "what this caller appends must not reach a record"
        return self.last(out["sum"] + out["rest"][1])


class Pair(nn.Module):
    def forward(
        self, *, pair: tuple[Tensor, Tensor], mask: Tensor, extra: Tensor | None, double: bool
    ) -> dict[str, Any]:
        one, other = pair
        total = torch.tanh(one * mask + other) * (2 if double else 1)
        return {"sum": total if extra is None else total + extra, "rest": [one - other]}


def test_named_arguments_flags_tuples_dicts_and_lists() -> None:
    model = Named()
    layers = adapt(model, ["first", "second", "third", "last"])
    agree(model, layers, parts_of(model), 1e-12)
    counted = Counted(model)
    (part,) = parts_of(model, [(3, WIDTH)])
    model.eval()
    with torch.no_grad(), Replay(model, layers) as replay:
        replay.reference(part, only=True)
        counted.runs.clear()
        replay.variant(part, 2, 0)
    assert counted.runs == {"": 1}, "both calls of the inner module come from their own records"


def test_an_argument_that_differs_is_no_replay() -> None:
    """The same tensors with another flag: the record does not fit."""
    model = Named()
    layers = adapt(model, ["first", "last"])
    x = torch.ones(2, WIDTH, dtype=torch.float64)
    pair, mask = (x, x + 1), torch.ones(WIDTH, dtype=torch.float64)
    flag = [True]

    def part() -> Tensor:
        out = model.inner(pair=pair, mask=mask, extra=None, double=flag[0])["sum"]
        return model.last(model.first(out)).sum()

    model.eval()
    with torch.no_grad(), Replay(model, layers) as replay:
        replay.reference(part, only=False)
        flag[0] = False
        changed = replay.variant(part, 1, 0)
        assert changed == pytest.approx(replay.variant(part, 1, 0, skip=False), abs=1e-12)


class InPlace(nn.Module):
    """Activations in place and a residual that is added in place to what a module gave."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.last = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.act = nn.LeakyReLU(0.1, inplace=True)
        self.block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LeakyReLU(0.2, inplace=True))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x))
        y += x
        z = self.second(y)
        z.mul_(2)
        z[:, 0] += 1
        return self.last(self.block(z) + y)


def test_operations_in_place() -> None:
    model = InPlace()
    agree(model, adapt(model, ["first", "second", "block.0", "last"]), parts_of(model), 1e-12)


class Buffered(nn.Module):
    """Fills one and the same tensor anew in every pass and gives it to a module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.double()
        self.room = torch.zeros(4, WIDTH, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        self.room.zero_()
        self.room[: len(x)] += torch.tanh(self.first(x))
        return self.last(self.room)


def test_a_tensor_that_is_filled_anew_in_every_pass() -> None:
    model = Buffered()
    agree(model, adapt(model, ["first", "last"]), parts_of(model), 1e-12)


class Hooked(nn.Module):
    """Collects the outputs of inner modules with hooks, as transformers does for hidden states."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(3)))
        self.head = nn.Linear(WIDTH, WIDTH)
        self.double()
        self.seen: list[Tensor] = []
        for step in self.body:
            step.register_forward_hook(lambda module, args, output: self.seen.append(output))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.clear()
        self.body(x)
        assert len(self.seen) == 3
        return self.head(torch.stack(self.seen).prod(0))


def test_hooks_inside_a_module_run_although_it_could_be_skipped() -> None:
    model = Hooked()
    layers = adapt(model, ["body.0.0", "body.2.0", "head"])
    agree(model, layers, parts_of(model), 1e-12)


class Remembers(nn.Module):
    """Keeps state from call to call: no function of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * (1 + 0.1 * self.count)


def test_a_model_with_state_is_refused() -> None:
    model = nn.Sequential(Remembers(), *chain())
    layers = adapt(model, ["1", "3"])
    with pytest.raises(UserError, match="keeps state from call to call.*scorer=brute"):
        replayed_losses(model, layers, parts_of(model), every_rank(layers))


class Cache:
    """An object that replay cannot look into."""

    def __init__(self) -> None:
        self.items: list[Tensor] = []


class WithCache(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.steps = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.keep = Keep()
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        cache = Cache()
        for step in self.steps:
            x = self.keep(step(x), cache)
        return torch.stack(cache.items).prod(0)


class Keep(nn.Module):
    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        cache.items.append(torch.tanh(x))
        return cache.items[-1]


def test_a_module_that_is_given_an_unknown_object_always_runs() -> None:
    model = WithCache()
    agree(model, adapt(model, ["steps.0", "steps.1", "steps.2"]), parts_of(model), 1e-12)


def test_the_ranks_of_a_layer_that_the_loss_leaves_out_change_nothing() -> None:
    model = chain()
    layers = adapt(model, ["0", "2"])
    x = torch.ones(1, WIDTH, dtype=torch.float64)
    parts: Parts = [lambda: model[0](x).sum()]
    ranks = every_rank(layers)
    plain = plain_losses(model, layers, parts, ranks)
    torch.testing.assert_close(replayed_losses(model, layers, parts, ranks), plain)
    assert len({float(value) for value in plain[-1:, 0]}) == 1


def test_half_precision_is_not_folded() -> None:
    """W + dW in bfloat16 would lose dW; the adapter runs as it is, and the gates are closed for keep-only."""
    model = chain().bfloat16()
    layers = adapt(model, ["0", "2", "4"])
    x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16()
    parts: Parts = [lambda: model(x).float().square().sum()]
    ranks = every_rank(layers)
    with Replay(model, layers) as replay:
        assert not replay.folded
    plain = plain_losses(model, layers, parts, ranks)
    torch.testing.assert_close(
        replayed_losses(model, layers, parts, ranks), plain, rtol=0, atol=float(plain.mean()) / 50
    )


# -- transformers -------------------------------------------------------------------------------------------


def bert(**config: Any) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    settings = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        **config,
    )
    return BertForSequenceClassification(settings)


def gpt2(**config: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=2, n_positions=16, **config)
    )


BERT_NAMES = [
    f"bert.encoder.layer.{i}.{name}"
    for i in range(3)
    for name in (
        "attention.self.query",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
    )
]
GPT2_NAMES = [
    f"transformer.h.{i}.{name}" for i in range(3) for name in ("attn.c_attn", "mlp.c_fc", "mlp.c_proj")
]


def text_parts(model: nn.Module, *, dtype: torch.dtype, states: bool = False) -> Parts:
    """Two parts of unlike length, padded; the loss sees hidden states too where `states` is set."""
    model.to(dtype)
    draw = torch.Generator().manual_seed(2)
    parts: Parts = []
    for rows, length in ((3, 9), (2, 5)):
        ids = torch.randint(1, 50, (rows, length), generator=draw)
        mask = torch.ones_like(ids)
        mask[0, -2:] = 0

        def part(ids: Tensor = ids, mask: Tensor = mask) -> Tensor:
            out = model(input_ids=ids, attention_mask=mask)
            extra = sum(h.square().mean() for h in out.hidden_states) if states else 0
            return (
                nn.functional.cross_entropy(
                    out.logits.flatten(0, -2), ids.flatten()[: out.logits[..., 0].numel()] % 2
                )
                / 2
                + extra
            )

        parts.append(part)
    return parts


@pytest.mark.parametrize(
    ("dtype", "tolerance", "attention"), [(torch.float32, 1e-6, "sdpa"), (torch.float64, 1e-12, "eager")]
)
def test_bert(dtype: torch.dtype, tolerance: float, attention: str) -> None:
    model = bert(attn_implementation=attention)
    layers = adapt(model, BERT_NAMES, ranks=(1,))
    agree(model, layers, text_parts(model, dtype=dtype), tolerance)


def test_bert_with_hidden_states_and_attentions_in_the_output() -> None:
    model = bert(output_hidden_states=True, output_attentions=True, attn_implementation="eager")
    layers = adapt(model, [*BERT_NAMES, "bert.pooler.dense"], ranks=(1,))
    agree(model, layers, text_parts(model, dtype=torch.float64, states=True), 1e-12)


@pytest.mark.parametrize(
    ("cached", "dtype", "tolerance"), [(False, torch.float32, 1e-6), (True, torch.float64, 1e-12)]
)
def test_gpt2(cached: bool, dtype: torch.dtype, tolerance: float) -> None:
    """With its cache, an object that replay cannot compare, more runs, and the losses are the same."""
    model = gpt2(use_cache=cached)
    layers = adapt(model, GPT2_NAMES, ranks=(1,))
    agree(model, layers, text_parts(model, dtype=dtype), tolerance)


@pytest.mark.parametrize(
    ("build", "names", "block", "first"),
    [
        (bert, BERT_NAMES, "bert.encoder.layer.{}", 4),
        (lambda: gpt2(use_cache=False), GPT2_NAMES, "transformer.h.{}", 3),
    ],
)
def test_blocks_in_front_of_the_target_are_skipped(
    build: Callable[[], nn.Module], names: list[str], block: str, first: int
) -> None:
    """Masks and positions are made anew in every pass; that does not make the first blocks run again."""
    model = build()
    layers = adapt(model, names, ranks=(1,))
    counted = Counted(model)
    part = text_parts(model, dtype=torch.float32)[0]
    model.eval()
    with torch.no_grad(), Replay(model, layers) as replay:
        for only in (False, True):
            replay.reference(part, only=only)
            counted.runs.clear()
            replay.variant(part, first, 0)  # the first adapted layer of block 1
            assert [counted.runs.get(block.format(i), 0) for i in range(3)] == [0, 1, 1]
            assert not any(name.startswith(block.format(0)) for name in counted.runs)


# -- first order --------------------------------------------------------------------------------------------


def test_first_order_is_exact_where_the_loss_is_linear_in_the_gates() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH).double())
    layers = adapt(model, ["0"])
    x = torch.ones(2, WIDTH, dtype=torch.float64)
    parts: Parts = [lambda: model(x).sum(), lambda: model(2 * x).sum()]
    ranks = every_rank(layers)
    torch.testing.assert_close(
        first_order_losses(model, layers, parts, ranks),
        plain_losses(model, layers, parts, ranks),
        rtol=0,
        atol=1e-12,
    )


def test_first_order_is_the_slope_of_the_loss_in_the_gates() -> None:
    model = chain()
    layers = adapt(model, ["0", "4"])
    layers.append(adapt(model, ["6"], ranks=())[0])  # a matrix without ranks is no obstacle
    parts = parts_of(model)
    ranks = every_rank(layers)
    found = first_order_losses(model, layers, parts, ranks)
    starts = [layer.factors().gate.detach() for layer in layers]
    step = 1e-6

    def loss(gates: list[Tensor]) -> float:
        with torch.no_grad(), gates_of(layers, gates):
            return float(sum(part() for part in parts))

    for row, (k, r) in enumerate(ranks):
        for column, base in enumerate((starts, [torch.zeros_like(gate) for gate in starts])):
            up, down = ([gate.clone() for gate in base] for _ in range(2))
            up[k][r] += step
            down[k][r] -= step
            slope = (loss(up) - loss(down)) / (2 * step)
            sign = 1 if column else -1
            assert float(found[row, column]) == pytest.approx(
                loss(base) + sign * float(starts[k][r]) * slope, abs=1e-7
            )


def test_no_rank_to_score() -> None:
    model = chain()
    layers = adapt(model, ["0"])
    for losses in (plain_losses, replayed_losses, first_order_losses):
        assert losses(model, layers, parts_of(model), []).shape == (0, 2)


def test_namespace_outputs_run_always() -> None:
    """An output of an unknown kind is not recorded."""

    class Wrap(nn.Module):
        def forward(self, x: Tensor) -> SimpleNamespace:
            return SimpleNamespace(value=torch.tanh(x))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.first, self.last, self.wrap = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), Wrap()
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.wrap(self.first(x)).value)

    model = Model()
    agree(model, adapt(model, ["first", "last"]), parts_of(model), 1e-12)
