"""`sgopd train`: everything a recipe names, from the data to the model card."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, get_peft_config, get_quantization_config

from ..checks import cannot_load, load_student_tokenizer
from ..config import SGOPDConfig
from ..data import DataFormat, load_split, prepare_dataset
from ..metrics_log import FILE_NAME, MetricsLog
from ..miniature import resolve
from ..teachers import TeacherError
from ..trainer import SGOPDTrainer
from ..verifiers import VerifierFailure, load_verifier
from .arguments import Parser, SGOPDScriptArguments, check_command_line, check_recipe
from .errors import UsageError, reported
from .launch import (
    end_together,
    launch_flags,
    launch_training,
    needs_launch,
    recipe_launch_args,
    resolve_accelerate_config,
    split_launch_args,
    under_launcher,
)
from .recipe import read_recipe, split_config_flag


REWARD_FUNCS = {
    "exact_answer_reward": "sgopd_trl.rewards.exact_answer_reward",
    "line_verifier": "sgopd_trl.miniature.lines.LineVerifier",
    "accuracy_reward": "trl.rewards.accuracy_reward",
    "think_format_reward": "trl.rewards.think_format_reward",
    "reasoning_accuracy_reward": "trl.rewards.reasoning_accuracy_reward",
}


def main(argv: list[str]) -> int:
    """Run `sgopd train` with these arguments: here, or through `accelerate launch`. Returns the exit code."""
    if "--help" in argv or "-h" in argv:
        Parser().print_help()
        print("\nAlso: --config recipe.yaml, --accelerate_config NAME|PATH, and `accelerate launch`'s own flags.")
        return 0
    with reported("sgopd train"):
        parsed = parse_or_launch(argv, ["train"])
        if isinstance(parsed, int):
            return parsed
        script_args, training_args, model_args = parsed
        checkpoint = find_checkpoint(training_args)
        trainer = build_trainer(script_args, training_args, model_args)
    if checkpoint is not None:
        trainer.accelerator.print(f"Resuming from {checkpoint}.")
    with reported("sgopd train", TeacherError, VerifierFailure):
        trainer.train(resume_from_checkpoint=checkpoint)
    finish(trainer, script_args)
    return 0


def parse_or_launch(
    argv: Sequence[str], command: list[str]
) -> tuple[SGOPDScriptArguments, SGOPDConfig, ModelConfig] | int:
    """The arguments; or, where the command has to run through `accelerate launch`, the exit code of having done that.

    Args:
        argv: the training and launch arguments. command: the subcommand with its own options, to launch it again.

    Raises:
        UsageError: for anything that cannot be understood.
    """
    launch, training, use_cpu = read_command_line(argv)
    gpu_count = 0 if use_cpu else torch.cuda.device_count()
    if needs_launch(launch, os.environ, gpu_count):
        return launch_training(resolve_accelerate_config(launch), [*command, *training], gpu_count)
    return Parser().parse_args_and_config(training, fail_with_unknown_args=False)


def read_command_line(argv: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """The launch arguments (of the recipe, then of the command line), the training arguments, and `use_cpu`: checked.

    Raises:
        UsageError: for anything that cannot be understood.
    """
    flags = launch_flags()
    launch, training = split_launch_args(split_config_flag(argv), flags)
    if launch and under_launcher(os.environ):
        raise UsageError(f"Already started by a launcher: give it {' '.join(launch)} instead.")
    recipe, source = read_recipe(training)
    launch_keys = [*flags, "accelerate_config"]
    if source is not None:
        check_recipe(recipe, source, launch_keys)
    values = check_command_line(training, recipe, launch_keys)
    return recipe_launch_args(recipe, flags) + launch, training, values.use_cpu


def build_trainer(
    script_args: SGOPDScriptArguments, training_args: SGOPDConfig, model_args: ModelConfig
) -> SGOPDTrainer:
    """The trainer that the arguments describe.

    Raises:
        ValueError: when something is missing or does not fit together. OSError: when a model or dataset cannot be had.
    """
    settings = script_args.verifier_settings or {}
    if unknown := settings.keys() - set(script_args.reward_funcs):
        raise ValueError(
            f"`verifier_settings` are for {sorted(unknown)}, but `reward_funcs` are {script_args.reward_funcs}."
        )
    reward_funcs = [load_verifier(name, settings.get(name), REWARD_FUNCS) for name in script_args.reward_funcs]
    model = resolve(model_args.model_name_or_path)
    for role in ("teacher_model_name_or_path", "reference_model_name_or_path"):
        if getattr(training_args, role) is not None:
            setattr(training_args, role, resolve(getattr(training_args, role)))
    for settings in (training_args.teachers or {}).values():
        if settings.get("model_name_or_path"):
            settings["model_name_or_path"] = resolve(settings["model_name_or_path"])
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    } | (training_args.model_init_kwargs or {})
    trust_remote_code = training_args.trust_remote_code
    with cannot_load(f"The student {model_args.model_name_or_path}"):
        tokenizer = load_student_tokenizer(model, training_args.model_init_kwargs["revision"], trust_remote_code)
    evaluates = training_args.eval_strategy != "no"
    with PartialState().local_main_process_first():  # the others find the main process's files in the cache
        train_dataset = load_data(
            script_args, script_args.dataset_train_split, tokenizer, script_args.max_train_samples
        )
        eval_dataset = load_data(script_args, script_args.dataset_test_split, tokenizer) if evaluates else None
    return SGOPDTrainer(
        model=model,
        reward_funcs=reward_funcs,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        callbacks=[MetricsLog()],
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )


def load_data(
    script_args: SGOPDScriptArguments, split: str, tokenizer: PreTrainedTokenizerBase, max_samples: int | None = None
) -> Dataset:
    """One split, loaded and prepared as the script arguments say. Raises as `load_split` and `prepare_dataset` do."""
    conversational = script_args.conversational
    if conversational is None:
        conversational = getattr(tokenizer, "chat_template", None) is not None
    form = DataFormat(
        prompt_column=script_args.dataset_prompt_column,
        prompt_template=script_args.prompt_template,
        system_prompt=script_args.system_prompt,
        answer_column=script_args.dataset_answer_column,
        box_answer=script_args.box_answer,
        conversational=conversational,
        teacher_column=script_args.dataset_teacher_column,
    )
    dataset = load_split(script_args.dataset_name, split, script_args.dataset_config, script_args.dataset_revision)
    return prepare_dataset(dataset, form, script_args.dataset_filter, max_samples)


def find_checkpoint(args: SGOPDConfig) -> str | None:
    """The checkpoint to resume from; `true` is the last one in the output folder.

    Raises:
        ValueError: when there is none.
    """
    wanted = args.resume_from_checkpoint
    if wanted is None or str(wanted).lower() == "false":
        return None
    if str(wanted).lower() == "true":
        last = get_last_checkpoint(args.output_dir) if os.path.isdir(args.output_dir) else None
        if last is None:
            raise ValueError(
                f"`resume_from_checkpoint` is true, but {args.output_dir} holds no checkpoint. Leave it out to start."
            )
        return last
    if not (Path(wanted) / "trainer_state.json").is_file():
        raise ValueError(f"`resume_from_checkpoint`: {wanted} is no checkpoint folder: it has no trainer_state.json.")
    return wanted


def finish(trainer: SGOPDTrainer, script_args: SGOPDScriptArguments) -> None:
    """Save the model with its tokenizer and card, push them where that is asked for, and say where everything is."""
    args, say = trainer.args, trainer.accelerator.print
    trainer.save_model(args.output_dir)
    name = script_args.dataset_name
    on_hub = name != "miniature" and not Path(name).expanduser().exists() and "*" not in name
    dataset_name = name if on_hub else None
    trainer.create_model_card(model_name=Path(args.output_dir).name, dataset_name=dataset_name)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_name)
    say(f"\nTrained for {trainer.state.global_step} steps.")
    say(f"  model and tokenizer  {args.output_dir}")
    say(f"  model card           {os.path.join(args.output_dir, 'README.md')}")
    say(f"  metrics              {os.path.join(args.output_dir, FILE_NAME)}")
    if last := get_last_checkpoint(args.output_dir):
        say(f"  last checkpoint      {last}")
    if args.push_to_hub:
        say(f"  on the Hub           https://huggingface.co/{trainer.hub_model_id}")
    end_together(trainer.accelerator)
