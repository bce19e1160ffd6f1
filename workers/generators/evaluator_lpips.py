"""`evaluate` with VGG-16: LPIPS (Zhang et al. 2018), how different two pictures look.

The network is the job's model, in safetensors, as timm saves it (`timm/vgg16.tv_in1k`: the weights of torchvision). The
weights of its layers in the distance (v0.1) come with torchmetrics.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from shared.errors import JobFailed, ModelRejected
from workers.generators import Device, ModelFiles
from workers.generators.evaluator import Evaluator
from workers.generators.pretrained import Pretrained, dtype_on
from workers.scores import Score, Steps, Tick, mean, signed
from workers.scores.case import Case
from workers.scores.pictures import opened

#: convolutions of each block; all are followed by what cuts negative numbers off, and a block by a pooling
_BLOCKS = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))
#: sides are halved four times
LEAST = 16
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def lpips(case: Case, tick: Tick) -> Iterator[Score]:
    """The mean distance."""
    items: list[float] = case.made["distances"]
    for _ in items:
        tick()
    signature = f"network:{case.made['network']}|{signed(net='vgg', version='0.1', over='mean_of_pictures')}"
    yield Score("lpips", mean(items), "lower", "0 = alike", "torchmetrics", signature, len(items), items)


class Vgg(nn.Module):  # type: ignore[misc]  # torch has no types here
    """The convolutions of VGG-16, and how much each of their channels counts."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        #: the layers behind which differences are taken
        self.ends: list[int] = []
        for block in _BLOCKS:
            layers += [nn.MaxPool2d(2)] if layers else []
            for wide, wider in pairwise(block):
                layers += [nn.Conv2d(wide, wider, 3, padding=1), nn.ReLU()]
            self.ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.weights = nn.ParameterList(torch.zeros(1, block[-1], 1, 1) for block in _BLOCKS)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.weights[0].device

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Distances of pictures in -1..1, as (pictures, 3, height, width)."""
        shift, scale = (torch.tensor(each, device=one.device).view(1, 3, 1, 1) for each in (_SHIFT, _SCALE))
        both = torch.cat([one, other]).sub(shift).div(scale).to(self.weights[0].dtype)
        total = torch.zeros(len(one), device=one.device)
        for number, layer in enumerate(self.features):
            both = layer(both)
            if number in self.ends:
                unit = both.float() / (both.float().norm(dim=1, keepdim=True) + 1e-10)
                apart = (unit[: len(one)] - unit[len(one) :]) ** 2
                total += (apart * self.weights[self.ends.index(number)].float()).sum(1).mean((1, 2))
        return total


class LpipsEvaluator(Evaluator, Pretrained):
    """Looks at pairs of pictures."""

    what = "VGG-16"
    own = {"lpips": lpips}  # noqa: RUF012 - a table

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether timm has saved it as VGG-16."""
        return files is not None and files.config.get("architecture") == "vgg16"

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Raises `ModelRejected` for a model of another kind, or one that cannot be read."""
        if files is None:
            raise ModelRejected("model_not_found", "lpips needs VGG-16: there is no distance without")
        if not cls.serves(files):
            raise ModelRejected("model_wrong_task", f"{files.ref} is no VGG-16 as timm saves it")
        model = Vgg()
        try:
            saved = load_file(files.folder / "model.safetensors")
            model.features.load_state_dict({name: saved[f"features.{name}"] for name in model.features.state_dict()})
        except (OSError, SafetensorError) as error:
            raise ModelRejected("model_not_a_model", f"{files.ref} cannot be loaded: {error}") from error
        except (KeyError, RuntimeError) as error:
            raise ModelRejected("model_wrong_task", f"{files.ref} lacks weights of VGG-16: {error}") from error
        for weight, learnt in zip(model.weights, _learnt(), strict=True):
            weight.data = learnt
        return cls(files, model.to(device.name, dtype_on(device)).eval().requires_grad_(requires_grad=False))

    def __init__(self, files: ModelFiles, model: Any) -> None:
        Evaluator.__init__(self, files)
        Pretrained.__init__(self, model)

    def _steps(self, case: Case) -> int:
        return len(case.outputs) if "lpips" in case.params.metrics else 0

    def _prepare(self, case: Case, steps: Steps) -> None:
        if "lpips" not in case.params.metrics:
            return
        distances = []
        for number, output, reference in case.pairs():
            pair = opened(case, number, output, reference)
            if min(pair[0].size) < LEAST:
                message = f"{case.outputs.call(number)} is too small: at least {LEAST}x{LEAST} pixels are needed"
                raise JobFailed("picture_too_small", message)
            with torch.inference_mode():
                distances.append(float(self._model(*map(self._tensor, pair))))
            steps()
        case.made["distances"] = distances
        case.made["network"] = self._network

    def _tensor(self, image: Image.Image) -> torch.Tensor:
        shades = np.array(image, dtype=np.float32)
        return torch.from_numpy(shades).permute(2, 0, 1)[None].to(self._model.device) / 127.5 - 1


def _learnt() -> list[torch.Tensor]:
    """The weights of the layers, out of the library's own folder."""
    inside = resources.files("torchmetrics") / "functional" / "image" / "lpips_models" / "vgg.pth"
    with resources.as_file(inside) as path:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    return [saved[f"lin{number}.model.1.weight"] for number in range(len(_BLOCKS))]
