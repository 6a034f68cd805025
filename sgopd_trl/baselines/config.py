"""The settings of the baselines: TRL's own, and the few that their data and their evaluation need."""

from dataclasses import dataclass, field
from typing import Any

from trl import DistillationConfig, GRPOConfig, SFTConfig


_BANK_HELP = "Folder of the teacher's rollouts, which `sgopd teacher-rollouts --prompts all` fills."


@dataclass
class HeldOutConfig:
    """What counts as correct, for evaluation on held-out problems. The names are those of `SGOPDConfig`."""

    correct_reward_threshold: float = field(
        default=0.5,
        metadata={
            "help": "A completion is correct when the weighted sum of its rewards is above this, as in `SGOPDConfig`."
        },
    )
    zero_truncated_reward: bool = field(
        default=True,
        metadata={
            "help": "Give truncated completions the verifier reward 0 (penalties stay), as in `SGOPDConfig`: in evaluation, "
            "in GRPO's training and in GKD's logs."
        },
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weights of the reward functions, as in `GRPOConfig`. Default: 1 each."}
    )


@dataclass
class PromptConfig:
    """Which prompts of the training data are kept. The name is that of `SGOPDConfig`."""

    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Longest prompt, in tokens; longer ones are filtered, not truncated. Appendix C: 2,048."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.max_prompt_length is not None:
            _check_at_least_one(self, "max_prompt_length")


@dataclass
class SFTBaselineConfig(HeldOutConfig, SFTConfig):
    """
    Configuration of [`SFTOnRollouts`]: every argument of [`~trl.SFTConfig`], and those below.

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `max_length`: `None` instead of `1024`, so that no rollout is cut.
    > - `learning_rate`: `1e-5` (Appendix C of the paper) instead of `2e-5`.
    """

    _VALID_DICT_FIELDS = SFTConfig._VALID_DICT_FIELDS + ["chat_template_kwargs"]

    max_length: int | None = field(
        default=None, metadata={"help": "Longest sequence, in tokens; longer ones are cut. Default: none is."}
    )
    learning_rate: float = field(default=1e-5, metadata={"help": "Initial learning rate. Appendix C: 1e-5."})
    teacher_bank: str | None = field(default=None, metadata={"help": _BANK_HELP})

    # Parameters that control generation in evaluation
    num_generations_eval: int = field(
        default=8, metadata={"help": "K, completions a held-out problem in evaluation: `eval_avg@K`, `eval_pass@K`."}
    )
    max_completion_length: int = field(default=512, metadata={"help": "Longest completion in evaluation, in tokens."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature in evaluation."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus in evaluation."})
    top_k: int = field(default=0, metadata={"help": "Top-k in evaluation; 0 keeps every token."})
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments for the chat template of the prompts in evaluation."}
    )

    def __post_init__(self):
        super().__post_init__()
        _check_at_least_one(self, "num_generations_eval", "max_completion_length")


@dataclass
class GKDConfig(PromptConfig, HeldOutConfig, DistillationConfig):
    r"""
    Configuration of [`GKDTrainer`]: every argument of [`~trl.DistillationConfig`], and those below.

    The defaults are those of the GKD paper (Agarwal et al., 2024, arXiv:2306.13649) for arithmetic reasoning: "On-policy
    GKD trains on output sequences sampled from the student. For GKD, we use JSD (0.1) on WMT and forward KL on other
    tasks" (Figure 1); the student samples at temperature 1 (Section 3).

    > [!NOTE]
    > These parameters have default values different from [`~trl.DistillationConfig`]:
    > - `beta`: `0.0` (forward KL) instead of `1.0` (reverse KL).
    > - `learning_rate`: `1e-5` (Appendix C of the SG-OPD paper) instead of `1e-6`.
    """

    beta: float = field(
        default=0.0,
        metadata={
            "help": "Divergence, as TRL has it: 0 forward KL, 0.5 JSD, 1 reverse KL. GKD's Figure 1: forward KL on GSM8K. "
            "Not the KL coefficient of `trainer: sgopd` and `trainer: grpo`."
        },
    )
    learning_rate: float = field(default=1e-5, metadata={"help": "Initial learning rate. Appendix C: 1e-5."})
    lmbda: float = field(
        default=1.0,
        metadata={
            "help": "lambda, in [0, 1]: probability that a generation batch is the student's own; the others are the "
            "teacher's rollouts of the same prompts, from `teacher_bank` (GKD's Algorithm 1). GKD's Figure 1: 1."
        },
    )
    teacher_bank: str | None = field(default=None, metadata={"help": f"{_BANK_HELP} Not read at `lmbda` = 1."})
    num_generations_eval: int = field(
        default=8,
        metadata={
            "help": "K, completions a held-out problem in evaluation: `eval_avg@K`, `eval_pass@K`. They are sampled with "
            "transformers, also with `use_vllm`."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        _check_at_least_one(self, "num_generations_eval")
        if self.eval_strategy != "no":
            for name, neutral in (
                ("min_p", (None, 0.0)),
                ("repetition_penalty", (1.0,)),
                ("generation_kwargs", (None, {})),
            ):
                if getattr(self, name) not in neutral:
                    raise ValueError(
                        f"The held-out problems are sampled by `temperature`, `top_p` and `top_k` alone, but `{name}` is "
                        f"{getattr(self, name)!r}: leave it out, or set `eval_strategy: 'no'`."
                    )
        if not 0 <= self.lmbda <= 1:
            raise ValueError(f"`lmbda` must be in [0, 1], got {self.lmbda!r}.")
        if self.lmbda < 1 and self.teacher_bank is None:
            raise ValueError(
                f"`lmbda` = {self.lmbda} takes the teacher's rollouts for {1 - self.lmbda:.0%} of the batches: name their "
                "folder as `teacher_bank` (`sgopd teacher-rollouts --prompts all` fills it), or set `lmbda` to 1."
            )


@dataclass
class GRPOBaselineConfig(PromptConfig, HeldOutConfig, GRPOConfig):
    """Configuration of [`GRPOBaseline`]: every argument of [`~trl.GRPOConfig`], with TRL's defaults, and those above."""


def _check_at_least_one(args: Any, *names: str) -> None:
    for name in names:
        if getattr(args, name) < 1:
            raise ValueError(f"`{name}` must be >= 1, got {getattr(args, name)!r}.")
