"""What a task's folder says of it: `run.json`, one writer at a time, and the figures of its evaluation."""

import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .. import __version__
from ..atomic_file import write_whole
from .plan import EVALUATION_DIR, RECORD, SUMMARY, Task


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
        "versions": {"sgopd-trl": __version__} | {name: version(name) for name in ("torch", "transformers", "trl")},
        **values,
    }
    task.folder.mkdir(parents=True, exist_ok=True)
    write_whole(task.folder / RECORD, json.dumps(record | {"written": time.time()}, indent=2, default=str) + "\n")


def finished(task: Task) -> bool:
    return read_record(task.folder).get("state") == FINISHED


def read_scores(folder: Path) -> dict[str, float]:
    """The figures of a finished evaluation, by metric, in [0, 1]: the average over its data sets."""
    summary = json.loads((folder / EVALUATION_DIR / SUMMARY).read_text(encoding="utf-8"))
    return {metric: value["mean"] for metric, value in summary["average"].items()}


def claim(task: Task) -> FileLock | None:
    """The lock of a task, taken; None when another study on this machine holds it. Freed when the process ends."""
    task.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(task.folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock
