"""A worker goes by `models.toml` as it is now, and by what it said before while it is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.errors import RequestError
from shared.settings import Settings
from workers import operator_models
from workers.operator_models import OperatorModels

ONE = '[models.one]\nmodel = "org/one"\ntenants = ["studio"]\nqueue = "big"\n'


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_models, "LOOK_S", 0.0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(_env_file=None, data_dir=tmp_path)


def write(settings: Settings, text: str, *, moment: int) -> None:
    settings.models_path.write_text(text)
    os.utime(settings.models_path, ns=(moment, moment))


def test_a_change_is_seen_without_a_new_worker(settings: Settings) -> None:
    models = OperatorModels(settings)
    assert models().models == {}
    assert models.told() is None
    write(settings, ONE, moment=1)
    assert list(models().models) == ["one"]
    assert models.told() == {"one": {"queue": "big", "tenants": ["studio"]}}
    write(settings, '[models.two]\nmodel = "org/two"\n', moment=2)
    assert models.get("one") is None
    assert models.told() == {"two": {"queue": None, "tenants": None}}
    settings.models_path.unlink()
    assert models().models == {}


def test_the_same_size_at_another_moment_is_a_change(settings: Settings) -> None:
    write(settings, ONE, moment=1)
    models = OperatorModels(settings)
    write(settings, ONE.replace("org/one", "org/two"), moment=2)
    assert models().models["one"].model == "org/two"


def test_a_file_that_becomes_wrong_changes_nothing_and_says_so(settings: Settings) -> None:
    write(settings, ONE, moment=1)
    models = OperatorModels(settings)
    write(settings, ONE.replace("model =", "modle ="), moment=2)
    assert list(models().models) == ["one"]
    assert models.trouble is not None
    assert f"{settings.models_path}, line 2: one.modle: unknown name; did you mean 'model'?" in models.trouble
    write(settings, ONE.replace("one", "two"), moment=3)
    assert list(models().models) == ["two"]
    assert models.trouble is None


def test_a_worker_does_not_begin_with_a_wrong_file(settings: Settings) -> None:
    write(settings, "[models.x]\n", moment=1)
    with pytest.raises(RequestError, match=r"line 1: x\.model: is missing"):
        OperatorModels(settings)


def test_jobs_of_tenants_who_may_not_fail_for_good(settings: Settings) -> None:
    write(settings, ONE, moment=1)
    models = OperatorModels(settings)
    assert models.refused("one", "studio") is None
    assert models.refused("org/else", "press") is None
    for ref in ("one", "org/one", "org/one@main"):
        error = models.refused(ref, "press")
        assert error is not None
        assert (error.code, error.retryable) == ("model_not_allowed", False)


def test_many_aliases_do_not_fill_the_word_that_is_left_with_each_lease(settings: Settings) -> None:
    write(settings, "".join(f'[models.m{n}]\nmodel = "org/m"\n' for n in range(300)), moment=1)
    assert len(OperatorModels(settings).told() or {}) == operator_models.MOST_TOLD
