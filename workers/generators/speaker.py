"""`text-to-speech` with a model of transformers: VITS (MMS), SpeechT5, Bark, FastSpeech2Conformer.

A long text is read sentence by sentence. Each sentence has a seed of its own, made of the job's and its number, so that
it sounds the same whatever else is said.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from transformers import (
    AutoModelForTextToWaveform,
    AutoProcessor,
    FastSpeech2ConformerWithHifiGan,
    SpeechT5ForTextToSpeech,
    SpeechT5HifiGan,
)

from shared.errors import JobFailed, ModelRejected
from shared.tasks.text_to_speech import TextToSpeechParams
from workers.generators import Device, Done, Failed, ModelFiles, Outcome, Output, Run, Work
from workers.generators.pretrained import Pretrained, load_model, load_part, load_tokenizer
from workers.generators.sentences import joined, sentences
from workers.generators.sound_files import MEDIA_TYPES, Samples, write_sound


class Speaker(Pretrained):
    """A model that reads aloud."""

    #: types of models, by their configs
    kinds: ClassVar[tuple[str, ...]]
    #: most characters that are said in one go
    breath: ClassVar[int] = 300

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether the model is of one of these types."""
        return files is not None and files.config.get("model_type") in cls.kinds

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Raises `ModelRejected` for a model of another kind, or one that cannot be read."""
        if files is None:
            raise ModelRejected("model_not_found", "text-to-speech needs a model")
        if not cls.serves(files):
            kind = files.config.get("model_type")
            raise ModelRejected("model_wrong_task", f"{files.ref} cannot read aloud: model type {kind!r} has no voice")
        return cls._made(files, device)

    @classmethod
    @abstractmethod
    def _made(cls, files: ModelFiles, device: Device) -> Self:
        """The model with what it needs."""

    @property
    @abstractmethod
    def _rate(self) -> int:
        """Samples per second."""

    @abstractmethod
    def _say(self, text: str, params: TextToSpeechParams) -> Samples:
        """One sentence as (channels, samples); draws from torch's own generator. Raises `JobFailed`."""

    def _check(self, params: TextToSpeechParams) -> None:
        """Raise `JobFailed` for what this model cannot do."""
        for name in ("speaker", "speed"):
            if getattr(params, name) is not None:
                raise JobFailed("param_unsupported", f"this model has no `{name}`: remove it")

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """One text after the other; sentences are the steps."""
        for job in jobs:
            if not run.wanted(job.job_id):
                continue
            try:
                output = self._read(job, run)
            except JobFailed as error:
                yield Failed(job.job_id, error)
            else:
                if output is not None:
                    yield Done(job.job_id, [output])

    def _read(self, job: Work, run: Run) -> Output | None:
        params: TextToSpeechParams = job.params
        self._check(params)
        parts = sentences(params.text, most=self.breath)
        if not parts:
            raise JobFailed("text_unreadable", "there is nothing to say in this text")
        said: list[Samples] = []
        for number, part in enumerate(parts):
            if not run.wanted(job.job_id):
                return None
            with torch.random.fork_rng(devices=_devices(self._model)), torch.inference_mode():
                torch.manual_seed((job.seed * 1_000_003 + number) % 2**63)
                sound = self._say(part, params)
            if not np.isfinite(sound).all():
                raise JobFailed("numerics", "the model's numbers overflowed: run the worker with AIGC_DTYPE=float32")
            said.append(sound)
            run.step([job.job_id], number + 1, len(parts))
        whole = joined(said, rate=self._rate, pause_s=params.pause_s)
        facts = {
            "seconds": round(whole.shape[1] / self._rate, 3),
            "sample_rate": self._rate,
            "channels": len(whole),
            "sentences": len(parts),
            "seed": job.seed,
        }
        body = partial(write_sound, whole, rate=self._rate, form=params.format)
        return Output(MEDIA_TYPES[params.format], body, facts, size=whole.nbytes)


class VitsSpeaker(Speaker):
    """VITS, and the thousand languages of MMS."""

    kinds: ClassVar[tuple[str, ...]] = ("vits",)

    @classmethod
    def _made(cls, files: ModelFiles, device: Device) -> Self:
        made = cls(load_model(files, AutoModelForTextToWaveform, device, what="a voice"))
        made._tokenizer = load_tokenizer(files)
        return made

    _tokenizer: Any

    @property
    def _rate(self) -> int:
        return int(self._model.config.sampling_rate)

    def _check(self, params: TextToSpeechParams) -> None:
        count = self._model.config.num_speakers
        if params.speaker is not None and not (isinstance(params.speaker, int) and 0 <= params.speaker < count):
            raise JobFailed("param_unsupported", f"this model has {count} speaker(s): set `speaker` to 0 … {count - 1}")

    def _say(self, text: str, params: TextToSpeechParams) -> Samples:
        inputs = self._tokenizer(text, return_tensors="pt").to(self._model.device)
        if not inputs["input_ids"].numel():
            raise JobFailed("text_unreadable", f"the model's tokenizer makes nothing of {text[:40]!r}: another script?")
        own = self._model.speaking_rate
        self._model.speaking_rate = own * (params.speed or 1.0)
        try:
            speaker = params.speaker if self._model.config.num_speakers > 1 else None
            return np.asarray(self._model(**inputs, speaker_id=speaker).waveform.float().cpu().numpy())
        finally:
            self._model.speaking_rate = own


class FastSpeaker(Speaker):
    """FastSpeech2Conformer with its vocoder."""

    kinds: ClassVar[tuple[str, ...]] = ("fastspeech2_conformer_with_hifigan",)

    @classmethod
    def _made(cls, files: ModelFiles, device: Device) -> Self:
        made = cls(load_model(files, FastSpeech2ConformerWithHifiGan, device, what="a voice"))
        made._tokenizer = load_tokenizer(files)
        return made

    _tokenizer: Any

    @property
    def _rate(self) -> int:
        return int(self._model.config.vocoder_config.sampling_rate)

    def _say(self, text: str, params: TextToSpeechParams) -> Samples:
        inputs = self._tokenizer(text, return_tensors="pt").to(self._model.device)
        waveform = self._model(inputs["input_ids"], return_dict=True).waveform
        return np.asarray(waveform.float().reshape(1, -1).cpu().numpy())


class BarkSpeaker(Speaker):
    """Bark, which also laughs and sings."""

    kinds: ClassVar[tuple[str, ...]] = ("bark",)
    breath: ClassVar[int] = 200

    @classmethod
    def _made(cls, files: ModelFiles, device: Device) -> Self:
        made = cls(load_model(files, AutoModelForTextToWaveform, device, what="a voice"))
        made._processor = load_part(files, AutoProcessor)
        return made

    _processor: Any

    @property
    def _rate(self) -> int:
        return int(self._model.generation_config.sample_rate)

    def _check(self, params: TextToSpeechParams) -> None:
        if params.speed is not None:
            raise JobFailed("param_unsupported", "this model has no `speed`: remove it")

    def _say(self, text: str, params: TextToSpeechParams) -> Samples:
        inputs = self._processor(text, voice_preset=params.speaker).to(self._model.device)
        return np.asarray(self._model.generate(**inputs).float().reshape(1, -1).cpu().numpy())


class SpeechT5Speaker(Speaker):
    """SpeechT5, with the vocoder that lies beside it in `vocoder/`, and an x-vector in `speaker.npy`."""

    kinds: ClassVar[tuple[str, ...]] = ("speecht5",)

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether it was saved to speak: the same kind of model also hears."""
        return (
            super().serves(files)
            and files is not None
            and "SpeechT5ForTextToSpeech" in (files.config.get("architectures") or [])
        )

    @classmethod
    def _made(cls, files: ModelFiles, device: Device) -> Self:
        made = cls(load_model(files, SpeechT5ForTextToSpeech, device, what="a voice"))
        made._processor = load_part(files, AutoProcessor)
        if not (files.folder / "vocoder").is_dir():
            raise ModelRejected(
                "model_not_a_model",
                f"{files.ref} has no vocoder: save one (SpeechT5HifiGan) into a folder `vocoder` beside the model",
            )
        made._vocoder = SpeechT5HifiGan.from_pretrained(
            files.folder / "vocoder", use_safetensors=True, local_files_only=True
        ).to(device.name)
        voice = files.folder / "speaker.npy"
        width = made._model.config.speaker_embedding_dim
        found = np.load(voice, allow_pickle=False) if voice.is_file() else np.zeros(width, dtype=np.float32)
        made._voice = torch.from_numpy(found.astype(np.float32)).reshape(1, -1).to(made._model.device)
        return made

    _processor: Any
    _vocoder: Any
    _voice: torch.Tensor

    @property
    def _rate(self) -> int:
        return int(self._vocoder.config.sampling_rate)

    def _say(self, text: str, params: TextToSpeechParams) -> Samples:
        inputs = self._processor(text=text, return_tensors="pt").to(self._model.device)
        waveform = self._model.generate_speech(inputs["input_ids"], self._voice, vocoder=self._vocoder)
        return np.asarray(waveform.float().reshape(1, -1).cpu().numpy())


def _devices(model: Any) -> list[torch.device]:
    return [model.device] if model.device.type == "cuda" else []


def speech_kinds() -> Mapping[str, type[Speaker]]:
    """Which voice serves which type of model."""
    return {kind: voice for voice in (VitsSpeaker, FastSpeaker, BarkSpeaker, SpeechT5Speaker) for kind in voice.kinds}
