"""Remote services that refuse, lie, stall and break off: what becomes of the jobs, over real HTTP."""

from __future__ import annotations

import base64
import io
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract import FakeRun, bodies, facts, generator
from PIL import Image
from remote_server import ANSWERS, RATE, Handler, Lie, RemoteServer, cut_off, drip, hang_up, html, says, sound, status

from shared.picture_records import read_parameters
from shared.services import Service
from shared.tasks import Params, all_tasks
from workers.generators import Device, Done, Failed, ModelFiles, NotNow, Outcome, Work
from workers.generators import remote as asking
from workers.generators.remote import Remote
from workers.remote import pace

KEY = "sk-not-to-be-seen"
PATHS = {
    "text-generation": "remote_chat:RemoteChat",
    "text-to-image": "remote_pictures:RemotePictures",
    "text-to-speech": "remote_speech:RemoteSpeech",
    "feature-extraction": "remote_embeddings:RemoteEmbeddings",
}
PLAIN: dict[str, dict[str, Any]] = {
    "text-generation": {"prompt": "new shoes"},
    "text-to-image": {"prompt": "a hat"},
    "text-to-speech": {"text": "New shoes."},
    "feature-extraction": {"text": "new shoes"},
}


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with RemoteServer() as made:
        yield made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses are short, and nobody waits for long ones."""
    monkeypatch.setattr(pace, "FIRST_HOLD_S", 0.05)
    monkeypatch.setattr(asking, "PATIENCE_S", 0.5)


@pytest.fixture
def made(server: RemoteServer) -> Callable[..., Remote]:
    def made(task: str = "text-generation", model: str = "tiny", **more: Any) -> Remote:
        service = Service(name="lab", **({"url": server.url, "key": KEY} | more))
        files = ModelFiles(f"lab:{model}", Path(), service.url, "openai",
                           {"model": model}, service)  # fmt: skip
        return generator(PATHS[task]).load(files, Device("remote", ""))

    return made


def work(task: str = "text-generation", number: int = 0, *, seed: int = 7, **params: Any) -> Work:
    said: Params = all_tasks()[task].params.model_validate(PLAIN[task] | params)
    return Work(f"job-{number}", task, said, seed)


def one(made: Remote, job: Work, run: FakeRun | None = None) -> Outcome:
    [outcome] = made.generate([job], run or FakeRun())
    return outcome


def failure(outcome: Outcome) -> tuple[str, bool]:
    assert isinstance(outcome, Failed), outcome
    assert KEY not in outcome.error.message
    return outcome.error.code, outcome.error.retryable


# --- what an answer means ---


@pytest.mark.parametrize(
    ("lie", "code", "retryable"),
    [
        (status(400, "Unsupported value: 'temperature'", "unsupported_value"), "request_refused", False),
        (status(400, "maximum context length is 8192 tokens", "invalid"), "prompt_too_long", False),
        (status(400, "no", "content_policy_violation"), "content_refused", False),
        (says({"error": "no"}), "service_bad_answer", True),
        (status(401, f"Incorrect API key provided: {KEY}", "invalid_api_key"), "service_key_refused", False),
        (status(403, "not in your country", "unsupported_country"), "service_forbids", False),
        (status(403, "flagged by moderation"), "content_refused", False),
        (status(404, "The model `tiny` does not exist", "model_not_found"), "model_not_found", False),
        (html(404), "model_not_found", False),
        (status(413, "too large"), "request_refused", False),
        (status(422, "a field"), "request_refused", False),
        (status(408, "slow"), "service_failed", True),
        (status(500, f"it broke on {KEY}\x1b[31m\n"), "service_failed", True),
        (html(500), "service_failed", True),
        (status(504, "gateway"), "service_failed", True),
        (says(b"{"), "service_bad_answer", True),
        (says(b"\xff\xfe"), "service_bad_answer", True),
        (says([1, 2]), "service_bad_answer", True),
        (says({"choices": []}), "service_bad_answer", True),
        (says({"choices": [{"message": {"content": {"a": 1}}}]}), "service_bad_answer", True),
        (says({"choices": [{"message": {"content": "", "refusal": "I will not."}}]}), "content_refused", False),
        (
            says({"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}),
            "content_refused",
            False,
        ),
        (cut_off, "service_broke_off", True),
        (hang_up, "service_broke_off", True),
        (lambda handler: handler.answer(302, b"", Location="http://127.0.0.1:1/"), "service_misconfigured", False),
    ],
)
def test_troubles_are_told_apart(
    server: RemoteServer, made: Callable[..., Remote], lie: Lie, code: str, retryable: bool
) -> None:
    server.lies.append(lie)
    outcome = one(made(), work())
    assert failure(outcome) == (code, retryable)
    assert isinstance(outcome, Failed)
    assert outcome.error.message.isprintable()
    assert len(server.asked) == 1, "whether to ask again is for the queue to say"


def test_a_key_that_is_wrong_is_not_tried_ten_thousand_times(server: RemoteServer, made: Callable[..., Remote]) -> None:
    server.key = "another"
    jobs = [work(number=number) for number in range(50)]
    outcomes = list(made(at_a_time=2).generate(jobs, FakeRun()))
    assert {failure(outcome) for outcome in outcomes} == {("service_key_refused", False)}
    assert len(outcomes) == 50
    assert len(server.asked) <= 3


def test_a_redirect_takes_the_key_nowhere(server: RemoteServer, made: Callable[..., Remote]) -> None:
    with RemoteServer() as other:
        server.lies.append(lambda handler: handler.answer(307, b"", Location=f"{other.url}/chat/completions"))
        assert failure(one(made(), work()))[0] == "service_misconfigured"
        assert other.asked == []


# --- being asked to wait, and being away ---


def test_retry_after_is_heeded_by_all_requests_and_charged_to_nobody(
    server: RemoteServer, made: Callable[..., Remote]
) -> None:
    server.lies.append(status(429, "slow down", "rate_limit_exceeded", Retry_After="2"))
    jobs = [work(number=number) for number in range(6)]
    began = time.monotonic()
    outcomes = list(made(at_a_time=1).generate(jobs, FakeRun()))
    assert all(isinstance(outcome, Done) for outcome in outcomes)
    assert len(server.asked) == 7
    assert server.asked[1].at - server.asked[0].at >= 2, "nobody asks meanwhile"
    assert time.monotonic() - began < 6


def test_retry_after_may_be_a_date(server: RemoteServer, made: Callable[..., Remote]) -> None:
    at = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 600))
    server.lies.append(status(503, "overloaded", Retry_After=at))
    with pytest.raises(NotNow) as error:
        one(made(), work())
    assert 590 < error.value.for_s <= 600


@pytest.mark.parametrize("after", ["tomorrow", "-5", "", "1e5"])
def test_a_retry_after_that_makes_no_sense_is_none(
    impatient: None, server: RemoteServer, made: Callable[..., Remote], after: str
) -> None:
    server.lies.append(status(429, "slow down", Retry_After=after))
    assert isinstance(one(made(), work()), Done)


@pytest.mark.parametrize(
    ("lie", "code", "for_s"),
    [
        (status(429, "slow down", "rate_limit_exceeded", Retry_After="120"), "service_busy", 120),
        (status(503, "overloaded", Retry_After="999999999"), "service_busy", 3600),
        (status(429, "You exceeded your current quota", "insufficient_quota"), "service_quota", 60),
        (status(402, "Insufficient Balance"), "service_quota", 60),
    ],
)
def test_a_service_that_is_of_no_use_for_long_lets_the_worker_go(
    server: RemoteServer, made: Callable[..., Remote], lie: Lie, code: str, for_s: float
) -> None:
    server.lies.append(lie)
    with pytest.raises(NotNow) as error:
        list(made(at_a_time=1).generate([work(number=number) for number in range(3)], FakeRun()))
    assert (error.value.code, error.value.retryable) == (code, True)
    assert error.value.for_s == pytest.approx(for_s, abs=1)
    assert abs(error.value.since - time.time()) < 5
    assert len(server.asked) == 1


def test_what_is_under_way_is_awaited_before_the_worker_turns_away(
    server: RemoteServer, made: Callable[..., Remote]
) -> None:
    server.always = lambda body: status(429, "no", Retry_After="60") if body["seed"] == 2 else None
    server.takes_s = 0.3
    done: list[str] = []
    with pytest.raises(NotNow):
        done.extend(  # as they come, so that those before it raises are kept
            outcome.job_id
            for outcome in made(at_a_time=2).generate([work(number=n, seed=n) for n in (1, 2, 3)], FakeRun())
        )
    assert done in (["job-1"], ["job-1", "job-3"]), "the third may have gone before the second was refused"


def test_a_service_that_is_not_there_is_nobodys_fault(impatient: None, made: Callable[..., Remote]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    for nowhere in (url, "http://no-such-host.invalid/v1"):
        with pytest.raises(NotNow) as error:
            one(made(url=nowhere), work())
        assert error.value.code == "service_unreachable"


def test_a_short_outage_is_sat_out(impatient: None, server: RemoteServer, made: Callable[..., Remote]) -> None:
    server.lies.extend([html(502), status(529, "overloaded"), html(503)])
    assert isinstance(one(made(), work()), Done)
    assert len(server.asked) == 4


def test_a_job_that_alone_is_refused_is_charged_in_the_end(
    impatient: None, server: RemoteServer, made: Callable[..., Remote]
) -> None:
    server.always = lambda body: html(502) if body["seed"] == 3 else None
    jobs = [work(number=number, seed=number) for number in range(30)]
    outcomes = {outcome.job_id: outcome for outcome in made(at_a_time=2).generate(jobs, FakeRun())}
    assert failure(outcomes.pop("job-3")) == ("service_busy", True)
    assert len(outcomes) == 29
    assert all(isinstance(outcome, Done) for outcome in outcomes.values())


# --- slow ---


@pytest.mark.parametrize("lie", [lambda handler: time.sleep(3), drip])
def test_a_request_that_takes_too_long_is_given_up(server: RemoteServer, made: Callable[..., Remote], lie: Lie) -> None:
    server.lies.append(lie)
    began = time.monotonic()
    assert failure(one(made(timeout_s=0.6), work())) == ("service_timeout", True)
    assert time.monotonic() - began < 2.5


def test_many_are_asked_at_once_and_no_more_than_there_may_be(
    server: RemoteServer, made: Callable[..., Remote]
) -> None:
    server.takes_s = 0.2
    jobs = [work(number=number) for number in range(12)]
    began = time.monotonic()
    outcomes = list(made(at_a_time=4).generate(jobs, FakeRun()))
    assert len(outcomes) == 12
    assert server.most_at_once == 4
    assert time.monotonic() - began < 12 * 0.2 * 0.75
    assert server.connections <= 8, "connections are kept"


def test_each_job_is_done_when_its_own_answer_is_there(server: RemoteServer, made: Callable[..., Remote]) -> None:
    server.always = lambda body: _slowly if body["seed"] == 0 else None
    outcomes = made(at_a_time=2).generate([work(number=number, seed=number) for number in range(5)], FakeRun())
    assert [outcome.job_id for outcome in outcomes][-1] == "job-0"


def _slowly(handler: Handler) -> None:
    time.sleep(1.5)
    handler.answer(200, {"choices": [{"message": {"content": "late"}}]})


def test_a_cancelled_job_is_dropped_though_its_answer_is_awaited(
    server: RemoteServer, made: Callable[..., Remote]
) -> None:
    server.gate.clear()
    run = FakeRun()

    @dataclass
    class Feed:
        """Cancels the first job while it is asked for, and ends."""

        turns: int = 0
        rooms: list[int] = field(default_factory=list)

        @property
        def open(self) -> bool:
            return self.turns < 4

        def take(self, room: int) -> list[Work]:
            self.turns += 1
            self.rooms.append(room)
            run.unwanted = {"job-0"}
            return []

    feed, began = Feed(), time.monotonic()
    assert list(made(at_a_time=3).stream([work()], feed, run)) == []
    assert time.monotonic() - began < 3
    assert set(feed.rooms) == {2}, "its request is under way for as long as the service takes"


def test_jobs_join_as_others_leave(server: RemoteServer, made: Callable[..., Remote]) -> None:
    rest = [work(number=number) for number in range(1, 9)]

    class Feed:
        open = True

        def take(self, room: int) -> list[Work]:
            given = [rest.pop() for _ in range(min(room, len(rest)))]
            self.open = bool(rest)
            return given

    server.takes_s = 0.05
    outcomes = list(made(at_a_time=3).stream([work()], Feed(), FakeRun()))
    assert sorted(outcome.job_id for outcome in outcomes) == [f"job-{number}" for number in range(9)]
    assert server.most_at_once == 3


def test_requests_are_spaced_as_the_operator_wants(server: RemoteServer, made: Callable[..., Remote]) -> None:
    list(made(requests_per_minute=300).generate([work(number=number) for number in range(6)], FakeRun()))
    gaps = np.diff([asked.at for asked in server.asked])
    assert gaps.min() > 0.1
    assert gaps.sum() >= 5 * 0.2 - 0.1


def test_few_requests_a_minute_do_not_keep_a_worker_waiting(server: RemoteServer, made: Callable[..., Remote]) -> None:
    with pytest.raises(NotNow) as error:
        list(made(requests_per_minute=2).generate([work(number=number) for number in range(3)], FakeRun()))
    assert error.value.code == "service_paced"
    assert 25 < error.value.for_s <= 30
    assert len(server.asked) == 1


# --- what is asked ---


def test_a_text_is_asked_for_as_the_api_has_it(server: RemoteServer, made: Callable[..., Remote]) -> None:
    params = {"temperature": 0.7, "top_p": 0.9, "stop": ["END"], "max_new_tokens": 9, "num_return_sequences": 2}
    outcome = one(made(), work(seed=40, **params))
    assert [asked.body for asked in sorted(server.asked, key=lambda asked: asked.body["seed"])] == [
        {"model": "tiny", "messages": [{"role": "user", "content": "new shoes"}], "temperature": 0.7, "top_p": 0.9,
         "stop": ["END"], "max_tokens": 9, "seed": seed}
        for seed in (40, 41)
    ]  # fmt: skip
    assert {asked.headers["Authorization"] for asked in server.asked} == {f"Bearer {KEY}"}
    told = facts(outcome, 1)
    assert (told["seed"], told["model"], told["prompt_tokens"]) == (41, "tiny-2026-11-01", 2)
    assert told["finish_reason"] in ("stop", "length")
    assert 1 <= told["completion_tokens"] <= 9


def test_without_sampling_the_likeliest_is_asked_for(server: RemoteServer, made: Callable[..., Remote]) -> None:
    one(made(max_tokens_name="max_completion_tokens", key=None), work())
    [asked] = server.asked
    assert asked.body["temperature"] == 0
    assert asked.body["max_completion_tokens"] == 64
    assert "top_p" not in asked.body
    assert "Authorization" not in asked.headers


def test_a_schema_is_handed_on_under_a_name(server: RemoteServer, made: Callable[..., Remote]) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    one(made(), work(response_format={"type": "json_schema", "json_schema": {"schema": schema}}))
    one(made(), work(response_format={"type": "json_object"}))
    assert [asked.body["response_format"] for asked in server.asked] == [
        {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}, {"type": "json_object"},
    ]  # fmt: skip


def test_a_stop_text_that_was_left_in_is_cut_off_here(server: RemoteServer, made: Callable[..., Remote]) -> None:
    server.lies.append(says({"choices": [{"message": {"content": "one END two"}}]}))
    outcome = one(made(), work(stop=["END"]))
    assert bodies(outcome) == [b"one "]
    assert facts(outcome) == {"seed": 7}, "what is not told is not made up"


def test_an_answer_without_a_text_is_an_empty_one(server: RemoteServer, made: Callable[..., Remote]) -> None:
    server.lies.append(says({"choices": [{"message": {"content": None}, "finish_reason": "length"}]}))
    outcome = one(made(), work())
    assert bodies(outcome) == [b""]
    assert facts(outcome)["finish_reason"] == "length"


# --- pictures ---


def b64(picture: bytes) -> Lie:
    return says({"data": [{"b64_json": base64.b64encode(picture).decode()}]})


def png(mode: str = "RGB", size: tuple[int, int] = (16, 16), color: Any = 0) -> bytes:
    body = io.BytesIO()
    Image.new(mode, size, color).save(body, "PNG")
    return body.getvalue()


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        (says({"data": []}), "service_bad_answer"),
        (says({"data": [{"url": "https://example.org/x.png"}]}), "service_bad_answer"),
        (says({"data": [{"b64_json": "@@@"}]}), "service_bad_answer"),
        (says({"data": [{"b64_json": "abc"}]}), "service_bad_answer"),
        (b64(b"no picture"), "service_bad_answer"),
        (b64(png(size=(64, 64), color=(1, 2, 3))[:70]), "service_bad_answer"),
        (b64(png("1", (9000, 9000))), "service_bad_answer"),
        (b64(b"GIF89a" + bytes(40)), "service_bad_answer"),
        (cut_off, "service_broke_off"),
    ],
)
def test_a_picture_that_is_none_is_no_output(
    server: RemoteServer, made: Callable[..., Remote], lie: Lie, code: str
) -> None:
    server.lies.append(lie)
    assert failure(one(made("text-to-image"), work("text-to-image"))) == (code, True)


def test_a_size_that_a_service_does_not_make_is_an_error(server: RemoteServer, made: Callable[..., Remote]) -> None:
    server.lies.append(b64(png(size=(32, 32))))
    outcome = one(made("text-to-image"), work("text-to-image", width=64, height=64))
    assert failure(outcome) == ("size_unsupported", False)


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_pictures_are_encoded_here_and_say_how_they_were_made(
    server: RemoteServer, made: Callable[..., Remote], form: str, tmp_path: Any
) -> None:
    outcome = one(made("text-to-image", image_seed=True), work("text-to-image", width=64, height=32, format=form))
    told = facts(outcome)
    assert told == {"width": 64, "height": 32, "format": form, "seed": 7, "revised_prompt": "a hat, nicely",
                    "prompt_tokens": 3, "completion_tokens": 64}  # fmt: skip
    [asked] = server.asked
    assert dict(asked.body) == {"model": "tiny", "prompt": "a hat", "n": 1, "size": "64x32", "seed": 7,
                                "response_format": "b64_json"}  # fmt: skip
    file = tmp_path / f"made.{form}"
    file.write_bytes(bodies(outcome)[0])
    with Image.open(file) as picture:
        assert (picture.format, picture.size) == (form.upper(), (64, 32))
    record = read_parameters(file)
    assert (record["model"], record["params"]["prompt"]) == ("lab:tiny", "a hat")


def test_adapters_are_nothing_for_a_service(server: RemoteServer, made: Callable[..., Remote]) -> None:
    outcome = one(made("text-to-image"), work("text-to-image", adapters=[{"model": "org/lora"}]))
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "param_unsupported"
    assert not server.asked


def test_what_openais_pictures_refuse_is_not_asked_for(server: RemoteServer, made: Callable[..., Remote]) -> None:
    one(made("text-to-image", model="gpt-image-1"), work("text-to-image"))
    [asked] = server.asked
    assert dict(asked.body) == {"model": "gpt-image-1", "prompt": "a hat", "n": 1}


def test_a_clear_picture_is_laid_on_white_where_a_file_knows_no_transparency(
    server: RemoteServer, made: Callable[..., Remote]
) -> None:
    server.lies.extend([b64(png("RGBA", color=(0, 0, 0, 0)))] * 2)
    jpeg = bodies(one(made("text-to-image"), work("text-to-image", format="jpeg")))[0]
    assert Image.open(io.BytesIO(jpeg)).getpixel((8, 8)) == (255, 255, 255)
    clear = bodies(one(made("text-to-image"), work("text-to-image")))[0]
    assert Image.open(io.BytesIO(clear)).getpixel((8, 8))[3] == 0


# --- speech ---


def test_speech_is_asked_for_without_loss_and_its_facts_are_those_of_the_file(
    server: RemoteServer, made: Callable[..., Remote], tmp_path: Any
) -> None:
    import av

    text = "A long winter is coming, and so are warm coats. " * 200
    outcome = one(made("text-to-speech"), work("text-to-speech", text=text, speaker="nova", speed=1.5, format="flac"))
    said = [asked.body for asked in server.asked]
    assert all(len(body["input"]) <= 4096 for body in said)
    assert " ".join(body["input"] for body in said).split() == text.split()
    assert {(body["voice"], body["speed"], body["response_format"]) for body in said} == {("nova", 1.5, "wav")}
    told = facts(outcome)
    file = tmp_path / "said.flac"
    file.write_bytes(bodies(outcome)[0])
    with av.open(str(file)) as container:
        stream = container.streams.audio[0]
        frames = sum(frame.samples for frame in container.decode(audio=0))
        assert (stream.rate, stream.channels) == (told["sample_rate"], told["channels"]) == (RATE, 1)
    assert frames / RATE == pytest.approx(told["seconds"], abs=0.01)
    assert (told["passages"], told["speaker"]) == (len(said), "nova")


def test_passages_that_come_late_stand_where_they_belong(server: RemoteServer, made: Callable[..., Remote]) -> None:
    text = " ".join(f"This is sentence number {number}." for number in range(500))
    first = bodies(one(made("text-to-speech", at_a_time=1), work("text-to-speech", text=text)))
    assert len(server.asked) >= 3

    def late(handler: Handler) -> None:
        time.sleep(0.4)
        ANSWERS["/audio/speech"](handler, server.asked[0].body)

    server.always = lambda body: late if body["input"].startswith("This is sentence number 0.") else None
    assert bodies(one(made("text-to-speech"), work("text-to-speech", text=text))) == first


@pytest.mark.parametrize(
    "lie",
    [
        says(b"no sound", Content_Type="audio/wav"),
        says(b"", Content_Type="audio/wav"),
        says(sound("x")[:30], Content_Type="audio/wav"),
        says({"error": "no"}),
        says(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", Content_Type="audio/wav"),
    ],
)
def test_a_sound_that_is_none_is_no_output(server: RemoteServer, made: Callable[..., Remote], lie: Lie) -> None:
    server.lies.append(lie)
    assert failure(one(made("text-to-speech"), work("text-to-speech"))) == ("service_bad_answer", True)


def test_a_head_that_was_written_before_the_length_was_known_does_no_harm(
    server: RemoteServer, made: Callable[..., Remote]
) -> None:
    wave = sound("New shoes.")
    endless = wave[:4] + b"\xff" * 4 + wave[8:40] + b"\xff" * 4 + wave[44:]
    server.lies.extend([says(wave, Content_Type="audio/wav"), says(endless, Content_Type="audio/wav")])
    known, unknown = (one(made("text-to-speech"), work("text-to-speech")) for _ in range(2))
    assert facts(known) == facts(unknown)
    assert bodies(known) == bodies(unknown)


def test_sounds_that_do_not_fit_together_are_no_output(server: RemoteServer, made: Callable[..., Remote]) -> None:
    server.lies.append(says(sound("x", rate=16_000), Content_Type="audio/wav"))
    outcome = one(made("text-to-speech", at_a_time=1), work("text-to-speech", text="A short one. " * 600))
    assert failure(outcome) == ("service_bad_answer", True)


# --- vectors ---


def vectors(*rows: Any, index: Callable[[int], int] = lambda n: n) -> Lie:
    return says({"data": [{"index": index(n), "embedding": row} for n, row in enumerate(rows)]})


@pytest.mark.parametrize(
    "lie",
    [
        vectors([1.0, 2.0]),
        vectors([1.0, 2.0], [1.0]),
        vectors([], []),
        vectors([1.0], [2.0], index=lambda n: 0),
        vectors([1.0], [2.0], index=lambda n: n + 1),
        vectors([1.0], ["x"]),
        vectors([1.0], [1e39]),
        says(b'{"data": [{"index": 0, "embedding": [NaN]}, {"index": 1, "embedding": [1]}]}'),
    ],
)
def test_vectors_that_are_none_are_no_output(server: RemoteServer, made: Callable[..., Remote], lie: Lie) -> None:
    server.lies.append(lie)
    outcome = one(made("feature-extraction"), work("feature-extraction", text=["a", "b"]))
    assert failure(outcome) == ("service_bad_answer", True)


def test_vectors_stand_in_the_order_of_their_texts(server: RemoteServer, made: Callable[..., Remote]) -> None:
    texts = [f"{number} pairs" for number in range(700)]
    outcome = one(made("feature-extraction"), work("feature-extraction", text=texts))
    array = np.load(io.BytesIO(bodies(outcome)[0]))
    assert (array.dtype, array.shape) == (np.float32, (700, 16))
    assert np.linalg.norm(array, axis=1) == pytest.approx(np.ones(700), abs=1e-5)
    assert facts(outcome) == {"texts": 700, "dimensions": 16, "normalized": True, "prompt_tokens": 1400,
                              "model": "tiny"}  # fmt: skip
    assert sorted(len(asked.body["input"]) for asked in server.asked) == [188, 256, 256]
    for number in (0, 255, 256, 699):
        alone = one(made("feature-extraction"), work("feature-extraction", text=texts[number]))
        assert np.load(io.BytesIO(bodies(alone)[0]))[0] == pytest.approx(array[number], abs=1e-6)
