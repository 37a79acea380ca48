"""Data series of the figures by hand, and that every kind is drawn, the same way twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_records import everything, record

from adalora_bench.errors import UserError
from adalora_bench.report.drawing import _short_power
from adalora_bench.report.figures import all_pictures, draw, refresh
from adalora_bench.report.kinds import load_figures, pictures
from adalora_bench.report.series import Bars, Dots, Line, Lines, Maps, Picture, band, front, shown, staircase
from adalora_bench.settings.compose import conf_dir
from adalora_bench.store.records import RecordStore

FOLDER = conf_dir() / "figure"
FIGURES = load_figures(FOLDER)


def rows(_: Any) -> list[dict[str, Any]]:
    return []


def one_picture(name: str, records: list[dict[str, Any]], task: str = "rte", steps: Any = rows) -> Any:
    found = pictures(name, FIGURES[name], shown(records), steps)
    (data,) = [each.data for each in found if each.stem.endswith(task)]
    return data


def cell(method: str, *overrides: str, **more: Any) -> list[dict[str, Any]]:
    return [record(method, "rte", seed, *overrides) | more for seed in range(5)]


def test_a_band_takes_the_seeds_that_have_a_point() -> None:
    line = band("x", [[(1, 10.0), (2, 20.0)], [(1, 30.0)], [(1, 20.0), (2, 40.0)]])
    assert line == Line(label="x", x=[1, 2], middle=[20.0, 30.0], low=[10.0, 20.0], high=[30.0, 40.0])
    assert band("x", [[], []]) is None


def test_a_staircase_holds_its_value() -> None:
    assert staircase([(2, 10), (4, 7)], [0, 2, 3, 4, 9]) == [(2, 10), (3, 10), (4, 7), (9, 7)]


def test_front() -> None:
    of = {"a": (1.0, 5.0), "b": (2.0, 4.0), "c": (3.0, 9.0), "d": (3.0, 8.0), "e": (1.0, 5.0)}
    assert front(of) == ["a", "e", "c"]


def test_rank_trace_of_the_seeds() -> None:
    data = one_picture("rank_trace", cell("increlora") + cell("lora"))
    (line,) = data.lines
    assert (line.label, data.stairs) == ("increlora", True)
    at = dict(zip(line.x, zip(line.low, line.middle, line.high, strict=True), strict=True))
    assert at[0] == (36, 36, 36)
    assert at[22] == (36, 50, 50), "seeds 0, 1, 2 have grown, 3 and 4 have not"
    assert at[100][1] == sorted(sum(one["ranks"]["final"].values()) for one in cell("increlora"))[2]


def test_matrices_that_train() -> None:
    (line,) = one_picture("training_matrices", cell("aflora")).lines
    assert (line.x[0], line.middle[0], line.x[-1], line.middle[-1]) == (0, 24, 100, 0)


def test_sparsity_pairs_stages_with_their_evaluation() -> None:
    train, report = one_picture("sparsity", cell("sora")).lines
    assert train.label == "sora, training rows"
    assert train.x == [10_000, 62_000, 120_000, 198_000], "parameters"
    assert train.middle == pytest.approx([95.8, 96.8, 97.8, 98.8])
    assert report.middle[0] < report.middle[-1]


def test_sparsity_of_records_without_parameters_goes_by_ranks() -> None:
    old = cell("sora")
    for one in old:
        del one["ranks"]["nonzero"]
    data = one_picture("sparsity", old)
    assert data.lines[0].x == [10, 62, 120, 198]
    assert data.x.startswith("ranks whose gate")
    mixed = one_picture("sparsity", [*old[:2], *cell("sora")[2:]])
    assert (mixed.lines, mixed.x) == (data.lines, data.x)


def test_traces_of_sora_count_what_is_not_zero() -> None:
    (ranks,) = one_picture("rank_trace", cell("sora")).lines
    (numbers,) = one_picture("parameter_trace", cell("sora")).lines
    assert (ranks.middle[0], ranks.middle[-1]) == (288, 10)
    assert numbers.middle == [1000 * value for value in ranks.middle]


def test_parameters_over_time_show_cells_that_change() -> None:
    data = one_picture("parameter_trace", cell("aflora") + cell("lora"))
    (line,) = data.lines
    assert (line.label, line.middle[0], line.middle[-1]) == ("aflora", 90_000, 30_000)


def test_distance_is_one_minus_the_mean_cosine_of_a_block() -> None:
    records = cell("lora")
    (line,) = one_picture("cosine", records).lines
    assert line.x == [0, 1, 2, 3, 4, 5]
    names = [name for name in records[2]["cosine"] if "layer.1." in name]
    assert len(names) == 6
    assert line.middle[1] == pytest.approx(1 - sum(records[2]["cosine"][name] for name in names) / 6)
    untouched = [one | {"cosine": dict.fromkeys(one["cosine"], 1.0)} for one in records]
    with pytest.raises(ValueError, match="unpack"):
        one_picture("cosine", untouched)


def test_final_ranks_are_means_over_seeds() -> None:
    records = cell("sora") + cell("lora")
    (one,) = one_picture("final_ranks", records).maps
    assert one.columns == ["q", "k", "v", "o", "up", "down"]
    name = "body.encoder.layer.2.attention.self.value"
    assert one.values[2][2] == sum(r["ranks"]["final"][name] for r in records[:5]) / 5


def test_time_to_freeze() -> None:
    records = cell("aflora")
    (one,) = one_picture("time_to_freeze", records).maps
    assert one.columns == ["up.A", "up.B", "down.A", "down.B"]
    module = "body.encoder.layer.3.output.dense.B"
    steps = [e["step"] for r in records for e in r["events"] if e["module"] == module]
    assert one.values[3][3] == sum(steps) / 5


def test_orthogonality_is_the_penalty_over_its_weight() -> None:
    def steps(one: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"step": 0, "penalty": 0.1 * (one["seed"] + 1)}, {"step": 9, "penalty": None}]

    (line,) = one_picture("orthogonality", cell("increlora"), steps=steps).lines
    assert (line.x, line.low, line.middle, line.high) == ([0], [1.0], [pytest.approx(3.0)], [5.0])


def test_costs_are_over_the_largest() -> None:
    (one,) = pictures("cost", FIGURES["cost"], shown(cell("lora") + cell("aflora")), rows)
    assert isinstance(one.data, Bars)
    assert one.data.bars["lora"] == [pytest.approx(142 / 162), pytest.approx(4 / 6), 1.0]
    assert one.data.bars["aflora"] == [1.0, 1.0, 0.1]


def test_by_setting_and_by_budget() -> None:
    data = one_picture("elora_rank", cell("elora") + cell("elora", "rank=4"))
    assert [label for label, _ in data.rows] == ["elora, rank=4", "elora, rank=1024"]
    (line,) = one_picture("score_by_budget", cell("lora") + cell("lora", "rank=2") + cell("aflora")).lines
    assert (line.label, line.x) == ("lora", [75_000, 300_000])


def test_a_budget_is_met_by_its_best_rate_and_other_matrices_are_no_point() -> None:
    def rated(rate: str, score: float) -> list[dict[str, Any]]:
        key = rate * 64
        more = {"key": key, "settings_key": key, "final": {"step": 9, "scores": {"acc": score}}}
        return [one | more for one in cell("lora", "rank=2", f"lr={rate}")]

    records = [*cell("lora"), *cell("lora", "rank=2"), *rated("1", 0.99), *rated("2", 0.02)]
    data = one_picture("score_by_budget", [*records, *cell("lora", "targets=[q]")])
    assert data.lines[0].x == [75_000, 300_000]
    assert data.lines[0].middle[0] == 99.0


def test_the_front_is_of_cells_with_all_seeds_and_other_settings_stand_aside() -> None:
    records = [*cell("lora"), *cell("aflora"), *cell("lora", "rank=2"), *cell("bitfit")[:1]]
    data = one_picture("pareto", records)
    assert data.aside == ["bitfit", "lora (method.rank=2)"]
    assert "bitfit" not in data.best
    assert one_picture("pareto", cell("lora", "rank=2") + cell("lora", "rank=4")).aside == []


@pytest.mark.parametrize(("lowest", "says"), [(60.0, False), (5.0, True)])
def test_ranges_far_below_the_medians_are_cut_and_counted(lowest: float, says: bool) -> None:
    def point(label: str, x: float, middle: float, low: float) -> Line:
        return Line(label=label, x=[x], middle=[middle], low=[low], high=[middle])

    lines = [point("a", 1, 70.0, 70.0), point("b", 2, 80.0, lowest), point("c", 3, 20.0, 20.0)]
    data = Lines(x="x", y="acc", lines=lines if says else lines[:2], aside=["c"] if says else [])
    svg = draw(Picture(stem="s", title="t", data=data), ("svg",))["svg"].decode()
    assert ("acc (2 of 3 ranges leave the picture)" in svg) is says
    assert ("other settings, or fewer seeds" in svg) is says


def test_forest_is_paired_and_leaves_diverged_seeds_out() -> None:
    by_label = dict(one_picture("forest", everything()).rows)
    assert len(by_label["bitfit - lora"]) == 4
    assert len(by_label["increlora - lora"]) == 5
    mine = {r["seed"]: r["final"]["scores"]["acc"] for r in cell("increlora")}
    theirs = {r["seed"]: r["final"]["scores"]["acc"] for r in cell("lora")}
    assert by_label["increlora - lora"] == pytest.approx([100 * (mine[k] - theirs[k]) for k in range(5)])
    assert list(by_label)[-1] == "lora (method.rank=4) - lora", "own settings come first"


def test_a_single_seed_is_compared_with_no_five() -> None:
    records = [*cell("lora"), *cell("aflora"), *cell("increlora")[:2], *cell("bitfit")[:1]]
    labels = [label for label, _ in one_picture("forest", records).rows]
    assert labels == ["aflora - lora", "increlora - lora"]
    (one,) = pictures("cost", FIGURES["cost"], shown(records), rows)
    assert isinstance(one.data, Bars)
    assert list(one.data.bars) == ["aflora", "increlora", "lora"]
    ones = [record(name, "rte", 0) for name in ("lora", "bitfit")]
    assert len(one_picture("forest", ones).rows) == 1


def test_cells_trained_on_other_rows_are_in_no_comparison() -> None:
    few, many = {"rows": {"train": 1000, "report": 277}}, {"rows": {"train": 2490, "report": 277}}
    records = [*cell("lora", **few), *cell("increlora", **many), *cell("aflora", **few)]
    assert [line.label for line in one_picture("pareto", records).lines] == ["aflora", "lora"]
    (one,) = pictures("forest", FIGURES["forest"], shown(records), rows)
    assert isinstance(one.data, Dots)
    assert [label for label, _ in one.data.rows] == ["aflora - lora"]
    assert [line.label for line in one_picture("rank_trace", records).lines] == ["increlora"]


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    store = RecordStore(tmp_path / "runs")
    for one in everything():
        path = store.write(one)
        if one["names"]["method"] == "increlora":
            path.with_name("steps.jsonl").write_text(json.dumps({"step": 0, "penalty": 0.2}) + "\n")
    return store


def test_every_figure_has_a_picture_and_each_type_is_drawn_the_same_twice(store: RecordStore) -> None:
    found, skipped = all_pictures(FOLDER, store, store.scan().records)
    assert skipped == []
    assert set(found) == set(FIGURES)
    for kind in (Lines, Maps, Bars, Dots):
        picture = next(p for some in found.values() for p in some if isinstance(p.data, kind))
        files = draw(picture)
        assert files == draw(picture)
        assert files["png"].startswith(b"\x89PNG")
        assert picture.title.encode() in files["svg"]
        assert b"<dc:date>" not in files["svg"]


def test_a_figure_without_records_is_named_and_an_old_picture_goes(tmp_path: Path) -> None:
    old = tmp_path / "figures" / "forest_cpu_x.svg"
    old.parent.mkdir()
    old.write_text("<svg/>")
    written, skipped = refresh(FOLDER, RecordStore(tmp_path / "runs"), [], old.parent)
    assert written == []
    assert set(skipped) == set(FIGURES)
    assert not old.exists()


def test_an_unknown_kind(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("{kind: forrest, title: t, what: w}")
    with pytest.raises(UserError, match="forest"):
        load_figures(tmp_path)


def test_ticks_that_lie_close_are_told_apart() -> None:
    assert [_short_power(value) for value in (2e-4, 2.6e-4, 3e-4, 1.25e-12)] == [
        "2e-4",
        "2.6e-4",
        "3e-4",
        "1.2e-12",
    ]
