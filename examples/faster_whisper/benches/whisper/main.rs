//! Seconds of an encoder pass, of a token and of a recording, and memory, beside faster-whisper and
//! transformers if they are installed. `cargo xtask bench whisper --peer` installs them.
//!
//! ```text
//! cargo bench -p faster_whisper --bench whisper -- [--threads 1,2] [--rounds N]
//!     [--shapes nano,base,small] [--device cpu|cuda] [--minutes N] [--peer PYTHON]
//! ```
//!
//! `--peer` names a Python with torch 2.11.0, transformers 5.23.0 and faster-whisper 1.2.1. All
//! sides have the same model and number of threads, each in its own process. They are measured in
//! the same run, in alternating rounds, so that other load on the machine affects all of them.
//! Medians are reported.
//!
//! A token includes one step of the decoder, the output projection, the suppression rules and the
//! choice, for beam size 1 and 5. The prompt is not included. A recording has 25 s and a text of 41
//! tokens. Shapes other than `nano` have random weights. On a GPU, float16 is compared with that of
//! transformers.
//!
//! The batch is measured in the precision `auto` with the first of the shapes base and nano, with
//! all threads: eight recordings of 10 s at once and one after the other, each with a text of 33
//! tokens, which is what speech of that length has. A token is one of a greedy search, without the
//! first ones. The seconds are those of whole recordings with the default width of the beam search.
//!
//! Long recordings are an hour of silence, of noise, and of one word that repeats, with the shipped
//! model and all defaults. Each window of the last one is decoded at all temperatures.

#![allow(clippy::unwrap_used, missing_docs)]

mod batch;
#[allow(dead_code, unreachable_pub)]
#[path = "../../tests/it/generated.rs"]
mod generated;
mod hour;
mod serve;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use generated::Shape;
use serde_json::{Value, json};
use tch::Kind;
use tempfile::TempDir;
use testbed::report::{Report, median, number};

/// Threads of libtorch's pool spin for a while after work. The other side is measured after that.
const PAUSE: Duration = Duration::from_millis(200);
/// The seconds of the recording, the tokens of its text, and the limit that faster-whisper needs
/// for them.
const SECONDS: usize = 25;
const TEXT: usize = 41;
const LIMIT_OF_TEXT: usize = 80;
/// Tokens of a search.
const TOKENS: usize = 24;
/// The largest accepted ratio to a peer.
const LIMIT: f64 = 1.0;
/// The largest accepted time to load the shape small, with its files in the page cache, in seconds.
const LOAD_LIMIT: f64 = 1.0;
/// The largest number of rounds of the shape small. One takes as long as four of base.
const SMALL_ROUNDS: usize = 3;

struct Arguments {
    threads: Vec<i32>,
    rounds: usize,
    shapes: Vec<String>,
    /// `cpu` or `cuda`
    device: String,
    /// The length of the long recordings.
    minutes: usize,
    peer: Option<PathBuf>,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [word, threads, device, precision, ..] = words.as_slice()
        && word == "--serve"
    {
        return serve::serve(threads, device, precision);
    }
    let arguments = parse(words);
    let mut report = Report::start(&["tch", "torch-sys"]);
    let mut rows = Vec::new();
    for shape in &arguments.shapes {
        let model = Model::new(shape, arguments.peer.as_deref());
        for &threads in &arguments.threads {
            rows.extend(measure(&model, threads, &arguments, &mut report));
        }
    }
    report.table(
        &format!(
            "Medians of {} interleaved rounds ({SMALL_ROUNDS} of small). Encoder in seconds, tokens in milliseconds. The realtime factor is \
             that of a recording of {SECONDS} s with a text of {TEXT} tokens and beam size 5. Memory is resident memory in MiB after that:",
            arguments.rounds
        ),
        [
            "Shape, threads, engine",
            "Encoder",
            "Token, beam 1",
            "Token, beam 5",
            "Realtime factor",
            "Memory",
            "Load",
        ],
        &rows,
    );
    let names: &[&str] = if arguments.device == "cpu" {
        &["base", "nano"]
    } else {
        &[]
    };
    let name = names
        .iter()
        .find(|name| arguments.shapes.iter().any(|other| other == *name));
    if let Some(name) = name {
        let threads = arguments.threads.iter().max().copied().unwrap_or(1);
        tch::set_num_threads(threads);
        let model = Model::new(name, None);
        let rows = batch::batch(&model.dir, name, arguments.rounds, &mut report);
        report.table(
            &format!(
                "{} recordings of {} s with the shape {name}, precision auto and {threads} threads, medians:",
                batch::BATCH,
                batch::BATCH_SECONDS
            ),
            ["Recordings at once", "Seconds for all", "Milliseconds per token"],
            &rows,
        );
    }
    if arguments.device == "cpu" && arguments.shapes.iter().any(|name| name == "nano") {
        tch::set_num_threads(1);
        let rows = hour::hour(&root(), arguments.minutes, &mut report);
        report.table(
            &format!(
                "{} minutes of each, with the shape nano, precision auto, one thread and all defaults. Memory is its growth in \
                 MiB after the first tenth:",
                arguments.minutes
            ),
            ["Recording", "Seconds", "Realtime factor", "Memory", "Windows", "Tokens"],
            &rows,
        );
    }
    report.finish();
}

/// The resident memory of this process.
fn resident_bytes() -> f64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096.0
}

/// A model for all sides.
struct Model {
    name: String,
    dir: PathBuf,
    /// For faster-whisper.
    converted: Option<PathBuf>,
    _scratch: TempDir,
}

impl Model {
    fn new(name: &str, peer: Option<&Path>) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let mut dir = scratch.path().join("model");
        match name {
            "nano" => dir = root().join("models/whisper-nano-digits"),
            _ => {
                let mut shape = match name {
                    "tiny" => Shape::published(384, 4),
                    "base" => Shape::published(512, 6),
                    "small" => Shape::published(768, 12),
                    "medium" => Shape::published(1024, 24),
                    _ => panic!("unknown shape {name}: nano, tiny, base, small or medium"),
                };
                shape.kind = Kind::Half;
                std::fs::create_dir(&dir).unwrap();
                shape.write(&dir);
            }
        }
        let converted = peer.map(|python| {
            let target = scratch.path().join("converted");
            let converter = Command::new(python)
                .arg(script("peer_faster_whisper.py"))
                .arg("convert")
                .args([&dir, &target])
                .output()
                .expect("the peer's Python starts");
            assert!(
                converter.status.success(),
                "{}",
                String::from_utf8_lossy(&converter.stderr)
            );
            target
        });
        Self {
            name: name.to_owned(),
            dir,
            converted,
            _scratch: scratch,
        }
    }
}

/// One engine, with what was measured.
struct Side {
    name: String,
    process: Process,
    /// transformers has fewer figures.
    is_complete: bool,
    encode: Vec<f64>,
    decode: [Vec<f64>; 2],
    recording: Vec<f64>,
    bytes: f64,
    load: f64,
}

impl Side {
    fn new(name: &str, process: Process, load: &Value, is_complete: bool) -> Self {
        let mut side = Self {
            name: name.to_owned(),
            process,
            is_complete,
            encode: Vec::new(),
            decode: [Vec::new(), Vec::new()],
            recording: Vec::new(),
            bytes: f64::NAN,
            load: f64::NAN,
        };
        let answer = side.process.ask(load);
        side.load = answer["seconds"].as_f64().unwrap_or(f64::NAN);
        if let Some(precision) = answer["precision"].as_str() {
            side.name = format!("{name} ({precision})");
        }
        side
    }

    fn round(&mut self, is_counted: bool) {
        let encode = self.process.seconds(&json!({ "encode": true }));
        let one = self.process.seconds(&json!({ "decode": TOKENS, "beam": 1 }));
        if is_counted {
            self.encode.push(encode);
            self.decode[0].push(one);
        }
        if self.is_complete && is_counted {
            let five = self.process.seconds(&json!({ "decode": TOKENS, "beam": 5 }));
            let seconds = self
                .process
                .seconds(&json!({ "transcribe": TEXT, "limit": LIMIT_OF_TEXT, "beam": 5 }));
            self.decode[1].push(five);
            self.recording.push(seconds / SECONDS as f64);
            let bytes = self.process.ask(&json!({ "memory": true }));
            self.bytes = bytes["bytes"].as_f64().unwrap();
        }
        std::thread::sleep(PAUSE);
    }

    fn figures(&self) -> [f64; 4] {
        [&self.encode, &self.decode[0], &self.decode[1], &self.recording].map(|all| median(all))
    }

    fn row(&self, model: &str, threads: i32) -> [String; 7] {
        let [encode, one, five, factor] = self.figures();
        let numbers = [
            encode,
            one * 1e3,
            five * 1e3,
            factor,
            self.bytes / f64::from(1 << 20),
            self.load,
        ];
        let [encode, one, five, factor, bytes, load] = numbers.map(number);
        [
            format!("{model}, {threads}, {}", self.name),
            encode,
            one,
            five,
            factor,
            bytes,
            load,
        ]
    }
}

/// Measures a shape with all sides. Returns their rows of the table.
fn measure(model: &Model, threads: i32, arguments: &Arguments, report: &mut Report) -> Vec<[String; 7]> {
    let load = json!({ "load": model.dir, "seconds": SECONDS });
    let ours = |precision: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--serve", &threads.to_string(), &arguments.device, precision]);
        Process::start(command)
    };
    let on_cpu = arguments.device == "cpu";
    let mut sides = if on_cpu {
        vec![
            Side::new("this engine", ours("float32"), &load, true),
            Side::new("this engine", ours("int8"), &load, true),
        ]
    } else {
        vec![Side::new("this engine", ours("float16"), &load, true)]
    };
    if let (Some(python), Some(converted)) = (&arguments.peer, &model.converted) {
        let peer = |file: &str, others: &[&str]| {
            let mut command = Command::new(python);
            command.arg(script(file)).arg(threads.to_string()).args(others);
            Process::start(command)
        };
        let load = json!({ "load": converted, "seconds": SECONDS });
        let kinds: &[&str] = if on_cpu { &["float32", "int8"] } else { &[] };
        for kind in kinds {
            let process = peer("peer_faster_whisper.py", &[kind]);
            sides.push(Side::new(
                &format!("faster-whisper ({kind})"),
                process,
                &load,
                true,
            ));
        }
        let config = std::fs::read_to_string(model.dir.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&config).unwrap();
        config["num_hidden_layers"] = config["encoder_layers"].clone();
        let kind = if on_cpu { "float32" } else { "float16" };
        let process = peer("peer_transformers.py", &[&arguments.device, kind]);
        sides.push(Side::new(
            &format!("transformers ({kind})"),
            process,
            &json!({ "config": config }),
            false,
        ));
    }
    if on_cpu && model.name == "small" {
        for side in sides.iter().take(2) {
            let what = format!("{}, {threads} thread(s): load, {}", model.name, side.name);
            report.at_most(what, LOAD_LIMIT, side.load, "s");
        }
    }
    let rounds = match model.name.as_str() {
        "small" | "medium" => arguments.rounds.min(SMALL_ROUNDS),
        _ => arguments.rounds,
    };
    for round in 0..=rounds {
        // The first round warms up.
        sides.iter_mut().for_each(|side| side.round(round > 0));
    }
    if let [float32, int8, peer_float32, peer_int8, ..] = sides.as_slice() {
        let place = format!("{}, {threads} thread(s)", model.name);
        for (ours, ours_name, peer, peer_name) in [
            (float32, "float32", peer_float32, "float32"),
            (int8, "int8", peer_int8, "int8"),
        ] {
            let what = ["encoder pass", "token, beam 1", "token, beam 5", "recording"];
            for ((what, ours), theirs) in what.iter().zip(ours.figures()).zip(peer.figures()) {
                report.at_most(
                    format!("{place}: {what}, {ours_name}, ratio to faster-whisper {peer_name}"),
                    LIMIT,
                    ours / theirs,
                    "",
                );
            }
        }
    }
    sides.iter().map(|side| side.row(&model.name, threads)).collect()
}

/// The directory of the example, also if another machine has compiled the benchmark.
fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

fn script(name: &str) -> PathBuf {
    root().join("benches/whisper").join(name)
}

/// A process that answers lines of JSON.
struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the side of the benchmark starts");
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
        serde_json::from_str(&line).expect("the side answers; its own message stands above")
    }

    fn seconds(&mut self, request: &Value) -> f64 {
        self.ask(request)["seconds"].as_f64().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(words: Vec<String>) -> Arguments {
    let mut arguments = Arguments {
        threads: vec![1, 2],
        rounds: 5,
        shapes: ["nano", "base", "small"].map(str::to_owned).to_vec(),
        device: "cpu".to_owned(),
        minutes: 60,
        peer: None,
    };
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        match word.as_str() {
            "--bench" => {} // cargo says so to every benchmark
            "--threads" => {
                let numbers = value().split(',').map(str::parse).collect::<Result<_, _>>();
                arguments.threads = numbers.expect("numbers of threads");
            }
            "--rounds" => arguments.rounds = value().parse().expect("a number of rounds"),
            "--shapes" => arguments.shapes = value().split(',').map(str::to_owned).collect(),
            "--device" => arguments.device = value(),
            "--minutes" => arguments.minutes = value().parse().expect("a number of minutes"),
            "--peer" => arguments.peer = Some(PathBuf::from(value())),
            other => panic!("unknown argument {other}"),
        }
    }
    arguments
}
