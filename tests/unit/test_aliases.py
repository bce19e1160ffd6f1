"""Where jobs are submitted: the queue of a model that the operator has named, and an early error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from producer.aliases import Aliases, ToldAlias, told_aliases
from producer.requests import Invalid, validate
from producer.spool import fill_spool
from shared.errors import InvalidJobs, RequestError
from shared.jobs import Lane
from shared.settings import Settings

FILE = """
[models.ours]
model = "org/name"
queue = "big"
tenants = ["studio"]

[models.plain]
model = "org/plain"
"""


def job(model: str, **more: Any) -> dict[str, Any]:
    return {"task": "text-generation", "model": model, "params": {"prompt": "a"}, **more}


def settled(aliases: Aliases, said: dict[str, Any]) -> Lane:
    return aliases(validate(1, said), said).lane


def nobody() -> Mapping[str, ToldAlias]:
    pytest.fail("the workers were asked")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(_env_file=None, data_dir=tmp_path, tenant="studio")


@pytest.fixture
def with_file(settings: Settings) -> Settings:
    settings.models_path.write_text(FILE)
    return settings


def test_a_job_waits_where_its_model_does_unless_it_says_otherwise(with_file: Settings) -> None:
    aliases = Aliases(with_file, nobody)
    assert settled(aliases, job("ours")) == Lane("big", "text-generation", "ours")
    assert settled(aliases, job("ours", queue="mine")) == Lane("mine", "text-generation", "ours")
    assert settled(aliases, job("ours")).queue == "big"
    assert settled(aliases, job("plain")).queue == "gpu"
    assert settled(aliases, job("org/else")).queue == "gpu"


def test_who_may_not_use_a_model_hears_it_at_once(with_file: Settings) -> None:
    press = with_file.model_copy(update={"tenant": "press"})
    for model in ("ours", "org/name@main"):
        with pytest.raises(Invalid, match=f"line 1: model: tenant 'press' may not use '{model}'"):
            settled(Aliases(press, nobody), job(model))
    assert settled(Aliases(press, nobody), job("plain")).model == "plain"


def test_what_is_named_beside_a_model_is_kept_like_one(settings: Settings) -> None:
    settings.models_path.write_text(FILE + '[models.lora]\nmodel = "org/lora"\nrole = "lora"\ntenants = ["studio"]\n')

    def said(name: str, model: str = "plain") -> dict[str, Any]:
        return {"task": "text-to-image", "model": model, "params": {"prompt": "a", "adapters": [{"model": name}]}}

    aliases, press = Aliases(settings, nobody), Aliases(settings.model_copy(update={"tenant": "press"}), nobody)
    for name in ("lora", "org/lora", "org/lora/x.safetensors@main"):
        assert settled(aliases, said(name)).queue == "gpu"
        with pytest.raises(Invalid, match=f"line 1: params: tenant 'press' may not use '{name}'"):
            settled(press, said(name))
    assert settled(press, said("org/else")).queue == "gpu"
    for name, why in (("typo", "no alias 'typo'"), ("plain", "'plain' is a model, and none beside another")):
        with pytest.raises(Invalid, match=why):
            settled(aliases, said(name))
    with pytest.raises(Invalid, match="line 1: model: 'lora' is a lora"):
        settled(aliases, job("lora"))
    elsewhere = settings.model_copy(
        update={"models_file": None, "data_dir": settings.data_dir / "x", "tenant": "press"}
    )
    told = {"lora": ToldAlias(None, frozenset({"studio"}))}
    with pytest.raises(Invalid, match="params: tenant 'press' may not use 'lora'"):
        settled(Aliases(elsewhere, lambda: told), said("lora"))


def test_without_a_file_the_workers_are_asked_once_and_only_for_models(settings: Settings) -> None:
    asked = []

    def told() -> Mapping[str, ToldAlias]:
        asked.append(1)
        return {"ours": ToldAlias("big", frozenset({"studio"})), "theirs": ToldAlias(None, frozenset({"press"}))}

    aliases = Aliases(settings, told)
    echo = {"task": "echo", "params": {"message": 1}}
    assert settled(aliases, echo).queue == "cpu"
    assert asked == []
    assert settled(aliases, job("ours")).queue == "big"
    assert settled(aliases, job("org/else")).queue == "gpu"
    with pytest.raises(Invalid, match=r"tenant 'studio' may not use 'theirs' \(models\.toml of the workers\)"):
        settled(aliases, job("theirs"))
    assert asked == [1]


def test_what_workers_tell_is_taken_together() -> None:
    told = told_aliases([
        {"aliases": {"a": {"queue": "big", "tenants": ["x"]}, "b": {"queue": "one", "tenants": ["x"]}}},
        {"aliases": {"a": {"queue": "big", "tenants": ["y"]}, "b": {"queue": "two", "tenants": None}}},
        {}, {"aliases": None},
    ])  # fmt: skip
    assert told == {"a": ToldAlias("big", frozenset("xy")), "b": ToldAlias(None, None)}


def test_a_whole_submission_goes_by_it(with_file: Settings, tmp_path: Path) -> None:
    items = list(enumerate([job("ours"), job("plain"), job("ours", queue="own"), job("ours")], 1))
    with fill_spool(items, tmp_path / "spool", aliases=Aliases(with_file, nobody)) as spool:
        assert spool.lanes == [
            Lane("big", "text-generation", "ours"), Lane("gpu", "text-generation", "plain"),
            Lane("own", "text-generation", "ours"),
        ]  # fmt: skip
        assert spool.ready == {(0, 0): 2, (1, 0): 1, (2, 0): 1}
    press = Aliases(with_file.model_copy(update={"tenant": "press"}), nobody)
    with pytest.raises(InvalidJobs) as error:
        fill_spool(items, tmp_path / "spool", aliases=press)
    assert [problem.line for problem in error.value.problems] == [1, 3, 4]


def test_a_wrong_file_is_said_before_anything_is_read(settings: Settings) -> None:
    settings.models_path.write_text("[models.x]\n")
    with pytest.raises(RequestError, match=r"models\.toml, line 1: x\.model: is missing"):
        Aliases(settings, nobody)
