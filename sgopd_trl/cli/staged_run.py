"""The stages of a recipe one after another, as one run that can be stopped and goes on."""

import gc
import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..atomic_file import write_whole
from ..output_folder import STAGES, last_checkpoint
from .errors import UsageError
from .launch import launch_flags, split_launch_args, under_launcher
from .stages import Stage, check_stage, environment_kept, flag_groups, flag_value, read_stages


class StagedRun:
    """The stages of a recipe, all of them checked.

    Args:
        recipe, source: from `read_recipe`. argv: of the command line, `--config` included.
        command: only the stages with this command.

    Raises:
        UsageError: for a stage that cannot be understood, one that was finished with other settings, and under a launcher.
        ValueError: for a value out of range.
    """

    def __init__(self, recipe: dict[str, Any], source: str, argv: Sequence[str], command: str | None = None):
        self.launch, rest = split_launch_args(list(argv), launch_flags())
        if under_launcher(os.environ):
            raise UsageError(
                f"{source} has stages, which are launched one by one: start it without a launcher, as `sgopd train "
                "--config RECIPE --accelerate_config NAME`."
            )
        position = rest.index("--config")
        stages, resumes = read_stages(recipe, source, rest[:position] + rest[position + 2 :])
        self.stages = [stage for stage in stages if command in (None, stage.command)]
        if not self.stages:
            raise UsageError(f"{source} has no stage with `command: {command}`.")
        for stage in self.stages:
            check_stage(stage, source, self.launch)
        self.folder = Path(_output_dir(recipe, rest)) / STAGES
        self.resumes = resumes and command is None
        self.finished: list[Stage] = []
        for stage in self.stages if self.resumes else ():
            if not self._done(stage).exists():
                break
            _check_unchanged(stage, json.loads(self._done(stage).read_text(encoding="utf-8")))
            self.finished.append(stage)

    def run(self) -> int:
        """Runs what is not finished. Returns the exit code: of the first stage that fails, else 0."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for place, stage in enumerate(self.stages):
            title = f"Stage {place + 1} of {len(self.stages)}, {stage.name}"
            if stage in self.finished:
                print(f"{title}: finished before.", flush=True)
                continue
            for later in self.stages[place:]:
                self._done(later).unlink(missing_ok=True)
                if not self.resumes or later is not stage:
                    self._started(later).unlink(missing_ok=True)
            resume = self._resume_flags(stage)
            if not self._started(stage).exists():
                self._started(stage).touch()
            print(f"{title}: sgopd {stage.command}", flush=True)
            code = _run(stage, [*stage.argv(stage.write(self.folder), self.launch), *resume])
            if code != 0:
                return code
            write_whole(self._done(stage), json.dumps(_settings(stage)) + "\n")
        return 0

    def _done(self, stage: Stage) -> Path:
        return self.folder / f"{stage.name}.done"

    def _started(self, stage: Stage) -> Path:
        return self.folder / f"{stage.name}.started"

    def _resume_flags(self, stage: Stage) -> list[str]:
        """The last checkpoint that the stage itself has saved: its folder may hold an earlier run's."""
        if stage.command != "train" or not self._started(stage).exists():
            return []
        last = last_checkpoint(stage.recipe["output_dir"], since=self._started(stage).stat().st_mtime)
        return [] if last is None else ["--resume_from_checkpoint", str(last)]


def _output_dir(recipe: dict[str, Any], args: Sequence[str]) -> str:
    given = [flag_value(group) for name, group in flag_groups(args) if name == "output_dir"]
    return given[-1] if given else str(recipe.get("output_dir", "trainer_output"))


def _settings(stage: Stage) -> dict[str, Any]:
    """What a finished stage was run with, as JSON values."""
    return json.loads(json.dumps({"recipe": stage.recipe, "arguments": stage.options}, default=str))


def _check_unchanged(stage: Stage, finished: dict[str, Any]) -> None:
    """A stage that is skipped must be the one that was finished.

    Raises:
        UsageError: with what has changed.
    """
    now = _settings(stage)
    then, recipe = finished["recipe"], now["recipe"]
    changed = [
        f"`{key}` was {then.get(key)!r} and is {recipe.get(key)!r}"
        for key in sorted(then.keys() | recipe.keys())
        if then.get(key) != recipe.get(key)
    ]
    if finished["arguments"] != now["arguments"]:
        changed.append(f"its options were {finished['arguments']} and are {now['arguments']}")
    if changed:
        raise UsageError(
            f"Stage {stage.name!r} was finished with other settings: {'; '.join(changed)}. Set them back, or start "
            "without `resume_from_checkpoint`."
        )


def _run(stage: Stage, argv: list[str]) -> int:
    module = importlib.import_module(f".{stage.command.replace('-', '_')}", __package__)
    with environment_kept():
        code = module.main(argv)
    gc.collect()  # the stage's models
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return code
