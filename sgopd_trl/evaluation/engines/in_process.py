"""The model in this process, with transformers."""

from collections.abc import Generator, Sequence

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ...frozen import eos_token_ids
from ...seeded_sampling import sampling_processors
from ...teachers.protocol import SamplingSettings
from .protocol import Finished, Request, Sample


class TransformersEngine:
    """Batches of prompts of similar length, each completion drawn from random numbers of its own.

    A sample therefore does not depend on its batch, nor on what was done before an interruption, as far as the model's
    arithmetic does not: sums over a padded batch may be rounded otherwise.

    Args:
        model: in evaluation mode. tokenizer: its own. batch_size: completions at a time.
    """

    served = None

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 256):
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        self.model = model
        self.batch_size = batch_size
        self.vocab_size = len(tokenizer)
        self.ends = sorted(
            {*eos_token_ids(model), *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])}
        )
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (self.ends or [0])[0]

    @classmethod
    def load(
        cls,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        revision: str | None = None,
        longest_prompt: int,
        max_new_tokens: int,
        dtype: str | None = None,
        trust_remote_code: bool = False,
        batch_size: int = 256,
    ) -> "TransformersEngine":
        """Loads the model onto the GPU where there is one.

        Args:
            longest_prompt, max_new_tokens: tokens, for which the model must have positions.

        Raises:
            ValueError: when it has not. OSError: when it cannot be had.
        """
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
        limit, needed = _positions(config), longest_prompt + max_new_tokens
        if limit is not None and needed > limit:
            raise ValueError(
                f"{model} has positions for {limit} tokens (`max_position_embeddings`), but the longest prompt "
                f"({longest_prompt}) and `max_new_tokens` ({max_new_tokens}) need {needed}. Lower --max_new_tokens."
            )
        loaded = AutoModelForCausalLM.from_pretrained(
            model, revision=revision, dtype=dtype or "auto", trust_remote_code=trust_remote_code
        )
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        return cls(loaded.to(device).eval(), tokenizer, batch_size)

    def generate(self, requests: Sequence[Request], settings: SamplingSettings) -> Generator[Finished, None, None]:
        # Longest first: where memory does not suffice, that is seen at once
        ordered = sorted(requests, key=lambda request: -len(request.prompt_ids))
        for start in range(0, len(ordered), self.batch_size):
            batch = ordered[start : start + self.batch_size]
            yield list(zip(batch, self._batch(batch, settings), strict=True))

    def _batch(self, requests: Sequence[Request], settings: SamplingSettings) -> list[Sample]:
        longest = max(len(request.prompt_ids) for request in requests)
        ids = torch.full((len(requests), longest), self.pad)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(requests):
            ids[row, longest - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
            mask[row, longest - len(request.prompt_ids) :] = 1
        # Greedy over what the processors drew; every other setting neutral, so that none of the model's own is merged in
        config = GenerationConfig(
            do_sample=False,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            num_beams=1,
            max_new_tokens=settings.max_new_tokens,
            use_cache=True,
            pad_token_id=self.pad,
            eos_token_id=self.ends or None,
        )
        output = self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            generation_config=config,
            logits_processor=sampling_processors([r.seed for r in requests], settings, self.vocab_size),
        )
        return [self._sample(row, settings.max_new_tokens) for row in output[:, longest:].tolist()]

    def _sample(self, ids: list[int], limit: int) -> Sample:
        for place, token in enumerate(ids):
            if token in self.ends:
                return Sample(ids[: place + 1], "stop")
        return Sample(ids[:limit], "length")

    def close(self) -> None:
        self.model = None


def _positions(config: PreTrainedConfig) -> int | None:
    """Tokens that a model has positions for, rope scaling included; `None` where its config does not say."""
    config = config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if limit is None or "factor" not in rope:
        return limit
    return max(limit, int((rope.get("original_max_position_embeddings") or limit) * rope["factor"]))
