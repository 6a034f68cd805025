r"""A dataset as the trainer wants it: `prompt`, `solution`, and the other columns untouched."""

import difflib
import operator
import re
import string
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

from .miniature import TASKS, make_dataset
from .rewards import boxed_answer


MINIATURE_SIZES = {"train": 4096, "test": 256}
_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_RULE = re.compile(r"\s*(?P<column>.+?)\s*(?P<operator>==|!=|>=|<=|>|<)\s*(?P<value>.+?)\s*")


@dataclass(frozen=True)
class DataFormat:
    """How rows become prompts and solutions.

    Attributes:
        prompt_column: column with the question; default: `prompt`, or what the template names.
        prompt_template: `str.format` template whose fields are column names.
        system_prompt: system message before every prompt.
        answer_column: column with the gold answer; default: `solution`, where there is one.
        box_answer: write golds as `\\boxed{...}`; boxed ones stay as they are.
        conversational: prompts as a list of messages, else as text.
        teacher_column: column that names each row's teacher, where there are several; default: `teacher`.
    """

    prompt_column: str | None = None
    prompt_template: str | None = None
    system_prompt: str | None = None
    answer_column: str | None = None
    box_answer: bool = True
    conversational: bool = True
    teacher_column: str | None = None


def load_split(
    name: str,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    also: Collection[str] = (),
) -> Dataset:
    """Load one split by its name: `miniature` or `miniature-hard`, a file or a pattern of files, a folder, or a Hub id.

    Args:
        name: what to load. A file holds one split, whatever it is called. config, revision: for the Hub.
        also: names that the caller knows beside the tasks', for a suggestion.

    Raises:
        FileNotFoundError: for a file or folder that does not exist. ValueError: for a file that cannot be read.
        OSError: for a dataset that the Hub does not have, or that it cannot be asked for.
    """
    if name in TASKS:
        return make_dataset(split, MINIATURE_SIZES.get(split, 1), task=name)
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "dataset_dict.json").is_file():
            splits = load_from_disk(str(path))
            if split not in splits:
                raise ValueError(f"The dataset in {name} has no split {split!r}, only {', '.join(splits)}.")
            return splits[split]
        if (path / "state.json").is_file():
            return load_from_disk(str(path))
        return load_dataset(str(path), config, split=split)
    if path.suffix in _FORMATS:
        if not path.is_file() and not re.search(r"[*?\[]", name):
            raise FileNotFoundError(f"The dataset file {name} does not exist (looked for it in {Path.cwd()}).")
        try:
            return load_dataset(_FORMATS[path.suffix], data_files={split: str(path)}, split=split)
        except DatasetGenerationError as error:
            raise ValueError(f"The dataset file {name} cannot be read: {error.__cause__ or error}") from error
        except StopIteration as error:
            raise ValueError(f"The dataset file {name} is empty.") from error
    if path.is_file():
        raise ValueError(f"The dataset file {name} must end in {', '.join(_FORMATS)}, got {path.suffix!r}.")
    if path.is_absolute() or name.startswith((".", "~")):
        raise FileNotFoundError(f"The dataset folder {name} does not exist.")
    try:
        return load_dataset(name, config, split=split, revision=revision)
    except OSError as error:
        near = difflib.get_close_matches(name, [*TASKS, *also], n=1)
        if not near:
            raise
        raise OSError(f"{error}. Did you mean {near[0]!r}?") from error


def matching_rows(dataset: Dataset, rule: str | None) -> list[int]:
    """Numbers of the rows for which a rule such as "difficulty >= 6" holds; all of them without a rule.

    Args:
        rule: column, operator (one of == != >= <= > <), and a value in YAML.

    Raises:
        ValueError: for a rule that cannot be read, names no column, cannot be compared with a row, or keeps none.
    """
    if rule is None:
        return list(range(len(dataset)))
    match = _RULE.fullmatch(rule)
    if match is None:
        raise ValueError(
            f"`dataset_filter` must be a column, one of {' '.join(_OPERATORS)} and a value, as 'difficulty >= 6'; got "
            f"{rule!r}."
        )
    column, compare = match["column"], _OPERATORS[match["operator"]]
    value = yaml.safe_load(match["value"])
    _check_column(dataset, column, "dataset_filter")
    kept = []
    for number, cell in enumerate(dataset[column]):
        try:
            if compare(cell, value):
                kept.append(number)
        except TypeError as error:
            raise ValueError(
                f"`dataset_filter` {rule!r} cannot compare {value!r} with row {number}, whose {column!r} is {cell!r}."
            ) from error
    if not kept:
        raise ValueError(
            f"`dataset_filter` {rule!r} keeps no row of {len(dataset)}; the first has {dataset[0][column]!r}."
        )
    return kept


def prepare_dataset(
    dataset: Dataset, form: DataFormat, rule: str | None = None, max_samples: int | None = None
) -> Dataset:
    """Filter rows, cut their number, and give them `prompt`, `solution` and `teacher`; the other columns stay.

    Args:
        rule: as in `matching_rows`. max_samples: keep the first rows, this many.

    Raises:
        ValueError: for columns that do not exist, a template that cannot be read, and rows whose prompt or answer is
            missing or empty, with the row's number in the dataset as it was loaded.
    """
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"`max_train_samples` must be at least 1, got {max_samples}.")
    fields = _prompt_fields(dataset, form)
    answer = form.answer_column
    if answer is None and form.box_answer and "solution" in dataset.column_names:
        answer = "solution"
    if answer is not None:
        _check_column(dataset, answer, "dataset_answer_column")
    if form.teacher_column is not None:
        _check_column(dataset, form.teacher_column, "dataset_teacher_column")
    numbers = matching_rows(dataset, rule)[:max_samples]
    if not numbers:
        raise ValueError("The dataset has no rows.")
    # Read before mapping: a bad row is refused before any row is rewritten
    prompts, solutions = [], []
    for number, row in zip(numbers, dataset.select(numbers), strict=True):
        prompts.append(_prompt(row, fields, form, number))
        if answer is not None:
            solutions.append(_solution(row[answer], answer, form.box_answer, number))
    chosen = dataset.select(numbers).remove_columns([name for name in ("prompt",) if name in dataset.column_names])
    chosen = chosen.add_column("prompt", prompts)
    if answer is not None:
        if "solution" in chosen.column_names:
            chosen = chosen.remove_columns("solution")
        chosen = chosen.add_column("solution", solutions)
    if form.teacher_column not in (None, "teacher"):
        chosen = chosen.remove_columns([name for name in ("teacher",) if name in chosen.column_names])
        chosen = chosen.add_column("teacher", chosen[form.teacher_column])
    return chosen


def _check_column(dataset: Dataset, column: str, setting: str) -> None:
    if column not in dataset.column_names:
        columns = ", ".join(dataset.column_names)
        raise ValueError(f"`{setting}` names the column {column!r}, but the dataset's columns are {columns}.")


def _prompt_fields(dataset: Dataset, form: DataFormat) -> Sequence[str]:
    """The columns that a prompt is made of."""
    if form.prompt_template is None:
        column = form.prompt_column or "prompt"
        if column not in dataset.column_names and form.prompt_column is None:
            raise ValueError(
                f"The dataset has no column 'prompt', only {', '.join(dataset.column_names)}. Set "
                "`dataset_prompt_column` or `prompt_template`."
            )
        _check_column(dataset, column, "dataset_prompt_column")
        return [column]
    braces = r"A literal brace is written twice, as in \boxed{{}}."
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(form.prompt_template) if name is not None]
    except ValueError as error:
        raise ValueError(f"`prompt_template` {form.prompt_template!r}: {error}. {braces}") from error
    fields = [re.split(r"[.\[]", name)[0] for name in names]
    for name in fields:
        if name not in dataset.column_names:
            raise ValueError(
                f"`prompt_template` has the field {{{name}}}, but the dataset's columns are "
                f"{', '.join(dataset.column_names)}. {braces}"
            )
    if not fields:
        example = f"{{{dataset.column_names[0]}}}"
        raise ValueError(f"`prompt_template` must name a column, as {example}; got {form.prompt_template!r}.")
    if form.prompt_column is not None and form.prompt_column not in fields:
        raise ValueError(
            f"`prompt_template` does not use `dataset_prompt_column`: write {{{form.prompt_column}}} into it, or leave "
            "`dataset_prompt_column` out."
        )
    return fields


def _prompt(row: dict[str, Any], fields: Sequence[str], form: DataFormat, number: int) -> str | list[dict[str, str]]:
    for column in fields:
        cell = row[column]
        if cell is None or not (cell.strip() if isinstance(cell, str) else cell != []):
            raise ValueError(f"Row {number} has no prompt: its column {column!r} is {cell!r}. Drop or correct the row.")
    prompt = row[fields[0]] if form.prompt_template is None else form.prompt_template.format(**row)
    if isinstance(prompt, list):
        if not form.conversational:
            raise ValueError(
                f"The prompt of row {number} is a list of messages, but prompts are to be plain text (the tokenizer "
                "has no chat template, or `conversational: false`). Use a tokenizer with a chat template."
            )
        messages = prompt
    elif not isinstance(prompt, str):
        raise ValueError(f"The prompt of row {number} must be text or a list of messages, got {prompt!r}.")
    elif form.conversational:
        messages = [{"role": "user", "content": prompt}]
    else:
        return f"{form.system_prompt}\n\n{prompt}" if form.system_prompt else prompt
    if form.system_prompt:
        return [{"role": "system", "content": form.system_prompt}, *messages]
    return messages


def _solution(cell: Any, column: str, box: bool, number: int) -> str:
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        problem = f"is {cell!r}" if cell is None else f"must be text or a number, got {cell!r}"
        raise ValueError(
            f"Row {number} has no answer: its column {column!r} {problem}. Drop or correct the row, or set "
            "`box_answer: false` without `dataset_answer_column` to leave the answers alone."
        )
    text = str(cell).strip()
    if not text:
        raise ValueError(f"Row {number} has no answer: its column {column!r} is empty. Drop or correct the row.")
    return f"\\boxed{{{text}}}" if box and boxed_answer(text) is None else text
