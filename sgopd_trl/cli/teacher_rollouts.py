"""`sgopd teacher-rollouts`: a recipe's teacher rollouts, generated and verified ahead of its runs."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from transformers.trainer_utils import IntervalStrategy

from ..rollout_plan import all_prompts, fill_bank, prompts_of_run
from ..teacher_rollouts import TeacherRollouts, check_bank
from ..teachers import TeacherError
from .errors import UsageError, reported
from .launch import end_together
from .recipe import read_recipe, split_config_flag
from .staged_run import StagedRun
from .stages import is_staged
from .train import build_trainer, parse_or_launch


COMMAND = "teacher-rollouts"


def main(argv: list[str]) -> int:
    """Run `sgopd teacher-rollouts` with these arguments: here, or through `accelerate launch`. Returns the exit code."""
    if "--help" in argv or "-h" in argv:
        make_parser().print_help()
        return 0
    with reported(f"sgopd {COMMAND}"):
        argv = split_config_flag(argv)
        recipe, source = read_recipe(argv)
        staged = StagedRun(recipe, source, argv, COMMAND) if is_staged(recipe) else None
    if staged is not None:
        return staged.run()
    with reported(f"sgopd {COMMAND}"):
        options, training = read_options(argv)
        own = ["--prompts", options.prompts, "--batch_size", str(options.batch_size)]
        parsed = parse_or_launch(training, [COMMAND, *own])
        if isinstance(parsed, int):
            return parsed
        script_args, training_args, model_args = parsed
        if script_args.trainer != "sgopd":
            raise ValueError(
                f"`trainer: {script_args.trainer}` knows no settings of a teacher that generates. Name a recipe of `trainer: "
                "sgopd` with the same teacher, data and verifier, or one with a stage `command: teacher-rollouts`."
            )
        if training_args.teacher_recorded_path is not None:
            raise ValueError("`teacher_recorded_path` takes the teacher's place: there is none to ask for rollouts.")
        # Of the student nothing but the tokenizer is needed: no engine, no reference, no repository.
        training_args.use_vllm = training_args.push_to_hub = False
        training_args.sign_gated_extrapolation, training_args.lambda_base, training_args.beta = False, 1.0, 0.0
        training_args.eval_strategy, script_args.early_stopping_patience = IntervalStrategy.NO, None
        phases = options.prompts == "run"
        if not phases:  # nothing is drawn in phases, and what these need is not asked for
            training_args.teacher_sampling_enable = False
            check_bank(training_args)
        trainer = build_trainer(script_args, training_args, model_args)
        if not phases:
            trainer.teacher_sampling.rollouts = TeacherRollouts(trainer)
        elif not trainer.teacher_sampling.enabled:
            raise ValueError(
                "The recipe switches phased teacher sampling off (`teacher_sampling_enable`, `teacher_sampling_ratio` or "
                "`teacher_sft_alpha_0`), so its runs ask for no rollouts. `--prompts all` has all prompts answered."
            )
        prompts = prompts_of_run(trainer) if phases else all_prompts(trainer)
    bank = trainer.teacher_sampling.rollouts
    say = trainer.accelerator.print
    say(f"{len(prompts)} rollouts of the teacher, kept in {bank.folder}")
    with reported(f"sgopd {COMMAND}", TeacherError):
        verified, generated = fill_bank(trainer, prompts, options.batch_size)
    if trainer.is_world_process_zero():
        bank.bank.compact()
    say(f"{generated} generated now, {len(prompts) - generated} were there; {verified} of {len(prompts)} verified.")
    say(f"Every run over the same data uses them with `teacher_bank: {bank.folder}`.")
    end_together(trainer.accelerator)
    return 0


def read_options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and the other arguments.

    Raises:
        UsageError: for an option's value.
    """
    options, training = make_parser().parse_known_args(argv)
    if options.batch_size < 1:
        raise UsageError(f"--batch_size must be >= 1, got {options.batch_size}.")
    return options, training


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. `{self.prog} --help` lists the options.")


def make_parser() -> argparse.ArgumentParser:
    """The command's own options; the others are those of `sgopd train`."""
    parser = _Parser(
        prog=f"sgopd {COMMAND}",
        allow_abbrev=False,
        add_help=False,
        description="Generates and verifies the teacher's rollouts that a recipe's runs will ask for. A run that is "
        "stopped goes on where it stood. Takes every argument of `sgopd train`, --config first of all.",
    )
    parser.add_argument(
        "--prompts",
        choices=("run", "all"),
        default="run",
        help="those that the recipe's run draws, with its seed, steps and number of processes (default); or all of the "
        "dataset's, with `teacher_rollouts_per_prompt` rollouts each",
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        default=64,
        help="prompts at a time, of all processes (default: 64). A teacher in process generates its share in one batch",
    )
    return parser
