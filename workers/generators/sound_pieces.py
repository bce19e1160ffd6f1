"""What the generators of `text-to-audio` have in common: pieces of sound in microbatches, each with its own seed."""

from __future__ import annotations

import traceback
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from shared.errors import JobFailed
from shared.tasks.text_to_audio import TextToAudioParams
from workers.generators import Done, Failed, Generator, Outcome, Output, Run, Work
from workers.generators.sound_files import MEDIA_TYPES, Samples, facts_of, write_sound
from workers.pinned import free_cached, out_of_memory

#: is told (steps done, steps in all) of a pass
Say = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Piece:
    """Piece `index` of a job."""

    job: Work
    index: int

    @property
    def seed(self) -> int:
        """Of this one."""
        return self.job.seed + self.index

    @property
    def params(self) -> TextToAudioParams:
        """Of its job."""
        params: TextToAudioParams = self.job.params
        return params


class SoundPieces(Generator):
    """A model that makes sound from words."""

    #: most pieces at a time, as the engine last said, and as it turned out for jobs of many pieces
    _limit: int | None = None
    _fits: int | None = None

    @property
    @abstractmethod
    def rate(self) -> int:
        """Samples per second."""

    @property
    @abstractmethod
    def device(self) -> str:
        """Where it computes, in torch's words."""

    @abstractmethod
    def alike(self, params: TextToAudioParams) -> Hashable:
        """What the pieces of one pass have to share."""

    @abstractmethod
    def check(self, params: TextToAudioParams) -> None:
        """Raise `JobFailed` for what this model cannot do; nothing is ever dropped."""

    @abstractmethod
    def made(self, pieces: Sequence[Piece], say: Say) -> Sequence[Samples]:
        """One pass: for each piece its sound as (channels, samples), of the seconds asked for or longer."""

    def cut(self, jobs: Sequence[Work], limit: int) -> list[list[Work]]:
        """Cut into microbatches of at most `limit` pieces that can share a pass.

        A job with more pieces than that comes alone; `generate` takes it in slices.
        """
        self._limit = limit
        groups: dict[Hashable, list[list[Work]]] = {}
        for job in jobs:
            shares = groups.setdefault(self.alike(job.params), [[]])
            if shares[-1] and sum(each.params.num_waveforms for each in (*shares[-1], job)) > limit:
                shares.append([])
            shares[-1].append(job)
        return [share for shares in groups.values() for share in shares]

    def most(self, jobs: Sequence[Work], limit: int) -> int:
        """As `cut` does it: by pieces."""
        pieces: int = max(job.params.num_waveforms for job in jobs)
        return max(1, limit // pieces)

    def shape(self, jobs: Sequence[Work]) -> Hashable:
        """Seconds, steps, and pieces per job."""
        every: list[TextToAudioParams] = [job.params for job in jobs]
        return every[0].seconds, every[0].num_inference_steps, max(params.num_waveforms for params in every)

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """Run the jobs; those that cannot be done fail before the model starts."""
        able: dict[Hashable, list[Work]] = {}
        for job in jobs:
            try:
                self.check(job.params)
            except JobFailed as error:
                yield Failed(job.job_id, error)
            else:
                able.setdefault(self.alike(job.params), []).append(job)
        for together in able.values():
            yield from self._together(together, run)

    def _together(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        pieces = [Piece(job, index) for job in jobs for index in range(job.params.num_waveforms)]
        size = min(self._limit or len(pieces), self._fits or len(pieces))
        slices = [pieces[start : start + size] for start in range(0, len(pieces), size)]
        outputs: dict[str, list[Output]] = {job.job_id: [] for job in jobs}
        for at, share in enumerate(slices):
            wanted = [piece for piece in share if piece.job.job_id in outputs and run.wanted(piece.job.job_id)]
            if not wanted:
                continue
            for piece, sound in zip(wanted, self._fitting(wanted, run, at, len(slices)), strict=True):
                id_ = piece.job.job_id
                if id_ not in outputs:
                    continue
                try:
                    outputs[id_].append(self._output(piece, sound))
                except JobFailed as error:
                    del outputs[id_]
                    yield Failed(id_, error)
                    continue
                if len(outputs[id_]) == piece.params.num_waveforms and run.wanted(id_):
                    yield Done(id_, outputs.pop(id_))

    def _fitting(self, pieces: Sequence[Piece], run: Run, at: int, slices: int) -> list[Samples]:
        """Pieces of one job that do not fit into memory together are made in halves; the engine halves jobs only."""
        job_ids = list(dict.fromkeys(piece.job.job_id for piece in pieces))

        def say(done: int, total: int) -> None:
            run.step(job_ids, at * total + min(done, total), slices * total)

        try:
            return list(self.made(pieces, say))
        except (RuntimeError, MemoryError) as error:
            if not (out_of_memory(error) and len(job_ids) == 1 and len(pieces) > 1):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold what the halves need
        free_cached(self.device)
        half = self._fits = (len(pieces) + 1) // 2
        return [made for part in (pieces[:half], pieces[half:]) for made in self._fitting(part, run, at, slices)]

    def _output(self, piece: Piece, sound: Samples) -> Output:
        params = piece.params
        if not np.isfinite(sound).all():
            raise JobFailed("numerics", "the model's numbers overflowed: run the worker with AIGC_DTYPE=float32")
        whole = np.ascontiguousarray(sound[:, : round(params.seconds * self.rate)], dtype=np.float32)
        if whole.shape[1] < 0.9 * params.seconds * self.rate:
            most = whole.shape[1] / self.rate
            raise JobFailed(
                "length_unsupported",
                f"the model made {most:.1f} s, and {params.seconds:g} s were asked for: ask for less",
            )
        facts = facts_of(whole, rate=self.rate, form=params.format) | {"seed": piece.seed}
        body = partial(write_sound, whole, rate=self.rate, form=params.format)
        return Output(MEDIA_TYPES[params.format], body, facts, size=whole.nbytes)


def refuse(params: TextToAudioParams, names: Sequence[str], what: str) -> None:
    """Raise `JobFailed` for the first of these params that a job sets."""
    for name in names:
        if getattr(params, name) is not None:
            raise JobFailed("param_unsupported", f"{what} has no `{name}`: remove it")
