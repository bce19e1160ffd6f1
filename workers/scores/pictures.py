"""Pictures against references of the same size: PSNR and SSIM, by scikit-image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from shared.errors import JobFailed
from shared.tasks.evaluate import PictureOptions
from workers.generators.input_pictures import open_picture
from workers.inputs.looks import InputFile
from workers.scores import Score, Tick, mean, signed
from workers.scores.case import Case

#: side of the Gaussian window of SSIM
WINDOW = 11

Pixels = npt.NDArray[Any]


def psnr(case: Case, tick: Tick) -> Iterator[Score]:
    """Peak signal-to-noise ratio of 8 bits: the mean over pictures, in dB; of equal ones it is infinite."""
    from skimage.metrics import peak_signal_noise_ratio

    told: PictureOptions = case.params.told("psnr")
    items: list[float | None] = []
    for one, other in _pairs(case, told, least=1):
        items.append(None if np.array_equal(one, other) else float(peak_signal_noise_ratio(other, one, data_range=255)))
        tick()
    equal = items.count(None)
    notes = [f"{equal} outputs equal their reference: their PSNR is infinite, and they are left out"] if equal else []
    yield Score(
        "psnr", mean(items), "higher", "dB", "scikit-image", _signature(told), len(items) - equal, items,
        {"equal": equal}, notes,
    )  # fmt: skip


def ssim(case: Case, tick: Tick) -> Iterator[Score]:
    """Structural similarity (Wang et al. 2004): a Gaussian window of 11, sigma 1.5; the mean over pictures."""
    from skimage.metrics import structural_similarity

    told: PictureOptions = case.params.told("ssim")
    items = []
    for one, other in _pairs(case, told, least=WINDOW):
        items.append(
            float(
                structural_similarity(
                    other, one, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                    channel_axis=-1 if one.ndim == 3 else None,
                )
            )
        )  # fmt: skip
        tick()
    signature = f"{_signature(told)}|{signed(window=WINDOW, sigma=1.5, K1=0.01, K2=0.03)}"
    yield Score("ssim", mean(items), "higher", "-1–1", "scikit-image", signature, len(items), items)


def opened(case: Case, number: int, output: InputFile, reference: InputFile) -> tuple[Image.Image, Image.Image]:
    """Both pictures, turned as they were held. Raises `JobFailed` with `sizes_differ`."""
    one, other = open_picture(output.path), open_picture(reference.path)
    if one.size != other.size:
        raise JobFailed(
            "sizes_differ",
            f"{case.outputs.call(number)} has {one.width}x{one.height} pixels and {case.compared.call(number)} "
            f"{other.width}x{other.height}: they are compared pixel by pixel, so resize one of them first",
        )
    return one, other


def _pairs(case: Case, told: PictureOptions, *, least: int) -> Iterator[tuple[Pixels, Pixels]]:
    for number, output, reference in case.pairs():
        one, other = (_pixels(image, told) for image in opened(case, number, output, reference))
        if min(one.shape[:2]) < least:
            raise JobFailed(
                "picture_too_small",
                f"{case.outputs.call(number)} has {one.shape[1]}x{one.shape[0]} pixels without its border, and at "
                f"least {least}x{least} are needed",
            )
        yield one, other


def _pixels(image: Image.Image, told: PictureOptions) -> Pixels:
    shades = np.asarray(image)
    if told.channels == "luma":
        from skimage.color import rgb2ycbcr

        shades = rgb2ycbcr(shades)[..., 0]
    border = told.crop_border
    return shades[border : shades.shape[0] - border, border : shades.shape[1] - border] if border else shades


def _signature(told: PictureOptions) -> str:
    channels = "Y of BT.601 (16–235)" if told.channels == "luma" else "RGB"
    return signed(channels=channels, crop_border=told.crop_border, range=255, over="mean_of_pictures")
