"""`automatic-speech-recognition` with Whisper and its like, or a CTC model (wav2vec 2.0, HuBERT, …) of transformers.

The library's own pipeline cuts long recordings into overlapping windows and puts the words together; what is added here
is that it says how far it is, and can be stopped between two windows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoModelForSpeechSeq2Seq
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CTC_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)
from transformers.pipelines import AutomaticSpeechRecognitionPipeline

from shared.errors import JobFailed, ModelRejected
from shared.tasks.automatic_speech_recognition import AutomaticSpeechRecognitionParams
from workers.generators import Device, Done, Failed, ModelFiles, Outcome, Output, Run, Work
from workers.generators.pretrained import Pretrained, load_model, load_part, load_tokenizer
from workers.generators.sound_files import read_sound
from workers.generators.subtitles import Said, as_srt, as_vtt

#: seconds of a window, and of what it shares with its neighbours on either side
WINDOW_S, SHARED_S = 30.0, 5.0


class SpeechRecogniser(Pretrained):
    """A model that writes down what it hears."""

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether the model was saved with a head for it."""
        return files is not None and _why_not(files.config) is None

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Raises `ModelRejected` for a model of another kind, or one that cannot be read."""
        if files is None:
            raise ModelRejected("model_not_found", "automatic-speech-recognition needs a model")
        if (reason := _why_not(files.config)) is not None:
            raise ModelRejected("model_wrong_task", f"{files.ref} cannot recognise speech: {reason}")
        ctc = files.config.get("model_type") in MODEL_FOR_CTC_MAPPING_NAMES
        auto = AutoModelForCTC if ctc else AutoModelForSpeechSeq2Seq
        model = load_model(files, auto, device, what="a recogniser of speech")
        return cls(model, load_tokenizer(files), load_part(files, AutoFeatureExtractor), ctc=ctc)

    def __init__(self, model: Any, tokenizer: Any, extractor: Any, *, ctc: bool) -> None:
        super().__init__(model)
        self._rate = int(extractor.sampling_rate)
        self._ctc = ctc
        told = getattr(model, "generation_config", None)
        self._languages: Mapping[str, int] = getattr(told, "lang_to_id", None) or {}
        self._pipe = AutomaticSpeechRecognitionPipeline(model, feature_extractor=extractor, tokenizer=tokenizer)

    def unload(self) -> None:
        """Drop the model, and the pipeline around it."""
        self._pipe = None
        super().unload()

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """One recording after the other; their windows are the steps."""
        for job in jobs:
            if not run.wanted(job.job_id):
                continue
            try:
                yield Done(job.job_id, [self._heard(job, run)])
            except JobFailed as error:
                yield Failed(job.job_id, error)

    def _heard(self, job: Work, run: Run) -> Output:
        params: AutomaticSpeechRecognitionParams = job.params
        asked = self._asked(params)
        sound = read_sound(job.inputs["audio"].path, rate=self._rate)[0]
        seconds = len(sound) / self._rate
        windows = max(1, round(seconds / (WINDOW_S - 2 * SHARED_S) + 0.5))
        with self._each_window(lambda n: run.step([job.job_id], min(n, windows), windows)):
            said = self._pipe(
                {"raw": sound, "sampling_rate": self._rate},
                chunk_length_s=WINDOW_S if seconds > WINDOW_S else 0,
                stride_length_s=SHARED_S,
                **asked,
            )
        pieces = [Said(piece["text"], *_times(piece["timestamp"], seconds)) for piece in said.get("chunks", ())]
        text = said["text"].strip()
        facts: dict[str, Any] = {"seconds": round(seconds, 3), "characters": len(text)}
        match params.format:
            case "srt":
                return Output("application/x-subrip", as_srt(pieces).encode(), facts)
            case "vtt":
                return Output("text/vtt", as_vtt(pieces).encode(), facts)
            case "json":
                rows = [{"text": each.text.strip(), "begin_s": each.begin, "end_s": each.end} for each in pieces]
                return Output("application/json", json.dumps({"text": text, "pieces": rows}).encode(), facts)
        return Output("text/plain", text.encode(), facts)

    def _asked(self, params: AutomaticSpeechRecognitionParams) -> dict[str, Any]:
        """What the pipeline is told. Raises `JobFailed` for what this model cannot do."""
        if self._ctc:
            for name, neutral in (("language", None), ("translate", False), ("num_beams", 1)):
                if getattr(params, name) != neutral:
                    raise JobFailed("param_unsupported", f"this model has no `{name}`: remove it")
            times = {"none": None, "segment": "word", "word": "word"}[params.times]
            return {} if times is None else {"return_timestamps": times}
        told: dict[str, Any] = {"num_beams": params.num_beams}
        if params.language is not None or params.translate:
            if not self._languages:
                raise JobFailed(
                    "param_unsupported", "this model knows one language only: remove `language` and `translate`"
                )
            told |= {"task": "translate" if params.translate else "transcribe"}
            if params.language is not None:
                told["language"] = params.language
        times = {"none": False, "segment": True, "word": "word"}[params.times]
        return {"generate_kwargs": told, "return_timestamps": times}

    @contextmanager
    def _each_window(self, say: Any) -> Iterator[None]:
        """`say` is told how many windows the encoder has read."""
        read = 0

        def one(*_: Any) -> None:
            nonlocal read
            read += 1
            say(read)

        encoder = self._model if self._ctc else self._model.get_encoder()
        hook = encoder.register_forward_hook(one)
        try:
            yield
        finally:
            hook.remove()


def _times(said: tuple[float | None, float | None], seconds: float) -> tuple[float, float]:
    begin, end = said
    return float(begin or 0.0), float(seconds if end is None else end)


def _why_not(config: Mapping[str, Any]) -> str | None:
    if "_class_name" in config:
        return f"it is a diffusion model ({config['_class_name']})"
    kind = config.get("model_type")
    saved = config.get("architectures") or []
    if kind in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES:
        known = MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES[kind]
        if not saved or known in saved:
            return None
    if kind in MODEL_FOR_CTC_MAPPING_NAMES and any(name.endswith("ForCTC") for name in saved):
        return None
    return f"it was saved as {', '.join(saved) or kind}, which writes down no speech"
