"""What the papers print: tables (conf/table) and claims (conf/claim), with the published numbers and sources."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adalora_bench.errors import UserError, unknown
from adalora_bench.store.schema import OURS

STATISTICS = ("median", "mean")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: the mean of one or more metrics (or a cost) on one task."""

    label: str
    task: str
    metrics: list[str]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: a method with the settings that make it this row, and what the paper printed for it.

    Args:
        set: dotted setting -> value, as it must stand in a record's config.
        published: column label -> printed number; a column without one was not found.
        source: where the numbers are from, if not from the table's source.
    """

    label: str
    method: str
    set: dict[str, Any] = field(default_factory=dict)
    params: str | None = None
    published: dict[str, float] = field(default_factory=dict)
    source: str | None = None

    @property
    def is_ours(self) -> bool:
        """Whether the method is our reading of a baseline whose source is not at hand."""
        return self.label.endswith(OURS)


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One table of a paper; see conf/table."""

    paper: str
    number: str
    title: str
    backbone: str
    split: str
    statistic: str
    columns: list[Column]
    rows: list[Row]
    source: str
    notes: list[str]

    def __post_init__(self) -> None:
        if self.statistic not in STATISTICS:
            raise UserError(unknown("statistic of a table", self.statistic, STATISTICS))
        labels = [column.label for column in self.columns]
        for row in self.rows:
            for label in row.published:
                if label not in labels:
                    raise UserError(unknown(f"published column of {row.label!r}", label, labels))

    @property
    def tasks(self) -> list[str]:
        """Tasks of the columns, each once, in their order."""
        return list(dict.fromkeys(column.task for column in self.columns))


def table_names(folder: Path) -> list[str]:
    """Names of the tables in conf/table, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_table(folder: Path, name: str) -> PaperTable:
    """One table of conf/table. UserError: no such table, or a file that does not fit."""
    import yaml

    from adalora_bench.settings.config import typed

    if name not in table_names(folder):
        raise UserError(unknown("table", name, table_names(folder)))
    table: PaperTable = typed(
        PaperTable, yaml.safe_load((folder / f"{name}.yaml").read_text()), f"table/{name}"
    )
    return table


ORDERS = {"gt": 1.0, "ge": 1.0, "lt": -1.0, "le": -1.0}  # sign of a - b that speaks for the claim


VALUES = ("delta", "ratio", "fewer_pct", "eq")


@dataclass(frozen=True, kw_only=True)
class ClaimRow:
    """What a paper calls a method: our method with its settings, and what is measured of it if not the claim's."""

    label: str
    method: str
    set: dict[str, Any] = field(default_factory=dict)
    metrics: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What a paper calls a score: the mean of metrics on a task."""

    label: str
    task: str
    metrics: list[str]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of a paper about rows `a` and `b`.

    Args:
        on: names of measures; `across: mean` takes their mean seed by seed, `each` asks for every one of them.
        metrics: taken in place of the measures' own, such as [params_final].
        relation: gt, ge, lt, le: the order of a and b. delta: a - b. ratio: a / b. fewer_pct: a is that many
            percent below b. eq: a itself.
        value: the published number of delta, ratio, fewer_pct and eq.
        margin: the published distance of an order; shown, not judged.
        backbone: where it is not that of the paper's other claims.
    """

    id: str
    where: str
    says: str
    a: list[str]
    on: list[str]
    relation: str
    source: str
    b: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    across: str = "each"
    value: float | None = None
    margin: float | None = None
    unit: str = ""
    backbone: str | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class PaperClaims:
    """One file of conf/claim."""

    paper: str
    backbone: str
    split: str
    rows: list[ClaimRow]
    measures: list[Measure]
    claims: list[Claim]

    def __post_init__(self) -> None:
        for claim in self.claims:
            where = f"of claim {claim.id}"
            for kind, names, valid in (
                ("row", [*claim.a, *claim.b], [row.label for row in self.rows]),
                ("measure", claim.on, [one.label for one in self.measures]),
                ("relation", [claim.relation], [*ORDERS, *VALUES]),
                ("across", [claim.across], ["each", "mean"]),
            ):
                for name in names:
                    if name not in valid:
                        raise UserError(unknown(f"{kind} {where}", name, valid))
            if (claim.value is None) != (claim.relation in ORDERS):
                raise UserError(
                    f"claim {claim.id}: relation {claim.relation} and value={claim.value!r} do not fit."
                )

    def row(self, label: str) -> ClaimRow:
        """The row of that label."""
        return next(row for row in self.rows if row.label == label)

    def measure(self, label: str) -> Measure:
        """The measure of that label."""
        return next(one for one in self.measures if one.label == label)


def load_claims(folder: Path) -> list[PaperClaims]:
    """All files of conf/claim, sorted. UserError: a file that does not fit."""
    import yaml

    from adalora_bench.settings.config import typed

    return [
        typed(PaperClaims, yaml.safe_load(path.read_text()), f"claim/{path.stem}")
        for path in sorted(folder.glob("*.yaml"))
    ]
