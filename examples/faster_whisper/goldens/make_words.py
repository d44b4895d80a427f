#!/usr/bin/env python3
"""Write the times of words that transformers' pipeline finds.

    make_words.py --model DIR --audio DIR --out FILE

Recordings of at most 30 s at 16 kHz, greedy, with timestamps. See README.md.
"""

from __future__ import annotations

import argparse
import json
import wave
from pathlib import Path

import numpy as np
import torch
import transformers

RATE = 16_000
WINDOW = 30 * RATE


def samples(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / 32768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--audio", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    recognize = transformers.pipeline("automatic-speech-recognition", model=args.model, dtype=torch.float32, device="cpu")
    files = []
    for item in json.loads((Path(args.audio) / "manifest.json").read_text(encoding="utf-8")):
        if item["sample_rate"] != RATE or item["channels"] != 1 or not item["text"]:
            continue
        audio = samples(Path(args.audio) / item["file"])
        if len(audio) > WINDOW:
            continue
        found = recognize(
            {"raw": audio, "sampling_rate": RATE},
            return_timestamps="word",
            generate_kwargs={"language": item["language"], "task": "transcribe", "num_beams": 1, "do_sample": False},
        )
        words = [{"word": chunk["text"].strip(), "start": chunk["timestamp"][0], "end": chunk["timestamp"][1]} for chunk in found["chunks"]]
        files.append({"file": item["file"], "language": item["language"], "words": words})
        print(item["file"], found["text"], flush=True)
    document = {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}, "files": files}
    Path(args.out).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
