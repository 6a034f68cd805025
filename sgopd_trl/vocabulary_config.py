"""The settings of `SGOPDConfig` that take a token's loss over the vocabulary: full-vocabulary reverse KL and AOPD."""

from dataclasses import dataclass, field

from .vocabulary_loss import NEGATIVE_ADVANTAGE_MODES, REVERSE_KLS


@dataclass
class VocabularyConfig:
    """Losses over the vocabulary in place of the sampled token's policy gradient; docs/method.md has what they are."""

    reverse_kl: str = field(
        default="sampled_token",
        metadata={
            "help": "How a token's reverse KL is computed. 'sampled_token': policy gradient on the sampled token (Eq. 1). "
            "'full_vocabulary': its expectation over the vocabulary (Appendix H). Needs teachers in this process.",
            "choices": list(REVERSE_KLS),
        },
    )
    reverse_kl_top_k: int | None = field(
        default=None,
        metadata={
            "help": "With reverse_kl='full_vocabulary': the student's k most likely tokens in place of the vocabulary, "
            "renormalised. Default: the whole vocabulary, exact."
        },
    )
    negative_advantage_mode: str = field(
        default="policy_gradient",
        metadata={
            "help": "What tokens with a2 <= 0 get. 'forward_kl': AOPD (arXiv 2605.06387), a truncated forward KL to the "
            "teacher in place of the policy gradient; needs sign_gated_extrapolation=False and teachers in this process.",
            "choices": list(NEGATIVE_ADVANTAGE_MODES),
        },
    )
    forward_kl_top_k: int = field(
        default=32,
        metadata={"help": "With negative_advantage_mode='forward_kl': the teacher's k most likely tokens. Ours: 32."},
    )

    @property
    def vocabulary_setting(self) -> str | None:
        """The setting that has losses over the vocabulary computed, for messages; `None` where there are none."""
        if self.reverse_kl == "full_vocabulary":
            return "reverse_kl='full_vocabulary'"
        return "negative_advantage_mode='forward_kl'" if self.negative_advantage_mode == "forward_kl" else None

    def check_vocabulary(self) -> None:
        """Called once all settings are known.

        Raises:
            ValueError: for a value that is out of range, and for settings that do not go together.
        """
        for name, allowed in (("reverse_kl", REVERSE_KLS), ("negative_advantage_mode", NEGATIVE_ADVANTAGE_MODES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {list(allowed)}, got {getattr(self, name)!r}.")
        for name, ok, expected in (
            ("reverse_kl_top_k", self.reverse_kl_top_k is None or self.reverse_kl_top_k >= 1, "None or >= 1"),
            ("forward_kl_top_k", self.forward_kl_top_k >= 1, ">= 1"),
        ):
            if not ok:
                raise ValueError(f"`{name}` must be {expected}, got {getattr(self, name)!r}.")
        if self.reverse_kl_top_k is not None and self.reverse_kl != "full_vocabulary":
            raise ValueError(
                f"`reverse_kl_top_k` = {self.reverse_kl_top_k!r} needs `reverse_kl='full_vocabulary'`, got "
                f"{self.reverse_kl!r}. Set that, or leave `reverse_kl_top_k` out."
            )
        default = VocabularyConfig.forward_kl_top_k
        if self.forward_kl_top_k != default and self.negative_advantage_mode != "forward_kl":
            raise ValueError(
                f"`forward_kl_top_k` = {self.forward_kl_top_k!r} needs `negative_advantage_mode='forward_kl'`, got "
                f"{self.negative_advantage_mode!r}. Set that, or leave `forward_kl_top_k` at {default}."
            )
        setting = self.vocabulary_setting
        if setting is None:
            return
        if self.negative_advantage_mode == "forward_kl":
            if self.reverse_kl == "full_vocabulary":
                raise ValueError(
                    "`negative_advantage_mode='forward_kl'` splits the tokens by the sign of the sampled token's a2, which "
                    "`reverse_kl='full_vocabulary'` takes the expectation over. Choose one of them."
                )
            if self.sign_gated_extrapolation:
                raise ValueError(
                    "`negative_advantage_mode='forward_kl'` (AOPD) and the gate both decide what tokens with a2 <= 0 get. "
                    "Set `sign_gated_extrapolation=False`, or leave `negative_advantage_mode` at 'policy_gradient'."
                )
        sequence_level = self.vllm_importance_sampling_mode.startswith("sequence")
        for name, ok, expected in (
            ("loss_type", self.loss_type == "grpo", "'grpo' (Eq. 10)"),
            ("top_entropy_quantile", self.top_entropy_quantile == 1.0, "1.0"),
            ("off_policy_mask_threshold", self.off_policy_mask_threshold is None, "None"),
            (
                "vllm_importance_sampling_mode",
                not (self.use_vllm and self.vllm_importance_sampling_correction and sequence_level),
                "one of a token",
            ),
            ("teacher_server_url", self.teacher_server_url is None, "None: a server gives the sampled token alone"),
            (
                "teacher_recorded_path",
                self.teacher_recorded_path is None,
                "None: a recording has the sampled token alone",
            ),
            ("teacher_record_path", self.teacher_record_path is None, "None: a recording has the sampled token alone"),
        ):
            if not ok:
                raise ValueError(f"With `{setting}`, `{name}` must be {expected}, got {getattr(self, name)!r}.")
