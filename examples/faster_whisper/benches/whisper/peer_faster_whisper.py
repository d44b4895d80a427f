#!/usr/bin/env python3
"""faster-whisper, measured on request.

Started by whisper.rs with the number of threads and a compute type. Each line on the standard input is a JSON request; each gets one line of JSON in return:

    {"load": "DIR", "seconds": 25}  load that CTranslate2 model                       -> versions
    {"encode": true}                one encoder pass over 30 s                        -> seconds
    {"decode": 64, "beam": 5}       so many steps of a search                         -> seconds per step
    {"transcribe": 80, "beam": 5}   a sine of that length, a text of half the tokens  -> seconds
    {"memory": true}                resident memory                                   -> bytes

As `convert IN OUT` it converts a Hugging Face directory instead.
"""

import json
import os
import sys
import time

SAMPLE_RATE = 16_000


class Peer:
    def __init__(self, threads: int, compute_type: str):
        import ctranslate2
        import faster_whisper
        import numpy as np

        self._threads, self._compute_type = threads, compute_type
        self._ct2, self._fw, self._np = ctranslate2, faster_whisper, np

    def load(self, request: dict) -> dict:
        self._model = self._fw.WhisperModel(
            request["load"], device="cpu", compute_type=self._compute_type, cpu_threads=self._threads
        )
        tokenizer = self._model.hf_tokenizer
        ids = ("startoftranscript", "en", "transcribe", "notimestamps", "endoftext")
        *self._prompt, self._end = [tokenizer.token_to_id(f"<|{name}|>") for name in ids]
        mel = self._np.random.default_rng(0).standard_normal((1, 80, 3000), dtype=self._np.float32)
        self._mel = self._ct2.StorageView.from_array(mel)
        # A sine, as on the other side.
        n = self._np.arange(request["seconds"] * SAMPLE_RATE, dtype=self._np.float32)
        self._samples = self._np.sin(n * 0.05) * 0.1
        return {"ctranslate2": self._ct2.__version__, "faster_whisper": self._fw.__version__}

    def encode(self, _: dict) -> dict:
        start = time.perf_counter()
        self._encoded = self._model.model.encode(self._mel, to_cpu=True)
        return {"seconds": time.perf_counter() - start}

    def decode(self, request: dict) -> dict:
        def run(tokens: int) -> tuple[float, int]:
            start = time.perf_counter()
            # The limit counts the prompt, too, and is halved.
            found = self._model.model.generate(
                self._encoded, [self._prompt], beam_size=request["beam"], suppress_tokens=[self._end],
                max_length=2 * tokens, return_no_speech_prob=True,
            )  # fmt: skip
            return time.perf_counter() - start, len(found[0].sequences_ids[0])

        (few, short), (many, long) = run(4), run(request["decode"] + 4)
        return {"seconds": (many - few) / (long - short)}

    def transcribe(self, request: dict) -> dict:
        start = time.perf_counter()
        segments, _ = self._model.transcribe(
            self._samples, language="en", beam_size=request["beam"], temperature=[0.0], without_timestamps=True,
            max_new_tokens=request["transcribe"], suppress_tokens=[self._end], condition_on_previous_text=False,
            no_speech_threshold=None, log_prob_threshold=None, compression_ratio_threshold=None,
        )  # fmt: skip
        tokens = sum(len(segment.tokens) for segment in segments)
        return {"seconds": time.perf_counter() - start, "tokens": tokens}

    def memory(self, _: dict) -> dict:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
        return {"bytes": pages * os.sysconf("SC_PAGE_SIZE")}


def convert(source: str, target: str) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(source, copy_files=["tokenizer.json", "preprocessor_config.json"]).convert(target)


def main() -> None:
    if sys.argv[1] == "convert":
        convert(*sys.argv[2:])
        return
    peer = Peer(int(sys.argv[1]), sys.argv[2])
    requests = (peer.load, peer.encode, peer.decode, peer.transcribe, peer.memory)
    for line in sys.stdin:
        request = json.loads(line)
        answer = next(ask for ask in requests if ask.__name__ in request)
        print(json.dumps(answer(request)), flush=True)


if __name__ == "__main__":
    main()
