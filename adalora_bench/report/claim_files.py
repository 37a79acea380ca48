"""The papers' claims as conf/claim holds them: who is compared with whom, on what, and the published number."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adalora_bench.errors import UserError, unknown

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

    from adalora_bench.config import typed

    return [
        typed(PaperClaims, yaml.safe_load(path.read_text()), f"claim/{path.stem}")
        for path in sorted(folder.glob("*.yaml"))
    ]
