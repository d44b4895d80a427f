"""An engine in Python, with the commands that engines of the live platform send.

usage: python_engine.py ENGINE_ID HOLD

It transcribes nothing: its transcripts say how long the audio is. Tasks wait while the file HOLD
exists. A task whose prompt is "fail" fails. The variables are those of the platform's engines:
REDIS_URL, DALSTON_S3_BUCKET, DALSTON_S3_ENDPOINT_URL, DALSTON_S3_REGION. It ends with SIGTERM.
"""

import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
import wave
from datetime import datetime, timezone

import boto3
import redis

GROUP = "engines"
DEAD_AFTER_SECONDS = 60
STALE_AFTER_MS = 600_000
HEARTBEAT_SECONDS = 10
# The live platform's engines wait 30 s, and end so much later.
BLOCK_MS = 1000
EVENTS = "dalston:events:stream"
INSTANCES = "dalston:engine:instances"


def now():
    return datetime.now(timezone.utc).isoformat()


class Engine:
    def __init__(self, engine_id, hold):
        self.engine_id = engine_id
        self.hold = hold
        self.instance = f"{engine_id}-{uuid.uuid4().hex[:12]}"
        self.stream = f"dalston:stream:{engine_id}"
        # Without a time limit: the blocking read is silent for as long as it waits.
        self.redis = redis.Redis.from_url(
            os.environ["REDIS_URL"], decode_responses=True, socket_timeout=None
        )
        self.s3 = boto3.client(
            "s3",
            endpoint_url=os.environ.get("DALSTON_S3_ENDPOINT_URL"),
            region_name=os.environ.get("DALSTON_S3_REGION", "eu-west-2"),
        )
        self.bucket = os.environ.get("DALSTON_S3_BUCKET", "dalston-artifacts")
        self.stopped = threading.Event()
        self.task = None

    # The registry.

    def record_name(self):
        return f"dalston:engine:instance:{self.instance}"

    def index_names(self):
        return [INSTANCES, f"dalston:engine:engine_id:{self.engine_id}", "dalston:engine:stage:transcribe"]

    def status(self):
        return {
            "instance": self.instance,
            "engine_id": self.engine_id,
            "stage": "transcribe",
            "status": "processing" if self.task else "idle",
            "interfaces": json.dumps(["batch"]),
            "active_batch": "1" if self.task else "0",
            "gpu_memory_used": "0GB",
            "last_heartbeat": now(),
            "hostname": socket.gethostname(),
            "node_id": socket.gethostname(),
            "deploy_env": "local",
        }

    def register(self):
        capabilities = {
            "engine_id": self.engine_id,
            "version": "1.0.0",
            "stages": ["transcribe"],
            "supports_word_timestamps": True,
            "supports_native_streaming": False,
            "model_variants": None,
            "gpu_required": False,
            "gpu_vram_mb": None,
            "supports_cpu": True,
            "min_ram_gb": None,
            "rtf_gpu": None,
            "rtf_cpu": None,
            "max_concurrency": None,
            "includes_diarization": False,
            "vocabulary_support": None,
            "supports_language_forcing": True,
        }
        record = self.status() | {
            "capacity": "1",
            "active_realtime": "0",
            "gpu_memory_total": "0GB",
            "registered_at": now(),
            "supports_word_timestamps": "true",
            "includes_diarization": "false",
            "execution_profile": "container",
            "stream_name": self.stream,
            "capabilities": json.dumps(capabilities),
            "schema_version": "3",
        }
        self.redis.hset(self.record_name(), mapping=record)
        self.redis.expire(self.record_name(), DEAD_AFTER_SECONDS)
        for name in self.index_names():
            self.redis.sadd(name, self.instance)

    def deregister(self):
        self.redis.delete(self.record_name())
        for name in self.index_names():
            self.redis.srem(name, self.instance)

    def heartbeats(self):
        while not self.stopped.wait(HEARTBEAT_SECONDS):
            self.redis.hset(self.record_name(), mapping=self.status())
            self.redis.expire(self.record_name(), DEAD_AFTER_SECONDS)

    # The queue.

    def create_group(self):
        try:
            self.redis.xgroup_create(self.stream, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def is_dead(self, consumer):
        status, heartbeat = self.redis.hmget(
            f"dalston:engine:instance:{consumer}", "status", "last_heartbeat"
        )
        if heartbeat is None or status in (None, "offline"):
            return True
        age = datetime.now(timezone.utc) - datetime.fromisoformat(heartbeat)
        return age.total_seconds() > DEAD_AFTER_SECONDS

    def next_message(self):
        self.create_group()
        for entry in self.redis.xpending_range(self.stream, GROUP, "-", "+", 1000):
            if entry["time_since_delivered"] >= STALE_AFTER_MS and self.is_dead(entry["consumer"]):
                claimed = self.redis.xclaim(self.stream, GROUP, self.instance, 0, [entry["message_id"]])
                if claimed:
                    return claimed[0]
        for start, block in (("0", None), (">", BLOCK_MS)):
            streams = self.redis.xreadgroup(GROUP, self.instance, {self.stream: start}, 1, block)
            for _, messages in streams or []:
                if messages and messages[0][1]:
                    return messages[0]
        return None

    def acknowledge(self, message_id):
        self.redis.xack(self.stream, GROUP, message_id)

    def emit(self, kind, context, **payload):
        timestamp = now()
        fields = {"type": kind, "timestamp": timestamp, "payload": json.dumps(payload)}
        if context:
            fields["_trace_context"] = json.dumps(context)
        self.redis.xadd(EVENTS, fields, maxlen=10_000, approximate=True)
        published = {"type": kind, **payload, "timestamp": timestamp}
        if context:
            published["_trace_context"] = context
        self.redis.publish("dalston:events", json.dumps(published))

    # A task.

    def run_task(self, message_id, fields):
        task_id, job_id = fields["task_id"], fields["job_id"]
        if self.redis.exists(f"dalston:job:cancelled:{job_id}"):
            return self.acknowledge(message_id)
        metadata = self.redis.hgetall(f"dalston:task:{task_id}")
        names = {"task_id": task_id, "job_id": job_id, "engine_id": self.engine_id}
        if not metadata:
            self.emit("task.failed", None, **names, error="no metadata")
            return self.acknowledge(message_id)
        if "blocked_reason" in metadata:
            return self.acknowledge(message_id)
        wait_fields = ["waiting_for_engine", "wait_enqueued_at", "wait_timeout_s", "wait_deadline_at"]
        self.redis.hdel(f"dalston:task:{task_id}", *wait_fields)
        self.redis.srem("dalston:waiting_engine_tasks", task_id)
        context = json.loads(metadata.get("_trace_context", "{}"))
        started = time.monotonic()
        self.task = task_id
        try:
            with tempfile.TemporaryDirectory(prefix="dalston_task_") as directory:
                request = self.read_json(f"jobs/{job_id}/tasks/{task_id}/request.json")
                resolved = json.loads(metadata["resolved_artifact_ids_json"])
                artifact = request["artifact_index"][resolved["audio"]]
                audio = os.path.join(directory, "audio.wav")
                bucket, key = artifact["storage_locator"].removeprefix("s3://").split("/", 1)
                self.s3.download_file(bucket, key, audio)
                self.emit("task.started", context, **names)
                data = self.process(audio, request["config"])
                response = {
                    "task_id": task_id,
                    "completed_at": now(),
                    "processing_time_seconds": round(time.monotonic() - started, 2),
                    "data": data,
                    "produced_artifacts": [],
                    "produced_artifact_ids": [],
                }
                self.write_json(f"jobs/{job_id}/tasks/{task_id}/response.json", response)
            self.emit("task.completed", context, **names)
        except Exception as error:
            self.emit("task.failed", context, **names, error=str(error))
        finally:
            self.task = None
        self.acknowledge(message_id)

    def process(self, audio, config):
        while os.path.exists(self.hold):
            time.sleep(0.01)
        if config.get("prompt") == "fail":
            raise RuntimeError("the prompt asks for a failure")
        with wave.open(audio) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
            seconds = file.getnframes() / 16000
        channel = config.get("channel")
        text = f"python {'mono' if channel is None else channel} {seconds:.1f}s"
        return {
            "schema_version": "1",
            "text": text,
            "segments": [
                {"id": "0", "start": 0.0, "end": seconds, "text": text, "words": None, "metadata": {}}
            ],
            "language": "und",
            "language_confidence": None,
            "language_source": None,
            "languages": None,
            "duration": seconds,
            "timestamp_granularity": "segment",
            "alignment_method": "unknown",
            "engine_id": self.engine_id,
            "channel": channel,
            "warnings": [],
            "metadata": {},
        }

    def read_json(self, key):
        return json.load(self.s3.get_object(Bucket=self.bucket, Key=key)["Body"])

    def write_json(self, key, value):
        body = json.dumps(value, indent=2).encode()
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=body, ContentType="application/json")

    def run(self):
        signal.signal(signal.SIGTERM, lambda *_: self.stopped.set())
        self.register()
        threading.Thread(target=self.heartbeats, daemon=True).start()
        while not self.stopped.is_set():
            message = self.next_message()
            if message:
                self.run_task(*message)
        self.deregister()


Engine(*sys.argv[1:]).run()
