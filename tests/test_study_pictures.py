"""What the figures of a study are drawn from."""

import json

import pytest
import yaml

from sgopd_trl.study.pictures import draw, read_task, row_panels
from sgopd_trl.study.results import RowResult
from sgopd_trl.study.statistics import Difference, Mean


def write_run(folder, lines, stages=()):
    for name, rows in lines.items():
        path = folder / "train" / name / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"stages": [{"name": name} for name in stages]}))
    return folder


def rollouts(step, reward=0.5):
    return {"step": step, "reward": reward, "completions/mean_length": 20.0, "entropy": 0.3, "reverse_kl": 0.1}


def test_the_steps_of_stages_are_counted_on_and_an_entropy_on_the_teachers_tokens_is_none(tmp_path):
    sft = [{"step": 1, "loss": 2.0, "entropy": 0.4}, {"step": 2, "loss": 1.0, "entropy": 0.2}]
    lines = {"_stages/sft": sft, ".": [rollouts(1), rollouts(2)]}
    rows = read_task(write_run(tmp_path, lines, ["rollouts", "sft", "gate"]))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row.get("entropy") for row in rows] == [None, None, 0.3, 0.3]
    assert [row.get("loss") for row in rows] == [2.0, 1.0, None, None]


def row(name, folder=None, avg=0.5, difference=None):
    differences = {} if difference is None else {"avg@8": difference}
    folders = {} if folder is None else {0: folder}
    return RowResult(name, None, {}, {0: {"avg@8": avg}}, folders, {0: 1.0}, {"avg@8": Mean(avg, 0.01, 3)}, differences)


def test_row_panels_are_in_percent():
    panels = row_panels([row("OPD"), row("Gate", avg=0.4, difference=Difference(-0.1, -0.2, 0.05, 3))], "OPD")
    assert panels == {
        "avg@8, ± standard error": {"OPD": pytest.approx((50, 49, 51)), "Gate": pytest.approx((40, 39, 41))},
        "avg@8 − OPD, 95%": {"Gate": pytest.approx((-10, -20, 5))},
    }


def test_draws_what_there_is(tmp_path):
    opd = row("OPD", write_run(tmp_path / "opd", {".": [rollouts(1), rollouts(2)]}))
    sft = row("SFT", write_run(tmp_path / "sft", {".": [{"step": 1, "loss": 2.0, "entropy": 0.4}]}))
    nothing = RowResult("Not yet", None, {})
    assert draw([nothing], "OPD", None, tmp_path) == []
    assert draw([sft, nothing], "OPD", None, tmp_path) == ["rows.png"]
    assert draw([opd, sft, nothing], "OPD", ["OPD", "SFT"], tmp_path) == ["rows.png", "training_dynamics.png"]
    assert (tmp_path / "training_dynamics.png").stat().st_size > 1000
