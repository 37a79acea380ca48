"""The lines of a log, exact and against a fake clock; the rows of a terminal."""

from __future__ import annotations

import io
import os
import pty
from datetime import datetime

import pytest
from rich.console import Console

from adalora_bench.engine.progress import (
    PlainProgress,
    Progress,
    TerminalProgress,
    as_clock,
    in_words,
    make_progress,
)

A, B = "lora rte seed 0 (minilm_l6)", "lora rte seed 1 (minilm_l6, method.rank=[2])"


class FakeClock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def train(step: int, **more: object) -> dict[str, object]:
    return {"step": step, "total_steps": 100, "phase": "train", **more}


@pytest.mark.parametrize(
    ("seconds", "words", "clock"),
    [
        (0, "0 s", "0:00:00"),
        (89.4, "89 s", "0:01:29"),
        (185, "3 min", "0:03:05"),
        (5399, "1 h 30 min", "1:29:59"),
        (7500, "2 h 05 min", "2:05:00"),
        (200000, "55 h 33 min", "55:33:20"),
    ],
)
def test_durations(seconds: float, words: str, clock: str) -> None:
    assert in_words(seconds) == words
    assert as_clock(seconds) == clock


def test_a_log_is_plain_lines(clock: FakeClock) -> None:
    text = io.StringIO()
    shown = PlainProgress(Console(file=text, width=40), clock)
    shown.start(3, 2)
    shown.event(A, {"phase": "start"})
    clock.sleep(5)
    shown.event(A, {"phase": "load"})
    clock.sleep(1)
    shown.event(A, train(1, loss=0.7, rank=72))  # 6 s: too soon for a line
    clock.sleep(11)
    shown.event(A, train(12, loss=0.65, rank=80))  # 11 steps in 11 s: 88 s for the rest
    clock.sleep(4)
    shown.event(A, train(16, loss=0.64, rank=None))  # 4 s
    clock.sleep(6)
    shown.event(A, train(22, loss=0.61, score=0.55, metric="acc"))
    shown.event(B, {"phase": "start"})
    clock.sleep(12)
    shown.event(A, train(31, loss=0.6))  # 12 s, but 9 %
    clock.sleep(50)
    shown.event(A, train(31, phase="evaluate"))
    clock.sleep(10)
    shown.done(
        A,
        {
            "status": "collapsed",
            "reason": "one class predicted",
            "scores": {"acc": 0.527, "f1": None},
            "seconds": 99.0,
        },
    )
    shown.failed(B, "worker ended with exit code 3")
    shown.stop()
    assert text.getvalue().splitlines() == [
        "0:00:00 3 units to run, 2 already recorded",
        f"0:00:00 {A}: started",
        f"0:00:17 {A}: step 12/100, loss 0.6500, rank 80, 88 s left",
        f"0:00:27 {A}: step 22/100, loss 0.6100, acc 0.5500, rank 80, 78 s left",
        f"0:00:27 {B}: started",
        f"0:01:29 {A}: evaluate, step 31/100, loss 0.6000, acc 0.5500, rank 80, 26 s left",
        f"0:01:39 {A}: collapsed (one class predicted), acc 0.5270, 2 min [1 of 3, about 63 s left]",
        f"0:01:39 {B}: failed: worker ended with exit code 3 [2 of 3, about 50 s left]",
    ]


def test_a_log_has_no_control_characters_even_when_colour_is_forced(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = io.StringIO()
    shown = make_progress(Console(file=text), clock)
    assert isinstance(shown, PlainProgress)
    shown.start(1, 0)
    shown.event(A, {"phase": "start"})
    shown.done(A, {"status": "ok", "scores": {}, "seconds": 1})
    shown.note("a [bold]note[/bold] of :smile: 12 letters " + "x" * 200)
    shown.stop()
    assert "\r" not in text.getvalue()
    assert "\x1b" not in text.getvalue()
    assert "a [bold]note[/bold] of :smile: 12 letters " + "x" * 200 in text.getvalue()
    assert text.getvalue().startswith("0:00:00 1 unit to run\n")


def test_a_fast_unit_writes_no_step_lines(clock: FakeClock) -> None:
    text = io.StringIO()
    shown = PlainProgress(Console(file=text), clock)
    shown.start(1, 0)
    for step in range(101):
        shown.event(A, train(step, loss=1.0))
        clock.sleep(0.05)
    shown.done(A, {"status": "ok", "scores": {"acc": 1.0}})
    assert [line[8:] for line in text.getvalue().splitlines()] == [
        "1 unit to run",
        f"{A}: started",
        f"{A}: ok, acc 1.0000, 5 s [1 of 1]",
    ]


def test_time_left_is_from_the_units_own_rate_and_survives_a_resume(clock: FakeClock) -> None:
    books = Progress(clock)
    books.start(1, 0)
    books.event(A, {"phase": "load"})
    clock.sleep(60)
    books.event(A, train(80))  # resumed: the first 80 steps cost nothing here, loading is no step
    assert books.running[A].seconds_left(clock.now) is None
    clock.sleep(20)
    books.event(A, train(90))
    assert books.running[A].seconds_left(clock.now) == pytest.approx(20)
    clock.sleep(5)
    assert books.running[A].seconds_left(clock.now) == pytest.approx(15)
    assert books.seconds_left() == pytest.approx(15)
    clock.sleep(500)
    assert books.running[A].seconds_left(clock.now) == 0


def test_overall_estimate_counts_what_waits(clock: FakeClock) -> None:
    books = Progress(clock)
    books.start(6, 0)
    assert books.seconds_left() is None
    for name in (A, B):
        books.event(name, train(0))
    clock.sleep(10)
    for name in (A, B):
        books.event(name, train(50))
    # each takes 20 s in all and has 10 s to go; four wait for two workers
    assert books.seconds_left() == pytest.approx((10 + 10 + 4 * 20) / 2)
    clock.sleep(10)
    books.done(A, {"status": "ok", "seconds": 30.0})
    books.passed(B, "left to another process")
    books.failed(B, "told twice, counted once")
    assert books.ended == 2
    assert books.seconds_left() == pytest.approx(4 * 30 / 2)


def test_rows_of_a_terminal(clock: FakeClock) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120, color_system=None)
    shown = TerminalProgress(console, clock, lambda: datetime(2026, 1, 2, 14, 30))
    shown.start(3, 4)
    shown.event(A, {"phase": "start"})
    shown.event(B, {"phase": "load", "step": 0, "total_steps": None})
    clock.sleep(1)
    shown.event(A, train(0, loss=0.7, rank=72))
    clock.sleep(600)
    shown.event(A, train(50, loss=0.6543, score=0.61, metric="acc", rank=90))
    shown.event(A, train(50, phase="evaluate"))
    drawn = io.StringIO()
    Console(file=drawn, width=120).print(shown.picture())
    rows = [line.split() for line in drawn.getvalue().splitlines()]
    assert rows[0] == ["unit", "step", "loss", "score", "rank", "left"]
    assert rows[1] == [*A.split(), "50/100", "evaluate", "0.6543", "acc", "0.6100", "90", "10", "min"]
    assert rows[2] == [*B.split(), "load", "-", "-", "-", "-"]
    assert " ".join(rows[3]).endswith("0 of 3, 4 recorded before, ends about 14:50 (in 20 min)")
    shown.failed(B, "no [memory]")
    shown.stop()
    shown.stop()
    assert f"{B}: failed: no [memory] [1 of 3" in text.getvalue()
    assert "\x1b[?25h" in text.getvalue()  # the cursor is back


def test_terminal_or_log_is_chosen_by_the_stream(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    main, second = pty.openpty()
    with os.fdopen(main, "rb", buffering=0), os.fdopen(second, "w") as terminal:
        assert isinstance(make_progress(Console(file=terminal), clock), TerminalProgress)
        monkeypatch.setenv("TERM", "dumb")
        assert isinstance(make_progress(Console(file=terminal), clock), PlainProgress)
    assert isinstance(make_progress(Console(file=io.StringIO()), clock), PlainProgress)
