"""How far two sets of pictures are from each other, by the features that a network sees in them: FID and KID.

By torchmetrics. The distances are those of the papers; what they say depends on the network, so it is part of the
signature: only values of one network, and of about the same number of pictures, can be compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch

from shared.errors import JobFailed
from shared.tasks.evaluate import KidOptions
from workers.scores import Score, Tick, signed
from workers.scores.case import Case


class _AsTheyAre(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
    """For torchmetrics, which asks a network: the features that it is given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def fid(case: Case, tick: Tick) -> Iterator[Score]:
    """Fréchet distance (Heusel et al. 2017) between the features of outputs and references."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    outputs, references = _features(case)
    width = outputs.shape[1]
    metric = FrechetInceptionDistance(feature=_AsTheyAre(width)).set_dtype(torch.float64)
    found = _compared(metric, outputs, references)
    tick()
    fewest = min(len(outputs), len(references))
    note = (
        f"{fewest} pictures for {width} features: the covariances are singular and the distance is too large; use "
        f"more than {width}, and compare values of the same number only"
    )
    yield Score(
        "fid", float(found), "lower", "0 = alike", "torchmetrics", _signature(case, outputs, references), len(outputs),
        details={"references": len(references), "dimensions": width, "network": case.made["network"]},
        notes=(note,) if fewest <= width else (),
    )  # fmt: skip


def kid(case: Case, tick: Tick) -> Iterator[Score]:
    """Kernel distance (Bińkowski et al. 2018): the unbiased MMD² of a cubic kernel, the mean over drawn subsets."""
    from torchmetrics.image.kid import KernelInceptionDistance

    told: KidOptions = case.params.told("kid")
    outputs, references = _features(case)
    fewest = min(len(outputs), len(references))
    size = told.subset_size or min(1000, fewest)
    if size > fewest:
        raise JobFailed(
            "too_few_outputs",
            f"kid.subset_size={size} is more than there are pictures on one side ({fewest}): lower it",
        )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # that it keeps the features
        torch.manual_seed(case.seed)
        metric = KernelInceptionDistance(
            feature=_AsTheyAre(outputs.shape[1]), subsets=told.subsets, subset_size=size
        ).set_dtype(torch.float64)
        value, spread = _compared(metric, outputs, references)
    tick()
    details: dict[str, Any] = {
        "standard_deviation": float(spread), "references": len(references), "dimensions": outputs.shape[1],
        "network": case.made["network"],
    }  # fmt: skip
    signature = (
        f"{_signature(case, outputs, references)}|{signed(subsets=told.subsets, subset_size=size, seed=case.seed)}"
    )
    yield Score("kid", float(value), "lower", "0 = alike", "torchmetrics", signature, len(outputs), details=details)


def _features(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    outputs, references = (case.made[name].double() for name in ("features of outputs", "features of references"))
    if not (outputs.isfinite().all() and references.isfinite().all()):
        raise JobFailed("numerics", "the features are not finite: run the worker with AIGC_DTYPE=float32")
    return outputs, references


def _compared(metric: Any, outputs: torch.Tensor, references: torch.Tensor) -> Any:
    metric.update(references, real=True)
    metric.update(outputs, real=False)
    return metric.compute()


def _signature(case: Case, outputs: torch.Tensor, references: torch.Tensor) -> str:
    return f"network:{case.made['network']}|{signed(N=len(outputs), references=len(references))}"
