"""What the files of a finished stage say about the bytes of another one: what is fixed, and what grows with the work."""

from __future__ import annotations

from dataclasses import dataclass

from storage import Manifest, Store
from storage.growth import by_rows

LARGE = 1 << 20  # bytes from which on a file's schema is nothing beside its rows


@dataclass(frozen=True)
class Growth:
    """Bytes of the curve, of what stays as it is, and of what grows in proportion to the rows; together all files."""

    curve: float
    fixed: float
    rows: float


def grown(manifest: Manifest, store: Store) -> Growth:
    """The bytes of an artifact, by how they grow: lines and rows with the rows, single JSON files and weights not."""
    curve = fixed = rows = 0.0
    for name, info in manifest.files.items():
        if name == "metrics.jsonl":
            curve += info.size
        elif name.endswith(".parquet") and info.size < LARGE:
            stays, grows = by_rows(store.get(f"artifacts/{manifest.key}/{manifest.attempt}/{name}"))
            fixed, rows = fixed + stays, rows + grows
        elif name.endswith((".jsonl", ".parquet")):
            rows += info.size
        else:
            fixed += info.size
    return Growth(curve, fixed, rows)
