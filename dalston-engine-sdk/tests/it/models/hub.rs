//! Models of the Hugging Face hub, against a test server for the hub and one for its files.

use std::fs;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{MODEL, Site, reader, weights};

const COMMIT: &str = "8b1c1b5e7a3f4d2c9e0f8b1c1b5e7a3f4d2c9e0f";
const TOKEN: &str = "hf_hunter2";
const SIGNATURE: &str = "hunter3";
/// The outputs of `sha256sum`.
const SUM_20_000: &str = "bd81765cdc582a62adda7628f2fc68183369890608a035fa7c004e61e7a47a29";
const SUM_30_000: &str = "8d0e3731797d5fbcee927c313ce7a2b55601abd1fbb136738459ef81a59a71d7";

/// The hub and its file server.
struct TestHub {
    url: String,
    seen: Arc<Mutex<Seen>>,
    _serving: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    /// Whether the model needs a token.
    gated: bool,
    /// Further files in the listing of the hub.
    more: Vec<Value>,
    /// An error status of the file server.
    trouble: Option<StatusCode>,
    /// How many of the next large files have one bit flipped.
    damaged: usize,
    /// The path of each request with its token.
    hub: Vec<(String, Option<String>)>,
    files: Vec<(String, Option<String>)>,
}

type Shared = (Arc<Mutex<Seen>>, u16);

impl TestHub {
    async fn start() -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let mut serving = JoinSet::new();
        let mut serve = async |router: Router| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            serving.spawn(async move { axum::serve(listener, router).await.unwrap() });
            port
        };
        let files = serve(Router::new().fallback(file).with_state((Arc::clone(&seen), 0))).await;
        let hub = serve(Router::new().fallback(hub).with_state((Arc::clone(&seen), files))).await;
        Self {
            url: format!("http://127.0.0.1:{hub}"),
            seen,
            _serving: serving,
        }
    }

    fn change(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap());
    }
}

fn key(headers: &HeaderMap) -> Option<String> {
    Some(headers.get(header::AUTHORIZATION)?.to_str().unwrap().to_owned())
}

/// The hub serves small files and redirects large ones.
async fn hub(State((seen, files)): State<Shared>, uri: Uri, headers: HeaderMap) -> Response {
    let mut seen = seen.lock().unwrap();
    seen.hub.push((uri.to_string(), key(&headers)));
    if seen.gated && key(&headers).as_deref() != Some("Bearer hf_hunter2") {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let api = format!("/api/models/{MODEL}/revision/main");
    let resolve = format!("/{MODEL}/resolve/{COMMIT}/");
    if uri.path() == api && uri.query() == Some("blobs=true") {
        let mut siblings = vec![
            json!({"rfilename": "config.json", "size": 2, "blobId": "b1"}),
            json!({"rfilename": "onnx/model.bin", "size": 30_000, "lfs": {"size": 30_000, "sha256": SUM_30_000}}),
            json!({"rfilename": "model.bin", "size": 20_000, "lfs": {"size": 20_000, "sha256": SUM_20_000}}),
            json!({"rfilename": "modeling_custom.py", "size": 9}),
            json!({"rfilename": "optimizer.PKL", "size": 9}),
        ];
        siblings.extend(seen.more.iter().cloned());
        let description = json!({"id": MODEL, "sha": COMMIT, "gated": false, "siblings": siblings});
        return description.to_string().into_response();
    }
    match uri.path().strip_prefix(&resolve) {
        Some("config.json") => "{}".into_response(),
        Some(large) => {
            let place = format!("http://127.0.0.1:{files}/blobs/{large}?Signature={SIGNATURE}");
            (StatusCode::FOUND, [(header::LOCATION, place)]).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn file(State((seen, _)): State<Shared>, uri: Uri, headers: HeaderMap) -> Response {
    let mut seen = seen.lock().unwrap();
    seen.files.push((uri.path().to_owned(), key(&headers)));
    assert_eq!(uri.query(), Some("Signature=hunter3"));
    if let Some(status) = seen.trouble {
        return status.into_response();
    }
    let mut content = match uri.path() {
        "/blobs/model.bin" | "/blobs/more/model.bin" => weights(20_000),
        "/blobs/onnx/model.bin" => weights(30_000),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    if seen.damaged > 0 {
        seen.damaged -= 1;
        content[10_000] ^= 1;
    }
    content.into_response()
}

/// Loads a model with these variables; returns the outcome, and all log lines and spans as text.
async fn load(
    site: &Site,
    hub: &TestHub,
    more: &[(&'static str, &str)],
) -> (Result<Value, (String, String)>, String) {
    let variables: Vec<_> = [("HF_ENDPOINT", &*hub.url)]
        .into_iter()
        .chain(more.iter().copied())
        .collect();
    site.submit("T1", MODEL).await;
    let runner = site.rig.runner(reader()).model_storage(site.models(&variables));
    let (outcome, run) = site.rig.run(runner, site.rig.outcome("T1")).await;
    run.unwrap();
    let (lines, spans) = (site.rig.telemetry.logs(), site.rig.telemetry.spans());
    let recorded = format!("{outcome:?} {lines:?} {spans:?}");
    (outcome, recorded)
}

#[tokio::test]
async fn hub_model_is_downloaded_and_only_the_hub_gets_the_token() {
    let (site, hub) = (Site::new(), TestHub::start().await);
    hub.change(|hub| hub.gated = true);

    let (outcome, recorded) = load(
        &site,
        &hub,
        &[("DALSTON_MODEL_SOURCE", "hf"), ("HF_TOKEN", TOKEN)],
    )
    .await;

    outcome.unwrap();
    let dir = site.cached(MODEL);
    assert_eq!(fs::read(dir.join("config.json")).unwrap(), b"{}");
    assert!(fs::read(dir.join("onnx/model.bin")).unwrap() == weights(30_000));
    assert!(dir.join(".complete").exists());
    assert!(!dir.join("modeling_custom.py").exists() && !dir.join("optimizer.PKL").exists());
    assert_eq!(site.s3.requests(), 0);
    {
        let seen = hub.seen.lock().unwrap();
        assert_eq!((seen.hub.len(), seen.files.len()), (4, 2));
        assert!(
            seen.hub
                .iter()
                .all(|(_, key)| key.as_deref() == Some("Bearer hf_hunter2"))
        );
        assert!(
            seen.files.iter().all(|(_, key)| key.is_none()),
            "{:?}",
            seen.files
        );
    }
    assert!(
        !recorded.contains(TOKEN) && !recorded.contains(SIGNATURE),
        "{recorded}"
    );
    let tree = site.rig.tree();
    let expected = "
        engine.queue_wait
        engine.test-asr.process
          engine.download_input
          engine.model_acquire
            engine.model_load
              engine.model_download {dalston.model_source=hf, dalston.download_bytes=50002}
          engine.process
          engine.upload_output
        ";
    tree.assert_eq(expected);
}

#[tokio::test]
async fn model_missing_in_the_bucket_comes_from_the_hub() {
    let (site, hub) = (Site::new(), TestHub::start().await);
    let (outcome, _) = load(&site, &hub, &[("DALSTON_MODEL_SOURCE", "auto")]).await;
    outcome.unwrap();
    assert_eq!(site.s3.requests(), 1);
    assert!(hub.seen.lock().unwrap().hub.iter().all(|(_, key)| key.is_none()));
}

#[tokio::test]
async fn model_in_the_bucket_does_not_come_from_the_hub() {
    let (site, hub) = (Site::new(), TestHub::start().await);
    site.put_model(MODEL);
    let (outcome, _) = load(&site, &hub, &[("DALSTON_MODEL_SOURCE", "auto")]).await;
    outcome.unwrap();
    assert_eq!(hub.seen.lock().unwrap().hub.len(), 0);
}

#[tokio::test]
async fn gated_model_asks_for_a_token() {
    let (site, hub) = (Site::new(), TestHub::start().await);
    hub.change(|hub| hub.gated = true);
    let (outcome, _) = load(&site, &hub, &[("DALSTON_MODEL_SOURCE", "s3,hf")]).await;
    let (code, error) = outcome.unwrap_err();
    assert_eq!(code, "model_not_found");
    assert!(
        error.contains("there is no such model at s3://dalston-artifacts/models/"),
        "{error}"
    );
    assert!(
        error.contains("127.0.0.1/openai/whisper-made-up: 401 Unauthorized"),
        "{error}"
    );
    assert!(error.contains("set HF_TOKEN"), "{error}");
}

#[tokio::test]
async fn failing_file_server_is_named_without_signature() {
    let (site, hub) = (Site::new(), TestHub::start().await);
    hub.change(|hub| hub.trouble = Some(StatusCode::SERVICE_UNAVAILABLE));
    let (outcome, recorded) = load(
        &site,
        &hub,
        &[("DALSTON_MODEL_SOURCE", "hf"), ("HF_TOKEN", TOKEN)],
    )
    .await;
    let (code, error) = outcome.unwrap_err();
    assert_eq!(code, "model_download_failed");
    assert!(error.contains("model.bin: 503 Service Unavailable"), "{error}");
    assert!(
        !recorded.contains(TOKEN) && !recorded.contains(SIGNATURE),
        "{recorded}"
    );
}

#[tokio::test]
async fn file_of_unexpected_size_is_refused() {
    let (site, hub) = (Site::new(), TestHub::start().await);
    hub.change(|hub| {
        hub.more
            .push(json!({"rfilename": "more/model.bin", "size": 19_999}))
    });
    let (outcome, _) = load(&site, &hub, &[("DALSTON_MODEL_SOURCE", "hf")]).await;
    let (code, error) = outcome.unwrap_err();
    assert_eq!(code, "model_download_failed");
    assert!(
        error.contains("more/model.bin came with 20000 bytes where 19999 were announced"),
        "{error}"
    );
    assert!(!site.cached(MODEL).exists());
}

#[tokio::test]
async fn file_with_wrong_checksum_is_refused() {
    let (site, hub) = (Site::new(), TestHub::start().await);
    hub.change(|hub| hub.damaged = usize::MAX);
    let (outcome, _) = load(&site, &hub, &[("DALSTON_MODEL_SOURCE", "hf")]).await;
    let (code, error) = outcome.unwrap_err();
    assert_eq!(code, "model_download_failed");
    assert!(
        error.contains("model.bin: its SHA-256 differs from the announced one"),
        "{error}"
    );
    assert!(!site.cached(MODEL).exists());
}

#[tokio::test]
async fn damaged_file_is_downloaded_again() {
    let (site, hub) = (Site::new(), TestHub::start().await);
    hub.change(|hub| hub.damaged = 2);
    let (outcome, _) = load(&site, &hub, &[("DALSTON_MODEL_SOURCE", "hf")]).await;
    outcome.unwrap();
    let dir = site.cached(MODEL);
    assert!(fs::read(dir.join("model.bin")).unwrap() == weights(20_000));
    assert!(fs::read(dir.join("onnx/model.bin")).unwrap() == weights(30_000));
}

#[tokio::test]
async fn invalid_listing_is_refused_before_the_download() {
    for (more, code, problem) in [
        (
            json!({"rfilename": "endless.bin"}),
            "invalid_model",
            "\"endless.bin\" at 127.0.0.1/openai/whisper-made-up is listed without a size",
        ),
        (
            json!({"rfilename": "more/model.bin", "size": 20_000, "lfs": {"sha256": "s"}}),
            "invalid_model",
            "\"more/model.bin\" at 127.0.0.1/openai/whisper-made-up is listed with an invalid SHA-256",
        ),
        (
            json!({"rfilename": "model.bin", "size": 20_000}),
            "invalid_model",
            "\"model.bin\" at 127.0.0.1/openai/whisper-made-up is listed twice",
        ),
        (
            json!({"rfilename": "more/model.bin", "size": u64::MAX}),
            "disk_full",
            "it has 18446744073709551615 bytes",
        ),
    ] {
        let (site, hub) = (Site::new(), TestHub::start().await);
        hub.change(|hub| hub.more.push(more));
        let (outcome, _) = load(&site, &hub, &[("DALSTON_MODEL_SOURCE", "hf")]).await;
        let (found, error) = outcome.unwrap_err();
        assert_eq!(found, code, "{error}");
        assert!(error.contains(problem), "{error}");
        assert_eq!(hub.seen.lock().unwrap().hub.len(), 1);
    }
}

#[tokio::test]
async fn hostile_file_name_on_the_hub_is_refused() {
    let (site, hub) = (Site::new(), TestHub::start().await);
    hub.change(|hub| {
        hub.more
            .push(json!({"rfilename": "../model.bin", "size": 20_000}))
    });
    let (outcome, _) = load(&site, &hub, &[("DALSTON_MODEL_SOURCE", "hf")]).await;
    let (code, error) = outcome.unwrap_err();
    assert_eq!(code, "invalid_model");
    assert!(error.contains("can't be the name of a file"), "{error}");
    assert_eq!(fs::read_dir(site.temp.path()).unwrap().count(), 0);
}
