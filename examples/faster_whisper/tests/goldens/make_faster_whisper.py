#!/usr/bin/env python3
"""Write what faster-whisper and CTranslate2 make of the shipped recordings.

    make_faster_whisper.py --model ../../models/whisper-nano-digits --audio ../../audio --out faster_whisper.json

Needs `ctranslate2 faster-whisper transformers torch`. README.md says what each number is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import ctranslate2
import faster_whisper.transcribe
import numpy as np
from faster_whisper import BatchedInferencePipeline, WhisperModel

sys.path.insert(0, str(Path(__file__).parents[2] / "goldens"))
from reference import Reference, load_audio  # noqa: E402

SEARCHES = {
    "default": {},
    "no_timestamps": {"timestamps": False},
    "three": {"beam_size": 3},
    "patient": {"patience": 2.0},
    "hasty": {"patience": 0.4},
    "unpenalised": {"length_penalty": 0.0},
    "long": {"length_penalty": 2.0},
    "unlike": {"repetition_penalty": 1.4},
    "ngram": {"no_repeat_ngram_size": 2},
    "greedy_unlike": {"beam_size": 1, "repetition_penalty": 1.4, "no_repeat_ngram_size": 3},
    "short": {"max_tokens": 6},
}

# The parts of speech that the engine's detector finds, in samples. Silero finds others.
SPEECH = {
    "en_long_75s.wav": [
        (0, 6912), (6912, 44288), (44288, 81408), (91136, 136192), (137216, 169216), (194304, 248576),
        (248576, 284672), (289024, 334848), (417280, 450304), (451328, 498688), (501504, 534784), (547328, 588416),
        (588416, 611328), (644352, 690944), (692224, 733568), (733568, 777728), (785408, 818944), (820480, 867328),
        (884224, 926720), (926720, 964096), (970240, 1020160), (1021440, 1065472), (1070848, 1102848),
    ],
    "en_pauses_25s.wav": [
        (0, 6144), (6144, 45056), (50432, 95232), (97024, 129280), (147968, 195584), (196608, 234368),
        (234368, 264960),
    ],
    "de_seven.wav": [(0, 51520)],
}  # fmt: skip


class Windows:
    """The features of each window, made from its samples alone and filled up with zero samples.

    faster-whisper's own are those of the whole recording, filled up with 0, which is not silence: this model hears
    words in it.
    """

    def __init__(self, ref: Reference, audio: np.ndarray):
        self._ref, self._audio = ref, audio
        self.shape = (80, len(audio) // 160 + 1)

    def __getitem__(self, at):
        frames = at[-1]
        return features(self._ref, self._audio[frames.start * 160 : frames.stop * 160])[0]


class Extractor:
    def __init__(self, ref: Reference, extractor):
        self._ref, self._extractor = ref, extractor

    def __call__(self, audio, chunk_length=None):
        assert chunk_length is None
        return Windows(self._ref, audio)

    def __getattr__(self, name):
        return getattr(self._extractor, name)


class Multilingual:
    """CTranslate2's model. It counts its tokens to find out whether it knows several languages."""

    is_multilingual = True

    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        return getattr(self._model, name)


def features(ref: Reference, audio: np.ndarray) -> np.ndarray:
    return ref.mel(audio).numpy()


def search(model, mel: np.ndarray, prompt: list[int], options: dict) -> dict:
    options = {"beam_size": 5, **options}
    length_penalty = options.get("length_penalty", 1.0)
    max_tokens = options.pop("max_tokens", 224)
    result = model.generate(
        ctranslate2.StorageView.from_array(mel), [prompt], return_scores=True, return_no_speech_prob=True,
        max_length=min(448, 2 * max_tokens), max_initial_timestamp_index=50, **options,
    )[0]  # fmt: skip
    ids = result.sequences_ids[0]
    total = result.scores[0] * len(ids) ** length_penalty if ids else result.scores[0]
    return {"ids": ids, "avg_logprob": total / (len(ids) + 1), "no_speech_prob": result.no_speech_prob}


def transcript(model: WhisperModel, audio: np.ndarray, language: str, **options) -> list[dict]:
    found, _ = model.transcribe(audio, language=language, **options)
    segments = []
    for segment in found:
        words = [
            {"word": w.word, "start": float(w.start), "end": float(w.end), "probability": float(w.probability)}
            for w in segment.words or []
        ]
        segments.append({
            "seek": segment.seek, "start": float(segment.start), "end": float(segment.end), "text": segment.text,
            "tokens": segment.tokens, "avg_logprob": float(segment.avg_logprob),
            "temperature": float(segment.temperature), "words": words,
        })  # fmt: skip
    return segments


class Chunks:
    """The features of chunks, with the frame more that BatchedInferencePipeline drops."""

    def __init__(self, ref: Reference, extractor):
        self._ref, self._extractor = ref, extractor

    def __call__(self, audio, chunk_length=None):
        mel = features(self._ref, audio)[0]
        return np.concatenate([mel, mel[:, -1:]], axis=1)

    def __getattr__(self, name):
        return getattr(self._extractor, name)


def batched(model: WhisperModel, ref: Reference, audio: np.ndarray, name: str, language: str) -> list[dict]:
    """BatchedInferencePipeline with its defaults and the times of words, for chunks of at most 10 and 30 s."""
    extractor = model.feature_extractor
    model.feature_extractor = Chunks(ref, extractor)
    found = []
    for chunk_length in (10, 30):
        parts = [{"start": start, "end": end} for start, end in SPEECH[name]]
        faster_whisper.transcribe.get_speech_timestamps = lambda *_, parts=parts: parts
        pipeline = BatchedInferencePipeline(model)
        segments = transcript(pipeline, audio, language, word_timestamps=True, chunk_length=chunk_length)
        found.append({"chunk_length": chunk_length, "speech": SPEECH[name], "segments": segments})
    model.feature_extractor = extractor
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--audio", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        converted = Path(directory) / "model"
        subprocess.run(
            ["ct2-transformers-converter", "--model", args.model, "--output_dir", converted,
             "--copy_files", "tokenizer.json", "preprocessor_config.json"], check=True, capture_output=True,
        )  # fmt: skip
        peer = WhisperModel(str(converted), device="cpu", compute_type="float32", cpu_threads=1)
    peer.model = Multilingual(peer.model)
    ref = Reference(str(args.model))
    peer.feature_extractor = Extractor(ref, peer.feature_extractor)
    manifest = json.loads((args.audio / "manifest.json").read_text())
    known = json.loads((Path(__file__).parents[2] / "goldens/goldens.json").read_text())
    files = []
    for golden in known["files"]:
        if not golden["native_16k_mono"]:
            continue
        name, language = golden["file"], golden["language"]
        audio = load_audio(args.audio / name)
        mel = features(ref, audio)
        tokenizer = peer.hf_tokenizer
        start = [tokenizer.token_to_id(f"<|{t}|>") for t in ("startoftranscript", language, "transcribe")]
        plain = tokenizer.token_to_id("<|notimestamps|>")
        searches = {}
        for label, options in SEARCHES.items():
            options = dict(options)
            prompt = start if options.pop("timestamps", True) else [*start, plain]
            searches[label] = search(peer.model, mel, prompt, options)
        text = [t for t in searches["default"]["ids"] if t < tokenizer.token_to_id("<|endoftext|>")]
        frames = min(3000, len(audio) // 160)
        aligned = None
        if text:
            result = peer.model.align(ctranslate2.StorageView.from_array(mel), start, [text], frames)[0]
            aligned = {
                "text": text, "frames": frames, "alignments": [list(pair) for pair in result.alignments],
                "probabilities": [float(p) for p in result.text_token_probs],
            }  # fmt: skip
        files.append({
            "file": name, "language": language, "searches": searches, "align": aligned,
            "words": transcript(peer, audio, language, word_timestamps=True, condition_on_previous_text=False),
            "prompted": transcript(peer, audio, language),
            "batched": batched(peer, ref, audio, name, language) if name in SPEECH else [],
        })  # fmt: skip
        print(name, len(files[-1]["words"]))
    weights = (args.model / "model.safetensors").read_bytes()
    out = {
        "model_sha256": hashlib.sha256(weights).hexdigest(),
        "ctranslate2": ctranslate2.__version__,
        "faster_whisper": faster_whisper.__version__,
        "searches": SEARCHES,
        "files": files,
    }
    args.out.write_text(json.dumps(out, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
