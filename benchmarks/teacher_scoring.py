"""What a teacher costs: tokens scored a second, and a step with teacher rollouts online, overlapped and from the bank.

    python tests/vllm_server.py install        # for the parts with a server; without it they are left out
    python benchmarks/teacher_scoring.py --output teacher_scoring.json

Scoring: every sequence once, by a model in process in padded micro-batches in the order they come, in order of length
within the same token budget, and by a vLLM server with the same weights. Ratios are to the padded batches of the same run.

Step: seconds of a whole optimizer step of SGOPDTrainer with a served teacher (without a server: in process, nothing
overlaps), medians over the steps after the first. "in turn" asks the server only when its answer is needed. Ratios are to
the step without teacher rollouts; the last column compares the bank with that step plus the teacher loss's own forward
and backward pass, which is timed apart.

On a CPU server and trainer share the cores: give each one thread (the default) and two cores, and run nothing else.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table


sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

from step_cost import PROMPT_TOKENS, build_models, completion_lengths  # noqa: E402
from vllm_server import VLLMServer, installed  # noqa: E402


console = Console()


def timed(function, repeats: int) -> float:
    """Median seconds of a call, after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def connect(server: VLLMServer, tokenizer, options: argparse.Namespace):
    from sgopd_trl.teachers.server import ServerTeacher

    teacher = ServerTeacher([server.url], eos_token_ids=[tokenizer.eos_token_id], concurrency=options.concurrency)
    teacher.check_start(tokenizer, longest_prompt=PROMPT_TOKENS, max_completion_length=options.length)
    return teacher


def measure_scoring(folder: Path, server: VLLMServer | None, options: argparse.Namespace) -> list[dict]:
    """Tokens a second, of completions and prompts without padding, for both distributions of lengths."""
    from accelerate import Accelerator
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.utils import add_fused_lm_head

    from sgopd_trl.scoring import join_padded, score_sequences

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher")
    model = AutoModelForCausalLM.from_pretrained(folder / "teacher", dtype=torch.float32).to(accelerator.device).eval()
    add_fused_lm_head(model)

    def logps(input_ids, attention_mask, length):
        labels = input_ids.masked_fill(attention_mask == 0, -100)
        output = model(
            input_ids=input_ids, attention_mask=attention_mask, labels=labels, fused_lm_head=True, use_cache=False
        )
        return output.log_probs[:, -length:]

    rows = []
    for distribution in ("uniform", "lognormal"):
        lengths = completion_lengths(options.sequences, options.length, distribution)
        generator = torch.Generator().manual_seed(0)
        prompts = [[5] * PROMPT_TOKENS for _ in lengths]
        completions = [torch.randint(2, 128, (length,), generator=generator).tolist() for length in lengths]
        tokens = sum(lengths) + len(lengths) * PROMPT_TOKENS
        budget = options.micro_batch * (PROMPT_TOKENS + options.length)

        def padded(prompts=prompts, completions=completions):
            ids, mask = join_padded([torch.tensor(p) for p in prompts], [torch.tensor(c) for c in completions], 0)
            for start in range(0, len(ids), options.micro_batch):
                chosen = slice(start, start + options.micro_batch)
                with torch.no_grad():
                    logps(ids[chosen].to(accelerator.device), mask[chosen].to(accelerator.device), options.length)

        def ordered(prompts=prompts, completions=completions, budget=budget):
            score_sequences(logps, prompts, completions, budget, accelerator)

        ways = {"padded batches": padded, "order of length": ordered}
        if server is not None:
            teacher = connect(server, tokenizer, options)
            ways["vLLM server"] = lambda p=prompts, c=completions, t=teacher: t.score(p, c, temperature=1.0)
        for way, function in ways.items():
            with console.status(f"{distribution}, {way}"):
                rows.append({"lengths": distribution, "way": way, "tokens_per_second": tokens / timed(function, 3)})
    return rows


def reward(completions, **kwargs) -> list[float]:
    """Every second rollout of a group is right; so is a single one."""
    return [float(number % 2 == 0) for number in range(len(completions))]


def measure_steps(folder: Path, server: VLLMServer | None, options: argparse.Namespace) -> list[dict]:
    """Seconds of a step with each way of having teacher rollouts."""
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback

    from sgopd_trl import SGOPDConfig, SGOPDTrainer
    from sgopd_trl.teacher_loss import teacher_cross_entropy

    prompts = [chr(97 + i % 26) * (PROMPT_TOKENS - 2) + chr(33 + i // 26) * 2 for i in range(26 * 60)]
    ways = ["off", "online", "bank"] if server is None else ["off", "in turn", "overlapped", "bank"]
    rows = []
    for way in ways:
        args = SGOPDConfig(
            output_dir=str(folder / "run" / way),
            max_steps=options.steps + 1,
            per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=options.rollouts // options.micro_batch,
            num_generations=4,
            max_completion_length=options.length,
            learning_rate=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
            answer_column=None,
            zero_truncated_reward=False,
            generation_kwargs={"suppress_tokens": [0, 1, *range(128, options.vocab_size)]},
            teacher_sampling_enable=way != "off",
            teacher_sampling_ratio=0.5,
            teacher_sampling_phase1_end_frac=1.0,
            teacher_sampling_phase2_end_frac=1.0,
            teacher_server_url=None if server is None else [server.url],
            teacher_model_name_or_path=str(folder / "teacher"),
            teacher_server_concurrency=options.concurrency,
            teacher_bank=str(folder / "bank") if way in ("overlapped", "online", "bank") else None,
        )
        trainer = SGOPDTrainer(
            model=str(folder / "student"),
            reward_funcs=reward,
            args=args,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
        )
        trainer.remove_callback(PrinterCallback)
        if way == "in turn":
            trainer.teacher.runs_elsewhere = False
        batches = []
        compute_loss = trainer.compute_loss

        def keep(model, inputs, *args, batches=batches, compute_loss=compute_loss, **kwargs):
            batches.append(inputs.get("teacher"))
            return compute_loss(model, inputs, *args, **kwargs)

        trainer.compute_loss = keep
        with console.status(f"step: {way}"):
            trainer.train()
        log = [line for line in trainer.state.log_history if "step_time" in line][1:]
        micro_steps = args.gradient_accumulation_steps
        row = {
            "teacher_rollouts": way,
            "hidden_share": statistics.median(
                line["teacher/hidden_share"] for line in log if "teacher/hidden_share" in line
            ),
        }
        row["seconds"] = statistics.median(line["step_time"] for line in log)
        row["asked"] = sum(line.get("teacher_sampling/asked", 0) for line in log)
        if way == "bank":
            step = [batch for batch in batches[-micro_steps:] if batch is not None]

            def anchor(step=step, trainer=trainer):
                for batch in step:
                    weights = batch["weights"]
                    values = trainer.per_token_logps(
                        trainer.model, batch["input_ids"], batch["attention_mask"], weights.size(1)
                    )
                    teacher_cross_entropy(values, weights, "none").backward()

            row["cross_entropy_seconds"] = timed(anchor, 5)
        rows.append(row)
    return rows


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256, help="of the student")
    parser.add_argument("--teacher_width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocab_size", type=int, default=32_768)
    parser.add_argument("--length", type=int, default=256, help="tokens of the longest completion")
    parser.add_argument("--sequences", type=int, default=64, help="sequences to score")
    parser.add_argument("--rollouts", type=int, default=16, help="of the student in a step")
    parser.add_argument("--micro_batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=8, help="requests to the server at a time")
    parser.add_argument("--threads", type=int, default=1, help="of this process, on a CPU")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_models(folder, options.vocab_size, options.width, options.teacher_width, options.layers)
        server = None
        if installed():
            with console.status("starting vLLM"):
                context = PROMPT_TOKENS + options.length + 8
                server = VLLMServer(folder / "teacher", max_model_len=context).start().wait_ready()
        else:
            console.print("vLLM is not installed (python tests/vllm_server.py install): no figures of a server.")
        try:
            scoring = measure_scoring(folder, server, options)
            steps = measure_steps(folder, server, options)
        finally:
            if server is not None:
                server.kill()
    base = {row["lengths"]: row["tokens_per_second"] for row in scoring if row["way"] == "padded batches"}
    for row in scoring:
        row["ratio"] = row["tokens_per_second"] / base[row["lengths"]]
    show(
        "Scoring",
        ["lengths", "way", "tokens/s", "to padded"],
        [[r["lengths"], r["way"], f"{r['tokens_per_second']:.0f}", f"{r['ratio']:.2f}"] for r in scoring],
    )
    off = steps[0]["seconds"]
    for row in steps:
        row["ratio"] = row["seconds"] / off
        if "cross_entropy_seconds" in row:
            row["to_off_and_cross_entropy"] = row["seconds"] / (off + row["cross_entropy_seconds"])
    show(
        "A step",
        ["teacher rollouts", "asked", "s", "to off", "teacher's time hidden", "to off + cross-entropy"],
        [
            [
                r["teacher_rollouts"],
                f"{r['asked']:.0f}",
                f"{r['seconds']:.2f}",
                f"{r['ratio']:.2f}",
                f"{r['hidden_share']:.0%}",
                f"{r['to_off_and_cross_entropy']:.2f}" if "to_off_and_cross_entropy" in r else "",
            ]
            for r in steps
        ],
    )
    if options.output is not None:
        figures = {"options": {key: str(value) for key, value in vars(options).items()}}
        options.output.write_text(json.dumps(figures | {"scoring": scoring, "steps": steps}, indent=2) + "\n")


if __name__ == "__main__":
    main()
