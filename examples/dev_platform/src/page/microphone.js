// The microphone page. The browser loads this file twice: as the script of the page, and as the
// worklet that gets the audio.
"use strict";

// Makes pieces of 100 ms with samples of 16 bits.
class Recorder {
  constructor(rate, send) {
    this.piece = new Int16Array(Math.round(rate / 10));
    this.filled = 0;
    this.send = send;
  }

  take(samples) {
    for (const sample of samples) {
      this.piece[this.filled++] = Math.max(-1, Math.min(1, sample)) * 32767;
      if (this.filled === this.piece.length) this.flush(false);
    }
  }

  flush(isLast) {
    this.send(this.piece.slice(0, this.filled), isLast);
    this.filled = 0;
  }
}

if (globalThis.registerProcessor) {
  class Processor extends AudioWorkletProcessor {
    constructor() {
      super();
      const send = (piece, isLast) => this.port.postMessage({ piece, isLast }, [piece.buffer]);
      this.recorder = new Recorder(sampleRate, send);
      this.port.onmessage = () => this.recorder.flush(true);
    }

    process([[samples]]) {
      if (samples) this.recorder.take(samples);
      return true;
    }
  }
  registerProcessor("recorder", Processor);
} else {
  setUp(document.getElementById("microphone"), document.currentScript.src);
}

function setUp(form, script) {
  // A second of audio that has not left means that the network is too slow.
  const MOST_WAITING = 100000;
  const [output, { start, stop }] = [form.querySelector("output"), form.elements];
  const [finals, partial] = [document.getElementById("finals"), document.getElementById("partial")];
  // What is being recorded: stream, audio, recorder and socket, and whether it ends.
  let current = null;

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const recording = (current = {});
    begin(recording).catch((error) => finish(recording, error.message));
  });
  stop.addEventListener("click", () => end(current));
  window.addEventListener("pagehide", () => current && finish(current, ""));

  async function begin(recording) {
    [start.disabled, stop.disabled] = [true, false];
    finals.replaceChildren();
    partial.textContent = "";
    output.textContent = "asking for the microphone";
    if (!navigator.mediaDevices) throw new Error("browsers record only on localhost and with HTTPS");
    recording.stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
    recording.audio = new AudioContext();
    await recording.audio.audioWorklet.addModule(script);
    // A WebSocket does not carry the password of the page.
    const { token } = await call("POST", form.dataset.token);
    // Stopped meanwhile.
    if (current !== recording) return release(recording);
    output.textContent = "connecting";
    recording.recorder = new AudioWorkletNode(recording.audio, "recorder", { numberOfOutputs: 0 });
    recording.recorder.port.onmessage = ({ data }) => send(recording, data);
    recording.socket = open(recording, token);
    recording.socket.onopen = () =>
      recording.audio.createMediaStreamSource(recording.stream).connect(recording.recorder);
  }

  function open(recording, token) {
    const query = new URLSearchParams({ sample_rate: recording.audio.sampleRate, token });
    for (const name of ["language", "model"]) {
      const value = form.elements[name].value.trim();
      if (value) query.set(name, value);
    }
    const url = new URL(`${form.dataset.session}?${query}`, document.baseURI);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      messages[message.type]?.(message, recording);
    };
    socket.onclose = ({ code }) => finish(recording, code === 1000 ? "ended" : `closed with ${code}`);
    return socket;
  }

  function send(recording, { piece, isLast }) {
    const { socket } = recording;
    if (socket.readyState !== WebSocket.OPEN) return;
    if (socket.bufferedAmount > MOST_WAITING) {
      recording.problem ??= "the network is too slow";
      end(recording);
    } else {
      socket.send(piece);
    }
    if (isLast) socket.send(JSON.stringify({ type: "end" }));
  }

  const messages = {
    "session.begin": () => (output.textContent = "recording"),
    "transcript.partial": ({ text }) => (partial.textContent = text),
    "transcript.final": ({ text, start }) => {
      partial.textContent = "";
      if (!text) return;
      const [item, time] = [document.createElement("li"), document.createElement("time")];
      time.textContent = `${start.toFixed(1)} s`;
      item.append(time, ` ${text}`);
      finals.append(item);
    },
    warning: ({ message }) => (output.textContent = message),
    error: ({ message }, recording) => (recording.problem = message),
    "session.terminated": ({ reason }, recording) => (recording.problem ??= reason),
  };

  // The recorder sends its rest, and then the session ends.
  function end(recording) {
    if (recording.isEnding) return;
    recording.isEnding = true;
    if (recording.socket?.readyState !== WebSocket.OPEN) return finish(recording, "stopped");
    output.textContent = "ending";
    recording.stream.getTracks().forEach((track) => track.stop());
    recording.recorder.port.postMessage("flush");
  }

  function finish(recording, text) {
    release(recording);
    if (current !== recording) return;
    current = null;
    [start.disabled, stop.disabled] = [false, true];
    partial.textContent = "";
    output.textContent = recording.problem ?? text;
  }

  function release({ stream, audio, socket }) {
    stream?.getTracks().forEach((track) => track.stop());
    if (audio && audio.state !== "closed") audio.close();
    if (socket) [socket.onclose, socket.onmessage] = [null, null];
    socket?.close();
  }
}
