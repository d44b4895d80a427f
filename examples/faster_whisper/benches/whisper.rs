//! Milliseconds per encoder pass and per decoded token, compared with transformers if it is
//! installed. `cargo xtask bench whisper --peer` installs it.
//!
//! ```text
//! cargo bench -p faster_whisper --bench whisper -- [--threads N] [--rounds N] [--tokens N] [--shapes nano,base,small]
//!     [--device cpu|cuda] [--precision float32|float16|bfloat16] [--peer PYTHON]
//! ```
//!
//! `--peer` names a Python with torch 2.11.0 and transformers 5.23.0. Both sides are measured in
//! the same run, with the same shape and number of threads, in alternating rounds, so that other
//! load on the machine affects both. Medians are reported.
//!
//! A token includes one step of the decoder, the output projection, the suppression rules and the
//! choice. The prompt is not included. Shapes other than `nano` have random weights.

#![allow(clippy::unwrap_used, missing_docs)]

#[allow(dead_code, unreachable_pub)]
#[path = "../tests/it/generated.rs"]
mod generated;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use faster_whisper::{Placement, RuleConfig, Rules, Sampling, Task, Whisper};
use generated::Shape;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use testbed::report::{Report, median, number};

/// Threads of libtorch's pool spin for a while after work. The other side is measured after that.
const PAUSE: Duration = Duration::from_millis(300);
/// The largest accepted ratios to the peer.
const ENCODER_LIMIT: f64 = 1.1;
const TOKEN_LIMIT: f64 = 1.0;

struct Arguments {
    threads: i32,
    rounds: usize,
    tokens: usize,
    shapes: Vec<String>,
    placement: Placement,
    peer: Option<PathBuf>,
}

fn main() {
    let arguments = parse();
    tch::set_num_threads(arguments.threads);
    let mut peer = arguments
        .peer
        .as_deref()
        .map(|python| Peer::start(python, arguments.threads, arguments.placement));
    let mut report = Report::start(&["tch", "torch-sys"]);
    let rows: Vec<_> = arguments
        .shapes
        .iter()
        .map(|name| measure(name, &arguments, peer.as_mut(), &mut report))
        .collect();
    report.table(
        &format!(
            "Milliseconds on {:?} in {:?} with {} threads, medians of {} interleaved rounds of {} tokens:",
            arguments.placement.device,
            arguments.placement.kind,
            arguments.threads,
            arguments.rounds,
            arguments.tokens
        ),
        ["Shape", "Encoder pass", "Peer", "Decoded token", "Peer"],
        &rows,
    );
    report.finish();
}

/// Measures a shape. Returns its row of the table.
fn measure(
    name: &str,
    arguments: &Arguments,
    mut peer: Option<&mut Peer>,
    report: &mut Report,
) -> [String; 5] {
    let scratch = tempfile::tempdir().unwrap();
    let root = root();
    let dir = match name {
        "nano" => root.join("models/whisper-nano-digits"),
        other => {
            let mut shape = match other {
                "tiny" => Shape::published(384, 4),
                "base" => Shape::published(512, 6),
                "small" => Shape::published(768, 12),
                "medium" => Shape::published(1024, 24),
                _ => panic!("unknown shape {other}: nano, tiny, base, small or medium"),
            };
            shape.kind = Kind::Half;
            shape.write(scratch.path());
            scratch.path().to_owned()
        }
    };
    let mut whisper = Whisper::load(&dir, arguments.placement).unwrap();
    let config: Value =
        serde_json::from_str(&std::fs::read_to_string(dir.join("config.json")).unwrap()).unwrap();
    if let Some(peer) = peer.as_mut() {
        let mut config = config.clone();
        config["num_hidden_layers"] = config["encoder_layers"].clone();
        let versions = peer.ask(&json!({ "config": config }));
        report.note(&format!("Peer of {name}: {versions}."));
    }
    drop(scratch);

    let (mut encode, mut decode) = (Vec::new(), Vec::new());
    let (mut peer_encode, mut peer_decode) = (Vec::new(), Vec::new());
    for round in 0..=arguments.rounds {
        let (encoder, token) = ours(&mut whisper, arguments.tokens);
        std::thread::sleep(PAUSE);
        let theirs = peer.as_mut().map(|peer| {
            (
                peer.seconds(&json!({ "encode": true })),
                peer.seconds(&json!({ "decode": arguments.tokens })),
            )
        });
        std::thread::sleep(PAUSE);
        if round == 0 {
            continue; // to warm up
        }
        encode.push(encoder);
        decode.push(token);
        if let Some((encoder, token)) = theirs {
            peer_encode.push(encoder);
            peer_decode.push(token);
        }
    }
    let (encoder, token) = (median(&encode), median(&decode));
    let (peer_encoder, peer_token) = (median(&peer_encode), median(&peer_decode));
    if !peer_encode.is_empty() {
        report.at_most(
            format!("{name}: encoder pass, ratio to transformers"),
            ENCODER_LIMIT,
            encoder / peer_encoder,
            "",
        );
        report.at_most(
            format!("{name}: decoded token, ratio to transformers"),
            TOKEN_LIMIT,
            token / peer_token,
            "",
        );
    }
    let [encoder, peer_encoder, token, peer_token] =
        [encoder, peer_encoder, token, peer_token].map(|seconds| number(seconds * 1e3));
    [name.to_owned(), encoder, peer_encoder, token, peer_token]
}

/// Seconds of an encoder pass, and of a token.
fn ours(whisper: &mut Whisper, tokens: usize) -> (f64, f64) {
    let placement = whisper.placement();
    let config = &whisper.config().model;
    let mel = Tensor::randn(
        [1, config.num_mel_bins, 2 * config.max_source_positions],
        (Kind::Float, placement.device),
    );
    let vocabulary = whisper.vocabulary();
    // Without an end of text, the number of tokens is known.
    let config = RuleConfig {
        suppress: vec![vocabulary.end_of_text()],
        ..RuleConfig::default()
    };
    let rules = Rules::new(vocabulary, &config, placement.device).unwrap();
    let language = vocabulary.languages()[0].clone();
    let prompt = vocabulary
        .prompt(&language, Task::Transcribe, false, &[], 0)
        .unwrap();

    let mut window = whisper.window(&mel).unwrap();
    settle(placement);
    let start = Instant::now();
    window.replace(&mel).unwrap();
    settle(placement);
    let encoder = start.elapsed().as_secs_f64();

    let mut run = |max_tokens: usize| {
        let start = Instant::now();
        window
            .decode(
                &prompt,
                &rules,
                Sampling {
                    temperature: 0.0,
                    max_tokens,
                },
                &mut || true,
            )
            .unwrap();
        start.elapsed().as_secs_f64()
    };
    let (few, many) = (run(1), run(tokens + 1));
    (encoder, (many - few) / tokens as f64)
}

/// The directory of the example, also if another machine has compiled the benchmark.
fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

fn settle(placement: Placement) {
    if let Device::Cuda(index) = placement.device {
        tch::Cuda::synchronize(index as i64);
    }
}

struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(python: &Path, threads: i32, placement: Placement) -> Self {
        let device = if placement.device == Device::Cpu {
            "cpu"
        } else {
            "cuda"
        };
        let precision = match placement.kind {
            Kind::Half => "float16",
            Kind::BFloat16 => "bfloat16",
            _ => "float32",
        };
        let script = root().join("benches/peer_transformers.py");
        let mut child = Command::new(python)
            .arg(script)
            .args([&threads.to_string(), device, precision])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the peer's Python starts");
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self {
            child,
            input,
            output: BufReader::new(output),
        }
    }

    fn ask(&mut self, request: &Value) -> Value {
        writeln!(self.input, "{request}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).expect("the peer answers; its own message stands above")
    }

    fn seconds(&mut self, request: &Value) -> f64 {
        self.ask(request)["seconds"].as_f64().unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse() -> Arguments {
    let mut arguments = Arguments {
        threads: std::thread::available_parallelism().map_or(1, |n| n.get() as i32),
        rounds: 7,
        tokens: 64,
        shapes: ["nano", "base", "small"].map(str::to_owned).to_vec(),
        placement: Placement::CPU,
        peer: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        match word.as_str() {
            "--bench" => {} // cargo says so to every benchmark
            "--threads" => arguments.threads = value().parse().expect("a number of threads"),
            "--rounds" => arguments.rounds = value().parse().expect("a number of rounds"),
            "--tokens" => arguments.tokens = value().parse().expect("a number of tokens"),
            "--shapes" => arguments.shapes = value().split(',').map(str::to_owned).collect(),
            "--peer" => arguments.peer = Some(PathBuf::from(value())),
            "--device" => {
                arguments.placement.device = match value().as_str() {
                    "cpu" => Device::Cpu,
                    "cuda" => {
                        dalston_engine_sdk::torch::load_cuda().unwrap();
                        Device::Cuda(0)
                    }
                    other => panic!("unknown device {other}"),
                }
            }
            "--precision" => {
                arguments.placement.kind = match value().as_str() {
                    "float32" => Kind::Float,
                    "float16" => Kind::Half,
                    "bfloat16" => Kind::BFloat16,
                    other => panic!("unknown precision {other}"),
                }
            }
            other => panic!("unknown argument {other}"),
        }
    }
    arguments
}
