"""Which settings change the key of a cell, and which do not."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest

from adalora_bench.settings.compose import compose_cells
from adalora_bench.settings.config import Cell
from adalora_bench.settings.key import digest, settings_of, with_key

NAMES = ("method=increlora", "task=rte", "backbone=minilm_l6", "scale=cpu")
VERSIONED = ("task", "method", "backbone")

CHANGE = (
    "split=holdout",
    "method.lr=2e-3",
    "method.head_lr=1e-3",
    "method.targets=[q,v]",
    "method.target_rank=3",
    "method.ranks_per_growth=2",
    "method.top_h=2",
    "method.interval=7",
    "method.growth_warmup=7",
    "method.beta1=0.8",
    "method.score_norm=sqrt",
    "method.alpha=31",
    "method.scale_by=target",
    "method.orthogonality=0.2",
    "method.orthogonality_squared=true",
    "method.advance_learning=false",
    "method.restart_warmup=false",
    "method.dropout=0.1",
    "train.epochs=1.5",
    "train.batch_size=17",
    "train.micro_batches=2",
    "train.warmup=7%",
    "train.schedule=constant",
    "train.weight_decay=0.01",
    "train.beta2=0.98",
    "train.eps=1e-6",
    "train.max_grad_norm=0.5",
    "train.eval_every=2ep",
    "train.train_rows=100",
    "train.report_rows=100",
    "train.precision=bf16",
    "scale.max_steps=123",
    "scale.max_train_rows=123",
    "scale.max_eval_rows=123",
    "scale.max_length=99",
    "task.max_length=99",
    "backbone.head_dropout=0.1",
    "backbone.dropout=0.05",
    "backbone.pooling=native",
    "method=lora",
    "task=mrpc",
    "backbone=roberta_base",
    "scale=paper",
)
KEEP = (
    "seeds=[7]",
    "jobs=2",
    "launcher=ray",
    "on_interrupt=finish",
    "launch.partition=gpu",
    "device=cpu",
    "results_dir=elsewhere",
    "data_dir=elsewhere",
    "offline=true",
    "force=true",
    "checkpoint_minutes=1",
    "train.log_every=3",
    "task.description=other",
    "task.prompt=other",
    "task.answer=other",
    "task.answer_words.entailment=other",
    "task.answer_by=likelihood",
    "task.cut=sentence2",
    "task.generation.beams=2",
    "backbone.description=other",
    "backbone.caveat=other",
    "recipe.source=other",
    "task.source.revision=other",
    "backbone.source.wheel.folder=other",
)


# Of an encoder, which reads no prompt; form follows from the architecture.
AND_THESE = {
    "task": {"official_labels", "backbone_for", "official_rows"},
    "backbone": {"form", "load_in_4bit", "gradient_checkpointing"},
    # null, false and without weight decay; test_selection and test_weight_decay have the other cases
    "train": {"early_stop", "eval_at_start", "decay_biases"},
}


def cell_of(*more: str) -> Cell:
    chosen = {text.split("=", 1)[0]: text for text in (*NAMES, *more)}
    return _composed(tuple(chosen.values()))


@cache
def _composed(overrides: tuple[str, ...]) -> Cell:
    (cell,) = compose_cells(overrides)
    return cell


def keys(cell: Cell, **other: Any) -> tuple[str, str]:
    given: dict[str, Any] = {"data_fingerprint": "a" * 64, "weights": "w", "engine": 1} | other
    done = with_key(cell, **given)
    assert (done.names, done.config, done.seeds) == (cell.names, cell.config, cell.seeds)
    return done.key, done.settings_key


def edited(cell: Cell, path: tuple[str, ...], value: Any) -> Cell:
    config = copy.deepcopy(cell.config)
    node = config
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    return Cell(cell.names, config, cell.overrides, cell.seeds)


@pytest.fixture(scope="module")
def base() -> Cell:
    return cell_of()


@pytest.mark.parametrize("override", CHANGE)
def test_changes_the_key(base: Cell, override: str) -> None:
    ours, other = keys(base), keys(cell_of(override))
    assert ours[0] != other[0]
    assert ours[1] != other[1]


@pytest.mark.parametrize("override", KEEP)
def test_keeps_the_key(base: Cell, override: str) -> None:
    other = cell_of(override)
    assert other != base or override in ("device=cpu",)
    assert keys(other) == keys(base)


def test_no_two_changes_share_a_key(base: Cell) -> None:
    found = [keys(base)[0], *(keys(cell_of(override))[0] for override in CHANGE)]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("group", VERSIONED)
def test_a_version_changes_the_key_but_not_the_settings(base: Cell, group: str) -> None:
    other = edited(base, (group, "version"), 2)
    assert keys(other)[0] != keys(base)[0]
    assert keys(other)[1] == keys(base)[1]


@pytest.mark.parametrize("other", [{"engine": 2}, {"data_fingerprint": "b" * 64}, {"weights": "v"}])
def test_engine_data_and_weights_change_the_key_but_not_the_settings(
    base: Cell, other: dict[str, Any]
) -> None:
    assert keys(base, **other)[0] != keys(base)[0]
    assert keys(base, **other)[1] == keys(base)[1]


def test_the_order_of_settings_does_not_matter(base: Cell) -> None:
    def turned(node: Any) -> Any:
        return {k: turned(node[k]) for k in reversed(node)} if isinstance(node, dict) else node

    other = Cell(base.names, turned(base.config), base.overrides, base.seeds)
    assert list(other.config) != list(base.config)
    assert keys(other) == keys(base)
    assert keys(cell_of("method.alpha=8", "train.epochs=2")) == keys(
        cell_of("train.epochs=2", "method.alpha=8")
    )


@pytest.mark.parametrize(
    "override", [text for text in KEEP if text.startswith("task.") and "cut" not in text]
)
def test_prompts_and_decoding_are_part_of_the_key_of_a_generative_backbone(override: str) -> None:
    names = ("method=lora", "task=rte", "backbone=tiny_gpt2", "scale=smoke")
    base, other = _composed(names), _composed((*names, override))
    same = override.startswith(("task.description", "task.source"))
    assert (keys(base) == keys(other)) is same


@pytest.mark.parametrize("name", ["load_in_4bit", "gradient_checkpointing"])
def test_a_switch_of_the_backbone_is_part_of_the_key_where_it_is_on(base: Cell, name: str) -> None:
    assert keys(edited(base, ("backbone", name), True))[1] != keys(base)[1]
    older = copy.deepcopy(base.config)
    for name in ("form", "load_in_4bit", "gradient_checkpointing"):
        del older["backbone"][name]
    assert settings_of(older) == settings_of(base.config)


def test_more_than_one_process_is_part_of_the_key(base: Cell) -> None:
    assert keys(cell_of("processes=2", "device=cpu")) != keys(base)
    older = {name: value for name, value in base.config.items() if name != "processes"}
    assert settings_of(older) == settings_of(base.config)


def test_a_setting_typed_with_its_own_value_keeps_the_key(base: Cell) -> None:
    value = base.config["method"]["alpha"]
    assert keys(cell_of(f"method.alpha={value}")) == keys(base)


def test_every_setting_is_either_part_of_the_key_or_listed_here(base: Cell) -> None:
    """A new setting must not slip out of the key unnoticed."""
    out = set(base.config) - set(settings_of(base.config))
    assert out == {text.split("=")[0] for text in KEEP if "." not in text.split("=")[0]} | {
        "recipe",
        "launch",
        "processes",  # 1; more of them have a test of their own
    }
    for group in ("task", "backbone", "train", "method", "scale"):
        left_out = set(base.config[group]) - set(settings_of(base.config)[group])
        named = {text.split("=")[0].split(".")[1] for text in KEEP if text.startswith(f"{group}.")}
        assert left_out == named | AND_THESE.get(group, set())


def test_keys_are_64_hexadecimal_digits(base: Cell) -> None:
    for key in keys(base):
        assert len(key) == 64
        assert set(key) <= set("0123456789abcdef")
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
