"""`automatic-speech-recognition` with Whisper and its like, or a CTC model (wav2vec 2.0, HuBERT, …) of transformers.

The library's pipeline cuts long recordings into windows that overlap, and puts what was heard in them together. Its
parts are called one by one here, so that windows of one length run in one pass, whosever they are, and so that a
running pass can be stopped. Windows are never padded to each other's length: no window changes what another gives.
"""

from __future__ import annotations

import json
import math
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Self

import torch
from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoModelForSpeechSeq2Seq
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CTC_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE
from transformers.pipelines import AutomaticSpeechRecognitionPipeline
from transformers.pipelines.automatic_speech_recognition import rescale_stride

from shared.errors import JobFailed, ModelRejected
from shared.tasks.automatic_speech_recognition import AutomaticSpeechRecognitionParams
from workers.generators import Device, Done, Failed, ModelFiles, Outcome, Output, Run, Work
from workers.generators.each_token import EachToken
from workers.generators.pretrained import Pretrained, load_model, load_part, load_tokenizer
from workers.generators.sound_files import Samples, read_sound
from workers.generators.subtitles import Said, as_srt, as_vtt, in_lines
from workers.pinned import free_cached, out_of_memory

#: seconds of a window, and of what it shares with its neighbours on either side
WINDOW_S, SHARED_S = 30.0, 5.0
#: how many tokens a window usually has: for the progress bar only
_TOKENS = 100
#: recordings that are decoded before their turn
_AHEAD = 2


@dataclass(slots=True)
class _Recording:
    """A job on its way: its windows go in, in order, and what was heard comes out."""

    job: Work
    seconds: float
    windows: int
    heard: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Window:
    of: _Recording
    #: what the pipeline makes of it
    read: dict[str, Any]

    @property
    def form(self) -> object:
        """Windows of one form can share a pass."""
        return tuple((name, value.shape) for name, value in self.read.items() if torch.is_tensor(value))


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
        return cls(model, load_tokenizer(files), load_part(files, AutoFeatureExtractor))

    def __init__(self, model: Any, tokenizer: Any, extractor: Any) -> None:
        super().__init__(model)
        self._pipe = AutomaticSpeechRecognitionPipeline(
            model, feature_extractor=extractor, tokenizer=tokenizer, device=model.device
        )
        self._rate = int(extractor.sampling_rate)
        known = getattr(model.generation_config, "lang_to_id", None) if model.can_generate() else None
        #: codes of the languages that it tells apart
        self._languages = frozenset(token.strip("<|>") for token in known or ())
        #: most windows in a pass, as the engine last said, and as it turned out
        self._limit, self._fits = 1, math.inf

    def unload(self) -> None:
        """Drop the model, and the pipeline around it."""
        self._pipe = None
        super().unload()

    def cut(self, jobs: Sequence[Work], limit: int) -> list[list[Work]]:
        """Recordings that are asked for the same go together."""
        self._limit = limit
        ordered = sorted(jobs, key=lambda job: repr(_asked_alike(job.params)))
        alike = [list(group) for _, group in groupby(ordered, key=lambda job: _asked_alike(job.params))]
        return [group[i : i + limit] for group in alike for i in range(0, len(group), limit)]

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """Windows of equal length, in order, as many at a time as fit; a word is a step."""
        able: dict[object, list[Work]] = {}
        for job in jobs:
            if not run.wanted(job.job_id):
                continue
            try:
                self._check(job.params)
            except JobFailed as error:
                yield Failed(job.job_id, error)
            else:
                able.setdefault(_asked_alike(job.params), []).append(job)
        for alike in able.values():
            yield from self._alike(alike, run)

    def _alike(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        told = self._told(jobs[0].params)
        waiting: list[_Window] = []
        for item in self._windows(jobs, run):
            if isinstance(item, Failed):
                yield item
                continue
            if waiting and (len(waiting) >= self._most(told) or item.form != waiting[0].form):
                yield from self._pass(waiting, told, run)
                waiting = []
            waiting.append(item)
        yield from self._pass(waiting, told, run)

    def _most(self, told: Mapping[str, Any]) -> int:
        """Windows in one pass. Times of words are worked out for one alone."""
        return 1 if told.get("return_timestamps") == "word" and self._whisper else int(min(self._limit, self._fits))

    def _windows(self, jobs: Sequence[Work], run: Run) -> Iterator[_Window | Failed]:
        """Every window of these recordings in order; the next recordings are decoded beside the model."""
        with ThreadPoolExecutor(1, thread_name_prefix="sound") as beside:
            coming = deque(beside.submit(self._decoded, job) for job in jobs[:_AHEAD])
            for at, job in enumerate(jobs):
                sound = coming.popleft()
                if at + _AHEAD < len(jobs):
                    coming.append(beside.submit(self._decoded, jobs[at + _AHEAD]))
                try:
                    samples = sound.result()
                except JobFailed as error:
                    yield Failed(job.job_id, error)
                else:
                    yield from self._cut_up(job, samples, run)

    def _decoded(self, job: Work) -> Samples:
        mono: Samples = read_sound(job.inputs["audio"], rate=self._rate)[0]
        return mono

    def _cut_up(self, job: Work, sound: Samples, run: Run) -> Iterator[_Window]:
        seconds = len(sound) / self._rate
        long = seconds > WINDOW_S
        step = WINDOW_S - 2 * SHARED_S
        recording = _Recording(job, seconds, 1 + math.ceil((seconds - WINDOW_S) / step) if long else 1)
        pieces = self._pipe.preprocess(
            {"raw": sound, "sampling_rate": self._rate},
            chunk_length_s=WINDOW_S if long else 0,
            stride_length_s=SHARED_S,
        )
        for piece in pieces:
            if not run.wanted(job.job_id):
                return
            yield _Window(recording, piece)

    def _pass(self, windows: Sequence[_Window], told: Mapping[str, Any], run: Run) -> Iterator[Outcome]:
        """One pass of the model; yields the recordings of which these are the last windows."""
        windows = [window for window in windows if run.wanted(window.of.job.job_id)]
        if not windows:
            return
        try:
            heard = self._heard(windows, told, run)
        except (RuntimeError, MemoryError) as error:
            if not (out_of_memory(error) and len(windows) > 1):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold what the halves need
            self._fits = (len(windows) + 1) // 2
        else:
            for window, each in zip(windows, heard, strict=True):
                recording = window.of
                recording.heard.append(each)
                done, total = len(recording.heard), recording.windows
                run.advance({recording.job.job_id: (min(done, total) * self._unit, total * self._unit)})
                if each["is_last"] and run.wanted(recording.job.job_id):
                    yield Done(recording.job.job_id, [self._written(recording, told)])
            return
        free_cached(self._model.device.type)
        half = int(self._fits)
        yield from self._pass(windows[:half], told, run)
        yield from self._pass(windows[half:], told, run)

    def _heard(self, windows: Sequence[_Window], told: Mapping[str, Any], run: Run) -> list[dict[str, Any]]:
        """What the model makes of windows of one form: one result of the pipeline for each."""
        together: dict[str, Any] = {"is_last": False}
        for name, first in windows[0].read.items():
            if torch.is_tensor(first):
                together[name] = torch.cat([window.read[name] for window in windows])
        listening = {} if self._ctc else {"stopping_criteria": [EachToken(self._say(windows, run))]}
        own = self._model.config._attn_implementation  # noqa: SLF001 - times of words leave another one behind
        try:
            made = self._pipe.forward(together, **told, **listening)
        finally:
            self._model.config._attn_implementation = own  # noqa: SLF001
        results = []
        for row, window in enumerate(windows):
            result = {"tokens": made["tokens"][row : row + 1], "is_last": window.read["is_last"]}
            if "token_timestamps" in made:
                result["token_timestamps"] = made["token_timestamps"]
            if (stride := window.read.get("stride")) is not None:
                ratio = 1 / self._pipe._align_to if self._ctc else 1  # noqa: SLF001 - from samples to what CTC spells
                result["stride"] = rescale_stride([stride], ratio)[0]
            results.append(result)
        return results

    def _say(self, windows: Sequence[_Window], run: Run) -> Callable[[int], None]:
        """Is told how many tokens the windows of a pass have, and says how far their recordings are."""
        recordings = {window.of.job.job_id: window.of for window in windows}
        share = {id_: sum(window.of is each for window in windows) for id_, each in recordings.items()}

        def say(tokens: int) -> None:
            run.advance(
                {
                    id_: (
                        min(len(each.heard), each.windows - 1) * self._unit + min(tokens * share[id_], self._unit - 1),
                        each.windows * self._unit,
                    )
                    for id_, each in recordings.items()
                }
            )

        return say

    def _written(self, recording: _Recording, told: Mapping[str, Any]) -> Output:
        params: AutomaticSpeechRecognitionParams = recording.job.params
        said = self._pipe.postprocess(recording.heard, return_timestamps=told.get("return_timestamps"))
        text = said["text"].strip()
        pieces = _pieces(said.get("chunks", ()), recording.seconds)
        if self._ctc and params.times == "segment":
            pieces = in_lines(pieces)
        facts: dict[str, Any] = {"seconds": round(recording.seconds, 3), "characters": len(text)}
        if params.times != "none":
            facts["pieces"] = len(pieces)
        match params.format:
            case "srt":
                return Output("application/x-subrip", as_srt(pieces).encode(), facts)
            case "vtt":
                return Output("text/vtt", as_vtt(pieces).encode(), facts)
            case "json":
                rows = [{"text": each.text, "begin_s": each.begin, "end_s": each.end} for each in pieces]
                data = {"text": text, "seconds": facts["seconds"]} | ({"pieces": rows} if "pieces" in facts else {})
                return Output("application/json", json.dumps(data, ensure_ascii=False).encode(), facts)
        return Output("text/plain", text.encode(), facts)

    @property
    def _unit(self) -> int:
        """Steps of a window."""
        return 1 if self._ctc else _TOKENS

    @property
    def _ctc(self) -> bool:
        return bool(self._pipe.type == "ctc")

    @property
    def _whisper(self) -> bool:
        return bool(self._pipe.type == "seq2seq_whisper")

    def _check(self, params: AutomaticSpeechRecognitionParams) -> None:
        """Raise `JobFailed` for what this model cannot do."""
        if self._ctc:
            for name, neutral in (("language", None), ("translate", False), ("num_beams", 1)):
                if getattr(params, name) != neutral:
                    raise JobFailed("param_unsupported", f"this model has no `{name}`: remove it")
        elif params.times != "none" and not self._whisper:
            raise JobFailed(
                "param_unsupported",
                "this model does not say when what was said: set format to text, without timestamps",
            )
        if (params.language is not None or params.translate) and not self._languages:
            raise JobFailed(
                "param_unsupported", "this model knows one language only: remove `language` and `translate`"
            )
        if params.language is not None and _code(params.language) not in self._languages:
            known = ", ".join(sorted(self._languages))
            raise JobFailed("language_unknown", f"this model does not know {params.language!r}; it knows: {known}")

    def _told(self, params: AutomaticSpeechRecognitionParams) -> dict[str, Any]:
        """What the pipeline's pass is told."""
        if self._ctc:
            return {} if params.times == "none" else {"return_timestamps": "word"}
        told: dict[str, Any] = {"num_beams": params.num_beams}
        if params.times != "none":
            told["return_timestamps"] = {"segment": True, "word": "word"}[params.times]
        if self._languages:
            told["task"] = "translate" if params.translate else "transcribe"
            if params.language is not None:
                told["language"] = _code(params.language)
        return told


def _asked_alike(params: AutomaticSpeechRecognitionParams) -> tuple[object, ...]:
    return params.language, params.translate, params.times, params.num_beams


def _code(language: str) -> str:
    """The code of a language that is named by it, or in English."""
    said = language.strip().lower()
    return str(TO_LANGUAGE_CODE.get(said, said))


def _pieces(chunks: Sequence[Mapping[str, Any]], seconds: float) -> list[Said]:
    """What was said when, in order and within the recording: a model may hear beyond its end, or step back."""
    pieces: list[Said] = []
    for chunk in chunks:
        said = [math.nan if each is None else float(each) for each in chunk["timestamp"]]
        end = seconds if math.isnan(said[1]) else min(said[1], seconds)
        begin = 0.0 if math.isnan(said[0]) else max(0.0, min(said[0], seconds))
        begin = max(begin, pieces[-1].begin) if pieces else begin
        pieces.append(Said(chunk["text"].strip(), round(begin, 3), round(max(begin, end), 3)))
    return [piece for piece in pieces if piece.text]


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
