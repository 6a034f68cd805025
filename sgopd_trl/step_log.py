"""What an optimizer step logs beside TRL's metrics: values, and where its time went."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .overlap import TeacherCall


if TYPE_CHECKING:
    from .trainer import SGOPDTrainer


PARTS = ("generation", "teacher", "reference", "old", "teacher_rollouts", "update")


class StepLog:
    """Collects values and seconds of a trainer's steps and hands them to TRL's metrics."""

    def __init__(self, trainer: "SGOPDTrainer"):
        self.trainer = trainer
        self._seconds: dict[str, float] = defaultdict(float)
        self._teacher_worked = self._teacher_waited = 0.0

    def value(self, name: str, value: float) -> None:
        """Logs a value of this step."""
        self.trainer._metrics["train" if self.trainer.model.training else "eval"][name].append(value)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Counts the time of a `with` block as this part of the step."""
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    @contextmanager
    def teacher(self, name: str, call: TeacherCall) -> Iterator[None]:
        """Counts the time of a `with` block, in which the trainer waits for the teacher, and the call's own time."""
        start = time.perf_counter()
        yield
        if self.trainer.model.training:
            waited = time.perf_counter() - start
            self.add(name, waited)
            self._teacher_worked += call.seconds
            self._teacher_waited += min(waited, call.seconds)

    def add(self, name: str, seconds: float) -> None:
        if self.trainer.model.training:  # an evaluation in between is not part of the step
            self._seconds[name] += seconds

    def finish_step(self) -> None:
        """Logs the seconds of each part, and how much of the teacher's time was hidden behind other work.

        The share is logged for steps in which a teacher has worked: the others have none, and would count in a mean.
        """
        # The update's time is that of TRL's whole step, which began by preparing its inputs.
        self._seconds["update"] -= self._seconds.pop("prepare", 0.0)
        for name in PARTS:
            self.value(f"seconds/{name}", self._seconds.pop(name, 0.0))
        self.value("seconds/teacher_worked", self._teacher_worked)
        if self._teacher_worked:
            self.value("teacher/hidden_share", 1 - self._teacher_waited / self._teacher_worked)
        self._teacher_worked = self._teacher_waited = 0.0

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Keeps the teacher's rollouts out of TRL's metrics, completion tables and token counts: the student's."""
        trainer = self.trainer
        kept = trainer._metrics, trainer._pending_extra_logs, trainer._pending_metrics
        seen = trainer.state.num_input_tokens_seen
        trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        trainer._pending_extra_logs, trainer._pending_metrics = defaultdict(list), defaultdict(list)
        try:
            yield
        finally:
            trainer._metrics, trainer._pending_extra_logs, trainer._pending_metrics = kept
            trainer.state.num_input_tokens_seen = seen
