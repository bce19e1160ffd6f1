"""Files to begin with."""

from __future__ import annotations

import atexit
import shutil
from pathlib import Path


def photos() -> dict[str, str]:
    """Pictures to begin with, by what is special about them: paths of files that are made once per process."""
    import tempfile

    from PIL import Image

    folder = Path(tempfile.mkdtemp(prefix="aigc-photos-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    noise = Image.effect_noise((16, 16), 90)
    made = {
        "square": Image.merge("RGB", (noise, noise.rotate(90), noise.rotate(180))),
        "other": Image.linear_gradient("L").resize((16, 16)).convert("RGB"),
        "wide": Image.radial_gradient("L").resize((40, 20)).convert("RGB"),
        "clear": Image.merge("RGBA", (noise, noise, noise, Image.linear_gradient("L").resize((16, 16)))),
        "mask": Image.new("L", (16, 16), 0),
    }
    made["mask"].paste(255, (0, 0, 8, 16))
    for name, picture in made.items():
        picture.save(folder / f"{name}.png")
    return {name: str(folder / f"{name}.png") for name in made}
