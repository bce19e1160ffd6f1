"""`text-to-audio` with MusicGen of transformers: sound written token by token, several codebooks at once.

Each piece draws its tokens from its own seed (see `seeded_sampling`), so it is the same beside any neighbours. A pass
is of one length: a codec hears what comes after the end of a shorter one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Sequence
from typing import Any, Self

import torch
from transformers import AutoModelForTextToWaveform, LogitsProcessorList

from shared.errors import JobFailed, ModelRejected
from shared.tasks.text_to_audio import TextToAudioParams
from workers.generators import Device, ModelFiles
from workers.generators.each_token import EachToken
from workers.generators.pretrained import Pretrained, load_model, load_tokenizer
from workers.generators.seeded_sampling import Draw, SeededSampling
from workers.generators.sound_files import Samples
from workers.generators.sound_pieces import Piece, Say, SoundPieces, refuse

#: of MusicGen's authors, where a model says nothing
_GUIDANCE, _TOP_K = 3.0, 250
_KINDS = ("musicgen", "musicgen_melody")


class Composer(SoundPieces, Pretrained):
    """MusicGen, mono or stereo; of its melody models, the part that needs words only."""

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether it is a MusicGen."""
        return files is not None and files.config.get("model_type") in _KINDS

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Raises `ModelRejected` for a model of another kind, or one that cannot be read."""
        if files is None:
            raise ModelRejected("model_not_found", "text-to-audio needs a model")
        if not cls.serves(files):
            saved = ", ".join(files.config.get("architectures") or ()) or files.config.get("model_type")
            raise ModelRejected("model_wrong_task", f"{files.ref} makes no sound from a description: it is a {saved}")
        model = load_model(files, AutoModelForTextToWaveform, device, what="a composer")
        return cls(model, load_tokenizer(files))

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model)
        self._tokenizer = tokenizer
        self._codebooks = int(model.config.decoder.num_codebooks)
        # A stereo model writes both channels in step.
        self._delays = self._codebooks // int(model.config.decoder.audio_channels)
        self._frames_per_s = float(model.config.audio_encoder.frame_rate)
        #: whether the words stand before the sound in one row, so that they may not be padded
        self._in_row = model.config.model_type == "musicgen_melody"

    @property
    def rate(self) -> int:
        """Of its codec."""
        return int(self._model.config.audio_encoder.sampling_rate)

    @property
    def device(self) -> str:
        """Where the model is."""
        return str(self._model.device)

    def alike(self, params: TextToAudioParams) -> Hashable:
        """Length and guidance; and the length of the prompt, where words and sound stand in one row."""
        return self._tokens(params), self._guidance(params), self._words(params.prompt) if self._in_row else None

    def check(self, params: TextToAudioParams) -> None:
        """It has no steps, and takes no negative prompt."""
        refuse(params, ("negative_prompt", "num_inference_steps"), "a model that writes tokens")
        room = int(self._model.config.decoder.max_position_embeddings)
        if self._in_row:
            room -= self._words(params.prompt) + int(self._model.config.chroma_length)
        if self._tokens(params) >= room:
            most = max(0, room - self._delays - 1) / self._frames_per_s
            raise JobFailed("length_unsupported", f"this model makes up to {most:.1f} s, not {params.seconds:g}")

    def made(self, pieces: Sequence[Piece], say: Say) -> Sequence[Samples]:
        """One call of `generate`, a step for each token."""
        first = pieces[0].params
        tokens, guidance = self._tokens(first), self._guidance(first)
        config = copy.deepcopy(self._model.generation_config)
        config.update(
            do_sample=False, guidance_scale=guidance, max_new_tokens=tokens, max_length=None,
            temperature=None, top_k=None, top_p=None,
        )  # fmt: skip
        top_k = self._model.generation_config.top_k or _TOP_K
        draws = [
            Draw(piece.seed * self._codebooks + book, temperature=piece.params.temperature or 1.0, top_k=top_k)
            for piece in pieces
            for book in range(self._codebooks)
        ]
        words = self._tokenizer([piece.params.prompt for piece in pieces], padding=True, return_tensors="pt")
        with torch.inference_mode():
            values = self._model.generate(
                input_ids=words["input_ids"].to(self._model.device),
                attention_mask=words["attention_mask"].to(self._model.device),
                generation_config=config,
                logits_processor=_GuidedFirst([SeededSampling(draws, 1)]),
                stopping_criteria=[EachToken(lambda done: say(done, tokens))],
            )
        made: Sequence[Samples] = [sound.reshape(-1, sound.shape[-1]) for sound in values.float().cpu().numpy()]
        return made

    def _tokens(self, params: TextToAudioParams) -> int:
        """How many are written: later codebooks lag behind the first."""
        return math.ceil(params.seconds * self._frames_per_s) + self._delays - 1

    def _words(self, prompt: str) -> int:
        return len(self._tokenizer(prompt)["input_ids"])

    def _guidance(self, params: TextToAudioParams) -> float:
        own = self._model.generation_config.guidance_scale
        return max(1.0, float(next(each for each in (params.guidance_scale, own, _GUIDANCE) if each is not None)))


class _GuidedFirst(LogitsProcessorList):  # type: ignore[misc]  # transformers has no types
    """MusicGen appends its guidance to what it is given: tokens are drawn after it."""

    def append(self, processor: Any) -> None:
        """To the front."""
        self.insert(0, processor)
