"""What a running command shows: live rows on a terminal, plain lines in a log.

`Progress` keeps the books (which unit is where, how long it still takes) and shows nothing; `PlainProgress`
writes lines without carriage returns or colours; `TerminalProgress` draws one row per running unit and an
overall bar. All write through one rich console on stderr, from one thread. `make_progress` chooses.

An event of a unit is a dict, every key optional: `step`, `total_steps`, `loss`, `score`, `metric` (name of
the score), `rank` (total), `phase` (start, load, train, evaluate).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Clock = Callable[[], float]

LINE_SECONDS = 10.0  # a log gets at most one line per unit in this time, ...
LINE_SHARE = 0.1  # ... when the unit advanced by this share, ...
QUIET_SECONDS = 60.0  # ... or when it was silent for so long
FRAME_SECONDS = 0.2


def in_words(seconds: float) -> str:
    """A duration in s, min or h, for people: 45 s, 3 min, 1 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def as_clock(seconds: float) -> str:
    """Elapsed seconds as H:MM:SS."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


@dataclass
class UnitState:
    """One running unit: its latest values and the anchor from which its own rate is measured."""

    name: str
    began: float
    latest: dict[str, Any] = field(default_factory=dict)
    # (step, time) of the first training step heard of: not 0 after a resume
    anchor: tuple[int, float] | None = None
    heard: tuple[int, float] | None = None  # (step, time) of the last one
    line_at: float = 0.0
    line_share: float = 0.0

    def update(self, event: Mapping[str, Any], now: float) -> None:
        """Keep every value that is not None, so that a score stays visible until the next one."""
        self.latest.update({key: value for key, value in event.items() if value is not None})
        if event.get("step") is not None and event.get("phase", "train") == "train":
            self.heard = (int(event["step"]), now)
            self.anchor = self.anchor or self.heard

    @property
    def share(self) -> float:
        """Steps done over all steps, 0 while unknown."""
        total = self.latest.get("total_steps")
        return min(1.0, self.latest.get("step", 0) / total) if total else 0.0

    def seconds_left(self, now: float) -> float | None:
        """From the unit's own rate since the anchor; None until two different steps were heard of."""
        total = self.latest.get("total_steps")
        if not total or self.anchor is None or self.heard is None or self.heard[0] <= self.anchor[0]:
            return None
        pace = (self.heard[1] - self.anchor[1]) / (self.heard[0] - self.anchor[0])
        return max(0.0, float(total - self.heard[0]) * pace - (now - self.heard[1]))

    def describe(self, now: float) -> str:
        """The state in one line: step, loss, score, rank, time left; what is unknown is left out."""
        latest = self.latest
        parts = []
        if latest.get("phase", "train") != "train":
            parts.append(str(latest["phase"]))
        if "total_steps" in latest:
            parts.append(f"step {latest.get('step', 0)}/{latest['total_steps']}")
        if "loss" in latest:
            parts.append(f"loss {latest['loss']:.4f}")
        if "score" in latest:
            parts.append(f"{latest.get('metric', 'score')} {latest['score']:.4f}")
        if "rank" in latest:
            parts.append(f"rank {latest['rank']}")
        left = self.seconds_left(now)
        if left is not None:
            parts.append(f"{in_words(left)} left")
        return ", ".join(parts)


class Progress:
    """The books of a command; shows nothing by itself. Not thread-safe: one thread calls it."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.began = clock()
        self.total = 0
        self.over: set[str] = set()
        self.failures = 0
        self.recorded = 0
        self.durations: list[float] = []
        self.running: dict[str, UnitState] = {}
        self.workers = 1  # the most units seen running at once

    def start(self, total_units: int, skipped: int) -> None:
        """`total_units` are to be run; `skipped` are recorded already."""
        self.began = self.clock()
        self.total = total_units
        self.recorded = skipped
        rest = f", {skipped} already recorded" if skipped else ""
        self.note(f"{total_units} unit{'' if total_units == 1 else 's'} to run{rest}")

    def event(self, unit_name: str, event: Mapping[str, Any]) -> None:
        """News of a running unit; the first one starts its row."""
        now = self.clock()
        state = self.running.get(unit_name)
        if state is None:
            state = self.running[unit_name] = UnitState(unit_name, now, line_at=now)
            self.workers = max(self.workers, len(self.running))
            self._started(state)
        state.update(event, now)
        self._moved(state, now)

    @property
    def ended(self) -> int:
        """Units that are over, however they ended."""
        return len(self.over)

    def done(self, unit_name: str, outcome: Mapping[str, Any]) -> None:
        """The unit ended with a result: ok, collapsed or diverged."""
        seconds = self._end(unit_name)
        seconds = float(outcome.get("seconds") or seconds)
        self.durations.append(seconds)
        status = str(outcome.get("status", "ok"))
        if outcome.get("reason"):
            status += f" ({outcome['reason']})"
        scores = [
            f"{name} {value:.4f}"
            for name, value in (outcome.get("scores") or {}).items()
            if value is not None
        ]
        self.note(f"{unit_name}: {', '.join([status, *scores, in_words(seconds)])} [{self.tally()}]")

    def failed(self, unit_name: str, cause: str) -> None:
        """The unit has no result; `cause` is one line."""
        self._end(unit_name)
        self.failures += 1
        self.note(f"{unit_name}: failed: {cause} [{self.tally()}]")

    def passed(self, unit_name: str, why: str) -> None:
        """The unit is left to someone else, or for the next start of the command; no failure."""
        self._end(unit_name)
        self.note(f"{unit_name}: {why}")

    def note(self, text: str) -> None:
        """One line that stays on the screen and in the log."""

    def tick(self) -> None:
        """Called about once a second while nothing happens."""

    def stop(self) -> None:
        """Nothing follows. May be called twice."""

    def tally(self) -> str:
        """How many have ended, and the rest in words."""
        left = self.seconds_left()
        return f"{self.ended} of {self.total}" + (f", about {in_words(left)} left" if left else "")

    def seconds_left(self) -> float | None:
        """Of the whole command: what runs by its own rate, what waits by the mean of what ended or runs."""
        now = self.clock()
        states = list(self.running.values())
        guesses = {state.name: state.seconds_left(now) for state in states}
        full = self.durations or [
            now - state.began + left for state in states if (left := guesses[state.name]) is not None
        ]
        if not full:
            return None
        mean = sum(full) / len(full)
        rest = [
            max(0.0, mean - (now - state.began)) if (left := guesses[state.name]) is None else left
            for state in states
        ]
        waiting = max(0, self.total - self.ended - len(states))
        return max([*rest, (sum(rest) + waiting * mean) / self.workers])

    def _end(self, unit_name: str) -> float:
        now = self.clock()
        state = self.running.pop(unit_name, None)
        self.over.add(unit_name)
        return now - state.began if state else 0.0

    def _started(self, state: UnitState) -> None: ...

    def _moved(self, state: UnitState, now: float) -> None: ...


class PlainProgress(Progress):
    """Lines for a log: start, now and then a step, the end. No carriage return, no colour, no wrapping."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        super().__init__(clock)
        self.console = console

    def note(self, text: str) -> None:
        line = f"{as_clock(self.clock() - self.began)} {text}"
        self.console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def _started(self, state: UnitState) -> None:
        self.note(f"{state.name}: started")

    def _moved(self, state: UnitState, now: float) -> None:
        silent = now - state.line_at
        advanced = state.share - state.line_share >= LINE_SHARE - 1e-9
        if "step" in state.latest and (silent >= QUIET_SECONDS or (silent >= LINE_SECONDS and advanced)):
            state.line_at, state.line_share = now, state.share
            self.note(f"{state.name}: {state.describe(now)}")


class TerminalProgress(Progress):
    """Live rows, redrawn from the caller's thread; lines that stay (ends, notes) are written above them."""

    def __init__(
        self, console: Console, clock: Clock = time.monotonic, today: Callable[[], datetime] = datetime.now
    ) -> None:
        super().__init__(clock)
        self.console = console
        self.today = today
        self.live = Live(console=console, auto_refresh=False, transient=True, get_renderable=self.picture)
        self.drawn = float("-inf")

    def start(self, total_units: int, skipped: int) -> None:
        super().start(total_units, skipped)
        if total_units:
            self.live.start(refresh=True)

    def note(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)

    def tick(self) -> None:
        now = self.clock()
        if self.live.is_started and now - self.drawn >= FRAME_SECONDS:
            self.drawn = now
            self.live.refresh()

    def stop(self) -> None:
        self.live.stop()

    def picture(self) -> RenderableType:
        """One row per running unit, below them the overall bar with the estimated end."""
        now = self.clock()
        rows = Table(box=None, pad_edge=False, header_style="dim")
        rows.add_column("unit", ratio=1)  # the only column that may shrink: its text is cut, not wrapped
        for title in ("step", "loss", "score", "rank", "left"):
            rows.add_column(title, justify="right", no_wrap=True)
        for state in self.running.values():
            name = Text(state.name, overflow="ellipsis", no_wrap=True)
            rows.add_row(name, *(Text(cell) for cell in _cells(state, now)))
        overall = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(1, self.total), completed=self._completed(), width=30)
        overall.add_row(bar, Text(self._end_in_words()))
        return Group(rows, overall)

    def _started(self, state: UnitState) -> None:
        self.tick()

    def _moved(self, state: UnitState, now: float) -> None:
        self.tick()

    def _completed(self) -> float:
        return min(self.total, self.ended + sum(state.share for state in self.running.values()))

    def _end_in_words(self) -> str:
        left = self.seconds_left()
        text = f"{self.ended} of {self.total}"
        if self.failures:
            text += f", {self.failures} failed"
        if self.recorded:
            text += f", {self.recorded} recorded before"
        if left is not None:
            end = self.today() + timedelta(seconds=left)
            text += f", ends about {end:%H:%M} (in {in_words(left)})"
        return text


def _cells(state: UnitState, now: float) -> tuple[str, str, str, str, str]:
    """Step, loss, score, rank and time left of one row; a dash for what is not known yet."""
    latest = state.latest
    phase = str(latest.get("phase", "train"))
    step = f"{latest.get('step', 0)}/{latest['total_steps']}" if "total_steps" in latest else ""
    if phase != "train":
        step = f"{step} {phase}".strip()
    left = state.seconds_left(now)
    return (
        step,
        f"{latest['loss']:.4f}" if "loss" in latest else "-",
        f"{latest.get('metric', 'score')} {latest['score']:.4f}" if "score" in latest else "-",
        str(latest.get("rank", "-")),
        "-" if left is None else in_words(left),
    )


def make_progress(console: Console | None = None, clock: Clock = time.monotonic) -> Progress:
    """Live rows where stderr is a terminal that can move its cursor, else plain lines, FORCE_COLOR or not."""
    console = console or Console(stderr=True)
    if console.file.isatty() and console.is_terminal and not console.is_dumb_terminal:
        return TerminalProgress(console, clock)
    return PlainProgress(Console(file=console.file, force_terminal=False, no_color=True), clock)
