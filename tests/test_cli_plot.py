"""`sgopd plot` on the metrics of runs."""

import json
import os

import pytest
from matplotlib.image import imread

from sgopd_trl.cli import main
from sgopd_trl.metrics_log import read_run


def run_folder(path, *, samples=True, signs=True):
    rows = []
    for step in range(1, 6):
        row = {"step": step, "loss": 1.0, "entropy": 0.5}
        if samples:
            row |= {"reward": step / 10, "completions/mean_length": 20.0, "reverse_kl": 1 / step}
        if signs:
            row |= {"sign/agree": 0.5, "sign/disagree": 0.3, "sign/neutral": 0.2, "teacher_sampling/alpha": 0.1}
        rows.append(row)
    path.mkdir(parents=True, exist_ok=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def images(folder):
    return {path.name: imread(path).shape for path in folder.iterdir()}


def test_one_run_and_several(tmp_path, capsys):
    first, second = run_folder(tmp_path / "opd"), run_folder(tmp_path / "sgopd")
    assert main(["plot", first, "--output_dir", str(tmp_path / "one")]) == 0
    assert main(["plot", first, second, "--names", "OPD", "SG-OPD", "--output_dir", str(tmp_path / "two")]) == 0
    assert (
        images(tmp_path / "one").keys()
        == images(tmp_path / "two").keys()
        == {"training_dynamics.png", "sign_shares.png"}
    )
    assert str(tmp_path / "two" / "sign_shares.png") in capsys.readouterr().out


def test_runs_without_signs_have_no_shares(tmp_path):
    grpo = run_folder(tmp_path / "grpo", signs=False)
    assert main(["plot", grpo, "--output_dir", str(tmp_path / "out")]) == 0
    assert images(tmp_path / "out").keys() == {"training_dynamics.png"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "has no metrics.jsonl"),
        (["opd", "opd"], "different names"),
        (["opd", "--names", "a", "b"], "1 runs"),
    ],
)
def test_mistakes_are_named(tmp_path, monkeypatch, capsys, arguments, message):
    run_folder(tmp_path / "opd")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["plot", *arguments])
    assert message in capsys.readouterr().err


def test_stages_count_on_and_teacher_tokens_have_no_entropy(tmp_path, monkeypatch):
    """The stages in the order in which they were written, which is not that of their names; a rollouts' stage has no metrics."""
    run = tmp_path / "run"
    for time, name in enumerate(("_stages/sft", "_stages/anew", ".")):
        run_folder(run / name, samples=name != "_stages/sft", signs=name == ".")
        os.utime(run / name / "metrics.jsonl", (time, time))
    (run / "_stages" / "rollouts").mkdir()
    rows = read_run(run)
    assert [row["step"] for row in rows] == list(range(1, 16))
    assert [row.get("entropy") for row in rows] == [None] * 5 + [0.5] * 10

    drawn = []
    monkeypatch.setattr("sgopd_trl.figures.plot_dynamics", lambda log, path: drawn.append(log))
    assert main(["plot", str(run), "--output_dir", str(tmp_path / "out")]) == 0
    assert drawn == [rows]


def test_a_run_in_its_first_stage_can_be_drawn(tmp_path):
    run_folder(tmp_path / "run" / "_stages" / "gate")
    assert main(["plot", str(tmp_path / "run"), "--output_dir", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "training_dynamics.png").is_file()
