"""`zero-shot-classification`: which of your own labels fit a text, by a model that knows what follows from what."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from shared.tasks import Task
from shared.tasks.texts import Text, TextsParams


class ZeroShotClassificationParams(TextsParams):
    """What a `zero-shot-classification` job may set."""

    candidate_labels: Annotated[
        list[Text], Field(min_length=1, max_length=200, description="the labels to choose from")
    ]
    hypothesis_template: Annotated[
        str, Field(max_length=1000, description="the sentence whose `{}` a label takes; the model judges if it follows")
    ] = "This example is {}."
    multi_label: Annotated[
        bool, Field(description="each label by itself (true), or scores that sum up to 1 over the labels (false)")
    ] = False

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.hypothesis_template.count("{}") != 1:
            raise ValueError(
                "`hypothesis_template` must hold `{}` once, where the label goes: such as 'It is about {}.'"
            )
        if len(set(self.candidate_labels)) < len(self.candidate_labels):
            raise ValueError("`candidate_labels` names a label twice: remove it")
        if len(self.candidate_labels) == 1 and not self.multi_label:
            raise ValueError("a single label always scores 1: give several, or set multi_label=true")
        return self

    @property
    def hypotheses(self) -> list[str]:
        """A sentence for each label."""
        return [self.hypothesis_template.replace("{}", label) for label in self.candidate_labels]


def _cost(params: ZeroShotClassificationParams) -> float:
    return 1e-3 + 1e-4 * params.tokens * len(params.candidate_labels)


TASK = Task(
    name="zero-shot-classification",
    summary="scores for labels of your own, without training",
    params=ZeroShotClassificationParams,
    needs_model=True,
    queue="gpu",
    cost=_cost,
    example={
        "task": "zero-shot-classification",
        "model": "facebook/bart-large-mnli",
        "params": {
            "text": "Two weeks late, and the box was open.",
            "candidate_labels": ["delivery", "quality", "price"],
            "hypothesis_template": "This review is about {}.",
        },
    },
)
