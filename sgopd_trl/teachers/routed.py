"""Several teachers: each row of the dataset names its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..overlap import TeacherCall
from .protocol import SamplingSettings, Teacher


if TYPE_CHECKING:
    from ..trainer import SGOPDTrainer


class RoutedTeacher:
    """Hands every sequence to the teacher its row names.

    Args:
        teachers: by name.
    """

    def __init__(self, teachers: Mapping[str, Teacher]):
        self.teachers = dict(teachers)
        self.eos_token_ids = sorted({token for teacher in teachers.values() for token in teacher.eos_token_ids})
        self.runs_elsewhere = all(teacher.runs_elsewhere for teacher in teachers.values())

    def prepare(self, trainer: "SGOPDTrainer") -> None:
        for teacher in self.teachers.values():
            teacher.prepare(trainer)

    def score(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        *,
        temperature: float,
        names: Sequence[str | None] | None = None,
    ) -> list[torch.Tensor]:
        def ask(teacher: Teacher, rows: list[int]) -> list[torch.Tensor]:
            chosen = [prompt_ids[row] for row in rows], [completion_ids[row] for row in rows]
            return teacher.score(*chosen, temperature=temperature, names=[names[row] for row in rows])

        return self._routed(ask, names, len(prompt_ids))

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        seeds: Sequence[int],
        settings: SamplingSettings,
        *,
        names: Sequence[str | None] | None = None,
        finished: Callable[[int, list[int]], None] | None = None,
    ) -> list[list[int]]:
        def ask(teacher: Teacher, rows: list[int]) -> list[list[int]]:
            chosen = [prompt_ids[row] for row in rows], [seeds[row] for row in rows]
            tell = finished and (lambda place, ids: finished(rows[place], ids))
            return teacher.generate(*chosen, settings, names=[names[row] for row in rows], finished=tell)

        return self._routed(ask, names, len(prompt_ids))

    def identity(self) -> dict[str, dict[str, str | None]]:
        entries = {name: teacher.identity() for name, teacher in self.teachers.items()}
        return {name: entry.get(name) or next(iter(entry.values())) for name, entry in entries.items()}

    def _routed(
        self, ask: Callable[[Teacher, list[int]], list[Any]], names: Sequence[str | None] | None, count: int
    ) -> list[Any]:
        """Answers in the rows' order. Servers work at the same time, and beside the models in this process, which are
        asked first and on every process, in one order, with the rows they have there, if any."""
        rows = {name: [row for row in range(count) if names[row] == name] for name in self.teachers}
        if sum(map(len, rows.values())) != count:
            unknown = sorted({str(name) for name in names} - set(self.teachers))
            raise ValueError(f"The column `teacher` names {unknown}, but the teachers are {list(self.teachers)}.")
        calls = {}
        for name, teacher in self.teachers.items():
            if rows[name] or not teacher.runs_elsewhere:
                calls[name] = TeacherCall(
                    lambda teacher=teacher, chosen=rows[name]: ask(teacher, chosen), teacher.runs_elsewhere
                )
        answers: list[Any] = [None] * count
        for name, call in sorted(calls.items(), key=lambda item: self.teachers[item[0]].runs_elsewhere):
            for row, answer in zip(rows[name], call.own_result(), strict=True):
                answers[row] = answer
        return answers
