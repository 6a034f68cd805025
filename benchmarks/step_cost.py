"""Cost of one optimizer step: SGOPDTrainer beside TRL's DistillationTrainer(beta=1) and GRPOTrainer.

Every trainer runs in a process of its own, one after the other, with the same student, teacher, completions, micro-batch
and optimizer. The learning rate is 0, so that every step samples the same completions, which are then cut to the lengths
asked for. Reported are medians over the steps after the first; "scoring + update" is the step without its generation.

    python benchmarks/step_cost.py --vocab_sizes 32768 151936 --lengths 512 --output step_cost.json

Ratios are to DistillationTrainer in the same run; memory is the peak resident (on a GPU: allocated) memory of scoring and
update, with weights, gradients and optimizer state.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table


METHODS = {
    "DistillationTrainer": "TRL's on-policy distillation at beta = 1",
    "GRPOTrainer": "the floor: no teacher",
    "OPD": "SGOPDTrainer, lambda 1, no gate: no reference",
    "SG-OPD": "SGOPDTrainer, gate and reference",
    "SG-OPD, fresh pass": "SG-OPD without the log-probabilities kept while sampling",
}
PROMPT_TOKENS = 32


def completion_lengths(count: int, longest: int, distribution: str) -> list[int]:
    """Lengths in tokens: all the longest, or quantiles of a log-normal with a mean of a quarter of the longest."""
    if distribution == "uniform":
        return [longest] * count
    sigma = 0.8
    mu = math.log(longest / 4) - sigma**2 / 2
    normal = statistics.NormalDist(mu, sigma)
    lengths = [min(longest, max(1, round(math.exp(normal.inv_cdf((i + 0.5) / count))))) for i in range(count)]
    lengths[-1] = longest
    return lengths[1::2] + lengths[::2]  # long and short ones side by side, as sampling gives them


def build_models(folder: Path, vocab_size: int, width: int, teacher_width: int, layers: int) -> None:
    """Random student and teacher, with a tokenizer whose text is single characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed

    words = {"<pad>": 0, "<eos>": 1} | {chr(i) if i < 128 else f"<{i}>": i for i in range(2, vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    for name, size, seed in (("student", width, 0), ("teacher", teacher_width, 1)):
        set_seed(seed)
        config = Qwen3Config(
            vocab_size=vocab_size,
            hidden_size=size,
            intermediate_size=3 * size,
            num_hidden_layers=layers,
            num_attention_heads=size // 64,
            num_key_value_heads=size // 64,
            head_dim=64,
            tie_word_embeddings=False,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
        Qwen3ForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def memory_peak(reset: bool = False) -> float:
    """Peak memory in MiB since the last reset."""
    import torch

    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return peak
    status = Path("/proc/self/status").read_text()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def measure(method: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Trains a few steps with one method in this process."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer

    from sgopd_trl import SGOPDConfig, SGOPDTrainer

    batch = options.batch_size
    lengths = completion_lengths(batch, options.length, options.distribution)
    dataset = Dataset.from_dict({"prompt": ["a" * PROMPT_TOKENS] * (batch * (options.steps + 1))})
    common = dict(
        output_dir=str(folder / "run"),
        max_steps=options.steps + 1,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=batch // options.micro_batch,
        max_completion_length=options.length,
        learning_rate=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        bf16=torch.cuda.is_available(),
        gradient_checkpointing=False,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )

    def half_right(completions, **kwargs):
        return [float(i % 2) for i in range(len(completions))]

    student, teacher = str(folder / "student"), str(folder / "teacher")
    if method == "DistillationTrainer":
        base = DistillationTrainer
        args = DistillationConfig(**common, beta=1.0)
        arguments = dict(teacher_model=teacher)
    elif method == "GRPOTrainer":
        base = GRPOTrainer
        args = GRPOConfig(**common, num_generations=batch, loss_type="grpo")
        arguments = dict(reward_funcs=half_right)
    else:
        base = SGOPDTrainer
        args = SGOPDConfig(
            **common,
            num_generations=batch,
            sign_gated_extrapolation=method != "OPD",
            teacher_sampling_enable=False,
            scoring_tokens_per_batch=options.scoring_tokens_per_batch,
            zero_truncated_reward=False,
            reuse_sampling_logps=method != "SG-OPD, fresh pass",
        )
        arguments = dict(reward_funcs=half_right, teacher_model=teacher)

    seconds: dict[str, list[float]] = {"generation": [], "step": []}
    peaks: list[float] = []

    def synchronize():
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    class Measured(base):
        def _generate_single_turn(self, *args, **kwargs):
            synchronize()
            start = time.perf_counter()
            torch.manual_seed(0)
            output = super()._generate_single_turn(*args, **kwargs)
            synchronize()
            seconds["generation"].append(time.perf_counter() - start)
            memory_peak(reset=True)
            rows = output[0] if isinstance(output, tuple) else output
            cut = [ids[:length] for ids, length in zip(rows, lengths, strict=True)]
            if not isinstance(output, tuple):
                return cut
            logps = output[1]
            if logps is not None:
                logps = [values[:length] for values, length in zip(logps, lengths, strict=True)]
            return cut, logps

    class Stopwatch(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            synchronize()
            self.start = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            synchronize()
            seconds["step"].append(time.perf_counter() - self.start)
            peaks.append(memory_peak())

    trainer = Measured(model=student, args=args, train_dataset=dataset, callbacks=[Stopwatch()], **arguments)
    trainer.train()
    generation, step = (statistics.median(seconds[name][1:]) for name in ("generation", "step"))
    # Each of our scoring phases, as the trainer logs it; TRL's DistillationTrainer scores inside its loss.
    phases = ("seconds/teacher", "seconds/reference", "seconds/old")
    lines = [line for line in trainer.state.log_history if "seconds/teacher" in line][1:]
    scoring = sum(statistics.median(line[name] for line in lines) for name in phases) if lines else 0.0
    return {
        "generation_s": generation,
        "scoring_s": scoring,
        "update_s": step - generation - scoring,
        "scoring_update_s": step - generation,
        "peak_mib": max(peaks[1:]),
        "mean_length": sum(lengths) / len(lengths),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab_sizes", type=int, nargs="+", default=[32_768, 151_936])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512], help="longest completion, tokens")
    parser.add_argument("--distributions", nargs="+", default=["uniform", "lognormal"])
    parser.add_argument("--widths", type=int, nargs="+", default=[256], help="student widths, multiples of 64")
    parser.add_argument("--teacher_width", type=int, help="default: 1.5 times the student's")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=4, help="rollouts a step")
    parser.add_argument("--micro_batch", type=int, default=4)
    parser.add_argument("--scoring_tokens_per_batch", type=int, help="default: SGOPDConfig's")
    parser.add_argument("--steps", type=int, default=2, help="measured steps, after a first that is not")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        method, setting = options.child
        options = argparse.Namespace(**json.loads(setting))
        print("RESULT " + json.dumps(measure(method, Path(options.folder), options)))
        return

    results = []
    console = Console()
    for width in options.widths:
        teacher_width = options.teacher_width or width * 3 // 2 // 64 * 64
        for vocab_size in options.vocab_sizes:
            with tempfile.TemporaryDirectory() as folder:
                build_models(Path(folder), vocab_size, width, teacher_width, options.layers)
                for length in options.lengths:
                    for distribution in options.distributions:
                        setting = vars(options) | {
                            "folder": folder,
                            "length": length,
                            "distribution": distribution,
                            "output": None,
                        }
                        case = {
                            "width": width,
                            "teacher_width": teacher_width,
                            "vocab_size": vocab_size,
                            "length": length,
                            "distribution": distribution,
                        }
                        rows = {}
                        for method in options.methods:
                            with console.status(f"{method}, vocabulary {vocab_size}, {distribution} {length}"):
                                rows[method] = run_child(method, setting)
                            console.print(f"{method}: scoring + update {rows[method]['scoring_update_s']:.2f} s")
                            results.append(case | {"method": method} | rows[method])
                        print_case(console, case, rows)
                        if options.output:
                            options.output.write_text(json.dumps(results, indent=2) + "\n")


def run_child(method: str, setting: dict) -> dict[str, float]:
    """One method in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, __file__, "--child", method, json.dumps(setting, default=str)]
    done = subprocess.run(command, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    raise RuntimeError(f"{method} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def print_case(console: Console, case: dict, rows: dict[str, dict[str, float]]) -> None:
    title = (
        f"width {case['width']} / teacher {case['teacher_width']}, vocabulary {case['vocab_size']}, "
        f"{case['distribution']} lengths up to {case['length']}"
    )
    table = Table(title=title)
    for column in ("", "generation s", "scoring s", "update s", "scoring+update s", "ratio", "peak MiB", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    base = rows.get("DistillationTrainer")
    for method, row in rows.items():
        ratios = [row[key] / base[key] if base else float("nan") for key in ("scoring_update_s", "peak_mib")]
        table.add_row(
            method,
            f"{row['generation_s']:.2f}",
            f"{row['scoring_s']:.2f}",
            f"{row['update_s']:.2f}",
            f"{row['scoring_update_s']:.2f}",
            f"{ratios[0]:.2f}",
            f"{row['peak_mib']:.0f}",
            f"{ratios[1]:.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
