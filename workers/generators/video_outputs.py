"""What a video becomes: a file of it, a poster and a small moving picture, which all say how it was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from PIL import Image

from shared.tasks.videos import VideoParams
from workers.generators import Output
from workers.generators.picture_files import MEDIA_TYPES as PICTURE_TYPES
from workers.generators.picture_files import encode
from workers.generators.video_files import MEDIA_TYPES, Frames, Reel, Sound, write_preview, write_video

_POSTER_QUALITY = 90


def outputs_of(
    frames: Frames, sound: Sound | None, params: VideoParams, record: Mapping[str, Any], sampler: str
) -> Iterator[Output]:
    """The files of one video, itself first; which is which stands in the fact `part`, and all have its seed.

    `record` is what the files say of themselves; `sampler` is the sampler's name in the web UI's words.
    """
    count, height, width = frames.shape[:3]
    fps, seed = record["fps"], record["seed"]
    reel = Reel(count, width, height, fps)
    body = partial(write_video, frames, fps=fps, form=params.format, record=record, sound=sound)
    heard = sound.facts(params.format) if sound is not None else {}
    facts = {"part": "video", **reel.facts(params.format), **heard, "seed": seed}
    yield Output(MEDIA_TYPES[params.format], body, facts, size=frames.nbytes)
    first = frames[0].copy()  # all the frames are let go once the others are written
    body = partial(_poster, first, record, sampler)
    facts = {"part": "poster", "width": width, "height": height, "format": "jpeg", "seed": seed}
    yield Output(PICTURE_TYPES["jpeg"], body, facts, size=first.nbytes)
    if params.preview != "none":
        small = reel.preview()
        body = partial(write_preview, frames, fps=fps, form=params.preview, record=record)
        facts = {"part": "preview", **small.facts(params.preview), "seed": seed}
        yield Output(MEDIA_TYPES[params.preview], body, facts, size=small.frames * small.width * small.height * 3)


def _poster(frame: Frames, record: Mapping[str, Any], sampler: str) -> bytes:
    return encode(Image.fromarray(frame), "jpeg", _POSTER_QUALITY, record, sampler)
