"""What an evaluation compares: the outputs of a job, their references and prompts, read and counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.errors import JobFailed
from shared.tasks.evaluate import METRICS, EvaluateParams
from shared.tasks.material import MOST_ITEMS, Material
from workers.generators import Work
from workers.inputs.looks import InputFile


@dataclass(frozen=True, slots=True)
class Side:
    """Outputs, references or prompts: texts or files."""

    #: `outputs`, `references` or `prompts`
    name: str
    #: as the job names them; empty for texts that stand in it
    labels: Sequence[str]
    #: one text for each, or several where several are references for one output
    texts: Sequence[Sequence[str]] = ()
    files: Sequence[InputFile] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def call(self, index: int) -> str:
        """One of them, for messages."""
        return self.labels[index] or f"{self.name} {index + 1}"


@dataclass
class Case:
    """Everything that a measure may look at."""

    params: EvaluateParams
    seed: int
    outputs: Side
    references: Side | None
    prompts: Side | None
    #: what a model made of them
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        """The outputs, where they are texts, or what was heard in them."""
        return [text for [text] in self.made.get("texts") or self.outputs.texts]

    @property
    def targets(self) -> Sequence[Sequence[str]]:
        """The references, where they are texts: one or several for each output."""
        return self.compared.texts

    @property
    def compared(self) -> Side:
        """The references; the params have seen to it that there are some where they are needed."""
        if self.references is None:
            raise JobFailed("references_missing", "there is nothing to compare with: give `references`")
        return self.references

    def pairs(self) -> Iterator[tuple[int, InputFile, InputFile]]:
        """Number, output and reference of files that are compared one by one."""
        both = zip(self.outputs.files, self.compared.files, strict=True)
        return ((number, output, reference) for number, (output, reference) in enumerate(both))


def case_of(job: Work) -> Case:
    """Read what a job compares.

    Raises `JobFailed`: `counts_differ`, `too_few_outputs`, `too_many_outputs`, `reference_empty`.
    """
    params: EvaluateParams = job.params
    sides = {
        name: None if material is None else _side(job, name, material)
        for name, material in (("references", params.references), ("prompts", params.prompts))
    }
    case = Case(params, job.seed, _side(job, "outputs", params.outputs), sides["references"], sides["prompts"])
    _require_counts(case)
    for side in (case.references, case.prompts):
        for number, texts in enumerate(() if side is None else side.texts):
            if side is not None and not all(text.strip() for text in texts):
                message = f"{side.call(number)} is empty: there is nothing to compare with"
                raise JobFailed("reference_empty", message)
    return case


def _side(job: Work, name: str, material: Material) -> Side:
    if material.texts is not None:
        texts = [[text] if isinstance(text, str) else text for text in material.texts]
        return Side(name, [""] * len(texts), texts)
    if material.lines is not None:
        lines = _read(job.inputs[f"{name}.lines"].path).removesuffix("\n").split("\n")
        if len(lines) > MOST_ITEMS:
            raise JobFailed("too_many_outputs", f"{material.lines} has {len(lines):,} lines; at most {MOST_ITEMS:,}")
        return Side(name, [""] * len(lines), [[line] for line in lines])
    labels: list[str] = getattr(material, material.form)
    files = [job.inputs[f"{name}.{material.form}.{number}"] for number in range(len(labels))]
    if material.text_files is not None:
        return Side(name, labels, [[_read(file.path).rstrip("\r\n")] for file in files])
    return Side(name, labels, files=files)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def _require_counts(case: Case) -> None:
    for name in case.params.metrics:
        least = METRICS[name].least
        for side in (case.outputs, case.references):
            if side is not None and len(side) < least:
                message = f"{name} needs at least {least} {side.name}, and there are {len(side)}: give more"
                raise JobFailed("too_few_outputs", message)
    wanted = any(METRICS[name].paired for name in case.params.metrics if METRICS[name].references)
    for side in (case.references if wanted else None, case.prompts):
        if side is not None and len(side) != len(case.outputs):
            raise JobFailed(
                "counts_differ",
                f"there are {len(case.outputs)} outputs and {len(side)} {side.name}: each output needs its own, "
                "in the same order",
            )
