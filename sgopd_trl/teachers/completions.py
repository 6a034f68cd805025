"""What is sent to vLLM's `/v1/completions`, and what its answers mean. No network here."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .protocol import SamplingSettings, TeacherError


LOWEST = -9999.0  # what vLLM writes for minus infinity


class BrokenAnswer(ValueError):
    """An answer that is not what was asked for: cut off, or of another server. It is asked for again."""


def scoring_request(model: str, sequences: Sequence[Sequence[int]], **more: Any) -> dict[str, Any]:
    """Log-probabilities of given tokens: the actual token's alone, never a list of the likeliest."""
    request = {"model": model, "prompt": [list(ids) for ids in sequences], "max_tokens": 1, "temperature": 1.0}
    return request | {"prompt_logprobs": 0} | more


def generation_request(
    model: str, prompt_ids: Sequence[int], seed: int, settings: SamplingSettings, stop_token_ids: Sequence[int]
) -> dict[str, Any]:
    """One rollout. Every setting is sent, for what is left out the server takes from the model's generation config."""
    return {
        "model": model,
        "prompt": [list(prompt_ids)],
        "max_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": seed,
        "stop_token_ids": list(stop_token_ids),
        "return_token_ids": True,
    }


def choices(answer: Mapping[str, Any], model: str, count: int) -> list[Mapping[str, Any]]:
    """The answer's choices in the order of the request.

    Raises:
        BrokenAnswer: when there are more or fewer than were asked for. TeacherError: when another model has answered.
    """
    found = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(found, list) or sorted(choice.get("index", -1) for choice in found) != list(range(count)):
        raise BrokenAnswer(f"expected {count} choices, got {str(answer)[:200]}")
    if answer.get("model") != model:
        raise TeacherError(f"another model has answered: {answer.get('model')!r} in place of {model!r}")
    return sorted(found, key=lambda choice: choice["index"])


def completion_logps(choice: Mapping[str, Any], sequence: Sequence[int], prompt_length: int) -> list[float]:
    """Log-probabilities, in nats, of a sequence's tokens behind its prompt.

    Raises:
        BrokenAnswer: when a position or its token is missing. TeacherError: when a value is no number.
    """
    positions = choice.get("prompt_logprobs")
    if not isinstance(positions, list) or len(positions) != len(sequence):
        raise BrokenAnswer(f"expected `prompt_logprobs` of {len(sequence)} tokens, got {str(positions)[:200]}")
    logps = []
    for position in range(prompt_length, len(sequence)):
        token = sequence[position]
        entry = (positions[position] or {}).get(str(token))
        if not isinstance(entry, Mapping) or "logprob" not in entry:
            raise BrokenAnswer(f"no log-probability of token {token} at position {position}: {positions[position]}")
        value = entry["logprob"]
        if value is None or math.isnan(value):
            raise TeacherError(
                f"the log-probability of token {token} at completion position {position - prompt_length} is {value}. "
                "Check the teacher's weights and dtype (float16 overflows; use bfloat16 or float32)"
            )
        logps.append(-math.inf if value <= LOWEST else float(value))
    return logps


def rollout_ids(choice: Mapping[str, Any], vocab_size: int | None) -> list[int]:
    """Token ids of a rollout.

    Raises:
        BrokenAnswer: when there are none. TeacherError: when one is beyond the student's vocabulary.
    """
    ids = choice.get("token_ids")
    if not isinstance(ids, list) or not ids:
        raise BrokenAnswer(f"expected `token_ids`, got {str(choice)[:200]}")
    if vocab_size is not None and max(ids) >= vocab_size:
        raise TeacherError(
            f"a rollout has token {max(ids)}, which the student's tokenizer ({vocab_size}) does not know"
        )
    return ids
