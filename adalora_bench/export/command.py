"""bench export: a recorded model as a PEFT LoRA adapter or as a merged checkpoint, checked before it is kept.

What can be refused is refused before torch is imported. Both forms are written into a folder beside the wanted one,
read back, compared with the trained model on a few report rows, and only then put in place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_bench.errors import EXIT_UNIT_FAILED, UserError, unknown
from adalora_bench.export.recorded import ADAPTER, check_assets, read_record
from adalora_bench.settings import prepare
from adalora_bench.settings.config import Cell
from adalora_bench.settings.prepare import Assets
from adalora_bench.settings.recorded import cell_of, locate
from adalora_bench.store.files import TEMPORARY, writing
from adalora_bench.store.records import PREDICTIONS, RecordStore

if TYPE_CHECKING:
    from adalora_bench.train.evaluate import Predictions

FORMS = ("peft", "merged")
SETTINGS = ("to", "form", "data_dir", "offline", "task.source.local", "backbone.source.local")
ROWS = 8
TOLERANCE = 1e-5
"""Of a logit; where logits are larger than 1, of the largest one."""


class NotTheSame(UserError):
    """What was exported does not give the logits of the trained model; nothing was kept."""

    exit_code = EXIT_UNIT_FAILED


@dataclass(frozen=True)
class Check:
    """Largest differences of a logit of the exported form, on `rows` report rows, and the largest logit itself."""

    rows: int
    from_trained: float
    from_base: float
    largest: float
    trained_from_base: float

    @property
    def tolerance(self) -> float:
        return TOLERANCE * max(1.0, self.largest)

    @property
    def passed(self) -> bool:
        """As the trained model, and unlike its base as far as the trained one is (NaN passes nowhere)."""
        moved = self.trained_from_base > self.tolerance
        return self.from_trained <= self.tolerance and (not moved or self.from_base > self.tolerance)

    def __str__(self) -> str:
        return (
            f"on {self.rows} report rows the logits differ by {self.from_trained:.1e} from the trained model and by "
            f"{self.from_base:.1e} from its backbone without the update (the largest logit is {self.largest:.1e})"
        )


def export(where: str, settings: Mapping[str, str]) -> list[str]:
    """Write one form of a recorded model.

    Args:
        where: the record.json of a unit, or its folder.
        settings: of SETTINGS. `to` is the new folder (default: `form` beside the record), `form` is peft (default) or
            merged, the others say where the assets are, as for a run.

    Returns:
        Lines for people: what was written, and the check.

    Raises:
        UserError: there is no such record, it has no adapter, or `to` is taken.
        AssetError: data or weights are missing.
        NotTheSame: the check failed; nothing is left behind.
    """
    form = settings.get("form", FORMS[0])
    if form not in FORMS:
        raise UserError(unknown("form", form, FORMS))
    path = locate(where)
    record = read_record(path)
    shown = settings.get("to") or path.parent / form
    target = Path(os.path.expanduser(shown)).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{shown} is there already; name another folder: to=FOLDER.")
    cell = cell_of(record, settings)
    found = prepare.assets([cell], prepare.places_of(cell.config))
    notes = check_assets(cell, record, found)
    temporary = target.with_name(f"{target.name}.{os.getpid()}{TEMPORARY}")
    try:
        with writing(target):
            temporary.mkdir(parents=True)
        with _quiet():
            said, check, missed = _write(record, path.parent, cell, found, form, temporary)
        if not check.passed:
            raise NotTheSame(f"the exported form is not the trained model: {check}; nothing was kept.")
        with writing(target):
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [f"wrote {shown}: {said}", f"check: {check}", *notes, *missed]


def _write(
    record: dict[str, Any], unit: Path, cell: Cell, found: Assets, form: str, folder: Path
) -> tuple[str, Check, list[str]]:
    """Rebuild, write, reload and compare. One model is in memory at a time."""
    from adalora_bench.export.formats import FORMATS
    from adalora_bench.export.readme import readme
    from adalora_bench.export.trained import rebuild
    from adalora_bench.settings.assemble import load_backbone

    trained = rebuild(cell, record, unit / ADAPTER, found)
    probe = trained.probe(ROWS)
    logits = probe.logits(trained.run.model)
    precision = cell.config["train"]["precision"]
    notes = check_predictions(
        unit,
        probe.suffix,
        probe.predictions(trained.run.model, precision),
        exact=precision == "fp32" and trained.form.kind != "text",
    )
    head = {name: tensor.clone() for name, tensor in trained.head().items()}
    with writing(folder):
        written = FORMATS[form].write(trained, folder)
        text = readme(record, written, task=trained.cell.task, max_length=trained.form.max_length)
        (folder / "README.md").write_text(text, encoding="utf-8")
    del trained
    plain = load_backbone(cell, record["seed"], found, probe.form)
    plain.model.load_state_dict(head, strict=False)
    base = probe.logits(plain.model)
    for p in plain.head:
        p.detach().zero_()  # it must come from the folder
    try:
        FORMATS[form].reload(plain.model, folder)
    except (KeyError, ValueError, RuntimeError) as error:
        raise NotTheSame(f"the exported form cannot be read back ({error}); nothing was kept.") from error
    again = probe.logits(plain.model)
    check = Check(
        rows=len(probe.learned),
        from_trained=float((again - logits).abs().max()),
        from_base=float((again - base).abs().max()),
        largest=float(logits.abs().max()),
        trained_from_base=float((logits - base).abs().max()),
    )
    return written.said, check, notes


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no advice on heads that are about to be replaced; transformers is left as it was."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def check_predictions(unit: Path, suffix: str, predicted: Predictions, *, exact: bool) -> list[str]:
    """Does the model that was rebuilt answer as its unit recorded? A note where that is not known for certain.

    Args:
        exact: every answer must be the recorded one. False: a rounding may turn one (half precision, long texts), and
            only a model that gives none of the recorded answers is refused.

    Raises:
        NotTheSame: it does not.
    """
    rows = RecordStore.around(unit).predictions(unit)
    if rows is None:
        return [
            f"note: {unit / PREDICTIONS} is missing, so the predictions of the training were not compared"
        ]
    recorded = [row["prediction"] for row in rows if row["set"] == suffix][: len(predicted)]
    wrong = sum(not _alike(a, b) for a, b in zip(predicted, recorded, strict=True))
    said = f"answers {wrong} of {len(predicted)} report rows otherwise than its record"
    if wrong and (exact or wrong == len(predicted)):
        raise NotTheSame(
            f"the model that {ADAPTER} gives here {said} (other weights, or another version of the code), so it is not "
            "exported."
        )
    return [f"note: the model {said}"] if wrong else []


def _alike(a: Any, b: Any) -> bool:
    """Classes and texts are equal; values agree to 1e-3."""
    if isinstance(a, float) and isinstance(b, (int, float)):
        return abs(a - b) <= 1e-3 * max(1.0, abs(b))
    return bool(a == b)
