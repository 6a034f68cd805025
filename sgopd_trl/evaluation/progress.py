"""How far an evaluation is: a bar on a terminal, else a line now and then."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


_LINE_EVERY = 30.0  # seconds


class SampleProgress:
    """Counts samples, with the tokens a second since the start. A context manager."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(file=sys.stderr)
        self._bar = Progress(
            TextColumn("Samples"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._started = self._said = time.monotonic()
        self._tokens = 0
        self.done = self.total = 0

    def __enter__(self) -> "SampleProgress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def start(self, done: int, total: int) -> None:
        """Takes note of how many samples there are already, and shows it."""
        self.done, self.total = done, total
        self._task = self._bar.add_task("", total=total, completed=done, speed="")
        self._started = self._said = time.monotonic()
        if done:
            self.console.print(f"{done} of {total} samples are there; {total - done} are asked for.", highlight=False)

    def advance(self, samples: int, tokens: int) -> None:
        """Takes note of samples that have finished, with as many tokens together."""
        now = time.monotonic()
        self.done += samples
        self._tokens += tokens
        speed = f"{self._tokens / max(now - self._started, 1e-9):,.0f} tokens/s"
        self._bar.update(self._task, advance=samples, speed=speed)
        if not self.console.is_terminal and now - self._said >= _LINE_EVERY:
            self._said = now
            self.console.print(f"{self.done} of {self.total} samples, {speed}", highlight=False)
