"""From outcome to visible result, beside the device: encode → place → intend → upload → commit.

What a generator yields is encoded in one pool of threads and uploaded in another; a single thread keeps the books. It
takes whatever has gathered while it was at work, so groups form by themselves under load, and a single job on an idle
system waits for nobody. Everything under way is bounded in bytes: beyond that the model waits, and with it the claims.

    put ─→ encoders ─→ books: place, announce ─→ uploads ─→ books: commit, fail or give back

What travels is in `parcel.py`, keys and packs in `place.py`, the order of it all in `pipeline.py` and `chains.py`.
"""

from __future__ import annotations

from workers.finisher.parcel import Finished, Published
from workers.finisher.pipeline import Finisher, FinisherBroken

__all__ = ["Finished", "Finisher", "FinisherBroken", "Published"]
