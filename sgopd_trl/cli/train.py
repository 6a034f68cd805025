"""`sgopd train`: everything a recipe names, from the data to the model card."""

import argparse
import importlib
import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from trl import ModelConfig, get_peft_config, get_quantization_config

from ..baselines.held_out import held_out_samples
from ..checks import cannot_load, filter_long_prompts, load_student_tokenizer
from ..data import DataFormat, load_split, prepare_dataset
from ..metrics_log import MetricsLog
from ..miniature import resolve
from ..output_folder import METRICS, last_checkpoint
from ..teachers import TeacherError
from ..trainer import SGOPDTrainer
from ..verifiers import VerifierFailure, load_verifier
from .arguments import Parser, SGOPDScriptArguments, check_command_line, check_recipe, trainer_name
from .errors import UsageError, reported
from .launch import (
    end_together,
    launch_flags,
    launch_training,
    needs_launch,
    number_of_processes,
    recipe_launch_args,
    resolve_accelerate_config,
    split_launch_args,
    under_launcher,
)
from .recipe import read_recipe, split_config_flag
from .resume import find_checkpoint, go_on
from .staged_run import StagedRun
from .stages import HELP, is_staged


def main(argv: list[str]) -> int:
    """Run `sgopd train` with these arguments: here, or through `accelerate launch`. Returns the exit code."""
    with reported("sgopd train"):
        argv = split_config_flag(argv)
        recipe, source = read_recipe(argv)
        if "--help" in argv or "-h" in argv:
            Parser(trainer_name(argv, recipe)).print_help()
            print("\nAlso: --config recipe.yaml, --accelerate_config NAME|PATH, and `accelerate launch`'s own flags.")
            print(f"\n{HELP}")
            return 0
        staged = StagedRun(recipe, source, argv) if is_staged(recipe) else None
    if staged is not None:
        return staged.run()
    with reported("sgopd train"):
        parsed = parse_or_launch(argv, ["train"])
        if isinstance(parsed, int):
            return parsed
        script_args, training_args, model_args = parsed
        checkpoint = find_checkpoint(training_args)
        trainer = build_trainer(script_args, training_args, model_args)
    with reported("sgopd train", TeacherError, VerifierFailure):
        if checkpoint is None:
            trainer.train()
        else:
            trainer.accelerator.print(f"Resuming from {checkpoint}.")
            go_on(trainer, checkpoint)
    finish(trainer, script_args)
    return 0


def parse_or_launch(
    argv: Sequence[str], command: list[str]
) -> tuple[SGOPDScriptArguments, TrainingArguments, ModelConfig] | int:
    """The arguments; or, where the command has to run through `accelerate launch`, the exit code of having done that.

    Args:
        argv: the training and launch arguments. command: the subcommand with its own options, to launch it again.

    Raises:
        UsageError: for anything that cannot be understood.
    """
    launch, training, values = read_command_line(argv)
    gpu_count = 0 if values.use_cpu else torch.cuda.device_count()
    if needs_launch(launch, os.environ, gpu_count):
        return launch_training(resolve_accelerate_config(launch), [*command, *training], gpu_count)
    return parse(training)


def parse(training: Sequence[str]) -> tuple[SGOPDScriptArguments, TrainingArguments, ModelConfig]:
    """Checked training arguments as the command's, the trainer's and the model's dataclasses.

    Raises:
        ValueError: for a value that is out of range, by the dataclass that it belongs to.
    """
    parser = Parser(trainer_name(training, read_recipe(training)[0]))
    return parser.parse_args_and_config(training, fail_with_unknown_args=False)


def check(argv: Sequence[str], evaluates: bool = True) -> None:
    """Refuses what can be refused of a command line before anything is launched or loaded.

    Args:
        argv: the training and launch arguments. evaluates: whether the command evaluates where the recipe does.

    Raises:
        UsageError, ValueError: as the command.
    """
    launch, training, values = read_command_line(argv)
    gpu_count = 0 if values.use_cpu else torch.cuda.device_count()
    if needs_launch(launch, os.environ, gpu_count):
        # One process with the batches of all: what divides the one divides the other. This process uses no GPU
        processes = number_of_processes(launch, gpu_count)
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
            training = [*training, f"--{name}", str(processes * getattr(values, name))]
        training += ["--use_cpu", "true"]
    script_args, training_args, _ = parse(training)
    check_verifier_settings(script_args)
    if evaluates:
        check_evaluation(script_args, training_args)


def read_command_line(argv: Sequence[str]) -> tuple[list[str], list[str], argparse.Namespace]:
    """The launch arguments (of the recipe, then of the command line), the training arguments, and the latter's values.

    Raises:
        UsageError: for anything that cannot be understood.
    """
    flags = launch_flags()
    launch, training = split_launch_args(split_config_flag(argv), flags)
    if launch and under_launcher(os.environ):
        raise UsageError(f"Already started by a launcher: give it {' '.join(launch)} instead.")
    recipe, source = read_recipe(training)
    trainer = trainer_name(training, recipe)
    launch_keys = [*flags, "accelerate_config"]
    if source is not None:
        check_recipe(recipe, source, launch_keys, trainer)
    values = check_command_line(training, recipe, launch_keys, trainer)
    return recipe_launch_args(recipe, flags) + launch, training, values


@dataclass
class Parts:
    """What every trainer is made of beside its own settings.

    Attributes:
        model: directory or Hub id. tokenizer: the student's. reward_funcs: the verifier; may be empty for a baseline.
        train_dataset, eval_dataset: `None` where the recipe names no dataset, or does not evaluate.
    """

    model: str
    tokenizer: PreTrainedTokenizerBase
    reward_funcs: list[Any]
    train_dataset: Dataset | None
    eval_dataset: Dataset | None
    callbacks: list[TrainerCallback]
    quantization_config: Any
    peft_config: Any

    def short_prompts(self, args: Any) -> Dataset:
        """The training data without the prompts longer than `args.max_prompt_length`, which `SGOPDTrainer` filters itself.

        Raises:
            ValueError: when no prompt is left.
        """
        dataset, dropped = filter_long_prompts(
            self.train_dataset, args.max_prompt_length, self.tokenizer, args.chat_template_kwargs
        )
        if dropped:
            self.say(f"Dropped {dropped} prompts longer than {args.max_prompt_length} tokens; {len(dataset)} are left.")
        return dataset

    @staticmethod
    def say(text: str) -> None:
        """Prints once, whatever the number of processes."""
        PartialState().print(text)

    @staticmethod
    def main_process_first() -> AbstractContextManager:
        """The other processes of a machine find the main one's files in the cache."""
        return PartialState().local_main_process_first()


def build_trainer(
    script_args: SGOPDScriptArguments, training_args: TrainingArguments, model_args: ModelConfig
) -> Trainer:
    """The trainer that the arguments describe.

    Raises:
        ValueError: when something is missing or does not fit together. OSError: when a model or dataset cannot be had.
    """
    evaluates = training_args.eval_strategy != "no"
    check_evaluation(script_args, training_args)
    check_verifier_settings(script_args)
    names, settings = script_args.reward_funcs or [], script_args.verifier_settings or {}
    reward_funcs = [load_verifier(name, settings.get(name)) for name in names]
    model = resolve(model_args.model_name_or_path)
    trust_remote_code = training_args.trust_remote_code
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    } | (training_args.model_init_kwargs or {})
    with cannot_load(f"The student {model_args.model_name_or_path}"):
        tokenizer = load_student_tokenizer(model, training_args.model_init_kwargs["revision"], trust_remote_code)
    train_dataset = eval_dataset = None
    with Parts.main_process_first():
        if script_args.trainer != "sft":  # whose data is the bank
            train_dataset = load_data(
                script_args, script_args.dataset_train_split, tokenizer, script_args.max_train_samples
            )
        if evaluates:
            eval_dataset = load_data(script_args, script_args.dataset_test_split, tokenizer)
    parts = Parts(
        model=model,
        tokenizer=tokenizer,
        reward_funcs=reward_funcs,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        callbacks=[MetricsLog()],
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    if script_args.early_stopping_patience is not None:
        parts.callbacks.append(EarlyStoppingCallback(script_args.early_stopping_patience))
        training_args.restore_callback_states_from_checkpoint = True  # a resumed run goes on counting
    if script_args.trainer == "sgopd":
        return build_sgopd(training_args, parts)
    return importlib.import_module(f"sgopd_trl.baselines.{script_args.trainer}").build(
        script_args, training_args, parts
    )


def build_sgopd(args: Any, parts: Parts) -> SGOPDTrainer:
    """The trainer of `trainer: sgopd`. Raises as `SGOPDTrainer` does."""
    for role in ("teacher_model_name_or_path", "reference_model_name_or_path"):
        if getattr(args, role) is not None:
            setattr(args, role, resolve(getattr(args, role)))
    for settings in (args.teachers or {}).values():
        if settings.get("model_name_or_path"):
            settings["model_name_or_path"] = resolve(settings["model_name_or_path"])
    return SGOPDTrainer(
        model=parts.model,
        reward_funcs=parts.reward_funcs,
        args=args,
        train_dataset=parts.train_dataset,
        eval_dataset=parts.eval_dataset,
        processing_class=parts.tokenizer,
        callbacks=parts.callbacks,
        quantization_config=parts.quantization_config,
        peft_config=parts.peft_config,
    )


def check_verifier_settings(script_args: SGOPDScriptArguments) -> None:
    """`verifier_settings` are those of the reward functions. Raises ValueError with the names that are not."""
    names, settings = script_args.reward_funcs or [], script_args.verifier_settings or {}
    if unknown := settings.keys() - set(names):
        raise ValueError(f"`verifier_settings` are for {sorted(unknown)}, but `reward_funcs` are {names}.")


def check_evaluation(script_args: SGOPDScriptArguments, args: TrainingArguments) -> None:
    """What evaluation during training, and stopping by it, need.

    Raises:
        ValueError: naming the setting that is missing, or the metric there is.
    """
    evaluates, wanted = args.eval_strategy != "no", (args.metric_for_best_model or "").removeprefix("eval_")
    measures = wanted not in ("", "loss")
    for name, ok, do in (
        ("eval_strategy", evaluates, "`eval_strategy: steps`, with `eval_steps`"),
        ("load_best_model_at_end", args.load_best_model_at_end, "`load_best_model_at_end: true`"),
        ("metric_for_best_model", measures, "for example avg@8"),
    ):
        if script_args.early_stopping_patience is not None and not ok:
            raise ValueError(
                f"`early_stopping_patience` = {script_args.early_stopping_patience} needs `{name}`, got "
                f"{getattr(args, name)!r}: set {do}."
            )
    if not evaluates:
        return
    for name in ("dataset_name", "reward_funcs"):
        if not getattr(script_args, name):
            raise ValueError(f"`eval_strategy: {args.eval_strategy}` solves held-out problems: set `{name}` too.")
    k = held_out_samples(args)
    if not measures and (args.load_best_model_at_end or args.metric_for_best_model is not None):
        raise ValueError(
            "Evaluation measures solved held-out problems, no loss: with `load_best_model_at_end` set "
            f"`metric_for_best_model`, got {args.metric_for_best_model!r}, to avg@{k} or pass@{k}."
        )
    if re.match("avg|pass", wanted) and wanted not in (f"avg@{k}", f"pass@{k}"):
        raise ValueError(
            f"`metric_for_best_model` is {wanted}, but with {k} samples a problem (`num_generations_eval`) the metrics "
            f"are avg@{k} and pass@{k}."
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


def finish(trainer: Trainer, script_args: SGOPDScriptArguments) -> None:
    """Save the model with its tokenizer and card, push them where that is asked for, and say where everything is."""
    args, say = trainer.args, trainer.accelerator.print
    trainer.save_model(args.output_dir)
    name = script_args.dataset_name
    local = name is None or name.startswith("miniature") or Path(name).expanduser().exists() or "*" in name
    dataset_name = None if local else name
    trainer.create_model_card(model_name=Path(args.output_dir).name, dataset_name=dataset_name)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_name)
    say(f"\nTrained for {trainer.state.global_step} steps.")
    say(f"  model and tokenizer  {args.output_dir}")
    say(f"  model card           {os.path.join(args.output_dir, 'README.md')}")
    say(f"  metrics              {os.path.join(args.output_dir, METRICS)}")
    if last := last_checkpoint(args.output_dir):
        say(f"  last checkpoint      {last}")
    if args.push_to_hub:
        say(f"  on the Hub           https://huggingface.co/{trainer.hub_model_id}")
    end_together(trainer.accelerator)
