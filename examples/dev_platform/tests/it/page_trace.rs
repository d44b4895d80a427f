//! The waterfall of a job, by mouse and by keyboard.

use dalston_telemetry::services::engine::spans::span;
use fantoccini::key::Key;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::browser::Browser;
use crate::job::STEREO;
use crate::page::{job_of, platform};
use crate::rig::Rig;

/// A job whose spans have all arrived, in view.
async fn complete_trace(browser: &Browser) -> (Rig, String) {
    let rig = platform("200").await;
    let id = job_of(&rig, &[("speaker_detection", "per_channel")]).await;
    browser.open(&rig.url(&format!("/jobs/{id}"))).await;
    rig.job_with(&id, "completed").await;
    browser.see("h2 .state", "completed").await;
    browser.see("#transcript", "channel 0").await;
    let spans = STEREO.trim().lines().count();
    let complete = async || {
        let titles = browser.texts("#trace .row .title").await;
        // A task that waits for the thread of its engine has one span more.
        let usual = titles.iter().filter(|title| *title != span::SLOT_WAIT);
        (usual.count() >= spans).then_some(())
    };
    rig.until("all spans", complete).await;
    (rig, id)
}

/// The selector of the first row with this name.
async fn row(browser: &Browser, name: &str) -> String {
    let script = format!(
        "return rows().find((row) => row.querySelector('.title').textContent === {}).id",
        Value::from(name)
    );
    format!("#{}", browser.run(&script).await.as_str().unwrap())
}

async fn selected(browser: &Browser) -> String {
    browser.text("#trace [aria-selected=true] .title").await.unwrap()
}

async fn visible(browser: &Browser) -> usize {
    browser.texts("#trace .row").await.len()
}

#[tokio::test]
async fn waterfall_is_read_with_the_mouse() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let (rig, _) = complete_trace(&browser).await;
    for service in [
        "dalston-gateway",
        "dalston-orchestrator",
        "dalston-engine-mock-asr",
    ] {
        browser.see("#trace .tools", service).await;
    }
    let all = visible(&browser).await;
    browser.screenshot("job").await;

    let engine = row(&browser, "engine.mock-asr.process").await;
    browser.click(&engine).await;
    browser.see("#details h3", "engine.mock-asr.process").await;
    browser.see("#details", "dalston.stage").await;
    browser.see("#details", "transcribe_ch").await;
    browser.screenshot("span").await;
    browser.click("[data-trace=close]").await;
    let last = row(&browser, "orchestrator.mark_job_completed").await;
    browser.click(&last).await;
    browser.see("#details", "On the critical path").await;
    browser.press(&Key::Escape.to_string()).await;
    browser.until_texts("#details", &[]).await;

    browser.click(&format!("{engine} .toggle")).await;
    let folded = visible(&browser).await;
    // Download, process, upload, started, completed.
    assert!(all - folded >= 5, "{folded} of {all}");
    let root = row(&browser, "POST /v1/audio/transcriptions").await;
    browser.click(&format!("{root} .toggle")).await;
    assert_eq!(visible(&browser).await, 1);
    browser.click("[data-trace=expand]").await;
    assert_eq!(visible(&browser).await, all);

    assert_eq!(browser.texts("#trace .axis span").await[0], "0 ms");
    browser.drag(&format!("{root} .bar"), 0.5, 0.75).await;
    let ticks = browser.texts("#trace .axis span").await;
    assert_ne!(ticks[0], "0 ms", "{ticks:?}");
    // The end of the drag is no click.
    assert!(browser.texts("#details").await.is_empty());
    browser.click("[data-trace=reset]").await;
    assert_eq!(browser.texts("#trace .axis span").await[0], "0 ms");

    let link = browser
        .find("[download$='jaeger.json']")
        .await
        .prop("href")
        .await
        .unwrap()
        .unwrap();
    let path = link.strip_prefix(&rig.url("")).unwrap();
    let file = rig.request(Method::GET, path).send().await.unwrap();
    assert_eq!(file.status(), StatusCode::OK);
    let file: Value = file.json().await.unwrap();
    assert_eq!(file["data"][0]["spans"].as_array().unwrap().len(), all);
    browser.close().await;
}

#[tokio::test]
async fn waterfall_is_read_with_the_keyboard_and_linked() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let (rig, id) = complete_trace(&browser).await;
    let all = visible(&browser).await;
    let key = |key: Key| key.to_string();
    browser.keys("#trace .row", &key(Key::Down)).await;
    assert_eq!(selected(&browser).await, "gateway.upload_to_s3");
    browser.press(&key(Key::Left)).await;
    assert_eq!(selected(&browser).await, "POST /v1/audio/transcriptions");
    browser.press(&key(Key::Left)).await;
    assert_eq!(visible(&browser).await, 1);
    browser.press(&key(Key::Right)).await;
    assert_eq!(visible(&browser).await, all);
    browser.press(&key(Key::Right)).await;
    browser.press(&key(Key::Down)).await;
    browser.press(&key(Key::Up)).await;
    assert_eq!(selected(&browser).await, "gateway.upload_to_s3");
    browser.press(&key(Key::Enter)).await;
    browser.see("#details h3", "gateway.upload_to_s3").await;
    browser.press("?").await;
    browser.see("#help", "Keys of the waterfall").await;
    browser.press(&key(Key::Escape)).await;
    browser.until_texts("#help", &[]).await;

    // A link to a span opens above it what is needed, and its details.
    let address = browser
        .run("return location.href")
        .await
        .as_str()
        .unwrap()
        .to_owned();
    assert!(address.contains(&format!("/jobs/{id}#span-")), "{address}");
    browser.open(&rig.url("/queues")).await;
    browser.open(&address).await;
    browser.see("#details h3", "gateway.upload_to_s3").await;
    assert_eq!(selected(&browser).await, "gateway.upload_to_s3");
    browser.close().await;
}
