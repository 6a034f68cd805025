"""Frozen models beside the student: loaded as TRL loads its reference model, scored and sampled in process."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from transformers import GenerationConfig, PreTrainedModel
from trl.models import prepare_deepspeed, prepare_fsdp, unwrap_model_for_generation
from trl.trainer.utils import (
    add_fused_lm_head,
    create_model_from_path,
    disable_dropout_in_model,
    get_config_model_id,
    pad,
)

from .offload import HostCopy, check_offload
from .seeded_sampling import sampling_processors


if TYPE_CHECKING:
    from peft import PeftModel

    from .config import SGOPDConfig
    from .teachers import SamplingSettings
    from .trainer import SGOPDTrainer


def load_frozen(
    model: str | PreTrainedModel, init_kwargs: dict[str, Any] | None, revision: str | None, args: "SGOPDConfig"
) -> PreTrainedModel:
    """The model, loaded from a Hub id or a directory where it is not loaded yet, without gradients and dropout.

    Args:
        model: Hub id, directory, or a loaded model. init_kwargs: for `from_pretrained`; `dtype` defaults to float32.
        revision: branch, tag or commit. args: the run's arguments.

    Raises:
        ValueError: when loading arguments are given for a model that is already loaded.
    """
    if isinstance(model, str):
        kwargs = dict(init_kwargs or {})
        if revision is not None:
            kwargs.setdefault("revision", revision)
        if args.distributed_state is not None and args.distributed_state.num_processes > 1:
            kwargs["device_map"] = None
        kwargs.setdefault("trust_remote_code", args.trust_remote_code)
        model = create_model_from_path(model, **kwargs)
    elif init_kwargs or revision:
        raise ValueError(
            f"`*_model_init_kwargs` and `*_model_revision` apply to a model that is loaded by name, but a loaded "
            f"{type(model).__name__} was passed together with {init_kwargs or revision!r}. Pass one or the other."
        )
    disable_dropout_in_model(model)
    model.requires_grad_(False)
    return model.eval()


def initial_student(
    model: str | PreTrainedModel, args: "SGOPDConfig", quantization_config: Any | None
) -> PreTrainedModel:
    """The student's initial state as a frozen copy: the default reference of full fine-tuning.

    Args:
        model: the student as it was passed to the trainer. args, quantization_config: what the student is loaded with.
    """
    is_partitioned = not isinstance(model, str) and any(hasattr(p, "ds_id") for p in model.parameters())
    if not isinstance(model, str) and not is_partitioned:
        return load_frozen(copy.deepcopy(model), None, None, args)
    init_kwargs = dict(args.model_init_kwargs or {})
    if quantization_config is not None:
        init_kwargs["quantization_config"] = quantization_config
    if is_partitioned:  # under ZeRO-3 a loaded model cannot be copied, so it is loaded again, as TRL does
        init_kwargs.setdefault("dtype", model.dtype)
        model = get_config_model_id(model.config)
    return load_frozen(model, init_kwargs, None, args)


def add_reference_adapter(model: "PeftModel") -> None:
    """Keeps a frozen copy of an adapter that was trained before as "ref", the name under which TRL keeps its own."""
    active = model.active_adapter
    if "ref" not in model.peft_config:
        model.add_adapter("ref", model.peft_config[active])
    for name, parameter in model.named_parameters():
        if f".{active}." in name:
            model.get_parameter(name.replace(f".{active}.", ".ref.")).data.copy_(parameter.data)


def register_lm_head(model: PreTrainedModel) -> None:
    """Tells ZeRO-3 that the fused LM head works with a weight outside the forward pass of the module that holds it.

    Left alone, DeepSpeed notices that on first use, but not after generation without gathering: it has then fetched the
    weight ahead, for the plain LM head it saw in generation, and the backward pass finds it released.

    Args:
        model: the causal language model with the fused head (under PEFT: the base model inside the wrapper).
    """
    import deepspeed  # only there with the extra, and slow to import

    deepspeed.zero.register_external_parameter(model, model.get_output_embeddings().weight)


class FrozenModel:
    """A frozen causal language model of a trainer: a teacher, or the reference.

    Args:
        model: from `load_frozen`. trainer: the trainer whose accelerator, precision and temperature it works with.
        role: "teacher" or "reference", for messages. offload: keep the weights in host memory between calls.

    Raises:
        ValueError: for `offload` where the weights are partitioned or quantized.
    """

    def __init__(self, model: PreTrainedModel, trainer: "SGOPDTrainer", role: str, offload: bool = False):
        self.trainer = trainer
        self.role = role
        self.vocab_size = model.get_input_embeddings().num_embeddings
        self.eos_token_ids = eos_token_ids(model)
        if offload:
            check_offload(model, trainer)
        # Before any wrapping: the wrappers would hide the patched forward.
        base = model.get_base_model() if is_peft_model(model) else model
        add_fused_lm_head(base, temperature=trainer.temperature, cast_lm_head_to_fp32=trainer.args.cast_lm_head_to_fp32)
        if trainer._dist.is_zero3:
            register_lm_head(base)
        if trainer.is_deepspeed_enabled:
            self.model = prepare_deepspeed(model, trainer.accelerator)
        elif trainer.is_fsdp_enabled:
            self.model = prepare_fsdp(model, trainer.accelerator)
        else:
            self.model = trainer.accelerator.prepare_model(model, evaluation_mode=True)
        self.on_device = HostCopy(model, trainer.accelerator.device) if offload else nullcontext()

    def score(self, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Log-probability of each completion token, in nats at the sampling temperature: b tensors (l_i,).

        Collective: every process must call it at the same time, with as many sequences as it has.

        Raises:
            ValueError: for a token that the model's embedding does not have.
        """
        for row, ids in enumerate(completion_ids):
            if len(ids) > 0 and max(ids) >= self.vocab_size:
                position = next(i for i, token in enumerate(ids) if token >= self.vocab_size)
                raise ValueError(
                    f"The student sampled token {ids[position]} (completion {row}, position {position}), but the "
                    f"{self.role}'s embedding has {self.vocab_size} rows. Set `generation_kwargs={{'suppress_tokens': "
                    "[...]}` to keep the student from sampling ids beyond its tokenizer."
                )
        trainer = self.trainer
        with self.on_device:
            return trainer.scorer.in_batches(
                lambda *batch: trainer.per_token_logps(self.model, *batch), prompt_ids, completion_ids
            )

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], seeds: Sequence[int], settings: "SamplingSettings"
    ) -> list[list[int]]:
        """One rollout a prompt, each from its own seed and cut after its end-of-sequence token.

        Collective: under ZeRO-3 and FSDP every process must call it, if need be without a prompt.

        Args:
            prompt_ids: b lists of token ids. seeds: (b,). settings: how to sample.

        Returns:
            b lists of token ids.
        """
        trainer = self.trainer
        tokenizer = trainer._tokenizer
        eos = sorted({*trainer.eos_token_ids, *self.eos_token_ids})
        if not prompt_ids:  # the other processes' passes need this one
            prompts, seeds, settings = [[tokenizer.pad_token_id]], [0], replace(settings, max_new_tokens=1)
        else:
            prompts = prompt_ids
        tensors = [torch.tensor(ids) for ids in prompts]
        input_ids = pad(tensors, padding_value=tokenizer.pad_token_id, padding_side="left")
        attention_mask = pad([torch.ones_like(t) for t in tensors], padding_value=0, padding_side="left")
        vocab_size = min(len(tokenizer), self.vocab_size)
        with (
            self.on_device,
            unwrap_model_for_generation(
                self.model, trainer.accelerator, gather_deepspeed3_params=trainer.args.ds3_gather_for_generation
            ) as model,
            torch.no_grad(),
            trainer.accelerator.autocast(),
            trainer._dist.summon_full_params(self.model, recurse=False),
        ):
            output = model.generate(
                input_ids=input_ids.to(trainer.accelerator.device),
                attention_mask=attention_mask.to(trainer.accelerator.device),
                # Greedy over the drawn tokens; every other setting neutral, so that none of the model's own is merged in
                generation_config=GenerationConfig(
                    max_new_tokens=settings.max_new_tokens,
                    do_sample=False,
                    num_beams=1,
                    temperature=1.0,
                    top_k=50,
                    top_p=1.0,
                    repetition_penalty=1.0,
                    pad_token_id=tokenizer.pad_token_id,
                    eos_token_id=eos,
                    disable_compile=True,
                ),
                logits_processor=sampling_processors(seeds, settings, vocab_size),
            )
        return [_cut(ids, eos) for ids in output[: len(prompt_ids), input_ids.size(1) :].tolist()]


def _cut(ids: list[int], eos_token_ids: list[int]) -> list[int]:
    """The ids up to and including the first end-of-sequence token."""
    end = next((position for position, token in enumerate(ids) if token in eos_token_ids), len(ids) - 1)
    return ids[: end + 1]


def eos_token_ids(model: PreTrainedModel) -> list[int]:
    """The tokens that end a model's generations."""
    token_ids = model.generation_config.eos_token_id
    return [] if token_ids is None else [token_ids] if isinstance(token_ids, int) else list(token_ids)
