"""Whether a vLLM server is fit to be a run's teacher, and whether it still is the one that was there at the start."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from .completions import BrokenAnswer, Unavailable, choices, completion_logps, scoring_request
from .endpoint import Endpoint
from .protocol import TeacherError
from .words import TEACHER, Words


logger = logging.getLogger(__name__)

PROBE_LENGTH = 32  # tokens
TOLERANCE = 0.05  # nats, mean over the probe, at least
_COMPANIONS = 8  # sequences beside the probe, to see what other sequences in a batch change


@dataclass(frozen=True)
class Lengths:
    """What a run sends at most, in tokens: its longest prompt, and completions or rollouts behind it."""

    longest_prompt: int
    max_completion_length: int
    max_rollout_length: int = 0

    @property
    def context(self) -> int:
        """Tokens that a server must have room for. To score, it needs one more, which it generates."""
        return self.longest_prompt + max(self.max_completion_length + 1, self.max_rollout_length)


@dataclass(frozen=True)
class ServedModel:
    """What identifies a served model, and what a run needs of it.

    Args:
        id: its name. root: where it was loaded from. probe: a fixed sequence. logps: its log-probabilities, in nats.
        tolerance: nats that their mean may differ by. In bfloat16 they depend on what else is in the batch.
        lengths: of the run.
    """

    id: str
    root: str | None
    probe: tuple[int, ...]
    logps: tuple[float, ...]
    tolerance: float
    lengths: Lengths


async def check_servers(
    endpoints: Sequence[Endpoint],
    model: str | None,
    tokenizer: PreTrainedTokenizerBase,
    lengths: Lengths,
    words: Words = TEACHER,
) -> ServedModel:
    """Checks every server; they must serve one model.

    Args:
        model: the served name; default: the only one there is. tokenizer: the student's. lengths: of the run.
        words: of messages.

    Raises:
        ValueError: with what is wrong, and at which address.
    """
    served: ServedModel | None = None
    for endpoint in endpoints:
        try:
            if served is None:
                served = await _look_up(endpoint, model, tokenizer, lengths, words)
            else:
                await check_served_model(endpoint, served, words)
            await _check_tokenizer(endpoint, served.id, tokenizer, words)
            await _check_log_probability_mode(endpoint, served)
        except BrokenAnswer as error:
            raise ValueError(f"{endpoint.url} does not answer as vLLM's `/v1/completions` does: {error}.") from error
        except Unavailable as error:
            if error.status is not None:
                raise ValueError(
                    f"{words.server} {endpoint.url} is there, but cannot answer: {error}. Its log says why."
                ) from error
            raise ValueError(
                f"{words.server} {endpoint.url} cannot be reached: {error}. Start it with `vllm serve MODEL`, or "
                f"correct {words.url}."
            ) from error
        except TeacherError as error:
            raise ValueError(f"{words.server} {endpoint.url}: {error}.") from error
    return served


async def check_served_model(endpoint: Endpoint, expected: ServedModel, words: Words = TEACHER) -> None:
    """The model behind an address must be the expected one: same name, same place as before, same log-probabilities.

    Raises:
        TeacherError: with both values, and where its context has become too short.
    """
    card = await _model_card(endpoint, expected.id, words)
    _check_context(card, expected.lengths, words)
    root = card.get("root")
    endpoint.root = endpoint.root or root
    if root != endpoint.root:
        raise TeacherError(f"another model answers: loaded from {root!r}, at the start from {endpoint.root!r}")
    (logps,) = await _probe(endpoint, expected.id, [expected.probe])
    difference = _difference(logps, expected.logps)
    if difference > expected.tolerance:
        raise TeacherError(
            f"another model answers: the log-probabilities of a fixed sequence differ by {difference:.3f} nats a token "
            f"(more than {expected.tolerance:.3f}) from those at the start (mean {sum(logps) / len(logps):.3f}, at the "
            f"start {sum(expected.logps) / len(logps):.3f})"
        )


async def _model_card(endpoint: Endpoint, model: str | None, words: Words) -> dict:
    """The entry of `/v1/models`; the only one where no name is given."""
    answer = await endpoint.get("/v1/models")
    try:
        cards = {card["id"]: card for card in answer["data"]}
    except (KeyError, TypeError) as error:
        raise BrokenAnswer(f"expected a list of models, got {str(answer)[:200]}") from error
    if model is None and len(cards) == 1:
        return next(iter(cards.values()))
    if model not in cards:
        asked = f"Set {words.name} to one of them" if model is None else f"The model {model!r} is not served"
        raise TeacherError(f"{asked}: it serves {', '.join(map(repr, cards)) or 'none'}")
    return cards[model]


async def _look_up(
    endpoint: Endpoint, model: str | None, tokenizer: PreTrainedTokenizerBase, lengths: Lengths, words: Words
) -> ServedModel:
    card = await _model_card(endpoint, model, words)
    endpoint.root = card.get("root")
    context = _check_context(card, lengths, words)
    size, name = len(tokenizer), card["id"]
    # The last id shows that the server's embedding is not smaller than the student's vocabulary.
    probe = (size - 1, *((7 * i + 3) % size for i in range(min(PROBE_LENGTH, context - 1) - 1)))
    (logps,) = await _probe(endpoint, name, [probe])
    shifts = [len(probe) * i // (_COMPANIONS + 1) for i in range(1, _COMPANIONS + 1)]
    companions = [probe[shift:] + probe[:shift] for shift in shifts]
    place = _COMPANIONS // 2
    batch = await _probe(endpoint, name, [*companions[:place], probe, *companions[place:]])
    tolerance = max(TOLERANCE, 4 * _difference(batch[place], logps))
    return ServedModel(name, endpoint.root, probe, tuple(logps), tolerance, lengths)


def _difference(logps: Sequence[float], others: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(logps, others, strict=True)) / len(logps)


async def _probe(endpoint: Endpoint, model: str, probes: Sequence[Sequence[int]], **more: float) -> list[list[float]]:
    """Log-probabilities, in nats, of sequences that are scored in one request."""
    request = scoring_request(model, probes, **more)
    answer = await endpoint.post("/v1/completions", request, endpoint.probe_timeout)
    found = choices(answer, model, len(probes))
    return [completion_logps(choice, probe, 1) for choice, probe in zip(found, probes, strict=True)]


async def _check_tokenizer(endpoint: Endpoint, model: str, tokenizer: PreTrainedTokenizerBase, words: Words) -> None:
    """Every id must stand for the same text. One request for all, and a few more to find the ids that differ."""

    async def same(ids: range) -> bool:
        return await text(ids) == tokenizer.decode(list(ids), skip_special_tokens=False)

    async def text(ids: Sequence[int]) -> str:
        answer = await endpoint.post("/detokenize", {"model": model, "tokens": list(ids)})
        if not isinstance(answer, dict) or "prompt" not in answer:
            raise BrokenAnswer(f"expected the text of tokens, got {str(answer)[:200]}")
        return answer["prompt"]

    ids = range(len(tokenizer))
    if await same(ids):
        return
    while len(ids) > 1:
        half = len(ids) // 2
        # Pieces of one character may only be text together: then the halves agree, and the whole does not.
        ids = ids[:half] if not await same(ids[:half]) else ids[half:]
    token = ids[0]
    raise TeacherError(
        f"its tokenizer is not {words.tokenizer}: token {token} is {await text([token])!r} there and "
        f"{tokenizer.decode([token], skip_special_tokens=False)!r} here. {words.serve}"
    )


def _check_context(card: dict, lengths: Lengths, words: Words) -> int:
    """The server's context, in tokens, which must have room for what the run sends."""
    context = card.get("max_model_len")
    if not isinstance(context, int):
        raise BrokenAnswer(f"expected `max_model_len` of the model, got {str(card)[:200]}")
    if lengths.context > context:
        answers = words.answers.format(completion=lengths.max_completion_length, rollout=lengths.max_rollout_length)
        raise TeacherError(
            f"its context has {context} tokens, but the longest prompt ({lengths.longest_prompt}) with {answers} needs "
            f"{lengths.context}. Start it with `--max-model-len {lengths.context}`, or lower {words.lengths}"
        )
    return context


async def _check_log_probability_mode(endpoint: Endpoint, served: ServedModel) -> None:
    """Normalised log-probabilities of temperature 1 are needed."""
    request = scoring_request(served.id, [served.probe], prompt_logprobs=1)
    (choice,) = choices(await endpoint.post("/v1/completions", request, endpoint.probe_timeout), served.id, 1)
    completion_logps(choice, served.probe, 1)
    for position in choice["prompt_logprobs"][1:]:
        values = [entry["logprob"] for entry in position.values()]
        if max(values) > 1e-3:
            raise TeacherError(
                f"it answers {max(values):.2f} as a log-probability: it was started with a `--logprobs-mode` that is not "
                "`raw_logprobs` or `processed_logprobs`"
            )
    (tempered,) = await _probe(endpoint, served.id, [served.probe], temperature=0.7)
    difference = _difference(tempered, served.logps)
    if difference > served.tolerance:
        logger.warning(
            f"The log-probabilities of {endpoint.url} follow `temperature` (by {difference:.2f} nats a token at 0.7), "
            "which those of vLLM 0.22 to 0.31 do not. Temperature 1 is asked for, so they are right."
        )
