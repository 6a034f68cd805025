"""What a task's folder says of it: `run.json`, one writer at a time, and the figures of its evaluation."""

import hashlib
import json
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .. import __version__
from ..atomic_file import write_whole
from ..evaluation.summary import judge_failures
from .plan import EVALUATION_DIR, LOG, RECORD, SUMMARY, Task


RUNNING, FINISHED, FAILED = "running", "finished", "failed"


def read_record(folder: Path) -> dict[str, Any]:
    """What is known of a task; an empty mapping before it was first started."""
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_record(task: Task, state: str, **values: Any) -> None:
    """Say in what state a task is, and more."""
    known = read_record(task.folder) if state != RUNNING else {}
    record = known | {
        "row": task.label,
        "seed": task.seed,
        **task.stated,
        "command": list(task.command),
        "evaluation": dict(task.evaluation),
        "state": state,
        "code": code_digest(),
        "versions": {"sgopd-trl": __version__} | {name: version(name) for name in ("torch", "transformers", "trl")},
        **values,
    }
    task.folder.mkdir(parents=True, exist_ok=True)
    write_whole(task.folder / RECORD, json.dumps(record | {"written": time.time()}, indent=2, default=str) + "\n")


@cache
def code_digest() -> str:
    """A digest of the package's own .py files, as they were when this process first asked."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        text = path.read_bytes()
        digest.update(f"{path.relative_to(package)} {len(text)}\n".encode() + text)
    return digest.hexdigest()[:12]


def seconds_so_far(folder: Path) -> float:
    """Seconds that a task has worked in all its starts. A start that was cut off has worked until its log's last line."""
    record = read_record(folder)
    seconds = record.get("seconds", 0.0)
    log = folder / LOG
    if record.get("state") == RUNNING and "started" in record and log.is_file():
        seconds += max(0.0, log.stat().st_mtime - record["started"])
    return seconds


def finished(task: Task) -> bool:
    return read_record(task.folder).get("state") == FINISHED


def read_scores(folder: Path) -> dict[str, float]:
    """The figures of a finished evaluation, by metric, in [0, 1]: the average over its data sets."""
    return {metric: value["mean"] for metric, value in _summary(folder)["average"].items()}


def read_counts(folder: Path) -> dict[str, int]:
    """Of a finished evaluation: its samples, those that were truncated, and those on which the judge failed."""
    summary = _summary(folder)
    counts = {name: sum(found[name] for found in summary["datasets"].values()) for name in ("samples", "truncated")}
    return counts | {"judge_failed": sum(judge_failures(summary).values())}


def _summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / EVALUATION_DIR / SUMMARY).read_text(encoding="utf-8"))


def claim(task: Task) -> FileLock | None:
    """The lock of a task, taken; None when another study on this machine holds it. Freed when the process ends."""
    task.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(task.folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock
