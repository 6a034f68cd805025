"""What an evaluation's samples and verdicts depend on, and what its figures do."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any


ENGINES = ("vllm", "server", "transformers")

# May differ when an evaluation goes on: no sample depends on them
_FIGURES_ONLY = ("k", "n", "confidence", "bootstrap_samples", "bootstrap_seed")
_VERDICTS_ONLY = ("verifier", "verifier_settings")
# Arguments of `apply_chat_template` that never reach the template
_NOT_FOR_TEMPLATES = (
    *("conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "padding"),
    *("truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
)


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings of `sgopd eval`. Defaults are the paper's (Section 5.1, "Evaluation").

    Args:
        model: Hub id, directory or "miniature:NAME". revision: of a Hub id.
        weights: hash of a directory's weights, or commit of a Hub id. chat_template: hash of the one that makes the prompts.
        engine: one of `ENGINES`. dtype: of the weights; `None` is the engine's choice.
        vllm_settings: further arguments of vLLM's `LLM`.
        k: of avg@k and pass@k. n: samples a problem, at least k; `None`: k.
        temperature: 0 is greedy, for n = 1 only. top_p: nucleus, in (0, 1]. max_new_tokens: tokens.
        seed: of the samples; each has its own, made from this one, the benchmark's name, the problem's
            place and the sample's number.
        system_prompt: before every prompt. chat_template_kwargs: for the chat template.
        verifier, verifier_settings: what judges the samples (docs/verifiers.md).
        confidence, bootstrap_samples, bootstrap_seed: of the intervals.

    Raises:
        ValueError: for a setting that is out of range.
    """

    model: str
    engine: str = "vllm"
    revision: str | None = None
    weights: str | None = None
    chat_template: str | None = None
    dtype: str | None = None
    vllm_settings: dict[str, Any] | None = None
    k: int = 32
    n: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 16384
    seed: int = 0
    system_prompt: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    verifier: str = "math"
    verifier_settings: dict[str, Any] = field(default_factory=dict)
    confidence: float = 0.95
    bootstrap_samples: int = 10_000
    bootstrap_seed: int = 0

    def __post_init__(self):
        if self.engine not in ENGINES:
            raise ValueError(f"`engine` must be one of {', '.join(ENGINES)}, got {self.engine!r}.")
        for name in ("k", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.n is None:
            object.__setattr__(self, "n", self.k)
        if self.n < self.k:
            raise ValueError(
                f"`n` must be at least `k` (pass@k needs k samples of each problem), got {self.n} < {self.k}."
            )
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"`temperature` must be finite and not negative, got {self.temperature}.")
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"`temperature` 0 is greedy: {self.n} samples would be the same. Set `k` and `n` to 1.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` must be in (0, 1], got {self.top_p}.")
        if self.seed < 0:
            raise ValueError(f"`seed` must not be negative, got {self.seed}.")
        if taken := [name for name in self.chat_template_kwargs if name in _NOT_FOR_TEMPLATES]:
            raise ValueError(
                f"`chat_template_kwargs` holds {', '.join(map(repr, taken))}, which the evaluation sets itself. Leave it out: "
                "these are for the template, as `enable_thinking` is."
            )
        check_bootstrap(self.confidence, self.bootstrap_samples, self.bootstrap_seed)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def of_samples(self) -> dict[str, Any]:
        """What the samples depend on."""
        return {k: v for k, v in asdict(self).items() if k not in (*_FIGURES_ONLY, *_VERDICTS_ONLY)}

    def of_verdicts(self) -> dict[str, Any]:
        """What the verdicts depend on beside the samples."""
        return {k: v for k, v in asdict(self).items() if k in _VERDICTS_ONLY}


def check_bootstrap(confidence: float, bootstrap_samples: int, bootstrap_seed: int) -> None:
    """Refuse settings of the intervals that are out of range.

    Raises:
        ValueError: naming the setting.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be in (0, 1), got {confidence}.")
    if bootstrap_samples < 1:
        raise ValueError(f"`bootstrap_samples` must be at least 1, got {bootstrap_samples}.")
    if bootstrap_seed < 0:
        raise ValueError(f"`bootstrap_seed` must not be negative, got {bootstrap_seed}.")


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The settings that differ, as text; empty where none does."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return "; ".join(f"`{name}` was {old.get(name)!r} and is now {new.get(name)!r}" for name in names)
