"""An append-only folder of Parquet files: for concurrent writers, and for a kill at any moment."""

import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock


Row = dict[str, Any]

GROUP = 64  # rows that are read together


class ParquetStore:
    """Rows by key, in `folder/data/*.parquet`, which `datasets.load_dataset(folder)` reads.

    Every append is one new file, which appears whole or not at all. The first row under a key stays. Only the keys are
    held in memory; a row is read when it is asked for.

    Args:
        folder: is created where it does not exist. schema: the columns. key: those that identify a row.

    Raises:
        ValueError: when a file in the folder cannot be read.
    """

    def __init__(self, folder: str | os.PathLike, schema: pa.Schema, key: Sequence[str]):
        self.folder = Path(folder)
        self.schema = schema
        self.key = list(key)
        self.data = self.folder / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.folder / ".lock")
        self._places: dict[tuple, tuple[str, int, int]] = {}  # file, row group, row in it
        self._read: set[str] = set()
        self._last: tuple[tuple[str, int], pa.Table] | None = None  # the row group that was read last
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Row]:
        return (self.get(*key) for key in list(self._places))

    def get(self, *key: Any) -> Row | None:
        """The row under a key, among those that the last `refresh` or `append` has seen."""
        while (place := self._places.get(key)) is not None:
            name, group, row = place
            try:
                return self._group(name, group).slice(row, 1).to_pylist()[0]
            except FileNotFoundError:  # merged into another one
                self._forget()
                self.refresh()
        return None

    def refresh(self) -> None:
        """Finds the rows that other writers have added."""
        for path in sorted(self.data.glob("*.parquet")):
            if path.name not in self._read:
                try:
                    self._index(path)
                except FileNotFoundError:  # merged into another one, which the next look finds
                    return self.refresh()
        return None

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
                if self._key(row) not in self._places:
                    new.setdefault(self._key(row), row)
            if new:
                self._write([pa.Table.from_pylist(list(new.values()), schema=self.schema)])
                self.refresh()
            return [self.get(*self._key(row)) for row in rows]

    def compact(self) -> None:
        """Merges all files into one. A kill in between leaves rows twice, which changes nothing."""
        with self.lock:
            self._remove_leftovers()
            self.refresh()
            old = sorted(self.data.glob("*.parquet"))
            if len(old) > 1:
                self._write(self._first_rows(old))
                for path in old:
                    path.unlink()
                self._forget()
                self.refresh()

    def _key(self, row: Row) -> tuple:
        return tuple(row[column] for column in self.key)

    def _index(self, path: Path) -> None:
        with _readable(path), pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                for row, entry in enumerate(file.read_row_group(group, columns=self.key).to_pylist()):
                    self._places.setdefault(self._key(entry), (path.name, group, row))
        self._read.add(path.name)

    def _forget(self) -> None:
        self._places.clear()
        self._read.clear()

    def _group(self, name: str, group: int) -> pa.Table:
        if self._last is None or self._last[0] != (name, group):
            path = self.data / name
            with _readable(path), pq.ParquetFile(path) as file:
                table = file.read_row_group(group, columns=self.schema.names)
                self._last = (name, group), table.select(self.schema.names).cast(self.schema)
        return self._last[1]

    def _first_rows(self, paths: Sequence[Path]) -> Iterator[pa.Table]:
        """The files' rows without those that came second under their key, some at a time."""
        waiting: list[pa.Table] = []
        for path in paths:
            for group in range(pq.read_metadata(path).num_row_groups):
                table = self._group(path.name, group)
                keys = table.select(self.key).to_pylist()
                first = [self._places[self._key(key)] == (path.name, group, row) for row, key in enumerate(keys)]
                waiting.append(table.filter(pa.array(first, pa.bool_())))
                if sum(map(len, waiting)) >= GROUP:
                    yield pa.concat_tables(waiting)
                    waiting = []
        if waiting:
            yield pa.concat_tables(waiting)

    def _write(self, tables: Iterable[pa.Table]) -> None:
        # Named by time, so that every reader takes the files, and with them the first row under a key, in one order
        path = self.data / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
        temporary = path.with_suffix(".unfinished")
        with open(temporary, "wb") as file:
            with pq.ParquetWriter(file, self.schema) as writer:
                for table in tables:
                    writer.write_table(table, row_group_size=GROUP)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def _remove_leftovers(self) -> None:
        """Under the lock nobody writes, so an unfinished file is a killed writer's."""
        for path in self.data.glob("*.unfinished"):
            path.unlink()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read: {error}. Our own writes appear whole or not at all, so the file was changed or copied "
            "in part; restore or remove it."
        ) from error
