"""Whoever waits for a file hears that the time is up."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from shared.settings import Settings
from workers import inputs
from workers.inputs import InputFile, Inputs
from workers.session import Stopping


@pytest.mark.timeout(30)
def test_a_worker_that_is_to_stop_waits_for_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    there, looks = threading.Event(), [0]

    def slow(self: Inputs, tenant_id: str, reference: Any, folder: Any) -> InputFile:
        there.wait()
        return InputFile(folder / "content", "image", "image/png", {})

    def check() -> None:
        looks[0] += 1
        if looks[0] == 3:
            raise Stopping

    monkeypatch.setattr(Inputs, "_fetch", slow)
    monkeypatch.setattr(inputs, "LOOK_S", 0.01)
    settings: Any = Settings(_env_file=None, data_dir=tmp_path)
    made = Inputs(settings, db=None, depot=None)  # type: ignore[arg-type] # nothing is fetched
    params = '{"image": "https://example.org/a.png"}'
    job: Any = SimpleNamespace(id="j1", task="image-to-text", params_json=params, tenant_id="t")
    made.begin([job])
    with pytest.raises(Stopping):
        made.of("j1", check)
    there.set()
    assert list(made.of("j1", check)) == ["image"]
    made.close()
