//! Transcription over a worker's own HTTP port.

mod index;
mod lifecycle;
mod refusals;
mod responses;
mod silence;
mod sources;

use std::time::{Duration, Instant};

use dalston_engine_sdk::stage::TranscribeTask;
use dalston_engine_sdk::worker::{self, WorkerError};
use dalston_engine_sdk::{
    DeploymentConfig, Engine, EngineInfo, LoadContext, ModelId, RunnerConfig, Segment, Stage, TaskContext,
    TaskError, TaskOption, TaskRequest, Transcript, Word,
};
use dalston_telemetry::Env;
use dalston_telemetry::testing::TestTelemetry;
use testbed::{TestRedis, TestS3};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::rig::{Gate, Opener, gate};
use crate::support::{Response, exchange, free_port, get, until};

const OPENAI: &str = "/v1/audio/transcriptions";
const TRANSLATIONS: &str = "/v1/audio/translations";
const PLATFORM: &str = "/v1/transcribe";
const BOUNDARY: &str = "----a-boundary";

/// An engine whose transcript is the text in the file, half a second per word. Some texts are
/// commands.
struct Scribe {
    hold: Gate,
    progress: UnboundedSender<&'static str>,
}

impl Engine for Scribe {
    type Model = ();
    type Output = Transcript;

    fn info(&self) -> EngineInfo {
        EngineInfo::new("scribe", "1.0.0")
            .stage(Stage::Transcribe)
            .default_model("tiny")
            .word_timestamps(true)
            .option(TaskOption::new("patience", "The patience", |value| {
                match value.as_f64() {
                    Some(number) if number > 0.0 => Ok(()),
                    _ => Err("expected a number above 0".to_owned()),
                }
            }))
    }

    fn load(&self, model: &ModelId, _: &LoadContext) -> Result<(), TaskError> {
        match model.as_str() {
            "missing" => Err(TaskError::permanent(
                "model_not_found",
                "/models/missing/config.json: no such file",
            )),
            _ => Ok(()),
        }
    }

    fn process(&self, (): &mut (), task: &TaskRequest, cx: &TaskContext) -> Result<Transcript, TaskError> {
        let text = std::fs::read(task.require_input("audio")?.path())?;
        let text = String::from_utf8_lossy(&text).into_owned();
        match text.as_str() {
            "wait" => {
                self.progress.send("begun").unwrap();
                self.hold.wait();
            }
            "wait until cancelled" => {
                self.progress.send("begun").unwrap();
                let end = Instant::now() + Duration::from_secs(60);
                while Instant::now() < end {
                    if let Err(error) = cx.check_cancelled() {
                        self.progress.send("cancelled").unwrap();
                        return Err(error);
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            "await" => cx.block_on(tokio::time::sleep(Duration::from_millis(1)))?,
            "noise" => {
                let name = &task.require_input("audio")?.artifact().storage_locator;
                return Err(TaskError::permanent(
                    "unreadable_audio",
                    format!("{name} is no audio"),
                ));
            }
            "break" => {
                return Err(TaskError::retryable(
                    "error",
                    "password=hunter2 in /etc/secret/file",
                ));
            }
            _ => {}
        }
        let options = task.transcribe()?;
        let text = match text.as_str() {
            "temperatures" => format!("{:?}", options.temperature),
            _ if options.task == TranscribeTask::Translate => text.to_uppercase(),
            _ => text,
        };
        let wants_words = options.wants_words() && text != "no words";
        let words = text.split_whitespace().enumerate().map(|(at, word)| {
            let start = at as f64 / 2.0;
            Word::new(start, start + 0.5, word)
        });
        let words: Vec<Word> = words.collect();
        let segments = words.chunks(2).map(|words| {
            let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
            let segment = Segment::new(words[0].start, words[words.len() - 1].end, texts.join(" "));
            let segment = segment.tokens(&[7, 8]).no_speech_prob(0.25);
            if wants_words {
                segment.words(words.to_vec())
            } else {
                segment
            }
        });
        let transcript = Transcript::from_segments(segments)
            .requested_language("en")
            .metadata("config", task.config())
            .metadata("model", cx.info().model.as_str());
        Ok(match text.as_str() {
            "quiet" => transcript.warning("the recording is very quiet – louder, please"),
            _ => transcript,
        })
    }
}

/// A worker with its Redis and S3 servers.
struct Host {
    port: u16,
    telemetry: TestTelemetry,
    temp: tempfile::TempDir,
    s3: TestS3,
    redis: TestRedis,
    open: Opener,
    progress: UnboundedReceiver<&'static str>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), WorkerError>>,
}

impl Host {
    async fn start() -> Self {
        Self::with(&[]).await
    }

    async fn with(variables: &[(&str, &str)]) -> Self {
        let host = Self::on(free_port(), variables).await;
        host.until_ready().await;
        host
    }

    async fn on(port: u16, variables: &[(&str, &str)]) -> Self {
        let (redis, s3) = (TestRedis::start().await, TestS3::start());
        let otel = variables.iter().copied();
        let otel = Env::from_pairs(otel.filter(|(name, _)| name.starts_with("OTEL_")));
        let telemetry = TestTelemetry::with(|builder| builder.env(otel));
        let temp = tempfile::tempdir().unwrap();
        let own = [
            ("REDIS_URL", redis.url()),
            ("DALSTON_S3_ENDPOINT_URL", s3.url()),
            ("AWS_ACCESS_KEY_ID", TestS3::ACCESS_KEY_ID.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", TestS3::SECRET_ACCESS_KEY.to_owned()),
            ("DALSTON_METRICS_PORT", port.to_string()),
            ("DALSTON_WORKER_ID", "w1".to_owned()),
            ("DALSTON_DRAIN_TIMEOUT_SECONDS", "20".to_owned()),
            ("TMPDIR", temp.path().display().to_string()),
        ];
        let given = variables.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let env = Env::from_pairs(own.into_iter().chain(given));
        let (hold, open) = gate();
        let (sender, progress) = unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(telemetry.attach(worker::run(
            Scribe {
                hold,
                progress: sender,
            },
            RunnerConfig::from_env(&env).unwrap(),
            DeploymentConfig::from_env(&env).unwrap(),
            telemetry.handle(),
            async {
                let _ = stopped.await;
            },
        )));
        Self {
            port,
            telemetry,
            temp,
            s3,
            redis,
            open,
            progress,
            stop: Some(stop),
            running,
        }
    }

    async fn until_ready(&self) {
        until("running worker", async || {
            let health = get(self.port, "/health").await?;
            (health.json()["phase"] == "running").then_some(())
        })
        .await;
    }

    async fn get(&self, path: &str) -> Response {
        get(self.port, path).await.unwrap()
    }

    async fn post(&self, path: &str, form: Form) -> Response {
        self.post_with(path, "", form).await
    }

    async fn post_with(&self, path: &str, headers: &str, form: Form) -> Response {
        exchange(self.port, &form.request(path, headers)).await.unwrap()
    }

    /// The next report of the engine.
    async fn next_progress(&mut self) -> &'static str {
        let next = tokio::time::timeout(Duration::from_secs(30), self.progress.recv());
        next.await.expect("a report of the engine").unwrap()
    }

    async fn until_span(&self, name: &str) {
        until(name, async || {
            let spans = self.telemetry.spans();
            spans.iter().any(|span| span.name == name).then_some(())
        })
        .await;
    }

    async fn until_temp_is_empty(&self) {
        until("empty temporary directory", async || {
            let mut entries = std::fs::read_dir(self.temp.path()).unwrap();
            entries.next().is_none().then_some(())
        })
        .await;
    }

    async fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }
}

/// What a browser gets.
async fn browse(port: u16, path: &str) -> Response {
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: text/html,*/*;q=0.8\r\n\r\n");
    exchange(port, request.as_bytes()).await.unwrap()
}

/// A form in the encoding of browsers.
#[derive(Clone, Default)]
struct Form {
    body: Vec<u8>,
}

impl Form {
    fn file(content: &str) -> Self {
        Self::default().and_file(content)
    }

    fn and_file(self, content: &str) -> Self {
        self.file_in("file", content)
    }

    fn file_in(mut self, field: &str, content: &str) -> Self {
        let head = format!(
            "Content-Disposition: form-data; name=\"{field}\"; filename=\"talk.wav\"\r\nContent-Type: audio/wav"
        );
        self.part(&head, content);
        self
    }

    fn text(mut self, name: &str, value: &str) -> Self {
        self.part(&format!("Content-Disposition: form-data; name=\"{name}\""), value);
        self
    }

    fn part(&mut self, head: &str, content: &str) {
        let part = format!("--{BOUNDARY}\r\n{head}\r\n\r\n{content}\r\n");
        self.body.extend_from_slice(part.as_bytes());
    }

    fn request(&self, path: &str, headers: &str) -> Vec<u8> {
        let end = format!("--{BOUNDARY}--\r\n");
        let mut request = head(path, headers, self.body.len() + end.len());
        request.extend_from_slice(&self.body);
        request.extend_from_slice(end.as_bytes());
        request
    }
}

fn head(path: &str, headers: &str, length: usize) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\
         Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {length}\r\n\r\n"
    );
    head.into_bytes()
}
