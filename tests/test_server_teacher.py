"""The teacher behind a server, against one that fails in every way we know of."""

import json
import logging
import signal
import threading
import time

import fake_server
import pytest
import torch
from fake_server import FakeServer, logp

from sgopd_trl.teachers import SamplingSettings, TeacherError
from sgopd_trl.teachers import server as server_module
from sgopd_trl.teachers.completions import LOWEST
from sgopd_trl.teachers.server import ServerTeacher


class Tokenizer:
    """The fake server's tokenizer: one letter a token."""

    def __init__(self, size: int = fake_server.VOCABULARY):
        self.size = size

    def __len__(self):
        return self.size

    def decode(self, ids, skip_special_tokens):
        return "".join(map(chr, (97 + i for i in ids)))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(server_module, "_BACKOFF", lambda state: 0.1)


@pytest.fixture
def fake():
    server = FakeServer()
    yield server
    server.stop()


def connect(*servers, check=True, **settings) -> ServerTeacher:
    settings = dict(eos_token_ids=[1], request_timeout=5.0, retry_timeout=10.0) | settings
    teacher = ServerTeacher([server.url for server in servers], **settings)
    if check:
        teacher.check_start(Tokenizer(), longest_prompt=4, max_completion_length=8)
    return teacher


PROMPTS, COMPLETIONS = [[5, 6], [7], [8, 9, 10]], [[11, 1], [], [12, 13, 14, 15]]


def expected(offset: float = 0.0) -> list[list[float]]:
    return [
        [logp(token, len(prompt) + place, offset) for place, token in enumerate(completion)]
        for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
    ]


def score(teacher) -> list[list[float]]:
    scores = teacher.score(PROMPTS, COMPLETIONS, temperature=1.0)
    assert all(values.dtype == torch.float32 for values in scores)
    return [pytest.approx(values.tolist(), abs=1e-5) for values in scores]


# What is asked, and what comes back


def test_scores_are_of_the_right_tokens_in_the_callers_order(fake):
    teacher = connect(fake, tokens_per_request=4)
    fake.requests.clear()
    assert score(teacher) == expected()
    assert [len(body["prompt"]) for body in fake.scored()] == [1, 1]  # 7 and 4 tokens, none for the empty one
    assert all(body["prompt_logprobs"] == 0 and body["max_tokens"] == 1 for body in fake.scored())


def test_requests_keep_to_the_budget_and_the_concurrency(fake):
    teacher = connect(fake, tokens_per_request=12, concurrency=3)
    fake.requests.clear()
    fake.peak, fake.delay = 0, 0.05
    prompts = [[5] * (1 + row % 4) for row in range(40)]
    completions = [[6] * (1 + row % 5) for row in range(40)]
    scores = teacher.score(prompts, completions, temperature=1.0)
    assert [len(values) for values in scores] == [len(ids) for ids in completions]
    assert fake.peak == 3
    assert all(sum(map(len, body["prompt"])) <= 12 for body in fake.scored())
    assert sum(len(body["prompt"]) for body in fake.scored()) == 40


def test_a_rollout_is_asked_for_with_every_setting(fake):
    teacher = connect(fake)
    fake.requests.clear()
    settings = SamplingSettings(temperature=0.6, top_p=0.9, top_k=20, max_new_tokens=7)
    assert teacher.generate([[5, 6], [7]], [100, 2], settings) == [[100 % 24, 6, 1], [2, 7, 1]]
    assert teacher.generate([], [], settings) == []
    body = next(body for body in fake.scored() if body["prompt"] == [[5, 6]])
    del body["prompt"], body["model"]
    assert body == {
        "max_tokens": 7,
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": 100,
        "stop_token_ids": [1],
        "return_token_ids": True,
    }


def test_another_temperature_is_refused_with_the_reason(fake):
    with pytest.raises(ValueError, match="those of temperature 1 whatever is asked for, got 0.7"):
        connect(fake).score([[5]], [[6]], temperature=0.7)


def test_minus_infinity_is_what_the_server_writes_for_it(fake):
    teacher = connect(fake)
    fake.faults = [
        fake_server.changed(lambda answer: answer["choices"][0]["prompt_logprobs"][1]["6"].update(logprob=LOWEST))
    ]
    assert teacher.score([[5]], [[6]], temperature=1.0)[0].tolist() == [-torch.inf]


# Before training


def refusal(fake, match, tokenizer=None, longest_prompt=4, **settings):
    teacher = connect(fake, check=False, **settings)
    with pytest.raises(ValueError, match=match) as refused:
        teacher.check_start(
            tokenizer or Tokenizer(), longest_prompt=longest_prompt, max_completion_length=8, max_rollout_length=30
        )
    assert fake.url in str(refused.value)


def test_start_nothing_listens(fake):
    fake.stop()
    refusal(fake, "cannot be reached: ConnectError.*vllm serve")
    fake.start()


def test_start_one_of_two_does_not_listen(fake):
    other = FakeServer()
    other.stop()
    with pytest.raises(ValueError, match=f"{other.url} cannot be reached"):
        connect(fake, other)


def test_start_model_is_not_served(fake):
    refusal(fake, "The model 'mine' is not served: it serves 'teacher'", model="mine")


def test_start_the_tokenizer_differs(fake):
    fake.detokenize = lambda ids: "".join("!" if i == 17 else chr(97 + i) for i in ids)
    refusal(fake, "token 17 is '!' there and 'r' here")


def test_start_the_context_is_too_short(fake):
    refusal(fake, "64 tokens, but the longest prompt \\(40\\).*needs 70.*--max-model-len 70", longest_prompt=40)


def test_start_raw_logits(fake):
    fake.offset = -50.0
    refusal(fake, "as a log-probability.*--logprobs-mode")


def test_start_a_server_that_follows_the_temperature_is_noticed(fake, caplog):
    fake.scale_by_temperature = True
    assert score(connect(fake)) == expected()
    assert "follow `temperature`" in caplog.text


def test_start_not_vllm_at_all(fake):
    fake.detokenize = lambda ids: None
    fake.complete = lambda body: {"hello": "world"}
    refusal(fake, "expected 1 choices, got {'hello': 'world'}")


def test_the_key_is_needed_and_never_shown(fake, caplog):
    caplog.set_level(logging.DEBUG)
    fake.api_key = "very-secret"
    refusal(fake, "HTTP 401: set the environment variable VLLM_API_KEY", api_key="other-secret")
    teacher = connect(fake, api_key="very-secret")
    fake.faults = [fake_server.status(500), fake_server.hang_up]
    assert score(teacher) == expected()
    fake.faults = [fake_server.status(400, "bad")]
    with pytest.raises(TeacherError) as error:
        teacher.score([[5]], [[6]], temperature=1.0)
    shown = caplog.text + repr(teacher) + str(error.value) + json.dumps(teacher.identity())
    assert "secret" not in shown and "HTTP 500" in shown


def test_a_key_from_a_file_ends_in_a_newline(fake):
    fake.api_key = "very-secret"
    assert score(connect(fake, api_key="very-secret\n")) == expected()
    for key in ("very\nsecret", "sécret"):
        with pytest.raises(ValueError, match="VLLM_API_KEY") as refused:
            connect(fake, api_key=key)
        assert "secret" not in str(refused.value) and "cret" not in str(refused.value)


# While training


@pytest.mark.parametrize(
    "fault",
    [
        fake_server.status(500),
        fake_server.status(503),
        fake_server.hang_up,
        fake_server.truncated,
        fake_server.cut_json,
        fake_server.changed(lambda answer: answer["choices"].pop()),
        fake_server.changed(lambda answer: answer["choices"][0]["prompt_logprobs"].pop()),
        fake_server.changed(lambda answer: answer["choices"][0]["prompt_logprobs"].__setitem__(-1, {"3": {}})),
    ],
    ids=["500", "503", "hung up", "truncated", "cut JSON", "choice lost", "position lost", "other token"],
)
def test_a_failure_that_passes_is_asked_again(fake, fault):
    teacher = connect(fake)
    fake.faults = [fault, fault]
    assert score(teacher) == expected()
    assert not fake.faults


def test_429_waits_as_long_as_the_server_says(fake):
    teacher = connect(fake)
    fake.faults = [fake_server.status(429, Retry_After="0.7")]
    start = time.monotonic()
    assert score(teacher) == expected()
    assert time.monotonic() - start > 0.7


def test_a_slow_answer_is_waited_for(fake):
    teacher = connect(fake)
    fake.faults = [fake_server.hang(0.5)]
    assert score(teacher) == expected() and len(fake.scored()) == 1


def test_an_answer_slower_than_the_limit_is_asked_for_again(fake, caplog):
    teacher = connect(fake, request_timeout=0.3)
    fake.faults = [fake_server.hang(1.0)]
    assert score(teacher) == expected() and len(fake.scored()) == 2
    assert "ReadTimeout" in caplog.text


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_value_that_is_no_number_stops_at_once(fake, value):
    teacher = connect(fake)
    fake.requests.clear()
    fake.faults = [
        fake_server.changed(lambda answer: answer["choices"][0]["prompt_logprobs"][2]["7"].update(logprob=value))
    ]
    with pytest.raises(TeacherError, match=f"{fake.url}: the log-probability of token 7 at completion position 1 is"):
        teacher.score([[5]], [[6, 7]], temperature=1.0)
    assert len(fake.scored()) == 1


def test_a_refusal_is_not_repeated(fake):
    teacher = connect(fake)
    fake.requests.clear()
    fake.faults = [fake_server.status(400, "Token id 99 is out of vocabulary")]
    with pytest.raises(TeacherError, match=f"{fake.url}: HTTP 400: Token id 99"):
        teacher.score([[5]], [[99]], temperature=1.0)
    assert len(fake.scored()) == 1


def test_a_request_that_the_server_cannot_take_is_given_up(fake):
    """The server is well otherwise: waiting for it would not help."""
    teacher = connect(fake, retry_timeout=60.0)
    fake.faults = [fake_server.status(500, "Out of range float values are not JSON compliant")] * 20
    with pytest.raises(TeacherError, match="answers other requests, but this one 8 times with HTTP 500: Out of range"):
        teacher.score([[5]], [[6]], temperature=1.0)


def test_ctrl_c_gives_up_what_is_under_way(fake):
    teacher = connect(fake, concurrency=1, tokens_per_request=1)
    fake.requests.clear()
    fake.delay = 0.3
    threading.Timer(0.5, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        teacher.score([[5]] * 20, [[6]] * 20, temperature=1.0)
    asked = len(fake.scored())
    time.sleep(1.0)
    assert len(fake.scored()) <= asked + 1 < 20


def test_a_server_that_comes_back_is_waited_for(fake, caplog):
    teacher = connect(fake)
    fake.stop()
    threading.Timer(1.5, fake.start).start()
    assert score(teacher) == expected()
    assert f"does not answer ({fake.url}: ConnectError" in caplog.text and "asked again until 10 s" in caplog.text
    assert "answers again, after" in caplog.text


def test_a_server_that_stays_away_is_named_with_its_last_cause(fake):
    teacher = connect(fake, retry_timeout=1.0)
    fake.stop()
    start = time.monotonic()
    with pytest.raises(TeacherError, match=f"has not answered for 1 s .*{fake.url}: ConnectError"):
        score(teacher)
    assert 1.0 <= time.monotonic() - start < 5
    fake.start()
    assert score(teacher) == expected()


def restarted_as(fake, **changes):
    fake.stop()
    for name, value in changes.items():
        setattr(fake, name, value)
    fake.start()


def test_another_model_after_a_restart_is_noticed(fake):
    teacher = connect(fake)
    assert score(teacher) == expected()
    restarted_as(fake, offset=0.2)
    with pytest.raises(TeacherError, match="another model answers: the log-probabilities.* differ by 0.200 nats"):
        score(teacher)
    restarted_as(fake, offset=0.0, root="/models/other")
    with pytest.raises(TeacherError, match="loaded from '/models/other', at the start from '/models/teacher'"):
        score(teacher)
    restarted_as(fake, root="/models/teacher", model="renamed")
    with pytest.raises(TeacherError, match="'teacher' is not served: it serves 'renamed'"):
        teacher.generate([[5]], [0], SamplingSettings())


def test_another_model_in_the_middle_of_a_call_is_noticed(fake):
    teacher = connect(fake, concurrency=1, tokens_per_request=1)

    def swap(handler, body):
        fake.offset = 0.2
        return fake_server.hang_up(handler, body)

    fake.faults = [swap]
    with pytest.raises(TeacherError, match="another model answers"):
        score(teacher)


def test_two_servers_share_the_load(fake):
    other = FakeServer()
    teacher = connect(fake, other, concurrency=4, tokens_per_request=1)
    for server in (fake, other):
        server.requests.clear()
        server.delay = 0.02
    scores = teacher.score([[5]] * 20, [[6]] * 20, temperature=1.0)
    assert len(scores) == 20 and min(len(fake.scored()), len(other.scored())) >= 5
    other.stop()


def test_one_of_two_servers_stands_in_for_the_other_at_once(fake):
    other = FakeServer()
    teacher = connect(fake, other, tokens_per_request=1)
    other.stop()
    start = time.monotonic()
    assert score(teacher) == expected() and score(teacher) == expected()
    assert time.monotonic() - start < 1.0
    other.start()
    other.requests.clear()
    teacher.endpoints[1].failed_at -= server_module._ASIDE  # it has rested
    teacher.score([[5]] * 20, [[6]] * 20, temperature=1.0)
    assert other.scored() and teacher.endpoints[1].failed_at is None
    other.stop()


def test_two_servers_must_serve_one_model(fake):
    other = FakeServer(offset=0.3)
    with pytest.raises(ValueError, match=f"{other.url}: another model answers"):
        connect(fake, other)
    other.stop()


def test_processes_share_the_concurrency_and_rollouts_end_as_the_students(fake):
    class Trainer:
        eos_token_ids = [3]

        class accelerator:
            num_processes = 3

    teacher = connect(fake, concurrency=8)
    teacher.prepare(Trainer)
    assert teacher.concurrency == 2 and teacher.eos_token_ids == [1, 3]
    teacher.generate([[5]], [0], SamplingSettings())
    assert fake.scored()[-1]["stop_token_ids"] == [1, 3]


def test_identity(fake):
    assert connect(fake).identity() == {"teacher": {"model": "teacher", "revision": None, "config_hash": None}}
    named = connect(fake, name="math", model_name="org/model", revision="main", config_hash="c")
    assert named.identity() == {"math": {"model": "org/model", "revision": "main", "config_hash": "c"}}
