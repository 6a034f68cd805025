"""`SGOPDTrainer`: when to score, to route and to sample the teacher. The formulas are in the modules it imports."""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer
from trl.trainer.grpo_trainer import RewardFunc
from trl.trainer.utils import get_config_model_id

from . import checks
from .certificates import StepCertificates
from .config import SGOPDConfig
from .failure import RandomState, save_before_the_failure
from .frozen import FrozenModel, add_reference_adapter, initial_student, load_frozen, register_lm_head
from .full_vocabulary import FullVocabulary, check_whole_distributions
from .held_out import HeldOutAccuracy
from .model_card import PAPER, add_method_section
from .padding import trim_padding
from .phased_sampling import PhasedTeacherSampling, teacher_sampling_enabled
from .resume import CheckpointsInsideCycles
from .rollout_scoring import RolloutScorer
from .sampler import OrderedByEpoch
from .sampling_logps import SamplingLogps
from .step_log import StepLog
from .step_routing import route_step
from .teacher_loss import teacher_cross_entropy
from .teacher_rollouts import check_bank
from .teachers import Teacher, TeacherError
from .teachers.build import check_teacher_tokenizers, open_teachers, teacher_names, teacher_specs
from .truncation import is_truncated, zero_truncated
from .verifiers.reward import VerifierFailure
from .verifiers.watch import stop_if_failing, watched_verifiers


Batch = dict[str, Any]


class SGOPDTrainer(HeldOutAccuracy, OrderedByEpoch, CheckpointsInsideCycles, GRPOTrainer):
    """
    Trainer for SG-OPD: on-policy distillation whose tokens are routed by the agreement of a teacher and a verifier.

    Example:

    ```python
    from datasets import load_dataset
    from sgopd_trl import SGOPDConfig, SGOPDTrainer
    from trl.rewards import accuracy_reward

    trainer = SGOPDTrainer(
        model="Qwen/Qwen3-1.7B",
        reward_funcs=accuracy_reward,
        args=SGOPDConfig(output_dir="sgopd", max_steps=100),
        train_dataset=load_dataset("trl-lib/DeepMath-103K", split="train"),
        teacher_model="Qwen/Qwen3-4B",
    )
    trainer.train()
    ```

    Args:
        model to environment_factory: [`~trl.GRPOTrainer`]'s arguments. The reward functions are the verifier, and `args`
            is a [`SGOPDConfig`].
        teacher_model: Hub id, directory, loaded model or [`Teacher`]; or, for several teachers, a mapping of the names in
            the dataset's column `teacher` to these. Default: what `args` says.
        reference_model: reference of Eq. (5): Hub id, directory or loaded model; default
            `args.reference_model_name_or_path`, else the student's initial state (under PEFT: the disabled adapter).
        teacher_processing_class: the teacher's tokenizer, to be compared with the student's; default: loaded from the
            teacher's name.

    Raises:
        ValueError: before any model is loaded, when there is no teacher, no reward function or no `prompt` column, when
            the tokenizers differ, when gold answers do not verify against themselves, or when a teacher's server is not
            fit for this run.
    """

    _tag_names = ["trl", "sgopd"]
    _name = "SG-OPD"
    _paper = PAPER

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",  # noqa: F821
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        args: SGOPDConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | DatasetDict | IterableDatasetDict | dict | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: "BitsAndBytesConfig | None" = None,  # noqa: F821
        peft_config: "PeftConfig | None" = None,  # noqa: F821
        tools: list[Callable] | None = None,
        rollout_func: Callable | None = None,
        environment_factory: Callable | dict[str, Callable] | None = None,
        *,
        teacher_model: str | PreTrainedModel | Teacher | Mapping[str, Any] | None = None,
        reference_model: str | PreTrainedModel | None = None,
        teacher_processing_class: PreTrainedTokenizerBase | None = None,
    ):
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = SGOPDConfig(f"{name.split('/')[-1]}-SGOPD")
        if not isinstance(args, SGOPDConfig):
            raise TypeError(f"`args` must be an SGOPDConfig, got {type(args).__name__}.")
        specs = teacher_specs(teacher_model, args)
        reference_model = reference_model if reference_model is not None else args.reference_model_name_or_path
        for role, other in (("teacher_model", teacher_model), ("reference_model", reference_model)):
            if other is model and not isinstance(model, str):
                raise ValueError(f"`{role}` is the student itself, which trains: pass a model of its own.")
        if processing_class is None:
            revision = (args.model_init_kwargs or {}).get("revision")
            processing_class = checks.load_student_tokenizer(model, revision, args.trust_remote_code)
        if isinstance(processing_class, ProcessorMixin):
            raise ValueError(
                f"SG-OPD scores text only, but {type(processing_class).__name__} is a multimodal processor. Pass a "
                "text model, or its tokenizer as `processing_class`."
            )
        check_teacher_tokenizers(specs, processing_class, teacher_processing_class, args)
        if reference_model is not None:
            checks.check_tokenizers(
                processing_class, None, "reference", reference_model, args.reference_model_revision, args
            )
        checks.check_reward_funcs(reward_funcs, environment_factory)
        self.certificates = StepCertificates(reward_funcs)
        self.verifiers = watched_verifiers(reward_funcs, args.output_dir)
        if train_dataset is not None and (
            environment_factory is None or "prompt" in (train_dataset.column_names or ())
        ):
            train_dataset = checks.check_dataset(train_dataset, reward_funcs, processing_class, args)
        names = teacher_names(specs)
        for dataset in (train_dataset, *checks.each_dataset(eval_dataset)):
            checks.check_teacher_column(dataset, names)
        if teacher_sampling_enabled(args):
            checks.check_teacher_sampling(train_dataset, args, tools or rollout_func or environment_factory)
            check_bank(args)
        check_whole_distributions(specs, args)

        # The teacher comes first: a missing one is noticed before the rest is loaded.
        self.teacher = open_teachers(specs, args, processing_class, train_dataset, eval_dataset)
        self.router = args.router()
        if not self.router.uses_reference:
            reference_model = None
        elif reference_model is not None:
            reference_model = load_frozen(
                reference_model, args.reference_model_init_kwargs, args.reference_model_revision, args
            )
        elif not isinstance(model, str) and is_peft_model(model):
            if args.beta == 0.0:  # otherwise TRL keeps the same copy for its KL term
                add_reference_adapter(model)
        elif peft_config is None and (args.beta == 0.0 or args.sync_ref_model or not isinstance(model, str)):
            reference_model = initial_student(model, args, quantization_config)

        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            tools=tools,
            rollout_func=rollout_func,
            environment_factory=environment_factory,
        )
        if self._dist.is_zero3:
            register_lm_head(self.model.get_base_model() if is_peft_model(self.model) else self.model)
        self.step_log = StepLog(self)
        self.scorer = RolloutScorer(self)
        self.teacher.prepare(self)
        self.reference = FrozenModel(reference_model, self, "reference") if reference_model is not None else None
        self.full_vocabulary = FullVocabulary(self)
        self._only_teacher = names[0] if len(names) == 1 else None
        self.teacher_sampling = PhasedTeacherSampling(self)
        self.teacher_sampling.check_checkpointing()
        self._undecided: torch.Tensor | None = None  # rollouts whose group has equal rewards, of all processes
        self._teacher_loss = 0.0  # L_SLT of the optimizer step under way
        self.teacher_names: list[str] = []  # of this process's rollouts
        self._random_state: RandomState | None = None  # before the generation batch under way
        self._last_checkpoint: str | None = None  # that this trainer has saved, or resumed from

    # What TRL's generation and TRL's verifier call

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        if self.judged_rollouts is not None:
            return self.judged_rollouts, None
        if not self.keeps_sampling_logps:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        model = self.accelerator.unwrap_model(self.model)
        model = model.get_base_model() if is_peft_model(model) else model
        with SamplingLogps(model, self.temperature) as recorder:
            completion_ids, logps = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        return completion_ids, recorder.logps(completion_ids) if logps is None else logps

    def _generate(self, prompts):
        if self.judged_rollouts is not None:
            return super()._generate(prompts)
        with self.step_log.timed("generation"):
            output = super()._generate(prompts)
        self.scorer.ask_ahead(output[0], output[1])
        return output

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        stop_if_failing(self.verifiers, self.accelerator)
        students = self.judged_rollouts is None
        if self.args.zero_truncated_reward:
            limit = self.max_completion_length if students else self.teacher_sampling.rollouts.max_completion_length
            truncated = [self.is_truncated(ids, limit) for ids in completion_ids_list]
            truncated = self.accelerator.gather(torch.tensor(truncated, device=self.accelerator.device))
            rewards = zero_truncated(rewards, truncated)
        if students:
            size = self.num_generations if self.model.training else self.num_generations_eval
            groups = (rewards * self.reward_weights.to(rewards.device)).nansum(1).view(-1, size)
            self._undecided = (groups == groups[:, :1]).all(1).repeat_interleave(size)
            self.certificates.ask(inputs, prompts, completions, completion_ids_list)
        self.record_rewards(rewards)
        return rewards

    @property
    def judged_rollouts(self) -> list[list[int]] | None:
        """The teacher's rollouts while TRL decodes and judges them, otherwise `None`."""
        return self.teacher_sampling.rollouts and self.teacher_sampling.rollouts.judged

    def is_truncated(self, completion_ids: list[int], limit: int) -> bool:
        """Whether a completion ended at its limit, in tokens, and not by itself."""
        ends = {*self.eos_token_ids, *self.teacher.eos_token_ids, self._tokenizer.pad_token_id}
        return is_truncated(completion_ids, limit, ends)

    def teacher_name(self, row: dict[str, Any]) -> str:
        """The teacher of a row of the dataset."""
        return str(row["teacher"]) if self._only_teacher is None else self._only_teacher

    # Scoring

    def per_token_logps(
        self, model: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int
    ) -> torch.Tensor:
        """Log-probabilities, in nats at the sampling temperature, of the last `logits_to_keep` tokens: (b, l).

        Through TRL's fused LM head: no (b, l, V) tensor is made.
        """
        return self._get_per_token_logps_and_entropies(model, input_ids, attention_mask, logits_to_keep)[0]

    def _generate_and_score_completions(self, inputs):
        self.teacher_names = [self.teacher_name(row) for row in inputs]
        if self.model.training:
            self._random_state = RandomState.now()
            self.teacher_sampling.begin(inputs)
        batch = super()._generate_and_score_completions(inputs)
        # Where all rewards of a group are equal a1 is 0; TRL's arithmetic can leave a rounding error, which has a sign.
        first = self.accelerator.process_index * len(inputs)
        undecided = self._undecided[first : first + len(inputs)]
        batch["advantages"] = batch["advantages"].masked_fill(undecided, 0.0)
        batch |= self.certificates.gate_advantages(batch, self._tokenizer)
        scores = self.scorer.score(batch)
        if self.model.training:
            self.teacher_sampling.finish()
        return batch | scores

    @property
    def keeps_sampling_logps(self) -> bool:
        """Whether the student's log-probabilities are kept while transformers samples."""
        plain = not (self.use_vllm or self.use_transformers_continuous_batching or self.rollout_func or self.tools)
        return self.args.reuse_sampling_logps and plain

    # Routing: after TRL has shuffled and cut the generation batch, one optimizer step at a time

    def _prepare_inputs(self, generation_batch):
        start = time.perf_counter()
        buffered = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return self._route([inputs])[0]
        if self._buffered_inputs is not buffered:
            size = self.args.gradient_accumulation_steps
            slices = self._buffered_inputs
            self._buffered_inputs = []
            for number, first in enumerate(range(0, len(slices), size)):
                routed = self._route(slices[first : first + size])
                if self.pad_to_multiple_of is None:  # otherwise the shapes are meant to stay the same
                    routed = [trim_padding(batch) for batch in routed]
                self._buffered_inputs += self.teacher_sampling.attach(routed, number)
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        self.step_log.add("prepare", time.perf_counter() - start)
        return inputs

    def _route(self, micro_batches: list[Batch]) -> list[Batch]:
        """The micro-batches of one optimizer step with their (B, L) advantages."""
        return route_step(self, micro_batches)

    # The loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with self.full_vocabulary.watch(model) as states:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = loss + self.full_vocabulary.loss(model, inputs, states)
        teacher, alpha = inputs.get("teacher"), self.teacher_sampling.alpha(self.state.global_step + 1)
        if teacher is None or alpha == 0:
            return loss
        logps = self.per_token_logps(model, teacher["input_ids"], teacher["attention_mask"], teacher["weights"].size(1))
        # The weights add up over processes, whose gradients are averaged.
        slt = (
            teacher_cross_entropy(logps, teacher["weights"], self.args.teacher_sft_phi) * self.accelerator.num_processes
        )
        self._teacher_loss += self.accelerator.reduce(slt.detach(), reduction="mean").item()
        return loss + alpha * slt

    # Logs and checkpoints

    def training_step(self, model, inputs, num_items_in_batch=None):
        start = time.perf_counter()
        alpha = self.teacher_sampling.alpha(self.state.global_step + 1)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.step_log.add("update", time.perf_counter() - start)
        if self._step % self.args.gradient_accumulation_steps == 0:
            self.step_log.finish_step()
            self.step_log.value("teacher_sampling/alpha", alpha)
            self.step_log.value("teacher_sampling/loss", self._teacher_loss)
            self._teacher_loss = 0.0
        return loss

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        except (TeacherError, VerifierFailure) as error:
            save_before_the_failure(self, self._random_state, self._last_checkpoint, error)
            raise

    def evaluate(self, *args, **kwargs):
        # Training goes on with the random numbers it would have had without the evaluation
        state = self._random_state = RandomState.now()
        metrics = super().evaluate(*args, **kwargs)
        state.restore()
        return metrics

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._last_checkpoint = os.path.join(self._get_output_dir(trial=trial), folder)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        self._last_checkpoint = checkpoint

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        super().create_model_card(model_name, dataset_name, tags)
        if self.is_world_process_zero():
            add_method_section(os.path.join(self.args.output_dir, "README.md"), self.args, self.state)
