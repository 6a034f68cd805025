import pytest

from sgopd_trl.rewards import boxed_answer, exact_answer_reward


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"1_5\boxed{39}", "39"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{39} then \boxed{4", "39"),  # cut off by the length limit: the last *closed* box counts
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\}}", r"\}"),  # an escaped brace closes nothing
        (r"\boxed{}", ""),
        (r"\boxed{\frac{1}{2}", None),
        ("39", None),
        ("", None),
    ],
)
def test_boxed_answer(text: str, expected: str | None) -> None:
    assert boxed_answer(text) == expected


@pytest.mark.parametrize(
    ("gold", "completion", "expected"),
    [
        ("39", r"\boxed{39}", 1.0),
        (r"\boxed{39}", r"\boxed{39}", 1.0),
        ("39", r"\boxed{93}", 0.0),
        ("09", r"\boxed{9}", 0.0),
        ("39", r"\boxed{ 39}", 0.0),
        ("39", "39", 0.0),
        ("39", r"\boxed{39}\boxed{40}", 0.0),
        ("39", "", 0.0),
    ],
)
def test_exact_answer_reward_on_text_and_messages(gold: str, completion: str, expected: float) -> None:
    assert exact_answer_reward([completion], [gold]) == [expected]
    messages = [{"role": "assistant", "content": completion}]
    assert exact_answer_reward(completions=[messages], solution=[gold], prompts=["x"], extra=[1]) == [expected]


def test_exact_answer_reward_pairs_each_completion_with_its_gold() -> None:
    assert exact_answer_reward([r"\boxed{1}", r"\boxed{2}", r"\boxed{3}"], ["1", "3", "3"]) == [1.0, 0.0, 1.0]


def test_exact_answer_reward_takes_the_last_message_and_an_empty_one() -> None:
    turns = [{"role": "assistant", "content": r"\boxed{1}"}, {"role": "assistant", "content": r"\boxed{2}"}]
    assert exact_answer_reward([turns, [{"role": "assistant", "content": None}]], ["2", "2"]) == [1.0, 0.0]


def test_exact_answer_reward_refuses_bad_golds() -> None:
    with pytest.raises(TypeError, match="int 39"):
        exact_answer_reward([r"\boxed{39}"], [39])
    with pytest.raises(ValueError, match="not closed"):
        exact_answer_reward([r"\boxed{39}"], [r"\boxed{39"])
    with pytest.raises(ValueError, match="2 completions but 1"):
        exact_answer_reward(["a", "b"], ["1"])
