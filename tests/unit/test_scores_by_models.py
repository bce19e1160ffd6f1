"""Scores that a model has a part in: by models whose answer is known, or by another way to the same number."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import input_scores
import numpy as np
import pytest
import tiny_models
from input_scores import noise, sound, tone

from shared.settings import Settings
from shared.tasks.evaluate import EvaluateParams
from shared.tasks.inputs import references
from workers.generators import Device, Done, Work
from workers.inputs.looks import Limits, examine
from workers.model_files import resolve

pytestmark = pytest.mark.torch

CPU = Device("cpu", "float32")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


class Run:
    session = "w"

    def step(self, job_ids: Any, done: int, total: int) -> None:
        assert 0 < done <= total

    def wanted(self, job_id: str) -> bool:
        return True


def evaluated(generator: Any, **said: Any) -> dict[str, Any]:
    params = EvaluateParams.model_validate(said)
    limits = Limits(pixels=10**6, seconds=100.0)
    files = {each.place: examine(Path(each.text), each.kind, each.text, limits) for each in references(params)}
    [outcome] = generator.generate([Work("job-1", "evaluate", params, seed=3, inputs=files)], Run())
    assert isinstance(outcome, Done), outcome
    body = outcome.outputs[0].body
    assert isinstance(body, bytes)
    return {score["metric"]: score for score in json.loads(body)["scores"]} | {"items": json.loads(body)["items"]}


def loaded(kind: Any, model: Any, root: Path) -> Any:
    return kind.load(resolve(str(model(root)), settings=Settings(_env_file=None, data_dir=root)), CPU)


# --- perplexity ---


def test_windows_score_each_token_once_with_something_before_it() -> None:
    from workers.generators.evaluator_language import windows_of

    for length in range(40):
        for window, stride in ((8, 4), (8, 7), (5, 1), (32, 16), (64, 32)):
            tokens = list(range(length))
            found = list(windows_of(tokens, window, stride))
            scored = [token for each in found for token in each.tokens[each.first :]]
            assert scored == tokens[1:]
            assert all(len(each.tokens) <= window and each.first >= 1 for each in found)


def test_a_model_that_expects_nothing_is_as_perplexed_as_its_vocabulary_is_large(root: Path) -> None:
    from workers.generators.evaluator_language import LanguageEvaluator

    said = ["a hat", "a much longer text about hats, which is read in several windows of thirty-two bytes each", ""]
    found = evaluated(loaded(LanguageEvaluator, input_scores.uniform, root), metrics=["perplexity"], outputs=said)
    score = found["perplexity"]

    assert score["value"] == pytest.approx(257)
    assert score["details"]["tokens"] == sum(map(len, said))
    assert score["details"]["bits_per_byte"] == pytest.approx(math.log2(257))
    assert [row["perplexity"] for row in found["items"]] == [pytest.approx(257), pytest.approx(257), None]
    assert (score["n"], len(score["notes"])) == (2, 2)


def test_perplexity_is_that_of_transformers_own_loss_summed_over_tokens(root: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from workers.generators.evaluator_language import LanguageEvaluator

    folder = tiny_models.llama(root)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    said = ["new shoes", "old hats, blue cups & warm coats for a long winter"]
    total, tokens, alone = 0.0, 0, []
    for text in said:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.inference_mode():
            loss = float(model(input_ids=ids, labels=ids).loss)
        total, tokens = total + loss * (ids.shape[1] - 1), tokens + ids.shape[1] - 1
        alone.append(math.exp(loss))
    found = evaluated(loaded(LanguageEvaluator, tiny_models.llama, root), metrics=["perplexity"], outputs=said)

    assert found["perplexity"]["value"] == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert [row["perplexity"] for row in found["items"]] == pytest.approx(alone, rel=1e-5)
    assert abs(sum(alone) / 2 - found["perplexity"]["value"]) > 1


# --- distances of sets ---


def features_of(outputs: Any, compared: Any) -> Any:
    import torch

    params = SimpleNamespace(told=lambda name: SimpleNamespace(subsets=3, subset_size=None))
    made = {"features of outputs": torch.tensor(outputs), "features of references": torch.tensor(compared)}
    return SimpleNamespace(params=params, seed=1, made={**made, "network": "by hand"})


def test_fid_of_one_feature_worked_out_by_hand() -> None:
    """Means 1 and 5, variances 2 and 8: (1 - 5)² + 2 + 8 - 2 √(2 · 8) = 18."""
    from workers.scores.features import fid

    [score] = fid(features_of([[0.0], [2.0]], [[3.0], [7.0]]), lambda: None)

    assert score.value == pytest.approx(18)
    assert score.signature == "network:by hand|N:2|references:2"
    assert not score.notes


def test_fid_says_when_there_are_too_few_pictures_for_it() -> None:
    from workers.scores.features import fid

    rng = np.random.default_rng(0)
    [score] = fid(features_of(rng.normal(size=(5, 8)), rng.normal(size=(9, 8))), lambda: None)

    assert "5 pictures for 8 features" in score.notes[0]


def test_fid_is_the_formula_of_the_paper() -> None:
    from scipy.linalg import sqrtm

    from workers.scores.features import fid

    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(60, 5)), rng.normal(size=(50, 5)) @ rng.normal(size=(5, 5)) + 0.3
    apart = one.mean(0) - other.mean(0)
    here, there = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    expected = apart @ apart + np.trace(here + there - 2 * sqrtm(here @ there).real)

    [score] = fid(features_of(one, other), lambda: None)
    assert score.value == pytest.approx(expected, rel=1e-6)


def test_kid_is_the_unbiased_estimate_of_the_paper() -> None:
    """With subsets of all there are, drawing changes nothing."""
    from workers.scores.features import kid

    rng = np.random.default_rng(2)
    one, other = rng.normal(size=(12, 4)), rng.normal(size=(12, 4)) + 0.5
    kernel = lambda a, b: (a @ b.T / 4 + 1) ** 3  # noqa: E731
    off = ~np.eye(12, dtype=bool)
    expected = kernel(one, one)[off].mean() + kernel(other, other)[off].mean() - 2 * kernel(one, other).mean()

    [score] = kid(features_of(one, other), lambda: None)
    assert score.value == pytest.approx(expected, rel=1e-6)
    assert score.details["standard_deviation"] == pytest.approx(0, abs=1e-6)


def test_drawing_subsets_leaves_torchs_own_numbers_alone() -> None:
    import torch

    from workers.scores.features import kid

    rng = np.random.default_rng(3)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    list(kid(features_of(rng.normal(size=(12, 4)), rng.normal(size=(9, 4))), lambda: None))
    assert torch.equal(torch.rand(1), expected)


# --- pictures ---


def test_the_features_of_pictures_are_those_of_the_model(root: Path) -> None:
    """The distance of pictures to themselves is none, and to others it grows with how far they are."""
    from workers.generators.evaluator_pictures import PictureEvaluator

    generator = loaded(PictureEvaluator, tiny_models.dinov2, root)
    real = [noise(f"real-{number}", number, size=(40, 30)) for number in range(20)]
    near = [noise(f"near-{number}", 100 + number, size=(40, 30)) for number in range(20)]
    far = [noise(f"far-{number}", 200 + number, size=(40, 30), spread=40) for number in range(20)]
    said = {"metrics": ["fid", "kid"], "references": real}
    same, close, away = (evaluated(generator, outputs=outputs, **said) for outputs in (real, near, far))

    assert same["fid"]["value"] == pytest.approx(0, abs=1e-4)
    assert same["fid"]["value"] < close["fid"]["value"] < away["fid"]["value"]
    assert close["kid"]["value"] < away["kid"]["value"]
    network = away["fid"]["details"]["network"]
    assert network.startswith(str(tiny_models.dinov2(root)))
    assert network.endswith("|features:cls")
    assert (away["fid"]["details"]["dimensions"], away["fid"]["n"]) == (8, 20)


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32}
#: class, config, processor, and what is taken as the features of a picture
ENCODERS = [
    ("ViTForImageClassification", SMALL | {"patch_size": 8}, "ViTImageProcessor", "cls", 16),
    ("DeiTForImageClassification", SMALL | {"patch_size": 8}, "DeiTImageProcessor", "cls", 16),
    ("SwinForImageClassification", {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1],
                                    "num_heads": [2, 2], "window_size": 4}, "ViTImageProcessor", "mean", 16),
    ("ConvNextForImageClassification", {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2},
     "ConvNextImageProcessor", "mean", 12),
    ("ResNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1]},
     "ConvNextImageProcessor", "mean", 12),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "config", "processor", "layer", "width"), ENCODERS, ids=[each[0] for each in ENCODERS]
)
def test_any_picture_classifier_is_an_encoder(
    name: str, config: dict[str, Any], processor: str, layer: str, width: int, tmp_path: Path
) -> None:
    """Saved with its head, and without what pools for it, as the hub has them."""
    import torch
    import transformers

    from workers.generators.evaluator_pictures import PictureEvaluator

    torch.manual_seed(3)
    kind = getattr(transformers, name)
    kind(kind.config_class(**config)).save_pretrained(tmp_path)
    size = {"shortest_edge": 32} if processor == "ConvNextImageProcessor" else {"height": 32, "width": 32}
    about = {"image_processor_type": processor, "size": size, "crop_size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    generator = loaded(PictureEvaluator, lambda root: tmp_path, tmp_path)
    real = [noise(f"real-{number}", number, size=(40, 30)) for number in range(5)]
    far = [noise(f"far-{number}", 200 + number, size=(40, 30), spread=40) for number in range(4)]
    again = [evaluated(generator, metrics=["fid"], outputs=far, references=real)["fid"] for _ in range(2)]

    assert again[0] == again[1]
    assert again[0]["value"] > 0
    assert again[0]["details"]["network"].endswith(f"|features:{layer}")
    assert again[0]["details"]["dimensions"] == width
    assert evaluated(generator, metrics=["fid"], outputs=real, references=real)["fid"]["value"] < again[0]["value"] / 10


def test_clip_score_is_a_hundred_times_the_cosine_that_clip_gives(root: Path) -> None:
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    from workers.generators.evaluator_clip import ClipEvaluator

    folder = tiny_models.clip(root)
    files, prompts = [noise("one", 1), noise("two", 2), noise("three", 3)], ["a hat", "blue cups", "a long winter " * 9]
    model = CLIPModel.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(prompts, padding=True, truncation=True, return_tensors="pt")
    shown = AutoImageProcessor.from_pretrained(folder)([Image.open(each) for each in files], return_tensors="pt")
    with torch.inference_mode():
        logits = model(**tokens, **shown).logits_per_image
    expected = (100 * logits / model.logit_scale.exp().detach()).diagonal().clamp(min=0)

    found = evaluated(
        loaded(ClipEvaluator, tiny_models.clip, root), metrics=["clip_score"], outputs=files, prompts=prompts
    )
    assert [row["clip_score"] for row in found["items"]] == pytest.approx(expected.tolist(), abs=1e-3)
    assert found["clip_score"]["value"] == pytest.approx(float(expected.mean()), abs=1e-3)
    assert found["clip_score"]["details"]["prompts_cut"] == 1


def test_pictures_of_ours_say_themselves_what_they_were_to_show(root: Path, tmp_path: Path) -> None:
    from PIL import Image

    from workers.generators.evaluator_clip import ClipEvaluator
    from workers.generators.picture_files import encode

    record = {
        "params": {"prompt": "a hat", "num_inference_steps": 2}, "guidance_scale": 1.0, "seed": 1, "width": 24,
        "height": 20, "model": "m",
    }  # fmt: skip
    own = tmp_path / "own.png"
    with Image.open(noise("plain", 4)) as image:
        own.write_bytes(encode(image, "png", None, record, "DDIM"))
    generator = loaded(ClipEvaluator, tiny_models.clip, root)
    carried = evaluated(generator, metrics=["clip_score"], outputs=[str(own)])
    given = evaluated(generator, metrics=["clip_score"], outputs=[str(own)], prompts=["a hat"])

    assert carried["items"][0]["clip_score"] == given["items"][0]["clip_score"]


def test_lpips_is_that_of_torchmetrics_over_the_same_network(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchmetrics has it over torchvision alone: what it asks of that is a network of the same layers."""
    import torch
    from PIL import Image

    from workers.generators.evaluator_lpips import LpipsEvaluator

    generator = loaded(LpipsEvaluator, input_scores.vgg16, root)
    network = SimpleNamespace(features=generator._model.features)
    vision, models = ModuleType("torchvision"), ModuleType("torchvision.models")
    models.vgg16 = lambda weights=None: network  # type: ignore[attr-defined]
    models.VGG16_Weights = SimpleNamespace(DEFAULT=None)  # type: ignore[attr-defined]
    vision.models = models  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", vision)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    from torchmetrics.functional.image import lpips as theirs

    monkeypatch.setattr(theirs, "_TORCHVISION_AVAILABLE", True)
    net = theirs._LPIPS(net="vgg").eval()

    files = [noise("left", 5, size=(48, 32)), noise("right", 6, size=(48, 32), spread=90)]
    left, right = (
        torch.tensor(np.asarray(Image.open(each)) / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)[None]
        for each in files
    )
    with torch.inference_mode():
        expected = float(net(left, right))
    found = evaluated(generator, metrics=["lpips"], outputs=[files[0], files[0]], references=[files[1], files[0]])

    assert expected > 0
    assert [row["lpips"] for row in found["items"]] == [pytest.approx(expected, rel=1e-4), 0]


# --- recordings ---


def test_what_is_heard_is_compared_with_what_was_to_be_said(root: Path) -> None:
    import numpy as np
    from transformers import AutoFeatureExtractor, AutoTokenizer, Wav2Vec2ForCTC

    from workers.generators.evaluator_speech import SpeechEvaluator

    folder = input_scores.hearing(root)
    generator = loaded(SpeechEvaluator, input_scores.hearing, root)
    file = sound("said", tone(300) + 0.3 * tone(1100))
    found = evaluated(generator, metrics=["wer", "cer"], outputs={"recordings": [file]}, references=["a bad cab"])
    [row] = found["items"]

    import wave

    import torch

    with wave.open(file) as source:
        samples = np.frombuffer(source.readframes(source.getnframes()), dtype="<i2") / 32768
    inputs = AutoFeatureExtractor.from_pretrained(folder)(samples, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        ids = Wav2Vec2ForCTC.from_pretrained(folder).eval()(**inputs).logits.argmax(-1)
    heard = AutoTokenizer.from_pretrained(folder).decode(ids[0])

    assert row["heard"] == heard.strip()
    exact = evaluated(generator, metrics=["wer"], outputs={"recordings": [file]}, references=[heard])
    assert exact["wer"]["value"] == 0
    assert found["wer"]["value"] > 0
    assert found["wer"]["details"]["heard_by"].startswith(str(folder))
