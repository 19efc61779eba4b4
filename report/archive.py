"""Reads a campaign's small results out of a store: single files, verified, never a whole model."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage import Corrupt, Manifest, NotFound, Ref, StorageError, Store
from storage.rows import read_rows

Row = dict[str, Any]  # Any: a row of a Parquet or JSON-lines file


class Archive:
    """A store seen by a reader who wants to show what is there and to say what is not.

    A result that is not made yet is None. One that is damaged is None too, with a line in `problems`.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.problems: list[str] = []
        self._manifests: dict[Ref, Manifest | None] = {}

    def manifest(self, ref: Ref | None) -> Manifest | None:
        """The manifest of a finished result."""
        if ref is None:
            return None
        if ref not in self._manifests:
            self._manifests[ref] = self.store.manifest(ref)
            self._note_warnings()
        return self._manifests[ref]

    def summary(self, ref: Ref | None) -> dict[str, Any]:
        """The small numbers that the stage returned; empty if it has not ended."""
        found = self.manifest(ref)
        summary = found.record.get("summary") if found else None
        return summary if isinstance(summary, dict) else {}

    def json(self, ref: Ref | None, name: str) -> Any | None:
        """A JSON file of a result."""
        data = self._bytes(ref, name)
        return None if data is None else self._parsed(json.loads, data, ref, name)

    def lines(self, ref: Ref | None, name: str) -> list[Row]:
        """The rows of a JSON-lines file; empty if it is not there."""
        data = self._bytes(ref, name)
        if data is None:
            return []
        return self._parsed(lambda text: [json.loads(line) for line in text.splitlines()], data, ref, name) or []

    def rows(self, ref: Ref | None, name: str) -> Iterator[Row]:
        """The rows of a Parquet file, a batch in memory at a time; none if it is not there."""
        data = self._bytes(ref, name)
        if data is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.parquet"
            path.write_bytes(data)
            try:
                yield from read_rows(path)
            except StorageError as err:
                self._problem(f"{ref}: {name} cannot be read: {err}")

    def _parsed(self, parse: Any, data: bytes, ref: Ref | None, name: str) -> Any:
        try:
            return parse(data.decode())
        except ValueError as err:
            self._problem(f"{ref}: {name} is not JSON: {err}")
            return None

    def _bytes(self, ref: Ref | None, name: str) -> bytes | None:
        """One file of a result, hashed now."""
        manifest = self.manifest(ref)
        if manifest is None or name not in manifest.files:
            return None
        try:
            data = self.store.get(f"artifacts/{manifest.key}/{manifest.attempt}/{name}")
        except (NotFound, Corrupt) as err:
            self._problem(f"{manifest.key}: {name} cannot be read: {err}")
            return None
        if hashlib.sha256(data).hexdigest() != manifest.files[name].sha256:
            self._problem(f"{manifest.key}: {name} was altered after it was made; it is not shown")
            return None
        return data

    def _note_warnings(self) -> None:
        for line in self.store.warnings:
            self._problem(line)

    def _problem(self, line: str) -> None:
        if line not in self.problems:
            self.problems.append(line)
