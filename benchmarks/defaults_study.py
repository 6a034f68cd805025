"""The sweeps on the miniature that chose the defaults the paper does not give (alpha_0, tau and lambda_base), and the one
that compares step-level certificates with the outcome.

Student `noisy`, teacher `nine`, 50 steps of 8 prompts x 8 samples, SG-OPD's other settings at their defaults. Each run is one
line of the output file, so an interrupted study goes on where it stopped:

    python benchmarks/defaults_study.py --seeds 0 1 2 --output defaults_study.jsonl
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table


SWEEPS = {
    "alpha_0": [{"teacher_sft_alpha_0": value} for value in (0.0, 0.03, 0.1, 0.3, 1.0)],
    "tau": [{"stability_tau": value} for value in (1.0, 2.0, 5.0, 10.0, 20.0, None)],
    "lambda_base": [{"disagree_mode": "preserve", "lambda_base": value} for value in (1.0, 1.25)],
    "controls": [
        {"sign_gated_extrapolation": False, "teacher_sampling_enable": False},
        {"gate": "random"},
        {"gate": "positive"},
    ],
    "certificates": [
        {"sign_gated_extrapolation": False, "teacher_sampling_enable": False},
        {"teacher_sampling_enable": False},
        {"teacher_sampling_enable": False, "certificates": True},
        {"teacher_sampling_enable": False, "gate": "random"},
        {"teacher_sampling_enable": False, "gate": "random", "certificates": True},
        {"teacher_sampling_enable": False, "gate": "positive", "certificates": True},
    ],
}


def run(overrides: dict, seed: int, steps: int) -> dict[str, float]:
    """Trains once and samples 8 solutions of each of 100 held-out problems.

    Args:
        overrides: of the trainer's settings; `certificates` has the solutions checked line by line.
    """
    from transformers import PrinterCallback

    from sgopd_trl import SGOPDConfig, SGOPDTrainer
    from sgopd_trl.evaluation import evaluate
    from sgopd_trl.miniature import checkpoint_path, make_dataset
    from sgopd_trl.miniature.lines import LineVerifier
    from sgopd_trl.miniature.task import SOLUTION_TOKENS
    from sgopd_trl.rewards import exact_answer_reward

    overrides = dict(overrides)
    reward = LineVerifier() if overrides.pop("certificates", False) else exact_answer_reward
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(
            output_dir=folder,
            max_steps=steps,
            seed=seed,
            per_device_train_batch_size=64,
            max_completion_length=SOLUTION_TOKENS,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = SGOPDTrainer(
            model=str(checkpoint_path("noisy")),
            reward_funcs=reward,
            args=SGOPDConfig(**(settings | overrides)),
            train_dataset=make_dataset("train", 2048, seed),
            teacher_model=str(checkpoint_path("nine")),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        score = evaluate(
            trainer.model,
            trainer.processing_class,
            make_dataset("test", 100),
            exact_answer_reward,
            max_new_tokens=SOLUTION_TOKENS,
            batch_size=800,
        )
    last = [line for line in trainer.state.log_history if "reverse_kl" in line][-1]
    return {"avg@8": score["avg@8"], "pass@8": score["pass@8"], "reverse_kl": last["reverse_kl"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sweeps", nargs="+", default=list(SWEEPS), choices=list(SWEEPS))
    parser.add_argument("--max_steps", type=int, default=50)
    parser.add_argument("--output", type=Path, default=Path("defaults_study.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)

    done = [json.loads(line) for line in options.output.read_text().splitlines()] if options.output.exists() else []
    wanted = [
        {"sweep": sweep, "overrides": overrides, "seed": seed, "max_steps": options.max_steps}
        for seed in options.seeds
        for sweep in options.sweeps
        for overrides in SWEEPS[sweep]
    ]
    finished = [{key: row[key] for key in wanted[0]} for row in done]
    for case in track([case for case in wanted if case not in finished], description="runs"):
        row = case | run(case["overrides"], case["seed"], case["max_steps"])
        done.append(row)
        with options.output.open("a") as file:
            file.write(json.dumps(row) + "\n")

    table = Table()
    for column in ("sweep", "overrides", "seeds", "avg@8", "pass@8", "reverse KL"):
        table.add_column(column)
    for sweep in options.sweeps:
        for overrides in SWEEPS[sweep]:
            rows = [row for row in done if row["sweep"] == sweep and row["overrides"] == overrides]
            cells = [
                f"{statistics.mean(values):.3f} ± {statistics.stdev(values) / len(values) ** 0.5:.3f}"
                if len(values) > 1
                else f"{values[0]:.3f}"
                for values in ([row[key] for row in rows] for key in ("avg@8", "pass@8", "reverse_kl"))
            ]
            table.add_row(sweep, json.dumps(overrides), str(len(rows)), *cells)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
