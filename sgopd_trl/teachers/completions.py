"""What is sent to vLLM's `/v1/completions`, and what its answers mean. No network here."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .protocol import SamplingSettings, TeacherError


LOWEST = -9999.0  # what vLLM writes for minus infinity
_WHOLE = ("stop", "length")  # a rollout that ended by itself or at its limit, and not by an abort or an error


class Unavailable(Exception):
    """The server does not answer now, and may do so later: it is asked again.

    Args:
        cause: for messages. status: HTTP status, where it is one. retry_after: seconds the server asked for.
    """

    def __init__(self, cause: str, status: int | None = None, retry_after: float | None = None):
        super().__init__(cause)
        self.status = status
        self.retry_after = retry_after


class BrokenAnswer(Unavailable):
    """An answer that is not what was asked for: cut off, or of another server."""


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
    found = [choice for choice in found if isinstance(choice, Mapping)] if isinstance(found, list) else []
    by_index = {choice.get("index"): choice for choice in found if isinstance(choice.get("index"), int)}
    if len(found) != count or by_index.keys() != set(range(count)):
        raise BrokenAnswer(f"expected {count} choices, got {str(answer)[:200]}")
    if answer.get("model") != model:
        raise TeacherError(f"another model has answered: {answer.get('model')!r} in place of {model!r}")
    return [by_index[index] for index in range(count)]


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
        found = positions[position]
        entry = found.get(str(token)) if isinstance(found, Mapping) else None
        if not isinstance(entry, Mapping) or "logprob" not in entry:
            raise BrokenAnswer(f"no log-probability of token {token} at position {position}: {str(found)[:200]}")
        value = entry["logprob"]
        if not isinstance(value, int | float) or not value < math.inf:  # NaN, too
            raise TeacherError(
                f"the log-probability of token {token} at completion position {position - prompt_length} is {value}. "
                "Check the teacher's weights and dtype (float16 overflows; use bfloat16 or float32)"
            )
        logps.append(-math.inf if value <= LOWEST else float(value))
    return logps


def rollout_ids(choice: Mapping[str, Any], vocab_size: int | None) -> list[int]:
    """Token ids of a rollout.

    Raises:
        BrokenAnswer: when there are none, or when the rollout was broken off. TeacherError: when one is beyond the
            student's vocabulary.
    """
    ids = choice.get("token_ids")
    if not isinstance(ids, list) or not ids or not all(isinstance(token, int) and token >= 0 for token in ids):
        raise BrokenAnswer(f"expected `token_ids`, got {str(choice)[:200]}")
    if choice.get("finish_reason") not in _WHOLE:
        raise BrokenAnswer(f"a rollout that ended with `finish_reason` {choice.get('finish_reason')!r}")
    if vocab_size is not None and max(ids) >= vocab_size:
        raise TeacherError(
            f"a rollout has token {max(ids)}, which the student's tokenizer ({vocab_size}) does not know"
        )
    return ids
