"""What each process of tests/test_distributed.py runs: trainings whose figures must not depend on the launch.

accelerate launch --config_file recipes/accelerate_configs/zero3.yaml --num_processes 2 tests/distributed_run.py ...
"""

import argparse
import json
import random
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from peft import LoraConfig
from tiny import dataset, even_digits_reward, make_args
from transformers import TrainerCallback

from sgopd_trl import SGOPDConfig, SGOPDTrainer
from sgopd_trl.cli.launch import end_together
from sgopd_trl.rollout_scoring import valid_tokens
from sgopd_trl.seeded_sampling import rollout_seed


STEPS = 3
ROWS = 8  # rows of one micro-step, over all processes
MICRO_STEPS = 2
LENGTH = 12
LEARNING_RATE = 1 / 32
# With it 1, 3 and 1 teacher rollouts verify: fewer than processes, fewer than micro-steps times processes, odd
SEED = 7


class FixedRollouts(SGOPDTrainer):
    """A trainer whose student answers by lot, from the prompt and the row's place in the batch, not by its model.

    Also keeps the teacher's rollouts, the forward passes, and which micro-steps had a share of the teacher's rollouts.
    """

    def __init__(self, *args, **kwargs):
        self.passes: dict[str, int] = {"student": 0, "teacher": 0, "reference": 0}
        self.teacher_rollouts: list[list[tuple[list[int], list[int], bool]]] = []
        self.teacher_shares: list[str] = []
        self.vocabulary_tokens: list[int] = []  # whose loss is over the vocabulary, of each micro-step
        super().__init__(*args, **kwargs)

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        if self.judged_rollouts is not None:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        first = self.accelerator.process_index * len(prompt_ids)
        step = self.state.global_step
        return [self._completion(rollout_seed(ids, first + i, step)) for i, ids in enumerate(prompt_ids)], None

    def _completion(self, seed: int) -> list[int]:
        """A few ordinary tokens and most of the time an end of sequence: now and then it is truncated."""
        coin = random.Random(seed)
        tokens = [coin.choice(self._ordinary_tokens) for _ in range(coin.randint(1, LENGTH))]
        return tokens if coin.random() < 0.3 else [*tokens[: LENGTH - 1], self.eos_token_ids[0]]

    @property
    def _ordinary_tokens(self) -> list[int]:
        special = set(self._tokenizer.all_special_ids)
        return [token for token in range(len(self._tokenizer)) if token not in special]

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        frozen = {"teacher": self.teacher.frozen, "reference": self.reference}
        owner = next((name for name, kept in frozen.items() if kept is not None and kept.model is model), "student")
        self.passes[owner] += 1
        return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return batch
        rollouts = self.teacher_sampling._rollouts[0]
        self.teacher_rollouts.append([(r.prompt_ids, r.completion_ids, r.correct) for r in rollouts])
        return batch

    def compute_loss(self, model, inputs, *args, **kwargs):
        if not self.model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        teacher = inputs["teacher"]
        share = "none" if teacher is None else "rollout" if teacher["weights"].sum() > 0 else "weightless"
        self.teacher_shares.append(share)
        if self.full_vocabulary.enabled:
            taken = (inputs["vocabulary_weights"] != 0) & valid_tokens(inputs).bool()
            self.vocabulary_tokens.append(int(taken.sum()))
        return super().compute_loss(model, inputs, *args, **kwargs)


class RealRollouts(SGOPDTrainer):
    """A trainer that samples, and compares the log-probabilities it kept meanwhile with a fresh forward pass."""

    worst_logp = 0.0
    longest: tuple[int, ...] = ()  # completion of each batch

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        if batch.get("sampling_per_token_logps") is None:
            raise AssertionError("No log-probabilities were kept while the student sampled.")
        mask = valid_tokens(batch)
        fresh = self.scorer._score_rows(None, batch, mask.bool().any(1))
        difference = (batch["student_logps"] - fresh).abs() * mask
        self.worst_logp = max(self.worst_logp, difference.max().item())
        self.longest += (int(mask.sum(1).max()),)
        return batch


class Keep(TrainerCallback):
    """The trained parameters, whole, before the first step and after each, and each step's gradients.

    Not the gradients under DeepSpeed, which has taken the step before the callback comes.
    """

    def __init__(self):
        self.parameters: list[dict[str, torch.Tensor]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._keep_parameters(model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self._keep_parameters(model)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if args.deepspeed_plugin is None:
            self.gradients.append({name: p.grad.clone() for name, p in trained(model).items()})

    def _keep_parameters(self, model):
        with gathered(trained(model).values()):
            self.parameters.append({name: p.detach().clone() for name, p in trained(model).items()})


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gathered(parameters):
    """Context in which ZeRO-3's parameters are whole."""
    parameters = list(parameters)
    if not any(hasattr(p, "ds_id") for p in parameters):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)


def settings(variant: str, output_dir: Path, num_processes: int = 1, **changes) -> SGOPDConfig:
    overrides = dict(
        max_steps=STEPS,
        seed=SEED,
        per_device_train_batch_size=ROWS // num_processes,
        per_device_eval_batch_size=ROWS // num_processes,
        gradient_accumulation_steps=MICRO_STEPS,
        max_completion_length=LENGTH,
        # SGD: Adam's first steps turn a rounding error of a small gradient into a whole step.
        optim="sgd",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=1e6,
        temperature=0.8,
        lambda_high=1.8,
        stability_tau=2.0,
        # rho / (1 - rho) * 4 prompts: 2.67 a step, fewer than the 4 micro-steps and processes that share them
        teacher_sampling_ratio=0.4,
        teacher_sft_alpha_0=0.5,
        # So few that processes differ in the number of their scoring passes
        scoring_tokens_per_batch=64,
        # Two forward passes before a backward pass must get along with it
        gradient_checkpointing=variant in ("plain", "vocabulary"),
    )
    if variant.startswith("vocabulary"):
        overrides |= dict(reverse_kl="full_vocabulary")
    if variant == "vocabulary":
        # So few that there are micro-steps in which one process has none, and the other has some
        overrides |= dict(gate="positive", disagree_mode="mask")
    if variant == "random":
        overrides |= dict(gate="random", teacher_sft_reduction="sequence_mean", teacher_sft_phi="chord")
    if variant.startswith("generate"):
        overrides |= dict(
            max_steps=2,
            ds3_gather_for_generation=variant == "generate_gathered",
            # An end of sequence that grows likelier, so that one process is done generating before the other
            generation_kwargs={"exponential_decay_length_penalty": (3, 1.5)},
        )
    return make_args(output_dir, **(overrides | changes))


def is_lora(variant: str) -> bool:
    return variant.endswith("lora")


def check_partitioned(model: torch.nn.Module, name: str, may_stay_whole: str | None = None) -> None:
    """ZeRO-3 holds a share of each parameter here, and drops what the forward passes gather of the matrices."""
    parameters = dict(model.named_parameters())
    assert parameters, name
    for key, p in parameters.items():
        assert hasattr(p, "ds_id"), f"{name}: {key} was never partitioned"
        assert p.ds_tensor.numel() < p.ds_numel, f"{name}: all {p.ds_numel} elements of {key} are held"
    whole = [key for key, p in parameters.items() if p.dim() > 1 and p.numel() > 0 and key != may_stay_whole]
    assert not whole, f"{name}: {whole} stayed whole after the last forward pass"


def train(variant: str, args: argparse.Namespace) -> None:
    out = Path(args.out) / variant
    config = settings(variant, out, args.num_processes)
    if args.zero_stage == 3:
        # DeepSpeed keeps parameters of under 1e5 elements whole once gathered: all there are here, so that a process
        # with a forward pass too many would not even hang. In a real model it keeps the norms' weights alone, so here.
        config.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 100
    kept = Keep()
    real = variant.startswith("generate")
    set_seed(0)  # LoRA's matrices are drawn before the trainer seeds anything
    trainer = (RealRollouts if real else FixedRollouts)(
        model=args.student,
        teacher_model=args.teacher,
        reward_funcs=even_digits_reward,
        args=config,
        train_dataset=dataset(64),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]) if is_lora(variant) else None,
        callbacks=[kept],
    )
    accelerator = trainer.accelerator
    # A wrong setting does not fail: it trains alone, or with another backend.
    assert accelerator.distributed_type.value == args.expect, accelerator.distributed_type
    assert accelerator.num_processes == args.num_processes, accelerator.num_processes
    assert accelerator.device.type == "cpu", accelerator.device
    if args.zero_stage:
        assert accelerator.deepspeed_plugin.zero_stage == args.zero_stage, accelerator.deepspeed_plugin.zero_stage
    assert (trainer.reference is None) == is_lora(variant)
    trainer.train()

    if args.zero_stage == 3:
        assert trainer._dist.is_zero3
        # After generation without gathering DeepSpeed fetches the LM head ahead and keeps it until it next generates.
        ahead = "module.lm_head.weight" if variant == "generate_sharded" else None
        check_partitioned(trainer.teacher.frozen.model, "teacher", may_stay_whole=ahead)
        if trainer.reference is not None:
            check_partitioned(trainer.reference.model, "reference")
    figures = {
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
        "dtypes": sorted({str(p.dtype) for p in trainer.model.parameters()}),
    }
    if real:
        figures["worst_logp"] = gather_object([trainer.worst_logp])
        figures["longest"] = gather_object([trainer.longest])
    else:
        figures["teacher_rollouts"] = trainer.teacher_rollouts
        figures["vocabulary_tokens"] = gather_object([trainer.vocabulary_tokens])
        figures["teacher_shares"] = gather_object([trainer.teacher_shares])
        figures["passes"] = gather_object([trainer.passes])
    if variant == "plain":
        # 20 rows: the last batch of two processes is filled up with rows of the first
        metrics = trainer.evaluate(dataset(5))
        figures["held_out"] = {name: value for name, value in metrics.items() if "@" in name}
    trainer.save_model(str(out / "saved"))
    if accelerator.is_main_process:
        (out / "figures.json").write_text(json.dumps(figures))
        torch.save({"parameters": kept.parameters, "gradients": kept.gradients}, out / "tensors.pt")
    accelerator.wait_for_everyone()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--variants", required=True, nargs="+")
    parser.add_argument("--expect", required=True, help="accelerator.distributed_type")
    parser.add_argument("--num_processes", type=int, default=1)
    parser.add_argument("--zero_stage", type=int)
    args = parser.parse_args()
    for variant in args.variants:
        train(variant, args)
    end_together(Accelerator())


if __name__ == "__main__":
    main()
