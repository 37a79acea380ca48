"""The papers' tables: which records answer to a cell, what it says, and that every file of conf/table fits."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from adalora_bench.errors import UserError
from adalora_bench.report.cells import cell_summary
from adalora_bench.report.formats import file_stem, render
from adalora_bench.report.papers import Filled, fill, fits
from adalora_bench.report.wording import caption, marks
from adalora_bench.settings.compose import conf_dir
from adalora_bench.settings.published import Column, PaperTable, Row, load_table, table_names

FOLDER = conf_dir() / "table"
PAPER_TABLES = {
    "alora": [1, 2, 3, 4, 6, 7, 8],
    "increlora": [1, 2, 3],
    "aflora": [1, 2, 3, 4, 5],
    "sora": [1, 2, 3, 4],
    "deltalora": [1, 2, 3, 4, 5, 6],
}


def record(seed: int, acc: float | None, **more: Any) -> dict[str, Any]:
    """One seed of lora on rte at paper scale with rank 8."""
    fields: dict[str, Any] = {
        "schema": 1,
        "key": "a" * 64,
        "settings_key": "b" * 64,
        "names": {"method": "lora", "task": "rte", "backbone": "deberta_v3_base", "scale": "paper"},
        "overrides": [],
        "config": {"method": {"rank": 8}, "backbone": {}},
        "seed": seed,
        "versions": {},
        "data_fingerprint": "f",
        "split": "validation",
        "status": "ok" if acc is not None else "diverged",
        "reason": None if acc is not None else "loss is nan",
        "main_metric": "acc",
        "final": None if acc is None else {"epoch": 2.0, "scores": {"acc": acc}},
        "finished": f"2026-01-01T00:00:0{seed}+00:00",
        "params": {"adapter_initial": 100, "adapter_final": 80},
        "seconds": {"train": 50.0},
        "steps": 100,
    }
    return fields | more


def table(**more: Any) -> PaperTable:
    fields: dict[str, Any] = {
        "paper": "P",
        "number": "1",
        "title": "T",
        "backbone": "deberta_v3_base",
        "split": "validation",
        "statistic": "median",
        "columns": [Column(label="RTE", task="rte", metrics=["acc"])],
        "rows": [
            Row(label="LoRA r=8", method="lora", set={"method.rank": 8}, published={"RTE": 85.2}),
            Row(label="AdaLoRA", method="adalora"),
        ],
        "source": "S",
        "notes": [],
    }
    return PaperTable(**(fields | more))


FIVE = [record(k, acc) for k, acc in enumerate([0.84, 0.85, 0.86, 0.845, 0.87])]


def at_paper(records: list[dict[str, Any]], **more: Any) -> Filled:
    (filled,) = [one for one in fill("t", table(**more), records) if one.place.scale == "paper"]
    return filled


def test_every_table_of_the_five_papers_is_there_and_fits() -> None:
    expected = {f"{paper}_{number}" for paper, numbers in PAPER_TABLES.items() for number in numbers}
    assert set(table_names(FOLDER)) == expected
    for name in expected:
        one = load_table(FOLDER, name)
        assert one.source
        assert len({row.label for row in one.rows}) == len(one.rows)
        (filled,) = fill(name, one, [])
        assert {cell.verdict for row in filled.cells.values() for cell in row.values()} == {"not run"}
        render(filled)


def test_unverified_numbers_do_not_appear() -> None:
    """Cells that the sources mark as remembered only: none of them stands in a table."""
    whole = {name: (FOLDER / f"{name}.yaml").read_text() for name in table_names(FOLDER)}
    remembered = {
        "sora_1": ["71.48", "92.22", "89.71"],
        "deltalora_1": ["70.84", "46.47"],
        "deltalora_4": ["63.82"],
    }
    for name, numbers in (
        remembered | {"aflora_2": ["37.5", "38.59"], "aflora_3": ["43.96", "44.31"]}
    ).items():
        one = load_table(FOLDER, name)
        printed = {
            f"{value:g}" for row in one.rows if row.method != "lora" for value in row.published.values()
        }
        assert not printed & set(numbers), name
        if name.startswith(("deltalora", "aflora")):
            assert not any(number in whole[name] for number in numbers)


def test_a_cell_by_hand() -> None:
    cell = at_paper(FIVE).cells["LoRA r=8"]["RTE"]
    assert (cell.value, cell.low, cell.high, cell.n, cell.finished) == (85.0, 84.0, 87.0, 5, 5)
    assert cell.gap == pytest.approx(-0.2)
    assert cell.verdict == "reproduced"
    mean = at_paper(FIVE, statistic="mean").cells["LoRA r=8"]["RTE"]
    assert mean.value == pytest.approx(85.3)


@pytest.mark.parametrize(("shift", "word"), [(0.0, "reproduced"), (0.05, "above"), (-0.05, "below")])
def test_verdicts_of_a_comparable_cell(shift: float, word: str) -> None:
    records = [record(k, acc + shift) for k, acc in enumerate([0.84, 0.85, 0.86, 0.845, 0.87])]
    assert at_paper(records).cells["LoRA r=8"]["RTE"].verdict == word


@pytest.mark.parametrize(
    "records",
    [
        FIVE[:4],
        [*FIVE[:4], record(4, None)],
        [one | {"split": "holdout"} for one in FIVE],
        [one | {"subset": "100 of 2490 training rows"} for one in FIVE],
    ],
    ids=["four seeds", "a diverged seed", "another split", "a subset"],
)
def test_what_differs_is_not_comparable(records: list[dict[str, Any]]) -> None:
    assert at_paper(records).cells["LoRA r=8"]["RTE"].verdict == "not comparable"


def test_our_reading_of_a_baseline_and_costs_never_compare() -> None:
    ours = table(rows=[Row(label="X (ours)", method="lora", published={"RTE": 85.2})])
    (filled,) = fill("t", ours, FIVE)
    assert filled.cells["X (ours)"]["RTE"].verdict == "not comparable"
    cost = table(columns=[Column(label="RTE", task="rte", metrics=["seconds_per_epoch"])])
    cell = fill("t", cost, FIVE)[0].cells["LoRA r=8"]["RTE"]
    assert (cell.value, cell.verdict) == (25.0, "not comparable")


def test_other_scales_have_tables_of_their_own_and_never_compare() -> None:
    small = [one | {"names": one["names"] | {"scale": "cpu", "backbone": "minilm_l6"}} for one in FIVE]
    filled = {one.place.scale: one for one in fill("t", table(), small)}
    assert filled["paper"].cells["LoRA r=8"]["RTE"].verdict == "not run"
    assert filled["cpu"].cells["LoRA r=8"]["RTE"].verdict == "not comparable"
    assert file_stem(filled["cpu"]) == "t_cpu_minilm_l6"
    assert "no number here stands for a published one" in " ".join(caption(filled["cpu"]))


def test_a_diverged_seed_counts_and_ranks_last() -> None:
    records = [*FIVE[:4], record(4, None)]
    cell = at_paper(records).cells["LoRA r=8"]["RTE"]
    assert (cell.value, cell.n, cell.finished) == (84.5, 5, 4)
    assert "84.50 [diverged, 86.00] n=4/5" in render(at_paper(records))["md"]
    assert at_paper(records, statistic="mean").cells["LoRA r=8"]["RTE"].value is None


def test_the_newest_key_is_shown_and_stale_ones_are_not() -> None:
    newer = [
        record(k, 0.5, key="c" * 64, settings_key="d" * 64, finished=f"2026-02-01T00:00:0{k}+00:00")
        for k in range(5)
    ]
    assert at_paper([*FIVE, *newer]).cells["LoRA r=8"]["RTE"].value == 50.0
    stale = [one | {"versions": {"engine": 1}, "key": "e" * 64} for one in FIVE]
    fresh = [one | {"versions": {"engine": 2}, "finished": "2026-03-01T00:00:00+00:00"} for one in FIVE[:1]]
    assert at_paper([*stale, *fresh]).cells["LoRA r=8"]["RTE"].n == 1


def test_rows_pick_records_by_their_settings() -> None:
    row = Row(label="r", method="lora", set={"method.rank": 8, "method.targets": ["q", "v"]})
    good = record(0, 0.8, config={"method": {"rank": 8.0, "targets": ["q", "v"]}})
    assert fits(good, row, "rte")
    assert not fits(good, row, "mrpc")
    assert not fits(record(0, 0.8, config={"method": {"rank": 4, "targets": ["q", "v"]}}), row, "rte")
    typed = good | {"overrides": ["method.rank=8", "jobs=2"]}
    assert fits(typed, row, "rte")
    assert not fits(good | {"overrides": ["train.epochs=1"]}, row, "rte")
    flag = Row(label="r", method="lora", set={"method.rslora": False})
    assert not fits(record(0, 0.8, config={"method": {"rslora": 0}}), flag, "rte")


def test_marks_leave_what_is_within_the_noise_together() -> None:
    def row(method: str, scores: list[float]) -> list[dict[str, Any]]:
        return [
            record(k, s, key=method[0] * 64, settings_key=method[0] * 64)
            | {"names": FIVE[0]["names"] | {"method": method}}
            for k, s in enumerate(scores)
        ]

    three = table(rows=[Row(label=m, method=m) for m in ("aa", "bb", "cc", "dd")])
    records = [
        *row("aa", [0.80, 0.84, 0.86]),
        *row("bb", [0.81, 0.81, 0.81]),
        *row("cc", [0.79, 0.79, 0.79]),
        *row("dd", [0.5, 0.5, 0.5]),
    ]
    (filled,) = fill("t", three, records)
    assert marks(filled, three.columns[0]) == {"aa": "best", "bb": "best", "cc": "second"}
    text = render(filled)["md"]
    assert "**84.00** [80.00, 86.00] n=3" in text
    assert "<u>79.00</u> [79.00, 79.00] n=3" in text


def test_points_are_printed_as_they_are() -> None:
    column = Column(label="NIST", task="rte", metrics=["nist_mteval"])
    nist = table(columns=[column], rows=[Row(label="r", method="lora")])
    one = record(0, 0.5) | {"final": {"scores": {"nist_mteval": 8.5, "acc": 0.5}}}
    (filled,) = fill("t", nist, [one])
    assert filled.cells["r"]["NIST"].value == 8.5


def test_forms_agree_and_do_not_change() -> None:
    filled = at_paper(FIVE)
    texts = render(filled)
    assert texts == render(at_paper(list(reversed(FIVE))))
    rows = list(csv.DictReader(io.StringIO(texts["csv"])))
    assert [row["verdict"] for row in rows] == ["reproduced", "not run"]
    assert float(rows[0]["value"]) == 85.0
    assert "85.00 [84.00, 87.00]" in texts["tex"]
    assert texts["tex"].count("{") == texts["tex"].count("}")
    assert '<td data-value="85.0">' in texts["html"]
    assert "Verdicts: 1 reproduced, 0 above, 0 below, 0 not comparable, 1 not run." in texts["md"]


def test_wrong_tables_are_refused() -> None:
    with pytest.raises(UserError, match="increlora_1"):
        load_table(FOLDER, "increlora1")
    with pytest.raises(UserError, match="median"):
        table(statistic="medain")
    with pytest.raises(UserError, match="RTE"):
        table(rows=[Row(label="r", method="lora", published={"RTEE": 1.0})])


def test_asking_for_one_more_metric_makes_no_other_row() -> None:
    row = Row(label="r", method="lora")
    assert fits(record(0, 0.8) | {"overrides": ["task.metrics=[acc,f1]"]}, row, "rte")
    assert not fits(record(0, 0.8) | {"overrides": ["task.max_length=64"]}, row, "rte")


def test_less_is_better_marks_the_lowest() -> None:
    def rows(method: str, ter: float) -> dict[str, Any]:
        one = record(0, 0.5, key=method[0] * 64, settings_key=method[0] * 64)
        return one | {
            "names": FIVE[0]["names"] | {"method": method},
            "final": {"scores": {"ter_all": ter, "acc": 0.5}},
        }

    three = table(
        columns=[Column(label="TER", task="rte", metrics=["ter_all"])],
        rows=[Row(label=m, method=m) for m in ("aa", "bb", "cc")],
    )
    (filled,) = fill("t", three, [rows("aa", 0.5), rows("bb", 0.4), rows("cc", 0.6)])
    assert marks(filled, three.columns[0]) == {"bb": "best", "aa": "second"}


def test_what_a_table_does_not_show_is_counted() -> None:
    other = [
        one | {"key": "c" * 64, "settings_key": "d" * 64, "overrides": ["method.lr=0.1"]} for one in FIVE[:3]
    ]
    older = [
        one | {"key": "e" * 64, "settings_key": "f" * 64, "finished": "2025-01-01T00:00:00"} for one in FIVE
    ]
    filled = at_paper([*FIVE, *other, *older])
    assert filled.cells["LoRA r=8"]["RTE"].n == 5
    (line,) = [line for line in caption(filled) if "not shown" in line]
    assert line == (
        "8 further records with other settings or versions are not shown: lora on rte, key eeeeeeee (5); "
        "lora (method.lr=0.1) on rte, key cccccccc (3)."
    )
    many = [
        one | {"key": f"{k:064x}", "settings_key": f"{k:064x}"} for k in range(1, 15) for one in other[:1]
    ]
    (line,) = [line for line in caption(at_paper([*FIVE, *many])) if "not shown" in line]
    assert line.startswith("14 further records")
    assert line.endswith("; and 2 more keys (2).")
    assert not any("not shown" in line for line in caption(at_paper(FIVE)))


def test_seeds_of_two_keys_are_never_mixed() -> None:
    """Two seeds of a newer key stand alone, though the older one has five."""
    newer = [
        one | {"key": "c" * 64, "settings_key": "d" * 64, "finished": "2026-03-01T00:00:00"}
        for one in FIVE[:2]
    ]
    filled = at_paper([*FIVE, *newer])
    assert filled.cells["LoRA r=8"]["RTE"].n == 2
    assert sum(one.records for one in filled.hidden) == 5


def test_the_split_of_the_table_comes_first() -> None:
    """Newer records of another split do not push aside those that compare."""
    other = [
        one
        | {"key": "c" * 64, "settings_key": "d" * 64, "split": "holdout", "finished": "2026-03-01T00:00:00"}
        for one in FIVE
    ]
    assert at_paper([*FIVE, *other]).cells["LoRA r=8"]["RTE"].verdict == "reproduced"
    alone = at_paper(other)
    assert alone.cells["LoRA r=8"]["RTE"].verdict == "not comparable"
    assert "split `holdout`" in caption(alone)[1]


def test_the_split_with_dev_rows_shows_what_was_best_on_them() -> None:
    best = {"best": {"scores": {"acc": 0.91}, "selected_on": "dev"}, "split": "dev_test"}
    filled = at_paper([one | best for one in FIVE], split="dev_test")
    assert filled.cells["LoRA r=8"]["RTE"].value == 91.0
    assert caption(filled)[1].endswith("selection: the evaluation that was best on the dev rows.")
    without = {"best": None, "split": "dev_test"}  # the last evaluation stands, in every table alike
    assert at_paper([one | without for one in FIVE], split="dev_test").cells["LoRA r=8"]["RTE"].value == 85.0
    (row,) = cell_summary([one | without for one in FIVE])
    assert row.scores["acc"].median == row.seeds[1] == 0.85
    assert (
        at_paper([one | best | {"split": "validation"} for one in FIVE]).cells["LoRA r=8"]["RTE"].value
        == 85.0
    )
