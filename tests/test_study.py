"""`sgopd study` as a user starts it: real runs of the miniature, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml


RECIPES = Path(__file__).parents[1] / "recipes" / "miniature"


def write_study(folder: Path, **keys) -> Path:
    opd, sft = str(RECIPES / "opd" / "config.yaml"), str(RECIPES / "sft" / "config.yaml")
    bank = {"teacher_bank": str(folder / "bank")}
    given = {
        "runs_dir": str(folder / "runs"),
        "output_dir": str(folder / "table"),
        "baseline": "OPD",
        "seeds": [0, 1],
        "overrides": {"max_steps": 2, "max_train_samples": 16, "per_device_train_batch_size": 8, "save_strategy": "no"},
        "prepare": [{"command": "teacher-rollouts", "config": sft, "overrides": bank}],
        "evaluation": {
            "dataset": "miniature",
            "engine": "transformers",
            "max_problems": 4,
            "k": 2,
            "verifier": "exact_answer_reward",
            "max_new_tokens": 32,
        },
        "rows": {
            "Start": {"model": "miniature:guess"},
            "OPD": {"recipe": opd, "paper": {"avg@32": 27.55}},
            "SFT": {"recipe": sft, "overrides": bank},
            "Broken": {"recipe": opd, "overrides": {"model_name_or_path": "./no/such/model"}},
        },
    } | keys
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    return path


def sgopd(*args: str, **kwargs) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "sgopd_trl.cli", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
        **kwargs,
    )


def run(*args: str) -> tuple[int, str]:
    process = sgopd(*args)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


@pytest.mark.slow
def test_a_study_from_its_file_to_its_table(tmp_path):
    study = write_study(tmp_path)
    code, output = run("study", study, "--jobs", "2")
    assert code == 1 and "FAILED: Broken, seed 0" in output and "FAILED: Broken, seed 1" in output, output
    assert "The student ./no/such/model cannot be loaded" in output

    results = json.loads((tmp_path / "table" / "results.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    assert {name: sorted(row["runs"]) for name, row in rows.items()} == {
        "Start": ["model"],
        "OPD": ["0", "1"],
        "SFT": ["0", "1"],
        "Broken": [],
    }
    assert rows["SFT"]["summary"]["avg@2"]["difference"]["n"] == 2
    assert {"table.md", "table.tex", "rows.png", "training_dynamics.png", "sign_shares.png"} <= set(
        os.listdir(tmp_path / "table")
    )
    assert "| OPD | 2 |" in (tmp_path / "table" / "table.md").read_text()

    run_folder = Path(rows["OPD"]["runs"]["1"]["folder"])
    record = json.loads((run_folder / "run.json").read_text())
    assert (record["row"], record["seed"], record["state"], record["device"]) == ("OPD", 1, "finished", "CPU")
    recipe = yaml.safe_load((run_folder / "recipe.yaml").read_text())
    assert (recipe["seed"], recipe["max_steps"], recipe["save_strategy"]) == (1, 2, "no")
    assert [json.loads(line)["step"] for line in (run_folder / "train" / "metrics.jsonl").open()] == [1, 2, 2]
    assert not list((tmp_path / "runs").rglob("*.safetensors")), "weights were kept"
    assert len(list((tmp_path / "runs").glob("teacher-rollouts-*"))) == 1

    # Again: what has finished is not repeated, what has failed is
    before = (run_folder / "run.json").stat().st_mtime_ns
    code, output = run("study", study, "--seeds", "1")
    assert code == 1 and "FAILED: Broken, seed 1" in output and "Broken, seed 0" not in output, output
    assert output.count(": started") == 1
    assert (run_folder / "run.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_an_interrupted_study_leaves_no_process(tmp_path):
    rows = {"OPD": {"recipe": str(RECIPES / "opd" / "config.yaml")}}
    study = write_study(tmp_path, rows=rows, overrides={"max_steps": 2000, "save_strategy": "no"}, prepare=[])
    runs = tmp_path / "runs"
    process = sgopd("study", study, "--jobs", "1", start_new_session=True)
    end = time.monotonic() + 120
    while not (running := [path for path in runs.rglob("metrics.jsonl") if path.stat().st_size]):
        assert time.monotonic() < end and process.poll() is None, "no run has begun"
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Interrupted" in output, output
    record = json.loads((running[0].parents[1] / "run.json").read_text())
    assert record["state"] == "running"
    lines = running[0].read_text().count("\n")
    time.sleep(1)
    assert running[0].read_text().count("\n") == lines, "the run went on"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rows", "ODP"], "--rows: the study has no row 'ODP'. Did you mean 'OPD'?"),
        (["--seeds", "0", "0"], "`seeds` holds [0] more than once."),
        (["--jobs", "0"], "--jobs must be >= 1, got 0."),
    ],
)
def test_command_lines_refused(args, message, tmp_path, capsys):
    from sgopd_trl.cli import main

    study = write_study(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        main(["study", str(study), *args])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
