//! The page, as a person sees it in a browser.

use std::fs;
use std::net::SocketAddr;

use reqwest::{Method, StatusCode, header};
use serde_json::Value;

use crate::browser::Browser;
use crate::client::open;
use crate::proxy::Proxy;
use crate::retry::remove_the_cause;
use crate::rig::{Rig, free_port, stereo};

/// A name that a file can have.
const HOSTILE: &str = "<script>document.title='taken'<script>&.wav";

/// The platform with an engine that takes its time. All spans come to the gateway.
pub(crate) async fn platform(delay: &'static str) -> Rig {
    let mut rig = Rig::new().await;
    let port = free_port();
    rig.variables.push(("DALSTON_OTLP_HTTP_PORT", port.to_string()));
    let endpoint = format!("http://127.0.0.1:{port}");
    rig.variables.push(("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint));
    // Two processes: the page sees what the other one does.
    rig.run("gateway", &[]);
    rig.run("orchestrator", &[]);
    rig.run("prepare", &[]);
    rig.run("mock-engine", &["--delay", delay]);
    rig.is_ready(2).await;
    rig
}

pub(crate) async fn job_of(rig: &Rig, fields: &[(&'static str, &'static str)]) -> String {
    let created: Value = rig.submit(&stereo(1), fields).await.json().await.unwrap();
    created["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn upload_by_form_leads_to_a_job_that_ends_in_view() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let rig = platform("0").await;
    rig.hold("mock-engine");
    let directory = tempfile::tempdir().unwrap();
    let recording = directory.path().join(HOSTILE);
    fs::write(&recording, stereo(2)).unwrap();

    // Below a path of a proxy.
    let proxy = Proxy::start(&rig).await;
    browser.open(&proxy.url("/")).await;
    browser.see("#jobs", "none").await;
    browser.keys("[name=file]", recording.to_str().unwrap()).await;
    browser.keys("[name=language]", "en").await;
    browser.click("#upload-form button").await;

    browser.see("#stages", "transcribe").await;
    let path = browser.path().await;
    assert!(path.starts_with("/tools/dalston/jobs/"), "{path}");
    browser.run("window.isSame = true").await;
    browser
        .see("#stages tbody tr:nth-child(2) .state", "running")
        .await;
    rig.let_go("mock-engine");
    browser.see("h2 .state", "completed").await;
    browser.see("#transcript", "mono 2.0s").await;
    assert_eq!(browser.run("return window.isSame").await, true);
    browser.see("#job h2", HOSTILE).await;
    browser
        .see("#stages tbody tr:nth-child(1)", "audio-prepare")
        .await;
    browser
        .see("#stages tbody tr:nth-child(2) td:nth-child(5)", "s")
        .await;

    // The list follows as well, and the name of the file is a text there, too.
    browser.click("header nav a").await;
    browser.see("#jobs", HOSTILE).await;
    browser.run("window.isSame = true").await;
    job_of(&rig, &[]).await;
    browser.see("#states", "completed 2").await;
    assert_eq!(browser.run("return window.isSame").await, true);
    assert_eq!(browser.run("return document.title").await, "Jobs - Dalston");
    browser.screenshot("jobs").await;
    browser.close().await;
}

#[tokio::test]
async fn failed_job_and_dead_letter_show_their_reasons() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let rig = platform("0").await;
    let id = job_of(&rig, &[("prompt", "fail")]).await;
    rig.job_with(&id, "failed").await;
    browser.open(&rig.url(&format!("/jobs/{id}"))).await;
    browser.see("#job .bad", "Task transcribe failed").await;
    browser.see("#stages .bad", "the prompt asks for a failure").await;
    assert_eq!(browser.texts("#stages td:nth-child(6)").await, ["0", "2"]);
    browser.click("#trace .row.error .title").await;
    browser.see("#details .bad", "Error").await;

    let event = ["type", "no.such.event", "payload", "{\"job_id\":\"<b>1\"}"];
    let words = ["XADD", "dalston:events:stream", "*"].into_iter().chain(event);
    rig.redis.send::<String>(&words.collect::<Vec<_>>()).await;
    browser.open(&rig.url("/dead-letters")).await;
    browser.see("#events", "invalid_event_schema").await;
    browser.click("#events summary").await;
    browser.see("#events pre", "<b>1").await;
    browser.see("#tasks", "the prompt asks for a failure").await;
    assert_eq!(browser.texts("#tasks td:nth-child(4)").await, ["3"]);
    browser.screenshot("dead-letters").await;

    // The task leads to its job, which fails again.
    browser.click("#tasks a").await;
    browser.click("[data-call$=retry]").await;
    browser.see("#job", "1, the last at").await;
    browser.see("h2 .state", "failed").await;
    remove_the_cause(&rig);
    browser.open(&rig.url("/dead-letters")).await;
    browser.click("#tasks [data-call$=retry]").await;
    browser.see("#tasks", "none").await;
    browser.open(&rig.url(&format!("/jobs/{id}"))).await;
    browser.see("h2 .state", "completed").await;
    browser.see("#job", "2, the last at").await;
    browser.see("#transcript", "mono 1.0s").await;
    browser.click("[data-confirm]").await;
    browser.agree().await;
    browser.see("#jobs", "none").await;
    assert_eq!(browser.path().await, "/");
    browser.open(&rig.url(&format!("/jobs/{id}"))).await;
    browser.see(".bad", "no such job").await;
    browser.close().await;
}

/// The port of the engine's own HTTP server, which its log names.
fn engine_port(rig: &Rig) -> u16 {
    let lines = rig.log_lines();
    let mut listening = lines.iter().filter(|line| {
        line["event"] == "http_server_listening"
            && line["service"] == "engine-mock-asr"
            && line["variable"] == "DALSTON_METRICS_PORT"
    });
    let address = listening.next().unwrap()["address"].as_str().unwrap();
    address.parse::<SocketAddr>().unwrap().port()
}

#[tokio::test]
async fn queues_and_workers_show_what_waits_and_what_runs() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let rig = platform("60000").await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        let id = job_of(&rig, &[]).await;
        rig.stage_with(&id, "prepare", "completed").await;
        ids.push(id);
    }
    rig.stage_with(&ids[0], "transcribe", "running").await;
    browser.open(&rig.url("/queues")).await;
    // One task runs and one is prepared.
    browser.see("#queues tbody tr:nth-child(2)", "mock-asr 2").await;
    browser
        .until_texts("#queues tbody tr:nth-child(2) td:nth-child(n+4)", &["2", "1"])
        .await;
    let prepared = ["audio-prepare", "0", "-", "0", "1"];
    browser
        .until_texts("#queues tbody tr:nth-child(1) td", &prepared)
        .await;
    browser.screenshot("queues").await;
    browser.open(&rig.url("/workers")).await;
    browser
        .see("#workers tbody tr:nth-child(2)", "transcribe since")
        .await;
    browser
        .see("#workers tbody tr:nth-child(2)", "transcribe is prepared")
        .await;
    browser.see("#workers tbody tr:nth-child(2)", "no GPU").await;
    browser.screenshot("workers").await;

    // The engine shows the same on its own port.
    browser
        .open(&format!("http://127.0.0.1:{}/", engine_port(&rig)))
        .await;
    browser.see("h1", "mock-asr").await;
    browser.see("table", "processing").await;
    let links = browser.texts("a").await;
    for link in ["/health", "/metrics"] {
        assert!(links.iter().any(|found| found == link), "{links:?}");
    }
    browser.screenshot("engine").await;

    browser.open(&rig.url("/workers")).await;
    browser.click("#workers tbody tr:nth-child(2) a").await;
    browser.click("[data-call$=cancel]").await;
    browser.see("h2 .state", "cancelled").await;
    browser.close().await;
}

#[tokio::test]
async fn list_is_filtered_searched_and_paged() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    rig.is_ready(0).await;
    rig.database(
        "WITH RECURSIVE n(i) AS (SELECT 10 UNION ALL SELECT i + 1 FROM n WHERE i < 39) \
         INSERT INTO jobs (id, status, display_name, parameters, audio_locator, media, created_at) \
         SELECT 'job-' || i, iif(i < 12, 'failed', 'completed'), 'call ' || i, '{}', '', \
         '{\"artifact_id\":\"a\",\"format\":\"wav\",\"duration\":1.0,\"sample_rate\":8000,\"channels\":1}', \
         '2026-01-01T00:00:' || i || '+00:00' FROM n",
    );
    browser.open(&rig.url("/")).await;
    browser.see("#states", "all 30").await;
    assert_eq!(browser.texts("#jobs tbody tr").await.len(), 25);
    browser.click("[rel=next]").await;
    browser.see("#jobs", "call 10").await;
    assert_eq!(browser.texts("#jobs tbody tr").await.len(), 5);
    browser.click("#states a[href*=failed]").await;
    browser.see("#jobs", "call 11").await;
    assert_eq!(browser.texts("#jobs td.text").await, ["call 11", "call 10"]);
    browser.keys("[name=id]", "OB-10\n").await;
    browser.until_texts("#jobs td.text", &["call 10"]).await;
    browser.click("#jobs a").await;
    browser.see("#trace", "The job has no trace").await;
    browser.close().await;
}

#[tokio::test]
async fn page_follows_again_after_a_restart_of_the_gateway() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let mut rig = platform("0").await;
    browser.open(&rig.url("/")).await;
    browser.see("#states", "all 0").await;
    browser.run("window.isSame = true").await;
    rig.kill("gateway");
    browser.see("#connection", "not connected").await;
    rig.run("gateway", &[]);
    rig.is_ready(2).await;
    job_of(&rig, &[]).await;
    browser.see("#states", "completed 1").await;
    browser.until_texts("#connection", &[]).await;
    assert_eq!(browser.run("return window.isSame").await, true);
    browser.close().await;
}

#[tokio::test]
async fn page_asks_browsers_for_the_key_as_a_password() {
    let mut rig = Rig::new().await;
    rig.variables.push(("DALSTON_API_KEY", "secret".into()));
    rig.run("gateway", &[]);
    let pages = [
        "/",
        "/jobs/1",
        "/queues",
        "/workers",
        "/sessions",
        "/microphone",
        "/dead-letters",
        "/events/jobs",
        "/assets/page.js",
    ];
    for path in pages {
        let ask = async || rig.request(Method::GET, path).send().await.ok();
        let refused = rig.until("answer", ask).await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{path}");
        let challenge = refused.headers()[header::WWW_AUTHENTICATE].to_str().unwrap();
        assert!(challenge.starts_with("Basic realm="), "{challenge}");
    }
    let shown = rig
        .request(Method::GET, "/")
        .basic_auth("me", Some("secret"))
        .send()
        .await
        .unwrap();
    assert_eq!(shown.status(), StatusCode::OK);
    assert_eq!(shown.headers()[header::CACHE_CONTROL], "no-store");
    let policy = shown.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(
        policy.contains("script-src 'self';") && !policy.contains("unsafe"),
        "{policy}"
    );

    // The browser adds the password to a form of another site, too.
    let other = rig
        .request(Method::POST, "/v1/audio/transcriptions/1/cancel")
        .basic_auth("me", Some("secret"));
    let other = other.header("Sec-Fetch-Site", "cross-site").send().await.unwrap();
    assert_eq!(other.status(), StatusCode::FORBIDDEN);

    let Some(browser) = Browser::start().await else {
        return;
    };
    browser.open(&rig.url("/").replace("//", "//me:secret@")).await;
    // A script can't send requests from an address with a password.
    browser.open(&rig.url("/")).await;
    browser.see("#states", "all 0").await;
    let directory = tempfile::tempdir().unwrap();
    let recording = directory.path().join("noise.wav");
    fs::write(&recording, "no audio").unwrap();
    browser.keys("[name=file]", recording.to_str().unwrap()).await;
    browser.click("#upload-form button").await;
    browser.see("#upload-form output", "audio file").await;
    assert_eq!(browser.text("#connection").await.as_deref(), Some(""));
    browser.close().await;
}

#[tokio::test]
async fn read_only_page_shows_all_and_changes_nothing() {
    let mut rig = Rig::new().await;
    rig.variables.push(("DALSTON_PAGE_READ_ONLY", "true".to_owned()));
    let grafana = "http://localhost:3001".to_owned();
    rig.variables.push(("DALSTON_GRAFANA_URL", grafana));
    rig.run("gateway", &[]);
    rig.is_ready(0).await;
    // Programs go on as ever.
    let pending = job_of(&rig, &[]).await;
    let failed = job_of(&rig, &[]).await;
    let count = rig.database(&format!(
        "UPDATE jobs SET status = 'failed' WHERE id = '{failed}'"
    ));
    assert_eq!(count, 1);
    rig.database(&format!(
        "INSERT INTO tasks (id, job_id, position, stage, engine_id, depends_on, config, status, error) \
         VALUES ('t', '{failed}', 0, 'prepare', 'audio-prepare', '[]', '{{}}', 'failed', 'disk full')"
    ));
    let changes = [
        (Method::POST, "/v1/audio/transcriptions".to_owned()),
        (Method::POST, format!("/v1/audio/transcriptions/{pending}/cancel")),
        (Method::POST, format!("/v1/audio/transcriptions/{failed}/retry")),
        (Method::DELETE, format!("/v1/audio/transcriptions/{failed}")),
        (Method::POST, "/v1/realtime/token".to_owned()),
    ];
    for (method, path) in changes {
        let request = rig.request(method, &path).header("Origin", rig.url(""));
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{path}");
        let body: Value = response.json().await.unwrap();
        let detail = "the page is read-only (DALSTON_PAGE_READ_ONLY)";
        assert_eq!(body["detail"], detail, "{path}");
    }
    let page = rig.url("");
    let mut session = open(&rig, "", &[("Origin", &page)]).await;
    let refusal = session.rest().await;
    assert_eq!(refusal[0]["code"], "forbidden", "{refusal:?}");
    assert_eq!(session.closed, Some(4003));

    let Some(browser) = Browser::start().await else {
        return;
    };
    for (path, part, text) in [
        ("/".to_owned(), "#jobs", "failed"),
        (format!("/jobs/{pending}"), "h2 .state", "pending"),
        (format!("/jobs/{failed}"), "#stages .bad", "disk full"),
        ("/dead-letters".to_owned(), "#tasks", "disk full"),
        ("/sessions".to_owned(), "#sessions", "none"),
        ("/microphone".to_owned(), ".bad", "read-only"),
    ] {
        browser.open(&rig.url(&path)).await;
        browser.see(part, text).await;
        browser.see("header", "read-only").await;
        let links = browser.texts("header nav a").await;
        assert_eq!(
            links,
            ["Jobs", "Queues", "Workers", "Sessions", "Dead letters", "Grafana"]
        );
        // Searches remain, and what shows more of a page.
        let changing = "[data-call], [data-upload], [data-session], [href=microphone], form:not([role=search], [method=dialog])";
        assert!(browser.texts(changing).await.is_empty(), "{path}");
    }
    // What the browser itself sends is refused.
    browser.open(&rig.url("/")).await;
    let script = format!(
        "return call('POST', 'v1/audio/transcriptions/{pending}/cancel').catch((error) => error.message)"
    );
    let refusal = browser.run(&script).await;
    assert!(refusal.as_str().unwrap().contains("read-only"), "{refusal}");
    browser.close().await;
    let cancel = format!("/v1/audio/transcriptions/{pending}/cancel");
    let cancelled = rig.request(Method::POST, &cancel).send().await.unwrap();
    assert_eq!(cancelled.status(), StatusCode::OK);
}

#[tokio::test]
async fn streams_are_bounded_and_end_with_the_gateway() {
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    rig.is_ready(0).await;
    let mut streams = Vec::new();
    for _ in 0..32 {
        let mut stream = rig.request(Method::GET, "/events/jobs").send().await.unwrap();
        assert_eq!(stream.status(), StatusCode::OK);
        let first = stream.chunk().await.unwrap().unwrap();
        assert!(first.starts_with(b"retry:"), "{first:?}");
        streams.push(stream);
    }
    let refused = rig.request(Method::GET, "/events/jobs").send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    // 20 s is the longest drain; the requests must not use it up.
    let began = std::time::Instant::now();
    rig.stop("");
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    let lines = rig.log_lines();
    assert!(
        lines.iter().all(|line| line["event"] != "shutdown_took_too_long"),
        "{lines:?}"
    );
}
