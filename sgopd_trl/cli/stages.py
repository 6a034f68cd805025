"""`stages:` of a recipe: what each stage is given, checked before the first one begins."""

import argparse
import copy
import dataclasses
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..gate_config import GateConfig
from ..output_folder import STAGES
from ..rollout_bank import identity_hash
from ..vocabulary_config import VocabularyConfig
from .arguments import TRAINERS, Parser, SGOPDScriptArguments, nearest, stated_values, trainer_name
from .errors import UsageError
from .launch import launch_flags


HELP = """A recipe may have stages, which run one after another:

  stages:
    - {name: rollouts, command: teacher-rollouts, prompts: all}
    - {name: sft, trainer: sft, max_steps: 35}
    - {name: gate, max_steps: 65}

The recipe's other keys go to every stage that knows them; a stage's own go before them. A stage works in
output_dir/_stages/NAME, the last one in output_dir, which is all that `push_to_hub` pushes. A train stage starts from the model of the train stage before it, unless it
names a `model_name_or_path`; that model is also the default reference. On the command line --KEY VALUE changes the
recipe's key for all stages, and is refused where a stage states that key itself; --NAME.KEY VALUE changes one stage.
With `--resume_from_checkpoint true` finished stages are skipped, and the one under way goes on from its last checkpoint.
Where no `teacher_bank` is named, the stages share one in output_dir. `--accelerate_config` and `accelerate launch`'s own
flags hold for every stage."""

COMMANDS = ("train", "teacher-rollouts")
_OWN = {"train": (), "teacher-rollouts": ("prompts", "batch_size")}  # options that are not training arguments
# What the student's loss depends on, and the teacher's rollouts do not
_OF_THE_LOSS = {field.name for config in (GateConfig, VocabularyConfig) for field in dataclasses.fields(config)}
# What the rollouts of all prompts depend on: data and verifier, teacher and sampling; the tokenizer is the student's. Not how
# a server is reached: the bank itself knows whose rollouts it holds
_OF_ALL_ROLLOUTS = {field.name for field in dataclasses.fields(SGOPDScriptArguments)} - {
    *("trainer", "teacher_rollouts", "early_stopping_patience", "dataset_test_split")
} | {
    *("teacher_model_name_or_path", "teacher_model_revision", "teacher_model_init_kwargs", "teacher_server_model"),
    *("teachers", "teacher_rollouts_per_prompt", "teacher_temperature", "teacher_top_p", "teacher_top_k"),
    *("teacher_max_completion_length", "max_completion_length", "max_prompt_length", "chat_template_kwargs", "seed"),
    *("answer_column", "correct_reward_threshold", "zero_truncated_reward", "reward_weights"),
    *("model_name_or_path", "model_revision", "trust_remote_code"),
}
# Of the run as a whole, where no stage states them: stages are given theirs
_RUN = ("output_dir", "model_name_or_path", "resume_from_checkpoint", "teacher_bank")
_RESULT = ("push_to_hub",)  # of the last stage, unless another states it


@dataclass
class Stage:
    """One command of a staged recipe.

    Attributes:
        name: of the stage. command: "train" or "teacher-rollouts". trainer: whose settings it knows.
        stated: its own keys. given: those of them that the command line states. recipe: these and the recipe's, as a recipe
        of its own. options: the command's own flags.
    """

    name: str
    command: str
    trainer: str
    stated: dict[str, Any]
    given: set[str] = field(default_factory=set)
    recipe: dict[str, Any] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)

    def argv(self, file: Path, launch: Sequence[str] = ()) -> list[str]:
        """The command line of the command, with this stage's recipe in `file`."""
        return [*self.options, "--config", str(file), *launch]

    def write(self, folder: Path) -> Path:
        """Writes its recipe as `folder/NAME.yaml`."""
        file = folder / f"{self.name}.yaml"
        file.write_text(yaml.safe_dump(self.recipe, sort_keys=False), encoding="utf-8")
        return file


def is_staged(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe has stages."""
    return "stages" in recipe


def read_stages(recipe: dict[str, Any], source: str, args: Sequence[str] = ()) -> tuple[list[Stage], bool]:
    """The stages of a recipe, and whether finished ones are to be skipped.

    Args:
        recipe, source: from `read_recipe`. args: further arguments of the command line, without launch flags.

    Raises:
        UsageError: naming the stage or key that cannot be understood.
    """
    top = {key: value for key, value in recipe.items() if key != "stages"}
    stages = [_stage(entry, number, source) for number, entry in enumerate(_entries(recipe, source), 1)]
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names):
        raise UsageError(f"{source}: two stages have one name, got {names}.")
    of_run = {key for key in _RUN if not any(key in stage.stated for stage in stages)}
    launch = launch_flags()
    groups = _state(stages, flag_groups(args), launch, top, source)
    top |= {name: flag_value(group) for name, group in groups if name in of_run}  # the last one, as argparse has it
    groups = [(name, group) for name, group in groups if name not in of_run]
    resumes = str(top.pop("resume_from_checkpoint", False)).lower()
    if resumes not in ("true", "false", "none"):
        raise UsageError(f"`resume_from_checkpoint` of a recipe with stages must be true or false, got {resumes!r}.")
    output_dir = Path(str(top.pop("output_dir", "trainer_output")))
    keys = {stage.name: {*_known(stage), *launch, "accelerate_config"} for stage in stages}
    for stage in stages[:-1]:
        keys[stage.name].difference_update(_RESULT)
    for key in top:
        if key != "env" and not any(key in known for known in keys.values()):
            hint = _of_a_stage(stages, str(key)) or nearest(str(key), set().union(*keys.values()))
            raise UsageError(f"Unknown key {key!r} in {source}: no stage knows it.{hint}")
    overridden = _overrides(stages, keys, groups)
    before: Stage | None = None  # the train stage before
    for stage in stages:
        last = stage is stages[-1]
        stage.recipe = {key: value for key, value in top.items() if key == "env" or key in keys[stage.name]}
        if stage.command != "train":
            stage.recipe.pop("trainer", None)
        stage.recipe |= overridden[stage.name]
        stage.recipe |= {key: value for key, value in stage.stated.items() if key not in _OWN[stage.command]}
        stage.recipe["output_dir"] = str(output_dir if last else output_dir / STAGES / stage.name)
        stage.options = [
            part for key in _OWN[stage.command] if key in stage.stated for part in (f"--{key}", str(stage.stated[key]))
        ]
        if stage.command == "train":
            if before is not None and "model_name_or_path" not in stage.stated:
                if before.recipe.get("use_peft"):
                    raise UsageError(
                        f"{source}: stage {stage.name!r} would start from {before.name!r}'s output, which is an adapter "
                        "(`use_peft`). Give it a `model_name_or_path`, such as the two merged."
                    )
                stage.recipe["model_name_or_path"] = before.recipe["output_dir"]
            before = stage
    _share_bank(stages, output_dir, keys)
    return stages, resumes == "true"


def _known(stage: Stage) -> set[str]:
    """The keys that a stage can use."""
    known = Parser(stage.trainer).hints.keys() - TRAINERS[stage.trainer].unused.keys()
    return known if stage.command == "train" else known - _OF_THE_LOSS


def _share_bank(stages: Sequence[Stage], output_dir: Path, keys: Mapping[str, set[str]]) -> None:
    """Where no bank is named, one in the output folder, whose name stands for what its rollouts depend on: the stages that
    train on all of a bank must not find another seed's there."""
    filling = [stage for stage in stages if stage.command == "teacher-rollouts"]
    if not filling or any("teacher_bank" in stage.recipe for stage in stages):
        return
    about = [_rollouts_of(stage) for stage in filling]
    bank = output_dir / f"_teacher_rollouts-{identity_hash({'stages': about})}"
    for stage in stages:
        if "teacher_bank" in keys[stage.name]:
            stage.recipe["teacher_bank"] = str(bank)


def _rollouts_of(stage: Stage) -> dict[str, Any]:
    """What the rollouts of a stage depend on: those of a run's prompts on its batches and steps too."""
    if stage.stated.get("prompts") != "all":
        return {"recipe": stage.recipe, "options": stage.options}
    return {key: value for key, value in stage.recipe.items() if key in _OF_ALL_ROLLOUTS}


def check_stage(stage: Stage, source: str, launch: Sequence[str] = ()) -> None:
    """Refuses keys, flags and values as the stage's command would, before any stage has begun.

    Raises:
        UsageError, ValueError: as the command, with the stage's name.
    """
    from .teacher_rollouts import read_options
    from .train import check

    with tempfile.TemporaryDirectory() as folder, environment_kept():
        try:
            argv = stage.argv(stage.write(Path(folder)), launch)
            if stage.command == "teacher-rollouts":
                _, argv = read_options(argv)
            check(argv, evaluates=stage.command == "train")
        except ValueError as error:
            raise type(error)(f"Stage {stage.name!r} of {source}: {error}") from error


def _entries(recipe: dict[str, Any], source: str) -> list[dict[str, Any]]:
    entries = recipe["stages"]
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f"{source}: `stages` must be a list of mappings, one a stage, got {entries!r}.")
    return entries


def _stage(entry: dict[str, Any], number: int, source: str) -> Stage:
    stated = copy.deepcopy(entry)
    name, command = stated.pop("name", None), stated.pop("command", "train")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UsageError(f"{source}: stage {number} needs a `name` of letters, digits, - and _, got {name!r}.")
    if name.startswith(PREFIX_CHECKPOINT_DIR):
        raise UsageError(f"{source}: a stage cannot be called {name!r}, which is the name of a checkpoint's folder.")
    if command not in COMMANDS:
        raise UsageError(
            f"{source}: `command` of stage {name!r} must be one of {', '.join(COMMANDS)}, got {command!r}."
        )
    return Stage(name, command, "sgopd", stated)


def _state(
    stages: Sequence[Stage],
    groups: Sequence[tuple[str, list[str]]],
    launch: Mapping[str, argparse.Action],
    top: Mapping[str, Any],
    source: str,
) -> list[tuple[str, list[str]]]:
    """Completes what stages state by `--STAGE.KEY VALUE`, with the checks of a key in the recipe. Returns the other flags."""
    of_stages: dict[str, list[tuple[str, list[str]]]] = {stage.name: [] for stage in stages}
    others = []
    for name, group in groups:
        stage_name, dot, key = name.rpartition(".")
        if not dot:
            others.append((name, group))
        elif stage_name not in of_stages:
            hint = nearest(stage_name, of_stages, prefix="--")
            raise UsageError(f"{group[0]!r}: there is no stage {stage_name!r}.{hint}")
        else:
            _, equals, value = group[0].partition("=")
            of_stages[stage_name].append((key, [f"--{key}{equals}{value}", *group[1:]]))
    for stage in stages:
        flags = of_stages[stage.name]
        try:
            if stage.command == "train":
                stage.trainer = trainer_name([token for _, group in flags for token in group], top | stage.stated)
            given = _values(stage, flags, launch)
        except UsageError as error:
            raise UsageError(f"Stage {stage.name!r} of {source}: {error}") from error
        stage.stated |= given
        stage.given = set(given)
        for key in stage.stated:
            _check_of_stage(stage, key, "The command line" if key in given else source)
    return others


def _values(
    stage: Stage, groups: Sequence[tuple[str, list[str]]], launch: Mapping[str, argparse.Action]
) -> dict[str, Any]:
    """The keys that flags of a stage state, with the values that they would have in its recipe."""
    values: dict[str, Any] = {}
    training: list[str] = []
    for key, group in groups:
        if key in _OWN[stage.command] or key == "accelerate_config" or key in launch:
            switch = key in launch and launch[key].nargs == 0
            values[key] = True if switch and len(group) == 1 and "=" not in group[0] else flag_value(group)
        else:
            training += group
    return values | stated_values(training, _OWN[stage.command], stage.trainer)


def _check_of_stage(stage: Stage, key: str, source: str) -> None:
    if key in ("output_dir", "resume_from_checkpoint", "env", "stages"):
        raise UsageError(f"{source}: `{key}` belongs beside `stages`, not in stage {stage.name!r}.")
    if stage.command != "train" and key in _OF_THE_LOSS:
        raise UsageError(f"{source}: `{key}` means nothing to stage {stage.name!r}, which only has the teacher answer.")


def _of_a_stage(stages: Sequence[Stage], key: str) -> str:
    owners = [stage.name for stage in stages if key in _OWN[stage.command]]
    return f" It belongs to stage {owners[0]!r}: on the command line --{owners[0]}.{key}." if owners else ""


def flag_groups(args: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Flags with their values, each under the name of its key, with `STAGE.` before it as it is written."""
    groups: list[tuple[str, list[str]]] = []
    for token in args:
        if token.startswith("--"):
            stage, dot, key = token[2:].partition("=")[0].rpartition(".")
            groups.append((f"{stage}{dot}{key.replace('-', '_')}", [token]))
        elif not groups:
            raise UsageError(f"Unexpected argument {token!r}.")
        else:
            groups[-1][1].append(token)
    return groups


def flag_value(group: list[str]) -> str:
    values = group[0].split("=", 1)[1:] + group[1:]
    if len(values) != 1:
        raise UsageError(f"Expected one value after {group[0].split('=', 1)[0]}, got {values}.")
    return values[0]


def _overrides(
    stages: Sequence[Stage], keys: Mapping[str, set[str]], groups: Sequence[tuple[str, list[str]]]
) -> dict[str, dict[str, Any]]:
    """What flags without a stage's name change, by the stages that know them. A stage's own flags go before them."""
    options = {
        stage.name: {
            option: action.dest
            for option, action in Parser(stage.trainer)._option_string_actions.items()
            if action.dest in keys[stage.name] | stage.stated.keys()
        }
        for stage in stages
    }
    flags: dict[str, list[str]] = {stage.name: [] for stage in stages}
    for name, group in groups:
        if name == "trainer":
            raise UsageError("--trainer cannot change a recipe with stages: name the `trainer` in the stage.")
        knowing = [stage for stage in stages if f"--{name}" in options[stage.name]]
        if not knowing:
            known = {option.lstrip("-").replace("-", "_") for names in options.values() for option in names}
            hint = _of_a_stage(stages, name) or nearest(name, known, prefix="--")
            raise UsageError(f"Unknown argument '--{name}': no stage knows it.{hint}")
        for stage in knowing:
            dest = options[stage.name][f"--{name}"]
            if dest in stage.given:
                continue
            if dest in stage.stated:
                raise UsageError(
                    f"--{name} would not reach stage {stage.name!r}, which states `{dest}` itself. Give it as "
                    f"--{stage.name}.{dest} to change that stage."
                )
            flags[stage.name] += group
    return {stage.name: stated_values(flags[stage.name], trainer=stage.trainer) for stage in stages}


@contextmanager
def environment_kept() -> Iterator[None]:
    """transformers notes the precision of a run in the environment, where it would pass for a launcher's."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
