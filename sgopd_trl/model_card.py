"""The part of the model card that TRL's template does not write: the method's settings and the run's figures."""

import re
import textwrap
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import TrainerState
from trl import GRPOConfig


PAPER = {
    "title": "SG-OPD: Sign-Gated On-Policy Distillation via Sign-Consistency Gating and Phased Teacher Sampling",
    # docstyle-ignore
    "citation": textwrap.dedent("""\
        @article{xu2026sgopd,
            title        = {{SG-OPD: Sign-Gated On-Policy Distillation via Sign-Consistency Gating and Phased Teacher Sampling}},
            author       = {Haoran Xu and Hongyu Wang and Yifei Gao and Jiaze Li and Xiaofeng Zhang and Xiaosong Yuan},
            year         = 2026,
        }"""),
}

_BEGIN, _END = "<!-- sgopd: begin -->", "<!-- sgopd: end -->"
_METHOD = (
    "SG-OPD distils a teacher into a student on the student's own rollouts: on tokens where the teacher's reverse-KL "
    "advantage a2 and the verifier's outcome advantage a1 have the same sign the distillation signal is extrapolated "
    "(lambda_high), on the others it is not (`disagree_mode`). In the first part of training the cross-entropy on "
    "verified rollouts of the teacher is added, with a weight alpha(t) that falls to zero (phased teacher sampling)."
)
_FIGURES = {
    "reward": "reward",
    "reverse_kl": "reverse KL to the teacher, nats a token",
    "sign/agree": "share of tokens with agreeing signs",
    "sign/disagree": "share of tokens with disagreeing signs",
    "sign/neutral": "share of neutral tokens",
    "teacher_sampling/alpha": "alpha(t)",
}


def add_method_section(path: str | Path, args: "SGOPDConfig", state: TrainerState) -> None:  # noqa: F821
    """Write the method, its settings and the run's last figures into TRL's card; twice is the same as once.

    Args:
        path: README.md of the run. args: the run's arguments. state: its state, for the steps and the logged values.

    Raises:
        ValueError: when the card has no heading before which the section belongs.
    """
    card = ModelCard.load(path)
    text = re.sub(rf"{_BEGIN}.*?{_END}\n*", "", card.text, flags=re.DOTALL)
    # TRL's template has a chat question, and the word None for models that are not on the Hub
    text = re.sub(r'^question = ".*"$', 'question = "..."  # like the prompts of the training data', text, flags=re.M)
    text = text.replace("[None](https://huggingface.co/None)", "a local checkpoint")
    text = text.replace('model="None"', 'model="path/to/this/folder"')
    heading = "### Framework versions"
    if heading not in text:
        raise ValueError(f"{path} has no heading {heading!r}, before which the section on SG-OPD belongs.")
    card.text = text.replace(heading, f"{_section(args, state)}\n\n{heading}", 1)
    card.save(path)


def _section(args: Any, state: TrainerState) -> str:
    from .config import SGOPDConfig  # the trainer imports this module

    # Loading arguments may hold a token, and addresses are nobody else's business
    ours = [cls for cls in SGOPDConfig.__mro__ if not issubclass(GRPOConfig, cls)]
    names = [name for cls in ours for name in cls.__annotations__]
    values = {name: getattr(args, name) for name in names if not name.endswith(("_init_kwargs", "_server_url"))}
    values["teachers"] = args.teachers and [
        (name, settings.get("model_name_or_path")) for name, settings in args.teachers.items()
    ]
    settings = "\n".join(f"| `{name}` | `{value}` |" for name, value in values.items())
    figures = [f"| optimizer steps | {state.global_step} |"]
    for name, meaning in _FIGURES.items():
        values = [logs[name] for logs in state.log_history if name in logs]
        if values:
            figures.append(f"| {meaning} (`{name}`) | {values[-1]:.4g} |")
    return "\n".join(
        [
            _BEGIN,
            "### Method",
            "",
            _METHOD,
            "",
            "| setting | value |",
            "|---|---|",
            settings,
            "",
            "### Last logged figures",
            "",
            "| | |",
            "|---|---|",
            *figures,
            _END,
        ]
    )
