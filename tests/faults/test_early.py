"""What does not depend on the training is found before it, by `bench plan` and by the start of `bench run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_data
import torch
from by_night import mostly_by_night
from hypothesis import given
from hypothesis import strategies as st

from adalora_bench import cli, metrics
from adalora_bench.data.sources import Found
from adalora_bench.models import files
from adalora_bench.models.heads import byte_tokenizer, random_model
from adalora_bench.settings.compose import compose_cells
from adalora_bench.settings.early import check_references
from adalora_bench.store.records import RecordStore
from adalora_bench.train.evaluate import Scoring

pytestmark = pytest.mark.fault("early")

TOY = ("method=lora", "task=toy", "scale=smoke", "seeds=[0]", "offline=true", "device=cpu")
WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "bert": WIDTH,
    "roberta": WIDTH,
    "electra": WIDTH | {"embedding_size": 32},
    "albert": WIDTH | {"embedding_size": 32},
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_heads": 2, "n_layers": 2},
    "opt": {"hidden_size": 32, "ffn_dim": 64, "num_attention_heads": 2, "num_hidden_layers": 2},
    "gpt2": {"n_embd": 32, "n_head": 2, "n_layer": 2},
    "bart": {"d_model": 32}
    | {f"{stack}_{name}": 2 for stack in ("encoder", "decoder") for name in ("layers", "attention_heads")},
}


def weights(folder: Path, architecture: str = "roberta", auto: str = "AutoModel", **changes: Any) -> Path:
    """A folder as `save_pretrained` leaves it, of a tiny model."""
    import transformers

    shape = {"vocab_size": 260, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | SHAPES[
        architecture
    ]
    config = transformers.AutoConfig.for_model(architecture, **shape | changes)
    random_model(getattr(transformers, auto), config).save_pretrained(folder)
    byte_tokenizer(architecture).save_pretrained(folder)
    return folder


def planned(capsys: pytest.CaptureFixture[str], *typed: str) -> tuple[int, str]:
    code = cli.main(["plan", *TOY, *typed])
    out, err = capsys.readouterr()
    return code, out + err


def roberta(folder: Path, *more: str) -> list[str]:
    return ["backbone=roberta_base", "backbone.layers=2", f"backbone.source.local={folder}", *more]


@pytest.mark.parametrize("layers", [1, 4])
def test_blocks_of_the_weights_and_of_the_settings_agree(layers, tmp_path, capsys):
    folder = weights(tmp_path / "weights", num_hidden_layers=layers)
    code, said = planned(capsys, *roberta(folder))
    assert code == 2
    assert f"{layers} blocks" in said
    assert f"backbone.layers={layers}" in said
    typed = ["backbone=roberta_base", f"backbone.layers={layers}", f"backbone.source.local={folder}"]
    code, said = planned(capsys, *typed)
    assert code == 0, said


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"num_hidden_layers": 4}, {"num_hidden_layers": 4}),
        ({"n_layer": 3}, {"n_layer": 3}),
        ({"n_layers": 3}, {"n_layers": 3}),
        ({"num_layers": 3, "decoder_layers": 2}, {"num_layers": 3, "decoder_layers": 2}),
        (
            {"encoder_layers": 2, "decoder_layers": 3, "num_hidden_layers": 2},
            {"encoder_layers": 2, "decoder_layers": 3},
        ),
        ({"num_hidden_layers": "4"}, {}),
        ({}, {}),
    ],
)
def test_blocks_are_read_under_every_name(config, found):
    assert files.blocks(config) == found


@pytest.mark.parametrize(
    ("architecture", "config", "most"),
    [
        ("bert", {"max_position_embeddings": 40}, 40),
        ("bert", {}, 512),
        ("roberta", {"max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ("roberta", {"max_position_embeddings": 514, "pad_token_id": 0}, 513),
        ("deberta-v2", {"max_position_embeddings": 512, "position_biased_input": False}, None),
        ("deberta-v2", {"max_position_embeddings": 512}, 512),
        ("gpt2", {"n_positions": 1024}, 1024),
        ("llama", {"max_position_embeddings": 2048}, None),
        ("unheard-of", {}, None),
    ],
)
def test_positions_are_those_of_the_table(architecture, config, most):
    assert files.positions(config, architecture) == most


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_an_input_of_the_most_positions_fits_the_table_and_one_more_does_not(architecture, tmp_path):
    import transformers

    folder = weights(tmp_path / "weights", architecture, max_position_embeddings=40)
    most = files.positions(json.loads((folder / "config.json").read_text()), architecture)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    model(input_ids=torch.full((1, most), 5), attention_mask=torch.ones(1, most, dtype=torch.long))
    with pytest.raises((IndexError, RuntimeError)):
        model(
            input_ids=torch.full((1, most + 1), 5), attention_mask=torch.ones(1, most + 1, dtype=torch.long)
        )


@pytest.mark.parametrize(
    "typed",
    [
        ("task.max_length=1024", "scale.max_length=1024"),
        ("task.max_length=1024", "scale.max_length=1024", "backbone=tiny_roberta"),
        ("task=toy_span", "task.max_length=1024", "scale.max_length=1024"),
        ("task=toy_choice", "task.max_length=600", "scale.max_length=null"),
        ("task=toy_text", "backbone=tiny_gpt2", "task.max_length=4000", "scale.max_length=null"),
        (
            "task=toy_text",
            "backbone=tiny_bart",
            "task.generation.max_new_tokens=4000",
            "scale.max_length=null",
        ),
    ],
)
def test_a_length_beyond_the_position_table_is_refused(typed, capsys):
    names = {text.partition("=")[0] for text in typed}
    code = cli.main(["plan", *(text for text in TOY if text.partition("=")[0] not in names), *typed])
    out, err = capsys.readouterr()
    assert code == 2, out
    assert "positions" in err


@pytest.mark.parametrize("more", [40, 1])
def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(more, tmp_path, capsys):
    folder = weights(tmp_path / "weights", vocab_size=260 - more)
    code, said = planned(capsys, *roberta(folder))
    assert code == 2
    assert f"{260 - more} embeddings" in said
    assert "260 tokens" in said


def test_a_role_that_names_no_matrix_is_refused(tmp_path, capsys):
    folder = weights(tmp_path / "weights")
    code, said = planned(capsys, *roberta(folder), "backbone.roles.q='encoder.layers.{i}.attention.query'")
    assert code == 2
    assert "backbone.roles.q names encoder.layers.0.attention.query" in said


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForSequenceClassification", "AutoModelForMaskedLM"])
@pytest.mark.parametrize("labels", [2, 3])
def test_weights_with_a_head_of_any_size_load_and_the_head_is_new(auto, labels, tmp_path):
    folder = weights(tmp_path / "weights", auto=auto, num_labels=labels)
    (cell,) = compose_cells([*TOY, *roberta(folder)])
    found = Found(served_by="local", detail="x", folder=folder, files={})
    loaded = cell.backbone.load(found, outputs=2, head_seed=1)
    again = cell.backbone.load(found, outputs=2, head_seed=1)
    assert loaded.head[-1].shape == (2,)
    for one, other in zip(loaded.head, again.head, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("architecture", sorted(SHAPES))
@pytest.mark.parametrize("dropout", mostly_by_night([0.0, 0.25], [0.25]))
def test_dropout_reaches_every_dropout_of_the_body(architecture, dropout, tmp_path):
    import transformers

    from adalora_bench.models.backbone import _dropouts

    shape = {"vocab_size": 260, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | SHAPES[
        architecture
    ]
    config = transformers.AutoConfig.for_model(architecture, **shape)
    for name in _dropouts(config):
        setattr(config, name, dropout)
    (cell,) = compose_cells([*TOY, f"backbone.dropout={dropout}"])
    cell.backbone._check_dropouts(random_model(transformers.AutoModel, config))


def test_a_dropout_that_the_setting_does_not_reach_is_refused():
    (cell,) = compose_cells([*TOY, "backbone.dropout=0.0"])
    body = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.1))
    with pytest.raises(Exception, match=r"backbone.dropout=0.0 does not reach 1\.p"):
        cell.backbone._check_dropouts(body)


# -- references ------------------------------------------------------------------------------------------------

TEXTS = st.one_of(
    st.text(min_size=1, max_size=12),
    st.sampled_from(
        ["<skipped>", "!!!", "…", "日本語", "🙂", "\u200b", "-", "####", "#### x", "a", "0", "ــ"]
    ),
)
BY_TEXT = sorted(name for name, one in metrics.METRICS.items() if one.kind == "text" and one.needs is None)


@pytest.mark.parametrize("name", BY_TEXT)
@given(references=st.lists(st.lists(TEXTS, min_size=1, max_size=3), min_size=1, max_size=3), said=st.data())
def test_a_text_metric_gives_a_number_or_says_what_it_refuses(name, references, said):
    predictions = [said.draw(TEXTS) for _ in references]
    try:
        value = metrics.score(name, predictions, references)
    except ValueError as error:
        assert name.removesuffix("_gen").removesuffix("_lik") in str(error)  # noqa: PT017
        return
    assert value == value
    assert abs(value) != float("inf")


@pytest.fixture
def text_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function: the settings of a text task with these answers of its validation rows, and these metrics."""
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("ADALORA_BENCH_CONF", str(tmp_path / "conf"))

    def make(answers: list[str], metric: str) -> list[str]:
        for split, texts in (("train", ["an answer 1"] * 8), ("validation", answers)):
            rows = [{"text": f"row {i}", "answer": text} for i, text in enumerate(texts)]
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / f"{split}-00000-of-00001.parquet")
        settings = {
            "_target_": "adalora_bench.data.tasks.Task",
            "version": 1,
            "description": "texts",
            "kind": "text",
            "source": {"local": str(tmp_path / "data")},
            "report_splits": {"": "validation"},
            "text": ["text"],
            "label": "answer",
            "labels": [],
            "metrics": [metric],
            "main_metric": metric,
            "max_length": 32,
            "backbone_for": {"smoke": "tiny_gpt2"},
            "official_rows": {},
            "prompt": "{text}",
            "answer": " {answer}",
            "generation": {
                "max_new_tokens": 4, "beams": 1, "length_penalty": 1.0, "no_repeat_ngram": 0, "stop": ["\n"],
            },
        }  # fmt: skip
        (tmp_path / "conf" / "task" / "texts.yaml").write_text(json.dumps(settings))
        return ["task=texts", *(text for text in TOY if not text.startswith("task="))]

    return make


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("bad", "metric"), [(" ", "rougeL"), ("", "bleu_evaluate"), ("no number", "gsm8k_strict")]
)
def test_a_reference_that_a_metric_refuses_is_named_before_the_training(
    command, bad, metric, tmp_path, text_task, capsys
):
    typed = text_task(["it is 1", "it is 2", "it is 3", bad, "it is 5"], metric)
    code = cli.main([command, *typed, f"results_dir={tmp_path}/r"])
    out, err = capsys.readouterr()
    assert code == 2, out + err
    assert "row 4 of validation" in err or "row 3 (from 0)" in err
    assert not list(tmp_path.rglob("steps.jsonl"))


def test_a_metric_that_reads_nothing_of_the_references_is_said(tmp_path, text_task, capsys):
    typed = text_task(["日本", "東京"], "rougeL")
    assert cli.main(["plan", *typed]) == 0
    assert "rougeL is 0 for the references themselves" in capsys.readouterr().out
    assert cli.main(["run", *typed, f"results_dir={tmp_path}/r"]) in (0, 1)
    (record,) = RecordStore(tmp_path / "r" / "runs").scan().records
    assert any("rougeL is 0 for the references themselves" in note for note in record["notes"])


@pytest.mark.parametrize(
    "name", mostly_by_night([*tiny_data.NEW, *tiny_data.OLD], ["rte", "e2e", "squad", "gsm8k"])
)
def test_the_references_of_every_task_can_be_scored(name, tmp_path):
    task = tiny_data.task_of(name)
    places = tiny_data.write_all(tmp_path, task)
    assert isinstance(check_references(task, tiny_data.load(name, places).report), list)


@pytest.mark.parametrize(
    ("metric", "order"), [("ter", [3, 1, 2]), ("loss", [3, 1, 2]), ("acc", [2, 1, 3]), ("nan", [1])]
)
def test_the_best_is_the_best_in_the_metrics_own_direction(metric, order):
    """`order`: the steps of the evaluations 0.5, 0.2 and 0.9 (worst to best where less is better, and else)."""
    scoring = object.__new__(Scoring)
    scoring.metric, scoring.form = metric, None
    points = [{"step": step, "scores": {metric: value}} for step, value in ((1, 0.5), (2, 0.2), (3, 0.9))]
    if metric == "nan":
        assert scoring._merit({"scores": {"nan": float("nan")}}) == -float("inf")
        return
    assert [p["step"] for p in sorted(points, key=scoring._merit)] == order


# -- other data ------------------------------------------------------------------------------------------------


def glue(folder: Path, labels: dict[str, list[int]]) -> Path:
    for split, counts in labels.items():
        rows = [
            {"sentence1": f"a {i}", "sentence2": f"b {i}", "label": label, "idx": i}
            for label, count in enumerate(counts)
            for i in range(count)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize(
    ("train", "validation", "said"),
    [
        ([1249, 1241], [146, 131], None),
        ([1194, 2474], [129, 279], "3668 training rows where 2490 are published"),
        ([1241, 1249], [146, 131], "training rows with the labels [1241, 1249]"),
        ([1249, 1241], [131, 146], "validation rows with the labels [131, 146]"),
        ([1249, 1242], [146, 131], "2491 training rows"),
    ],
)
def test_other_data_in_the_folder_of_a_task_is_said_and_recorded(train, validation, said, tmp_path, capsys):
    folder = glue(tmp_path, {"train": train, "validation": validation})
    typed = ["method=lora", "task=rte", "scale=smoke", "seeds=[0]", f"task.source.local={folder}"]
    assert cli.main(["plan", *typed]) == 0
    out = capsys.readouterr().out
    assert ("other data" in out) == (said is not None)
    assert said is None or said in out
    (cell,) = compose_cells(typed)
    from adalora_bench.settings import prepare

    found = prepare.assets([cell], prepare.places_of(cell.config))
    subset = prepare.rows_of(cell, found.task(cell)).subset or ""
    assert said is None or said in subset


def test_yes_and_no_of_yaml_are_no_labels(tmp_path, monkeypatch, capsys):
    (tmp_path / "task").mkdir()
    for text, key in (
        ("labels: [no, yes]", "task.labels[0]"),
        ("answer_words: {a: no, b: x}", "task.answer_words.a"),
    ):
        (tmp_path / "task" / "spam.yaml").write_text(f"# spam\ndefaults: [toy, _self_]\n{text}\n")
        monkeypatch.setenv("ADALORA_BENCH_CONF", str(tmp_path))
        assert cli.main(["plan", "method=lora", "task=spam", "scale=smoke"]) == 2
        err = capsys.readouterr().err
        assert key in err
        assert "quoted" in err


# -- parquet of other writers ------------------------------------------------------------------------------------


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.table(
        [pa.array(["x"]), pa.array(["y"]), pa.array([0])], names=["sentence1", "sentence1", "label"]
    )
    path = tmp_path / "train-00000-of-00001.parquet"
    pq.write_table(table, path)
    from adalora_bench.data.parquet import read_table

    with pytest.raises(Exception, match="2 columns are called 'sentence1'"):
        read_table(path, ["sentence1", "label"])


TYPES = [
    (["a", "b"], pa.string_view(), pa.large_string()),
    (["a", "b"], pa.dictionary(pa.int32(), pa.string()), pa.string()),
    (["a", "b"], pa.dictionary(pa.int8(), pa.large_string()), pa.large_string()),
    ([True, False], pa.bool_(), pa.int8()),
    ([[["a"], ["b"]]][0], pa.list_(pa.string_view()), pa.list_(pa.large_string())),
    ([["a"], ["b"]], pa.list_(pa.string(), 1), pa.list_(pa.string())),
    ([["a"], ["b"]], pa.large_list(pa.string()), pa.large_list(pa.string())),
    ([{"x": "a"}, {"x": "b"}], pa.struct([("x", pa.string_view())]), pa.struct([("x", pa.large_string())])),
]


@pytest.mark.parametrize(("values", "kind", "plain"), TYPES, ids=[str(kind) for _, kind, _ in TYPES])
def test_the_types_of_other_writers_are_read_as_ours(values, kind, plain, tmp_path):
    from adalora_bench.data.parquet import read_table

    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"c": pa.array(values, type=kind)}), path)
    table = read_table(path, ["c"])
    assert table.schema.field("c").type in (plain, pa.string() if plain == pa.large_string() else plain)
    assert table.column("c").to_pylist() == [int(v) if isinstance(v, bool) else v for v in values]


@pytest.mark.parametrize("method", mostly_by_night(["lora", "increlora", "full"], ["increlora"]))
def test_an_evaluation_that_fails_at_the_end_costs_no_training(method, tmp_path, monkeypatch):
    from adalora_bench.engine.unit import run_unit
    from adalora_bench.engine.units import Unit, unit_folder
    from adalora_bench.settings import prepare
    from adalora_bench.train import loop

    cells = compose_cells([f"method={method}", *TOY[1:]])
    (cell,) = prepare.keyed(cells, prepare.assets(cells, prepare.places_of(cells[0].config)))
    unit = Unit(cell, 0)

    def train(place: str) -> Path:
        run_unit(unit, tmp_path / place, lambda event: None, lambda: None, {})
        return unit_folder(tmp_path / place, unit)

    whole = train("whole")
    scores = Scoring.scores

    def refused(self: Scoring) -> dict[str, float]:
        if self.run.step == self.run.total_steps:
            raise ValueError("a metric that fails")
        return scores(self)

    with monkeypatch.context() as patched:
        patched.setattr(Scoring, "scores", refused)
        with pytest.raises(ValueError, match="a metric that fails"):
            train("again")
    assert not (unit_folder(tmp_path / "again", unit) / "record.json").exists()

    def no_step(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(loop, "training_step", no_step)
    again = train("again")
    for name in ("steps.jsonl", "predictions.jsonl.gz"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("kind", ["file", "below a file"])
def test_a_plan_says_that_its_results_cannot_be_written(kind: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "taken").write_text("a file")
    place = tmp_path / "taken" / ("" if kind == "file" else "below")
    code, said = planned(capsys, f"results_dir={place}")
    assert code == 0
    assert "cannot be written from here" in said
    code, said = planned(capsys, f"results_dir={tmp_path / 'new'}")
    assert "cannot be written" not in said
    assert not (tmp_path / "new").exists()
