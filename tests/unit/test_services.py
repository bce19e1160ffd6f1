"""Remote services: how they are set, how jobs name them, where such jobs wait; and that no key is ever shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from producer.requests import Invalid, validate
from shared.errors import ModelRejected, RequestError
from shared.scheduling import Memory, Waiting
from shared.services import is_remote, remote_model
from shared.settings import Settings, load_settings
from workers.model_files import resolve
from workers.residency import Residency

SECRET = "sk-very-secret"


def said(**services: Any) -> str:
    return json.dumps(services)


def loaded(tmp_path: Path, **given: Any) -> Settings:
    return load_settings(_env_file=None, data_dir=tmp_path, **given)


# --- settings ---


def test_openai_is_known_without_being_configured(tmp_path: Path) -> None:
    [service] = loaded(tmp_path).remote_services.values()
    assert (service.name, service.url, service.key, service.tokens_name) == (
        "openai", "https://api.openai.com/v1", None, "max_completion_tokens",
    )  # fmt: skip


def test_services_come_from_one_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = {"url": "http://gpu1:8000/v1/", "key": SECRET, "requests_per_minute": 30, "at_a_time": 64}
    monkeypatch.setenv("AIGC_SERVICES", said(lab=lab, other={"url": "https://o.example/v1"}))
    services = loaded(tmp_path).remote_services
    assert set(services) == {"openai", "lab", "other"}
    made = services["lab"]
    assert (made.url, made.requests_per_minute, made.at_a_time) == ("http://gpu1:8000/v1", 30, 64)
    assert made.tokens_name == "max_tokens"
    assert made.key is not None
    assert made.key.get_secret_value() == SECRET


@pytest.mark.parametrize(
    ("services", "wrong"),
    [
        (f"{{'lab': {SECRET}}}", "is not JSON (line 1, column 2)"),
        (f'["{SECRET}"]', "must be a JSON object"),
        (said(lab=SECRET), "must be a JSON object"),
        (said(lab={"key": SECRET}), "lab: url: Field required"),
        (said(lab={"url": "gpu1:8000", "key": SECRET}), "lab: url: must be of the form https://host/v1"),
        (said(lab={"url": f"http://u:{SECRET}@h/v1"}), "lab: url: must be of the form https://host/v1"),
        (said(lab={"url": "http://h/v1", "key": f"{SECRET} \n"}), "lab: key: the key holds blanks"),
        (said(lab={"url": "http://h/v1", "rpm": SECRET}), "lab: rpm: Extra inputs are not permitted"),
        (said(lab={"url": "http://h/v1", "at_a_time": 0, "key": SECRET}), "lab: at_a_time: Input should be greater"),
        (said(file={"url": "http://h/v1", "key": SECRET}), "'file' cannot name a service"),
        (said(Lab={"url": "http://h/v1", "key": SECRET}), "'Lab' cannot name a service"),
    ],
)
def test_what_is_wrong_with_services_is_said_without_showing_a_key(tmp_path: Path, services: str, wrong: str) -> None:
    with pytest.raises(RequestError) as error:
        loaded(tmp_path, services=services)
    assert "AIGC_SERVICES" in str(error.value)
    assert wrong in str(error.value)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"openai_base_url": "api.openai.com"}, "AIGC_OPENAI_BASE_URL: "),
        ({"openai_api_key": f"{SECRET}\n"}, "AIGC_OPENAI_API_KEY: "),
        ({"openai_api_key": SECRET, "services": said(openai={"url": "http://h/v1"})}, "set either"),
        ({"openai_base_url": "http://h/v1", "services": said(openai={"url": "http://h/v1"})}, "set either"),
    ],
)
def test_openai_is_set_in_one_way_and_rightly(tmp_path: Path, given: dict[str, str], wrong: str) -> None:
    with pytest.raises(RequestError) as error:
        loaded(tmp_path, **given)
    assert wrong in str(error.value)
    assert SECRET not in str(error.value)


def test_a_key_is_in_no_text_that_settings_make(tmp_path: Path) -> None:
    settings = loaded(tmp_path, openai_api_key=SECRET, services=said(lab={"url": "http://h/v1", "key": SECRET}))
    files = resolve("lab:m", settings=settings)
    for shown in (repr(settings), str(settings.remote_services), settings.model_dump_json(), repr(files), str(files)):
        assert SECRET not in shown


# --- references ---


@pytest.mark.parametrize(
    ("reference", "means"),
    [
        ("openai:gpt-4o-mini", ("openai", "gpt-4o-mini")),
        ("openrouter:meta-llama/llama-3.3-70b:free", ("openrouter", "meta-llama/llama-3.3-70b:free")),
        ("lab-2:org/name@rev", ("lab-2", "org/name@rev")),
        ("file:x.safetensors", None),
        ("s3:bucket", None),
        ("https://example.org/x", None),
        ("openai:", None),
        ("openai: gpt", None),
        ("OpenAI:gpt", None),
        ("gpt2", None),
        ("org/name@main", None),
        ("./a:b", None),
        ("starter/ads-gpt2", None),
    ],
)
def test_what_a_reference_means(reference: str, means: tuple[str, str] | None) -> None:
    assert remote_model(reference) == means
    assert is_remote(reference) is (means is not None)


def test_a_worker_that_does_not_know_the_service_says_which_it_knows(tmp_path: Path) -> None:
    settings = loaded(tmp_path, services=said(lab={"url": "http://h/v1"}))
    with pytest.raises(ModelRejected, match=r"service_unknown: opnai:gpt.*it knows lab:…, openai:…"):
        resolve("opnai:gpt", settings=settings)


def test_openai_without_a_key_is_an_operators_affair(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match=r"service_key_missing: .*AIGC_OPENAI_API_KEY"):
        resolve("openai:gpt", settings=loaded(tmp_path))
    elsewhere = loaded(tmp_path, openai_base_url="http://localhost:8000/v1")
    assert resolve("openai:gpt", settings=elsewhere).revision == "http://localhost:8000/v1"


def test_the_operators_list_of_models_holds_for_remote_ones(tmp_path: Path) -> None:
    allowed = loaded(tmp_path, openai_api_key=SECRET, models_allowed="org/*,openai:gpt-4o*")
    assert resolve("openai:gpt-4o-mini", settings=allowed).kind == "openai"
    with pytest.raises(ModelRejected, match="model_not_allowed"):
        resolve("openai:o9", settings=allowed)


# --- where their jobs wait ---


def job(**more: Any) -> dict[str, Any]:
    return {"task": "text-generation", "model": "openai:gpt-4o-mini", "params": {"prompt": "a"}, **more}


@pytest.mark.parametrize(
    ("task", "params"),
    [
        ("text-generation", {"prompt": "a"}),
        ("text-to-image", {"prompt": "a"}),
        ("feature-extraction", {"text": "a"}),
        ("text-to-speech", {"text": "a"}),
    ],
)
def test_a_remote_job_waits_where_no_gpu_is_held(task: str, params: dict[str, Any]) -> None:
    for model, queue in (("lab:m", "cpu"), ("org/m", "gpu")):
        assert validate(1, {"task": task, "model": model, "params": params}).lane.queue == queue
    assert validate(1, {"task": task, "model": "lab:m", "params": params, "queue": "remote"}).lane.queue == "remote"


def test_the_example_can_be_submitted_as_it_stands() -> None:
    lines = (Path(__file__).parents[2] / "examples" / "remote.jsonl").read_text().splitlines()
    valid = [validate(number, json.loads(line)) for number, line in enumerate(lines, 1)]
    assert {job.lane.queue for job in valid} == {"cpu"}
    assert {job.lane.task for job in valid} == {
        "text-generation", "text-to-image", "text-to-speech", "feature-extraction",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"queue": "gpu"}, "line 1: queue: openai:gpt-4o-mini computes nothing here and may hold no GPU"),
        ({"cache": True, "seed": 1}, "line 1: cache: is not for openai:gpt-4o-mini"),
        ({"model": "openai:"}, "line 1: model: references like openai:… are not supported"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_submit(more: dict[str, Any], problem: str) -> None:
    with pytest.raises(Invalid) as error:
        validate(1, job(**more))
    [found] = error.value.problems
    assert str(found).startswith(problem)


# --- in a worker's memory ---


def test_a_remote_model_takes_the_place_of_none(tmp_path: Path) -> None:
    settings = loaded(tmp_path, services=said(lab={"url": "http://h/v1"}), resident_models=1)

    def no_device() -> Any:
        raise AssertionError("nothing is loaded, so nobody asks where it computes")

    ours = Residency(settings, no_device)
    first = ours.get("text-generation", "lab:a")
    for number in range(200):
        ours.get("text-generation", f"lab:m{number}")
    assert ours.models == set()
    assert len(ours._remote) <= 64
    assert first.files is not None
    assert first.files.service is not None
    with pytest.raises(ModelRejected, match="lab:a cannot do inpainting: no remote service is asked for that"):
        ours.get("inpainting", "lab:a")


def test_a_lane_with_a_remote_model_costs_no_load() -> None:
    lane = Waiting(1, "cpu", "text-generation", "lab:a", 0, since=0.0, ready=1, tenants={"t": 0.0}, holders=3)
    assert Memory().has(lane)
    assert Memory().change_s(lane) == 0
