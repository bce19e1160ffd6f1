"""torch's own random numbers, seeded for one piece of work."""

from __future__ import annotations

import torch


def seed_all(seed: int, device: torch.device) -> None:
    """As `torch.manual_seed`, for the host and this device alone.

    That one also leaves word for kinds of device that are not there, with a stack trace each time, and forgets none.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
