"""`SGOPDConfig`: what SG-OPD needs beyond TRL's `GRPOConfig`, under the names of the paper's Appendix C."""

from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from .advantages import AGREE_MODES, DISAGREE_MODES, GATES, NEUTRAL_MODES
from .routing import Router
from .teacher_loss import TEACHER_PHIS, TEACHER_REDUCTIONS
from .teachers.config import TeacherConfig
from .vocabulary_config import VocabularyConfig


@dataclass
class SGOPDConfig(TeacherConfig, VocabularyConfig, GRPOConfig):
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

    # Parameters that control the reference; those of the teachers are in TeacherConfig
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

    # Parameters that control the sign-consistency gate
    sign_gated_extrapolation: bool = field(
        default=True,
        metadata={
            "help": "Route tokens by the gate of Eq. (4). Off: G-OPD at `lambda_base` on every token, which is OPD at 1 "
            "and ExOPD beyond."
        },
    )
    gate: str = field(
        default="sign",
        metadata={
            "help": "Which tokens count as consensus. 'sign': a1 * a2 > 0 (Eq. 4). 'positive': a1 > 0 and a2 > 0. "
            "'random': a seeded coin with the sign gate's share, a control. 'two_level': four sign cells with "
            "`gate_cell_lambdas` (Appendix H). 'never': none, so that every token takes the fallback.",
            "choices": list(GATES),
        },
    )
    lambda_high: float = field(
        default=1.8,
        metadata={"help": "lambda_high: extrapolation strength on consensus tokens, Eq. (6). Table 3: 1.8."},
    )
    lambda_base: float = field(
        default=1.0,
        metadata={
            "help": "lambda_base: strength without a gate, and of `disagree_mode='preserve'`. Ours: 1.0, plain OPD."
        },
    )
    gate_cell_lambdas: list[float] | None = field(
        default=None,
        metadata={
            "help": "Strengths of the sign cells (a1 a2) ++, +-, -+, -- of gate='two_level' (Appendix H). Ours: "
            "lambda_high, lambda_base, lambda_base, lambda_high."
        },
    )
    agree_mode: str = field(
        default="extrapolate",
        metadata={
            "help": "What consensus tokens get. 'extrapolate': G-OPD at lambda_high (Eq. 6). 'reinforce': a2 + "
            "`verifier_weight` * a1, the verifier's own gradient where the teacher agrees with it; no reference is "
            "needed. Ours (docs/experiments.md).",
            "choices": list(AGREE_MODES),
        },
    )
    verifier_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of a1, in nats for each unit, with agree_mode='reinforce'. Ours: 1."},
    )
    disagree_mode: str = field(
        default="interp",
        metadata={
            "help": "Fallback on conflict tokens. 'interp': beta * a2 (Eq. 7). 'preserve': G-OPD at lambda_base. "
            "'grpo': a1. 'mask': 0. Table 3: 'interp'.",
            "choices": list(DISAGREE_MODES),
        },
    )
    disagree_interp_beta: float = field(
        default=1.0,
        metadata={"help": "beta of disagree_mode='interp', in [0, 1], Eq. (7). Table 3: 1. Not TRL's KL `beta`."},
    )
    neutral_mode: str = field(
        default="conflict",
        metadata={
            "help": "Tokens with a1 * a2 = 0. 'conflict': the fallback, as Eq. (4) reads. 'opd': a2, as Figure 7's "
            "'unaffected by the gate'. The same thing at beta = 1.",
            "choices": list(NEUTRAL_MODES),
        },
    )
    stability_tau: float | None = field(
        default=10.0,
        metadata={"help": "tau, in nats, of the stability weight phi of Eq. (9); None switches phi off. Ours: 10."},
    )
    zero_truncated_reward: bool = field(
        default=True,
        metadata={
            "help": "Give truncated completions the verifier reward 0 (penalties stay); the teacher's signal on them is kept. Ours "
            "(docs/method.md, deviation 8)."
        },
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
        self.check_teachers()
        for name, allowed in (
            ("gate", GATES),
            ("agree_mode", AGREE_MODES),
            ("disagree_mode", DISAGREE_MODES),
            ("neutral_mode", NEUTRAL_MODES),
            ("teacher_sft_reduction", TEACHER_REDUCTIONS),
            ("teacher_sft_phi", TEACHER_PHIS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {list(allowed)}, got {getattr(self, name)!r}.")
        for name, ok, expected in (
            ("lambda_high", self.lambda_high >= 1, ">= 1"),
            ("lambda_base", self.lambda_base >= 1, ">= 1"),
            ("verifier_weight", self.verifier_weight > 0, "> 0"),
            ("disagree_interp_beta", 0 <= self.disagree_interp_beta <= 1, "in [0, 1]"),
            ("stability_tau", self.stability_tau is None or self.stability_tau > 0, "None or > 0"),
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
        if self.gate_cell_lambdas is not None and (
            len(self.gate_cell_lambdas) != 4 or any(lam < 1 for lam in self.gate_cell_lambdas)
        ):
            raise ValueError(f"`gate_cell_lambdas` must be four values >= 1, got {self.gate_cell_lambdas!r}.")
        if self.steps_per_generation % self.gradient_accumulation_steps != 0:
            raise ValueError(
                "An optimizer step must lie within one generation batch, so that phi's mean and the teacher loss are "
                "exact: `steps_per_generation` must be a multiple of `gradient_accumulation_steps` "
                f"({self.gradient_accumulation_steps}), got {self.steps_per_generation!r}."
            )

        if self.agree_mode == "reinforce":
            self._check_reinforce()
        self.check_vocabulary()

    def _check_reinforce(self) -> None:
        for name, ok, expected in (
            ("sign_gated_extrapolation", self.sign_gated_extrapolation, "True: without the gate no token is consensus"),
            ("gate", self.gate not in ("two_level", "never"), "'sign', 'positive' or 'random'"),
            ("reverse_kl", self.reverse_kl == "sampled_token", "'sampled_token': a1 belongs to the sampled token"),
        ):
            if not ok:
                raise ValueError(
                    f"With `agree_mode='reinforce'`, `{name}` must be {expected}, got {getattr(self, name)!r}."
                )

    def router(self) -> Router:
        """The routing these settings describe (Eq. 4 to 8)."""
        cells = self.gate_cell_lambdas or [self.lambda_high, self.lambda_base, self.lambda_base, self.lambda_high]
        return Router(
            gate=self.gate if self.sign_gated_extrapolation else None,
            lambda_high=self.lambda_high,
            lambda_base=self.lambda_base,
            disagree_mode=self.disagree_mode,
            beta=self.disagree_interp_beta,
            neutral_mode=self.neutral_mode,
            cells=tuple(cells),
            agree_mode=self.agree_mode,
            verifier_weight=self.verifier_weight,
        )
