"""`sgopd demo`, four steps of it: what it writes, what it prints, and which folders it takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib import image
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from sgopd_trl.demo import TrainingDisplay, _claim, check_output_dir, demo_config
from sgopd_trl.metrics_log import read_metrics
from sgopd_trl.miniature import checkpoint_path


STEPS = 4
FILES = {"checkpoint", "metrics.jsonl", "sign_shares.png", "summary.json", "teacher_rollouts", "training_dynamics.png"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder and the process of a finished demo."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "run"
    command = [sys.executable, "-m", "sgopd_trl.cli", "demo", "--output_dir", str(folder), "--max_steps", str(STEPS)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=300)
    assert process.returncode == 0, process.stderr
    return folder, process


def test_summary(demo):
    summary = json.loads((demo[0] / "summary.json").read_text())
    for name in ("before", "after", "teacher"):
        assert set(summary[name]) >= {"avg@8", "pass@8"}
        assert all(isinstance(summary[name][key], float) for key in ("avg@8", "pass@8"))
        assert 0 <= summary[name]["avg@8"] <= summary[name]["pass@8"] <= 1
    assert isinstance(summary["seconds"], float) and summary["seconds"] > 0
    assert summary["before"]["avg@8"] < 0.25 < summary["after"]["avg@8"] < summary["teacher"]["avg@8"]
    assert summary["settings"]["max_steps"] == STEPS and summary["settings"]["lambda_high"] == 1.8


def test_writes_these_files_and_no_others(demo):
    assert {path.name for path in demo[0].iterdir()} == FILES


def test_a_line_of_metrics_a_step(demo):
    rows = [row for row in read_metrics(demo[0] / "metrics.jsonl") if "reward" in row]  # not Trainer's closing summary
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    # Phases of 0.30 and 0.35: one step of four with the teacher's rollouts
    assert [row["teacher_sampling/alpha"] > 0 for row in rows] == [True, False, False, False]
    for row in rows:
        assert row["sign/agree"] + row["sign/disagree"] + row["sign/neutral"] == pytest.approx(1)
    assert rows[-1]["reverse_kl"] < rows[0]["reverse_kl"]


@pytest.mark.parametrize("name", ["training_dynamics.png", "sign_shares.png"])
def test_figures_are_drawn(demo, name):
    assert image.imread(demo[0] / name).std() > 0.05


def test_checkpoint_is_the_trained_student(demo):
    trained = AutoModelForCausalLM.from_pretrained(demo[0] / "checkpoint")
    initial = AutoModelForCausalLM.from_pretrained(checkpoint_path("guess"))
    assert not torch.equal(trained.lm_head.weight, initial.lm_head.weight)
    assert AutoTokenizer.from_pretrained(demo[0] / "checkpoint").get_vocab()["\\boxed{"] == 22


def test_prints_plain_lines_and_ends_with_what_to_do_next(demo):
    lines = demo[1].stdout.splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith("step"))
    assert [line.split()[0] for line in lines[header + 1 : header + 1 + STEPS]] == ["1", "2", "3", "4"]
    assert "\x1b" not in demo[1].stdout, "control characters where there is no terminal"
    closing = "\n".join(lines[header + 1 + STEPS :])
    assert all(name in closing for name in FILES)
    assert str(demo[0]) in closing
    assert "sgopd train --config recipes/miniature/sgopd/config.yaml" in closing


def test_no_noise_of_the_libraries(demo):
    printed = demo[1].stdout + demo[1].stderr
    for noise in ("Setting accelerator to CPU", "Loading weights", "Writing model shards", "may be ignored", "Warning"):
        assert noise not in printed


def test_settings_are_the_papers():
    args = demo_config(Path("unused"), 100, seed=3)
    assert (args.sign_gated_extrapolation, args.gate, args.lambda_high) == (True, "sign", 1.8)
    assert (args.disagree_mode, args.disagree_interp_beta) == ("interp", 1.0)
    assert (args.teacher_sampling_enable, args.teacher_sampling_ratio) == (True, 0.125)
    assert (args.teacher_sampling_phase1_end_frac, args.teacher_sampling_phase2_end_frac) == (0.30, 0.35)
    assert (args.per_device_train_batch_size, args.num_generations, args.learning_rate) == (64, 8, 1e-3)
    assert args.seed == 3 and args.max_steps == 100


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="thesis.tex"):
        _claim(tmp_path, Console(quiet=True))
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "thesis.tex"}


def test_an_earlier_demo_is_replaced_and_it_says_so(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "checkpoint").mkdir()
    console = Console(record=True, quiet=False, file=open(os.devnull, "w"))
    _claim(tmp_path, console)
    assert not any(tmp_path.iterdir())
    assert "Replacing the earlier demo" in console.export_text()


def test_a_missing_folder_passes_the_check_and_is_not_made_by_it(tmp_path):
    check_output_dir(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_live_table_keeps_every_tenth_step_and_the_current_one():
    console = Console(force_terminal=True, width=100, record=True, file=open(os.devnull, "w"))
    display = TrainingDisplay(console, total=100)
    logs = {"reward": 0.5, "reverse_kl": 0.25, "teacher_sampling/alpha": 0.1}
    logs |= {"sign/agree": 0.3, "sign/disagree": 0.2, "sign/neutral": 0.5}

    class State:
        global_step = 0

    with display:
        for State.global_step in range(1, 26):
            display.on_log(None, State, None, logs=logs)
    table = display.live.renderable.renderables[0]
    assert list(table.columns[0].cells) == ["1", "10", "20", "25"]
    assert [list(column.cells)[-1] for column in table.columns][1:7] == ["0.50", "0.250", "30%", "20%", "50%", "0.10"]
    assert display.progress.tasks[0].completed == 25
