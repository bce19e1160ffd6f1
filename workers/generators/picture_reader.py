"""`image-to-text` with a model of transformers: one that chats (LLaVA, Qwen-VL, SmolVLM, …), BLIP, or an encoder of
pictures before a decoder of texts (TrOCR, Donut, ViT-GPT2).

Each job is put into its model's form by itself; texts whose numbers have equal shapes are written together. Nothing is
taken over from the model's own `generation_config.json` but the ids that begin, end and pad a text, and those that no
text may hold.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoModelForVisualQuestionAnswering,
    GenerationConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from shared.errors import JobFailed, ModelRejected
from shared.tasks.image_to_text import DEFAULT_NEW_TOKENS, ImageToTextParams
from workers.generators import Device, Done, Failed, ModelFiles, Outcome, Output, Run, Work
from workers.generators.input_pictures import open_picture
from workers.generators.picture_questions import (
    FAMILIES,
    Asked,
    Asker,
    BlipAnswers,
    BlipCaptions,
    Captioning,
    Chatting,
    Prompted,
)
from workers.generators.pretrained import Pretrained, load_model, load_part, load_tokenizer
from workers.generators.seen_texts import Seen, write_together
from workers.generators.static_passes import ends_of
from workers.generators.text_rows import Row, Texts
from workers.generators.vision_processors import load_processor

#: of a model's own generation defaults: which tokens have a place of their own, and which have none
_IDS = (
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id", "bad_words_ids",
    "suppress_tokens", "begin_suppress_tokens",
)  # fmt: skip
#: types of model that the library lists beside those that write about pictures
_OTHERS = ("diffusion_gemma", "evolla", "pi0", "udop", "video_llava", "instructblipvideo", "llava_next_video")
_ANSWERS = "BlipForQuestionAnswering"


class PictureReader(Pretrained):
    """A model that writes about what it sees."""

    microbatch: ClassVar[int | None] = 16

    @classmethod
    def serves(cls, files: ModelFiles | None) -> bool:
        """Whether the config names a model that writes about pictures."""
        return files is not None and _why_not(files.config) is None

    @classmethod
    def load(cls, files: ModelFiles | None, device: Device) -> Self:
        """Load safetensors only, and no code of the model's own.

        Raises `ModelRejected`: `model_wrong_task` for a model of another kind or without a trained head,
        `model_not_a_model` if files are missing or cannot be read, `model_needs_package` if its processor wants a
        library that is not installed.
        """
        if files is None:
            raise ModelRejected("model_not_found", "image-to-text needs a model")
        if (reason := _why_not(files.config)) is not None:
            raise ModelRejected("model_wrong_task", f"{files.ref} writes nothing about pictures: {reason}")
        answers = _ANSWERS in (files.config.get("architectures") or [])
        auto = AutoModelForVisualQuestionAnswering if answers else AutoModelForImageTextToText
        # Such models are often saved without the pooler of their encoder, which no text needs.
        model = load_model(files, auto, device, what="a writer about pictures", spare=("encoder.pooler.",))
        return cls(model, _asker(files, model))

    def __init__(self, model: Any, asker: Asker) -> None:
        super().__init__(model)
        self._asker = asker
        config = model.config.get_text_config(decoder=True)
        blip = isinstance(asker, (BlipCaptions, BlipAnswers))
        ends = [config.sep_token_id] if blip else ends_of(model, config, asker.tokenizer)
        positions = getattr(config, "max_position_embeddings", None)
        self._texts = Texts(asker.tokenizer, ends=ends, positions=positions, vocabulary=config.vocab_size)
        #: most texts at a time, as the engine last said
        self._limit: int | None = None
        for part in model.modules():
            own = getattr(part, "generation_config", None)
            if isinstance(own, GenerationConfig):
                part.generation_config = _ids_only(own, asker, ends)

    def cut(self, jobs: Sequence[Work], limit: int) -> list[list[Work]]:
        """Cut into microbatches of at most `limit` texts, with those side by side whose numbers may have one shape.

        A job with more texts than that comes alone; `generate` takes it in slices (except its beams).
        """
        self._limit = limit
        groups: list[list[Work]] = []
        last: object = None
        texts = 0
        for job in sorted(jobs, key=_likeness):
            width, beams = _width(job), job.params.num_beams
            if not groups or beams != last or texts + width > limit:
                groups.append([])
                texts = 0
            groups[-1].append(job)
            texts += width
            last = beams
        return groups

    def most(self, jobs: Sequence[Work], limit: int) -> int:
        """As `cut` does it: by texts."""
        return max(1, limit // max(map(_width, jobs)))

    def shape(self, jobs: Sequence[Work]) -> Hashable:
        """Beams; pictures of a job, and how large they are and the text may become, to the next power of two."""
        pixels = max(_pixels(job) for job in jobs)
        tokens = max(job.params.max_new_tokens or DEFAULT_NEW_TOKENS for job in jobs)
        pictures = max(len(job.params.places) for job in jobs)
        return jobs[0].params.num_beams, pictures, pixels.bit_length(), tokens.bit_length()

    def generate(self, jobs: Sequence[Work], run: Run) -> Iterator[Outcome]:
        """Run the jobs, those of one shape together; those that cannot be done fail before the model starts."""
        groups: dict[object, list[Seen]] = {}
        for job in jobs:
            if not run.wanted(job.job_id):
                continue
            try:
                seen = self._seen(job)
            except JobFailed as error:
                yield Failed(job.job_id, error)
            else:
                groups.setdefault(seen[0].shape, []).extend(seen)
        for alike in groups.values():
            yield from self._alike(alike, run)

    def unload(self) -> None:
        """Drop the model, and what asks it."""
        self._asker = self._texts = None  # type: ignore[assignment]
        super().unload()

    def _alike(self, alike: Sequence[Seen], run: Run) -> Iterator[Outcome]:
        """Write texts of one shape, in slices of at most the limit; a job is done with the last of its texts."""
        beams = alike[0].row.params.num_beams
        size = max(1, (self._limit or len(alike)) // beams)
        slices = [alike[start : start + size] for start in range(0, len(alike), size)]
        steps = [max(each.row.new_tokens for each in share) for share in slices]
        outputs: dict[str, list[Output]] = {}
        for at, share in enumerate(slices):
            wanted = [each for each in share if run.wanted(each.row.job.job_id)]
            if not wanted:
                continue
            made = write_together(self._model, self._texts, wanted, run, before=sum(steps[:at]), total=sum(steps))
            for each, texts in zip(wanted, made, strict=True):
                job = each.row.job
                mine = outputs.setdefault(job.job_id, [])
                mine += texts
                if len(mine) == each.row.params.num_return_sequences and run.wanted(job.job_id):
                    yield Done(job.job_id, mine)

    def _seen(self, job: Work) -> list[Seen]:
        """The texts of a job, in the model's form. Raises `JobFailed` if the model cannot write them."""
        params: ImageToTextParams = job.params
        if params.num_beams > 1 and len(params.places) > 1:
            # Of some families `generate()` would deal the pictures of a text out among its beams.
            raise JobFailed(
                "param_unsupported",
                "a beam search looks at one picture at a time: give one `image`, or set num_beams=1",
            )
        pictures = [open_picture(job.inputs[place].path) for place in params.places]
        asked = self._asker.ask(params, pictures)
        new = self._new_tokens(params, asked)
        writer = replace(job, params=params.writing.model_copy(update={"max_new_tokens": new}))
        count = 1 if params.num_beams > 1 else params.num_return_sequences
        rows = [Row(writer, index, asked.prompt, new, asked.source) for index in range(count)]
        return [Seen(row, asked.inputs, len(pictures)) for row in rows]

    def _new_tokens(self, params: ImageToTextParams, asked: Asked) -> int:
        """Most tokens to write. Raises `JobFailed` if the model has no positions for them."""
        positions = self._texts.positions
        if positions is None:
            return params.max_new_tokens or DEFAULT_NEW_TOKENS
        longest = max(len(asked.prompt), len(asked.source or ()))
        room = positions - len(asked.prompt)
        if longest > positions or room < max(1, params.min_new_tokens or 0):
            raise JobFailed(
                "prompt_too_long",
                f"pictures and words make {longest} tokens, and this model has {positions} positions for them and the "
                "text: shorten the words, or give fewer or smaller pictures",
            )
        if params.max_new_tokens is not None and params.max_new_tokens > room:
            raise JobFailed(
                "length_unsupported",
                f"pictures and words leave {room} of this model's {positions} tokens for the text: lower "
                f"max_new_tokens={params.max_new_tokens}",
            )
        return params.max_new_tokens or min(DEFAULT_NEW_TOKENS, room)


def _asker(files: ModelFiles, model: Any) -> Asker:
    """How this model is asked."""
    config = model.config
    kind = config.model_type
    if kind == "vision-encoder-decoder":
        images = load_part(files, AutoImageProcessor)
        donut = "donut" in config.encoder.model_type
        return Captioning(images, load_tokenizer(files), _begin(files, model), bare=donut)
    processor = load_processor(files)
    if not hasattr(processor, "tokenizer"):
        raise ModelRejected("model_not_a_model", f"{files.ref} has no tokenizer beside its image processor")
    if kind == "blip":
        asker = BlipAnswers if type(model).__name__ == _ANSWERS else BlipCaptions
        return asker(processor, config.text_config.bos_token_id)
    answers_apart = config.is_encoder_decoder or config.get_text_config(decoder=True).is_encoder_decoder
    begin = _begin(files, model) if answers_apart else None
    if getattr(processor, "chat_template", None):
        return Chatting(processor, begin)
    return Prompted(processor, FAMILIES.get(kind), begin, bare=kind == "git")


def _ids_only(own: GenerationConfig, asker: Asker, ends: list[int]) -> GenerationConfig:
    """Of a model's own defaults for writing, what says which tokens are no text."""
    kept = {name: getattr(own, name, None) for name in _IDS}
    kept["eos_token_id"] = ends or None
    if kept["pad_token_id"] is None:
        pad = asker.tokenizer.pad_token_id
        kept["pad_token_id"] = (ends or [0])[0] if pad is None else pad
    if asker.begin is not None:
        kept["decoder_start_token_id"] = asker.begin
    return GenerationConfig(**kept)


def _begin(files: ModelFiles, model: Any) -> int:
    """What every text begins with."""
    decoder = model.config.get_text_config(decoder=True)
    for place in (model.generation_config, model.config, decoder):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if (found := getattr(place, name, None)) is not None:
                return int(found)
    raise ModelRejected("model_not_a_model", f"{files.ref} does not say what its texts begin with")


def _why_not(config: Mapping[str, Any]) -> str | None:
    """Why a model with this `config.json` writes nothing about pictures; None if it does."""
    if "_class_name" in config:
        return f"it is a diffusion model ({config['_class_name']})"
    kind = config.get("model_type")
    known = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(kind)
    if known is None or kind in _OTHERS:
        return f"model type {kind!r} is not one of a model that does"
    saved = config.get("architectures") or []
    if saved and not any(name in (known, _ANSWERS) for name in saved):
        return f"it was saved as {', '.join(saved)}, which has no head for text"
    return None


def _width(job: Work) -> int:
    """How many texts a job counts for."""
    params: ImageToTextParams = job.params
    return max(params.num_beams, params.num_return_sequences)


def _pixels(job: Work) -> int:
    """Of the largest picture of a job."""
    facts = [job.inputs[place].facts for place in job.params.places]
    return max(int(each["width"]) * int(each["height"]) for each in facts)


def _likeness(job: Work) -> tuple[object, ...]:
    """Sorts alike jobs together: beams apart, then by what decides the shape of their numbers."""
    params: ImageToTextParams = job.params
    facts = [job.inputs[place].facts for place in params.places]
    sizes = [(each["width"], each["height"]) for each in facts]
    words = len(params.question or params.prompt or "")
    return params.num_beams, len(sizes), words, sizes, params.max_new_tokens or DEFAULT_NEW_TOKENS
