"""The teacher behind a server, against one that fails in every way we know of."""

import json
import logging
import random
import re
import signal
import threading
import time

import fake_server
import pytest
import tiny
import torch
from datasets import Dataset, IterableDataset
from fake_server import FakeServer, logp

from sgopd_trl import SGOPDConfig
from sgopd_trl.miniature import make_tokenizer
from sgopd_trl.teachers import SamplingSettings, TeacherError, patience
from sgopd_trl.teachers.build import open_teachers, teacher_specs
from sgopd_trl.teachers.completions import LOWEST, Unavailable
from sgopd_trl.teachers.identity import identity_entry
from sgopd_trl.teachers.patience import backoff
from sgopd_trl.teachers.server import ServerTeacher
from sgopd_trl.teachers.server_pool import ASIDE


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
    monkeypatch.setattr(patience, "backoff", lambda failures: 0.1)


@pytest.fixture
def fake():
    server = FakeServer()
    yield server
    server.stop()


@pytest.fixture
def other():
    server = FakeServer()
    yield server
    server.deaf = False
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


def test_start_one_of_two_does_not_listen(fake, other):
    other.stop()
    with pytest.raises(ValueError, match=f"{other.url} cannot be reached"):
        connect(fake, other)
    other.start()


def test_start_it_listens_but_does_not_answer(fake):
    fake.deaf = True
    start = time.monotonic()
    refusal(fake, "cannot be reached: no answer in 0.5 s", request_timeout=2.0)
    assert time.monotonic() - start < 1.5  # not all of the time that an answer may take
    fake.deaf = False


def test_start_it_is_there_but_ill(fake):
    def ill(body):
        raise OSError("no memory")

    fake.complete = ill
    refusal(fake, "is there, but cannot answer: HTTP 500: no memory. Its log says why")


def test_start_model_is_not_served(fake):
    refusal(fake, "The model 'mine' is not served: it serves 'teacher'", model="mine")


def test_start_the_tokenizer_differs(fake):
    fake.detokenize = lambda ids: "".join("!" if i == 17 else chr(97 + i) for i in ids)
    refusal(fake, "token 17 is '!' there and 'r' here")


def test_start_the_context_is_too_short(fake):
    refusal(fake, "64 tokens, but the longest prompt \\(40\\).*needs 70.*--max-model-len 70", longest_prompt=40)


def test_the_context_of_every_server_counts_and_that_of_one_started_again(fake, other):
    other.max_model_len = 12
    with pytest.raises(ValueError, match=f"{other.url}: its context has 12 tokens.*needs 13"):
        connect(fake, other)
    teacher = connect(fake)
    restarted_as(fake, max_model_len=12)
    with pytest.raises(TeacherError, match=f"{fake.url}: its context has 12 tokens.*needs 13"):
        score(teacher)


def reach(fake, tmp_path, dataset, eval_dataset=None, **overrides) -> int:
    """Tokens of context that a run's settings and prompts are found to need."""
    tokenizer = make_tokenizer()
    fake.detokenize = lambda ids: tokenizer.decode(ids, skip_special_tokens=False)
    fake.max_model_len = 1000
    settings = dict(max_completion_length=10, teacher_max_completion_length=30, teacher_server_url=fake.url)
    args = tiny.make_args(tmp_path, **(settings | overrides))
    teacher = open_teachers(teacher_specs(None, args), args, tokenizer, dataset, eval_dataset)
    return teacher.served.lengths.context


def prompts(*lengths: int) -> Dataset:
    return Dataset.from_dict({"prompt": ["1" * length for length in lengths]})


def test_prompts_of_training_and_evaluation_need_room_and_rollouts_where_there_are_any(fake, tmp_path):
    assert reach(fake, tmp_path, prompts(3, 7)) == 37
    assert reach(fake, tmp_path, prompts(3, 7), prompts(20)) == 50
    assert reach(fake, tmp_path, prompts(3, 7), {"easy": prompts(5), "hard": prompts(9)}) == 39
    for off in (dict(teacher_sampling_enable=False), dict(teacher_sft_alpha_0=0.0)):
        assert reach(fake, tmp_path, prompts(3, 7), **off) == 7 + 10 + 1


def test_prompts_that_are_not_known_yet_are_warned_of(fake, tmp_path, caplog):
    def streamed() -> IterableDataset:
        return prompts(3).to_iterable_dataset()

    assert reach(fake, tmp_path, streamed(), max_prompt_length=40) == 70
    assert not caplog.records
    reach(fake, tmp_path, streamed())
    reach(fake, tmp_path, prompts(3), streamed(), max_prompt_length=40)
    warned = [record.message for record in caplog.records]
    assert len(warned) == 2 and all("cannot be checked" in text and "IterableDataset" in text for text in warned)


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
        fake_server.not_gzip,
        fake_server.changed(lambda answer: answer["choices"].pop()),
        fake_server.changed(lambda answer: answer.update(choices=[None] * len(answer["choices"]))),
        fake_server.changed(lambda answer: answer["choices"][0].update(index=[0])),
        fake_server.changed(lambda answer: answer["choices"][0]["prompt_logprobs"].pop()),
        fake_server.changed(lambda answer: answer["choices"][0]["prompt_logprobs"].__setitem__(-1, {"3": {}})),
        fake_server.changed(lambda answer: answer["choices"][0]["prompt_logprobs"].__setitem__(-1, ["3"])),
    ],
    ids=[
        *("500", "503", "hung up", "truncated", "cut JSON", "not gzip", "choice lost", "null choices", "odd index"),
        *("position lost", "other token", "odd position"),
    ],
)
def test_a_failure_that_passes_is_asked_again(fake, fault):
    teacher = connect(fake)
    fake.faults = [fault, fault]
    assert score(teacher) == expected()
    assert not fake.faults


@pytest.mark.parametrize(
    "change",
    [
        {"token_ids": [2], "finish_reason": "abort"},
        {"token_ids": [2], "finish_reason": None},
        {"token_ids": [2, None]},
        {"token_ids": []},
    ],
)
def test_a_rollout_that_was_broken_off_is_asked_for_again(fake, change):
    teacher = connect(fake)
    fake.faults = [fake_server.changed(lambda answer: answer["choices"][0].update(change))]
    assert teacher.generate([[5]], [2], SamplingSettings()) == [[2, 5, 1]]
    assert not fake.faults
    fake.faults = [fake_server.changed(lambda answer: answer["choices"][0].update(finish_reason="length"))]
    assert teacher.generate([[5]], [2], SamplingSettings()) == [[2, 5, 1]]


def test_429_waits_as_long_as_the_server_says(fake):
    teacher = connect(fake)
    fake.requests.clear()
    fake.faults = [fake_server.status(429, Retry_After="0.7")]
    start = time.monotonic()
    assert score(teacher) == expected()
    assert time.monotonic() - start > 0.7
    assert len(fake.requests) == 3  # one of them a probe: a server without room is well


def test_a_slow_answer_is_waited_for(fake):
    teacher = connect(fake)
    fake.faults = [fake_server.hang(0.5)]
    assert score(teacher) == expected() and len(fake.scored()) == 1


@pytest.mark.parametrize("slow", [fake_server.hang(2.0), fake_server.trickle(2.0)], ids=["at once", "byte by byte"])
def test_an_answer_slower_than_the_limit_is_asked_for_again(fake, caplog, slow):
    teacher = connect(fake)
    teacher.request_timeout = 0.5
    fake.faults = [slow]
    start = time.monotonic()
    assert score(teacher) == expected() and len(fake.scored()) == 2
    assert time.monotonic() - start < 1.5
    assert re.search(rf"{fake.url}: no answer in 0\.\d s", caplog.text)


def test_the_time_to_repeat_a_request_begins_with_its_first_failure(fake):
    """A request that failed after a long time has as long as any other."""
    teacher = connect(fake, retry_timeout=0.5)
    teacher.request_timeout = 0.7
    fake.faults = [fake_server.hang(1.5), fake_server.status(503)]
    assert score(teacher) == expected() and len(fake.scored()) == 3


def test_several_processes_wait_less_than_the_process_groups_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(SGOPDConfig, "world_size", 2)
    served = dict(teacher_server_url="http://a:1")
    args = tiny.make_args(tmp_path, **served)  # the defaults do
    limits = dict(teacher_server_request_timeout=args.teacher_server_request_timeout + 40)
    with pytest.raises(ValueError, match=r"2 \* `teacher_server_request_timeout`.*\(1800 s\), got 1820"):
        tiny.make_args(tmp_path, **served, **limits)
    tiny.make_args(tmp_path, **served, **limits, ddp_timeout=1821)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "-1"])
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
    fake.requests.clear()

    def fault(handler, body):
        teacher.pool.failed(teacher.pool.endpoints[0], Unavailable("another request has failed meanwhile"))
        return fake_server.status(500, "Out of range float values are not JSON compliant")(handler, body)

    fake.faults = [fault] * 20
    with pytest.raises(
        TeacherError, match=rf"answers other requests, but this one 8 times .*\({fake.url}: HTTP 500: Out of range"
    ) as error:
        teacher.score([[5]], [[6]], temperature=1.0)
    assert len(fake.scored()) == 8 and isinstance(error.value.__cause__, Unavailable)


def test_a_server_that_is_ill_is_waited_for(fake):
    """HTTP 500 to the check itself: the request is not the cause."""
    teacher = connect(fake, retry_timeout=60.0)
    complete, asked = fake.complete, []

    def ill_for_a_while(body):
        asked.append(body)
        if len(asked) <= 12:
            raise OSError("no memory")
        return complete(body)

    fake.complete = ill_for_a_while
    assert score(teacher) == expected()


def test_ctrl_c_gives_up_what_is_under_way(fake):
    teacher = connect(fake, concurrency=1, tokens_per_request=1)
    fake.requests.clear()
    fake.delay = 0.3

    def interrupt():
        while len(fake.scored()) < 2:
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt).start()
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
    with pytest.raises(TeacherError, match=f"has not answered for 1 s .*{fake.url}: ConnectError") as error:
        score(teacher)
    assert 1.0 <= time.monotonic() - start < 5
    assert isinstance(error.value.__cause__, Unavailable)
    fake.start()
    assert score(teacher) == expected()
    # The first outage is over: it is not the cause of the next one
    fake.faults = [fake_server.status(429, "busy", Retry_After="0.2")] * 100
    with pytest.raises(TeacherError, match=rf"has not answered for 1 s .* s\). {fake.url}: HTTP 429: busy$") as error:
        teacher.score([[5]], [[6]], temperature=1.0)
    assert error.value.__cause__.status == 429


def test_an_outage_draws_nothing_of_pythons_random_numbers():
    """Checkpoints hold their state, and later training depends on it."""
    state = random.getstate()
    pauses = [[backoff(failures) for _ in range(20)] for failures in (1, 2, 5, 2000)]
    assert random.getstate() == state
    for drawn, longest in zip(pauses, (0.5, 1.0, 8.0, 10.0), strict=True):
        assert len(set(drawn)) > 1 and longest / 2 <= min(drawn) and max(drawn) <= longest


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


def test_what_other_sequences_in_a_batch_change_is_not_another_model(fake):
    """Their noise is measured at the start: in bfloat16 it may be above the least tolerance."""
    fake.noise = 0.04
    teacher = connect(fake)
    assert teacher.served.tolerance == pytest.approx(0.16)
    restarted_as(fake, offset=0.1)
    assert score(teacher) != expected()
    restarted_as(fake, offset=0.2)
    with pytest.raises(
        TeacherError, match=r"another model answers: .* differ by 0.200 nats a token \(more than 0.160\)"
    ):
        score(teacher)
    restarted_as(fake, offset=0.0, noise=0.0)
    assert connect(fake).served.tolerance == 0.05


def test_another_model_in_the_middle_of_a_call_is_noticed(fake):
    teacher = connect(fake, concurrency=1, tokens_per_request=1)

    def swap(handler, body):
        fake.offset = 0.2
        return fake_server.hang_up(handler, body)

    fake.faults = [swap]
    with pytest.raises(TeacherError, match="another model answers"):
        score(teacher)


@pytest.mark.parametrize("concurrency", [4, 1])
def test_two_servers_share_the_load(fake, other, concurrency):
    teacher = connect(fake, other, concurrency=concurrency, tokens_per_request=1)
    for server in (fake, other):
        server.requests.clear()
        server.peak, server.delay = 0, 0.1
    assert len(teacher.score([[5]] * 20, [[6]] * 20, temperature=1.0)) == 20
    assert min(len(fake.scored()), len(other.scored())) >= 8
    assert max(fake.peak, other.peak) <= -(-concurrency // 2)


def test_a_call_of_few_requests_uses_both_servers(fake, other):
    """Though one of them is found right before the other."""
    teacher = connect(fake, other, tokens_per_request=1)
    fake.delay = 0.2
    for server in (fake, other):
        server.requests.clear()
    teacher.score([[5]] * 4, [[6]] * 4, temperature=1.0)
    assert len(fake.scored()) == len(other.scored()) == 2


def test_a_server_that_does_not_answer_holds_nobody_up(fake, other, caplog):
    teacher = connect(fake, other, concurrency=4, tokens_per_request=1, request_timeout=10.0)
    other.deaf = True
    for _ in range(2):
        start = time.monotonic()
        assert len(teacher.score([[5]] * 20, [[6]] * 20, temperature=1.0)) == 20
        assert time.monotonic() - start < 2.0
    time.sleep(1.0)  # until the check is given up
    assert score(teacher) == expected()
    assert f"Not all servers answer ({other.url}: no answer in 2.5 s)" in caplog.text


def test_a_request_that_a_server_keeps_does_not_keep_others_from_the_other(fake, other):
    teacher = connect(fake, other, concurrency=4, tokens_per_request=1)
    fake.rule = fake_server.hang(1.0)
    other.requests.clear()
    teacher.score([[5]] * 20, [[6]] * 20, temperature=1.0)
    assert len(other.scored()) == 18


def test_one_of_two_servers_stands_in_for_the_other_at_once(fake, other, caplog):
    teacher = connect(fake, other, tokens_per_request=1)
    other.stop()
    start = time.monotonic()
    assert score(teacher) == expected() and score(teacher) == expected()
    assert time.monotonic() - start < 1.0
    other.start()
    other.requests.clear()
    teacher.pool.endpoints[1].failed_at -= ASIDE  # it has rested
    teacher.score([[5]] * 20, [[6]] * 20, temperature=1.0)
    assert other.scored() and teacher.pool.endpoints[1].failed_at is None
    assert teacher.pool.endpoints[1].error is None
    standing_in, recovered = [record.message for record in caplog.records]
    assert f"({other.url}: ConnectError" in standing_in and f"Standing in: {fake.url}." in standing_in
    assert "answers again" in recovered


def test_one_of_two_servers_dies_in_the_middle_of_a_call(fake, other):
    teacher = connect(fake, other, concurrency=4, tokens_per_request=1)
    other.rule = lambda handler, body: threading.Thread(target=other.stop).start() or fake_server.hang_up(handler, body)
    scores = teacher.score([[5]] * 20, [[6]] * 20, temperature=1.0)
    assert [values.item() for values in scores] == pytest.approx([logp(6, 1)] * 20)


def test_another_model_behind_one_of_two_addresses_is_noticed(fake, other):
    teacher = connect(fake, other, tokens_per_request=1)
    restarted_as(other, offset=0.3)
    with pytest.raises(TeacherError, match=f"{other.url}: another model answers"):
        for _ in range(2):  # at the latest, when it has been looked at again
            score(teacher)


@pytest.mark.parametrize("fault", [fake_server.status(429, "busy", Retry_After="0.1"), fake_server.hang_up])
def test_trouble_that_comes_and_goes_is_reported_once(fake, caplog, fault):
    teacher = connect(fake, tokens_per_request=1)
    for _ in range(5):
        fake.faults = [fault]
        score(teacher)
    warned = [record.message for record in caplog.records]
    assert len(warned) == 2 and "does not answer" in warned[0] and "answers again" in warned[1]


def test_two_servers_must_serve_one_model(fake, other):
    other.offset = 0.3
    with pytest.raises(ValueError, match=f"{other.url}: another model answers"):
        connect(fake, other)


def test_processes_share_concurrency_and_servers_and_rollouts_end_as_the_students(fake, other):
    class Trainer:
        eos_token_ids = [3]

        class accelerator:
            num_processes = 3
            process_index = 0

    begins_with = []
    for Trainer.accelerator.process_index in range(3):
        teacher = connect(fake, other, concurrency=8)
        teacher.prepare(Trainer)
        begins_with.append(teacher.pool.endpoints[0].url)
    assert begins_with == [fake.url, other.url, fake.url]
    assert teacher.concurrency == 2 and teacher.eos_token_ids == [1, 3]
    teacher.generate([[5]], [0], SamplingSettings())
    assert (fake.scored() + other.scored())[-1]["stop_token_ids"] == [1, 3]


def test_rollouts_are_handed_over_as_they_are_finished(fake):
    teacher, handed_over = connect(fake), {}
    prompts = [[4], [5], [6]]

    def rule(handler, body):
        if body["prompt"] == [[5]]:
            time.sleep(0.5)
            assert sorted(handed_over) == [0, 2]
            return fake_server.status(400, "no")(handler, body)
        return False

    fake.rule = rule
    with pytest.raises(TeacherError, match="HTTP 400: no"):
        teacher.generate(prompts, [0, 1, 2], SamplingSettings(), finished=handed_over.__setitem__)
    assert handed_over == {0: [0, 4, 1], 2: [2, 6, 1]}
    fake.rule = None
    assert teacher.generate(prompts, [0, 1, 2], SamplingSettings(), finished=handed_over.__setitem__) == [
        handed_over[place] for place in range(3)
    ]


def test_an_error_of_whom_rollouts_are_handed_over_to_comes_out(fake):
    def full(place, ids):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        connect(fake).generate([[4], [5]], [0, 1], SamplingSettings(), finished=full)


def test_identity(fake):
    assert connect(fake).identity() == {"teacher": identity_entry("teacher")}
    about = identity_entry("org/model", "main", "c", "w")
    assert connect(fake, name="math", about=about).identity() == {"math": about}
