"""The arguments of `sgopd train`: TRL's parser, with every key and value of a recipe checked before it is used."""

import argparse
import difflib
import enum
import json
import types
import typing
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from trl import ModelConfig, TrlParser

from ..baselines.config import GKDConfig, GRPOBaselineConfig, SFTBaselineConfig
from ..config import SGOPDConfig
from .errors import UsageError


@dataclass(frozen=True)
class TrainerKind:
    """What `trainer: NAME` takes.

    Attributes:
        config: the class of its settings. needed: those that it cannot do without, with an example.
        unused: the command's settings that mean nothing to it, with what to do instead.
    """

    config: type
    needed: dict[str, str]
    unused: dict[str, str] = field(default_factory=dict)


_MODEL = {"model_name_or_path": "Qwen/Qwen3-1.7B or miniature:guess"}
_DATA = {"dataset_name": "data.jsonl or miniature"}
_VERIFIER = {"reward_funcs": "accuracy_reward or exact_answer_reward"}

TRAINERS = {
    "sgopd": TrainerKind(
        SGOPDConfig,
        _MODEL | _DATA | _VERIFIER,
        {"teacher_rollouts": "`teacher_sampling_filter_correct` says whether only verified ones are learned"},
    ),
    "sft": TrainerKind(
        SFTBaselineConfig,
        _MODEL | {"teacher_bank": "runs/teacher-rollouts"},
        {"max_train_samples": "its data are the rollouts in `teacher_bank`: give it to `sgopd teacher-rollouts`"},
    ),
    "gkd": TrainerKind(GKDConfig, _MODEL | {"teacher_model_name_or_path": "Qwen/Qwen3-4B or miniature:clean"} | _DATA),
    "grpo": TrainerKind(
        GRPOBaselineConfig, _MODEL | _DATA | _VERIFIER, {"teacher_rollouts": "it has no teacher; leave it out"}
    ),
}


@dataclass
class SGOPDScriptArguments:
    """What `sgopd train` needs beside the trainer's and the model's arguments: which trainer, data and verifier."""

    trainer: str = field(
        default="sgopd",
        metadata={
            "help": "sgopd: this package's, with OPD and ExOPD as settings. Baselines by TRL's trainers: sft on the teacher's "
            "rollouts, gkd, grpo. `--trainer NAME --help` lists the settings of each.",
            "choices": list(TRAINERS),
        },
    )
    teacher_rollouts: str | None = field(
        default=None,
        metadata={
            "help": "Which rollouts of `teacher_bank` `trainer: sft` and the off-policy share of `trainer: gkd` train on: "
            "verified (default of sft), or all of them (default of gkd), which makes sft SeqKD.",
            "choices": ["verified", "all"],
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after this many evaluations without a better `metric_for_best_model`, such as avg@8. Needs "
            "`eval_strategy` and `load_best_model_at_end`."
        },
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Training data: a Hub id, a folder, a .jsonl, .json or .parquet file (or a pattern of files), or "
            "'miniature' or 'miniature-hard'."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset of the Hub."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Revision of a dataset of the Hub."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(
        default="test", metadata={"help": "Split to evaluate on, where `eval_strategy` is not 'no'."}
    )
    dataset_filter: str | None = field(
        default=None,
        metadata={
            "help": "Keep the rows for which this holds: a column, an operator, a value, as 'difficulty >= 6'. Not of a bank: "
            "the rows that `trainer: sft` trains on are those whose rollouts were made; there it is for evaluation."
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Keep the first rows only, this many, after the filter."}
    )
    dataset_prompt_column: str | None = field(
        default=None,
        metadata={"help": "Column with the question. Default: `prompt`, or what `prompt_template` names."},
    )
    prompt_template: str | None = field(
        default=None,
        metadata={
            "help": "The prompt, as a str.format template whose fields are column names; a literal brace is written "
            "twice: '{question} Put the answer within \\boxed{{}}.'"
        },
    )
    system_prompt: str | None = field(default=None, metadata={"help": "System message before every prompt."})
    conversational: bool | None = field(
        default=None,
        metadata={
            "help": "Prompts as chat messages or as plain text. Default: as the tokenizer has a template or not."
        },
    )
    dataset_answer_column: str | None = field(
        default=None, metadata={"help": "Column with the gold answer, which becomes `solution`. Default: `solution`."}
    )
    dataset_teacher_column: str | None = field(
        default=None,
        metadata={
            "help": "Column that says which of the `teachers` each row has, which becomes `teacher`. Default: `teacher`."
        },
    )
    box_answer: bool = field(
        default=True,
        metadata={
            "help": "Write gold answers as \\boxed{...}, which TRL's accuracy_reward needs to read LaTeX. Boxed ones "
            "stay as they are."
        },
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "The verifier: math, exact, numeric, choice or code (docs/verifiers.md); exact_answer_reward, "
            "line_verifier; TRL's accuracy_reward, think_format_reward, reasoning_accuracy_reward; or an import path such "
            "as my_lib.rewards.my_reward, of a TRL reward function or of a judge (completion, gold)."
        },
    )
    verifier_settings: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Settings of the verifiers, by their name: {numeric: {tolerance: 1.0e-3}}."},
    )

    def __post_init__(self):
        if isinstance(self.reward_funcs, str):  # a single name in a recipe
            self.reward_funcs = [self.reward_funcs]
        if isinstance(self.verifier_settings, str):  # on the command line
            try:
                self.verifier_settings = json.loads(self.verifier_settings)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"`verifier_settings` must be a JSON object, got {self.verifier_settings!r}."
                ) from error

        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise ValueError(f"`early_stopping_patience` must be >= 1, got {self.early_stopping_patience!r}.")


TEACHERS = ("teacher_model_name_or_path", "teacher_server_url", "teachers", "teacher_recorded_path")


class Parser(TrlParser):
    """TRL's parser without abbreviations, whose errors are one message in place of pages of usage.

    Args:
        trainer: whose settings it knows, beside those of the command and the model.
    """

    def __init__(self, trainer: str = "sgopd", **kwargs: Any):
        self.hints = {name: hint for cls in dataclasses(trainer) for name, hint in typing.get_type_hints(cls).items()}
        super().__init__(dataclasses(trainer), prog="sgopd train", allow_abbrev=False, **kwargs)

    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"{message}. `sgopd train --help` lists the arguments.")


def dataclasses(trainer: str) -> tuple[type, type, type]:
    """The classes of the command's, the trainer's and the model's arguments."""
    return SGOPDScriptArguments, TRAINERS[trainer].config, ModelConfig


def trainer_name(args: Sequence[str], recipe: dict[str, Any]) -> str:
    """The trainer that the command line, else the recipe, names; default `sgopd`.

    Raises:
        UsageError: with the nearest one there is.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--trainer", nargs="?")
    named = vars(parser.parse_known_args(args)[0]).get("trainer") or recipe.get("trainer") or "sgopd"
    if named not in TRAINERS:
        hint = nearest(str(named), TRAINERS)
        raise UsageError(f"`trainer` must be one of {', '.join(TRAINERS)}, got {named!r}.{hint}")
    return named


def check_recipe(recipe: dict[str, Any], source: str, also: Collection[str] = (), trainer: str = "sgopd") -> None:
    """Refuse keys that no argument has, and values that an argument cannot take.

    Args:
        recipe: from `read_recipe`. source: its name, for messages. also: further keys, which are not looked into.
        trainer: whose settings they are.

    Raises:
        UsageError: with the nearest valid key, or with what the value must be.
    """
    parser = Parser(trainer)
    actions: dict[str, argparse.Action] = {}
    for action in parser._actions:
        actions.setdefault(action.dest, action)  # the first; `--no_x` comes after `--x`
    actions = {dest: action for dest, action in actions.items() if dest in parser.hints}
    for key, value in recipe.items():
        if key in actions:
            _check_value(actions[key], parser.hints[key], value, f"{source}: `{key}`")
        elif key not in also and key != "env":
            hint = _of_others(str(key), trainer) or nearest(str(key), [*actions, *also])
            raise UsageError(f"Unknown key {key!r} in {source}.{hint}")


def check_command_line(
    args: list[str], recipe: dict[str, Any], also: Collection[str] = (), trainer: str = "sgopd"
) -> argparse.Namespace:
    """Refuse flags that no argument has, flags whose value is missing or of the wrong type, and stray words.

    Args:
        args: without the launch flags. recipe: from `read_recipe`. also: names of further flags, for suggestions.
        trainer: whose settings they are.

    Returns:
        the values of the recipe and of the command line, before any dataclass is made of them.

    Raises:
        UsageError: naming the argument, with the nearest valid one, or naming what is missing.
    """
    if "--config" in args:
        position = args.index("--config")
        args = args[:position] + args[position + 2 :]
    parser = Parser(trainer)
    parser.set_defaults_with_config(**recipe)
    values, unknown = parser.parse_known_args(args)
    _refuse_unknown(unknown, parser, {*also, "config"}, trainer)
    for name, example in TRAINERS[trainer].needed.items():
        if not getattr(values, name):
            raise UsageError(f"`{name}` is needed, in the recipe (--config) or as --{name}; for example {example}.")
    for name, instead in TRAINERS[trainer].unused.items():
        if getattr(values, name) is not None:
            raise UsageError(f"`{name}` = {getattr(values, name)} means nothing to `trainer: {trainer}`: {instead}.")
    if trainer == "sgopd" and not any(getattr(values, name) for name in TEACHERS):
        raise UsageError(
            f"A teacher is needed, in the recipe (--config) or on the command line: one of {', '.join(TEACHERS)}; for "
            "example --teacher_model_name_or_path Qwen/Qwen3-4B or miniature:clean."
        )
    return values


def stated_values(args: Sequence[str], also: Collection[str] = (), trainer: str = "sgopd") -> dict[str, Any]:
    """What flags state, by key and as a recipe would have it. Arguments as `check_command_line`'s.

    Raises:
        UsageError: as `check_command_line`, for flags and values.
    """
    parser = Parser(trainer)
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    values, unknown = parser.parse_known_args(args)
    _refuse_unknown(unknown, parser, also, trainer)
    return {key: value.value if isinstance(value, enum.Enum) else value for key, value in vars(values).items()}


def _refuse_unknown(unknown: Sequence[str], parser: Parser, also: Collection[str], trainer: str) -> None:
    if not unknown:
        return
    flag = unknown[0].partition("=")[0]
    if not flag.startswith("-"):
        hint = f" Did you mean '--config {unknown[0]}'?" if unknown[0].endswith((".yaml", ".yml")) else ""
        raise UsageError(f"Unexpected argument {unknown[0]!r}.{hint}")
    name = flag.lstrip("-").replace("-", "_")
    names = {option.lstrip("-").replace("-", "_") for option in parser._option_string_actions}
    hint = _of_others(name, trainer) or nearest(name, names | {*also}, prefix="--")
    raise UsageError(f"Unknown argument {flag!r}.{hint}")


def _of_others(key: str, trainer: str) -> str:
    others = [name for name in TRAINERS if key in TRAINERS[name].config.__dataclass_fields__]
    return f" It is a setting of `trainer: {'`, `'.join(others)}`, not of `{trainer}`." if others else ""


def nearest(name: str, valid: Collection[str], prefix: str = "") -> str:
    """' Did you mean ...?' with the nearest valid name, or nothing where none is near."""
    match = difflib.get_close_matches(name, sorted(valid), n=1)
    return f" Did you mean '{prefix}{match[0]}'?" if match else ""


def _check_value(action: argparse.Action, hint: Any, value: Any, where: str) -> None:
    if value is None or (action.dest == "resume_from_checkpoint" and isinstance(value, bool)):
        return
    classes = _classes(hint)
    if isinstance(value, str):
        if str not in classes:  # argparse converts text, or fails with a message of its own
            _convert(action, value, where)
    elif not (type(value) in classes or (type(value) is int and float in classes)):
        expected = " or ".join(sorted(cls.__name__ for cls in classes if cls is not type(None)))
        if action.choices:
            expected = f"one of {', '.join(map(str, action.choices))}"
        hint = f'; quote it to have text: "{_yaml_word(value)}"' if str in classes else ""
        raise UsageError(f"{where} must be {expected}, got {value!r}{hint}.")
    elif isinstance(value, list) and action.nargs == "+":
        for element in value:
            _convert(action, str(element), where)
    if action.choices and not isinstance(value, list) and str(value) not in map(str, action.choices):
        raise UsageError(f"{where} must be one of {', '.join(map(str, action.choices))}, got {value!r}.")


def _convert(action: argparse.Action, text: str, where: str) -> None:
    try:
        action.type(text)
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        kind = getattr(action.type, "__name__", "value").replace("string_to_bool", "true or false")
        raise UsageError(f"{where} must be {kind}, got {text!r}.") from error


def _classes(hint: Any) -> set[type]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return set().union(*map(_classes, typing.get_args(hint)))
    if typing.get_origin(hint) is typing.Literal:
        return {type(choice) for choice in typing.get_args(hint)}
    cls = typing.get_origin(hint) or hint
    if not isinstance(cls, type):
        return set()
    # The elements of a list may be given as one text: TRL's recipes write `lora_target_modules: all-linear`
    return {cls, str} if issubclass(cls, enum.Enum) or hint == list[str] else {cls}


def _yaml_word(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
