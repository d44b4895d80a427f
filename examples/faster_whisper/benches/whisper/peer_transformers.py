#!/usr/bin/env python3
"""transformers with scaled-dot-product attention, measured on request.

Started by whisper.rs with the number of threads, a device and a precision. Each line on the standard input is a JSON request; each gets one line of JSON in return:

    {"config": {...}}    build that model with random weights        -> versions
    {"encode": true}     one encoder pass over 30 s                  -> seconds
    {"decode": 64}       so many greedy steps with a key-value cache -> seconds per step

The decoding loop is written out: `generate` adds its own bookkeeping to every token.
"""

import json
import sys
import time

import torch
import transformers
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

PROMPT = 4


def build(config: dict, device: str, dtype: torch.dtype) -> tuple[WhisperForConditionalGeneration, torch.Tensor]:
    config = WhisperConfig(**config)
    config._attn_implementation = "sdpa"
    model = WhisperForConditionalGeneration(config).eval().to(device, dtype)
    return model, torch.randn(1, config.num_mel_bins, 2 * config.max_source_positions, device=device, dtype=dtype)


def settle(model) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


@torch.inference_mode()
def encode(model, mel) -> float:
    settle(model)
    start = time.perf_counter()
    model.model.encoder(mel)
    settle(model)
    return time.perf_counter() - start


@torch.inference_mode()
def decode(model, mel, steps: int) -> float:
    encoded = model.model.encoder(mel).last_hidden_state
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    ids = torch.arange(PROMPT, device=model.device)[None]

    def step(ids):
        out = model.model.decoder(input_ids=ids, encoder_hidden_states=encoded, past_key_values=cache, use_cache=True)
        token = model.proj_out(out.last_hidden_state[:, -1:]).argmax(-1)
        token.item()
        return token

    # The first step reads the prompt and computes the window's keys and values.
    token = step(ids)
    start = time.perf_counter()
    for _ in range(steps):
        token = step(token)
    return (time.perf_counter() - start) / steps


def main() -> None:
    threads, device, precision = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    model = mel = None
    for line in sys.stdin:
        request = json.loads(line)
        if "config" in request:
            model, mel = build(request["config"], device, getattr(torch, precision))
            answer = {"torch": torch.__version__, "transformers": transformers.__version__}
        elif "encode" in request:
            answer = {"seconds": encode(model, mel)}
        else:
            answer = {"seconds": decode(model, mel, request["decode"])}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
