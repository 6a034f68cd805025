"""Held-out accuracy of a loaded model from k sampled completions per problem, with nothing kept on disk."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.data_utils import is_conversational

from ..seeded_sampling import rollout_seed
from ..teachers.protocol import SamplingSettings
from .engines import Request, Sample
from .engines.in_process import TransformersEngine
from .metrics import avg_at_k, pass_at_k
from .prompts import encode


@dataclass(frozen=True)
class Scored:
    """A completion's reward, and its tokens, the end of sequence included."""

    reward: float
    tokens: int


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    reward_func: Callable[..., list[float]],
    *,
    k: int = 8,
    threshold: float = 0.5,
    **sampling: Any,
) -> dict[str, float | int]:
    """Sample k completions per prompt and score them.

    Args:
        threshold: a completion is correct when its reward is above it. sampling, and the others: of `sample_and_score`.

    Returns:
        `avg@k` and `pass@k` (with k in the name) in [0, 1], and `problems`, P.

    Raises:
        ValueError: as `sample_and_score`.
    """
    scored = sample_and_score(model, tokenizer, dataset, reward_func, k=k, **sampling)
    correct = [[sample.reward > threshold for sample in samples] for samples in scored]
    return {f"avg@{k}": avg_at_k(correct), f"pass@{k}": pass_at_k(correct, k), "problems": len(correct)}


def sample_and_score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    reward_func: Callable[..., list[float]],
    *,
    k: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int,
    batch_size: int = 256,
    seed: int = 0,
    chat_template_kwargs: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Scored]]:
    """Samples k completions of every prompt, each from random numbers of its own, and asks for their rewards.

    A sample depends on `seed`, its prompt and its number among the k, and not on the batch. The model's train or eval mode is
    as before afterwards, and nobody else's random numbers are touched.

    Args:
        dataset: P rows with `prompt` (text or messages) and the columns that `reward_func` takes.
        reward_func: a TRL reward function. It gets every completion without what follows its end.
        top_p, top_k: nucleus and number of tokens; 1.0 and 0 sample from the whole distribution. batch_size: completions generated at once.
        chat_template_kwargs: for the tokenizer's template.
        progress: called after each batch with the number of prompts done and P.

    Returns:
        (P, k).

    Raises:
        ValueError: the data set is empty, lacks `prompt`, a setting is out of range, or the reward function returned
            the wrong number of rewards or None.
    """
    if "prompt" not in dataset.column_names or not len(dataset):
        raise ValueError(f"need rows with a column 'prompt', got {len(dataset)} rows of {dataset.column_names}")
    for name, value in {"k": k, "batch_size": batch_size, "max_new_tokens": max_new_tokens}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}: {k} samples need a distribution")

    rows = dataset.to_list()
    prompts = [encode(tokenizer, row["prompt"], chat_template_kwargs) for row in rows]
    requests = [
        Request("", problem, number, ids, rollout_seed("held-out", seed, ids, number))
        for problem, ids in enumerate(prompts)
        for number in range(k)
    ]
    settings = SamplingSettings(temperature=temperature, top_p=top_p, top_k=top_k, max_new_tokens=max_new_tokens)
    scored: dict[tuple[int, int], Scored] = {}
    with _evaluation_mode(model):
        for finished in TransformersEngine(model, tokenizer, batch_size).generate(requests, settings):
            rewards = _rewards(reward_func, tokenizer, [(rows[r.problem], sample) for r, sample in finished])
            for (request, sample), reward in zip(finished, rewards, strict=True):
                scored[request.problem, request.sample] = Scored(reward, len(sample.completion_ids))
            if progress is not None:
                progress(len(scored) // k, len(rows))
    return [[scored[problem, number] for number in range(k)] for problem in range(len(rows))]


def _rewards(
    reward_func: Callable[..., list[float]],
    tokenizer: PreTrainedTokenizerBase,
    finished: Sequence[tuple[dict[str, Any], Sample]],
) -> list[float]:
    """Rewards of completions, each with its dataset row, with the arguments that TRL would pass."""
    columns = {name: [row[name] for row, _ in finished] for name in finished[0][0]}
    prompts = columns.pop("prompt")
    ids = [sample.completion_ids for _, sample in finished]
    texts: list[Any] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    if is_conversational({"prompt": prompts[0]}):
        texts = [[{"role": "assistant", "content": text}] for text in texts]
    rewards = reward_func(prompts=prompts, completions=texts, completion_ids=ids, **columns)
    if len(rewards) != len(texts):
        raise ValueError(f"the reward function returned {len(rewards)} rewards for {len(texts)} completions")
    if None in rewards:
        raise ValueError(f"the reward function returned None for {prompts[rewards.index(None)]!r}: check its answer")
    return rewards


@contextmanager
def _evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode inside; every module's own mode after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
