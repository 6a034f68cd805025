"""What a study's finished runs come to, in the forms that it is written in."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from sgopd_trl.study import records
from sgopd_trl.study.notes import notes
from sgopd_trl.study.plan import EVALUATION_DIR, SUMMARY, Plan, Task
from sgopd_trl.study.records import FAILED, FINISHED, code_digest, write_record
from sgopd_trl.study.results import as_json, collect
from sgopd_trl.study.spec import Row, Study
from sgopd_trl.study.statistics import Difference, Mean
from sgopd_trl.study.tables import cells, header, latex, markdown, show_difference, show_mean, terminal


SCORES = {  # avg@8 by row and seed
    "OPD": {0: 0.50, 1: 0.60, 2: 0.70},
    "Gate": {0: 0.49, 1: 0.58, 2: 0.64},  # differences -1, -2, -6: -3 ± 4.30265 * 1.52753 = -3 ± 6.5724
    "PTS & <3>": {0: 0.61, 1: 0.70, 2: 0.80},  # +11, +10, +10
    "Start": {None: 0.10},
    "Not yet": {},
}


def datasets(name: str, seed: int | None) -> dict:
    """Two data sets of 200 samples. On the gate's seed 1 the judge fails thrice; a tenth of the start's is truncated."""
    failures = {"timeout": 2, "error": 1} if (name, seed) == ("Gate", 1) else {"timeout": 0, "error": 0}
    first = {"samples": 200, "truncated": 40 if name == "Start" else 0, "verdicts": {"correct": 7} | failures}
    return {"first": first, "second": {"samples": 200, "truncated": 0, "verdicts": {"timeout": 0, "error": 0}}}


@pytest.fixture
def results(tmp_path):
    rows = tuple(
        Row(
            name,
            recipe=None if name == "Start" else Path("recipe.yaml"),
            model="start" if name == "Start" else None,
            group=None if name == "Start" else "trained",
            paper={"avg@32": 27.5} if name == "OPD" else {},
        )
        for name in SCORES
    )
    study = Study(Path("s.yaml"), tmp_path, tmp_path, "OPD", (0, 1, 2), rows, evaluation={"k": 8})
    runs = {}
    for name, seeds in SCORES.items():
        for seed in [None] if name == "Start" else (0, 1, 2):
            runs[name, seed] = task = Task(name, seed, tmp_path / name / str(seed))
            if seed in seeds:
                write_record(task, FINISHED, seconds=1.0)
                scores = {"avg@8": {"mean": seeds[seed]}, "pass@8": {"mean": 1.0}}
                (task.folder / EVALUATION_DIR).mkdir()
                (task.folder / EVALUATION_DIR / SUMMARY).write_text(
                    json.dumps({"average": scores, "datasets": datasets(name, seed)})
                )
            else:
                write_record(task, FAILED, error=["no"])
    return study, collect(study, Plan((), runs))


def test_rows_by_hand(results):
    _, (opd, gate, pts, start, not_yet) = results
    assert opd.means["avg@8"].value == pytest.approx(0.6) and opd.means["avg@8"].error == pytest.approx(0.1 / 3**0.5)
    assert opd.differences == {} and start.differences == {}
    difference = gate.differences["avg@8"]
    assert (difference.value, difference.low, difference.high) == pytest.approx((-0.03, -0.095724, 0.035724), abs=1e-6)
    assert not difference.decided and pts.differences["avg@8"].decided
    assert (start.means["avg@8"], len(start.runs)) == (Mean(0.10, None, 1), 1)
    assert not_yet.runs == {} and not_yet.means == {}


def test_cells(results):
    _, rows = results
    assert header(rows, "OPD") == [
        "row", "n", "avg@8", "avg@8 − OPD [95%]", "pass@8", "pass@8 − OPD [95%]", "paper, avg@32",
    ]  # fmt: skip
    assert cells(rows[0], rows) == ["OPD", "3", "60.0 ± 5.8", "–", "100.0 ± 0.0", "–", "27.50"]
    assert cells(rows[1], rows)[:4] == ["Gate", "3", "57.0 ± 4.4", "−3.0 [−9.6, +3.6]"]
    assert cells(rows[3], rows) == ["Start", "1", "10.0", "–", "100.0", "–", "–"]
    assert cells(rows[4], rows) == ["Not yet", "–", "–", "–", "–", "–", "–"]


def test_numbers():
    assert show_mean(Mean(0.1234, 0.00049, 4)) == "12.3 ± 0.0"
    assert show_difference(Difference(-0.0004, -0.0105, 0.0496, 4), 4) == "0.0 [−1.1, +5.0]"
    assert show_difference(Difference(0.02, None, None, 1), 1) == "+2.0"
    assert show_difference(Difference(0.02, None, None, 1), 8) == "+2.0 (1 pair)"


def test_pairs_are_counted_where_the_baseline_lacks_runs(results):
    """The row's mean is over 3 runs, its difference over 2 pairs: +11 and +10; 12.7062 * 0.5 = 6.4 on both sides."""
    study, _ = results
    runs = {
        (row, seed): Task(row, seed, study.runs_dir / row / str(seed))
        for row in ("OPD", "PTS & <3>")
        for seed in range(3)
    }
    write_record(runs["OPD", 2], FAILED)
    rows = collect(study, Plan((), runs))
    shown = ["+10.5 [+4.1, +16.9] (2 pairs)", "3", "2"]
    assert [cells(rows[2], rows)[3], cells(rows[2], rows)[1], cells(rows[0], rows)[1]] == shown
    assert f"**{shown[0]}**" in markdown(rows, "OPD") and rf"\textbf{{{shown[0]}}}" in latex(rows, "OPD")
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(terminal(rows, "OPD"))
    assert shown[0] in console.export_text()


def test_markdown(results):
    _, rows = results
    lines = markdown(rows, "OPD").splitlines()
    assert {line.count(" | ") for line in lines if not line.startswith("| *")} == {6}
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert lines[2].startswith("| *trained* |")
    assert "| PTS & <3> | 3 | 70.3 ± 5.5 | **+10.3 [+8.9, +11.8]** |" in lines[5]
    assert "| −3.0 [−9.6, +3.6] |" in lines[4]


def test_latex(results):
    _, rows = results
    text = latex(rows, "OPD")
    assert text.startswith("\\begin{tabular}{lrrrrrr}\n\\toprule\n") and text.endswith("\\bottomrule\n\\end{tabular}\n")
    assert r"\multicolumn{7}{l}{\textit{trained}} \\" in text
    assert r"PTS \& <3> & 3 & 70.3 $\pm$ 5.5 & \textbf{+10.3 [+8.9, +11.8]} &" in text
    assert r"& $-$3.0 [$-$9.6, +3.6] &" in text
    assert r"avg@8 $-$ OPD [95\%]" in text


def test_terminal(results):
    _, rows = results
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(terminal(rows, "OPD"))
    text = console.export_text()
    assert "−3.0 [−9.6, +3.6]" in text and "avg@8 − OPD [95%]" in text and "PTS & <3>" in text


def test_json_has_every_run(results):
    study, rows = results
    data = json.loads(json.dumps(as_json(study, rows)))
    gate = data["rows"][1]
    assert gate["runs"]["2"]["avg@8"] == 0.64 and gate["runs"]["2"]["folder"].endswith("Gate/2")
    assert gate["summary"]["avg@8"]["difference"]["n"] == 3
    assert data["rows"][3]["runs"]["model"]["avg@8"] == 0.10
    assert data["rows"][4]["runs"] == {}
    counts = {"samples": 400, "truncated": 0, "judge_failed": 3}
    assert {name: gate["runs"]["1"][name] for name in counts} == counts
    assert gate["runs"]["2"]["judge_failed"] == 0 and data["rows"][3]["runs"]["model"]["truncated"] == 40
    assert gate["runs"]["1"]["code"] == code_digest() and len(code_digest()) == 12


def test_notes_on_failures_and_truncated_samples(results):
    _, rows = results
    assert notes(rows) == [
        "Gate: the judge failed (timeout or error) on 3 of 1200 samples, which count as wrong; verdicts.jsonl of its runs "
        "says why.",
        "Truncated samples, which count as wrong: Start 10.0%.",
    ]


def test_a_note_on_rows_of_different_code(results):
    _, (opd, gate, *others) = results
    usual = code_digest()
    gate = dataclasses.replace(gate, codes={0: usual, 1: "abc", 2: None})
    (line,) = [line for line in notes([opd, gate, *others]) if "code" in line]
    assert line == (
        f"Not made by the code of most runs ({usual}): Gate (abc, not recorded). `code` in run.json tells it."
    )


def test_the_digest_is_of_every_module_and_its_name(tmp_path, monkeypatch):
    def digest() -> str:
        code_digest.cache_clear()
        return code_digest()

    monkeypatch.setattr(records, "__file__", str(tmp_path / "package" / "study" / "records.py"))
    (tmp_path / "package" / "study").mkdir(parents=True)
    module = tmp_path / "package" / "loss.py"
    module.write_text("x = 1\n")
    found = [digest(), digest()]
    module.write_text("x = 2\n")
    found.append(digest())
    module.rename(module.with_name("gain.py"))
    found.append(digest())
    (tmp_path / "package" / "notes.txt").write_text("no code")
    found.append(digest())
    code_digest.cache_clear()
    assert found[0] == found[1] and found[3] == found[4] and len(set(found)) == 3


def test_rows_of_one_group_that_are_apart_have_two_headings(results):
    _, rows = results
    assert sum("*trained*" in line for line in markdown(rows, "OPD").splitlines()) == 2
