"""A teacher's answers kept in a folder, and a teacher that answers from there: for tests and offline sweeps."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from ..atomic_file import write_whole
from ..main_process import on_main_process
from ..parquet_store import ParquetStore
from .protocol import SamplingSettings, Teacher, TeacherError


if TYPE_CHECKING:
    from ..trainer import SGOPDTrainer


_SCORES = pa.schema({"key": pa.string(), "logps": pa.list_(pa.float32())})
_ROLLOUTS = pa.schema({"key": pa.string(), "completion_ids": pa.list_(pa.int32())})
_TEACHER = "teacher.json"


class _Recording:
    """A folder with `scores` and `rollouts`, each by the hash of what was asked."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.scores = ParquetStore(self.folder / "scores", _SCORES, ["key"])
        self.rollouts = ParquetStore(self.folder / "rollouts", _ROLLOUTS, ["key"])


class RecordingTeacher:
    """A teacher whose answers are kept in a folder. Several processes may record into the same one.

    What is there already is answered again, as it was: a replay is the run to the bit, though a server's values may differ
    in their last bits from one time to the next.

    Args:
        teacher: is asked. folder: is created where it does not exist.

    Raises:
        ValueError: by `prepare`, when the folder holds a recording of another teacher.
    """

    def __init__(self, teacher: Teacher, folder: str | os.PathLike):
        self.teacher = teacher
        self.recording = _Recording(folder)

    @property
    def runs_elsewhere(self) -> bool:
        return self.teacher.runs_elsewhere

    @property
    def eos_token_ids(self) -> Sequence[int]:
        return self.teacher.eos_token_ids

    def prepare(self, trainer: "SGOPDTrainer") -> None:
        self.teacher.prepare(trainer)
        on_main_process(trainer.accelerator, self._sign)

    def _sign(self) -> None:
        about = {"eos_token_ids": list(self.eos_token_ids), "identity": self.identity()}
        path = self.recording.folder / _TEACHER
        if path.is_file() and (theirs := json.loads(path.read_text())) != about:
            raise ValueError(
                f"{self.recording.folder} holds a recording of another teacher: {theirs}, and this one is {about}. Set "
                "another `teacher_record_path`."
            )
        write_whole(path, json.dumps(about, indent=2) + "\n")

    def identity(self) -> dict[str, dict[str, str | None]]:
        return self.teacher.identity()

    def score(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        *,
        temperature: float,
        names: Sequence[str | None] | None = None,
    ) -> list[torch.Tensor]:
        scores = self.teacher.score(prompt_ids, completion_ids, temperature=temperature, names=names)
        asked = _asked(prompt_ids, completion_ids, names, temperature)
        stored = self.recording.scores.append(
            [{"key": key, "logps": values.tolist()} for key, values in zip(asked, scores, strict=True)]
        )
        return [torch.tensor(row["logps"], dtype=torch.float32) for row in stored]

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        seeds: Sequence[int],
        settings: SamplingSettings,
        *,
        names: Sequence[str | None] | None = None,
        finished: Callable[[int, list[int]], None] | None = None,
    ) -> list[list[int]]:
        rollouts = self.teacher.generate(prompt_ids, seeds, settings, names=names)
        asked = _asked(prompt_ids, seeds, names, asdict(settings))
        stored = self.recording.rollouts.append(
            [{"key": key, "completion_ids": ids} for key, ids in zip(asked, rollouts, strict=True)]
        )
        return [row["completion_ids"] for row in stored]


class RecordedTeacher:
    """Answers what was recorded by `RecordingTeacher`, and nothing else.

    Args:
        folder: of the recording.

    Raises:
        ValueError: when the folder holds no recording.
    """

    runs_elsewhere = True

    def __init__(self, folder: str | os.PathLike):
        about = Path(folder) / _TEACHER
        if not about.is_file():
            raise ValueError(
                f"{folder} holds no recorded teacher: it has no {_TEACHER}. Set `teacher_record_path` first."
            )
        self._about = json.loads(about.read_text())
        self.eos_token_ids: list[int] = self._about["eos_token_ids"]
        self.recording = _Recording(folder)

    def prepare(self, trainer: "SGOPDTrainer") -> None:
        return None

    def identity(self) -> dict[str, dict[str, str | None]]:
        return self._about["identity"]

    def score(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        *,
        temperature: float,
        names: Sequence[str | None] | None = None,
    ) -> list[torch.Tensor]:
        asked = _asked(prompt_ids, completion_ids, names, temperature)
        rows = [self._find(self.recording.scores, key, ids) for key, ids in zip(asked, prompt_ids, strict=True)]
        return [torch.tensor(row["logps"], dtype=torch.float32) for row in rows]

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        seeds: Sequence[int],
        settings: SamplingSettings,
        *,
        names: Sequence[str | None] | None = None,
        finished: Callable[[int, list[int]], None] | None = None,
    ) -> list[list[int]]:
        asked = _asked(prompt_ids, seeds, names, asdict(settings))
        rows = [self._find(self.recording.rollouts, key, ids) for key, ids in zip(asked, prompt_ids, strict=True)]
        return [row["completion_ids"] for row in rows]

    def _find(self, store: ParquetStore, key: str, prompt_ids: Sequence[int]) -> dict[str, Any]:
        row = store.get(key)
        if row is None:
            shown = ", ".join(map(str, prompt_ids[:8]))
            raise TeacherError(
                f"{store.folder} has no entry for a sequence whose prompt begins with the ids {shown}. A recording "
                "answers the run it was made of: the same student, data, seed and sampling settings."
            )
        return row


def _asked(prompt_ids: Sequence, others: Sequence, names: Sequence[str | None] | None, settings: Any) -> list[str]:
    """A key for each sequence, of all that its answer depends on."""
    names = ["teacher"] * len(prompt_ids) if names is None else names
    return [
        hashlib.sha256(json.dumps([name, list(prompt), _plain(other), settings]).encode()).hexdigest()
        for name, prompt, other in zip(names, prompt_ids, others, strict=True)
    ]


def _plain(value: int | Sequence[int]) -> int | list[int]:
    return value if isinstance(value, int) else list(value)
