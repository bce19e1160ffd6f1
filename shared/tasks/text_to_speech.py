"""`text-to-speech`: a text, read aloud."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shared.tasks import Params, Task
from shared.tasks.inputs import FileInput
from shared.tasks.sounds import AudioFormat

#: longest text of one job, in characters: about an hour
MOST_CHARACTERS = 60_000


class TextToSpeechParams(Params):
    """What a `text-to-speech` job may set."""

    text: Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS, description="the text to read aloud")]
    speaker: Annotated[
        Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1, max_length=200)] | None,
        Field(description="whose voice: a number for a model of several speakers, a voice's name for Bark"),
    ] = None
    speaker_embedding: Annotated[
        FileInput | None,
        Field(
            description="whose voice, for SpeechT5: an x-vector in a file `.npy`; by default the one beside the model"
        ),
    ] = None
    speed: Annotated[
        float | None, Field(ge=0.25, le=4, description="how fast to speak, where the model can; 1 is its own pace")
    ] = None
    pause_s: Annotated[float, Field(ge=0, le=10, description="seconds of silence between two sentences")] = 0.2
    format: AudioFormat = "wav"


TASK = Task(
    name="text-to-speech",
    summary="a text, read aloud",
    params=TextToSpeechParams,
    needs_model=True,
    queue="gpu",
    cost=lambda params: 0.01 * len(params.text),
    example={
        "task": "text-to-speech",
        "model": "facebook/mms-tts-eng",
        "params": {"text": "New shoes for every road. Come and try them on!", "format": "mp3"},
        "seed": 7,
    },
)
