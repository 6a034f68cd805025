"""A study's progress: bars at a terminal, a line for each event elsewhere."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ..output_folder import METRICS, STAGES
from .plan import RECORD, TRAIN_DIR, Task
from .records import FINISHED, read_record, read_scores


class StudyProgress:
    """Shows the whole and each active task with its step. A context manager.

    Args:
        console: where to. tasks: all of them. slots: how many run at once.
    """

    def __init__(self, console: Console, tasks: Sequence[Task], slots: int):
        self.console = console
        self.total = len(tasks)
        self.slots = slots
        self.done = 0
        self.failed = 0
        # Of trainings, this call's and earlier ones: an evaluation alone says nothing about them
        records = [read_record(task.folder) for task in tasks if task.command]
        self.seconds = [record["seconds"] for record in records if record.get("state") == FINISHED]
        self.bars: dict[Path, TaskID] = {}
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.whole = self.progress.add_task("runs", total=self.total, left="")

    def __enter__(self) -> "StudyProgress":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def started(self, task: Task) -> None:
        if self.console.is_terminal:
            steps = (task.recipe or {}).get("max_steps")
            self.bars[task.folder] = self.progress.add_task(f"  {escape(task.name)}", total=steps, left="")
        else:
            self._say(f"{task.name}: started")

    def ended(self, task: Task, seconds: float, error: Sequence[str] | None) -> None:
        self._count(task)
        if error is None:
            self.seconds += [seconds] if task.command else []
            scores = read_scores(task.folder) if task.model is not None else {}
            shown = "".join(f"{metric} {100 * value:.1f}, " for metric, value in scores.items())
            self._say(f"{task.name}: {shown}{seconds:.0f} s{self._left()}")
        else:
            self.failed += 1
            lines = "\n".join(f"    {line}" for line in error)
            self._say(f"{task.name}: FAILED after {seconds:.0f} s; {task.folder / RECORD}\n{lines}")

    def skipped(self, task: Task) -> None:
        self._count(task)

    def tick(self) -> None:
        self.progress.update(self.whole, left=self._left().lstrip(", "))
        for folder, bar in self.bars.items():
            self.progress.update(bar, completed=last_step(folder / TRAIN_DIR))

    def _count(self, task: Task) -> None:
        self.done += 1
        self.progress.update(self.whole, completed=self.done)
        if task.folder in self.bars:
            self.progress.remove_task(self.bars.pop(task.folder))

    def _left(self) -> str:
        left = self.total - self.done
        if not self.seconds or not left:
            return ""
        seconds = left * sum(self.seconds) / len(self.seconds) / min(self.slots, left)
        for unit, length in (("h", 3600), ("min", 60)):
            if seconds > 1.5 * length:
                return f", about {seconds / length:.{int(unit == 'h')}f} {unit} left"
        return f", about {seconds:.0f} s left"

    def _say(self, text: str) -> None:
        number = f"[{self.done}/{self.total}] {time.strftime('%H:%M:%S')} "
        self.console.print(number + text, markup=False, highlight=False, soft_wrap=True)


def last_step(train_dir: Path) -> int | None:
    """The last step that a training has logged: of the stage that wrote last, where it has several.

    None where that cannot be told at the moment: a run that starts again removes what it has left before.
    """
    try:
        files = filter(Path.is_file, [train_dir / METRICS, *train_dir.glob(f"{STAGES}/*/{METRICS}")])
        last = max(files, key=lambda path: path.stat().st_mtime, default=None)
        lines = [] if last is None else last.read_bytes().split(b"\n")[:-1]
    except OSError:
        return None
    return json.loads(lines[-1])["step"] if lines else 0
