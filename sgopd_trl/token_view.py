"""One rollout's tokens, coloured by what verifier and teacher say about them: for notebooks."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.data_utils import is_conversational
from trl.trainer.utils import selective_log_softmax

from .advantages import reverse_kl_advantage, token_classes
from .diagnostics import CLASS_NAMES
from .figures import CLASS_COLOURS


@dataclass(frozen=True)
class TokenRecord:
    """One token of a rollout.

    Attributes:
        text: the token as the tokenizer decodes it, special tokens included.
        a2: reverse-KL advantage in nats, teacher minus student: positive where the teacher likes the token more.
        class_name: "agree", "disagree" or "neutral" (Eq. 4).
    """

    text: str
    a2: float
    class_name: str


def score_tokens(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[dict[str, Any]],
    completion_ids: Sequence[int],
    a1: float,
    temperature: float = 1.0,
) -> list[TokenRecord]:
    """Class and a2 of each token of one rollout.

    Args:
        prompt: text, or messages, to which the tokenizer's chat template is applied.
        completion_ids: L token ids; a tail of padding has to be cut off before.
        a1: outcome advantage of the rollout (its reward standardised within its group); only the sign counts.
        temperature: the sampling temperature, for both models.

    Returns:
        L records.

    Raises:
        ValueError: the completion is empty.
    """
    if len(completion_ids) == 0:
        raise ValueError("the completion is empty: there is no token to score")
    if is_conversational({"prompt": prompt}):
        text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # the template has written them
    else:
        prompt_ids = tokenizer(prompt)["input_ids"]
    ids, length = [*prompt_ids, *map(int, completion_ids)], len(completion_ids)
    a2 = reverse_kl_advantage(*(token_logps(model, ids, length, temperature) for model in (teacher, student)))
    classes = token_classes(torch.tensor([a1], dtype=a2.dtype), a2.unsqueeze(0))[0]
    return [
        TokenRecord(tokenizer.decode([token]), value, CLASS_NAMES[int(sign)])
        for token, value, sign in zip(ids[-length:], a2.tolist(), classes.tolist(), strict=True)
    ]


def token_logps(model: PreTrainedModel, ids: Sequence[int], length: int, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of the last `length` of one sequence's token ids: (length,) nats, float32, on the CPU."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output = model(input_ids=torch.tensor([list(ids)], device=model.device), logits_to_keep=length + 1)
    finally:
        model.train(training)
    logits = output.logits[:, :-1].float() / temperature
    return selective_log_softmax(logits, torch.tensor([list(ids[-length:])], device=logits.device))[0].cpu()


_MEANING = {
    "agree": "verifier and teacher agree: extrapolated",
    "disagree": "they disagree: the fallback",
    "neutral": "one of the two is silent: the fallback",
}
_SPAN = "display:inline-block;padding:0 3px;margin:1px;border-radius:3px;color:{ink};background:{colour}"


def to_html(records: Sequence[TokenRecord]) -> str:
    """The tokens as a self-contained piece of HTML: one coloured box each, a2 in its tooltip, a legend below.

    Tokens whose a2 is positive are underlined, so that the direction does not need the tooltip.
    """
    boxes = "".join(
        _box(_visible(token.text), token.class_name, f"a2 = {token.a2:+.3f} nats, {token.class_name}", token.a2 > 0)
        for token in records
    )
    legend = " &nbsp; ".join(f"{_box(name, name, text)} {text}" for name, text in _MEANING.items())
    return (
        f'<div style="font-family:monospace;line-height:1.9">{boxes}</div>'
        f'<div style="font-size:85%;margin-top:4px">{legend} &nbsp; <u>underlined</u>: the teacher likes the token '
        "more than the student does (a2 &gt; 0)</div>"
    )


def _box(text: str, class_name: str, tooltip: str, underlined: bool = False) -> str:
    style = _SPAN.format(ink="white" if class_name == "agree" else "black", colour=CLASS_COLOURS[class_name])
    style += ";text-decoration:underline" if underlined else ""
    return f'<span style="{style}" title="{html.escape(tooltip)}">{html.escape(text)}</span>'


def _visible(text: str) -> str:
    """White space as characters that show."""
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "∅"
