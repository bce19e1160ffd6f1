"""Makes ``models/shapes``: a small text-to-image pipeline for one coloured figure on a coloured ground.

    python models/make_shapes.py --out models/shapes --work build/shapes

Six stages, each of which is skipped or continued if its files are already under ``--work``:

1. ``vae``      an autoencoder, 128 x 128 pixels to 16 x 16 x 4 latents, first on crops
                (Rombach et al. 2022, arXiv:2112.10752);
2. ``latents``  its latents of a fixed set of drawings, made white (mean 0, covariance 1) inside the
                autoencoder's 1 x 1 layers;
3. ``decoder``  the decoder alone goes on learning, from slightly noisy latents, as those of a UNet are;
4. ``text``     a CLIP text encoder learns to tell what captions say, and stays as it is from then on;
5. ``unet``     a UNet on latents and texts: v-prediction (Salimans & Ho 2022, arXiv:2202.00512), a tenth of
                the captions empty for guidance (Ho & Salimans 2022, arXiv:2207.12598), weights averaged;
6. ``export``   a ``StableDiffusionPipeline`` folder in safetensors.

Runs on one CPU thread by default. A UNet step takes about 0.35 s of it, an autoencoder step 0.35 s.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

STAGES: Final = ("vae", "latents", "decoder", "text", "unet", "export")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "shapes", help="folder of the finished pipeline"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("build/shapes"),
        help="folder of intermediate files; delete to start over",
    )
    parser.add_argument(
        "--crop-steps", type=int, default=1700, help="autoencoder steps on 8 crops of 64 x 64 (default 1700)"
    )
    parser.add_argument(
        "--vae-steps",
        type=int,
        default=700,
        help="autoencoder steps on 2 whole pictures after that (default 700)",
    )
    parser.add_argument(
        "--decoder-steps", type=int, default=1000, help="decoder steps on 2 whole pictures (default 1000)"
    )
    parser.add_argument(
        "--pictures", type=int, default=12000, help="drawings whose latents the UNet learns (default 12000)"
    )
    parser.add_argument("--text-steps", type=int, default=600, help="text encoder steps (default 600)")
    parser.add_argument("--unet-steps", type=int, default=12000, help="UNet steps (default 12000)")
    parser.add_argument("--batch", type=int, default=16, help="latents in a UNet step (default 16)")
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=STAGES,
        default=STAGES,
        help="only these, e.g. to continue one (default all)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="torch threads (default 1, which is stable beside other processes)",
    )
    return parser.parse_args()


if __name__ == "__main__":  # thread variables count only before torch is imported
    _ARGS = _arguments()
    os.environ["OMP_NUM_THREADS"] = str(_ARGS.threads)

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812
from diffusers import (  # noqa: E402
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from shapes_drawing import (  # noqa: E402
    COLOURS,
    FORMATS,
    SHAPES,
    SIZES,
    Scene,
    caption,
    draw,
    random_scene,
)
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer  # noqa: E402

#: Tokens in a prompt, begin and end included; longer prompts are cut.
MAX_TOKENS = 32
#: Highest learning rate of the UNet.
UNET_RATE = 1.5e-3
#: Guidance scale that the model is used and measured with.
GUIDANCE = 2.0
START, END = "<|startoftext|>", "<|endoftext|>"


# --- autoencoder ---------------------------------------------------------------------------------------


def new_vae() -> AutoencoderKL:
    """Factor 8, 4 latent channels, no attention: works for every size that 8 divides."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=128,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def drawings(rng: random.Random, count: int, size: tuple[int, int] = (128, 128), crop: int = 0) -> Tensor:
    """Training pictures, (count, 3, height, width) in -1..1; with ``crop`` a random square of that side."""
    pixels = []
    for _ in range(count):
        picture = np.asarray(draw(random_scene(rng), rng, size))
        if crop:
            top, left = (rng.randrange(0, side - crop + 1) for side in picture.shape[:2])
            picture = picture[top : top + crop, left : left + crop]
        pixels.append(picture)
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def whole_drawings(rng: random.Random, step: int) -> Tensor:
    """Two pictures, every fifth time in one of the oblong formats."""
    return drawings(rng, 2, (128, 128) if step % 5 else ((192, 128) if step % 2 else (128, 192)))


def picture_loss(rebuilt: Tensor, pictures: Tensor) -> tuple[Tensor, float]:
    """L1 of pixels and of their differences to the neighbours; with the first of them as a number."""
    pixel = F.l1_loss(rebuilt, pictures)
    edge = F.l1_loss(rebuilt.diff(dim=-1), pictures.diff(dim=-1)) + F.l1_loss(
        rebuilt.diff(dim=-2), pictures.diff(dim=-2)
    )
    return pixel + edge, pixel.item()


def set_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, steps: int, warmup: int) -> None:
    """Linear warm-up, then half a cosine down to 2 % of ``peak``."""
    rate = peak * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
    for group in optimizer.param_groups:
        group["lr"] = rate


def train_vae(args: argparse.Namespace) -> AutoencoderKL:
    """Trains the autoencoder, or continues, or loads the finished one."""
    folder, state_file = args.work / "vae", args.work / "vae.pt"
    steps = args.crop_steps + args.vae_steps
    if (folder / "done").exists():
        return AutoencoderKL.from_pretrained(folder)
    torch.manual_seed(args.seed)
    vae = new_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), 2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    start = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    rng, noise = random.Random(args.seed + start), torch.Generator().manual_seed(args.seed + start)
    log = Log("vae", steps)
    for step in range(start, steps):
        set_rate(optimizer, 2e-3, step, round(1.25 * steps), warmup=50)  # the rest of the way is the decoder's
        pictures = drawings(rng, 8, crop=64) if step < args.crop_steps else whole_drawings(rng, step)
        posterior = vae.encode(pictures).latent_dist
        loss, pixel = picture_loss(vae.decode(posterior.sample(noise)).sample, pictures)
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        _descend(loss + 1e-4 * kl, optimizer, vae)
        log.note(step, pixel)
        if step % 200 == 199:
            _save({"model": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, state_file)
    vae.save_pretrained(folder)
    (folder / "done").touch()
    return vae


@torch.no_grad()
def whiten(vae: AutoencoderKL, seed: int) -> None:
    """Gives the latents mean 0 and covariance 1 over the drawings; what is rebuilt stays the same.

    Done inside the 1 x 1 layers around the latents, because pipelines know one scaling factor and no mean.
    Rotated back after scaling (ZCA), so that channels stay what they were.
    """
    pictures = drawings(random.Random(seed + 1), 256)
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(16)])
    flat = latents.permute(1, 0, 2, 3).flatten(1).double()
    mean = flat.mean(1)
    values, vectors = torch.linalg.eigh(torch.cov(flat))
    forth = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    back = vectors @ torch.diag(values.sqrt()) @ vectors.T
    channels = len(mean)
    before, after = vae.quant_conv, vae.post_quant_conv
    weight, bias = before.weight.double(), before.bias.double()
    weight[:channels] = torch.einsum("ij,jkab->ikab", forth, weight[:channels])
    bias[:channels] = forth @ (bias[:channels] - mean)
    # variances cannot be rotated into other channels: an even, small one, for pipelines that draw a sample
    weight[channels:] = 0
    bias[channels:] = 2 * math.log(0.02)
    before.weight.copy_(weight)
    before.bias.copy_(bias)
    weight = after.weight.double()
    after.bias.copy_(after.bias.double() + weight[:, :, 0, 0] @ mean)
    after.weight.copy_(torch.einsum("ikab,kj->ijab", weight, back))
    vae.register_to_config(scaling_factor=1.0)


def white_vae(args: argparse.Namespace) -> AutoencoderKL:
    """The trained autoencoder, whitened, with all weights fixed."""
    folder = args.work / "white"
    if (folder / "done").exists():
        vae = AutoencoderKL.from_pretrained(folder)
    else:
        vae = train_vae(args).eval().requires_grad_(requires_grad=False)
        whiten(vae, args.seed)
        vae.save_pretrained(folder)
        (folder / "done").touch()
    return vae.eval().requires_grad_(requires_grad=False)


def refine_decoder(args: argparse.Namespace, vae: AutoencoderKL) -> None:
    """Trains the decoder of a whitened autoencoder further, in place; the latents stay what they are."""
    state_file = args.work / "decoder.pt"
    parts = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(requires_grad=True)
    optimizer = torch.optim.AdamW(parts.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    start = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        parts.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    rng, noise = random.Random(args.seed + 4 + start), torch.Generator().manual_seed(args.seed + 4 + start)
    log = Log("decoder", args.decoder_steps)
    for step in range(start, args.decoder_steps):
        set_rate(optimizer, 1e-3, step, args.decoder_steps, warmup=20)
        pictures = whole_drawings(rng, step)
        with torch.no_grad():
            latents = vae.encode(pictures).latent_dist.mean
        latents += 0.05 * torch.randn(latents.shape, generator=noise)
        loss, pixel = picture_loss(vae.decode(latents).sample, pictures)
        _descend(loss, optimizer, parts)
        log.note(step, pixel)
        if step % 100 == 99 or step + 1 == args.decoder_steps:
            _save(
                {"model": parts.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1},
                state_file,
            )
    vae.requires_grad_(requires_grad=False)


# --- latents -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shelf:
    """Drawings of one format, encoded."""

    #: (count, 4, height / 8, width / 8), float16, white.
    latents: Tensor
    scenes: list[Scene]


@torch.no_grad()
def encode_drawings(args: argparse.Namespace, vae: AutoencoderKL) -> list[Shelf]:
    """The latents of ``--pictures`` drawings, a shelf for each of ``FORMATS``; kept in ``latents.pt``."""
    file = args.work / "latents.pt"
    done: list[tuple[Tensor, list[list[str]]]] = torch.load(file, weights_only=True) if file.exists() else []
    log = Log("latents", args.pictures)
    count = 0
    for number, (size, share) in enumerate(FORMATS.items()):
        wanted = round(args.pictures * share)
        if number < len(done):
            continue
        rng = random.Random(args.seed + 100 + number)
        scenes, parts = [], []
        while len(scenes) < wanted:
            group = [random_scene(rng) for _ in range(16)]
            pixels = np.stack([np.asarray(draw(scene, rng, size)) for scene in group])
            pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
            parts.append(vae.encode(pictures).latent_dist.mean.half())
            scenes.extend(group)
            log.note(count, 0.0)
            count += 16
        rows = [[scene.shape, scene.figure, scene.ground, scene.size] for scene in scenes]
        done.append((torch.cat(parts), rows))
        _save(done, file)
    return [Shelf(latents, [Scene(*row) for row in rows]) for latents, rows in done]


# --- words ---------------------------------------------------------------------------------------------


def make_tokenizer(folder: Path, seed: int) -> CLIPTokenizer:
    """A byte-level BPE with ``</w>`` in CLIP's manner, learnt from captions; it can spell any text."""
    if not (folder / "vocab.json").exists():
        rng = random.Random(seed + 2)
        captions = [caption(random_scene(rng), rng, plain=True) for _ in range(20000)]
        bpe = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END))
        bpe.normalizer = normalizers.Lowercase()
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        bpe.decoder = decoders.ByteLevel()
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=800,
            min_frequency=50,
            initial_alphabet=letters,
            end_of_word_suffix="</w>",
            show_progress=False,
        )
        bpe.train_from_iterator(captions, trainer)
        learnt = json.loads(bpe.to_str())["model"]
        pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in learnt["merges"]]
        tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in pairs] + [START, END]
        folder.mkdir(parents=True, exist_ok=True)
        unique = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
        (folder / "vocab.json").write_text(json.dumps(unique, ensure_ascii=False))
        lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs), ""]
        (folder / "merges.txt").write_text("\n".join(lines))
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        model_max_length=MAX_TOKENS,
        pad_token=END,
    )


def tokens_of(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """(count, MAX_TOKENS) token numbers, padded as the pipeline pads."""
    encoded = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return encoded.input_ids  # type: ignore[no-any-return]


# --- UNet and text encoder -----------------------------------------------------------------------------


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of 128; (batch, MAX_TOKENS) tokens to (batch, MAX_TOKENS, 128) in ``last_hidden_state``."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet() -> UNet2DConditionModel:
    """Latents of 16 x 16 and about; looks at the words on 8 x 8 and 4 x 4."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 96, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


#: What the text encoder must say of a caption: an attribute's values, and last that it is left open.
QUESTIONS: Final[tuple[tuple[str, ...], ...]] = (
    (*SHAPES, "open"),
    (*COLOURS, "open"),
    (*COLOURS, "open"),
    (*SIZES, "open"),
)


def said(words: str, scene: Scene) -> list[int]:
    """Answers to ``QUESTIONS`` for a caption: the scene's, or "open" where the caption does not tell."""
    if not words:
        return [len(values) - 1 for values in QUESTIONS]
    answers = [scene.shape, scene.figure, scene.ground, scene.size]
    named = [True, scene.figure in words, scene.ground in words, True]
    return [
        values.index(answer if known else "open")
        for values, answer, known in zip(QUESTIONS, answers, named, strict=True)
    ]


def train_text(args: argparse.Namespace, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A text encoder from whose states, from the end token on, one linear layer can tell the scene.

    The layer is then thrown away. Reading learnt apart from drawing saves the UNet most of its steps.
    """
    file = args.work / "text.pt"
    torch.manual_seed(args.seed + 5)
    text = new_text_encoder(tokenizer)
    if file.exists():
        text.load_state_dict(torch.load(file, weights_only=True))
        return text.requires_grad_(requires_grad=False)
    head = nn.Linear(128, sum(len(values) for values in QUESTIONS))
    both = nn.ModuleList([text, head])
    optimizer = torch.optim.AdamW(both.parameters(), 2e-3, weight_decay=0.01)
    rng = random.Random(args.seed + 5)
    log = Log("text", args.text_steps)
    for step in range(args.text_steps):
        set_rate(optimizer, 2e-3, step, args.text_steps, warmup=50)
        scenes = [random_scene(rng) for _ in range(64)]
        captions = ["" if rng.random() < 0.05 else caption(scene, rng) for scene in scenes]
        answers = torch.tensor([said(words, scene) for words, scene in zip(captions, scenes, strict=True)])
        loss = text_loss(text, head, tokens_of(tokenizer, captions), answers, tokenizer.eos_token_id)
        _descend(loss, optimizer, both)
        log.note(step, loss.item())
    _save(text.state_dict(), file)
    return text.requires_grad_(requires_grad=False)


def text_loss(text: CLIPTextModel, head: nn.Linear, tokens: Tensor, answers: Tensor, end: int) -> Tensor:
    """Mean cross entropy of the four answers, asked at the end token and at all that pads it."""
    guesses = head(text(tokens).last_hidden_state)
    ended = tokens == end
    loss = torch.zeros(())
    for question, part in enumerate(guesses.split([len(values) for values in QUESTIONS], dim=-1)):
        wanted = answers[:, question, None].expand(tokens.shape)
        loss = loss + F.cross_entropy(part[ended], wanted[ended]) / len(QUESTIONS)
    return loss


def new_scheduler() -> DDIMScheduler:
    """DDPM's linear schedule; it ends in almost pure noise (signal 0.6 %), so grounds get their colour."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def train_unet(args: argparse.Namespace, shelves: list[Shelf], tokenizer: CLIPTokenizer, text: CLIPTextModel) -> None:
    """Trains the UNet, or continues; the weights and their average are kept in ``unet.pt``."""
    state_file = args.work / "unet.pt"
    torch.manual_seed(args.seed)
    unet, average = new_unet(), new_unet()
    average.load_state_dict(unet.state_dict())
    average.requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW(unet.parameters(), UNET_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    start = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        unet.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    rng, noise = random.Random(args.seed + 3 + start), torch.Generator().manual_seed(args.seed + 3 + start)
    scheduler, shares = new_scheduler(), [len(shelf.scenes) for shelf in shelves]
    log = Log("unet", args.unet_steps)
    for step in range(start, args.unet_steps):
        set_rate(optimizer, UNET_RATE, step, args.unet_steps, warmup=100)
        shelf = rng.choices(shelves, shares)[0]
        chosen = rng.sample(range(len(shelf.scenes)), args.batch)
        captions = ["" if rng.random() < 0.1 else caption(shelf.scenes[row], rng) for row in chosen]
        words = text(tokens_of(tokenizer, captions)).last_hidden_state
        loss = unet_loss(unet, shelf.latents[chosen].float(), words, scheduler, noise)
        _descend(loss, optimizer, unet)
        _average(average, unet, min(0.996, (1 + step) / (10 + step)))
        log.note(step, loss.item())
        if step % 100 == 99 or step + 1 == args.unet_steps:
            state = {"model": unet.state_dict(), "average": average.state_dict()}
            _save(state | {"optimizer": optimizer.state_dict(), "step": step + 1}, state_file)


def unet_loss(
    unet: UNet2DConditionModel, clean: Tensor, words: Tensor, scheduler: DDIMScheduler, noise: torch.Generator
) -> Tensor:
    """Mean squared error of the velocity for clean latents, at timesteps spread over the schedule."""
    grain = torch.randn(clean.shape, generator=noise)
    batch, steps = len(clean), scheduler.config.num_train_timesteps
    times = ((torch.arange(batch) + torch.rand(batch, generator=noise)) * steps / batch).long()
    noisy = scheduler.add_noise(clean, grain, times)
    return F.mse_loss(unet(noisy, times, words).sample, scheduler.get_velocity(clean, grain, times))


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, keep: float) -> None:
    for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - keep)


# --- all of it -----------------------------------------------------------------------------------------


def export(args: argparse.Namespace, tokenizer: CLIPTokenizer, text: CLIPTextModel, vae: AutoencoderKL) -> None:
    """Writes the pipeline from the last saved state of decoder and UNet, finished or not.

    UNet and autoencoder in float16: diffusers widens them to float32 when it loads them. The text encoder
    stays in float32, because transformers keeps the stored type.
    """
    decoder = nn.ModuleList([vae.post_quant_conv, vae.decoder])
    decoder.load_state_dict(torch.load(args.work / "decoder.pt", weights_only=True)["model"])
    unet = new_unet()
    unet.load_state_dict(torch.load(args.work / "unet.pt", weights_only=True)["average"])
    vae.register_to_config(_name_or_path="")  # no path of this machine in the folder
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(args.out, safe_serialization=True)
    # What `text-to-image` uses where a job says nothing: diffusers' 7.5 is too much for so small a model.
    (args.out / "generation_defaults.json").write_text(json.dumps({"guidance_scale": GUIDANCE}) + "\n")
    for file in args.out.rglob("*.safetensors"):
        file.chmod(0o644)


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _save(state: object, file: Path) -> None:
    """Whole or not at all."""
    part = file.with_suffix(".part")
    torch.save(state, part)
    part.replace(file)


class Log:
    """A line to stdout every ten seconds or so: stage, step, seconds, running mean of the loss."""

    def __init__(self, stage: str, steps: int) -> None:
        self._stage, self._steps = stage, steps
        self._begin = self._last = time.monotonic()
        self._mean: float | None = None

    def note(self, step: int, loss: float) -> None:
        """Counts one step, numbered from 0, and its loss."""
        self._mean = loss if self._mean is None else 0.98 * self._mean + 0.02 * loss
        now = time.monotonic()
        if now - self._last > 10 or step + 1 == self._steps:
            self._last = now
            print(
                f"{self._stage} {step + 1}/{self._steps} {now - self._begin:.0f} s loss {self._mean:.4f}",
                flush=True,
            )


def main(args: argparse.Namespace) -> None:
    """All stages, in order."""
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    print(
        f"{len(SHAPES)} shapes, {len(COLOURS)} colours, {len(SIZES)} sizes; torch {torch.__version__}",
        file=sys.stderr,
    )
    stages = set(args.stages)
    vae = white_vae(args)
    tokenizer = make_tokenizer(args.work / "tokenizer", args.seed)
    if "latents" in stages:
        encode_drawings(args, vae)
    if "decoder" in stages:
        refine_decoder(args, vae)
    if "text" in stages:
        train_text(args, tokenizer)
    if "unet" in stages:
        train_unet(args, encode_drawings(args, vae), tokenizer, train_text(args, tokenizer))
    if "export" in stages:
        export(args, tokenizer, train_text(args, tokenizer), vae)


if __name__ == "__main__":
    main(_ARGS)
