"""`metrics.jsonl`: one line for each logging step of a run."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .output_folder import METRICS, STAGES


class MetricsLog(TrainerCallback):
    """Appends what the trainer logs to `metrics.jsonl` in the output folder, on the main process.

    A run that is resumed first drops the lines of steps beyond its checkpoint, which it takes again; a new run starts
    with an empty file. Values that JSON has no word for (NaN, infinity) are written as null.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            path = Path(args.output_dir) / METRICS
            path.parent.mkdir(parents=True, exist_ok=True)
            resumed = state.global_step > 0 and path.is_file()
            rows = [row for row in read_metrics(path) if row["step"] <= state.global_step] if resumed else []
            unfinished = path.with_suffix(".tmp")
            unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            os.replace(unfinished, path)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            row = {"step": state.global_step} | {name: _finite(value) for name, value in logs.items()}
            with (Path(args.output_dir) / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`. A last line without its end, left by a run that was killed, is left out.

    Raises:
        ValueError: for another line that cannot be read, with its number.
    """
    lines = Path(path).read_text(encoding="utf-8").split("\n")[:-1]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append(row | {"step": row["step"]})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}, holds no metrics: {line[:80]!r}. Move the file away.") from error
    return rows


def read_run(folder: str | Path, stages: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The metrics of a run from its output folder, comparable with other runs'; none where it has logged none. Of a run in
    stages those of all that train, their steps counted on.

    Steps without rollouts, of SFT, lose their entropy: it is that on the teacher's tokens.

    Args:
        stages: the stages' names in order; default: the stages that there are, in the order in which they were written.

    Raises:
        ValueError: as `read_metrics`.
    """
    folder = Path(folder)
    if stages is None:
        files = sorted(folder.glob(f"{STAGES}/*/{METRICS}"), key=lambda path: path.stat().st_mtime)
    else:
        files = [folder / STAGES / name / METRICS for name in stages]
    rows: list[dict[str, Any]] = []
    for path in filter(Path.is_file, [*files, folder / METRICS]):  # a stage that makes rollouts has none
        before = rows[-1]["step"] if rows else 0
        rows += [row | {"step": row["step"] + before} for row in read_metrics(path)]
    for row in rows:
        if "completions/mean_length" not in row:
            row.pop("entropy", None)
    return rows


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
