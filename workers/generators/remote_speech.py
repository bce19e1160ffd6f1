"""`text-to-speech` by a remote service: audio/speech.

https://platform.openai.com/docs/api-reference/audio/createSpeech
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np

from shared.errors import JobFailed
from shared.tasks.text_to_speech import TextToSpeechParams
from workers.generators import Output, Work
from workers.generators.remote import Remote, refuse
from workers.generators.sentences import joined, sentences
from workers.generators.sound_files import MEDIA_TYPES, Samples, write_sound
from workers.inputs.looks import SAFELY
from workers.remote import Answer, bad_answer

#: most characters of one request, as the API has it
MOST_CHARACTERS = 4096
#: params that the API does not know, with the values that ask for nothing
_UNKNOWN: Mapping[str, Any] = {"pause_s": TextToSpeechParams.model_fields["pause_s"].default}


class RemoteSpeech(Remote):
    """A long text in several requests, joined again; asked for without loss, and encoded here."""

    path: ClassVar[str] = "/audio/speech"

    def questions(self, job: Work) -> Sequence[Mapping[str, Any]]:
        """As many sentences in one request as it may hold: a voice wants to know what comes next."""
        params: TextToSpeechParams = job.params
        refuse(job, neutral=_UNKNOWN, why="the voice pauses by itself: remove it")
        if isinstance(params.speaker, int):
            raise JobFailed("param_unsupported", "voices of a remote service have names: set `speaker` to one")
        passages = _passages(params.text)
        if not passages:
            raise JobFailed("text_unreadable", "there is nothing to say in this text")
        asked: dict[str, Any] = {"model": self._model, "response_format": "wav"}
        if params.speaker is not None:
            asked["voice"] = params.speaker
        if params.speed is not None:
            asked["speed"] = params.speed
        return [asked | {"input": passage} for passage in passages]

    def read(self, job: Work, number: int, answer: Answer) -> tuple[Samples, int]:
        """The sound of one passage, and its samples per second."""
        with tempfile.NamedTemporaryFile(prefix="aigc-") as file:
            file.write(answer.body)
            file.flush()
            try:
                sound, rate = _decoded(Path(file.name))
            except (OSError, ValueError, av.FFmpegError) as error:
                raise bad_answer(self._service, f"answered with no sound: {error}") from None
        if not sound.shape[1]:
            raise bad_answer(self._service, "answered with a sound of no length")
        return sound, rate

    def outputs(self, job: Work, parts: Sequence[tuple[Samples, int]]) -> Sequence[Output]:
        """One file."""
        params: TextToSpeechParams = job.params
        sounds, rate = [sound for sound, _ in parts], parts[0][1]
        if any((len(sound), each) != (len(sounds[0]), rate) for sound, each in parts):
            raise bad_answer(self._service, "answered with sounds of different rates or channels for one text")
        whole = joined(sounds, rate=rate, pause_s=params.pause_s) if len(sounds) > 1 else sounds[0]
        facts = {
            "seconds": round(whole.shape[1] / rate, 3),
            "sample_rate": rate,
            "channels": len(whole),
            "passages": len(sounds),
        }
        if params.speaker is not None:
            facts["speaker"] = params.speaker
        body = partial(write_sound, whole, rate=rate, form=params.format)
        return [Output(MEDIA_TYPES[params.format], body, facts, size=whole.nbytes)]


def _decoded(path: Path) -> tuple[Samples, int]:
    """The sound of a file as it is, and its rate. What its head says of its length counts for nothing.

    It was written while the voice was still speaking.
    """
    with av.open(str(path), options=SAFELY) as container:
        if not container.streams.audio:
            raise ValueError("there is none in it")
        stream = container.streams.audio[0]
        rate = stream.rate
        resampler = av.AudioResampler(format="fltp", layout="mono" if stream.channels == 1 else "stereo", rate=rate)
        frames = [each for frame in container.decode(stream) for each in resampler.resample(frame)]
        frames += resampler.resample(None)
    if not frames:
        raise ValueError("there is none in it")
    return np.concatenate([frame.to_ndarray() for frame in frames], axis=1, dtype=np.float32), rate


def _passages(text: str) -> list[str]:
    """The text cut at ends of sentences, into as few pieces as may be."""
    if len(text) <= MOST_CHARACTERS:
        return [text] if text.strip() else []
    passages: list[str] = []
    for sentence in sentences(text, most=MOST_CHARACTERS):
        if passages and len(passages[-1]) + 1 + len(sentence) <= MOST_CHARACTERS:
            passages[-1] += f" {sentence}"
        else:
            passages.append(sentence)
    return passages
