"""What makes sounds, and what listens to them."""

from __future__ import annotations

import input_sounds
import tiny_models
from contract import LONG, Kind

SOUNDS = input_sounds.sounds()

TEXT = "New shoes for every road. Old hats! Blue cups, and warm coats for a long winter?"
MUSIC = {"seconds": 0.6}
NOISE = {"seconds": 0.5, "num_inference_steps": 3}

KINDS = [
    Kind(
        "recogniser whisper",
        "automatic-speech-recognition",
        "speech_recogniser:SpeechRecogniser",
        tiny_models.whisper,
        mixed=(
            {"audio": SOUNDS["short"]},
            {"audio": SOUNDS["long"], "format": "srt"},
            {"audio": SOUNDS["stereo"], "language": "German", "format": "json", "timestamps": "segment"},
            {"audio": SOUNDS["fine"], "timestamps": "word", "format": "json"},
            {"audio": SOUNDS["music"], "num_beams": 2, "language": "en"},
            {"audio": SOUNDS["silent"]},
            {"audio": SOUNDS["long"], "format": "vtt", "translate": True},
            {"audio": SOUNDS["long"]},
        ),
        bad=(({"audio": SOUNDS["short"], "language": "fr"}, "language_unknown"),),
        wrong=(tiny_models.vits, tiny_models.gpt2, tiny_models.musicgen, tiny_models.stable_diffusion),
    ),
    Kind(
        "recogniser wav2vec2",
        "automatic-speech-recognition",
        "speech_recogniser:SpeechRecogniser",
        tiny_models.wav2vec2,
        mixed=(
            {"audio": SOUNDS["long"]},
            {"audio": SOUNDS["short"]},
            {"audio": SOUNDS["stereo"], "timestamps": "word", "format": "json"},
            {"audio": SOUNDS["long"], "format": "srt"},
        ),
        bad=(
            ({"audio": SOUNDS["short"], "language": "en"}, "param_unsupported"),
            ({"audio": SOUNDS["short"], "translate": True}, "param_unsupported"),
            ({"audio": SOUNDS["short"], "num_beams": 4}, "param_unsupported"),
        ),
        wrong=(tiny_models.speecht5, tiny_models.classifier),
    ),
    Kind(
        "voice vits",
        "text-to-speech",
        "speaker:VitsSpeaker",
        tiny_models.vits,
        mixed=(
            {"text": TEXT},
            {"text": "Buy two.", "speaker": 2, "format": "ogg"},
            {"text": TEXT, "speed": 1.6, "pause_s": 0, "format": "opus"},
            {"text": LONG * 3, "format": "mp3"},
            {"text": "Buy two.", "speaker": 1, "format": "flac"},
        ),
        bad=(
            ({"text": "Buy two.", "speaker": 3}, "speaker_unknown"),
            ({"text": "Buy two.", "speaker": "Ann"}, "speaker_unknown"),
            ({"text": "Buy two.", "speaker_embedding": SOUNDS["voice"]}, "param_unsupported"),
            ({"text": "… — …"}, "text_unreadable"),
            ({"text": "Новая обувь"}, "text_unreadable"),
        ),
        wrong=(tiny_models.whisper, tiny_models.musicgen, tiny_models.gpt2, tiny_models.stable_diffusion),
    ),
    Kind(
        "voice speecht5",
        "text-to-speech",
        "speaker:SpeechT5Speaker",
        tiny_models.speecht5,
        mixed=(
            {"text": "Buy two. Pay one!"},
            {"text": "Buy two.", "format": "flac"},
            {"text": "Buy two.", "speaker_embedding": SOUNDS["voice"]},
        ),
        bad=(
            ({"text": "Buy two.", "speaker": 1}, "param_unsupported"),
            ({"text": "Buy two.", "speed": 1.5}, "param_unsupported"),
            ({"text": "Buy two.", "speaker_embedding": SOUNDS["wide"]}, "input_unreadable"),
            ({"text": "Buy two.", "speaker_embedding": SOUNDS["short"]}, "input_unreadable"),
        ),
        wrong=(tiny_models.wav2vec2, tiny_models.vits),
    ),
    Kind(
        "voice bark",
        "text-to-speech",
        "speaker:BarkSpeaker",
        tiny_models.bark,
        mixed=(
            {"text": "Buy two. Pay one!"},
            {"text": "Buy two.", "speaker": "v2/en_speaker_0", "format": "mp3"},
            {"text": "Old hats.", "format": "flac"},
        ),
        bad=(
            ({"text": "Buy two.", "speaker": "v2/de_speaker_1"}, "speaker_unknown"),
            ({"text": "Buy two.", "speaker": "/etc/voice.npz"}, "speaker_unknown"),
            ({"text": "Buy two.", "speaker": 0}, "speaker_unknown"),
            ({"text": "Buy two.", "speed": 0.5}, "param_unsupported"),
        ),
        wrong=(tiny_models.whisper, tiny_models.musicgen),
    ),
    Kind(
        "voice fastspeech2",
        "text-to-speech",
        "speaker:FastSpeaker",
        tiny_models.fastspeech2,
        mixed=(
            {"text": TEXT},
            {"text": "Buy two.", "speaker": 1},
            {"text": "Buy two.", "speed": 0.5, "format": "flac"},
        ),
        bad=(({"text": "Buy two.", "speaker": 2}, "speaker_unknown"),),
        wrong=(tiny_models.vits, tiny_models.bart),
    ),
    *(
        Kind(
            f"composer {model.__name__}",
            "text-to-audio",
            "composer:Composer",
            model,
            mixed=(
                MUSIC | {"prompt": "a calm piano"},
                MUSIC | {"prompt": "rain on a long road, and new shoes", "temperature": 0.7, "format": "ogg"},
                MUSIC | {"prompt": "a road", "guidance_scale": 1.0, "format": "flac"},
                MUSIC | {"prompt": "a road", "seconds": 0.33, "num_waveforms": 2},
                MUSIC | {"prompt": "old hats", "format": "mp3"},
            ),
            several=(MUSIC | {"prompt": "a calm piano", "num_waveforms": 3}, 3),
            bad=(
                (MUSIC | {"prompt": "x", "seconds": 60}, "length_unsupported"),
                (MUSIC | {"prompt": "x", "negative_prompt": "drums"}, "param_unsupported"),
                (MUSIC | {"prompt": "x", "num_inference_steps": 20}, "param_unsupported"),
            ),
            wrong=(tiny_models.vits, tiny_models.gpt2, tiny_models.stable_audio),
        )
        for model in (tiny_models.musicgen, tiny_models.musicgen_stereo, tiny_models.musicgen_melody)
    ),
    *(
        Kind(
            f"noises {model.__name__}",
            "text-to-audio",
            "diffusers_text_to_audio:DiffusersTextToAudio",
            model,
            mixed=(
                NOISE | {"prompt": "rain"},
                NOISE | {"prompt": "a calm piano", "negative_prompt": "drums", "format": "ogg"},
                NOISE | {"prompt": "old hats", "negative_prompt": "blue cups", "format": "flac"},
                NOISE | {"prompt": "a long road", "num_waveforms": 2},
                NOISE | {"prompt": "a road", "guidance_scale": 1.0, "seconds": 0.3},
                NOISE | {"prompt": "two cups", "num_inference_steps": 2},
            ),
            several=(NOISE | {"prompt": "rain", "num_waveforms": 3}, 3),
            bad=bad,
            wrong=(tiny_models.stable_diffusion, tiny_models.musicgen, tiny_models.gpt2),
        )
        for model, bad in (
            (
                tiny_models.stable_audio,
                (
                    (NOISE | {"prompt": "x", "seconds": 3}, "length_unsupported"),
                    (NOISE | {"prompt": "x", "temperature": 0.5}, "param_unsupported"),
                    (NOISE | {"prompt": LONG * 5}, "prompt_too_long"),
                ),
            ),
            (
                tiny_models.audioldm2,
                (
                    (NOISE | {"prompt": "x", "seconds": 0.001}, "length_unsupported"),
                    (NOISE | {"prompt": "x", "temperature": 0.5}, "param_unsupported"),
                    (NOISE | {"prompt": LONG * 5}, "prompt_too_long"),
                ),
            ),
        )
    ),
    Kind(
        "cleaner",
        "audio-to-audio",
        "sound_cleaner:SoundCleaner",
        None,
        mixed=(
            {"audio": SOUNDS["noisy"], "denoise_db": 20},
            {"audio": SOUNDS["short"], "loudness_lufs": -23, "format": "ogg"},
            {"audio": SOUNDS["fine"], "sample_rate": 44100, "format": "flac"},
            {"audio": SOUNDS["stereo"], "channels": 1, "format": "mp3"},
            {"audio": SOUNDS["long"], "loudness_lufs": -16, "denoise_db": 12, "format": "opus"},
        ),
        bad=(({"audio": SOUNDS["silent"], "loudness_lufs": -16}, "sound_silent"),),
    ),
]
