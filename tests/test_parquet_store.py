"""The store under concurrent writers and kills."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from sgopd_trl.parquet_store import ParquetStore


SCHEMA = pa.schema({"key": pa.int64(), "writer": pa.int64(), "ids": pa.list_(pa.int32())})


def open_store(folder) -> ParquetStore:
    return ParquetStore(folder, SCHEMA, ["key"])


def row(key: int, writer: int = 0) -> dict:
    return {"key": key, "writer": writer, "ids": [key] * 3}


# Appends rows `first..first+count` in batches of 5, telling after each append which writer's rows are stored.
WRITER = """
import sys
sys.path.insert(0, {tests!r})
from test_parquet_store import open_store, row
folder, writer, first, count = sys.argv[1], *map(int, sys.argv[2:])
store = open_store(folder)
for start in range(first, first + count, 5):
    stored = store.append([row(key, writer) for key in range(start, start + 5)])
    print(*(f"{{r['key']}}:{{r['writer']}}" for r in stored), flush=True)
"""


def start_writer(folder, writer: int, first: int, count: int) -> subprocess.Popen:
    code = WRITER.format(tests=os.path.dirname(__file__))
    arguments = [str(folder), str(writer), str(first), str(count)]
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


def told(output: str) -> dict[int, int]:
    pairs = [pair.split(":") for line in output.splitlines() if line.count(":") == 5 for pair in line.split()]
    return {int(key): int(writer) for key, writer in pairs}


def test_rows_come_back_and_the_first_one_stays(tmp_path):
    store = open_store(tmp_path)
    assert store.append([row(1), row(2), row(1, 9)]) == [row(1), row(2), row(1)]
    assert store.append([row(2, 9), row(3)]) == [row(2), row(3)]
    assert store.append([]) == [] and len(list(store.data.glob("*.parquet"))) == 2
    again = open_store(tmp_path)
    assert [again.get(key) for key in (1, 2, 3, 4)] == [row(1), row(2), row(3), None]
    assert len(again) == 3 and list(again) == [row(1), row(2), row(3)]


def test_another_writers_rows_are_seen_and_win(tmp_path):
    ours, theirs = open_store(tmp_path), open_store(tmp_path)
    theirs.append([row(1, 2)])
    assert ours.get(1) is None
    assert ours.append([row(1, 1), row(2, 1)]) == [row(1, 2), row(2, 1)]
    theirs.refresh()
    assert theirs.get(2) == row(2, 1)


def test_writers_at_the_same_time_lose_nothing_and_agree(tmp_path):
    writers = [start_writer(tmp_path, number, first=10 * number, count=100) for number in range(4)]
    answers = [told(writer.communicate(timeout=120)[0]) for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4
    store = open_store(tmp_path)
    assert len(store) == 130
    for answer in answers:
        assert len(answer) == 100
        assert all(store.get(key)["writer"] == writer for key, writer in answer.items())
    assert len(load_dataset("parquet", data_files=str(tmp_path / "data/*.parquet"), split="train")) == 130


def test_a_killed_writer_loses_nothing_it_had_finished(tmp_path):
    coin = random.Random(0)
    finished: dict[int, int] = {}
    for attempt in range(5):
        writer = start_writer(tmp_path, attempt, first=1000 * attempt, count=1000)
        first_line = writer.stdout.readline()
        time.sleep(coin.random() * 0.2)
        writer.send_signal(signal.SIGKILL)
        finished |= told(first_line + writer.communicate()[0])
        store = open_store(tmp_path)
        assert all(store.get(key) is not None for key in finished)
    assert len(finished) > 25
    dataset = load_dataset("parquet", data_files=str(tmp_path / "data/*.parquet"), split="train")
    assert set(finished) <= set(dataset["key"])


def test_a_write_that_ends_halfway_is_not_seen(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    store.append([row(1)])

    def half(writer, table, **settings):
        raise OSError("no space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", half)
    with pytest.raises(OSError, match="no space"):
        store.append([row(2)])
    monkeypatch.undo()
    assert list(open_store(tmp_path)) == [row(1)]
    assert store.append([row(2)]) == [row(2)] and len(open_store(tmp_path)) == 2


def test_unfinished_files_are_neither_read_nor_kept(tmp_path):
    store = open_store(tmp_path)
    store.append([row(1)])
    (store.data / "00-killed.unfinished").write_bytes(b"PAR1 half")
    assert len(open_store(tmp_path)) == 1
    store.append([row(2)])
    assert not list(store.data.glob("*.unfinished"))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    open_store(tmp_path).append([row(1)])
    (tmp_path / "data" / "copied.parquet").write_bytes(b"PAR1 half")
    with pytest.raises(ValueError, match="copied.parquet cannot be read"):
        open_store(tmp_path)


def test_compacting_keeps_every_row_for_every_reader(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    for key in range(6):
        store.append([row(key)])
    old = sorted(store.data.glob("*.parquet"))
    store.compact()
    assert len(list(store.data.glob("*.parquet"))) == 1
    assert sorted(r["key"] for r in open_store(tmp_path)) == list(range(6))
    # A reader that had listed the old files when they vanished
    reader = open_store(tmp_path / "other")
    reader.folder, reader.data = store.folder, store.data
    listings = [old, None]
    glob = type(store.data).glob
    monkeypatch.setattr(
        type(store.data), "glob", lambda path, pattern: (listings and listings.pop(0)) or glob(path, pattern)
    )
    reader.refresh()
    assert len(reader) == 6


def test_a_reader_finds_its_rows_after_another_has_merged_the_files(tmp_path):
    """Rows in several row groups, some of them twice, in files that are gone when the reader comes for them."""
    writer = open_store(tmp_path)
    for first in range(0, 300, 100):
        writer.append([row(key) for key in range(first, first + 100)])
    (again,) = (path for number, path in enumerate(sorted(writer.data.glob("*.parquet"))) if number == 1)
    shutil.copy(again, again.with_name("9" * 20 + "-copy.parquet"))  # as a kill in the middle of a merge leaves it
    reader = open_store(tmp_path)
    assert reader.get(0) == row(0)
    writer.compact()
    assert [reader.get(key) for key in (0, 63, 64, 150, 299, 300)] == [*map(row, (0, 63, 64, 150, 299)), None]
    assert len(reader) == 300 == load_dataset(str(tmp_path), split="train").num_rows


def test_a_file_of_other_columns_is_named(tmp_path):
    store = open_store(tmp_path)
    pq.write_table(pa.table({"id": [1]}), store.data / "other.parquet")
    with pytest.raises(ValueError, match="other.parquet cannot be read"):
        store.refresh()
