"""`sgopd teacher-rollouts`: ahead of a run, stopped in between, in two processes; and what it refuses."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import load_dataset
from test_cli import RECIPE, refused

from sgopd_trl.cli import main
from sgopd_trl.cli import teacher_rollouts as command
from sgopd_trl.cli.launch import RECIPES


BANK_RECIPE = RECIPE.with_name("config_bank.yaml")
SMALL = "--per_device_train_batch_size 8 --num_generations 4 --teacher_sampling_ratio 0.5"


def sgopd(folder: Path, arguments: str, recipe: Path = BANK_RECIPE) -> list[str]:
    command, _, rest = arguments.partition(" ")
    argv = f"{command} --config {recipe} {SMALL} --teacher_bank {folder / 'bank'} --output_dir {folder / 'out'} {rest}"
    return [sys.executable, "-m", "sgopd_trl.cli", *argv.split()]


def run(folder: Path, arguments: str) -> str:
    result = subprocess.run(sgopd(folder, arguments), capture_output=True, text=True, cwd=folder, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def counts(output: str) -> tuple[int, int, int]:
    """Rollouts in all, generated, and already there."""
    found = re.search(r"(\d+) generated now, (\d+) were there; \d+ of (\d+) verified", output)
    return int(found[3]), int(found[1]), int(found[2])


def test_ahead_of_a_run_stopped_in_between_and_all_of_them(tmp_path):
    part = run(tmp_path, "teacher-rollouts --max_steps 6")
    total, generated, there = counts(part)
    assert total == generated > 0 and there == 0
    assert f"teacher_bank: {tmp_path / 'bank'}" in part

    # 14 of 40 steps have teacher rollouts; small batches, so that the signal finds some finished and some not
    command = sgopd(tmp_path, "teacher-rollouts --max_steps 40 --batch_size 1")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=tmp_path)
    rows, end = total, time.monotonic() + 120
    while rows < total + 2 and time.monotonic() < end:
        time.sleep(0.2)
        rows = load_rows(tmp_path)
    process.send_signal(signal.SIGKILL)
    progress = process.communicate()[1]
    assert "Teacher rollouts" in progress
    kept, unverified = load_rows(tmp_path), load_unverified(tmp_path)
    total, generated, there = counts(run(tmp_path, "teacher-rollouts --max_steps 40"))
    assert there >= kept - 2 and generated > 0  # of the 6-step plan a rollout or two may not be in that of 40
    assert counts(run(tmp_path, "teacher-rollouts --max_steps 40")) == (total, 0, total)

    run(tmp_path, "train --max_steps 40 --save_strategy no")
    log = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").open()]
    steps = [line for line in log if "teacher_sampling/asked" in line]
    assert sum(line["teacher_sampling/asked"] for line in steps) == 0
    assert sum(line["teacher_sampling/from_bank"] for line in steps) >= total
    assert load_rows(tmp_path) == kept + unverified + generated

    everything = "teacher-rollouts --prompts all --max_train_samples 5 --teacher_rollouts_per_prompt 2"
    assert counts(run(tmp_path, everything))[0] == 10


def load_rows(folder: Path) -> int:
    return len(load_keys(folder))


def load_keys(folder: Path) -> list[str]:
    files = list((folder / "bank").rglob("*.parquet"))
    return load_dataset(str(folder / "bank"), split="train")["key"][:] if files else []


def load_unverified(folder: Path) -> int:
    """Rollouts that a kill has caught between the teacher and the verifier: the next run only judges them."""
    return len({path.stem for path in (folder / "bank" / ".unverified").glob("*.json")} - set(load_keys(folder)))


@pytest.mark.parametrize("off", [{}, {"teacher_sampling_enable": False}])
def test_all_prompts_need_nothing_of_the_phases(off, tmp_path, monkeypatch, capsys):
    """Three prompts, of which a generation batch of the recipe's run would take more."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    more = "--max_train_samples 3 --use_cpu true" + "".join(f" --{key} {value}" for key, value in off.items())
    argv = sgopd(tmp_path, f"teacher-rollouts --prompts all --per_device_train_batch_size 64 {more}")[3:]
    assert main(argv) == 0
    assert counts(capsys.readouterr().out) == (3, 3, 0) and load_rows(tmp_path) == 3


@pytest.mark.distributed
def test_two_processes_share_the_work(tmp_path):
    ddp = f"--accelerate_config {RECIPES / 'ddp.yaml'}"
    output = run(tmp_path, f"teacher-rollouts --max_steps 10 {ddp}")
    total, generated, _ = counts(output)
    assert total == generated == load_rows(tmp_path) > 2
    run(tmp_path, f"train --max_steps 10 --save_strategy no {ddp}")
    assert load_rows(tmp_path) == total  # exactly those that the run asks for


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--teacher_sampling_enable false", "switches phased teacher sampling off"),
        ("--teacher_sft_alpha_0 0", "switches phased teacher sampling off"),
        ("--teacher_recorded_path recording", "there is none to ask for rollouts"),
        ("--batch_size 0", "--batch_size must be >= 1, got 0"),
        ("--prompts some", "invalid choice: 'some'"),
        ("--promts all", "Unknown argument '--promts'"),
        ("--teacher_server_url http://127.0.0.1:9", "cannot be reached"),
    ],
)
def test_refused(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    error, code = refused(capsys, *sgopd(tmp_path, f"teacher-rollouts {arguments}")[3:])
    assert message in error and code != 0 and "Traceback" not in error
    assert not (tmp_path / "bank").exists()


def test_nothing_is_loaded_or_made_that_is_not_needed(tmp_path, monkeypatch):
    """Of the student the tokenizer alone: no engine, no reference, no evaluation, no repository on the Hub."""
    seen = {}

    def build(script_args, training_args, model_args):
        seen.update(vars(training_args))
        raise ValueError("seen enough")

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(command, "build_trainer", build)
    more = "--push_to_hub true --beta 0.1 --eval_strategy steps --eval_steps 1 --lambda_base 1.5"
    with pytest.raises(SystemExit):
        main(sgopd(tmp_path, f"teacher-rollouts {more}")[3:])
    assert (seen["push_to_hub"], seen["beta"], seen["eval_strategy"], seen["lambda_base"]) == (False, 0.0, "no", 1.0)


def test_what_goes_wrong_while_the_rollouts_are_made_is_one_message(tmp_path, capsys, monkeypatch):
    """A bank that was damaged since, here."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    data = tmp_path / "bank" / "data"
    data.mkdir(parents=True)
    (data / "0.parquet").write_bytes(b"PAR1")
    error, code = refused(capsys, *sgopd(tmp_path, "teacher-rollouts --max_steps 2")[3:])
    assert code == 1 and "0.parquet cannot be read" in error and "Traceback" not in error


def test_help(capsys):
    assert main(["teacher-rollouts", "--help"]) == 0
    assert "--prompts" in capsys.readouterr().out
