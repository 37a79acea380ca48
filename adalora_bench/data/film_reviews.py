"""Short film reviews, fresh or rotten: the embedded task. Real sentences that come in a wheel.

One row of the file (the sentence is invented):
    category=rotten, text="Two hours of scenery in search of a story.", movie_name=some_film, ...
"""

from __future__ import annotations

import bz2
import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adalora_bench.data.sources import Found
from adalora_bench.data.tasks import Task
from adalora_bench.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

FILE = "rotten_tomatoes_corpus_full.csv.bz2"
_ONE_FILM_IN = 5  # about a fifth of the films is held out


@dataclass(frozen=True, kw_only=True)
class FilmReviews(Task):
    """Splits by film, so that no film is in both: a name or a plot met in training cannot help."""

    def tables(self, found: Found, splits: Sequence[str]) -> dict[str, pa.Table]:
        import pyarrow as pa

        if found.files or found.folder is None:
            return super().tables(found, splits)
        path = found.folder / FILE
        columns: dict[str, dict[str, list[str | int]]] = {
            split: {"text": [], "movie_name": [], "label": []} for split in ("train", "validation")
        }
        for category, text, film in _reviews(path):
            split = columns["validation" if is_held_out(film) else "train"]
            split["text"].append(text)
            split["movie_name"].append(film)
            split["label"].append(self.labels.index(category))
        return {split: self.checked(pa.table(columns[split]), f"{path} ({split})") for split in splits}


def is_held_out(film: str) -> bool:
    """Whether a film belongs to the validation set: by a hash of its name, hence for good."""
    return hashlib.sha256(film.encode()).digest()[0] % _ONE_FILM_IN == 0


def _reviews(path: Path) -> list[tuple[str, str, str]]:
    """(category, text, film) of every review, plots, empty texts and repeated texts left out."""
    try:
        content = bz2.decompress(path.read_bytes()).decode()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove its folder and fetch it again.") from error
    seen: set[str] = set()
    reviews: list[tuple[str, str, str]] = []
    for row in csv.DictReader(io.StringIO(content, newline="")):
        text = row["text"].strip()
        if row["category"] != "plot" and text and text not in seen:
            seen.add(text)
            reviews.append((row["category"], text, row["movie_name"]))
    return reviews
