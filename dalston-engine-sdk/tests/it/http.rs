//! Transcription over a worker's own HTTP port.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use dalston_engine_sdk::worker::{self, WorkerError};
use dalston_engine_sdk::{
    DeploymentConfig, Engine, EngineInfo, LoadContext, ModelId, RunnerConfig, Segment, Stage, TaskContext,
    TaskError, TaskRequest, Transcript, Word,
};
use dalston_telemetry::Env;
use dalston_telemetry::testing::TestTelemetry;
use serde_json::{Value, json};
use testbed::{TestRedis, TestS3};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use crate::rig::{Gate, Opener, gate};

const OPENAI: &str = "/v1/audio/transcriptions";
const PLATFORM: &str = "/v1/transcribe";
const BOUNDARY: &str = "----a-boundary";

/// Hears what the file says, word by word, half a second each. Some words are orders.
struct Scribe {
    hold: Gate,
    tell: UnboundedSender<&'static str>,
}

impl Engine for Scribe {
    type Model = ();
    type Output = Transcript;

    fn info(&self) -> EngineInfo {
        EngineInfo::new("scribe", "1.0.0")
            .stage(Stage::Transcribe)
            .default_model("tiny")
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
                self.tell.send("begun").unwrap();
                self.hold.wait();
            }
            "wait until cancelled" => {
                self.tell.send("begun").unwrap();
                let end = Instant::now() + Duration::from_secs(60);
                while Instant::now() < end {
                    if let Err(error) = cx.check_cancelled() {
                        self.tell.send("cancelled").unwrap();
                        return Err(error);
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            "noise" => {
                let name = &task.require_input("audio")?.artifact().storage_locator;
                return Err(TaskError::permanent(
                    "audio_not_recognised",
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
        let wants_words = task.transcribe()?.wants_words();
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
        Ok(Transcript::from_segments(segments)
            .requested_language("en")
            .metadata("config", task.config())
            .metadata("model", cx.info().model.as_str()))
    }
}

/// A worker with all that it needs.
struct Host {
    port: u16,
    telemetry: TestTelemetry,
    temp: tempfile::TempDir,
    s3: TestS3,
    redis: TestRedis,
    open: Opener,
    told: UnboundedReceiver<&'static str>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), WorkerError>>,
}

impl Host {
    async fn start() -> Self {
        Self::with(&[]).await
    }

    async fn with(settings: &[(&str, &str)]) -> Self {
        let host = Self::on(free_port(), settings).await;
        host.until_ready().await;
        host
    }

    async fn on(port: u16, settings: &[(&str, &str)]) -> Self {
        let (redis, s3) = (TestRedis::start().await, TestS3::start());
        let telemetry = TestTelemetry::new();
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
        let given = settings.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let env = Env::from_pairs(own.into_iter().chain(given));
        let (hold, open) = gate();
        let (tell, told) = unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(telemetry.attach(worker::run(
            Scribe { hold, tell },
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
            told,
            stop: Some(stop),
            running,
        }
    }

    async fn until_ready(&self) {
        let ready = async {
            while !matches!(self.try_get("/health").await, Some(answer) if answer.json()["phase"] == "running")
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ready)
            .await
            .expect("a worker that is ready");
    }

    async fn try_get(&self, path: &str) -> Option<Answer> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        exchange(self.port, request.as_bytes()).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.try_get(path).await.unwrap()
    }

    async fn post(&self, path: &str, form: Form) -> Answer {
        self.post_with(path, "", form).await
    }

    async fn post_with(&self, path: &str, headers: &str, form: Form) -> Answer {
        exchange(self.port, &form.request(path, headers)).await.unwrap()
    }

    /// What the engine tells next.
    async fn hear(&mut self) -> &'static str {
        let told = tokio::time::timeout(Duration::from_secs(30), self.told.recv());
        told.await.expect("a word of the engine").unwrap()
    }

    async fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

async fn exchange(port: u16, request: &[u8]) -> Option<Answer> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
    stream.write_all(request).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some(Answer {
        status: head.split(' ').nth(1)?.parse().ok()?,
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    })
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(header, _)| *header == name).map(|(_, value)| value)
    }
}

/// A form as a browser sends it.
#[derive(Clone, Default)]
struct Form {
    body: Vec<u8>,
}

impl Form {
    fn file(content: &str) -> Self {
        Self::default().and_file(content)
    }

    fn and_file(mut self, content: &str) -> Self {
        let head =
            "Content-Disposition: form-data; name=\"file\"; filename=\"talk.wav\"\r\nContent-Type: audio/wav";
        self.part(head, content);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_is_answered_in_each_of_openais_forms() {
    let host = Host::start().await;
    let ask = async |form: Form| {
        let answer = host
            .post(OPENAI, form.text("model", "whisper-1").and_file("one two three"))
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer
    };

    let answer = ask(Form::default()).await;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.json(), json!({"text": "one two three"}));

    let answer = ask(Form::default().text("response_format", "text")).await;
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(answer.body, "one two three");

    let answer = ask(Form::default().text("response_format", "srt")).await;
    assert_eq!(
        answer.body,
        "1\n00:00:00,000 --> 00:00:01,000\none two\n\n2\n00:00:01,000 --> 00:00:01,500\nthree\n\n"
    );
    let answer = ask(Form::default().text("response_format", "vtt")).await;
    assert_eq!(
        answer.body,
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\none two\n\n00:00:01.000 --> 00:00:01.500\nthree\n\n"
    );

    let verbose = Form::default().text("response_format", "verbose_json");
    let segment = |id, start, end, text| {
        json!({"id": id, "seek": 0, "start": start, "end": end, "text": text, "tokens": [7, 8], "temperature": 0.0,
            "avg_logprob": -0.5, "compression_ratio": 1.0, "no_speech_prob": 0.25})
    };
    let expected = json!({"task": "transcribe", "language": "en", "duration": 1.5, "text": "one two three",
        "segments": [segment(0, 0.0, 1.0, "one two"), segment(1, 1.0, 1.5, "three")]});
    assert_eq!(ask(verbose.clone()).await.json(), expected);

    let words = json!([{"word": "one", "start": 0.0, "end": 0.5}, {"word": "two", "start": 0.5, "end": 1.0},
        {"word": "three", "start": 1.0, "end": 1.5}]);
    let both = verbose
        .clone()
        .text("timestamp_granularities[]", "word")
        .text("timestamp_granularities[]", "segment");
    let mut with_words = expected.clone();
    with_words["words"] = words.clone();
    assert_eq!(ask(both).await.json(), with_words);
    let only = verbose.text("timestamp_granularities", "word");
    with_words.as_object_mut().unwrap().remove("segments");
    assert_eq!(ask(only).await.json(), with_words);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_platforms_route_hands_its_fields_to_the_engine_and_answers_with_the_transcript() {
    let host = Host::start().await;
    let form = Form::file("one two")
        .text("model", "small")
        .text("language", "DE")
        .text("word_timestamps", "false")
        .text("vocabulary", "Dalston, Whisper,")
        .text("channel", "1")
        .text("beam_size", "5")
        .text("vad_batch_size", "2");
    let answer = host.post(PLATFORM, form).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let transcript = answer.json();
    let config = json!({"language": "DE", "word_timestamps": false, "vocabulary": ["Dalston", "Whisper"],
        "channel": 1, "beam_size": 5, "vad_batch_size": 2});
    assert_eq!(transcript["metadata"]["config"], config);
    assert_eq!(
        (
            &transcript["text"],
            &transcript["engine_id"],
            &transcript["channel"],
            &transcript["metadata"]["model"]
        ),
        (&json!("one two"), &json!("scribe"), &json!(1), &json!("small"))
    );
    serde_json::from_value::<Transcript>(transcript).unwrap();

    // Nothing is made up for what was not said, and names that stand for the engine itself are no models.
    for model in ["auto", "scribe", ""] {
        let answer = host.post(PLATFORM, Form::file("one").text("model", model)).await;
        let metadata = &answer.json()["metadata"];
        assert_eq!(
            (&metadata["config"], &metadata["model"]),
            (&json!({}), &json!("tiny"))
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_spans_of_a_request_stand_in_the_callers_trace_and_its_log_lines_have_its_id() {
    let host = Host::start().await;
    let headers =
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nX-Request-ID: req.7\r\n";
    let answer = host.post_with(OPENAI, headers, Form::file("one")).await;
    assert_eq!(
        (answer.status, answer.header("x-request-id")),
        (200, Some("req.7"))
    );

    // The answer is on its way a moment before the task's span ends.
    let ended = async || {
        let spans = host.telemetry.spans();
        let task = spans.iter().find(|span| span.name == "engine.scribe.process");
        task.map(|_| ())
    };
    until("span of the task", ended).await;
    let root = host.telemetry.span("engine.scribe.http_process");
    assert_eq!(root.parent_span_id.unwrap().to_string(), "b7ad6b7169203331");
    let spans = host.telemetry.spans();
    assert!(
        spans
            .iter()
            .all(|span| span.trace_id.to_string() == "0af7651916cd43dd8448eb211c80319c")
    );
    host.telemetry.tree().assert_eq(
        "
        engine.scribe.http_process {dalston.engine_id=scribe, dalston.stage=transcribe, dalston.task_id=*, dalston.job_id=http, dalston.transport=http, dalston.request_id=req.7, http.request.method=POST, http.route=/v1/audio/transcriptions, http.response.status_code=200}
          engine.receive_input
          engine.queue_wait
          engine.scribe.process {dalston.job_id=http, dalston.request_id=req.7, dalston.instance=scribe-w1}
            engine.download_input
            engine.process
            engine.upload_output
        ",
    );
    let labels = [
        ("endpoint", OPENAI),
        ("engine_id", "scribe"),
        ("status_code", "200"),
    ];
    let counted = host.telemetry.metrics().snapshot();
    assert_eq!(
        counted.value("dalston_engine_direct_requests_total", &labels),
        Some(1.0)
    );
    let lines = host.telemetry.logs();
    for event in ["task_received", "task_completed", "direct_request_answered"] {
        let line = lines.iter().find(|line| line.event() == event).expect(event);
        assert_eq!(line.field("request_id"), Some(&json!("req.7")), "{event}");
    }

    let answer = host
        .post_with(OPENAI, "X-Request-ID: a b\r\n", Form::file("one"))
        .await;
    let made = answer.header("x-request-id").unwrap();
    assert!(made.starts_with("req_") && made.len() == 36, "{made}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_request_is_said_in_the_form_of_its_route() {
    let host = Host::with(&[("DALSTON_HTTP_MAX_UPLOAD_MB", "1")]).await;
    let (file, none) = (|| Form::file("one"), Form::default);
    let table = [
        (OPENAI, none(), 400, "file: missing: expected a recording"),
        (
            PLATFORM,
            none(),
            400,
            "file: missing: expected a recording, or audio_url",
        ),
        (
            OPENAI,
            file().and_file("two"),
            400,
            "file: given twice: expected one recording",
        ),
        (
            PLATFORM,
            file().text("audio_url", "s3://b/k"),
            400,
            "audio_url: given beside file: expected one of them",
        ),
        (
            PLATFORM,
            none().text("audio_url", "file:///etc/hosts"),
            400,
            "audio_url: \"file:hosts\": expected s3://bucket/key, http:// or https://",
        ),
        (
            PLATFORM,
            file().text("beam_size", "many"),
            400,
            "beam_size: \"many\": expected a whole number",
        ),
        (
            PLATFORM,
            file().text("beam_size", "0"),
            400,
            "beam_size: 0: expected a whole number from 1",
        ),
        (
            PLATFORM,
            file().text("word_timestamps", "perhaps"),
            400,
            "word_timestamps: \"perhaps\": expected true or false",
        ),
        (
            PLATFORM,
            file().text("model", "../../etc"),
            400,
            "model: \"../../etc\": that can't be the name of a model",
        ),
        (
            PLATFORM,
            file().text("model", "/etc/passwd"),
            400,
            "model: \"passwd\": that can't be the name of a model",
        ),
        (
            PLATFORM,
            file().text("model", "missing"),
            400,
            "loading model \"missing\": config.json: no such file",
        ),
        (
            OPENAI,
            file().text("language", "a").text("language", "b"),
            400,
            "language: given twice: expected one value",
        ),
        (
            OPENAI,
            file().text("stream", "true"),
            400,
            "stream: true: this engine answers when it is done, leave it out",
        ),
        (
            OPENAI,
            file().text("include[]", "logprobs"),
            400,
            "include: not supported: leave it out",
        ),
        (
            OPENAI,
            file().text("temperature", "2"),
            400,
            "temperature: 2: expected a number from 0 to 1",
        ),
        (
            OPENAI,
            file().text("temperature", "NaN"),
            400,
            "temperature: NaN: expected a number from 0 to 1",
        ),
        (
            OPENAI,
            file().text("response_format", "xml"),
            400,
            "response_format: \"xml\": expected one of json, text, srt, verbose_json, vtt",
        ),
        (
            OPENAI,
            file().text("timestamp_granularities[]", "word"),
            400,
            "timestamp_granularities: given: expected response_format to be verbose_json",
        ),
        (OPENAI, Form::file("noise"), 400, "talk.wav is no audio"),
        (PLATFORM, Form::file("noise"), 400, "talk.wav is no audio"),
        (
            OPENAI,
            Form::file("break"),
            500,
            "the engine failed (error): its log has the reason under the request's id",
        ),
        (
            OPENAI,
            Form::file(&"x".repeat((1 << 20) + 1)),
            413,
            "the recording has more than 1048576 bytes, which is the most that is taken",
        ),
        (
            PLATFORM,
            Form::file(&"x".repeat(3 << 20)),
            413,
            "the recording has more than 1048576 bytes, which is the most that is taken",
        ),
    ];
    for (path, form, status, message) in table {
        let answer = host.post(path, form).await;
        let said = answer.json();
        let said = if path == OPENAI {
            &said["error"]["message"]
        } else {
            &said["detail"]
        };
        assert_eq!((answer.status, said), (status, &json!(message)), "{path}");
    }
    let answer = host.post(OPENAI, file().text("temperature", "2")).await;
    let error = json!({"error": {"message": "temperature: 2: expected a number from 0 to 1",
        "type": "invalid_request_error", "param": "temperature", "code": "invalid_request"}});
    assert_eq!(answer.json(), error);
    let answer = host.post(OPENAI, Form::file("break")).await.json();
    assert_eq!(
        (&answer["error"]["type"], &answer["error"]["code"]),
        (&json!("server_error"), &json!("error"))
    );
    assert!(!answer.to_string().contains("hunter2") && !answer.to_string().contains("secret"));

    let request =
        format!("POST {PLATFORM} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}");
    assert_eq!(exchange(host.port, request.as_bytes()).await.unwrap().status, 415);
    // A form that ends in the middle, and one whose headers never do.
    let mut cut = head(PLATFORM, "", 60);
    cut.extend_from_slice(
        format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=x\r\n\r\n").as_bytes(),
    );
    cut.truncate(head(PLATFORM, "", 60).len() + 60);
    assert_eq!(exchange(host.port, &cut).await.unwrap().status, 400);
    // It is refused long before its silence would be.
    let mut endless = head(PLATFORM, "", 900_000);
    endless.extend_from_slice(format!("--{BOUNDARY}\r\n").as_bytes());
    endless.resize(endless.len() + 700_000, b'x');
    assert_eq!(exchange(host.port, &endless).await.unwrap().status, 400);

    // A request of one of its own, with its fields in the other encoding.
    let fields = "audio_url=ftp%3A%2F%2Fx";
    let request = format!(
        "POST {PLATFORM} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {}\r\n\r\n{fields}",
        fields.len()
    );
    let answer = exchange(host.port, request.as_bytes()).await.unwrap();
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("ftp://x"), "{answer:?}");
    until("no temporary files", async || {
        std::fs::read_dir(host.temp.path())
            .unwrap()
            .next()
            .is_none()
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_may_be_named_by_its_url() {
    let host = Host::start().await;
    host.s3.put("uploads/a/talk.wav", "from storage");
    let answer = host
        .post(
            PLATFORM,
            Form::default().text("audio_url", "s3://uploads/a/talk.wav"),
        )
        .await;
    assert_eq!(
        (answer.status, &answer.json()["text"]),
        (200, &json!("from storage"))
    );
    let answer = host
        .post(
            PLATFORM,
            Form::default().text("audio_url", "s3://uploads/none.wav"),
        )
        .await;
    let detail = "audio_url: s3://uploads/none.wav: there is no such object";
    assert_eq!((answer.status, &answer.json()["detail"]), (400, &json!(detail)));

    let web = Web::start().await;
    let fetch = async |path: &str| {
        let url = format!("http://127.0.0.1:{}{path}", web.port);
        let answer = host.post(PLATFORM, Form::default().text("audio_url", &url)).await;
        (answer.status, answer.json())
    };
    let (status, transcript) = fetch("/talk.wav?signature=hunter2").await;
    assert_eq!((status, &transcript["text"]), (200, &json!("from the web")));
    let (status, transcript) = fetch("/moved").await;
    assert_eq!((status, &transcript["text"]), (200, &json!("from the web")));
    let base = format!("audio_url: http://127.0.0.1:{}", web.port);
    for (path, problem) in [
        ("/none?signature=hunter2", "/none answered 404"),
        (
            "/to-metadata",
            "/to-metadata can't be fetched: is at an address from which nothing is fetched",
        ),
        ("/round", "/round can't be fetched: redirects too often"),
    ] {
        let (status, answer) = fetch(path).await;
        assert_eq!(
            (status, &answer["detail"]),
            (400, &json!(format!("{base}{problem}")))
        );
    }
    let metadata = Form::default().text("audio_url", "http://169.254.169.254/latest/meta-data/iam");
    let answer = host.post(PLATFORM, metadata).await;
    assert_eq!(answer.status, 400);
    assert!(
        answer.body.contains("an address from which nothing is fetched"),
        "{answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_when_there_is_no_room_is_told_to_come_back_and_probes_are_answered() {
    let mut host = Host::with(&[("DALSTON_HTTP_MAX_REQUESTS", "1")]).await;
    // An upload that has begun takes the only place, and more connections than are left for others say nothing at all.
    let mut upload = TcpStream::connect((Ipv4Addr::LOCALHOST, host.port))
        .await
        .unwrap();
    let request = Form::file("wait").request(OPENAI, "");
    let (first, rest) = request.split_at(request.len() - 10);
    upload.write_all(first).await.unwrap();
    let in_hand = async || (host.get("/debug/status").await.json()["http_requests"] == 1).then_some(());
    until("upload", in_hand).await;

    for path in [OPENAI, PLATFORM] {
        let refused = host.post(path, Form::file("one")).await;
        assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    }
    assert_eq!(host.get("/health").await.status, 200);

    upload.write_all(rest).await.unwrap();
    assert_eq!(host.hear().await, "begun");
    let status = host.get("/debug/status").await.json();
    assert_eq!(status["tasks"][0]["phase"], "processing");
    assert!(
        status["thread_count"].as_u64() > Some(1) && status["rss_mb"].as_u64() > Some(1),
        "{status}"
    );
    host.open.open();
    let mut answer = String::new();
    upload.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with(r#"{"text":"wait"}"#), "{answer}");
    assert_eq!(host.post(OPENAI, Form::file("one")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_that_waits_too_long_for_its_turn_is_sent_away() {
    let mut host = Host::with(&[("DALSTON_HTTP_QUEUE_TIMEOUT_SECONDS", "0.1")]).await;
    let mut waiting = JoinSet::new();
    for _ in 0..2 {
        let request = Form::file("wait").request(OPENAI, "");
        let port = host.port;
        waiting.spawn(async move { exchange(port, &request).await.unwrap() });
        let first = waiting.len() == 1;
        if first {
            host.hear().await;
        }
    }
    let both = async || (host.get("/health").await.json()["active_tasks"] == 2).then_some(());
    until("two tasks in hand", both).await;
    let refused = host.post(OPENAI, Form::file("one")).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    assert_eq!(refused.json()["error"]["code"], "busy");
    // Its recording goes at once, not when a turn is free.
    until("two recordings on disk", async || {
        let kept = std::fs::read_dir(host.temp.path()).unwrap().filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with("dalston_http_")
        });
        (kept.count() == 2).then_some(())
    })
    .await;
    host.open.open();
    host.open.open();
    while let Some(answer) = waiting.join_next().await {
        assert_eq!(answer.unwrap().status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_closes_the_connection_cancels_its_task() {
    let mut host = Host::start().await;
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, host.port))
        .await
        .unwrap();
    let request = Form::file("wait until cancelled").request(OPENAI, "");
    client.write_all(&request).await.unwrap();
    assert_eq!(host.hear().await, "begun");
    drop(client);
    assert_eq!(host.hear().await, "cancelled");
    // The thread is free, the place is, too, and nothing is left on disk.
    assert_eq!(host.post(OPENAI, Form::file("one")).await.status, 200);
    let root = host.telemetry.spans();
    let abandoned = root.iter().find(|span| {
        let gone = |attribute: &dalston_telemetry::opentelemetry::KeyValue| {
            attribute.value.as_str() == "client_gone"
        };
        span.name == "engine.scribe.http_process" && span.attributes.iter().any(gone)
    });
    assert!(abandoned.is_some());
    let gone = [("endpoint", OPENAI), ("status_code", "499")];
    let counted = host.telemetry.metrics().snapshot();
    assert_eq!(counted.sum("dalston_engine_direct_requests_total", &gone), 1.0);
    until("no temporary files", async || {
        std::fs::read_dir(host.temp.path())
            .unwrap()
            .next()
            .is_none()
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_stops_answers_what_it_has_and_refuses_what_comes() {
    let mut host = Host::start().await;
    let (port, request) = (host.port, Form::file("wait").request(OPENAI, ""));
    let waiting = tokio::spawn(async move { exchange(port, &request).await.unwrap() });
    assert_eq!(host.hear().await, "begun");
    host.stop().await;
    let draining = async || (host.get("/health").await.json()["phase"] == "draining").then_some(());
    until("draining", draining).await;

    let refused = host.post(OPENAI, Form::file("one")).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    assert_eq!(refused.json()["error"]["code"], "shutting_down");
    host.open.open();
    (&mut host.running).await.unwrap().unwrap();
    let answer = waiting.await.unwrap();
    assert_eq!((answer.status, answer.json()), (200, json!({"text": "wait"})));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_becomes_free_is_taken_then() {
    let port = free_port();
    let taken = tokio::net::TcpListener::bind(("0.0.0.0", port)).await.unwrap();
    let host = Host::on(port, &[]).await;
    let registered = async || {
        let status: Option<String> = host
            .redis
            .send(&["HGET", "dalston:engine:instance:scribe-w1", "status"])
            .await;
        status.filter(|status| status == "idle")
    };
    until("a worker that works without", registered).await;
    drop(taken);
    host.until_ready().await;
    assert_eq!(host.get("/health").await.json()["instance"], "scribe-w1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_room_for_recordings_there_are_no_routes_for_them() {
    let host = Host::with(&[("DALSTON_HTTP_MAX_REQUESTS", "0")]).await;
    assert_eq!(host.post(OPENAI, Form::file("one")).await.status, 404);
    assert_eq!(host.get("/health").await.status, 200);
}

async fn until<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = found().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), looking)
        .await
        .unwrap_or_else(|_| panic!("no {what}"))
}

/// A server with a recording on it, and ways that lead elsewhere.
struct Web {
    port: u16,
    _serving: JoinSet<()>,
}

impl Web {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let size = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..size]).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default();
                let path = path.split('?').next().unwrap_or_default();
                let found = |to: &str| format!("302 Found\r\nLocation: {to}");
                let (status, body) = match path {
                    "/talk.wav" => ("200 OK".to_owned(), "from the web"),
                    "/moved" => (found("/talk.wav"), ""),
                    "/round" => (found("/round"), ""),
                    "/to-metadata" => (found("http://169.254.169.254/latest"), ""),
                    _ => ("404 Not Found".to_owned(), "no"),
                };
                let answer = format!(
                    "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self {
            port,
            _serving: serving,
        }
    }
}
