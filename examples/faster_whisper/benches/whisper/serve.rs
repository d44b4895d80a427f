//! This engine, measured on request. The requests are those of `peer_faster_whisper.py`.

use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

use faster_whisper::{Options, Placement, RuleConfig, Rules, Sampling, Task, TokenChoice, Whisper};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// Answers requests until the standard input ends.
#[allow(clippy::print_stdout)]
pub(crate) fn serve(threads: &str, device: &str, precision: &str) {
    tch::set_num_threads(threads.parse().unwrap());
    if device == "cuda" {
        dalston_engine_sdk::torch::load_cuda().unwrap();
    }
    let placement = match precision {
        "float16" => Placement::new(Device::Cuda(0), Kind::Half),
        "int8" => Placement {
            int8: true,
            ..Placement::auto_on_cpu()
        },
        _ => Placement::CPU,
    };
    let mut whisper: Option<(Whisper, Vec<f32>)> = None;
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let number = |name: &str| request[name].as_u64().map(|n| n as usize);
        let answer = if let Some(dir) = request["load"].as_str() {
            let start = Instant::now();
            let loaded = Whisper::load(Path::new(dir), placement).unwrap();
            let took = start.elapsed().as_secs_f64();
            let samples = 0..number("seconds").unwrap() * 16_000;
            let samples = samples.map(|n| (n as f32 * 0.05).sin() * 0.1).collect();
            whisper = Some((loaded, samples));
            json!({ "seconds": took, "precision": placement.precision() })
        } else if request["memory"] == true {
            json!({ "bytes": crate::resident_bytes() })
        } else {
            let (whisper, samples) = whisper.as_mut().unwrap();
            let beam = number("beam").unwrap_or(1);
            let seconds = if request["encode"] == true {
                encode(whisper)
            } else if let Some(tokens) = number("decode") {
                decode(whisper, tokens, beam)
            } else {
                transcribe(whisper, samples, number("limit").unwrap(), beam)
            };
            json!({ "seconds": seconds })
        };
        println!("{answer}");
    }
}

fn mel(whisper: &Whisper) -> Tensor {
    let config = &whisper.config().model;
    let shape = [1, config.num_mel_bins, 2 * config.max_source_positions];
    Tensor::randn(shape, (Kind::Float, whisper.placement().device))
}

fn encode(whisper: &mut Whisper) -> f64 {
    let placement = whisper.placement();
    let mel = mel(whisper);
    let mut window = whisper.window(&mel).unwrap();
    settle(placement);
    let start = Instant::now();
    window.replace(&mel).unwrap();
    settle(placement);
    start.elapsed().as_secs_f64()
}

fn settle(placement: Placement) {
    if let Device::Cuda(index) = placement.device {
        tch::Cuda::synchronize(index as i64);
    }
}

/// Seconds of a token. Without an end of text, the number of tokens is known.
fn decode(whisper: &mut Whisper, tokens: usize, beam: usize) -> f64 {
    let vocabulary = whisper.vocabulary();
    let config = RuleConfig {
        suppress: vec![vocabulary.end_of_text()],
        ..RuleConfig::default()
    };
    let rules = Rules::new(vocabulary, &config, whisper.placement().device).unwrap();
    let prompt = vocabulary.prompt("en", Task::Transcribe, false, &[], 0).unwrap();
    let mut options = Options::default();
    options.beam_size = beam;
    let mel = mel(whisper);
    let mut window = whisper.window(&mel).unwrap();
    let mut run = |max_tokens: usize| {
        let start = Instant::now();
        let how = Sampling::new(&options, 0.0, max_tokens);
        window.decode(&prompt, &rules, how, &mut || true).unwrap();
        start.elapsed().as_secs_f64()
    };
    let (few, many) = (run(4), run(tokens + 4));
    (many - few) / tokens as f64
}

/// Seconds of a recording with a text of so many tokens.
fn transcribe(whisper: &mut Whisper, samples: &[f32], tokens: usize, beam: usize) -> f64 {
    let mut options = Options::default();
    options.language = Some("en".to_owned());
    options.beam_size = beam;
    options.temperature = vec![0.0];
    options.without_timestamps = true;
    options.condition_on_previous_text = false;
    options.max_new_tokens = Some(tokens);
    options.suppress_tokens = vec![TokenChoice::Id(whisper.vocabulary().end_of_text())];
    let start = Instant::now();
    whisper.transcribe(samples, &options, &mut ()).unwrap();
    start.elapsed().as_secs_f64()
}
