"""How an earlier output was made, to make it again or something like it: `aigc run --from`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from producer.local_files import explained
from shared.errors import RequestError
from shared.ids import is_job_id
from shared.picture_records import read_parameters

if TYPE_CHECKING:
    from producer.gateway import Gateway
    from producer.records import JobRecord

RESULTS = "results.jsonl"
#: params that say how many outputs a job has; output i is made with seed + i
COUNTS = frozenset({"num_images", "num_return_sequences", "num_videos", "num_waveforms"})


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to ask for, to have the same again."""

    task: str
    model: str | None
    params: Mapping[str, Any]
    seed: int


def recipe_of(source: str, gateway: Callable[[], Gateway]) -> Recipe:
    """The recipe of a file that was made here or elsewhere, or of a job by its id.

    A picture carries its own; of any other file, the `results.jsonl` beside it knows. A file that is one of several
    outputs of its job gives the recipe of this one alone. Raises `RequestError` where nothing is known.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _of_file(path)
    if not is_job_id(source):
        raise RequestError(f"--from {source}: there is no such file, and it is not the id of a job")
    return _of_job(gateway().job(source))


def paths_in(job: Mapping[str, Any], own: Iterable[str]) -> list[str]:
    """Params that name a local path, but for the `own` ones: no record of ours has such, so somebody else wrote it."""
    from pydantic import ValidationError

    from shared.tasks import get_task
    from shared.tasks.inputs import references

    try:
        found = list(references(get_task(job["task"]).params.model_validate(job["params"])))
    except ValidationError:
        return []  # such a job is refused anyway
    return [each.place for each in found if not _is_stored(each.text) and each.place.partition(".")[0] not in {*own}]


def _is_stored(reference: str) -> bool:
    return reference.startswith(("https:", "s3:", "artifact:", "file:"))


def _of_file(path: Path) -> Recipe:
    try:
        record = read_parameters(path)
    except RequestError as silent:
        said = _line_of(path)
        if said is None:
            if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".gif"):
                raise
            raise RequestError(
                f"{path} does not say how it was made, and no {RESULTS} beside it names this file: "
                "give a picture that was made here, or the id of a job"
            ) from silent
        return said
    return _alone(_checked(path, record))


def _line_of(path: Path) -> Recipe | None:
    """What `results.jsonl` of the same folder says about the job of this file."""
    beside = path.with_name(RESULTS)
    if not beside.is_file():
        return None
    with explained(beside, doing="read"), beside.open(encoding="utf-8", errors="replace") as lines:
        for text in lines:
            if path.name not in text:
                continue
            try:
                line = json.loads(text)
                made = [a for a in line["artifacts"] if a["role"] == "output"]
                position = [a.get("path") for a in made].index(path.name)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue
            return _of_line(path, line, made, position)
    return None


def _of_line(path: Path, line: Mapping[str, Any], made: list[dict[str, Any]], position: int) -> Recipe:
    with explained(path, doing="read"), path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != made[position].get("sha256"):
            raise RequestError(f"{path} is not the file that {RESULTS} names: it was changed, or is of another batch")
    recipe = _checked(path, line)
    if len(made) == 1:
        return recipe
    own = made[position].get("seed")
    return _alone(replace(recipe, seed=own if type(own) is int else recipe.seed + position))


def _of_job(job: JobRecord) -> Recipe:
    return Recipe(job.task, job.model, dict(job.params), job.seed)


def _checked(path: Path, said: Mapping[str, Any]) -> Recipe:
    task, model, params, seed = (said.get(key) for key in ("task", "model", "params", "seed"))
    if (
        isinstance(task, str)
        and isinstance(model, str | None)
        and isinstance(params, dict)
        and isinstance(seed, int)
        and not isinstance(seed, bool)
    ):
        return Recipe(task, model or None, params, seed)
    raise RequestError(f"{path} does not say how it was made: what it carries is incomplete")


def _alone(recipe: Recipe) -> Recipe:
    """One output instead of several; the sequences of a beam search come together or not at all."""
    if recipe.params.get("num_beams", 1) != 1:
        return recipe
    return replace(recipe, params={name: value for name, value in recipe.params.items() if name not in COUNTS})
