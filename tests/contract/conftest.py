"""Models are built once a run, and loaded once a module."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from contract import CPU, files_of

from workers.generators import Generator


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "tiny"


@pytest.fixture(scope="module")
def load(root: Path) -> Iterator[Callable[..., Generator]]:
    loaded: dict[object, Generator] = {}
    threads: list[int] = []

    def load(generator: type[Generator], model: Callable[[Path], Path] | None) -> Generator:
        key = (generator, model)
        if key not in loaded:
            loaded[key] = generator.load(files_of(model, root) if model else None, CPU)
        if model is not None and not threads:
            import torch

            threads.append(torch.get_num_threads())
            torch.set_num_threads(1)  # to models so small a second thread is only in the way
        return loaded[key]

    yield load
    for generator in loaded.values():
        generator.unload()
    if threads:
        sys.modules["torch"].set_num_threads(threads[0])
