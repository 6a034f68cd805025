"""`SGOPDConfig`: what SG-OPD needs beyond TRL's `GRPOConfig`, under the names of the paper's Appendix C."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from trl import GRPOConfig

from .gate_config import GateConfig
from .teacher_loss import TEACHER_PHIS, TEACHER_REDUCTIONS
from .teachers.config import TeacherConfig
from .vocabulary_config import VocabularyConfig


@dataclass
class SGOPDConfig(TeacherConfig, VocabularyConfig, GateConfig, GRPOConfig):
    r"""
    Configuration of [`SGOPDTrainer`]: every argument of [`~trl.GRPOConfig`], and those below.

    "Ours" marks a default that the paper does not give; docs/experiments.md holds the study that chose it.

    > [!NOTE]
    > These parameters have default values different from [`~trl.GRPOConfig`]:
    > - `loss_type`: `"grpo"` (Eq. 10) instead of `"dapo"`.
    > - `learning_rate`: `1e-5` (Appendix C) instead of `1e-6`.
    > - `vllm_importance_sampling_mode`: `"token_truncate"` instead of `"sequence_mask"`, and
    >   `vllm_importance_sampling_clip_max`: `5.0` instead of `3.0` (Appendix C, "rollout-importance correction").
    """

    _VALID_DICT_FIELDS = GRPOConfig._VALID_DICT_FIELDS + [
        "teacher_model_init_kwargs",
        "teachers",
        "reference_model_init_kwargs",
    ]

    # Parameters whose default values are overridden from GRPOConfig
    loss_type: str = field(
        default="grpo",
        metadata={"help": "TRL's loss formulation. Eq. (10) is 'grpo': mean over sequences of mean over tokens."},
    )
    learning_rate: float = field(
        default=1e-5, metadata={"help": "Initial learning rate. Appendix C: 1e-5, no warm-up."}
    )
    vllm_importance_sampling_mode: str = field(
        default="token_truncate",
        metadata={"help": "How vLLM's log-probabilities are corrected. Appendix C: per token, truncated."},
    )
    vllm_importance_sampling_clip_max: float | None = field(
        default=5.0, metadata={"help": "Upper bound of the importance-sampling ratio. Appendix C: 5.0."}
    )

    # Parameters that control the reference; those of the gate are in GateConfig, those of the teachers in TeacherConfig
    reference_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Reference pi_ref of Eq. (5). Default: the student's initial state. Another model, such as the "
            "teacher's pre-RL base, is G-OPD's reward correction (Section 6)."
        },
    )
    reference_model_revision: str | None = field(
        default=None, metadata={"help": "Revision of the reference (branch, tag or commit)."}
    )
    reference_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments for `from_pretrained` of the reference."}
    )

    # Parameters that control phased teacher sampling
    teacher_sampling_enable: bool = field(
        default=True, metadata={"help": "Phased teacher sampling (PTS): the anchor alpha(t) L_SLT of Eq. (2) and (11)."}
    )
    teacher_sampling_ratio: float = field(
        default=0.125,
        metadata={
            "help": "rho, in [0, 1): share of teacher prompts in a batch. Appendix H: 0.125. They are drawn in addition "
            "to the student's: rho / (1 - rho) of their number."
        },
    )
    teacher_sampling_phase1_end_frac: float = field(
        default=0.30,
        metadata={
            "help": "P1, end of the constant phase of alpha(t), Eq. (3): a fraction of max_steps up to 1, beyond that a "
            "number of steps. Table 3: 30 of 100."
        },
    )
    teacher_sampling_phase2_end_frac: float = field(
        default=0.35,
        metadata={"help": "P2, end of the cosine phase; alpha(t) is 0 after it. Table 3: 35 of 100."},
    )
    teacher_sft_alpha_0: float = field(
        default=0.1, metadata={"help": "alpha_0: weight of the anchor in the constant phase, Eq. (3). Ours: 0.1."}
    )
    teacher_sft_alpha_end: float = field(
        default=0.0, metadata={"help": "alpha_end: weight at the end of the cosine phase, Eq. (3). Ours: 0."}
    )
    teacher_sft_reduction: str = field(
        default="token_mean",
        metadata={
            "help": "Reduction of L_SLT over the optimizer step. 'sum' is Eq. (2) to the letter. Ours: 'token_mean'.",
            "choices": list(TEACHER_REDUCTIONS),
        },
    )
    teacher_sft_phi: str = field(
        default="none",
        metadata={
            "help": "Token weight of L_SLT. 'chord': p (1 - p), detached (Appendix C, `teacher_sft_phi_*`).",
            "choices": list(TEACHER_PHIS),
        },
    )
    teacher_sampling_filter_correct: bool = field(
        default=True,
        metadata={"help": "Keep only teacher rollouts that verify, Eq. (2). Off is the ablation of Section 5.3."},
    )
    teacher_temperature: float = field(
        default=1.0, metadata={"help": "Sampling temperature of teacher rollouts; 0 is greedy."}
    )
    teacher_top_p: float = field(default=1.0, metadata={"help": "Nucleus of teacher rollouts."})
    teacher_top_k: int = field(default=0, metadata={"help": "Top-k of teacher rollouts; 0 keeps every token."})
    teacher_max_completion_length: int | None = field(
        default=None,
        metadata={"help": "Longest teacher rollout, in tokens. Appendix C: 14,336. Default: `max_completion_length`."},
    )

    # Parameters that control the verifier and the data
    zero_truncated_reward: bool = field(
        default=True,
        metadata={
            "help": "Give truncated completions the verifier reward 0 (penalties stay); the teacher's signal on them is kept. Ours "
            "(docs/method.md, deviation 8)."
        },
    )
    correct_reward_threshold: float = field(
        default=0.5,
        metadata={
            "help": "A rollout is correct when its weighted reward is above this. Ours: 0.5, for binary rewards."
        },
    )
    answer_column: str | None = field(
        default="solution",
        metadata={
            "help": "Column with the gold answer. Before training, each answer given as a completion must be correct. "
            "Skipped when None, or where the dataset has no such column."
        },
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Longest prompt, in tokens; longer ones are filtered, not truncated. Appendix C: 2,048."},
    )

    # Parameters that control scoring
    scoring_tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "Token budget (padding included) of one scoring forward pass of student, teacher or reference; "
            "sequences are scored in order of length, and one over the budget alone. Default: the tokens of one "
            "training micro-batch, so that scoring needs no more memory than the update."
        },
    )
    reuse_sampling_logps: bool = field(
        default=True,
        metadata={
            "help": "Keep the student's log-probabilities while transformers samples, instead of a second forward pass "
            "over the rollouts for a2. No effect where TRL computes them itself (vLLM, num_iterations > 1)."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        for setting in fields(self):
            value = getattr(self, setting.name)
            own = setting.name not in GRPOConfig.__dataclass_fields__
            if own and isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"`{setting.name}` must be finite, got {value!r}. {setting.metadata['help']}")
        self.check_teachers()
        for name, allowed in (
            ("teacher_sft_reduction", TEACHER_REDUCTIONS),
            ("teacher_sft_phi", TEACHER_PHIS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {list(allowed)}, got {getattr(self, name)!r}.")
        for name, ok, expected in (
            ("teacher_sampling_ratio", 0 <= self.teacher_sampling_ratio < 1, "in [0, 1)"),
            ("teacher_sampling_phase1_end_frac", self.teacher_sampling_phase1_end_frac >= 0, ">= 0"),
            ("teacher_sft_alpha_0", self.teacher_sft_alpha_0 >= 0, ">= 0"),
            (
                "teacher_sft_alpha_end",
                0 <= self.teacher_sft_alpha_end <= self.teacher_sft_alpha_0,
                f"in [0, teacher_sft_alpha_0 = {self.teacher_sft_alpha_0}]",
            ),
            ("teacher_temperature", self.teacher_temperature >= 0, ">= 0"),
            ("teacher_top_p", 0 < self.teacher_top_p <= 1, "in (0, 1]"),
            ("teacher_top_k", self.teacher_top_k >= 0, ">= 0"),
            ("teacher_max_completion_length", (self.teacher_max_completion_length or 1) >= 1, "None or >= 1"),
            ("max_prompt_length", (self.max_prompt_length or 1) >= 1, "None or >= 1"),
            (
                "scoring_tokens_per_batch",
                self.scoring_tokens_per_batch is None or self.scoring_tokens_per_batch >= 1,
                "None or >= 1",
            ),
        ):
            if not ok:
                raise ValueError(f"`{name}` must be {expected}, got {getattr(self, name)!r}.")
        p1, p2 = self.teacher_sampling_phase1_end_frac, self.teacher_sampling_phase2_end_frac
        if (p1 <= 1) != (p2 <= 1) and p1 != 0:
            raise ValueError(
                "`teacher_sampling_phase1_end_frac` and `teacher_sampling_phase2_end_frac` must both be fractions of "
                f"max_steps (<= 1) or both numbers of steps (> 1), got {p1!r} and {p2!r}."
            )
        if p2 < p1:
            raise ValueError(
                f"`teacher_sampling_phase2_end_frac` must not be below `teacher_sampling_phase1_end_frac` ({p1!r}), got "
                f"{p2!r}."
            )
        if self.steps_per_generation % self.gradient_accumulation_steps != 0:
            raise ValueError(
                "An optimizer step must lie within one generation batch, so that phi's mean and the teacher loss are "
                "exact: `steps_per_generation` must be a multiple of `gradient_accumulation_steps` "
                f"({self.gradient_accumulation_steps}), got {self.steps_per_generation!r}."
            )
        self.check_gate()
        self.check_vocabulary()
