"""Whether a vLLM server is fit to be a run's teacher, and whether it still is the one that was there at the start."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from .completions import BrokenAnswer, choices, completion_logps, scoring_request
from .endpoint import Endpoint, Unavailable
from .protocol import TeacherError


logger = logging.getLogger(__name__)

PROBE_LENGTH = 32  # tokens
TOLERANCE = 0.05  # nats, mean over the probe: above what bfloat16 and other batches make of the same weights


@dataclass(frozen=True)
class ServedModel:
    """What identifies a served model: its name, where it was loaded from, its context in tokens, and its
    log-probabilities, in nats, of a few tokens."""

    id: str
    root: str | None
    max_model_len: int
    probe: tuple[int, ...]
    logps: tuple[float, ...]


async def check_servers(
    endpoints: Sequence[Endpoint],
    model: str | None,
    tokenizer: PreTrainedTokenizerBase,
    longest_prompt: int,
    max_completion_length: int,
    max_rollout_length: int | None,
) -> ServedModel:
    """Checks every server; they must serve one model.

    Args:
        model: the served name; default: the only one there is. tokenizer: the student's. The rest in tokens.

    Raises:
        ValueError: with what is wrong, and at which address.
    """
    served: ServedModel | None = None
    for endpoint in endpoints:
        try:
            if served is None:
                served = await _look_up(endpoint, model, tokenizer)
            else:
                await check_served_model(endpoint, served)
            await _check_tokenizer(endpoint, served.id, tokenizer)
            _check_context(endpoint, served, longest_prompt, max_completion_length, max_rollout_length)
            await _check_log_probability_mode(endpoint, served)
        except Unavailable as error:
            raise ValueError(
                f"The teacher's server {endpoint.url} cannot be reached: {error}. Start it with `vllm serve MODEL`, or "
                "correct `teacher_server_url`."
            ) from error
        except BrokenAnswer as error:
            raise ValueError(f"{endpoint.url} does not answer as vLLM's `/v1/completions` does: {error}.") from error
        except TeacherError as error:
            raise ValueError(f"The teacher's server {endpoint.url}: {error}.") from error
    return served


async def check_served_model(endpoint: Endpoint, expected: ServedModel) -> None:
    """The model behind an address must be the expected one: same name, same place as before, same log-probabilities.

    Raises:
        TeacherError: with both values.
    """
    root = (await _model_card(endpoint, expected.id)).get("root")
    endpoint.root = endpoint.root or root
    if root != endpoint.root:
        raise TeacherError(f"another model answers: loaded from {root!r}, at the start from {endpoint.root!r}")
    logps = await _probe(endpoint, expected.id, expected.probe)
    difference = sum(abs(a - b) for a, b in zip(logps, expected.logps, strict=True)) / len(logps)
    if difference > TOLERANCE:
        raise TeacherError(
            f"another model answers: the log-probabilities of a fixed sequence differ by {difference:.3f} nats a token "
            f"from those at the start (mean {sum(logps) / len(logps):.3f}, at the start "
            f"{sum(expected.logps) / len(logps):.3f})"
        )


async def _model_card(endpoint: Endpoint, model: str | None) -> dict:
    """The entry of `/v1/models`; the only one where no name is given."""
    answer = await endpoint.get("/v1/models")
    try:
        cards = {card["id"]: card for card in answer["data"]}
    except (KeyError, TypeError) as error:
        raise BrokenAnswer(f"expected a list of models, got {str(answer)[:200]}") from error
    if model is None and len(cards) == 1:
        return next(iter(cards.values()))
    if model not in cards:
        asked = "Set `teacher_server_model` to one of them" if model is None else f"The model {model!r} is not served"
        raise TeacherError(f"{asked}: it serves {', '.join(map(repr, cards)) or 'none'}")
    return cards[model]


async def _look_up(endpoint: Endpoint, model: str | None, tokenizer: PreTrainedTokenizerBase) -> ServedModel:
    card = await _model_card(endpoint, model)
    endpoint.root = card.get("root")
    if not isinstance(card.get("max_model_len"), int):
        raise BrokenAnswer(f"expected `max_model_len` of the model, got {card}")
    size, context = len(tokenizer), card["max_model_len"]
    # The last id shows that the server's embedding is not smaller than the student's vocabulary.
    probe = (size - 1, *((7 * i + 3) % size for i in range(min(PROBE_LENGTH, context - 1) - 1)))
    logps = await _probe(endpoint, card["id"], probe)
    return ServedModel(card["id"], card.get("root"), context, probe, tuple(logps))


async def _probe(endpoint: Endpoint, model: str, probe: Sequence[int], **more: float) -> list[float]:
    answer = await endpoint.post("/v1/completions", scoring_request(model, [probe], **more))
    return completion_logps(choices(answer, model, 1)[0], probe, 1)


async def _check_tokenizer(endpoint: Endpoint, model: str, tokenizer: PreTrainedTokenizerBase) -> None:
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
        f"its tokenizer is not the student's: token {token} is {await text([token])!r} there and "
        f"{tokenizer.decode([token], skip_special_tokens=False)!r} here. Serve a teacher of the student's family"
    )


def _check_context(
    endpoint: Endpoint,
    served: ServedModel,
    longest_prompt: int,
    max_completion_length: int,
    max_rollout_length: int | None,
) -> None:
    # To score, the server must have room for one token more, which it generates.
    needed = longest_prompt + max(max_completion_length + 1, max_rollout_length or 0)
    if needed > served.max_model_len:
        raise TeacherError(
            f"its context has {served.max_model_len} tokens, but the longest prompt ({longest_prompt}) with a completion "
            f"of {max_completion_length} or a rollout of {max_rollout_length or 0} needs {needed}. Start it with "
            f"`--max-model-len {needed}`, or lower `max_prompt_length`, `max_completion_length` or "
            "`teacher_max_completion_length`"
        )


async def _check_log_probability_mode(endpoint: Endpoint, served: ServedModel) -> None:
    """Normalised log-probabilities of temperature 1 are needed."""
    answer = await endpoint.post("/v1/completions", scoring_request(served.id, [served.probe], prompt_logprobs=1))
    for position in choices(answer, served.id, 1)[0]["prompt_logprobs"][1:]:
        values = [entry["logprob"] for entry in position.values()]
        if max(values) > 1e-3:
            raise TeacherError(
                f"it answers {max(values):.2f} as a log-probability: it was started with a `--logprobs-mode` that is not "
                "`raw_logprobs` or `processed_logprobs`"
            )
    tempered = await _probe(endpoint, served.id, served.probe, temperature=0.7)
    difference = max(abs(a - b) for a, b in zip(tempered, served.logps, strict=True))
    if difference > TOLERANCE:
        logger.warning(
            f"The log-probabilities of {endpoint.url} follow `temperature` (by up to {difference:.2f} nats at 0.7), which "
            "those of vLLM 0.22 to 0.31 do not. Temperature 1 is asked for, so they are right."
        )
