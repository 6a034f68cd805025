"""Token ids of a problem's prompt."""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str | list[dict[str, Any]],
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[int]:
    """A prompt as a model is asked it: text as it is, messages by the tokenizer's template.

    Args:
        chat_template_kwargs: for the template.
    """
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    return tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_dict=True, **(chat_template_kwargs or {})
    )["input_ids"]
