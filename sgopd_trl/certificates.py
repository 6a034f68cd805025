"""Step-level certificates: what a verifier says of the parts of a completion, in the place of the gate's constant a1.

The paper names them as the natural extension of its binary outcome (Limitations): in a rollout whose answer is wrong, a1 is
negative on the useful steps too.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from .verifiers.reward import completion_text


@dataclass(frozen=True)
class Step:
    """A part of a completion and the verifier's word on it.

    Args:
        start, end: characters of the completion's text (special tokens left out), `end` not included.
        value: above 0 it is right, below 0 wrong, 0 neither. The gate reads its sign.
    """

    start: int
    end: int
    value: float


Certificate = Sequence[Step] | Sequence[float] | None


@runtime_checkable
class StepVerifier(Protocol):
    """A reward function that also certifies steps: pass it among the trainer's `reward_funcs`."""

    def certify(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any
    ) -> list[Certificate]:
        """Called as TRL calls a reward function.

        Returns:
            for each of B completions its steps; or a value for each of its tokens; or `None`, where the outcome's a1
            stands. It also stands where no step does.
        """
        ...


class StepCertificates:
    """The certificates of a trainer's rollouts, where one of its reward functions gives them.

    Raises:
        ValueError: when several do.
    """

    def __init__(self, reward_funcs: Any):
        functions = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        found = [function for function in functions if isinstance(function, StepVerifier)]
        if len(found) > 1:
            names = ", ".join(getattr(function, "__name__", repr(function)) for function in found)
            raise ValueError(
                f"The gate takes certificates from one reward function, but {names} have them. Leave one of them."
            )
        self.verifier: StepVerifier | None = found[0] if found else None
        self._certificates: list[Certificate] = []
        self._completion_ids: list[list[int]] = []
        self._texts: list[str] = []

    def ask(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids: list[list[int]]
    ) -> None:
        """Has this process's rollouts certified. The arguments are those of TRL's `_calculate_rewards`."""
        if self.verifier is None:
            return
        columns = {key: [row[key] for row in inputs] for key in inputs[0].keys() - {"prompt", "completion"}}
        self._completion_ids = completion_ids
        self._texts = [completion_text(completion) for completion in completions]
        self._certificates = self.verifier.certify(
            prompts=prompts, completions=completions, completion_ids=completion_ids, **columns
        )

    def gate_advantages(
        self, batch: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, torch.Tensor]:
        """What the batch's gate takes for a1, (B, L), under its own name; nothing where no certificates are given."""
        if self.verifier is None:
            return {}
        for text, ids, certificate in zip(self._texts, self._completion_ids, self._certificates, strict=True):
            steps = certificate is not None and any(isinstance(entry, Step) for entry in certificate)
            if steps and text != tokenizer.decode(ids, skip_special_tokens=True):
                raise ValueError(
                    "Steps are spans of the text that a completion's tokens decode to, but the text the verifier saw is "
                    f"another: {text[:100]!r}. With tools or parsed responses give a value for each token instead."
                )
        length = batch["completion_ids"].size(1)
        values = gate_advantages(self._certificates, self._completion_ids, tokenizer, batch["advantages"], length)
        return {"gate_advantages": values}


def token_offsets(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[tuple[int, int]]:
    """Where each token's characters lie in the text that the ids decode to, special tokens left out.

    A token that completes no character (a special one, or the beginning of one) has none: its start is its end.
    """
    pieces = None
    if getattr(tokenizer, "is_fast", False):
        stream = DecodeStream(skip_special_tokens=True)
        try:
            pieces = [stream.step(tokenizer._tokenizer, token) or "" for token in token_ids]
        except Exception:  # tokenizers raises no other class where bytes are no character (byte fallback)
            pieces = None
    if pieces is None or "".join(pieces) != tokenizer.decode(token_ids, skip_special_tokens=True):
        return _offsets_of_prefixes(tokenizer, token_ids)
    ends = [0]
    for piece in pieces:
        ends.append(ends[-1] + len(piece))
    return list(zip(ends, ends[1:], strict=False))


def _offsets_of_prefixes(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[tuple[int, int]]:
    """The same for any tokenizer, in time that grows with the square of the length: how much of the text each prefix has."""
    text = tokenizer.decode(token_ids, skip_special_tokens=True)
    ends = [0]
    for count in range(1, len(token_ids) + 1):
        prefix = tokenizer.decode(token_ids[:count], skip_special_tokens=True)
        ends.append(max(ends[-1], len(os.path.commonprefix([prefix, text]))))
    return list(zip(ends, ends[1:], strict=False))


def token_values(
    certificate: Certificate, token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, outcome: float
) -> list[float]:
    """The certificate of each token: that of the step its first character lies in, else the outcome's.

    A token that is the beginning of a character only belongs to that character; a special token has the outcome's.

    Args:
        certificate: see `StepVerifier`. token_ids: l ids. outcome: a1 of the sequence.

    Returns:
        l values.

    Raises:
        ValueError: for a value that is not finite, a step that is empty or begins before the text, and a number of values
            that is not l.
    """
    if certificate is None:
        return [outcome] * len(token_ids)
    steps = [entry for entry in certificate if isinstance(entry, Step)]
    values = [entry.value for entry in steps] or list(certificate)
    if 0 < len(steps) < len(certificate):
        raise ValueError("a certificate must have steps or numbers, not both")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"a certificate's values must be finite, got {values[:20]}")
    if values and not steps:
        if len(values) != len(token_ids):
            raise ValueError(f"a certificate must have a value for each of {len(token_ids)} tokens, got {len(values)}")
        return [float(value) for value in values]
    bad = next((step for step in steps if not 0 <= step.start < step.end), None)
    if bad is not None:
        raise ValueError(f"a certificate's step must have 0 <= start < end, got {bad}")
    special = set(tokenizer.all_special_ids)
    found = []
    for token, (start, _) in zip(token_ids, token_offsets(tokenizer, token_ids), strict=True):
        of_it = (step.value for step in steps if token not in special and step.start <= start < step.end)
        found.append(float(next(of_it, outcome)))
    return found


def gate_advantages(
    certificates: Sequence[Certificate],
    completion_ids: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    a1: torch.Tensor,
    length: int,
) -> torch.Tensor:
    """What the gate takes for a1: certificates where there are any, the outcome's a1 elsewhere.

    Args:
        certificates, completion_ids: B each. a1: (B,). length: L, of the longest completion.

    Returns:
        (B, L), 0 behind the completions' ends.

    Raises:
        ValueError: for a certificate that does not fit its completion, with its row.
    """
    advantages = torch.zeros(len(completion_ids), length, dtype=a1.dtype)
    for row, (certificate, ids, outcome) in enumerate(zip(certificates, completion_ids, a1.tolist(), strict=True)):
        try:
            values = token_values(certificate, ids, tokenizer, outcome)
        except ValueError as error:
            raise ValueError(f"The certificate of completion {row} of this batch does not fit: {error}.") from error
        advantages[row, : len(values)] = torch.tensor(values, dtype=a1.dtype)
    return advantages.to(a1.device)
