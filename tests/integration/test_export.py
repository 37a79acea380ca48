"""bench export: what peft and transformers load gives the logits of the trained model, and not those of its base."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GenerationConfig

from adalora_bench.engine.outcome import record_of
from adalora_bench.engine.training import Training
from adalora_bench.engine.units import Unit
from adalora_bench.errors import UserError
from adalora_bench.export import command, formats, peft_files
from adalora_bench.export.command import Check, NotTheSame, export
from adalora_bench.lowrank.adapter import LowRankLinear, RankBlock
from adalora_bench.lowrank.function import delta
from adalora_bench.lowrank.plain import fuse_slices, plain_lora, update_of
from adalora_bench.models import fused, heads
from adalora_bench.settings import prepare
from adalora_bench.settings.compose import compose_cells
from adalora_bench.store.files import read_whole, rows_of, unzipped
from adalora_bench.store.records import RecordStore

# peft 0.21 asks transformers 5.23 for an attribute under its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SETTINGS = (
    "scale=smoke",
    "scale.max_steps=null",
    "train.train_rows=16",
    "train.report_rows=12",
    "train.batch_size=8",
    "train.epochs=4",
    "train.micro_batches=1",
    "train.warmup=1",
    "method.lr=0.02",
)
TEXTS = ["a boat on the river", "ice", "the lamp, the wall and the stove", "12 grains of sand"]
# The head of tiny_bert is ours (mean pooling), that of the other two is transformers' own.
CASES: list[tuple[str, str, tuple[str, ...]]] = [
    ("lora", "tiny_bert", ()),
    ("lora", "tiny_deberta_v2", ("method.rank_pattern={q:2,up:3}",)),
    ("lora", "tiny_roberta", ("method.rslora=true", "method.targets=[q,v]")),
    ("increlora", "tiny_deberta_v2", ("method.growth_warmup=1", "method.interval=1", "method.top_h=4")),
    ("sora", "tiny_bert", ("method.xi=0.25", "method.layer_norms=true")),
    ("adalora", "tiny_roberta", ("method.alpha=500",)),
    ("aflora", "tiny_deberta_v2", ("method.window=1",)),
    ("delta_lora", "tiny_bert", ("method.start=3", "method.targets=[all]")),
    ("delta_lora", "tiny_roberta", ("method.start=0", "method.ratio=2")),
    ("vera", "tiny_bert", ("method.rank=40",)),
    ("dylora", "tiny_deberta_v2", ("method.eval_rank=5",)),
    ("salora", "tiny_roberta", ("method.init_rank=6", "method.target_rank=2")),
]
IDS = [f"{method}-{backbone}" for method, backbone, _ in CASES]


@cache
def trained(
    store: Path, method: str, backbone: str, more: tuple[str, ...], task: str = "toy_regression"
) -> tuple[Training, Path]:
    """A short training with its record, and the folder of the unit."""
    (cell,) = compose_cells([f"method={method}", f"task={task}", f"backbone={backbone}", *SETTINGS, *more])
    (cell,) = prepare.keyed([cell], prepare.assets([cell], prepare.places_of(cell.config)))
    records = RecordStore(store / "runs")
    folder = records.folder(cell.names, cell.key, 5)
    training = Training(Unit(cell, 5), folder, lambda event: None, lambda: None)
    record = record_of(training)
    assert record["status"] in ("ok", "collapsed"), record["reason"]
    records.write(record)
    training.run.model.eval()
    return training, folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@torch.no_grad()
def expected(training: Training) -> tuple[Tensor, Tensor]:
    """Logits of the texts: of the trained model, and of its backbone as it was before with the trained head."""
    tokenizer = training.unit.cell.backbone.tokenizer(training.found.backbone(training.unit.cell))
    cut = {"truncation": True, "max_length": training.form.max_length}
    batch = dict(tokenizer(TEXTS, padding=True, return_tensors="pt", **cut))
    base = plain_model(training)
    names = {id(p): name for name, p in training.run.model.named_parameters()}
    base.load_state_dict({names[id(p)]: p for p in training.run.head}, strict=False)
    return training.run.model(**batch), base.eval()(**batch)


def plain_model(training: Training) -> nn.Module:
    found = training.found.backbone(training.unit.cell)
    form = training.form
    return training.unit.cell.backbone.load(found, kind=form.kind, outputs=form.outputs, head_seed=99).model


def by_the_readme(folder: Path, training: Training, tmp_path: Path) -> dict[str, Any]:
    """What the code in README.md makes, with nothing of this package but the backbone on disk."""
    base = tmp_path / "base"
    plain: Any = plain_model(training).get_submodule("body")
    fused.fuse(plain)
    if training.form.kind == "text":  # ours forgets it
        plain.generation_config = GenerationConfig.from_model_config(plain.config)
    plain.save_pretrained(base)
    found = training.found.backbone(training.unit.cell)
    training.unit.cell.backbone.tokenizer(found).save_pretrained(base)
    match = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert match is not None
    code = match[1].replace('"this folder"', repr(str(folder)))
    code = code.replace('"the backbone: its folder, or its name on the hub"', repr(str(base)))
    columns = ", ".join(f'["{name}"]' for name in training.unit.cell.task.text)
    texts = '["prompt"]' if training.form.kind == "text" else columns
    assert texts in code
    assert len([line for line in code.splitlines() if "import" not in line and line]) <= 11
    scope: dict[str, Any] = {"TEXTS": TEXTS}
    exec(code.replace(texts, "TEXTS" if texts == columns else "TEXTS[:1]"), scope)
    return scope


@pytest.mark.parametrize(("method", "backbone", "more"), CASES, ids=IDS)
def test_peft_loads_the_trained_model(
    method: str, backbone: str, more: tuple[str, ...], store: Path, tmp_path: Path
) -> None:
    training, unit = trained(store, method, backbone, more)
    wrote, checked, *notes = export(str(unit / "record.json"), {"to": str(tmp_path / "out")})
    assert "PEFT adapter" in wrote
    assert checked.startswith("check: on 8 report rows")
    assert notes == []
    ours, base = expected(training)
    theirs = by_the_readme(tmp_path / "out", training, tmp_path)["logits"]
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    assert (theirs - base).abs().max() > 1e-3
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["alpha_pattern"] == config["rank_pattern"]
    ranks = {
        f"body.{name}": config["rank_pattern"].get(name, config["r"]) for name in config["target_modules"]
    }
    times = 2 if method == "delta_lora" else 1  # A and B of step K stand beside those of the end
    assert ranks == {name: times * layer.rank for name, layer in training.run.adapters.items() if layer.rank}


@pytest.mark.parametrize(
    ("method", "backbone", "more"),
    CASES[:2] + CASES[4:5] + CASES[7:8],
    ids=[*IDS[:2], *IDS[4:5], *IDS[7:8]],
)
def test_transformers_loads_the_merged_model(
    method: str, backbone: str, more: tuple[str, ...], store: Path, tmp_path: Path
) -> None:
    training, unit = trained(store, method, backbone, more)
    export(str(unit), {"to": str(tmp_path / "out"), "form": "merged"})
    ours, base = expected(training)
    theirs = by_the_readme(tmp_path / "out", training, tmp_path)["logits"]
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    assert (theirs - base).abs().max() > 1e-3
    text = (tmp_path / "out" / "config.json").read_text()
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("method", "backbone", "form"),
    [("lora", "tiny_gpt2", "peft"), ("vera", "tiny_bart", "peft"), ("vera", "tiny_bart", "merged")],
)
def test_language_models_are_the_same_ones_elsewhere(
    method: str, backbone: str, form: str, store: Path, tmp_path: Path
) -> None:
    """GPT-2 was trained with q, k and v apart, and its record holds the settings sorted by name."""
    training, unit = trained(store, method, backbone, (), "toy_text")
    export(str(unit), {"to": str(tmp_path / "out"), "form": form})
    scope = by_the_readme(tmp_path / "out", training, tmp_path)
    assert [type(answer) for answer in scope["answers"]] == [str]
    inputs = {"input_ids": torch.arange(5, 29).reshape(2, 12)}
    if backbone == "tiny_bart":
        inputs["decoder_input_ids"] = torch.arange(40, 50).reshape(2, 5)
    with torch.no_grad():
        theirs = scope["model"](**inputs).logits
        ours = training.run.model.get_submodule("body")(**inputs).logits
        base = plain_model(training).eval().get_submodule("body")(**inputs).logits
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    assert (theirs - base).abs().max() > 1e-3


def test_the_cases_hold_what_makes_an_export_hard(store: Path) -> None:
    """Layers of unequal ranks, one without any, ranks above the width, dead ranks, moved bases, LayerNorms."""
    runs = {name: trained(store, *case)[0].run for name, case in zip(IDS, CASES, strict=True)}
    assert len({x.rank for x in runs["increlora-tiny_deberta_v2"].adapters.values()}) > 1
    ranks = [layer.rank for layer in runs["sora-tiny_bert"].adapters.values()]
    assert 0 in ranks
    assert max(ranks) > 0
    assert any(x.rank > x.in_features for x in runs["vera-tiny_bert"].adapters.values())
    layers = runs["dylora-tiny_deberta_v2"].adapters.values()
    assert all(layer.rank < layer.stored_rank for layer in layers)
    assert len({layer.rank for layer in runs["adalora-tiny_roberta"].adapters.values()}) > 1
    assert runs["delta_lora-tiny_bert"].scratch["updates"] > 0


# -- refusals, and a check that can fail -----------------------------------------------------------------------


@pytest.fixture
def unit(store: Path, tmp_path: Path) -> Path:
    """A unit's folder of its own, with a LoRA of tiny_bert."""
    _, folder = trained(store, *CASES[0])
    copy = tmp_path / "unit"
    copy.mkdir()
    for name in ("record.json", "adapter.safetensors", "predictions.jsonl.gz"):
        (copy / name).write_bytes((folder / name).read_bytes())
    return copy


def test_by_default_the_export_lies_beside_the_record(unit: Path) -> None:
    export(str(unit), {})
    export(str(unit), {"form": "merged"})
    assert {path.name for path in (unit / "peft").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
    }
    assert (unit / "merged" / "config.json").is_file()
    assert (unit / "merged" / "tokenizer.json").is_file()
    with pytest.raises(UserError, match=r"peft is there already; name another folder: to=FOLDER"):
        export(str(unit), {})


def test_a_record_of_an_older_version_takes_new_settings_from_the_yaml(unit: Path) -> None:
    change(unit, lambda record: record["config"]["backbone"].pop("caveat"))
    assert len(export(str(unit), {})) == 2


@pytest.mark.parametrize(
    ("form", "place", "broken"),
    [
        ("peft", "adapter_model.safetensors", lambda name, x: x * 1.1 if "lora_B" in name else x),
        ("peft", "head.safetensors", lambda name, x: x + 0.01),
        ("merged", "model.safetensors", lambda name, x: x * 1.1 if "dense.weight" in name else x),
    ],
)
def test_a_wrong_export_is_noticed_and_removed(
    unit: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    place: str,
    broken: Callable[[str, Tensor], Tensor],
) -> None:
    way = formats.FORMATS[form]
    write = type(way).write

    def spoil(self: Any, model: Any, folder: Path) -> Any:
        written = write(self, model, folder)
        tensors = {name: broken(name, x) for name, x in load_file(folder / place).items()}
        save_file(tensors, folder / place, metadata={"format": "pt"})
        return written

    monkeypatch.setattr(type(way), "write", spoil)
    before = sorted(unit.iterdir())
    with pytest.raises(
        NotTheSame, match=r"is not the trained model: on 8 report rows .*; nothing was kept"
    ) as told:
        export(str(unit), {"form": form})
    assert told.value.exit_code == 1
    assert sorted(unit.iterdir()) == before


def test_a_config_that_does_not_fit_its_tensors_is_noticed(
    unit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = peft_files.config_of
    monkeypatch.setattr(
        peft_files, "config_of", lambda adapter: real(adapter) | {"target_modules": ["encoder.x"]}
    )
    with pytest.raises(NotTheSame, match=r"cannot be read back \(encoder\.x .*\); nothing was kept"):
        export(str(unit), {})
    assert not (unit / "peft").exists()


def test_an_adapter_of_another_training_is_refused(unit: Path) -> None:
    path = unit / "adapter.safetensors"
    with_scales = {"scales": json.dumps(scales_of(path))}
    tensors = {name: x * 1.5 if name.endswith(".b") else x for name, x in load_file(path).items()}
    save_file(tensors, path, metadata=with_scales)
    with pytest.raises(NotTheSame, match=r"answers \d of 8 report rows otherwise than its record"):
        export(str(unit), {})
    (unit / "predictions.jsonl.gz").unlink()  # then nothing can be said against it
    assert "were not compared" in export(str(unit), {})[-1]


@pytest.mark.parametrize("damage", ["bytes", "scales", "layer"])
def test_an_adapter_file_that_does_not_fit_is_refused(unit: Path, damage: str) -> None:
    path = unit / "adapter.safetensors"
    tensors, scales = load_file(path), scales_of(path)
    if damage == "bytes":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "scales":
        save_file(tensors, path)
    else:
        scales.pop(next(iter(scales)))
        save_file(tensors, path, metadata={"scales": json.dumps(scales)})
    with pytest.raises(
        UserError, match=r"adapter\.safetensors does not fit the model of its record \(.+\)"
    ) as told:
        export(str(unit), {})
    assert told.value.exit_code == 2
    assert not (unit / "peft").exists()


def scales_of(path: Path) -> dict[str, float]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        scales: dict[str, float] = json.loads(file.metadata()["scales"])
    return scales


def change(unit: Path, how: Callable[[dict[str, Any]], Any]) -> None:
    record = json.loads((unit / "record.json").read_text())
    how(record)
    (unit / "record.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda r: r.update(status="diverged", reason="loss is nan", final=None), "the unit is diverged"),
        (lambda r: r.update(ranks={"final": {}}), "method lora has no low-rank adapter"),
        (lambda r: r.update(schema=7), "is no record: schema is 7"),
        (lambda r: r.update(data_fingerprint="0" * 64), "the rows of toy_regression"),
        (lambda r: r.update(key="0" * 64), r"the weights of tiny_bert that were found \(generated\)"),
        (lambda r: r["config"]["backbone"].update(load_in_4bit=True), "the backbone was kept in 4 bits"),
        (lambda r: r["config"]["task"]["source"].update(local="x"), r"task\.source\.local=FOLDER"),
        (lambda r: r["names"].update(method="lorra"), r"did you mean 'lora'\?"),
    ],
)
def test_what_cannot_be_exported_is_refused(unit: Path, how: Callable[[Any], Any], words: str) -> None:
    change(unit, how)
    with pytest.raises(UserError, match=words) as told:
        export(str(unit), {})
    assert told.value.exit_code == 2
    assert not (unit / "peft").exists()


def test_recorded_answers_are_compared_as_exactly_as_they_can_be(unit: Path) -> None:
    recorded = [row["prediction"] for row in rows_of(unzipped(read_whole(unit / "predictions.jsonl.gz")))[0]][
        :4
    ]
    off = [recorded[0] + 0.5, *recorded[1:]]
    assert command.check_predictions(unit, "", recorded, exact=True) == []
    with pytest.raises(NotTheSame, match=r"answers 1 of 4 report rows otherwise"):
        command.check_predictions(unit, "", off, exact=True)
    assert "answers 1 of 4" in command.check_predictions(unit, "", off, exact=False)[0]
    with pytest.raises(NotTheSame, match=r"answers 4 of 4"):
        command.check_predictions(unit, "", [x + 0.5 for x in recorded], exact=False)


def test_the_check_compares_with_trained_model_and_base() -> None:
    good = Check(rows=8, from_trained=1e-6, from_base=0.5, largest=2.0, trained_from_base=0.5)
    assert good.passed
    for name, value in (("from_trained", 3e-5), ("from_trained", float("nan")), ("from_base", 1e-6)):
        assert not Check(**{**vars(good), name: value}).passed, name
    # an update too small to be seen is no reason to fail
    assert Check(rows=8, from_trained=1e-6, from_base=1e-6, largest=2.0, trained_from_base=1e-6).passed
    assert good.tolerance == 2 * command.TOLERANCE


# -- the pure parts --------------------------------------------------------------------------------------------


def test_plain_lora_folds_scale_and_gates_and_drops_dead_ranks() -> None:
    """dW = s diag(out_gate) B^T diag(gate) A by hand: 0.5 * [2, 1]^T o ([3, 1]^T * 2 [1, 4])."""
    layer = LowRankLinear(nn.Linear(2, 2), scale=0.5, role="q")
    a, b = (
        torch.tensor([[1.0, 4.0], [9.0, 9.0], [7.0, 7.0]]),
        torch.tensor([[3.0, 1.0], [9.0, 9.0], [7.0, 7.0]]),
    )
    block = layer.append(RankBlock(a, b, torch.tensor([2.0, 5.0, 0.0])))
    block.kill(torch.tensor([False, True, False]))
    layer.out_gate = nn.Parameter(torch.tensor([2.0, 1.0]))
    down, up = plain_lora(update_of(layer))
    assert (down.shape, up.shape) == ((1, 2), (2, 1))
    assert torch.equal(up @ down, torch.tensor([[6.0, 24.0], [1.0, 4.0]]))
    assert torch.equal(up @ down, layer.delta())


def test_fused_slices_are_one_lora_with_a_block_diagonal() -> None:
    q = (torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
    v = (torch.tensor([[5.0, 6.0], [7.0, 8.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    a, b = fuse_slices([q, None, v], [2, 2, 2])
    assert torch.equal(a, torch.tensor([[1.0, 2.0], [5.0, 6.0], [7.0, 8.0]]))
    nil = [0.0, 0.0, 0.0]
    assert torch.equal(b, torch.tensor([[3.0, 0, 0], [4.0, 0, 0], nil, nil, [0, 1.0, 0], [0, 0, 2.0]]))
    stacked = torch.cat([q[1] @ q[0], torch.zeros(2, 2), v[1] @ v[0]])
    assert torch.equal(b @ a, stacked)
    with pytest.raises(ValueError, match="none of the layers"):
        fuse_slices([None, None], [2, 2])


def test_gpt2_s_fused_matrix_gets_one_lora_for_its_slices(tmp_path: Path) -> None:
    """c_attn holds q, k and v; k has no adapter here. peft loads the folder into an ordinary GPT-2."""
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"vocab_size": 50, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
    config = AutoConfig.for_model("gpt2", **shape, bos_token_id=0, eos_token_id=0)
    theirs, body = (heads.random_model(AutoModelForCausalLM, config).eval() for _ in range(2))
    model = nn.ModuleDict({"body": body})
    attention = [f"body.transformer.h.{i}.attn" for i in range(2)]
    fused.split(model, [f"{name}.c_attn.{part}" for name in attention for part in "qkv"])
    draw = torch.Generator().manual_seed(0)
    pairs = {}
    for name, rank in [
        (f"{attention[0]}.c_attn.q", 2),
        (f"{attention[0]}.c_attn.v", 3),
        (f"{attention[1]}.c_proj", 1),
    ]:
        parent, _, child = name.rpartition(".")
        layer = LowRankLinear(model.get_submodule(name), scale=2.0, role=child)
        a, b = (torch.randn(rank, 8, generator=draw) for _ in range(2))
        layer.append(RankBlock(a, b, torch.ones(rank)))
        setattr(model.get_submodule(parent), child, layer)
        pairs[name] = plain_lora(update_of(layer))
    whole = formats.of_transformers(model, pairs)
    assert {name: tuple(a.shape) for name, (a, _) in whole.items()} == {
        "transformer.h.0.attn.c_attn": (5, 8),
        "transformer.h.1.attn.c_proj": (1, 8),
    }
    adapter = peft_files.Adapter(
        pairs=whole, modules={}, task_type="CAUSAL_LM", base=None, revision=None, transposed=True
    )
    peft_files.write_adapter(tmp_path, adapter)
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        before = theirs(ids).logits.clone()
        ours = body(ids).logits
        loaded = PeftModel.from_pretrained(theirs, str(tmp_path)).eval()(ids).logits
        again = heads.random_model(AutoModelForCausalLM, config).eval()
        peft_files.apply_adapter(again, tmp_path)
        torch.testing.assert_close(again(ids).logits, ours, rtol=0, atol=1e-5)
    torch.testing.assert_close(loaded, ours, rtol=0, atol=1e-5)
    assert (loaded - before).abs().max() > 1e-2


def test_delta_lora_s_total_update_is_that_of_its_moved_base(store: Path) -> None:
    training, _ = trained(store, *CASES[7])
    original = plain_model(training)
    for name, layer in training.run.adapters.items():
        update = training.method.total_update(layer)
        whole = delta(update.a, update.b, update.gate, None, 1.0)
        moved = layer.merge().weight - original.get_submodule(name).weight
        torch.testing.assert_close(whole, moved, rtol=0, atol=2e-6)
        assert not torch.equal(layer.base.weight, original.get_submodule(name).weight)
