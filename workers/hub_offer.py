"""What the hub would send of a model: looked at before it is fetched, so that nothing is fetched in vain."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from shared.errors import JobFailed
from shared.sizes import gigabytes
from workers.weights import Tensor, Weights, loaded_names, part_of


@dataclass(frozen=True)
class Offer:
    """The files of one model that loading needs, at one commit."""

    #: as the job names it
    ref: str
    repo: str
    commit: str
    #: `diffusers` or `transformers`
    kind: str
    #: name → bytes, as far as the hub says
    sizes: Mapping[str, int]

    @cached_property
    def missing(self) -> list[str]:
        """Names of the files that are not in the cache."""
        from huggingface_hub import try_to_load_from_cache

        def there(name: str) -> bool:
            return isinstance(try_to_load_from_cache(self.repo, name, revision=self.commit), str)

        return [name for name in self.sizes if not there(name)]

    @property
    def weights_bytes(self) -> int:
        """Of the weights, as they are stored."""
        return sum(self.sizes[name] for name in self._weights_names)

    @cached_property
    def weights(self) -> Mapping[str, Weights]:
        """What its weights hold, by part: a few kilobytes of each file are fetched. Raises what the hub's client does.

        A file that cannot be understood counts as it is stored.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import SafetensorsParsingError

        api, parts = HfApi(), dict[str, Weights]()
        for name in self._weights_names:
            try:
                header = api.parse_safetensors_file_metadata(self.repo, name, revision=self.commit)
            except SafetensorsParsingError:
                found = Weights(rest=self.sizes[name])
            else:
                found = Weights.of(
                    Tensor(key, str(about.dtype), tuple(about.shape), about.data_offsets[1] - about.data_offsets[0])
                    for key, about in header.tensors.items()
                )
            parts[part_of(name)] = parts.get(part_of(name), Weights()) + found
        return parts

    @property
    def _weights_names(self) -> Iterable[str]:
        return loaded_names([name for name in self.sizes if name.endswith(".safetensors")])

    def require_disk(self) -> None:
        """Raises `JobFailed` with `model_disk_full`, retryable, if what is missing does not fit onto the disk."""
        from huggingface_hub import constants

        wanted = sum(self.sizes[name] for name in self.missing)
        folder = Path(constants.HF_HUB_CACHE).expanduser().absolute()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        if wanted > free:
            raise disk_full(self.ref, folder, wanted, free)


def disk_full(ref: str, folder: Path, wanted: int, free: int) -> JobFailed:
    """How jobs wait whose model does not fit onto the disk."""
    return JobFailed(
        "model_disk_full",
        f"{ref}: {gigabytes(wanted)} have to be fetched, and {gigabytes(free)} are free in {folder} (HF_HOME)",
        retryable=True,
    )
