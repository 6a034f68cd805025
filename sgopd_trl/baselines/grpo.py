"""GRPO: the verifier alone, without a teacher."""

from typing import Any

from transformers import Trainer

from ..failure import RandomState
from ..held_out import HeldOutGRPOTrainer
from ..resume import CheckpointsInsideCycles
from ..sampler import OrderedByEpoch
from ..verifiers.watch import stop_if_failing, watched_verifiers


class GRPOBaseline(OrderedByEpoch, CheckpointsInsideCycles, HeldOutGRPOTrainer):
    """[`~trl.GRPOTrainer`] with avg@K and pass@K in evaluation, which stops when its verifier fails too often.

    Args:
        reward_funcs: the verifier. kwargs: [`~trl.GRPOTrainer`]'s other arguments.
    """

    def __init__(self, *args: Any, reward_funcs: list, **kwargs: Any):
        super().__init__(*args, reward_funcs=reward_funcs, **kwargs)
        self.verifiers = watched_verifiers(reward_funcs, self.args.output_dir)

    def _calculate_rewards(self, *args, **kwargs):
        rewards = super()._calculate_rewards(*args, **kwargs)
        stop_if_failing(self.verifiers, self.accelerator)
        return rewards

    def evaluate(self, *args, **kwargs):
        state = RandomState.now()
        metrics = super().evaluate(*args, **kwargs)
        state.restore()
        return metrics


def build(script_args: Any, args: Any, parts: Any) -> Trainer:
    """The trainer of `trainer: grpo`."""
    return GRPOBaseline(
        model=parts.model,
        reward_funcs=parts.reward_funcs,
        args=args,
        train_dataset=parts.short_prompts(args),
        eval_dataset=parts.eval_dataset,
        processing_class=parts.tokenizer,
        callbacks=parts.callbacks,
        quantization_config=parts.quantization_config,
        peft_config=parts.peft_config,
    )
