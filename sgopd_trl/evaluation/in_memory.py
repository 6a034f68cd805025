"""Held-out accuracy of a loaded model from k sampled completions per problem, with nothing kept on disk."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl.data_utils import is_conversational

from .metrics import avg_at_k, pass_at_k


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    reward_func: Callable[..., list[float]],
    *,
    k: int = 8,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int,
    batch_size: int = 256,
    seed: int = 0,
    threshold: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float | int]:
    """Sample k completions per prompt and score them.

    The global random state, the model's train or eval mode and its generation config are as before afterwards. The
    result depends on `seed` and `batch_size`.

    Args:
        dataset: P rows with `prompt` (text or messages) and the columns that `reward_func` takes.
        reward_func: a TRL reward function.
        top_p: nucleus; 1.0 samples from the whole distribution.
        batch_size: completions generated at once; a prompt's k samples stay together.
        threshold: a completion is correct when its reward is above it.
        progress: called after each batch with the number of prompts done and P.

    Returns:
        `avg@k` and `pass@k` (with k in the name) in [0, 1], and `problems`, P.

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

    config = _sampling_config(model, tokenizer, temperature, top_p, max_new_tokens, k)
    correct: list[list[bool]] = []
    rows_per_batch = max(1, batch_size // k)
    with _undisturbed(model, seed), torch.no_grad():
        for start in range(0, len(dataset), rows_per_batch):
            batch = dataset[start : start + rows_per_batch]
            inputs = _encode(tokenizer, batch["prompt"]).to(model.device)
            output = model.generate(**inputs, generation_config=config)  # (rows * k, prompt + completion)
            rewards = _score(reward_func, tokenizer, batch, output[:, inputs["input_ids"].shape[1] :], k)
            correct += [[r > threshold for r in rewards[i : i + k]] for i in range(0, len(rewards), k)]
            if progress is not None:
                progress(len(correct), len(dataset))
    return {f"avg@{k}": avg_at_k(correct), f"pass@{k}": pass_at_k(correct, k), "problems": len(correct)}


def _sampling_config(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    k: int,
) -> GenerationConfig:
    eos_token_id = model.generation_config.eos_token_id  # may list more tokens than the tokenizer knows of
    # `generate` takes what is None here from the model's own config, so whatever changes the distribution is spelled
    # out: Qwen3, for one, ships top_k=20.
    return GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_p=top_p,
        top_k=0,
        min_p=0.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        num_beams=1,
        num_return_sequences=k,
        max_new_tokens=max_new_tokens,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id if eos_token_id is None else eos_token_id,
    )


def _encode(tokenizer: PreTrainedTokenizerBase, prompts: list[Any]) -> Any:
    if is_conversational({"prompt": prompts[0]}):
        prompts = [tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False) for p in prompts]
        special = False  # the template has written them
    else:
        special = True
    return tokenizer(
        prompts,
        return_tensors="pt",
        padding=True,
        padding_side="left",
        add_special_tokens=special,
        return_token_type_ids=False,
    )


def _score(
    reward_func: Callable[..., list[float]],
    tokenizer: PreTrainedTokenizerBase,
    batch: Mapping[str, list[Any]],
    completion_ids: torch.Tensor,
    k: int,
) -> list[float]:
    """Rewards of (rows * k, L) completion ids, with the arguments that TRL would pass."""
    columns = {name: [value for value in values for _ in range(k)] for name, values in batch.items()}
    prompts = columns.pop("prompt")
    texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    if is_conversational({"prompt": prompts[0]}):
        texts = [[{"role": "assistant", "content": text}] for text in texts]
    rewards = reward_func(prompts=prompts, completions=texts, completion_ids=completion_ids.tolist(), **columns)
    if len(rewards) != len(texts):
        raise ValueError(f"the reward function returned {len(rewards)} rewards for {len(texts)} completions")
    if None in rewards:
        raise ValueError(f"the reward function returned None for {prompts[rewards.index(None)]!r}: check its answer")
    return rewards


@contextmanager
def _undisturbed(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Evaluation mode and a seeded generator inside; every module's mode and the global random state after."""
    modes = [(module, module.training) for module in model.modules()]
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
