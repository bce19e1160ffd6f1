"""`automatic-speech-recognition`: what is said in a recording, as text or as subtitles."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shared.tasks import Params, Task
from shared.tasks.inputs import AudioInput


class AutomaticSpeechRecognitionParams(Params):
    """What an `automatic-speech-recognition` job may set."""

    audio: Annotated[AudioInput, Field(description="the recording; of a video, its sound")]
    language: Annotated[
        str | None,
        Field(
            min_length=2,
            max_length=40,
            description="the language spoken (`de`, `german`); by default the model hears it",
        ),
    ] = None
    translate: Annotated[bool, Field(description="write it down in English, where the model can")] = False
    timestamps: Annotated[
        Literal["none", "segment", "word"],
        Field(description="when what was said: for each sentence or so, or each word"),
    ] = "none"
    format: Annotated[
        Literal["text", "json", "srt", "vtt"],
        Field(
            description="`text`; `json` with the timestamps; subtitles as `srt` or `vtt`, of segments unless told else"
        ),
    ] = "text"
    num_beams: Annotated[int, Field(ge=1, le=16, description="beams of the search for the likeliest words")] = 1

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.format == "text" and self.timestamps != "none":
            raise ValueError("a text has no place for timestamps: set format to json, srt or vtt, or leave them out")
        return self

    @property
    def times(self) -> Literal["none", "segment", "word"]:
        """The timestamps that the format needs."""
        return "segment" if self.format in ("srt", "vtt") and self.timestamps == "none" else self.timestamps


TASK = Task(
    name="automatic-speech-recognition",
    summary="what is said in a recording, as text or subtitles",
    params=AutomaticSpeechRecognitionParams,
    needs_model=True,
    queue="gpu",
    cost=lambda params: 10.0 * params.num_beams,
    example={
        "task": "automatic-speech-recognition",
        "model": "openai/whisper-small",
        "params": {"audio": "https://example.org/talk.mp3", "format": "srt"},
    },
)
