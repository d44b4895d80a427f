"""Voice activity of the recordings: the probabilities of Silero's network, and the parts of speech that
faster-whisper finds in them.

    pip install faster-whisper==1.2.1
    pip install --no-deps silero-vad==6.2.3
    python make_silero.py --audio ../../audio --out silero.json
"""

import argparse
import json
import sys
import wave
from importlib import metadata
from pathlib import Path

import numpy
import onnxruntime
from faster_whisper import vad

FRAME, CONTEXT, RATE = 512, 64, 16000
FILES = ["en_pauses_25s.wav", "en_noisy_five.wav", "de_seven.wav", "noise_only_6s.wav"]


def samples(path):
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2), path
        return numpy.frombuffer(file.readframes(file.getnframes()), "<i2").astype("float32") / 32768


def probabilities(network, audio):
    """As the class OnnxWrapper of silero-vad, without torch: each frame with the end of the one before."""
    state, context = numpy.zeros((2, 1, 128), "float32"), numpy.zeros(CONTEXT, "float32")
    found = []
    for at in range(0, len(audio), FRAME):
        frame = numpy.pad(audio[at : at + FRAME], (0, max(0, at + FRAME - len(audio))))
        heard = numpy.concatenate([context, frame])[None]
        inputs = {"input": heard, "state": state, "sr": numpy.array(RATE, "int64")}
        probability, state = network.run(None, inputs)
        found.append(round(float(probability[0, 0]), 5))
        context = frame[-CONTEXT:]
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    place = metadata.distribution("silero-vad").locate_file("silero_vad/data/silero_vad.onnx")
    network = onnxruntime.InferenceSession(str(place), providers=["CPUExecutionProvider"])
    files = []
    for name in FILES:
        audio = samples(arguments.audio / name)
        heard = probabilities(network, audio)
        # faster-whisper brings an older network.
        vad.get_vad_model = lambda heard=heard: lambda _: numpy.array(heard)[:, None]
        speech = {}
        for silence in (400, 2000):
            parts = vad.get_speech_timestamps(audio, vad.VadOptions(min_silence_duration_ms=silence))
            speech[str(silence)] = [[part["start"], part["end"]] for part in parts]
        files.append({"file": name, "probabilities": heard, "speech": speech})
    versions = {name: metadata.version(name) for name in ("silero-vad", "faster-whisper", "onnxruntime")}
    arguments.out.write_text(json.dumps({"made_by": versions, "files": files}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
