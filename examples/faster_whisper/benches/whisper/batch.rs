//! Recordings at once, and one after the other.

use std::cell::RefCell;
use std::path::Path;
use std::time::Instant;

use faster_whisper::{Error, Observer, Options, Placement, Recording, TokenChoice, Transcription, Whisper};
use testbed::report::{Report, median, number};

/// Recordings of a batch, their seconds, and the tokens of their texts.
pub(crate) const BATCH: usize = 8;
pub(crate) const BATCH_SECONDS: usize = 10;
const BATCH_TOKENS: usize = 33;
/// The largest number of rounds. One takes as long as many of the others.
const BATCH_ROUNDS: usize = 3;
/// The largest accepted cost of a token in a batch, compared with one alone.
const BATCH_TOKEN_LIMIT: f64 = 0.4;
/// The smallest accepted speed of a batch, compared with one recording after the other.
const BATCH_SPEED_LIMIT: f64 = 1.3;

/// Measures recordings at once and one after the other. Returns the rows of the table.
pub(crate) fn batch(dir: &Path, name: &str, rounds: usize, report: &mut Report) -> [[String; 3]; 2] {
    let mut whisper = Whisper::load(dir, Placement::auto_on_cpu()).unwrap();
    let mut options = Options::default();
    options.language = whisper.vocabulary().languages().into_iter().next();
    options.beam_size = 1;
    options.temperature = vec![0.0];
    options.without_timestamps = true;
    options.max_new_tokens = Some(BATCH_TOKENS);
    // Without an end of text, the number of tokens is known.
    options.suppress_tokens = vec![TokenChoice::Id(whisper.vocabulary().end_of_text())];
    let samples: Vec<f32> = (0..BATCH_SECONDS * 16_000)
        .map(|n| (n as f32 * 0.05).sin() * 0.1)
        .collect();
    let mut searched = options.clone();
    searched.beam_size = Options::default().beam_size;
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    let (mut token_alone, mut token_together) = (Vec::new(), Vec::new());
    for round in 0..=rounds.min(BATCH_ROUNDS) {
        let tokens = (0..BATCH).map(|_| transcribe(&mut whisper, &samples, &options, 1));
        let token_one = median(&tokens.collect::<Vec<_>>());
        let token_many = transcribe(&mut whisper, &samples, &options, BATCH);
        let start = Instant::now();
        for _ in 0..BATCH {
            transcribe(&mut whisper, &samples, &searched, 1);
        }
        let one_by_one = start.elapsed().as_secs_f64();
        let start = Instant::now();
        transcribe(&mut whisper, &samples, &searched, BATCH);
        let at_once = start.elapsed().as_secs_f64();
        if round == 0 {
            continue; // to warm up
        }
        alone.push(one_by_one);
        together.push(at_once);
        token_alone.push(token_one);
        token_together.push(token_many);
    }
    let [alone, together] = [alone, together].map(|all| median(&all));
    let [token_alone, token_together] = [token_alone, token_together].map(|all| median(&all));
    report.at_most(
        format!("{name}: token in a batch of {BATCH}, ratio to one alone"),
        BATCH_TOKEN_LIMIT,
        token_together / token_alone,
        "",
    );
    report.at_least(
        format!("{name}: speed of {BATCH} recordings at once, ratio to one by one"),
        BATCH_SPEED_LIMIT,
        alone / together,
        "",
    );
    let row = |count: usize, all, token| [count.to_string(), number(all), number(token * 1e3)];
    [row(1, alone, token_alone), row(BATCH, together, token_together)]
}

/// Transcribes the recording so many times at once. Returns the seconds of a token.
fn transcribe(whisper: &mut Whisper, samples: &[f32], options: &Options, count: usize) -> f64 {
    /// Notes the times at which it was asked whether to go on: before every token.
    struct Clock<'a>(&'a RefCell<Vec<Instant>>);

    impl Observer for Clock<'_> {
        fn keep_going(&mut self) -> bool {
            self.0.borrow_mut().push(Instant::now());
            true
        }
    }

    let times: Vec<RefCell<Vec<Instant>>> = (0..count).map(|_| RefCell::default()).collect();
    let recordings = times.iter().map(|times| Recording {
        samples: Box::new(samples),
        options: options.clone(),
        observer: Box::new(Clock(times)),
        span: tracing::Span::none(),
    });
    let mut done = |_, result: Result<Transcription, Error>| assert!(result.is_ok());
    whisper.transcribe_batch(recordings.collect(), &mut done).unwrap();
    let times = times[0].borrow();
    // The first two questions come before the window and before its prompt.
    let (first, last) = (times[2], times[times.len() - 1]);
    (last - first).as_secs_f64() / ((times.len() - 3) * count) as f64
}
