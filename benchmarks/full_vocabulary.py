"""What a step costs with the full-vocabulary reverse KL in place of the sampled-token form.

Every form runs in a process of its own, one after the other, with the models, completions and micro-batch of
benchmarks/step_cost.py. Reported are the seconds of "scoring + update", the step without its generation, as the median over
the steps after the first, and the peak resident (on a GPU: allocated) memory in it; and the ratios to the sampled-token form
of the same method in the same run. The seconds are a GPU's, or the processor's own, which other load does not change. The
paper names 1.7 for the time (Appendix H).

    python benchmarks/full_vocabulary.py --vocab_size 32768 --length 128 --output full_vocabulary.json
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table
from step_cost import PROMPT_TOKENS, build_models, completion_lengths, memory_peak


OPD = dict(sign_gated_extrapolation=False)
FORMS = {
    "OPD": OPD,
    "OPD, full vocabulary": OPD | dict(reverse_kl="full_vocabulary"),
    "OPD, top 64": OPD | dict(reverse_kl="full_vocabulary", reverse_kl_top_k=64),
    "AOPD, top 32": OPD | dict(negative_advantage_mode="forward_kl", forward_kl_top_k=32),
    "SG-OPD": {},
    "SG-OPD, full vocabulary": dict(reverse_kl="full_vocabulary"),
}


def measure(form: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds and MiB of scoring and update, for one form in this process."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback

    from sgopd_trl import SGOPDConfig, SGOPDTrainer

    on_gpu = torch.cuda.is_available()
    lengths = completion_lengths(options.batch_size, options.length, "uniform")
    begun, seconds, peaks = [], [], []

    def now() -> float:
        if not on_gpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    class Measured(SGOPDTrainer):
        def _generate_single_turn(self, *args, **kwargs):
            torch.manual_seed(0)
            completions, logps = super()._generate_single_turn(*args, **kwargs)
            memory_peak(reset=True)
            begun.append(now())
            return tuple([row[:n] for row, n in zip(rows, lengths, strict=True)] for rows in (completions, logps))

    class Stopwatch(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            seconds.append(now() - begun[-1])
            peaks.append(memory_peak())

    trainer = Measured(
        model=str(folder / "student"),
        teacher_model=str(folder / "teacher"),
        reward_funcs=lambda completions, **kwargs: [float(i % 2) for i in range(len(completions))],
        args=SGOPDConfig(
            output_dir=str(folder / "run"),
            max_steps=options.steps + 1,
            per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=options.batch_size // options.micro_batch,
            num_generations=options.batch_size,
            max_completion_length=options.length,
            learning_rate=0.0,  # every step samples the same completions
            teacher_sampling_enable=False,
            zero_truncated_reward=False,
            save_strategy="no",
            report_to=[],
            bf16=on_gpu,
            gradient_checkpointing=False,
            disable_tqdm=True,
            use_cpu=not on_gpu,
            **FORMS[form],
        ),
        train_dataset=Dataset.from_dict({"prompt": ["a" * PROMPT_TOKENS] * options.batch_size * (options.steps + 1)}),
        callbacks=[Stopwatch()],
    )
    trainer.train()
    return {"scoring_update_s": statistics.median(seconds[1:]), "peak_mib": max(peaks[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab_size", type=int, default=32_768)
    parser.add_argument("--length", type=int, default=128, help="completion, tokens")
    parser.add_argument("--width", type=int, default=256, help="of the student, a multiple of 64")
    parser.add_argument("--teacher_width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=4, help="rollouts a step")
    parser.add_argument("--micro_batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="measured steps, after a first that is not")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()

    console = Console()
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_models(folder, options.vocab_size, options.width, options.teacher_width, options.layers)
        for form in options.forms:
            with console.status(form), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                rows[form] = pool.submit(measure, form, folder, options).result()
            console.print(f"{form}: {rows[form]['scoring_update_s']:.2f} s, {rows[form]['peak_mib']:.0f} MiB")
            if options.output:
                settings = {key: value for key, value in vars(options).items() if key not in ("output", "forms")}
                options.output.write_text(json.dumps({"settings": settings, "forms": rows}, indent=2) + "\n")
    console.print(as_table(rows))


def as_table(rows: dict[str, dict[str, float]]) -> Table:
    """Seconds, MiB and their ratios to the sampled-token form of the same method."""
    table = Table()
    for column in ("", "scoring + update s", "ratio", "peak MiB", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for form, row in rows.items():
        base = rows.get("SG-OPD" if form.startswith("SG-OPD") else "OPD")
        cells = []
        for key, digits in (("scoring_update_s", 2), ("peak_mib", 0)):
            cells += [f"{row[key]:.{digits}f}", f"{row[key] / base[key]:.2f}" if base else ""]
        table.add_row(form, *cells)
    return table


if __name__ == "__main__":
    main()
