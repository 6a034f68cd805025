"""Checks of a run's data, tokenizers and verifier, made before anything expensive starts."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from tqdm.auto import tqdm
from transformers import AutoProcessor, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TrainerState
from trl.data_utils import is_conversational
from trl.trainer.utils import get_config_model_id, global_then_local_main_first, is_async_callable

from .teacher_sampling import prompt_key


if TYPE_CHECKING:
    from .config import SGOPDConfig


logger = get_logger(__name__)

_SHOWN = 8


def load_student_tokenizer(model: str | PreTrainedModel, revision: str | None, trust_remote_code: bool):
    """The student's tokenizer, as `GRPOTrainer` would load it."""
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    return AutoProcessor.from_pretrained(
        name, revision=revision, truncation_side="left", padding_side="left", trust_remote_code=trust_remote_code
    )


@contextmanager
def cannot_load(what: str) -> Iterator[None]:
    """Says what could not be loaded: without a connection the Hub's own message does not."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{what} cannot be loaded: {error}") from error


def load_teacher_tokenizer(
    model: str | PreTrainedModel, revision: str | None, trust_remote_code: bool, role: str = "teacher"
) -> PreTrainedTokenizerBase | None:
    """The teacher's tokenizer, or `None` with a warning for a loaded model that names no place to load it from."""
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    if not name:
        logger.warning(
            f"The {role} is a loaded model without a name, so its tokenizer cannot be compared with the student's. For "
            "the teacher, pass `teacher_processing_class` to have it checked."
        )
        return None
    with cannot_load(f"The {role} {name}"):
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)


def check_tokenizers(
    student: PreTrainedTokenizerBase,
    other: PreTrainedTokenizerBase | None,
    role: str,
    model: str | PreTrainedModel,
    revision: str | None,
    args: "SGOPDConfig",
) -> None:
    """Student and teacher (or reference) must give every token the same id; embeddings may be padded differently.

    Args:
        other: the tokenizer of `model`; loaded where it is `None`. role: "teacher" or "reference", for the message.

    Raises:
        ValueError: naming the tokens that differ.
    """
    other = other or load_teacher_tokenizer(model, revision, args.trust_remote_code, role)
    if other is None:
        return
    student_vocab, teacher_vocab = student.get_vocab(), other.get_vocab()
    if student_vocab == teacher_vocab:
        return
    tokens = sorted(
        (token for token in student_vocab.keys() | teacher_vocab.keys()),
        key=lambda token: min(student_vocab.get(token, 10**9), teacher_vocab.get(token, 10**9)),
    )
    different = [token for token in tokens if student_vocab.get(token) != teacher_vocab.get(token)]
    shown = ", ".join(
        f"{token!r} (student {student_vocab.get(token, 'absent')}, {role} {teacher_vocab.get(token, 'absent')})"
        for token in different[:_SHOWN]
    )
    raise ValueError(
        f"Student and {role} must share one tokenizer, so that the {role} can score the student's token ids; "
        f"{len(different)} tokens differ: {shown}{', ...' if len(different) > _SHOWN else ''}. Choose a {role} of the "
        "student's family."
    )


def check_reward_funcs(reward_funcs: Any, environment_factory: Any) -> None:
    """There must be a verifier.

    Raises:
        ValueError: when there is no reward function, and no environment that could give the reward.
    """
    if not reward_funcs and environment_factory is None:
        raise ValueError(
            "At least one reward function is required: the verifier decides the sign of every outcome advantage. Pass "
            "`reward_funcs`, for example `trl.rewards.accuracy_reward`."
        )


def check_teacher_sampling(
    dataset: Dataset | IterableDataset | None, args: "SGOPDConfig", own_generation: Any | None
) -> None:
    """What phased teacher sampling cannot work with.

    Raises:
        ValueError: for a streamed dataset, one with too few prompts, and for tools, environments and rollout functions.
    """
    remedy = "or set `teacher_sampling_enable=False`."
    if own_generation:
        raise ValueError(
            "Phased teacher sampling generates plain completions, but `tools`, `rollout_func` or `environment_factory` "
            f"were passed. Leave them out, {remedy}"
        )
    if not isinstance(dataset, Dataset):
        raise ValueError(
            "Phased teacher sampling draws its own prompts from the dataset, which must be a `datasets.Dataset`, not "
            f"{type(dataset).__name__}. Load it without streaming, {remedy}"
        )
    student = args.generation_batch_size // args.num_generations
    ratio = args.teacher_sampling_ratio
    needed = student + math.ceil(student * ratio / (1 - ratio))
    distinct = len({prompt_key(prompt) for prompt in dataset["prompt"]})
    if distinct < needed:
        raise ValueError(
            f"The dataset has {distinct} distinct prompts, but a generation batch needs {needed}: {student} for the student "
            f"and, at `teacher_sampling_ratio` = {ratio}, {needed - student} others for the teacher. Add prompts, {remedy}"
        )


def check_dataset(
    dataset: Dataset | IterableDataset, reward_funcs: Any, tokenizer: PreTrainedTokenizerBase, args: "SGOPDConfig"
) -> Dataset | IterableDataset:
    """The training dataset without its over-long prompts, once its columns and gold answers have been checked.

    Raises:
        ValueError: as `check_columns`, `filter_long_prompts` and `check_answers`.
    """
    check_columns(dataset)
    dataset, dropped = filter_long_prompts(dataset, args.max_prompt_length, tokenizer, args.chat_template_kwargs)
    if dropped:
        logger.warning(
            f"Dropped {dropped} prompts longer than {args.max_prompt_length} tokens; {len(dataset)} are left."
        )
    functions = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    check_answers(dataset, args.answer_column, functions, args.reward_weights, args.correct_reward_threshold)
    return dataset


def check_columns(dataset: Dataset | IterableDataset) -> None:
    """The dataset must have a `prompt` column.

    Raises:
        ValueError: naming the columns there are, and the first row.
    """
    columns = dataset.column_names or list(next(iter(dataset)))
    if "prompt" not in columns:
        row = next(iter(dataset), None)
        raise ValueError(
            f"The training dataset has no column 'prompt', only {columns}; its first row is {_short(row)}. Rename a "
            "column to 'prompt', or give `sgopd train` a `dataset_prompt_column` or a `prompt_template`."
        )


def check_answers(
    dataset: Dataset | IterableDataset,
    answer_column: str | None,
    reward_funcs: Sequence[Callable[..., list[float | None]] | Any],
    reward_weights: Sequence[float] | None,
    threshold: float,
) -> None:
    """Every gold answer, given as a completion (as it is, or boxed), must be judged correct by the reward functions.

    Skipped for a streamed dataset, for one without the column, and for reward models and asynchronous functions. The
    rows are shared among the processes.

    Raises:
        ValueError: with the number of the rows that fail, and the first of them.
    """
    checkable = all(
        callable(f) and not isinstance(f, torch.nn.Module) and not is_async_callable(f) for f in reward_funcs
    )
    if answer_column is None or isinstance(dataset, IterableDataset) or answer_column not in dataset.column_names:
        return
    if not checkable:
        logger.info("The gold answers are not checked: a reward model or an asynchronous function judges them.")
        return
    weights = [1.0] * len(reward_funcs) if reward_weights is None else reward_weights
    if len(weights) != len(reward_funcs):
        raise ValueError(f"`reward_weights` has {len(weights)} values for {len(reward_funcs)} reward functions.")
    state = PartialState()
    mine = list(range(state.process_index, len(dataset), state.num_processes))
    failed: list[int] = []
    starts = range(0, len(mine), 256)
    for start in tqdm(starts, desc="Gold answers", disable=len(starts) < 10 or not state.is_main_process):
        numbers = mine[start : start + 256]
        rows = dataset.select(numbers).to_list()
        rewards = _self_rewards(rows, answer_column, reward_funcs, weights, threshold)
        failed += [number for number, reward in zip(numbers, rewards, strict=True) if not reward > threshold]
    failed = sorted(gather_object(failed))  # so that every process stops, and says the same
    if failed:
        first = "; ".join(f"row {n}: {_short(dataset[n][answer_column])}" for n in failed[:_SHOWN])
        raise ValueError(
            f"{len(failed)} of {len(dataset)} answers of column {answer_column!r} do not verify against themselves: the "
            f"reward of the answer, given as a completion, is not above {threshold}. {first}. Correct or drop these "
            "rows, choose the reward function that fits them, or set `answer_column=None` to skip this check."
        )


# The answer as it is, boxed, and behind the end of a chain of thought that some reward functions require
_COMPLETIONS = ("{}", r"\boxed{{{}}}", "<think>\n\n</think>\n\n\\boxed{{{}}}")


def _self_rewards(
    rows: list[dict[str, Any]],
    answer_column: str,
    reward_funcs: Sequence[Callable[..., list[float | None]]],
    weights: Sequence[float],
    threshold: float,
) -> list[float]:
    """Best weighted reward of each row's answer; a form of completion is tried only on rows that failed the one before."""
    best = [-torch.inf] * len(rows)
    for template in _COMPLETIONS:
        failed = [number for number, reward in enumerate(best) if not reward > threshold]
        if failed:
            texts = [template.format(rows[number][answer_column]) for number in failed]
            rewards = _rewards([rows[number] for number in failed], texts, reward_funcs, weights)
            for number, reward in zip(failed, rewards, strict=True):
                best[number] = max(best[number], reward)
    return best


def _rewards(
    rows: list[dict[str, Any]],
    texts: list[str],
    reward_funcs: Sequence[Callable[..., list[float | None]]],
    weights: Sequence[float],
) -> list[float]:
    """Weighted rewards of completions, asked for as TRL's trainer does."""
    conversational = is_conversational({"prompt": rows[0]["prompt"]})
    completions = [[{"role": "assistant", "content": text}] for text in texts] if conversational else texts
    reserved = ("prompt", "completion", "completion_ids")
    totals = [0.0] * len(rows)
    for weight, function in zip(weights, reward_funcs, strict=True):
        name = getattr(function, "__name__", repr(function))
        try:
            rewards = function(
                prompts=[row["prompt"] for row in rows],
                completions=completions,
                completion_ids=[[] for _ in rows],
                trainer_state=TrainerState(),
                log_extra=lambda column, values: None,
                log_metric=lambda name, value: None,
                **{key: [row[key] for row in rows] for key in rows[0] if key not in reserved},
            )
        except Exception as error:
            raise ValueError(
                f"The reward function {name!r} raised {error!r} on gold answers given as completions, the first "
                f"{completions[0]!r}. TRL's own reward functions need conversational prompts (lists of messages) and a "
                "column `solution`. Correct it, or set `answer_column=None` to skip this check."
            ) from error
        if len(rewards) != len(rows):
            raise ValueError(
                f"The reward function {name!r} returned {len(rewards)} rewards for {len(rows)} completions."
            )
        totals = [total + weight * (reward or 0.0) for total, reward in zip(totals, rewards, strict=True)]
    return totals


def prompt_length(
    prompt: str | list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: dict[str, Any] | None
) -> int:
    """Tokens of a prompt, chat template included."""
    if not is_conversational({"prompt": prompt}):
        return len(tokenizer(text=prompt)["input_ids"])
    return len(
        tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **(chat_template_kwargs or {})
        )["input_ids"]
    )


def longest_prompt(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: dict[str, Any] | None
) -> int:
    """Tokens of the dataset's longest prompt, chat template included."""
    progress = tqdm(dataset["prompt"], desc="Prompt lengths", disable=len(dataset) < 5000)
    return max((prompt_length(prompt, tokenizer, chat_template_kwargs) for prompt in progress), default=0)


def each_dataset(datasets: Any) -> list[Any]:
    """The datasets of what `Trainer` takes as `eval_dataset`: none, one, or a mapping of several."""
    return [] if datasets is None else list(datasets.values()) if isinstance(datasets, dict) else [datasets]


def check_teacher_column(dataset: Dataset | IterableDataset | None, names: Sequence[str]) -> None:
    """With several teachers, every row must name one of them in its column `teacher`.

    Args:
        names: of the run's teachers. A single one needs no column.

    Raises:
        ValueError: with the names that are unknown and the first row that has one. A streamed dataset is not looked
            through; there an unknown name stops the run when it is met.
    """
    if len(names) == 1 or dataset is None:
        return
    columns = dataset.column_names or list(next(iter(dataset)))
    if "teacher" not in columns:
        raise ValueError(
            f"With several teachers ({', '.join(names)}) the dataset needs a column `teacher` that names each row's; it "
            f"has {columns}."
        )
    if isinstance(dataset, Dataset):
        unknown = sorted({str(name) for name in dataset.unique("teacher")} - set(names))
        if unknown:
            row = next(n for n, name in enumerate(dataset["teacher"]) if str(name) in unknown)
            raise ValueError(
                f"The column `teacher` names {unknown[:_SHOWN]} (first in row {row}), but the run's teachers are "
                f"{list(names)}. Correct the column, or add the teacher to `teachers`."
            )


def filter_long_prompts(
    dataset: Dataset | IterableDataset,
    max_prompt_length: int | None,
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: dict[str, Any] | None,
) -> tuple[Dataset | IterableDataset, int | None]:
    """Drops the prompts longer than `max_prompt_length` tokens, chat template included.

    Returns:
        the dataset, and how many prompts were dropped (`None` for a streamed dataset, which is filtered as it is read).

    Raises:
        ValueError: when no prompt is left.
    """
    if max_prompt_length is None:
        return dataset, 0

    def fits(prompt: str | list[dict[str, str]]) -> bool:
        return prompt_length(prompt, tokenizer, chat_template_kwargs) <= max_prompt_length

    if isinstance(dataset, IterableDataset):
        return dataset.filter(fits, input_columns=["prompt"]), None
    with global_then_local_main_first():
        kept = dataset.filter(fits, input_columns=["prompt"], desc=f"Prompts up to {max_prompt_length} tokens")
    dropped = len(dataset) - len(kept)
    if len(kept) == 0:
        raise ValueError(
            f"All {dropped} prompts are longer than `max_prompt_length` = {max_prompt_length} tokens. Raise it."
        )
    return kept, dropped


def _short(value: Any, length: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
