"""`text-to-speech` with a model of transformers: VITS (MMS), SpeechT5, Bark, FastSpeech2Conformer.

A long text is read sentence by sentence. Each sentence has a seed of its own, made of the job's and its number, so that
it sounds the same whatever else is said. Sentences do not share passes: what these models make of one would change with
the length of its neighbours.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForTextToSpectrogram,
    AutoModelForTextToWaveform,
    BarkProcessor,
    SpeechT5HifiGan,
)

from shared.errors import JobFailed, ModelRejected
from shared.tasks.text_to_speech import TextToSpeechParams
from workers.generators import Device, Done, Failed, ModelFiles, Outcome, Output, Run, Work
from workers.generators.drawing import seed_all
from workers.generators.pretrained import Pretrained, load_model, load_part, load_tokenizer
from workers.generators.sentences import joined, sentences
from workers.generators.sound_files import MEDIA_TYPES, Samples, facts_of, write_sound

#: of the models that ESPnet trained: their files do not say
_ESPNET_RATE = 22_050
_KNOBS = ("speaker", "speaker_embedding", "speed")


class Speaker(Pretrained):
    """A model that reads aloud."""

    #: types of models, by their configs
    kinds: ClassVar[tuple[str, ...]]
    #: those of the params `speaker`, `speaker_embedding` and `speed` that such models may have
    knobs: ClassVar[tuple[str, ...]] = ()
    #: most characters that are said in one go
    breath: ClassVar[int] = 300
    #: small models of delicate numbers compute in float32 on every device
    always_float32: ClassVar[bool] = True
    #: the class of transformers that loads them
    auto: ClassVar[Any] = AutoModelForTextToWaveform

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether the model is of one of these types, and was saved to speak."""
        return files is not None and files.config.get("model_type") in cls.kinds

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Raises `ModelRejected` for a model of another kind, or one that cannot be read."""
        if files is None:
            raise ModelRejected("model_not_found", "text-to-speech needs a model")
        if not cls.serves(files):
            saved = ", ".join(files.config.get("architectures") or ()) or files.config.get("model_type")
            raise ModelRejected("model_wrong_task", f"{files.ref} cannot read aloud: it was made for {saved}")
        where = Device(device.name, "float32") if cls.always_float32 else device
        return cls(load_model(files, cls.auto, where, what="a voice"), files)

    def __init__(self, model: Any, files: ModelFiles) -> None:
        super().__init__(model)
        try:
            self._tokenizer = load_tokenizer(files)
        except ImportError as error:
            raise ModelRejected(
                "model_not_a_model", f"{files.ref} needs a package that this worker does not have: {error}"
            ) from None

    @property
    @abstractmethod
    def _rate(self) -> int:
        """Samples per second."""

    @abstractmethod
    def _say(self, text: str, job: Work) -> torch.Tensor:
        """One sentence as samples; draws from torch's own generator. Raises `JobFailed`."""

    def _check(self, params: TextToSpeechParams) -> None:
        """Raise `JobFailed` for what this model cannot do."""
        for name in _KNOBS:
            if getattr(params, name) is not None and name not in self.knobs:
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
            raise JobFailed("text_unreadable", "there is nothing to say in this text: it has no letters and no digits")
        said: list[Samples] = []
        for number, part in enumerate(parts):
            if not run.wanted(job.job_id):
                return None
            said.append(self._heard(part, number, job))
            run.step([job.job_id], number + 1, len(parts))
        whole = joined(said, rate=self._rate, pause_s=params.pause_s)
        facts = facts_of(whole, rate=self._rate, form=params.format) | {"sentences": len(parts), "seed": job.seed}
        body = partial(write_sound, whole, rate=self._rate, form=params.format)
        return Output(MEDIA_TYPES[params.format], body, facts, size=whole.nbytes)

    def _heard(self, part: str, number: int, job: Work) -> Samples:
        """A sentence as (1, samples)."""
        device = self._model.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.inference_mode():
            seed_all((job.seed * 1_000_003 + number) % 2**63, device)
            try:
                sound = self._say(part, job).float().reshape(1, -1).cpu().numpy()
            except ImportError as error:
                message = f"this model's words need a package that the worker does not have: {error}"
                raise JobFailed("package_missing", message) from None
        if not sound.size:
            raise JobFailed("text_unreadable", f"the model says nothing to {part[:40]!r}: write it in its own script")
        if not np.isfinite(sound).all():
            raise JobFailed("numerics", "the model's numbers overflowed: run the worker with AIGC_DTYPE=float32")
        return np.ascontiguousarray(sound, dtype=np.float32)

    def _tokens(self, text: str) -> torch.Tensor:
        """(1, tokens) on the model's device. Raises `JobFailed` if there are none."""
        try:
            tokens = self._tokenizer(text, return_tensors="pt")["input_ids"]
        except ValueError as error:
            raise JobFailed("text_unreadable", f"the model cannot read {text[:40]!r}: {error}") from None
        if not tokens.numel():
            raise JobFailed(
                "text_unreadable", f"the model's tokenizer makes nothing of {text[:40]!r}: write it in its own script"
            )
        return tokens.long().to(self._model.device)


class VitsSpeaker(Speaker):
    """VITS, and the thousand languages of MMS."""

    kinds: ClassVar[tuple[str, ...]] = ("vits",)
    knobs: ClassVar[tuple[str, ...]] = ("speaker", "speed")

    @property
    def _rate(self) -> int:
        return int(self._model.config.sampling_rate)

    def _check(self, params: TextToSpeechParams) -> None:
        super()._check(params)
        _check_number(params.speaker, self._model.config.num_speakers)

    def _say(self, text: str, job: Work) -> torch.Tensor:
        params: TextToSpeechParams = job.params
        made = self._model(
            self._tokens(text),
            speaker_id=int(params.speaker or 0) if self._model.config.num_speakers > 1 else None,
            speaking_rate=self._model.speaking_rate * (params.speed or 1.0),
        )
        return torch.as_tensor(made.waveform)


class FastSpeaker(Speaker):
    """FastSpeech2Conformer with its vocoder."""

    kinds: ClassVar[tuple[str, ...]] = ("fastspeech2_conformer_with_hifigan",)
    knobs: ClassVar[tuple[str, ...]] = ("speaker", "speed")

    @property
    def _rate(self) -> int:
        return int(getattr(self._model.config.vocoder_config, "sampling_rate", _ESPNET_RATE))

    def _check(self, params: TextToSpeechParams) -> None:
        super()._check(params)
        _check_number(params.speaker, self._model.config.model_config.num_speakers or 1)

    def _say(self, text: str, job: Work) -> torch.Tensor:
        params: TextToSpeechParams = job.params
        tokens = self._tokens(text)
        config = self._model.model.config
        many = (config.num_speakers or 1) > 1
        speaker = torch.tensor([[int(params.speaker or 0)]], device=tokens.device) if many else None
        own = config.speaking_speed
        config.speaking_speed = own / (params.speed or 1.0)  # a factor of durations
        try:
            return torch.as_tensor(self._model(tokens, speaker_ids=speaker, return_dict=True).waveform)
        finally:
            config.speaking_speed = own


class BarkSpeaker(Speaker):
    """Bark, which also laughs and sings. Without a voice's name each sentence has another one."""

    kinds: ClassVar[tuple[str, ...]] = ("bark",)
    knobs: ClassVar[tuple[str, ...]] = ("speaker",)
    breath: ClassVar[int] = 200
    always_float32: ClassVar[bool] = False

    def __init__(self, model: Any, files: ModelFiles) -> None:
        super().__init__(model, files)
        self._processor = load_part(files, BarkProcessor)
        voices = self._processor.speaker_embeddings
        if voices is not None:
            voices["repo_or_path"] = str(files.folder)  # never out of it

    @property
    def _rate(self) -> int:
        return int(self._model.generation_config.sample_rate)

    def _check(self, params: TextToSpeechParams) -> None:
        super()._check(params)
        known = self._processor.available_voice_presets
        if params.speaker is not None and params.speaker not in known:
            names = f"one of {', '.join(known[:8])}{' …' if len(known) > 8 else ''}" if known else "none: remove it"
            raise JobFailed("speaker_unknown", f"this model has no voice {params.speaker!r}; it has {names}")

    def _say(self, text: str, job: Work) -> torch.Tensor:
        self._tokens(text)
        inputs = self._processor(text, voice_preset=job.params.speaker).to(self._model.device)
        return torch.as_tensor(self._model.generate(**inputs))


class SpeechT5Speaker(Speaker):
    """SpeechT5, with the vocoder that lies beside it in `vocoder/`, and an x-vector of its own in `speaker.npy`."""

    kinds: ClassVar[tuple[str, ...]] = ("speecht5",)
    auto: ClassVar[Any] = AutoModelForTextToSpectrogram
    knobs: ClassVar[tuple[str, ...]] = ("speaker_embedding",)

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether it was saved to speak: models of its kind also hear."""
        return (
            files is not None
            and super().serves(files)
            and "SpeechT5ForTextToSpeech" in (files.config.get("architectures") or ())
        )

    def __init__(self, model: Any, files: ModelFiles) -> None:
        super().__init__(model, files)
        try:
            vocoder = SpeechT5HifiGan.from_pretrained(
                files.folder / "vocoder", use_safetensors=True, local_files_only=True
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelRejected(
                "model_not_a_model",
                f"{files.ref} has no vocoder that can be read: save one (SpeechT5HifiGan) into a folder `vocoder` "
                f"beside the model: {error}",
            ) from None
        self._vocoder = vocoder.to(model.device).eval()
        own = files.folder / "speaker.npy"
        self._own = self._voice(own, f"{files.ref}/speaker.npy") if own.is_file() else None

    @property
    def _rate(self) -> int:
        return int(self._vocoder.config.sampling_rate)

    def _check(self, params: TextToSpeechParams) -> None:
        super()._check(params)
        if params.speaker_embedding is None and self._own is None:
            raise JobFailed(
                "speaker_missing", "this model has no voice of its own: give `speaker_embedding`, an x-vector as .npy"
            )

    def _say(self, text: str, job: Work) -> torch.Tensor:
        given = job.inputs.get("speaker_embedding")
        voice = self._own if given is None else self._voice(given.path, "`speaker_embedding`")
        return torch.as_tensor(self._model.generate_speech(self._tokens(text), voice, vocoder=self._vocoder))

    def _voice(self, path: Path, shown: str) -> torch.Tensor:
        """An x-vector out of a file. Raises `JobFailed` if it is none of this model's."""
        width = int(self._model.config.speaker_embedding_dim)
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)  # a head may claim any size
        except (OSError, ValueError, EOFError) as error:
            raise JobFailed("input_unreadable", f"{shown} is no file of numpy.save: {error}") from None
        if not isinstance(found, np.ndarray) or found.dtype.kind != "f" or found.size != width:
            raise JobFailed("input_unreadable", f"{shown} has to hold {width} numbers, as this model's x-vectors do")
        return torch.from_numpy(found.astype(np.float32)).reshape(1, width).to(self._model.device)


def _check_number(speaker: int | str | None, count: int) -> None:
    if speaker is not None and not (isinstance(speaker, int) and speaker < count):
        choice = f"set it to a number from 0 to {count - 1}" if count > 1 else "remove `speaker`"
        raise JobFailed("speaker_unknown", f"this model has {count} speaker(s), and not {speaker!r}: {choice}")
