"""`evaluate`: scores of what was made: texts, pictures and recordings, by themselves or against references.

Which metrics go together is settled here: those of one job compare the same outputs with the same references, and have
their numbers from one model, where they need any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from shared.tasks import Params, Task
from shared.tasks.material import Material, Sparse, What, spelt_out

Metric = Literal[
    "bleu", "chrf", "rouge", "distinct", "self_bleu", "perplexity", "wer", "cer",
    "psnr", "ssim", "lpips", "clip_score", "fid", "kid", "snr", "si_sdr",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Needs:
    """What a metric is computed from."""

    outputs: tuple[What, ...]
    references: What | None = None
    #: whether output i is compared with reference i; else all of them with all
    paired: bool = True
    #: fewest outputs, and references
    least: int = 1
    #: the model that it takes, in words
    model: str | None = None
    #: the same for recordings alone
    model_to_hear: str | None = None


_ENCODER = "a picture encoder, whose features they compare, such as 'facebook/dinov2-base'"
_HEARING = "recordings need a speech recogniser, such as 'openai/whisper-small', or give the texts that it has written"
METRICS: Mapping[str, Needs] = {
    "bleu": Needs(("texts",), "texts"),
    "chrf": Needs(("texts",), "texts"),
    "rouge": Needs(("texts",), "texts"),
    "distinct": Needs(("texts",)),
    "self_bleu": Needs(("texts",), least=2),
    "perplexity": Needs(("texts",), model="perplexity needs a causal language model, such as 'gpt2'"),
    "wer": Needs(("texts", "recordings"), "texts", model_to_hear=_HEARING),
    "cer": Needs(("texts", "recordings"), "texts", model_to_hear=_HEARING),
    "psnr": Needs(("pictures",), "pictures"),
    "ssim": Needs(("pictures",), "pictures"),
    "lpips": Needs(("pictures",), "pictures", model="lpips needs VGG-16 in safetensors: 'timm/vgg16.tv_in1k'"),
    "clip_score": Needs(
        ("pictures",), model="clip_score needs a CLIP model, such as 'openai/clip-vit-base-patch32'"
    ),
    "fid": Needs(("pictures",), "pictures", paired=False, least=2, model=f"fid and kid need {_ENCODER}"),
    "kid": Needs(("pictures",), "pictures", paired=False, least=2, model=f"fid and kid need {_ENCODER}"),
    "snr": Needs(("recordings",), "recordings"),
    "si_sdr": Needs(("recordings",), "recordings"),
}  # fmt: skip
#: metrics that take several references for one output
SEVERAL_REFERENCES = ("bleu", "chrf", "rouge")


class BleuOptions(Params):
    """As sacrebleu has them; its signature says them all."""

    tokenize: Literal["13a", "intl", "char", "zh", "none"] = "13a"
    smooth_method: Literal["exp", "floor", "add-k", "none"] = "exp"
    lowercase: bool = False
    max_ngram_order: Annotated[int, Field(ge=1, le=8)] = 4


class ChrfOptions(Params):
    """As sacrebleu has them; `word_order` 2 makes chrF++."""

    char_order: Annotated[int, Field(ge=1, le=10)] = 6
    word_order: Annotated[int, Field(ge=0, le=4)] = 0
    beta: Annotated[int, Field(ge=1, le=10)] = 2
    lowercase: bool = False


class RougeOptions(Params):
    """As rouge-score has them; its own tokenizer (`ascii`) keeps a–z and 0–9 only."""

    types: Annotated[
        tuple[Literal["rouge1", "rouge2", "rouge3", "rouge4", "rougeL", "rougeLsum"], ...], Field(min_length=1)
    ] = ("rouge1", "rouge2", "rougeL")
    stem: bool = False
    tokenizer: Literal["ascii", "unicode"] = "ascii"

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.stem and self.tokenizer != "ascii":
            raise ValueError("`stem` is for English words: it has no effect with tokenizer=unicode")
        return self


class DistinctOptions(Params):
    """Lengths of the n-grams that are counted."""

    orders: Annotated[tuple[Annotated[int, Field(ge=1, le=8)], ...], Field(min_length=1)] = (1, 2)
    lowercase: bool = False


class SelfBleuOptions(BleuOptions):
    """Of so many texts at most, drawn by the seed: it costs their square."""

    sample: Annotated[int, Field(ge=2, le=1000)] = 200


class PerplexityOptions(Params):
    """Tokens that the model sees at once, and how many of them are scored before the window moves on."""

    window: Annotated[int | None, Field(ge=2)] = None
    stride: Annotated[int | None, Field(ge=1)] = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.stride is not None and self.window is not None and self.stride >= self.window:
            raise ValueError("`stride` must be less than `window`: what is scored needs something before it")
        return self


class WordOptions(Params):
    """`plain` compares words without case and punctuation, `none` every letter as it stands."""

    normalize: Literal["plain", "none"] = "plain"


class PictureOptions(Params):
    """`luma` compares brightness alone (BT.601), as papers on super-resolution do, often with a border cut off."""

    channels: Literal["rgb", "luma"] = "rgb"
    crop_border: Annotated[int, Field(ge=0, le=256)] = 0


class KidOptions(Params):
    """Subsets that are drawn by the seed, and their size: by default 1,000, or all if there are fewer."""

    subsets: Annotated[int, Field(ge=1, le=1000)] = 100
    subset_size: Annotated[int | None, Field(ge=2)] = None


class RecognitionOptions(Params):
    """What the recogniser of recordings is told."""

    language: Annotated[str | None, Field(min_length=2, max_length=40)] = None


class Options(Sparse):
    """What the metrics are told, by their names."""

    bleu: BleuOptions | None = None
    chrf: ChrfOptions | None = None
    rouge: RougeOptions | None = None
    distinct: DistinctOptions | None = None
    self_bleu: SelfBleuOptions | None = None
    perplexity: PerplexityOptions | None = None
    wer: WordOptions | None = None
    cer: WordOptions | None = None
    psnr: PictureOptions | None = None
    ssim: PictureOptions | None = None
    kid: KidOptions | None = None
    recognition: RecognitionOptions | None = None


DEFAULTS: Mapping[str, Params] = {
    "bleu": BleuOptions(), "chrf": ChrfOptions(), "rouge": RougeOptions(), "distinct": DistinctOptions(),
    "self_bleu": SelfBleuOptions(), "perplexity": PerplexityOptions(), "wer": WordOptions(), "cer": WordOptions(),
    "psnr": PictureOptions(), "ssim": PictureOptions(), "kid": KidOptions(), "recognition": RecognitionOptions(),
}  # fmt: skip


class EvaluateParams(Params):
    """What an `evaluate` job may set."""

    outputs: Annotated[
        Material,
        Field(
            description='what is judged: `"batch:<id>"` for the outputs of a finished batch, a list of references to '
            "files, a folder, or a list of texts; see below"
        ),
    ]
    metrics: Annotated[
        list[Metric],
        Field(min_length=1, description=f"one or several of {', '.join(f'`{name}`' for name in METRICS)}"),
    ]
    references: Annotated[
        Material | None, Field(description="what they are compared with, given like the outputs, in the same order")
    ] = None
    prompts: Annotated[
        Material | None,
        Field(
            description="for `clip_score`: texts that say what each picture was to show; by default the prompts that "
            "the picture files of this project carry"
        ),
    ] = None
    options: Annotated[
        Options | None, Field(description='options by metric, such as `{"rouge": {"stem": true}}`; see below')
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, said: Any) -> Any:
        if not isinstance(said, Mapping):
            return said
        wanted = said.get("metrics")
        if isinstance(wanted, str):
            wanted = [name.strip() for name in wanted.split(",")]
        names = wanted if isinstance(wanted, (list, tuple)) else []
        known = [METRICS[name] for name in names if isinstance(name, str) and name in METRICS]
        kinds: dict[str, What] = {
            "outputs": known[0].outputs[0] if known else "texts",
            "references": next((needs.references for needs in known if needs.references), "texts"),
            "prompts": "texts",
        }
        spelt = {name: spelt_out(said[name], kind) for name, kind in kinds.items() if name in said}
        return {**said, **({"metrics": wanted} if "metrics" in said else {}), **spelt}

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError("`metrics` names one twice: remove it")
        for problem in (*self._of_kinds(), *self._of_references(), *self._of_counts(), *self._of_options()):
            raise ValueError(problem)
        return self

    def _of_kinds(self) -> Iterator[str]:
        for name in self.metrics:
            if self.outputs.what not in METRICS[name].outputs:
                yield (
                    f"{name} judges {' or '.join(METRICS[name].outputs)}, and the outputs are {self.outputs.what}: "
                    "give it a job of its own"
                )
        if "lpips" in self.metrics and (other := {"clip_score", "fid", "kid"}.intersection(self.metrics)):
            yield f"lpips and {min(other)} need different models, and a job has one: make two jobs"
        if any(isinstance(text, list) for text in self.outputs.texts or ()):
            yield "`outputs.texts` holds a list: an output is one text"

    def _of_references(self) -> Iterator[str]:
        wanted = {needs for name in self.metrics if (needs := METRICS[name].references)}
        asking = [name for name in self.metrics if METRICS[name].references]
        if len(wanted) > 1:
            yield f"{' and '.join(asking)} compare with {' and '.join(sorted(wanted))}: make a job for each"
        if asking and self.references is None:
            yield f"`references` is required for {', '.join(asking)}"
        if self.references is not None:
            if not asking:
                yield f"`references` has no effect on {', '.join(self.metrics)}: remove it"
            elif self.references.what not in wanted:
                yield f"{', '.join(asking)} compare with {wanted.pop()}, and the references are {self.references.what}"
            yield from _of_texts("references", self.references)
            single = [name for name in asking if name not in SEVERAL_REFERENCES]
            if single and any(isinstance(text, list) for text in self.references.texts or ()):
                yield f"{', '.join(single)} take one reference for each output"
        if self.prompts is not None:
            if "clip_score" not in self.metrics:
                yield "`prompts` has no effect without clip_score: remove it"
            if self.prompts.what != "texts":
                yield "`prompts` must be texts"
            yield from _of_texts("prompts", self.prompts)

    def _of_counts(self) -> Iterator[str]:
        count = self.outputs.count
        others = {"references": self.references, "prompts": self.prompts}
        for name in self.metrics:
            least = METRICS[name].least
            for side, material in ("outputs", self.outputs), ("references", self.references):
                known = None if material is None else material.count
                if known is not None and known < least:
                    yield f"{name} needs at least {least} {side}, got {known}"
        for side, material in others.items():
            known = None if material is None else material.count
            pairs = side == "prompts" or any(METRICS[name].paired for name in self.metrics if METRICS[name].references)
            if pairs and count is not None and known is not None and count != known:
                yield f"there are {count} outputs and {known} {side}: each output needs its own"

    def _of_options(self) -> Iterator[str]:
        for name in Options.model_fields if self.options is not None else ():
            used = self.outputs.what == "recordings" if name == "recognition" else name in self.metrics
            if getattr(self.options, name) is not None and not used:
                yield f"`options.{name}` has no effect on {', '.join(self.metrics)}: remove it"

    def _model(self, name: str) -> str | None:
        needs = METRICS[name]
        return needs.model_to_hear if self.outputs.what == "recordings" else needs.model

    @property
    def model(self) -> str | None:
        """The model that the job has to name, in words; None if it takes none."""
        # A CLIP model has a picture encoder in it, too.
        first = sorted(self.metrics, key=lambda name: name != "clip_score")
        return next((model for name in first if (model := self._model(name))), None)

    def told(self, name: str) -> Any:
        """The options of a metric."""
        given = None if self.options is None else getattr(self.options, name)
        return DEFAULTS[name] if given is None else given


def _of_texts(side: str, material: Material) -> Iterator[str]:
    for number, text in enumerate(material.texts or ()):
        for each in [text] if isinstance(text, str) else text or [""]:
            if not each.strip():
                yield f"`{side}.texts.{number}` is empty: there is nothing to compare with"


def _cost(params: EvaluateParams) -> float:
    items = params.outputs.count or 100
    each = 0.3 if params.model else 0.02 if params.outputs.what != "texts" else 0.001
    return 0.05 + each * items * len(params.metrics)


TASK = Task(
    name="evaluate",
    summary="scores of texts, pictures and recordings: of a finished batch, or of files against references",
    params=EvaluateParams,
    needs_model=False,
    queue="cpu",
    cost=_cost,
    example={
        "task": "evaluate",
        "params": {
            "metrics": ["bleu", "chrf"],
            "outputs": ["The cat sat on the mat.", "It rained all day."],
            "references": ["The cat is sitting on the mat.", "It rained the whole day."],
        },
    },
    model_for=lambda params: params.model,
)
