"""Transcribes recordings with OpenAI's client, and prints the events as JSON.

usage: openai_client.py HOST:PORT UTTERANCES SPEECH [SPEECH...]

The first recording is a session in which the server finds so many utterances. The others are utterances
of a second session, which the client commits. Recordings have 16 kHz and one channel of 16 bits.
Each event must have the keys and types that the client's own classes declare.
"""

import array
import asyncio
import base64
import json
import sys
import wave

from openai import AsyncOpenAI

COMPLETED = "conversation.item.input_audio_transcription.completed"
PIECE = 4800


def pcm_24k(path):
    """The samples between those of the file, on a line."""
    with wave.open(path) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2), path
        samples = array.array("h", file.readframes(file.getnframes()))
    resampled = array.array("h")
    for at in range((len(samples) - 1) * 3 // 2):
        whole, rest = divmod(2 * at, 3)
        resampled.append((samples[whole] * (3 - rest) + samples[whole + 1] * rest) // 3)
    return resampled.tobytes()


class Session:
    def __init__(self, connection):
        self.connection = connection
        self.events = []

    async def event(self):
        """The next event, which its class accepts."""
        event = await asyncio.wait_for(self.connection.recv(), 60)
        type(event).model_validate(event.to_dict())
        self.events.append(event.to_dict())
        return event

    async def until(self, kind):
        while True:
            event = await self.event()
            if event.type == kind:
                return event

    async def append(self, audio):
        for at in range(0, len(audio), PIECE):
            piece = base64.b64encode(audio[at : at + PIECE]).decode()
            await self.connection.input_audio_buffer.append(audio=piece)

    async def update(self, turn_detection):
        transcription = {"model": "gpt-4o-transcribe", "language": "en"}
        audio = {"format": {"type": "audio/pcm", "rate": 24000}, "transcription": transcription}
        audio["turn_detection"] = turn_detection
        session = {"type": "transcription", "audio": {"input": audio}}
        await self.connection.session.update(session=session)
        await self.until("session.updated")


async def server_vad(session, recording, utterances):
    await session.update({"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 400})
    await session.append(pcm_24k(recording) + bytes(48000))
    for _ in range(utterances):
        await session.until(COMPLETED)


async def manual(session, recordings):
    await session.update(None)
    buffer = session.connection.input_audio_buffer
    await session.append(pcm_24k(recordings[0]))
    await buffer.clear()
    await session.until("input_audio_buffer.cleared")
    await buffer.commit(event_id="nothing_to_commit")
    await session.until("error")
    for recording in recordings:
        await session.append(pcm_24k(recording))
        await buffer.commit()
        await session.until(COMPLETED)


async def main(url, utterances, recording, *others):
    client = AsyncOpenAI(base_url=f"http://{url}/v1", api_key="any")
    found = {}
    for name, work in [
        ("server_vad", lambda session: server_vad(session, recording, int(utterances))),
        ("manual", lambda session: manual(session, others)),
    ]:
        query = {"intent": "transcription"}
        async with client.realtime.connect(extra_query=query) as connection:
            session = Session(connection)
            await session.until("session.created")
            await work(session)
            found[name] = session.events
    print(json.dumps(found))


asyncio.run(main(*sys.argv[1:]))
