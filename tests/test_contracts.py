"""Every private or undocumented name of TRL that is used: an upstream change fails here, with a name, and not in a run."""

import inspect
import re

import pytest
import torch
from trl import DistillationTrainer, GRPOTrainer, SFTTrainer, TrlParser
from trl.distributed import DistributedBackend
from trl.models import unwrap_model_for_generation
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer import utils
from trl.trainer.grpo_trainer import RewardFunc  # noqa: F401

from sgopd_trl import SGOPDTrainer


METHODS = {
    "_generate": ["self", "prompts"],
    "_generate_single_turn": [
        "self",
        "prompt_ids",
        "images",
        "multimodal_fields",
        "num_generations",
        "has_tool_images",
    ],
    "_generate_and_score_completions": ["self", "inputs"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_prepare_inputs": ["self", "generation_batch"],
    "_get_train_sampler": ["self", "dataset"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "_tokenize_prompts": ["self", "prompts"],
    "set_initial_training_values": ["self", "args", "dataloader"],
    "create_model_card": ["self", "model_name", "dataset_name", "tags"],
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_keep_their_signatures(name):
    assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == METHODS[name]


OF_BASELINES = {
    (SFTTrainer, "_prepare_dataset"): [
        *("self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"),
    ],
    (DistillationTrainer, "_generate_single_turn"): [
        *("self", "prompt_ids", "images", "multimodal_fields", "has_tool_images"),
    ],
    (DistillationTrainer, "_generate_and_score_completions"): ["self", "inputs"],
    (DistillationTrainer, "_tokenize_prompts"): ["self", "prompts"],
    (DistillationTrainer, "_get_train_sampler"): ["self", "dataset"],
}


@pytest.mark.parametrize(("trainer", "name"), OF_BASELINES)
def test_methods_of_the_baselines_trainers_keep_their_signatures(trainer, name):
    assert list(inspect.signature(getattr(trainer, name)).parameters) == OF_BASELINES[trainer, name]


@pytest.mark.parametrize(
    ("trainer", "method", "names"),
    [
        (SFTTrainer, "__init__", ['eval_dataset, processing_class, args, packing, formatting_func, "eval"']),
        (DistillationTrainer, "__init__", ["self._metrics = ", "self._tokenizer = ", "self.eos_token_ids = "]),
        (
            DistillationTrainer,
            "_generate_and_score_completions",
            ['"completion_ids"', '"completion_mask"', "self._generate("],
        ),
        (DistillationTrainer, "compute_loss", ['self._metrics[mode]["entropy"].append']),
    ],
)
def test_names_inside_the_methods_of_the_baselines_trainers(trainer, method, names):
    source = inspect.getsource(getattr(trainer, method))
    assert not [name for name in names if name not in source]


def test_log_probability_method():
    parameters = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert parameters[:5] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep"]


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("__init__", ["_step", "_buffered_inputs", "_metrics", "_pending_extra_logs", "_pending_metrics"]),
        ("__init__", ["eos_token_ids", "_tokenizer", "reward_weights", "num_iterations", "self.tools", "rollout_func"]),
        ("__init__", ["self.mask_truncated_completions = "]),
        ("_prepare_inputs", ["_buffered_inputs", "steps_per_generation", "split_tensor_dict", "shuffle_sequence_dict"]),
        ("_generate_and_score_completions", ["old_per_token_logps", "sampling_per_token_logps", "ref_per_token_logps"]),
        ("_generate_and_score_completions", ["tool_mask", "completion_mask", "num_items_in_batch"]),
        ("_compute_loss", ["advantages.dim() == 1", "current_gradient_accumulation_steps", 'inputs["advantages"]']),
        ("training_step", ["self._step += 1"]),
        ("_calculate_rewards", ["gather(rewards_per_func)"]),
        ("_get_eval_sampler", ["mini_repeat_count=self.num_generations_eval"]),
        ("_get_per_token_logps_and_entropies", ["labels=labels, fused_lm_head=True"]),
        ("__init__", ["self._dist = DistributedBackend"]),
    ],
)
def test_names_inside_the_methods(method, names):
    source = inspect.getsource(getattr(GRPOTrainer, method))
    assert not [name for name in names if name not in source]


def test_helpers():
    assert list(inspect.signature(utils.add_fused_lm_head).parameters)[:3] == [
        "model",
        "temperature",
        "cast_lm_head_to_fp32",
    ]
    assert list(inspect.signature(utils.RepeatSampler.__init__).parameters)[1:] == [
        "data_source",
        "mini_repeat_count",
        "batch_size",
        "repeat_count",
        "shuffle",
        "seed",
    ]
    assert isinstance(DistributedBackend.is_zero3, property)
    assert list(inspect.signature(DistributedBackend.summon_full_params).parameters) == ["self", "module", "kwargs"]
    parameters = inspect.signature(unwrap_model_for_generation).parameters
    assert {"gather_deepspeed3_params", "gradient_checkpointing_kwargs"} <= parameters.keys()
    assert list(inspect.signature(disable_gradient_checkpointing).parameters)[0] == "model"
    assert callable(TrlParser.set_defaults_with_config) and callable(utils.is_async_callable)
    sampler = utils.RepeatSampler([0, 1], 1, shuffle=True, seed=3)
    assert (sampler.shuffle, sampler.seed, type(sampler.generator)) == (True, 3, torch.Generator)
    assert list(inspect.signature(utils.start_event_loop_in_daemon).parameters) == ["name"]
    for name in ("create_model_from_path", "use_adapter", "pad", "get_config_model_id", "global_then_local_main_first"):
        assert callable(getattr(utils, name))


def test_the_fused_head_runs_the_backbone_and_reads_the_settings_of_the_logits_that_ours_reads():
    source = inspect.getsource(utils.add_fused_lm_head)
    assert 'backbone_attr = "base_model"' in source and "backbone_outputs.last_hidden_state" in source
    names = re.findall(r'text_config, "((?:logit|output_mult|lm_head_mult|final_logit)\w*)"', source)
    ours = "final_logit_softcapping logit_scale output_multiplier lm_head_multiplier logits_scaling"
    assert set(names) == set(ours.split())
    assert list(inspect.signature(utils.maybe_gather_lm_head_ctx).parameters) == ["params"]


def test_the_evaluation_loop():
    parameters = list(inspect.signature(GRPOTrainer.evaluation_loop).parameters)
    assert parameters[:3] == ["self", "dataloader", "description"] and "metric_key_prefix" in parameters


def test_the_trainer_takes_grpo_trainers_arguments_in_order():
    ours = list(inspect.signature(SGOPDTrainer.__init__).parameters)
    stock = list(inspect.signature(GRPOTrainer.__init__).parameters)
    assert ours[: len(stock)] == stock
    assert ours[len(stock) :] == ["teacher_model", "reference_model", "teacher_processing_class"]
