"""What tells a model and its prompts from others that go by the same name."""

import hashlib
import json

from transformers import PreTrainedTokenizerBase
from transformers.utils.hub import cached_file, extract_commit_hash

from ..teachers.identity import weights_hash


def weights_of(model: str, revision: str | None = None) -> str | None:
    """Hash of a directory's weights, or the commit that a Hub id's branch or tag stands for now; `None` where neither is known."""
    found = weights_hash(model)
    if found is not None:
        return found
    config = cached_file(
        model,
        "config.json",
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return extract_commit_hash(config, None)


def chat_template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Of the template that makes the prompts; `None` where there is none."""
    if tokenizer.chat_template is None:
        return None
    return hashlib.sha256(json.dumps(tokenizer.chat_template, sort_keys=True).encode()).hexdigest()[:16]
