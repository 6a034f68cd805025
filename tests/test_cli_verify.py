"""`sgopd verify`: a file's verdicts, and a dataset's gold answers."""

import json
import subprocess
import sys

import pytest
from datasets import Dataset
from test_cli import no_launcher, refused  # noqa: F401

from sgopd_trl.cli import main
from sgopd_trl.cli import verify as command


ROWS = [
    {"completion": "so \\boxed{39}", "gold": "39", "label": 1},
    {"completion": "so \\boxed{\\frac{1}{2}}", "gold": "0.5", "label": 1},
    {"completion": "so \\boxed{40}", "gold": "39", "label": 0},
    {"completion": "so 39", "gold": "39", "label": 0},
    {"completion": "so \\boxed{9^{9^{9^9}}}", "gold": "39", "label": 0},
    {"completion": "so \\boxed{40}", "gold": "39", "label": 1},  # a label that is wrong
    {"completion": "so \\boxed{39}", "gold": "39", "label": 0},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def rows_file(tmp_path):
    return write(tmp_path / "rows.jsonl", ROWS)


def run(capsys, *arguments: str) -> tuple[int, str]:
    code = main(["verify", *arguments])
    return code, capsys.readouterr().out


def test_verdicts_mistakes_and_one_line_a_row(rows_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "_AT_A_TIME", 3)  # several batches
    output = tmp_path / "out.jsonl"
    code, printed = run(capsys, rows_file, "--verifier", "math", "--label", "label", "--output", str(output))
    assert code == 0
    assert "false positives: 1 of 4, false negatives: 1 of 3" in printed
    assert "row 5: label 1, wrong: gold '39', answer '40'" in printed and "row 6: label 0, correct" in printed
    lines = [json.loads(line) for line in output.open()]
    assert [line["verdict"] for line in lines] == [
        *("correct", "correct", "wrong", "no_answer", "refused", "wrong", "correct")
    ]
    assert [{key: line[key] for key in ROWS[0]} for line in lines] == ROWS
    assert lines[1]["verdict_answer"] == "\\frac{1}{2}"


def test_other_columns_verifiers_settings_and_parquet(tmp_path, capsys):
    rows = [{"text": "\\boxed{3.1}", "answer": 3}, {"text": "\\boxed{3.5}", "answer": 3}]
    path = tmp_path / "rows.parquet"
    Dataset.from_list(rows).to_parquet(path)
    arguments = ["--completion", "text", "--verifier", "numeric", "--settings", '{"tolerance": 0.1}']
    code, printed = run(capsys, str(path), *arguments)
    assert code == 0 and "correct" in printed
    table = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in printed.splitlines() if "│" in line}
    assert table["correct"] == "1" and table["wrong"] == "1" and "false positives" not in printed


def test_messages_labels_in_words_and_a_gold_column_called_answer(tmp_path, capsys):
    rows = [
        {"completion": [{"role": "assistant", "content": "\\boxed{39}"}], "answer": "40", "right": False},
        {"completion": [{"role": "assistant", "content": "\\boxed{40}"}], "answer": "40", "right": True},
    ]
    output = tmp_path / "out.jsonl"
    code, printed = run(capsys, write(tmp_path / "r.jsonl", rows), "--label", "right", "--output", str(output))
    assert code == 0 and "false positives: 0 of 1, false negatives: 0 of 1" in printed
    lines = [json.loads(line) for line in output.open()]
    assert [(line["answer"], line["verdict"]) for line in lines] == [("40", "wrong"), ("40", "correct")]
    code, printed = run(capsys, "--golds", write(tmp_path / "g.jsonl", [{"answer": "40"}, {"answer": None}]))
    assert code == 1 and "row 1: None: it is missing" in printed


def test_failures_of_the_judge_are_shown(tmp_path, capsys):
    path = write(tmp_path / "r.jsonl", [{"completion": "raise x", "gold": "39"}])
    code, printed = run(capsys, path, "--verifier", "judges.obedient")
    assert code == 0 and "row 0: error: KeyError: 'x'" in printed


def test_golds(tmp_path, capsys):
    golds = ["204", "8\\sqrt{10}", "\\frac{sqrt{7} + 1}{2}", "\\frac{1}{2", 70]
    path = write(tmp_path / "golds.jsonl", [{"answer": str(gold)} for gold in golds])
    code, printed = run(capsys, "--golds", path)
    assert code == 1
    assert "row 2: '\\\\frac{sqrt{7} + 1}{2}': it is malformed: sqrt without a backslash" in printed
    assert "row 3: '\\\\frac{1}{2'" in printed and "row 0" not in printed and "row 4" not in printed
    assert "5 gold answers in column 'answer': 2 malformed, 1 that do not verify against themselves." in printed
    fine = write(tmp_path / "fine.jsonl", [{"answer": gold} for gold in (204, 70)])
    assert run(capsys, "--golds", fine)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name one FILE to judge, or a DATASET with --golds"),
        (["{file}", "--golds", "{file}"], "Name one FILE"),
        (["{file}", "--completion", "text"], "--completion: the columns are completion, gold, label, and not 'text'"),
        (["{file}", "--gold", "answer"], "--gold: the columns are"),
        (["{file}", "--label", "right"], "--label: the columns are"),
        (["{file}", "--verifier", "maths"], "Did you mean 'math'"),
        (["{file}", "--verifier", "judges.classic"], "is a plain reward function"),
        (["{file}", "--verifier", "numeric", "--settings", '{"tol": 1}'], "does not take the settings"),
        (["{file}", "--settings", "[1]"], "--settings must be a JSON object"),
        (["{file}", "--label", "gold"], "--label: row 0 has '39' in column 'gold'; a label is 1 or 0"),
        (["absent.jsonl"], "absent.jsonl does not exist"),
    ],
)
def test_refused(rows_file, capsys, arguments, message):
    error, code = refused(
        capsys, "verify", *(argument.format(file=rows_file) for argument in arguments[:3]), *arguments[3:]
    )
    assert message in error and code in (1, 2) and "Traceback" not in error


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([], [], "is empty"),
        ([{"completion": "x", "gold": "1"}, {"completion": "x", "gold": None}], [], "row 1 has no gold answer"),
        (
            [{"completion": "x", "gold": "1", "verdict": 1}],
            ["--output", "o.jsonl"],
            "overwrite the columns ['verdict']",
        ),
        (
            [{"completion": "x", "gold": "1", "l": 1}, {"completion": "x", "gold": "1", "l": None}],
            ["--label", "l"],
            "row 1 has None",
        ),
    ],
)
def test_odd_rows_are_refused(tmp_path, capsys, rows, arguments, message):
    error, code = refused(capsys, "verify", write(tmp_path / "rows.jsonl", rows), *arguments)
    assert message in error and code in (1, 2) and "Traceback" not in error


def test_as_a_command(rows_file):
    result = subprocess.run(
        [sys.executable, "-m", "sgopd_trl.cli", "verify", rows_file, "--verifier", "exact"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "correct" in result.stdout and "Traceback" not in result.stderr
