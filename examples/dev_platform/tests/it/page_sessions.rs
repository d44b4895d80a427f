//! The pages of realtime sessions, as a person sees them in a browser.

use crate::browser::Browser;
use crate::client::{open_session, speech_file};
use crate::rig::Rig;
use crate::stream::platform;

#[tokio::test]
async fn sessions_show_their_worker_audio_and_lag() {
    let Some(browser) = Browser::start().await else {
        return;
    };
    let rig = platform().await;
    browser.open(&rig.url("/sessions")).await;
    browser.see("#sessions", "none").await;
    browser.see("#realtime-workers", "0 of 2").await;
    browser.run("window.isSame = true").await;
    let query = "enable_vad=false&interim_results=false&language=en&model=tiny";
    let (mut first, begin) = open_session(&rig, query).await;
    let (mut second, _) = open_session(&rig, "enable_vad=false&sample_rate=8000").await;
    assert!(first.send_bytes(vec![0; 48_000]).await);
    first.send(serde_json::json!({"type": "flush"})).await;
    first.until("transcript.final").await;
    assert!(first.send_bytes(vec![0; 32_000]).await);
    assert!(second.send_bytes(vec![0; 8_000]).await);
    let row = "#sessions tbody tr:nth-child(1)";
    browser.see(row, "2.5 s").await;
    let shown = browser.texts(&format!("{row} td")).await;
    assert_eq!(shown[0], begin["session_id"].as_str().unwrap());
    let since = shown[1].strip_suffix(" s").unwrap();
    assert!(since.parse::<u32>().is_ok(), "{shown:?}");
    assert!(shown[2].starts_with("mock-asr-rt-"), "{shown:?}");
    assert_eq!(shown[3..], ["tiny", "en", "2.5 s", "0.0 s", "127.0.0.1"]);
    browser.see("#sessions tbody tr:nth-child(2)", "0.5 s").await;
    browser.see("#realtime-workers", "2 of 2").await;
    browser.screenshot("sessions").await;
    first.finish().await;
    second.finish().await;
    browser.see("#sessions", "none").await;
    assert_eq!(browser.run("return window.isSame").await, true);
    browser.close().await;
}

#[tokio::test]
async fn microphone_is_transcribed_until_it_is_stopped() {
    let Some(browser) = Browser::with_microphone(&speech_file("en_pauses_25s")).await else {
        return;
    };
    let mut rig = Rig::new().await;
    rig.variables.push(("DALSTON_API_KEY", "secret".to_owned()));
    rig.run("gateway", &[]);
    rig.run("mock-engine", &["--realtime"]);
    rig.has_places(2).await;
    browser.open(&rig.url("/").replace("//", "//me:secret@")).await;
    // A script can't send requests from an address with a password.
    browser.open(&rig.url("/microphone")).await;
    browser.keys("[name=language]", "en").await;
    browser.click("[name=start]").await;
    browser.see("#microphone output", "recording").await;
    browser.see("#finals li:nth-child(2)", "mono").await;
    browser.screenshot("microphone").await;
    browser.click("[name=stop]").await;
    browser.see("#microphone output", "ended").await;
    let finals = browser.texts("#finals li").await.len();
    assert!(finals >= 2);
    // All of it can be done again.
    browser.click("[name=start]").await;
    browser.see("#finals", "mono").await;
    browser.click("[name=stop]").await;
    browser.see("#microphone output", "ended").await;
    browser.close().await;
}

#[tokio::test]
async fn microphone_page_says_why_there_is_no_session() {
    let Some(browser) = Browser::with_microphone(&speech_file("en_one")).await else {
        return;
    };
    let mut rig = Rig::new().await;
    rig.run("gateway", &[]);
    rig.answers().await;
    browser.open(&rig.url("/microphone")).await;
    browser.click("[name=start]").await;
    browser.see("#microphone output", "no realtime worker runs").await;
    browser.close().await;
}
