"""Checks of a run's data, tokenizers and verifier, made before anything expensive starts."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from tqdm.auto import tqdm
from transformers import AutoProcessor, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl.data_utils import is_conversational
from trl.trainer.utils import get_config_model_id, global_then_local_main_first

from .gold_answers import check_answers
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
        key=lambda token: (min(student_vocab.get(token, 10**9), teacher_vocab.get(token, 10**9)), token),
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
