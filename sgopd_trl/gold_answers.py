"""Gold answers that a verifier cannot judge by are noticed before a run: malformed ones, and those that are not correct when
they are given as a completion."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from tqdm.auto import tqdm
from transformers import TrainerState
from trl.data_utils import is_conversational
from trl.trainer.utils import is_async_callable

from .verifiers.reward import Verifier


logger = get_logger(__name__)

_SHOWN = 8


def check_answers(
    dataset: Dataset | IterableDataset,
    answer_column: str | None,
    reward_funcs: Sequence[Callable[..., list[float | None]] | Any],
    reward_weights: Sequence[float] | None,
    threshold: float,
) -> None:
    """Every gold answer, given as a completion (as it is, or boxed), must be judged correct by the reward functions.

    Skipped for a streamed dataset, for one without the column, and for reward models, asynchronous functions and verifiers
    whose golds are no answers (unit tests). The rows are shared among the processes.

    Raises:
        ValueError: with the number of the rows that fail, and the first of them.
    """
    if answer_column is None or isinstance(dataset, IterableDataset) or answer_column not in dataset.column_names:
        return
    for function in reward_funcs:
        if isinstance(function, Verifier):
            _report_malformed(dataset, answer_column, function)
    if not all(_takes_golds(function) for function in reward_funcs):
        logger.info("The gold answers are not given as completions: what judges them takes no answers for completions.")
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
    for function in reward_funcs:
        if isinstance(function, Verifier):
            function.forget()
    if failed:
        first = "; ".join(f"row {n}: {_short(dataset[n][answer_column])}" for n in failed[:_SHOWN])
        raise ValueError(
            f"{len(failed)} of {len(dataset)} answers of column {answer_column!r} do not verify against themselves: the "
            f"reward of the answer, given as a completion, is not above {threshold}. {first}. Correct or drop these "
            "rows, choose the reward function that fits them, or set `answer_column=None` to skip this check."
        )


def _takes_golds(function: Any) -> bool:
    """Whether a reward function can be asked here, and judges answers."""
    if isinstance(function, Verifier):
        return function.golds_are_answers
    return callable(function) and not isinstance(function, torch.nn.Module) and not is_async_callable(function)


def _report_malformed(dataset: Dataset, answer_column: str, verifier: Verifier) -> None:
    """Names the golds that the verifier finds malformed; whether it can judge by them all the same is seen next."""
    golds, state = dataset[answer_column], PartialState()
    mine = tqdm(
        range(state.process_index, len(golds), state.num_processes),
        desc="Reading gold answers",
        disable=len(golds) < 5000 or not state.is_main_process,
    )
    found = gather_object([(n, problem) for n in mine if (problem := verifier.gold_problem(golds[n])) is not None])
    problems = dict(sorted(found))
    if not problems:
        return
    first = "; ".join(f"row {n}: {_short(dataset[n][answer_column])} ({problems[n]})" for n in list(problems)[:_SHOWN])
    message = f"{len(problems)} of {len(dataset)} answers of column {answer_column!r} are malformed. {first}."
    if not verifier.golds_are_answers:
        raise ValueError(f"{message} Correct or drop these rows.")
    logger.warning(f"{message} They are judged by as what they seem to mean; correct them to be sure.")


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


def _short(value: Any, length: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
