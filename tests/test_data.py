r"""Loading, filtering and formatting of datasets."""

import json

import pytest
from datasets import Dataset, DatasetDict

from sgopd_trl.data import DataFormat, load_split, matching_rows, prepare_dataset


ROWS = {
    "question": ["1+1?", "2+2?", "3+3?", "4+4?"],
    "final_answer": ["2", r"\boxed{4}", r"\frac{6}{1}", "8"],
    "difficulty": [3.0, 6.0, 6.5, 9.0],
    "topic": ["a", "b", "a", "b"],
}


@pytest.fixture
def dataset():
    return Dataset.from_dict(ROWS)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ("difficulty >= 6", [1, 2, 3]),
        ("difficulty > 6", [2, 3]),
        ("difficulty<6.5", [0, 1]),
        ("difficulty <= 6", [0, 1]),
        ("topic == a", [0, 2]),
        ("topic != a", [1, 3]),
        ("topic == 'a'", [0, 2]),
    ],
)
def test_rules(dataset, rule, expected):
    assert matching_rows(dataset, rule) == expected


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("difficulty", "difficulty >= 6"),
        ("difficulty = 6", "difficulty >= 6"),
        ("dificulty >= 6", "'dificulty'.*question, final_answer, difficulty, topic"),
        ("topic >= 6", "cannot compare 6 with row 0, whose 'topic' is 'a'"),
        ("difficulty > 10", "keeps no row of 4"),
    ],
)
def test_rules_refused(dataset, rule, message):
    with pytest.raises(ValueError, match=message):
        matching_rows(dataset, rule)


def test_template_filter_and_boxes(dataset):
    form = DataFormat(
        prompt_template="{question}\n\nFinal answer within \\boxed{{}}.",
        answer_column="final_answer",
        system_prompt="Be brief.",
    )
    prepared = prepare_dataset(dataset, form, "difficulty >= 6", max_samples=2)
    assert prepared["prompt"][0] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2?\n\nFinal answer within \\boxed{}."},
    ]
    assert list(prepared["solution"]) == [r"\boxed{4}", r"\boxed{\frac{6}{1}}"]
    for column in ROWS:
        assert list(prepared[column]) == ROWS[column][1:3]


def test_plain_text_and_no_box(dataset):
    form = DataFormat(
        "question", answer_column="final_answer", box_answer=False, conversational=False, system_prompt="S"
    )
    prepared = prepare_dataset(dataset, form)
    assert prepared["prompt"][0] == "S\n\n1+1?"
    assert list(prepared["solution"]) == ROWS["final_answer"]


def test_the_prepared_columns_come_from_the_named_ones():
    rows = Dataset.from_dict({"prompt": ["old"], "question": ["new"], "solution": ["long text"], "gold": [7]})
    prepared = prepare_dataset(rows, DataFormat("question", answer_column="gold"))
    assert prepared["prompt"][0] == [{"role": "user", "content": "new"}]
    assert prepared["solution"][0] == r"\boxed{7}"


def test_messages_stay_and_solution_is_the_default():
    messages = [{"role": "user", "content": "1+1?"}]
    rows = Dataset.from_list([{"prompt": messages, "solution": "2"}])
    prepared = prepare_dataset(rows, DataFormat())
    assert prepared[0] == {"prompt": messages, "solution": r"\boxed{2}"}
    untouched = Dataset.from_list([{"prompt": messages, "solution": [1, 2]}])
    assert prepare_dataset(untouched, DataFormat(box_answer=False))["solution"][0] == [1, 2]
    with pytest.raises(ValueError, match="list of messages.*chat template"):
        prepare_dataset(rows, DataFormat(conversational=False))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (DataFormat(), "no column 'prompt', only question, final_answer, difficulty, topic"),
        (DataFormat("qestion"), "`dataset_prompt_column` names the column 'qestion'.*question"),
        (DataFormat("question", answer_column="anwser"), "`dataset_answer_column` names the column 'anwser'"),
        (DataFormat(prompt_template="{qestion}"), "field {qestion}.*question"),
        (DataFormat(prompt_template=r"{question} \boxed{}"), r"written twice, as in \\boxed\{\{\}\}"),
        (DataFormat(prompt_template=r"{question} \boxed{"), r"written twice, as in \\boxed\{\{\}\}"),
        (DataFormat(prompt_template="no field"), "must name a column"),
        (DataFormat("topic", prompt_template="{question}"), "does not use `dataset_prompt_column`"),
    ],
)
def test_formats_refused(dataset, form, message):
    with pytest.raises(ValueError, match=message):
        prepare_dataset(dataset, form)


@pytest.mark.parametrize(
    ("column", "bad", "message"),
    [
        ("question", None, "Row 2 has no prompt: its column 'question' is None"),
        ("question", "  ", "Row 2 has no prompt"),
        ("final_answer", None, "Row 2 has no answer: its column 'final_answer' is None"),
        ("final_answer", " ", "Row 2 has no answer: its column 'final_answer' is empty"),
    ],
)
def test_bad_rows_are_named_as_they_were_loaded(column, bad, message):
    rows = {name: list(values) for name, values in ROWS.items()}
    rows[column][2] = bad
    form = DataFormat(prompt_template="Q: {question}", answer_column="final_answer")
    with pytest.raises(ValueError, match=message):
        prepare_dataset(Dataset.from_dict(rows), form, "difficulty >= 6")


def test_max_samples_refused(dataset):
    with pytest.raises(ValueError, match="max_train_samples"):
        prepare_dataset(dataset, DataFormat("question"), max_samples=0)


def test_files_and_folders(dataset, tmp_path):
    dataset.to_json(tmp_path / "rows.jsonl")
    dataset.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps([dataset[i] for i in range(4)]))
    (tmp_path / "folder").mkdir()
    dataset.to_json(tmp_path / "folder" / "train.jsonl")
    dataset.select([0]).to_json(tmp_path / "folder" / "test.jsonl")
    DatasetDict(train=dataset).save_to_disk(tmp_path / "saved")
    for name in ("rows.jsonl", "rows.json", "rows.parquet", "*.parquet", "folder", "saved"):
        assert load_split(str(tmp_path / name)).to_dict() == dataset.to_dict(), name
    assert len(load_split(str(tmp_path / "folder"), "test")) == 1
    assert len(load_split(str(tmp_path / "rows.jsonl"), "test")) == 4  # a file is one split, whatever it is called
    with pytest.raises(ValueError, match="no split 'test', only train"):
        load_split(str(tmp_path / "saved"), "test")


def test_miniature():
    train, test = load_split("miniature"), load_split("miniature", "test")
    assert train.column_names == ["prompt", "solution", "topic"]
    assert not {row["prompt"][0]["content"] for row in train} & {row["prompt"][0]["content"] for row in test}
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        load_split("miniature", "dev")


def test_files_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.jsonl does not exist"):
        load_split("absent.jsonl")
    with pytest.raises(FileNotFoundError, match="folder ./absent does not exist"):
        load_split("./absent")
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(ValueError, match=r"must end in .jsonl, .json, .parquet, got '.txt'"):
        load_split(str(tmp_path / "rows.txt"))
    (tmp_path / "broken.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(ValueError, match="broken.jsonl cannot be read: "):
        load_split(str(tmp_path / "broken.jsonl"))


def test_a_name_that_the_hub_does_not_have_is_told_the_nearest_one(monkeypatch):
    def without_connection(name, *args, **kwargs):
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub")

    monkeypatch.setattr("sgopd_trl.data.load_dataset", without_connection)
    for name, also, end in (("miniatur", (), r"Did you mean 'miniature'\?$"), ("aime42", ("aime24",), r"'aime24'\?$")):
        with pytest.raises(OSError, match=rf"Couldn't reach '{name}' on the Hub\. .*{end}"):
            load_split(name, also=also)
    with pytest.raises(OSError, match="on the Hub$"):
        load_split("org/dataset")


def test_a_column_names_the_teachers():
    rows = Dataset.from_dict({"prompt": ["a", "b"], "solution": ["1", "2"], "field": ["maths", "code"]})
    assert prepare_dataset(rows, DataFormat(teacher_column="field"))["teacher"] == ["maths", "code"]
    assert "teacher" not in prepare_dataset(rows, DataFormat()).column_names
    with pytest.raises(ValueError, match="`dataset_teacher_column` names the column 'subject'"):
        prepare_dataset(rows, DataFormat(teacher_column="subject"))
