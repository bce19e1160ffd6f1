"""Recordings against references, sample by sample: SNR and SI-SDR in dB."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from shared.errors import JobFailed
from workers.generators.sound_files import read_sound
from workers.inputs.looks import InputFile
from workers.scores import Score, Tick, mean, signed
from workers.scores.case import Case

#: seconds that two recordings may differ in length: encoders add a little
SLACK_S = 0.1

Sound = npt.NDArray[np.float64]


def snr(case: Case, tick: Tick) -> Iterator[Score]:
    """Signal-to-noise ratio: the energy of the reference by that of the difference."""
    return _ratio("snr", case, tick, lambda output, reference: _decibels(reference, reference - output))


def si_sdr(case: Case, tick: Tick) -> Iterator[Score]:
    """Scale-invariant signal-to-distortion ratio (Le Roux et al. 2019), of signals without their mean."""

    def ratio(output: Sound, reference: Sound) -> float | None:
        output = output - output.mean()
        reference = reference - reference.mean()
        target = (output @ reference) / (reference @ reference) * reference
        return _decibels(target, output - target)

    return _ratio("si_sdr", case, tick, ratio)


def _ratio(name: str, case: Case, tick: Tick, measure: Callable[[Sound, Sound], float | None]) -> Iterator[Score]:
    items: list[float | None] = []
    for output, reference in _pairs(case):
        items.append(measure(output, reference))
        tick()
    without = items.count(None)
    notes = [f"{without} outputs have no finite ratio (equal to the reference, or silent) and are left out"]
    signature = signed(zero_mean=name == "si_sdr", rate="that of the reference", over="mean_of_recordings")
    yield Score(
        name, mean(items), "higher", "dB", "aigc", signature, len(items) - without, items,
        {"without": without}, notes if without else (),
    )  # fmt: skip


def _pairs(case: Case) -> Iterator[tuple[Sound, Sound]]:
    """Both at the rate of the reference, cut to the shorter one; in stereo if both are."""
    for number, output, reference in case.pairs():
        rate = int(reference.facts["sample_rate"])
        mono = min(output.facts["channels"], reference.facts["channels"]) == 1
        one, other = (_samples(file, rate, mono=mono) for file in (output, reference))
        length = min(one.shape[1], other.shape[1])
        if abs(one.shape[1] - other.shape[1]) > SLACK_S * rate:
            raise JobFailed(
                "lengths_differ",
                f"{case.outputs.call(number)} takes {one.shape[1] / rate:.2f} s and {case.compared.call(number)} "
                f"{other.shape[1] / rate:.2f} s: they are compared sample by sample, so cut one of them first",
            )
        wide, target = (each[:, :length].ravel() for each in (one, other))
        if not np.any(target - target.mean()):
            message = f"{case.compared.call(number)} is silent: there is nothing to compare with"
            raise JobFailed("reference_empty", message)
        yield wide, target


def _samples(file: InputFile, rate: int, *, mono: bool) -> Sound:
    """As (channels, samples); of two channels the mean makes one, where FFmpeg's own way is louder by 3 dB."""
    sound = read_sound(file, rate=rate, channels=min(2, file.facts["channels"])).astype(np.float64)
    return sound.mean(0, keepdims=True) if mono else sound


def _decibels(signal: Sound, noise: Sound) -> float | None:
    """None where it is infinite."""
    there, beside = float(signal @ signal), float(noise @ noise)
    return 10 * float(np.log10(there / beside)) if there > 0 and beside > 0 else None
