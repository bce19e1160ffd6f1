"""Measures whether the pictures of ``models/shapes`` show what the prompts say, without any trained network.

    python models/check_shapes.py                 # writes models/shapes/quality.json, prints the same
    python models/check_shapes.py --self-test     # only validates the check, on fresh drawings

A picture is judged in three steps (:func:`read`): the ground is the colour around the edge; the figure is
what is no lighter or darker version of the ground; its shape is the one whose outline, turned, scaled and
moved, overlaps it best (intersection over union). Prompts come from :func:`shapes_drawing.held_out`:
combinations that were never trained on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from shapes_drawing import COLOURS, SHAPES, SIZES, Scene, Size, caption, draw, held_out, mask

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

#: A figure must overlap its best outline at least so much to count as a shape at all.
MIN_OVERLAP: Final = 0.8
#: A nearest colour further away than this (CIE76) is no colour of ours.
MAX_COLOUR_DISTANCE: Final = 30.0
#: How dark and how light a colour gets by shade and light: factors on linear sRGB values 0-255.
_SHADES: Final = np.linspace(0.62, 1.12, 11)


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found in a picture; ``None`` where nothing fits."""

    shape: str | None
    figure: str | None
    ground: str | None
    #: Intersection over union with the best outline, 0..1.
    overlap: float
    #: Radius of that outline, as a share of the picture's shorter side.
    radius: float


def lab(rgb: NDArray[np.floating]) -> NDArray[np.float64]:
    """CIE L*a*b* (D65) of sRGB values 0-255; last axis is colour. Formulas: IEC 61966-2-1 and CIE 15."""
    c = np.clip(np.asarray(rgb, np.float64) / 255, 0, 1)
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    xyz = linear @ matrix.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def name_colour(rgb: NDArray[np.floating]) -> str | None:
    """The colour word nearest to one sRGB value."""
    names = list(COLOURS)
    distances = np.linalg.norm(lab(np.array([COLOURS[name] for name in names], float)) - lab(rgb), axis=-1)
    best = int(distances.argmin())
    return names[best] if distances[best] <= MAX_COLOUR_DISTANCE else None


def _from_shades(pixels: NDArray[np.float64], rgb: NDArray[np.floating]) -> NDArray[np.float64]:
    """Lab distance of every pixel to the nearest shade of a colour, (height, width)."""
    shades = lab(np.clip(rgb[None] * _SHADES[:, None], 0, 255))
    return np.linalg.norm(pixels[:, :, None] - shades, axis=-1).min(-1)


def segment(picture: Image.Image) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """(figure mask, its colour, ground colour): bool (height, width), may be empty; sRGB values 0-255."""
    rgb = np.asarray(picture.convert("RGB"), np.float64)
    pixels = lab(rgb)
    rim = np.concatenate(
        [
            rgb[:4].reshape(-1, 3),
            rgb[-4:].reshape(-1, 3),
            rgb[:, :4].reshape(-1, 3),
            rgb[:, -4:].reshape(-1, 3),
        ]
    )
    ground = np.median(rim, axis=0)
    off_ground = _from_shades(pixels, ground)
    seed = off_ground > max(18.0, 0.5 * float(np.quantile(off_ground, 0.985)))
    if seed.sum() < 20:
        return np.zeros(seed.shape, bool), ground, ground
    figure = np.median(rgb[seed], axis=0)
    return (off_ground > _from_shades(pixels, figure)) & (off_ground > 12), figure, ground


def match_shape(figure: NDArray[np.bool_]) -> tuple[str | None, float, float]:
    """(shape, overlap, radius share) of the outline that fits a mask best, found without a hint."""
    area = int(figure.sum())
    if area < 40:
        return None, 0.0, 0.0
    height, width = figure.shape
    rows, columns = np.nonzero(figure)
    centre = (float(columns.mean()) + 0.5, float(rows.mean()) + 0.5)
    best: tuple[float, str | None, float] = (0.0, None, 0.0)
    for shape in SHAPES:
        unit, offset = _unit_area(shape)
        radius = (area / unit) ** 0.5
        if radius > max(width, height):
            continue
        turns: Iterable[float] = (0.0,) if shape in {"circle", "ring"} else range(-20, 21, 4)
        rough = max((_overlap(figure, shape, centre, offset, radius, turn), turn) for turn in turns)
        if rough[0] < best[0] - 0.08:
            continue
        for scale in (0.97, 1.0, 1.03):
            for turn in (rough[1] - 2, rough[1], rough[1] + 2) if shape not in {"circle", "ring"} else (0.0,):
                score = _overlap(figure, shape, centre, offset, radius * scale, turn)
                best = max(best, (score, shape, radius * scale))
    return best[1], best[0], best[2] / min(width, height)


_UNITS: dict[str, tuple[float, tuple[float, float]]] = {}


def _unit_area(shape: str) -> tuple[float, tuple[float, float]]:
    """Area and centroid of an outline of radius 1."""
    if shape not in _UNITS:
        cover = np.asarray(mask(shape, (256, 256), (128.0, 128.0), 100.0, 0.0), float) / 255
        y, x = np.mgrid[0:256, 0:256] + 0.5 - 128
        area = cover.sum()
        _UNITS[shape] = (
            area / 1e4,
            (float((x * cover).sum() / area) / 100, float((y * cover).sum() / area) / 100),
        )
    return _UNITS[shape]


def _overlap(
    figure: NDArray[np.bool_],
    shape: str,
    centre: tuple[float, float],
    offset: tuple[float, float],
    radius: float,
    degrees: float,
) -> float:
    """Intersection over union with the outline whose centroid lies on ``centre``."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    x, y = offset[0] * c - offset[1] * s, offset[0] * s + offset[1] * c
    place = (centre[0] - radius * x, centre[1] - radius * y)
    template = np.asarray(mask(shape, (figure.shape[1], figure.shape[0]), place, radius, degrees)) > 127
    return float((figure & template).sum() / max(1, (figure | template).sum()))


def read(picture: Image.Image) -> Reading:
    """What the picture shows, found without knowing what it should show."""
    figure, figure_colour, ground_colour = segment(picture)
    shape, overlap, radius = match_shape(figure)
    return Reading(
        shape if overlap >= MIN_OVERLAP else None,
        name_colour(figure_colour) if figure.any() else None,
        name_colour(ground_colour),
        overlap,
        radius,
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a picture keeps its caption."""

    colours: bool
    shape: bool
    size: bool

    @property
    def both(self) -> bool:
        """Colours and shape right; the size does not count here."""
        return self.colours and self.shape


def judge(picture: Image.Image, scene: Scene) -> Verdict:
    """Compares :func:`read` with the scene. Sizes are right within a tenth beyond the drawn range."""
    found = read(picture)
    least, most = SIZES[scene.size]
    return Verdict(
        found.figure == scene.figure and found.ground == scene.ground,
        found.shape == scene.shape,
        0.9 * least <= found.radius <= 1.1 * most,
    )


def self_test(count: int, seed: int) -> dict[str, float]:
    """Shares of fresh drawings accepted with their own scene, and rejected with one word of it changed."""
    rng = random.Random(seed)
    names, accepted, rejected = list(COLOURS), 0, 0
    for number in range(count):
        figure, ground, third = rng.sample(names, 3)
        shape, other = rng.sample(list(SHAPES), 2)
        size: Size = rng.choice(list(SIZES))
        scene = Scene(shape, figure, ground, size)
        picture = draw(scene, rng, ((128, 128), (192, 128), (128, 192))[number % 3])
        wrong = rng.choice((Scene(other, figure, ground), Scene(shape, third, ground), Scene(shape, figure, third)))
        accepted += judge(picture, scene).both
        rejected += not judge(picture, wrong).both
    return {"accepts_right": accepted / count, "rejects_wrong": rejected / count, "drawings": count}


def held_out_prompts(count: int, seed: int) -> list[tuple[Scene, str]]:
    """Prompts over all held-out triples in turn, sizes and wordings at random."""
    rng = random.Random(seed)
    triples = sorted(held_out())
    rng.shuffle(triples)
    prompts = []
    for number in range(count):
        size: Size = rng.choices(("small", "normal", "big"), (1, 2, 1))[0]  # type: ignore[assignment]
        scene = Scene(*triples[number % len(triples)], size)
        prompts.append((scene, caption(scene, rng, plain=True)))
    return prompts


def paint(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    *,
    steps: int,
    guidance: float,
    size: tuple[int, int],
    seed: int,
    batch: int = 10,
) -> list[Image.Image]:
    """One picture of ``size`` (width, height) for each prompt; the n-th has the seed ``seed + n``."""
    import torch

    pictures: list[Image.Image] = []
    for first in range(0, len(prompts), batch):
        part = list(prompts[first : first + batch])
        seeds = [torch.Generator().manual_seed(seed + first + n) for n in range(len(part))]
        pictures += pipeline(
            part,
            width=size[0],
            height=size[1],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=seeds,
        ).images
    return pictures


def measure(pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> tuple[dict[str, float], list[int]]:
    """Shares that are right, and the numbers of the pictures that are not."""
    verdicts = [judge(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    count = len(verdicts)
    shares = {
        "colours_right": sum(v.colours for v in verdicts) / count,
        "shape_right": sum(v.shape for v in verdicts) / count,
        "both_right": sum(v.both for v in verdicts) / count,
        "size_right": sum(v.size for v in verdicts) / count,
        "pictures": count,
    }
    return shares, [number for number, v in enumerate(verdicts) if not v.both]


def grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """All pictures on one sheet."""
    width, height = (max(p.size[axis] for p in pictures) + 4 for axis in (0, 1))
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "gray")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * width, number // columns * height))
    return sheet


def _arguments() -> argparse.Namespace:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=here / "shapes")
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts at the recommended settings")
    parser.add_argument("--drawings", type=int, default=600, help="drawings of the self-test")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument(
        "--more", type=int, default=50, help="prompts for each other setting, size and scheduler; 0 for none"
    )
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets of pictures and of failures")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--self-test", action="store_true", help="only validate the check itself")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Self-test, then the model; writes ``quality.json`` into its folder."""
    report: dict[str, object] = {"check": self_test(args.drawings, args.seed)}
    if args.self_test:
        print(json.dumps(report, indent=1))
        return
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import diffusers
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(args.model)
    pipeline.set_progress_bar_config(disable=True)
    report["versions"] = {m.__name__: m.__version__ for m in (torch, diffusers, transformers)}
    own = pipeline.scheduler
    dpm = diffusers.DPMSolverMultistepScheduler.from_config(own.config)
    euler = diffusers.EulerDiscreteScheduler.from_config(own.config)
    square = (128, 128)
    settings = [("held_out", own, args.prompts, args.guidance, square)]
    if args.more:
        settings += [
            ("guidance_4", own, args.more, 4.0, square),
            ("guidance_7.5", own, args.more, 7.5, square),
            ("dpm_solver", dpm, args.more, args.guidance, square),
            ("euler", euler, args.more, args.guidance, square),
            ("192x128", own, args.more, args.guidance, (192, 128)),
            ("128x192", own, args.more, args.guidance, (128, 192)),
        ]
    for name, scheduler, count, guidance, size in settings:
        prompts = held_out_prompts(count, args.seed)
        pipeline.scheduler = scheduler
        begin = time.monotonic()
        texts = [text for _, text in prompts]
        pictures = paint(pipeline, texts, steps=args.steps, guidance=guidance, size=size, seed=args.seed)
        seconds = (time.monotonic() - begin) / count
        shares, wrong = measure(pictures, [scene for scene, _ in prompts])
        report[name] = {"steps": args.steps, "guidance_scale": guidance} | shares | {"seconds_each": round(seconds, 3)}
        print(
            name,
            json.dumps(report[name]),
            "wrong:",
            dict(Counter(prompts[n][0].shape for n in wrong)),
            file=sys.stderr,
        )
        if args.sheets:
            args.sheets.mkdir(parents=True, exist_ok=True)
            grid(pictures[:64], 8).save(args.sheets / f"{name}.png")
            if wrong:
                grid([pictures[n] for n in wrong[:64]], 8).save(args.sheets / f"{name}-wrong.png")
            for n in wrong:
                print(f"  {n} {prompts[n][1]!r} {read(pictures[n])}", file=sys.stderr)
    text = json.dumps(report, indent=1)
    (args.model / "quality.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main(_arguments())
