"""`sgopd demo`: the miniature's student `guess` learns from its teacher `clean`, on a CPU, without a download."""

import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

from . import __version__
from .config import SGOPDConfig
from .evaluation import evaluate
from .figures import plot_dynamics, plot_sign_shares
from .metrics_log import MetricsLog
from .miniature import checkpoint_path, make_dataset
from .miniature.task import SOLUTION_TOKENS
from .output_folder import METRICS
from .rewards import exact_answer_reward
from .trainer import SGOPDTrainer


STUDENT, TEACHER = "guess", "clean"
PROBLEMS, SAMPLES = 8, 8  # of one step
TRAIN_PROBLEMS, HELD_OUT_PROBLEMS = 2048, 100
CHECKPOINT, SUMMARY = "checkpoint", "summary.json"
DYNAMICS, SIGN_SHARES = "training_dynamics.png", "sign_shares.png"
ROLLOUTS = "teacher_rollouts"
_OURS = {CHECKPOINT, METRICS, SUMMARY, DYNAMICS, SIGN_SHARES, ROLLOUTS}


def run_demo(output_dir: Path, max_steps: int = 100, seed: int = 0) -> dict[str, Any]:
    """Train, evaluate before and after, and write checkpoint, metrics, figures and `summary.json`.

    The results of an earlier demo in `output_dir` are replaced.

    Args:
        output_dir: folder of everything it writes; made where it does not exist.
        max_steps: optimizer steps.
        seed: of the training run; the held-out problems and their samples are the same for every seed.

    Returns:
        What `summary.json` holds: `before`, `after` and `teacher`, each with `avg@8`, `pass@8` and `problems`;
        `seconds` of the whole run; `settings` and `versions`.

    Raises:
        FileExistsError: `output_dir` holds anything but the results of an earlier demo.
    """
    start = time.perf_counter()
    console = Console()
    output_dir = Path(output_dir)
    _claim(output_dir, console)
    args = demo_config(output_dir, max_steps, seed)
    held_out = make_dataset("test", HELD_OUT_PROBLEMS)
    with _quiet(), _threads(1):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint_path(STUDENT))
        student, teacher = (
            AutoModelForCausalLM.from_pretrained(checkpoint_path(name), dtype=torch.float32).to(args.device)
            for name in (STUDENT, TEACHER)
        )

        def measure(model: torch.nn.Module, label: str) -> dict[str, float | int]:
            with console.status(f"sampling from the {label}"):
                result = evaluate(
                    model,
                    tokenizer,
                    held_out,
                    exact_answer_reward,
                    k=SAMPLES,
                    max_new_tokens=SOLUTION_TOKENS,
                    batch_size=HELD_OUT_PROBLEMS * SAMPLES,
                )
            console.print(f"  {label:<18} avg@8 {result['avg@8']:.3f}   pass@8 {result['pass@8']:.3f}", highlight=False)
            return result

        console.print("The task: a start number and seven signed digits, summed modulo 100. For example")
        example = held_out[0]
        console.print(f"  {example['prompt'][0]['content']}{example['solution']}", markup=False, highlight=False)
        console.print(f"\nHeld-out accuracy, {HELD_OUT_PROBLEMS} problems, {SAMPLES} samples each", highlight=False)
        scores = {"teacher": measure(teacher, "teacher"), "before": measure(student, "student, before")}
        display = TrainingDisplay(console, max_steps)
        trainer = SGOPDTrainer(
            model=student,
            reward_funcs=exact_answer_reward,
            args=args,
            train_dataset=make_dataset("train", TRAIN_PROBLEMS, seed),
            processing_class=tokenizer,
            callbacks=[MetricsLog(), display],
            teacher_model=teacher,
        )
        trainer.remove_callback(PrinterCallback)  # the display prints
        console.print(f"\nSG-OPD, {max_steps} steps of {PROBLEMS} problems x {SAMPLES} samples", highlight=False)
        with display:
            trainer.train()
        console.print()
        scores["after"] = measure(trainer.model, "student, after")
        trainer.save_model(str(output_dir / CHECKPOINT))
        plot_dynamics(trainer.state.log_history, output_dir / DYNAMICS)
        plot_sign_shares(trainer.state.log_history, output_dir / SIGN_SHARES)
    summary = scores | {
        "seconds": round(time.perf_counter() - start, 1),
        "settings": {"student": STUDENT, "max_steps": max_steps, "seed": seed}
        | {name: getattr(args, name) for name in _SETTINGS},
        "versions": {"sgopd-trl": __version__} | {name: version(name) for name in ("trl", "transformers", "torch")},
    }
    (output_dir / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    _print_closing(console, output_dir, summary)
    return summary


# Settings

_SETTINGS = (
    "learning_rate",
    "lambda_high",
    "disagree_mode",
    "disagree_interp_beta",
    "teacher_sampling_ratio",
    "teacher_sampling_phase1_end_frac",
    "teacher_sampling_phase2_end_frac",
    "stability_tau",
)


def demo_config(output_dir: Path, max_steps: int, seed: int) -> SGOPDConfig:
    """The paper's default SG-OPD at the size of the miniature."""
    return SGOPDConfig(
        output_dir=str(output_dir),
        max_steps=max_steps,
        seed=seed,
        teacher_bank=str(output_dir / ROLLOUTS),
        per_device_train_batch_size=PROBLEMS * SAMPLES,
        num_generations=SAMPLES,
        max_completion_length=SOLUTION_TOKENS,
        learning_rate=1e-3,
        lambda_high=1.8,
        disagree_mode="interp",
        disagree_interp_beta=1.0,
        teacher_sampling_ratio=0.125,
        teacher_sampling_phase1_end_frac=0.30,
        teacher_sampling_phase2_end_frac=0.35,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=torch.cuda.device_count() != 1,  # with several, Trainer would wrap the student in DataParallel
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


# Display


class TrainingDisplay(TrainerCallback):
    """A live table and progress bar on a terminal, a line every few steps elsewhere. A context manager.

    Args:
        console: where to. total: optimizer steps of the run.
    """

    COLUMNS = ("step", "reward = accuracy", "reverse KL", "agree", "disagree", "neutral", "alpha", "left")

    def __init__(self, console: Console, total: int):
        self.console = console
        self.total = total
        self.every = max(1, total // 10)
        self.rows: list[tuple[str, ...]] = []
        self.started = time.perf_counter()
        self.progress = Progress(TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.task = self.progress.add_task("", total=total)
        self.live = Live(self.progress, console=console) if console.is_terminal else None

    def __enter__(self) -> "TrainingDisplay":
        self.started = time.perf_counter()
        if self.live is not None:
            self.live.start()
        else:
            self.console.print("  ".join(self.COLUMNS))
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if "sign/agree" not in logs:  # the summary at the end of training
            return
        step = state.global_step
        left = (time.perf_counter() - self.started) / step * (self.total - step)
        row = (
            str(step),
            f"{logs['reward']:.2f}",
            f"{logs['reverse_kl']:.3f}",
            *(f"{logs[f'sign/{name}']:.0%}" for name in ("agree", "disagree", "neutral")),
            f"{logs['teacher_sampling/alpha']:.2f}",
            f"{left:.0f} s",
        )
        kept = step % self.every == 0 or step in (1, self.total)
        if self.live is None:
            if kept:
                print_row = (value.rjust(len(name)) for name, value in zip(self.COLUMNS, row, strict=True))
                self.console.print("  ".join(print_row), highlight=False)
            return
        self.progress.update(self.task, completed=step)
        self.live.update(Group(self._table([*self.rows, row]), self.progress))
        if kept:
            self.rows.append(row)

    def _table(self, rows: list[tuple[str, ...]]) -> Table:
        table = Table(box=None, header_style="bold")
        for name in self.COLUMNS:
            table.add_column(name, justify="right")
        for number, row in enumerate(rows, 1):
            table.add_row(*row, style="bold" if number == len(rows) else "dim")
        return table


def _print_closing(console: Console, output_dir: Path, summary: dict[str, Any]) -> None:
    before, after, teacher = (summary[name]["avg@8"] for name in ("before", "after", "teacher"))
    lines = [
        f"\navg@8 {before:.3f} -> {after:.3f} (teacher {teacher:.3f}) in {summary['seconds']:.0f} s.",
        f"\nIn {output_dir}:",
        f"  {SUMMARY:<24} the figures above, the settings and the versions",
        f"  {METRICS:<24} every metric of every step",
        f"  {DYNAMICS:<24} reward, length, entropy and reverse KL",
        f"  {SIGN_SHARES:<24} where verifier and teacher agreed",
        f"  {ROLLOUTS + '/':<24} the teacher's rollouts, verified, for `datasets.load_dataset`",
        f"  {CHECKPOINT + '/':<24} the trained student, for AutoModelForCausalLM.from_pretrained",
        "\nNext:",
        "  sgopd train --config recipes/miniature/sgopd/config.yaml                      the same run from a recipe",
        "  sgopd train --config recipes/miniature/sgopd/config.yaml --gate random        with one setting changed",
        "  notebooks/01_quickstart.ipynb                                                 the same in Python",
    ]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


# Surroundings


def check_output_dir(output_dir: Path) -> None:
    """Refuse a folder with files that no demo wrote.

    Raises:
        FileExistsError: naming the first of them.
    """
    others = sorted(path.name for path in output_dir.iterdir() if path.name not in _OURS) if output_dir.exists() else []
    if others:
        raise FileExistsError(
            f"{output_dir} holds files that are not an earlier demo's, such as {others[0]!r}. Choose another folder "
            "with --output_dir."
        )


def _claim(output_dir: Path, console: Console) -> None:
    """Make the folder, without the results of an earlier demo."""
    check_output_dir(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    earlier = sorted(output_dir.iterdir())
    if earlier:
        console.print(f"Replacing the earlier demo in {output_dir}.\n", markup=False, highlight=False)
    for path in earlier:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Threads of torch inside. On two busy cores, models of this size took ten times as long with two as with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of loading and saving inside, and no word that DeepSpeed, if installed, found no GPU."""

    def keep(record: logging.LogRecord) -> bool:
        return "Setting accelerator to CPU" not in record.getMessage()

    deepspeed = logging.getLogger("DeepSpeed")
    deepspeed.addFilter(keep)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        deepspeed.removeFilter(keep)
        transformers.utils.logging.enable_progress_bar()
        datasets.enable_progress_bars()
