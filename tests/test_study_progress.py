"""What a study shows at a terminal while its runs write and remove files."""

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from sgopd_trl.study.plan import Task
from sgopd_trl.study.progress import StudyProgress


@pytest.fixture
def task(tmp_path):
    return Task("OPD", 3, tmp_path, recipe={"max_steps": 50}, command=("train",))


def log(task: Task, place: str, *steps: int, time: int) -> Path:
    path = task.folder / "train" / place / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f'{{"step": {step}}}\n' for step in steps) + '{"step": 9')  # the last line is being written
    os.utime(path, (time, time))
    return path


def test_bars_at_a_terminal_follow_the_steps(task, monkeypatch):
    console = Console(force_terminal=True, file=io.StringIO(), width=120)

    with StudyProgress(console, [task], slots=1) as progress:

        def shown() -> float:
            progress.tick()
            progress.progress.refresh()
            return progress.progress.tasks[-1].completed

        progress.started(task)
        assert shown() == 0
        log(task, "_stages/sft", 1, 2, time=10)
        assert shown() == 2
        log(task, ".", 1, time=20)
        log(task, "checkpoint-7", 7, time=30)  # neither the run's nor a stage's
        assert shown() == 1
        log(task, ".", 1, 2, 3, time=40)
        with monkeypatch.context() as vanishing:
            vanishing.setattr(Path, "read_bytes", lambda path: path.with_name("gone").open("rb"))
            assert shown() == 1
        assert shown() == 3
        progress.ended(task, 12.0, ["the reason"])
    text = console.file.getvalue()
    assert "OPD, seed 3" in text and "3/50" in text and "FAILED after 12 s" in text
