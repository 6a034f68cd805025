r"""The benchmarks by name, and any dataset's problems as an evaluation asks them."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..miniature.task import TASKS


if TYPE_CHECKING:
    from datasets import Dataset


# That of recipes/Qwen3-1.7B: the paper gives none
INSTRUCTION = "\n\nPlease reason step by step, and put your final answer within \\boxed{{}}."
QUESTIONS = ("problem", "question")
ANSWERS = ("answer", "final_answer", "solution", "gold")  # in HuggingFaceH4/aime_2024 `solution` is a worked one


# What `sgopd eval` calls the settings of `sgopd train` that mistakes are reported under
_OPTIONS = {
    "`max_train_samples`": "`max_problems`",
    "`dataset_prompt_column`": "`prompt_column`",
    "`dataset_answer_column`": "`answer_column`",
}


@dataclass(frozen=True)
class Benchmark:
    """A dataset and the columns that an evaluation takes of it.

    Args:
        source: name, file, folder or Hub id. config, split, revision: of a Hub id.
        prompt_column: with the question; default: `prompt`, which is used as it is, or the first there is of `QUESTIONS`.
        answer_column: with the gold answer; default: `solution` beside a `prompt`, else the first there is of `ANSWERS`.
        prompt_template: `str.format` template over the columns; default: the question and `INSTRUCTION`.
        box_answer: write golds as `\\boxed{...}`.
        name: in the results, and of their folder; default: the last part of `source`.

    Raises:
        ValueError: when `source` has no such part.
    """

    source: str
    config: str | None = None
    split: str = "test"
    revision: str | None = None
    prompt_column: str | None = None
    answer_column: str | None = None
    prompt_template: str | None = None
    box_answer: bool = True
    name: str = ""

    def __post_init__(self):
        if not self.name:
            # Absolute, so that `.` and `..` have a name; a link keeps its own
            path = Path(os.path.abspath(self.source)) if os.path.isdir(self.source) else Path(self.source)
            object.__setattr__(self, "name", path.stem if self._is_file else path.name)
        if self.name in ("", ".", ".."):
            raise ValueError(
                f"`dataset` {self.source!r} has no name for its results. Name a file, a folder or a Hub id."
            )

    @property
    def has_configs(self) -> bool:
        """Whether there may be several configurations: on the Hub, and in a folder as the Hub has them."""
        saved = any((Path(self.source) / name).is_file() for name in ("dataset_dict.json", "state.json"))
        return not (self._is_file or saved or self.source in TASKS)

    @property
    def _is_file(self) -> bool:
        return Path(self.source).suffix in (".jsonl", ".json", ".parquet")


# Section 5.1 names the four benchmarks and no source; these are usual ones, with `problem` and `answer`. docs/evaluation.md
BENCHMARKS = {
    "aime24": Benchmark("HuggingFaceH4/aime_2024", split="train", name="aime24"),
    "aime25": Benchmark("math-ai/aime25", split="test", name="aime25"),
    "hmmt25_feb": Benchmark("MathArena/hmmt_feb_2025", split="train", name="hmmt25_feb"),
    "hmmt25_nov": Benchmark("MathArena/hmmt_nov_2025", split="train", name="hmmt25_nov"),
}


@dataclass(frozen=True)
class Problems:
    """P problems of one benchmark.

    Args:
        name: of the benchmark. rows: with `prompt`, `solution` and the dataset's other columns. template: that was used.
    """

    name: str
    rows: "Dataset"
    template: str | None

    def keys(self) -> list[str]:
        """(P,) hashes of prompt and gold, by which runs know that they have the same problems."""
        pairs = zip(self.rows["prompt"], self.rows["solution"], strict=True)
        return [hashlib.sha256(json.dumps(pair, sort_keys=True).encode()).hexdigest()[:16] for pair in pairs]


def find_benchmarks(sources: Sequence[str], **settings: Any) -> list[Benchmark]:
    """The benchmarks of `--dataset`.

    Args:
        sources: names in `BENCHMARKS`, files, folders, Hub ids. settings: fields of `Benchmark` for all of them; `None`
            leaves the benchmark's own.

    Raises:
        ValueError: when two have the same name, or `config` is given for what has none.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    found = [replace(BENCHMARKS.get(source, Benchmark(source)), **given) for source in sources]
    for benchmark in found:
        if benchmark.config is not None and not benchmark.has_configs:
            raise ValueError(
                f"`dataset_config` {benchmark.config!r} would do nothing with {benchmark.source}: it is of a Hub id."
            )
    names = [benchmark.name for benchmark in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"`dataset` names {', '.join(twice)} twice: results are kept by the last part of a name. Rename the files, or "
            "evaluate them into two output folders."
        )
    return found


def load_problems(benchmark: Benchmark, conversational: bool, system_prompt: str | None, limit: int | None) -> Problems:
    """Loads a benchmark and makes its prompts.

    Args:
        conversational: prompts as messages, for a tokenizer with a chat template. system_prompt: before every one.
        limit: keep the first problems, this many.

    Raises:
        ValueError: for columns that are missing and rows without a question or an answer. OSError: when the dataset cannot
            be had.
    """
    from ..data import DataFormat, load_split, prepare_dataset

    dataset = load_split(benchmark.source, benchmark.split, benchmark.config, benchmark.revision, also=BENCHMARKS)
    columns = dataset.column_names
    template, prompt_column = benchmark.prompt_template, benchmark.prompt_column
    if template is None:
        prompt_column = prompt_column or _first(("prompt", *QUESTIONS), columns, benchmark, "prompt_column")
        if prompt_column in columns and prompt_column != "prompt" and isinstance(dataset[0][prompt_column], str):
            template = "{" + prompt_column + "}" + INSTRUCTION
    answers = ("solution", *ANSWERS) if prompt_column == "prompt" else ANSWERS
    form = DataFormat(
        prompt_column=prompt_column,
        prompt_template=template,
        system_prompt=system_prompt,
        answer_column=benchmark.answer_column or _first(answers, columns, benchmark, "answer_column"),
        box_answer=benchmark.box_answer,
        conversational=conversational,
    )
    try:
        rows = prepare_dataset(dataset, form, max_samples=limit)
    except ValueError as error:
        message = str(error)
        for theirs, ours in _OPTIONS.items():
            message = message.replace(theirs, ours)
        raise ValueError(f"{benchmark.source}: {message}") from error
    return Problems(benchmark.name, rows, template)


def _first(candidates: Sequence[str], columns: Sequence[str], benchmark: Benchmark, setting: str) -> str:
    for name in candidates:
        if name in columns:
            return name
    raise ValueError(
        f"{benchmark.source} has the columns {', '.join(columns)}, and none of {', '.join(candidates)}. Set `{setting}`."
    )
