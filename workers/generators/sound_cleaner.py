"""`audio-to-audio` with FFmpeg's filters, by PyAV: no model, no GPU, and no more than a second of sound in memory.

* Noise: `afftdn`, which takes down what is near the level of the pauses, band by band.
* Loudness: `ebur128` measures (EBU R 128, ITU-R BS.1770), then one gain for the whole recording: its dynamics stay.
* Rate and channels: `aresample`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import av
import numpy as np

from shared.errors import JobFailed
from shared.tasks.audio_to_audio import AudioToAudioParams
from workers.generators import Device, Done, Failed, Generator, ModelFiles, Outcome, Output, Run, Work
from workers.generators.sound_files import MEDIA_TYPES, SoundFile, frames_of, rate_within
from workers.inputs.looks import InputFile

#: the meter's answer to silence, or to less than the 0.4 s that it needs
_SILENCE = -70.0
_PEAK = -1.0
#: seconds of a piece whose level is measured; the share of pieces that are taken for pauses
_LEVEL_S, _PAUSES = 0.05, 0.1
#: decibels between the level of pauses and what is taken for noise, which varies; what `afftdn` can be told; silence
_MARGIN, _LEAST, _MOST = 4.0, -80.0, -20.0


@dataclass(slots=True)
class _Measured:
    """What the meter says of a sound that has passed."""

    samples: int = 0
    lufs: float = _SILENCE
    #: of the highest true peak: 1 = full scale
    peak: float = 0.0

    @property
    def dbtp(self) -> float:
        """Decibels of the highest true peak."""
        return 20 * math.log10(max(self.peak, 1e-6))


class SoundCleaner(Generator):
    """Recordings with less noise, at another loudness, rate or format."""

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """There is no model."""
        return cls()

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """One recording after the other; a second of it is a step."""
        for job in jobs:
            if not run.wanted(job.job_id):
                continue
            try:
                output = _cleaned(job, run)
            except JobFailed as error:
                yield Failed(job.job_id, error)
            else:
                if output is not None:
                    yield Done(job.job_id, [output])


class _Steps:
    """A second of sound is a step."""

    def __init__(self, run: Run, job_id: str, total: int) -> None:
        self._run = run
        self._job_id = job_id
        self._total = total
        self._done = 0

    def at(self, seconds: float) -> bool:
        """Say how far it is; whether the job is still wanted."""
        while self._done < min(int(seconds), self._total):
            self._done += 1
            self._run.step([self._job_id], self._done, self._total)
        return self._run.wanted(self._job_id)


def _cleaned(job: Work, run: Run) -> Output | None:
    """The recording as asked for; None if nobody wants it any more."""
    params: AudioToAudioParams = job.params
    source = job.inputs["audio"]
    rate = rate_within(params.format, params.sample_rate or source.facts["sample_rate"])
    channels = params.channels or min(2, source.facts["channels"])
    seconds = max(1, math.ceil(source.facts["seconds"]))
    before = (params.denoise_db is not None) + (params.loudness_lufs is not None)
    steps = _Steps(run, job.job_id, seconds * (before + 1))
    noise: float | None = None
    gain_db = 0.0
    if params.denoise_db is not None:
        levels: list[float] = []
        for seen in _levels(source, levels):
            if not steps.at(min(seen, seconds)):
                return None
        noise = _noise(levels)
    how = _How(rate, channels, noise, params.denoise_db)
    if params.loudness_lufs is not None:
        first = _Measured()
        for _ in _filtered(source, how, first):
            if not steps.at(seconds * (before - 1) + min(first.samples / rate, seconds)):
                return None
        gain_db = _gain(params, first)
    measured = _Measured()
    with SoundFile(params.format, rate=rate, channels=channels) as file:
        for frame in _filtered(source, how, measured):
            file.add(np.asarray(frame.to_ndarray(), dtype=np.float32) * np.float32(10 ** (gain_db / 20)), rate)
            if not steps.at(seconds * before + measured.samples / rate):
                return None
    steps.at(seconds * (before + 1))
    facts: dict[str, Any] = {
        "seconds": round(measured.samples / rate, 3),
        "sample_rate": rate,
        "channels": channels,
        "format": params.format,
        "gain_db": round(gain_db, 2),
    }
    if noise is not None:
        facts["noise_dbfs"] = round(noise, 1)
    if measured.lufs > _SILENCE:
        facts |= {"loudness_lufs": round(measured.lufs + gain_db, 2), "peak_dbtp": round(measured.dbtp + gain_db, 2)}
    return Output(MEDIA_TYPES[params.format], file.body, facts)


def _gain(params: AudioToAudioParams, measured: _Measured) -> float:
    """Decibels that make it as loud as asked, as far as its peaks allow."""
    if measured.lufs <= _SILENCE:
        raise JobFailed(
            "sound_silent", "the recording is silent, or shorter than 0.4 s: its loudness cannot be measured"
        )
    most = (_PEAK if params.peak_dbtp is None else params.peak_dbtp) - measured.dbtp
    return min(float(params.loudness_lufs or 0.0) - measured.lufs, most)


def _levels(source: InputFile, levels: list[float]) -> Iterator[float]:
    """Add the level of each piece of the recording, in decibels of full scale; yields the seconds so far."""
    resampler = av.AudioResampler(format="fltp")
    seconds = 0.0
    for frame in frames_of(source.path, source.facts["seconds"]):
        for each in resampler.resample(frame):
            sound = np.asarray(each.to_ndarray(), dtype=np.float64).mean(axis=0)
            pieces = np.array_split(sound, max(1, round(len(sound) / each.sample_rate / _LEVEL_S)))
            levels += [10 * math.log10(float(np.mean(piece**2)) + 1e-12) for piece in pieces if len(piece)]
        seconds += frame.samples / frame.sample_rate
        yield seconds


def _noise(levels: Sequence[float]) -> float | None:
    """The level of the pauses; None where nothing is heard in them."""
    heard = [level for level in levels if level > _LEAST]
    return float(np.quantile(heard, _PAUSES)) if heard else None


@dataclass(frozen=True, slots=True)
class _How:
    """What the filters are to do."""

    rate: int
    channels: int
    #: level of the noise, and decibels to take it down
    noise: float | None
    denoise_db: float | None


def _filtered(source: InputFile, how: _How, measured: _Measured) -> Iterator[av.AudioFrame]:
    """The recording behind the filters, piece by piece; `measured` grows with it. Raises `JobFailed`."""
    graph: av.filter.Graph | None = None
    position = 0
    try:
        for frame in frames_of(source.path, source.facts["seconds"]):
            graph = graph or _graph(frame, how)
            frame.time_base = Fraction(1, frame.sample_rate)
            frame.pts = position
            position += frame.samples
            graph.push(frame)
            yield from _pulled(graph, measured)
        if graph is not None:
            graph.push(None)
            yield from _pulled(graph, measured)
    except (ValueError, av.FFmpegError) as error:
        raise JobFailed("input_unreadable", f"the sound changes its form on the way: {error}") from None


def _graph(first: av.AudioFrame, how: _How) -> av.filter.Graph:
    graph = av.filter.Graph()
    nodes = [
        graph.add_abuffer(
            sample_rate=first.sample_rate,
            format=first.format.name,
            layout=first.layout.name,
            time_base=Fraction(1, first.sample_rate),
        )
    ]
    if how.denoise_db is not None and how.noise is not None:
        floor = min(max(how.noise + _MARGIN, _LEAST), _MOST)
        late = 2 * (first.sample_rate // 80)  # samples by which the filter lags behind, and of which it loses the last
        nodes += [
            graph.add("apad", f"pad_len={late}"),
            graph.add("afftdn", f"noise_reduction={how.denoise_db:g}:noise_floor={floor:.1f}"),
            graph.add("atrim", f"start_sample={late}"),
            graph.add("asetpts", "PTS-STARTPTS"),
        ]
    layout = "mono" if how.channels == 1 else "stereo"
    nodes += [
        graph.add("aresample", str(how.rate)),
        graph.add("aformat", f"sample_fmts=fltp:sample_rates={how.rate}:channel_layouts={layout}"),
        graph.add("ebur128", "metadata=1:peak=true"),
        graph.add("aformat", "sample_fmts=fltp"),
        graph.add("abuffersink"),
    ]
    graph.link_nodes(*nodes).configure()
    return graph


def _pulled(graph: av.filter.Graph, measured: _Measured) -> Iterator[av.AudioFrame]:
    """What has passed the filters by now."""
    while True:
        try:
            frame = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
        if not isinstance(frame, av.AudioFrame):
            return
        said = frame.metadata
        measured.samples += frame.samples
        measured.lufs = float(said.get("lavfi.r128.I", measured.lufs))
        measured.peak = max(measured.peak, float(said.get("lavfi.r128.true_peak", 0.0)))
        yield frame
