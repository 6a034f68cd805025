"""SFT on the teacher's verified rollouts, and SeqKD: cross-entropy on all of them (Kim and Rush, 2016)."""

import textwrap
from typing import Any

from datasets import Dataset
from transformers import Trainer
from trl import SFTTrainer

from .held_out import HeldOutEvaluation
from .rewards import RewardFunction
from .rollouts import load_bank_data


_SEQKD = {
    "title": "Sequence-Level Knowledge Distillation",
    "id": "1606.07947",
    # docstyle-ignore
    "citation": textwrap.dedent("""\
        @inproceedings{kim2016sequence,
            title        = {{Sequence-Level Knowledge Distillation}},
            author       = {Yoon Kim and Alexander M. Rush},
            year         = 2016,
            booktitle    = {Proceedings of the 2016 Conference on Empirical Methods in Natural Language Processing, {EMNLP}},
        }"""),
}


class SFTOnRollouts(HeldOutEvaluation, SFTTrainer):
    """[`~trl.SFTTrainer`] on rows of token ids, evaluated on held-out problems.

    Args:
        held_out_rewards: the verifier of the held-out problems. eval_dataset: the problems, with `prompt`.
        kwargs: [`~trl.SFTTrainer`]'s arguments.
    """

    def __init__(self, *args: Any, held_out_rewards: list[RewardFunction], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.watch(held_out_rewards)

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        if dataset_name == "eval":  # problems to be solved, not texts to be learned
            return dataset
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)


class SeqKDTrainer(SFTOnRollouts):
    """[`SFTOnRollouts`] under the name that cross-entropy on all of a teacher's rollouts has."""

    _tag_names = ["trl", "sft", "seqkd"]
    _name = "SeqKD"
    _paper = _SEQKD


def build(script_args: Any, args: Any, parts: Any) -> Trainer:
    """The trainer of `trainer: sft`.

    Raises:
        ValueError: as `load_bank_data`.
    """
    which = script_args.teacher_rollouts or "verified"
    with parts.main_process_first():
        data = load_bank_data(args.teacher_bank, parts.tokenizer, which)
        train_dataset = sequences(data.rollouts)
    parts.say(f"Training on {data}.")
    cls = SeqKDTrainer if which == "all" else SFTOnRollouts
    return cls(
        model=parts.model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=parts.eval_dataset,
        processing_class=parts.tokenizer,
        callbacks=parts.callbacks,
        quantization_config=parts.quantization_config,
        peft_config=parts.peft_config,
        held_out_rewards=parts.reward_funcs,
    )


def sequences(rollouts: Dataset) -> Dataset:
    """Rollouts as rows that SFTTrainer takes as they are: `input_ids`, and `labels` with -100 on the prompt."""

    def sequence(row: dict[str, Any]) -> dict[str, list[int]]:
        prompt, completion = row["prompt_ids"], row["completion_ids"]
        return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}

    return rollouts.map(sequence, remove_columns=rollouts.column_names, desc="Teacher rollouts as sequences")
