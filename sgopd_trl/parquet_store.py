"""An append-only folder of Parquet files: for concurrent writers, and for a kill at any moment."""

import os
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock


Row = dict[str, Any]


class ParquetStore:
    """Rows by key, in `folder/data/*.parquet`, which `datasets.load_dataset(folder)` reads.

    Every append is one new file, which appears whole or not at all. The first row under a key stays.

    Args:
        folder: is created where it does not exist. schema: the columns. key: those that identify a row.

    Raises:
        ValueError: when a file in the folder cannot be read.
    """

    def __init__(self, folder: str | os.PathLike, schema: pa.Schema, key: Sequence[str]):
        self.folder = Path(folder)
        self.schema = schema
        self.key = tuple(key)
        self.data = self.folder / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.folder / ".lock")
        self._rows: dict[tuple, Row] = {}
        self._read: set[str] = set()
        self.refresh()

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def get(self, *key: Any) -> Row | None:
        """The row under a key, as far as it was read."""
        return self._rows.get(key)

    def refresh(self) -> None:
        """Reads the files that other writers have added."""
        for path in sorted(self.data.glob("*.parquet")):
            if path.name not in self._read:
                try:
                    rows = pq.read_table(path, schema=self.schema).to_pylist()
                except FileNotFoundError:  # merged into another one, which the next look finds
                    return self.refresh()
                except (pa.ArrowException, OSError) as error:
                    raise ValueError(
                        f"{path} cannot be read: {error}. Our own writes appear whole or not at all, so the file was "
                        "changed or copied in part; restore or remove it."
                    ) from error
                for row in rows:
                    self._rows.setdefault(self._key(row), row)
                self._read.add(path.name)

    def append(self, rows: Sequence[Row]) -> list[Row]:
        """Stores the rows whose keys are new.

        Returns:
            for each row the one that is now stored under its key: another writer's where that was first.
        """
        with self.lock:
            self._remove_leftovers()
            self.refresh()
            new: dict[tuple, Row] = {}
            for row in rows:
                if self._key(row) not in self._rows:
                    new.setdefault(self._key(row), row)
            if new:
                # As a reader will find them: integers and floats of the schema's width
                table = pa.Table.from_pylist(list(new.values()), schema=self.schema)
                self._write(table)
                for row in table.to_pylist():
                    self._rows[self._key(row)] = row
        return [self._rows[self._key(row)] for row in rows]

    def compact(self) -> None:
        """Merges all files into one. A kill in between leaves rows twice, which changes nothing."""
        with self.lock:
            self._remove_leftovers()
            self.refresh()
            old = sorted(self.data.glob("*.parquet"))
            if len(old) > 1:
                self._write(pa.Table.from_pylist(list(self._rows.values()), schema=self.schema))
                for path in old:
                    path.unlink()

    def _key(self, row: Row) -> tuple:
        return tuple(row[column] for column in self.key)

    def _write(self, table: pa.Table) -> None:
        # Named by time, so that every reader takes the files, and with them the first row under a key, in one order
        path = self.data / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
        temporary = path.with_suffix(".unfinished")
        with open(temporary, "wb") as file:
            pq.write_table(table, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        self._read.add(path.name)

    def _remove_leftovers(self) -> None:
        """Under the lock nobody writes, so an unfinished file is a killed writer's."""
        for path in self.data.glob("*.unfinished"):
            path.unlink()
