"""The recipes of AdaLoRA, AFLoRA, SoRA, LoRA, Delta-LoRA and ALoRA against their papers and scripts, typed again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from adalora_bench.settings.published import load_table

CONF = Path(__file__).parents[2] / "conf"
DEBERTA, ROBERTA = "deberta_v3_base", "roberta_base"
GLUE = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte")


@pytest.fixture(scope="module", autouse=True)
def hydra_here() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(backbone: str, task: str, method: str) -> dict[str, Any]:
    """The pair and the recipe alone, as Hydra merges them in a cell."""
    chosen = [f"+pair={backbone}/{task}"] if (CONF / "pair" / backbone / f"{task}.yaml").exists() else []
    node = compose(None, [*chosen, f"+recipe={backbone}/{task}/{method}"])
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


# -- AdaLoRA, Table 8 of arXiv 2303.10512; warm-up and alpha of its scripts -----------------------------------


class AdaLora(NamedTuple):
    lr: float
    epochs: int
    gamma: float
    initial: int
    interval: int
    final: int
    alpha: int
    warmup: int | str


ADALORA = {
    "mnli": AdaLora(5e-4, 7, 0.1, 8000, 100, 50000, 16, 1000),
    "sst2": AdaLora(8e-4, 24, 0.1, 6000, 100, 22000, 16, 1000),
    "cola": AdaLora(5e-4, 25, 0.5, 800, 10, 3500, 32, 100),
    "qqp": AdaLora(5e-4, 5, 0.1, 8000, 100, 25000, 16, 2000),
    "qnli": AdaLora(1.2e-3, 5, 0.1, 2000, 100, 8000, 32, 500),
    "rte": AdaLora(1.2e-3, 50, 0.3, 600, 1, 1800, 32, 200),
    "mrpc": AdaLora(1e-3, 30, 0.1, 600, 1, 1800, 32, "10%"),
    "stsb": AdaLora(2.2e-3, 25, 0.1, 800, 10, 2000, 32, 100),
}


@pytest.mark.parametrize("method", ["adalora", "adalora_r2"])
@pytest.mark.parametrize("task", GLUE)
def test_adalora_is_table_8(task: str, method: str) -> None:
    got, row = composed(DEBERTA, task, method), ADALORA[task]
    assert got["recipe"]["source"] == "arXiv 2303.10512, Table 8"
    assert f"NLU/scripts/run_debertav3_{task}.sh" in got["recipe"]["values"]["train.warmup"]
    assert got["method"] == {
        "lr": row.lr,
        "alpha": row.alpha,
        "orthogonality": row.gamma,
        "initial_warmup": row.initial,
        "final_phase": row.final,
        "interval": row.interval,
    }
    train = got["train"]
    assert (train["batch_size"], train["epochs"], train["warmup"]) == (32, row.epochs, row.warmup)


# -- AFLoRA, glue/ipt_deberta_base_*.sh -----------------------------------------------------------------------


class AfLora(NamedTuple):
    lr: float
    head_lr: float
    batch: int
    epochs: int


AFLORA = {
    "mnli": AfLora(1e-2, 4e-3, 4 * 64, 10),
    "sst2": AfLora(4e-3, 4e-3, 64, 10),
    "cola": AfLora(1e-2, 4e-2, 64, 20),
    "qqp": AfLora(4e-3, 4e-3, 4 * 64, 10),
    "qnli": AfLora(1e-3, 4e-3, 4 * 64, 10),
    "rte": AfLora(1e-2, 4e-2, 64, 20),
    "mrpc": AfLora(1e-2, 8e-2, 64, 20),
    "stsb": AfLora(2e-2, 2e-2, 64, 20),
}


@pytest.mark.parametrize("task", GLUE)
def test_aflora_is_its_script_at_rank_4(task: str) -> None:
    got, row = composed(DEBERTA, task, "aflora"), AFLORA[task]
    recipe = got.pop("recipe")
    assert recipe["source"] == f"zeyuliu1037/AFLoRA@23f632fcadb6 glue/ipt_deberta_base_{task}.sh"
    assert ("method.rank" in recipe["values"]) == (task in ("mnli", "qqp"))  # those two have ELoRA's 1024
    assert got == {
        "method": {
            "lr": row.lr,
            "head_lr": row.head_lr,
            "rank": 4,
            "initial_warmup": "1ep",
            "final_phase": "70%",
        },
        "train": {
            "batch_size": row.batch,
            "epochs": row.epochs,
            "weight_decay": 0.1,
            "warmup": "6%",
            "max_grad_norm": 0.1,
            "eval_every": "1ep",
        },
        "task": {"max_length": 256},
        "backbone": {"head_dropout": None},
    }


# -- SoRA's scripts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "method", "script", "settings", "batch", "epochs", "length"),
    [
        ("stsb", "sora", "sora_no_schedule", {"lr": 8e-4, "rank": 8}, 8, 20, 128),
        (
            "stsb",
            "sora_authors",
            "sora_no_schedule",
            {"lr": 8e-4, "rank": 8, "xi": 3e-4, "l1_mean": 10.0},
            8,
            20,
            128,
        ),
        ("rte", "sora", "sora_schedule_dense", {"lr": 1.2e-3, "rank": 8}, 32, 50, 320),
        ("mnli", "lora", "lora", {"lr": 3e-4}, 8, 10, 256),
        ("mnli", "full", "finetune", {"lr": 5e-5}, 80, 10, 256),
        ("mnli", "bitfit", "bitfit", {"lr": 8e-4}, 100, 10, 256),
        ("cola", "houlsby", "adapter", {"lr": 8e-4, "bottleneck": 16}, 8, 20, 128),
    ],
)
def test_sora_and_its_baselines_are_their_scripts(
    task: str, method: str, script: str, settings: dict[str, Any], batch: int, epochs: int, length: int
) -> None:
    got = composed(DEBERTA, task, method)
    assert got.pop("recipe")["source"] == f"TsinghuaC3I/SoRA@c275ac237b68 scripts/run_glue_{script}.sh"
    assert got == {
        "method": settings,
        "train": {
            "batch_size": batch,
            "epochs": epochs,
            "warmup": "6%",
            "weight_decay": 0.1,
            "max_grad_norm": 0.1,
            "eval_every": 1000,
        },
        "task": {"max_length": length},
        "backbone": {"head_dropout": None},
    }


def test_the_schedule_of_sora_authors_is_evenly_spaced_and_as_long_as_the_script() -> None:
    got = composed(DEBERTA, "rte", "sora_authors")
    method = got["method"]
    assert [method["xi"], *method["stages"]] == pytest.approx([k * 7e-4 / 6 for k in range(7)], rel=1e-4)
    assert method["l1_mean"] == 1e-3
    assert got["train"]["epochs"] == 50 + 6 * 15


# -- LoRA and Delta-LoRA --------------------------------------------------------------------------------------

# examples/NLU/roberta_base_*.sh: lr, rows per step over all processes, epochs
ROBERTA_GLUE = {
    "mnli": (5e-4, 16 * 8, 30),
    "sst2": (5e-4, 16 * 8, 60),
    "cola": (4e-4, 32 * 2, 80),
    "qqp": (5e-4, 16 * 8, 25),
    "qnli": (4e-4, 32 * 8, 25),
    "rte": (5e-4, 32 * 8, 80),
    "mrpc": (4e-4, 16 * 8, 30),
    "stsb": (4e-4, 16 * 8, 40),
}


@pytest.mark.parametrize("task", GLUE)
def test_lora_on_roberta_is_its_script(task: str) -> None:
    lr, batch, epochs = ROBERTA_GLUE[task]
    got = composed(ROBERTA, task, "lora")
    source = got.pop("recipe")["source"]
    assert source == f"microsoft/LoRA@c4593f060e6a examples/NLU/roberta_base_{task}.sh"
    assert got == {
        "method": {"targets": ["q", "v"], "lr": lr, "rank": 8, "alpha": 16},
        "train": {
            "batch_size": batch,
            "epochs": epochs,
            "weight_decay": 0.1,
            "warmup": "6%",
            "eval_every": "1ep",
        },
        "task": {"max_length": 512},
    }
    text = (CONF / "recipe" / ROBERTA / task / "lora.yaml").read_text()
    assert ("starts from the MNLI adapter" in text) == (task in ("mrpc", "rte", "stsb"))


@pytest.mark.parametrize("task", GLUE)
def test_delta_lora_and_its_baselines_on_roberta(task: str) -> None:
    """arXiv 2309.02411, section 5.3: LoRA's training with 256 tokens; lambda 0.5, K the warm-up; AdaLoRA 8 -> 6."""
    lr, batch, epochs = ROBERTA_GLUE[task]
    base = {"lr": lr, "alpha": 16}
    both = {"targets": ["q", "v"]}
    settings: dict[str, dict[str, Any]] = {
        "delta_lora": base | {"rank": 8, "ratio": 0.5, "start": "6%"},
        "adalora": base | both | {"init_rank": 8, "target_rank": 6},
        "dylora": base | both | {"rank_max": 8},
    }
    for method, expected in settings.items():
        got = composed(ROBERTA, task, method)
        assert got["method"] == expected
        assert got["task"] == {"max_length": 256}
        train = got["train"]
        assert (train["batch_size"], train["epochs"], train["weight_decay"]) == (batch, epochs, 0.1)
        assert got["recipe"]["source"].startswith("arXiv 2309.02411, section 5.3")


@pytest.mark.parametrize("task", ["e2e", "webnlg"])
def test_lora_and_delta_lora_on_gpt2_medium(task: str) -> None:
    """examples/NLG/README.md of LoRA; arXiv 2309.02411, section 5.2: lambda 2, K 500, no dropout in the branch."""
    lora, delta = (composed("gpt2_medium", task, method) for method in ("lora", "delta_lora"))
    assert lora["train"] == delta["train"]
    assert lora["train"] == {
        "batch_size": 8,
        "epochs": 5,
        "warmup": 500,
        "weight_decay": 0.01,
        "max_grad_norm": 0.0,
    }
    assert lora["task"] == delta["task"] == {"label_smoothing": 0.1}
    base = {"lr": 2e-4, "rank": 4, "alpha": 32}
    assert lora["method"] == base | {"targets": ["q", "v"], "dropout": 0.1}
    assert delta["method"] == base | {"ratio": 2.0, "start": 500}


def test_bart_large_on_xsum_and_cnn_dailymail() -> None:
    adalora = {"lr": 5e-4, "alpha": 32, "orthogonality": 0.1, "interval": 100}
    xsum = composed("bart_large", "xsum", "adalora")
    assert xsum["method"] == adalora | {"initial_warmup": 6000, "final_phase": 25000}
    assert xsum["train"] == {"batch_size": 64, "epochs": 25, "warmup": 3000}
    cnn = composed("bart_large", "cnn_dailymail", "adalora_r2")
    assert cnn["method"] == adalora | {"initial_warmup": 5000, "final_phase": 85000}
    assert cnn["train"] == {"batch_size": 32, "epochs": 15, "warmup": 3000}
    delta = composed("bart_large", "xsum", "delta_lora")
    assert (delta["method"]["ratio"], delta["method"]["start"]) == (0.5, 1000)
    assert delta["train"] == xsum["train"]
    assert delta["recipe"]["values"]["method.rank"] == "ours"
    increlora = composed("bart_large", "xsum", "increlora")
    assert increlora["train"] == {"batch_size": 8, "epochs": 35, "warmup": 3000}
    assert increlora["method"] == {
        "lr": 5e-4,
        "alpha": 32,
        "dropout": 0.0,
        "top_h": 13,
        "ranks_per_growth": 1,
        "interval": 3000,
        "growth_warmup": 3000,
        "orthogonality": 0.1,
    }


def test_llama_7b_on_gsm8k_is_its_two_scripts() -> None:
    targets = ["q", "k", "v", "up", "down"]
    aflora, lora = (composed("llama_7b", "gsm8k", method) for method in ("aflora", "lora"))
    assert aflora["method"] == {"targets": targets, "lr": 2e-3, "rank": 32}
    assert lora["method"] == {"targets": targets, "lr": 3e-4, "rank": 32, "alpha": 64}
    assert aflora["train"] == lora["train"] == {"batch_size": 1, "epochs": 3}


# -- ALoRA, Appendix E of arXiv 2403.16187 --------------------------------------------------------------------

ALORA = {
    "lora": {"rank": 8},
    "adalora": {"init_rank": 16, "target_rank": 8},
    "sora": {"rank": 16},
    "salora": {"init_rank": 16, "target_rank": 8},
    "alora": {"rank": 8},
}
ALORA_TASKS = ("sst2", "rte", "qnli", "boolq", "copa", "record", "squad", "e2e", "alpaca", "mt_bench")
ALORA_TRAIN = {"epochs": 10, "eval_every": 200, "early_stop": {"patience": 10, "metric": "loss"}}
SMALL = ("rte", "boolq", "copa")  # below 10,000 training rows


@pytest.mark.parametrize("method", sorted(ALORA))
def test_alora_and_the_low_rank_methods_beside_it(method: str) -> None:
    for task in ALORA_TASKS[:2] + ALORA_TASKS[-3:]:
        got = composed("llama2_7b", task, method)
        assert got["recipe"]["source"] == "arXiv 2403.16187, Appendix E"
        assert got["method"] == {"lr": 1e-4} | ALORA[method]
        batch = 16 if task in SMALL else 128
        assert got["train"] == {"batch_size": batch, **ALORA_TRAIN}
        assert got["task"]["max_length"] == 2048
        beam = {"beams": 5, "length_penalty": 1.0, "no_repeat_ngram": 0}  # E2E's own decoding is that of LoRA
        assert got["task"].get("generation") == (beam if task == "e2e" else None)


def test_alora_has_a_recipe_for_every_row_of_its_tables() -> None:
    for number in (1, 2, 3, 6, 7, 8):
        table = load_table(CONF / "table", f"alora_{number}")
        for row in table.rows:
            for task in table.tasks:
                got = composed(table.backbone, task, row.method)
                assert got["recipe"]["source"] == "arXiv 2403.16187, Appendix E"
                assert got["method"]["lr"] == 1e-4
                assert got["train"].items() >= ALORA_TRAIN.items()
                wanted = {key.removeprefix("method."): value for key, value in row.set.items()}
                assert got["method"].items() >= wanted.items(), (number, row.label)


def test_alora_pairs_take_small_batches_below_10000_rows() -> None:
    for task in ALORA_TASKS:
        pair = yaml.safe_load((CONF / "pair" / "llama2_7b" / f"{task}.yaml").read_text())
        assert pair["train"]["batch_size"] == (16 if task in SMALL else 128)
        heir = yaml.safe_load((CONF / "recipe" / "llama2_7b" / task / "alora.yaml").read_text())
        assert task == "sst2" or heir == {"defaults": ["/recipe/llama2_7b/sst2/alora", "_self_"]}


def test_every_recipe_has_a_source_that_is_more_than_memory() -> None:
    for path in (CONF / "recipe").glob("*/*/*.yaml"):
        text = path.read_text()
        assert not any(word in text.lower() for word in ("memory", "unverified", "recall")), path
        node = yaml.safe_load(text)
        source = node.get("recipe", {}).get("source")
        assert source is not None or "defaults" in node, path
        assert source is None or source.startswith(("ours", "arXiv ")) or "@" in source, path
