//! Chromium, as a person uses it.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fantoccini::actions::{InputSource, MOUSE_BUTTON_LEFT, MouseActions, PointerAction};
use fantoccini::elements::Element;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::rig::free_port;

/// The longest wait for anything on a page.
const PATIENCE: Duration = Duration::from_secs(60);
const WIDTH: u32 = 1100;

/// A browser without a window, which ends with this.
pub(crate) struct Browser {
    client: Client,
    driver: Driver,
}

struct Driver(Child);

impl Browser {
    /// `None` on a machine without Chromium, but not in CI.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// A browser whose microphone plays a recording, over and over.
    pub(crate) async fn with_microphone(recording: &str) -> Option<Self> {
        let recording = format!("--use-file-for-fake-audio-capture={recording}");
        let arguments = [
            "--use-fake-device-for-media-stream",
            "--use-fake-ui-for-media-stream",
            &recording,
        ];
        Self::start_with(&arguments).await
    }

    async fn start_with(more: &[&str]) -> Option<Self> {
        let is_installed = Command::new("chromedriver").arg("--version").output().is_ok();
        if !is_installed {
            let is_ci = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(
                !is_ci,
                "chromium-driver is not installed, and CI must test the page"
            );
            testbed::warn("the page is not tested: chromium-driver is not installed");
            return None;
        }
        let port = free_port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let driver = Driver(driver);
        let size = format!("--window-size={WIDTH},900");
        let usual = [
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            // Small pictures.
            "--force-device-scale-factor=0.85",
            &size,
        ];
        let arguments: Vec<&str> = usual.iter().chain(more).copied().collect();
        let options = json!({"goog:chromeOptions": {"args": arguments}});
        let Value::Object(options) = options else {
            unreachable!()
        };
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(options);
        let url = format!("http://127.0.0.1:{port}");
        let deadline = Instant::now() + PATIENCE;
        let client = loop {
            match builder.connect(&url).await {
                Ok(client) => break client,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            sleep(Duration::from_millis(50)).await;
        };
        Some(Self { client, driver })
    }

    pub(crate) async fn open(&self, url: &str) {
        self.client.goto(url).await.unwrap();
    }

    pub(crate) async fn path(&self) -> String {
        self.client.current_url().await.unwrap().path().to_owned()
    }

    /// Waits until a look at the page has an answer. The page may change at any time.
    async fn until<T>(&self, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = look().await {
                return answer;
            }
            if Instant::now() > deadline {
                let shown = self.client.find(Locator::Css("body")).await.unwrap();
                panic!("no {what} in\n{}", shown.text().await.unwrap());
            }
            sleep(Duration::from_millis(30)).await;
        }
    }

    /// Waits until an element is there.
    pub(crate) async fn find(&self, css: &str) -> Element {
        self.until(css, async || self.client.find(Locator::Css(css)).await.ok())
            .await
    }

    /// Waits until an element shows a text.
    pub(crate) async fn see(&self, css: &str, text: &str) {
        self.until(&format!("{text:?} in {css}"), async || {
            self.text(css)
                .await
                .filter(|shown| shown.contains(text))
                .map(drop)
        })
        .await;
    }

    /// What an element shows, if it is there.
    pub(crate) async fn text(&self, css: &str) -> Option<String> {
        let element = self.client.find(Locator::Css(css)).await.ok()?;
        element.text().await.ok()
    }

    /// What the visible ones of some elements show.
    pub(crate) async fn texts(&self, css: &str) -> Vec<String> {
        self.until(css, async || {
            let mut texts = Vec::new();
            for element in self.client.find_all(Locator::Css(css)).await.ok()? {
                if element.is_displayed().await.ok()? {
                    texts.push(element.text().await.ok()?);
                }
            }
            Some(texts)
        })
        .await
    }

    /// Waits until exactly these texts are visible.
    pub(crate) async fn until_texts(&self, css: &str, texts: &[&str]) {
        self.until(&format!("{texts:?} in {css}"), async || {
            (self.texts(css).await == texts).then_some(())
        })
        .await;
    }

    /// Clicks on an element once it is there.
    pub(crate) async fn click(&self, css: &str) {
        self.until(&format!("click on {css}"), async || {
            let element = self.client.find(Locator::Css(css)).await.ok()?;
            element.click().await.ok()
        })
        .await;
    }

    /// Types into an element, or presses keys.
    pub(crate) async fn keys(&self, css: &str, keys: &str) {
        self.find(css).await.send_keys(keys).await.unwrap();
    }

    /// Presses keys where the focus is.
    pub(crate) async fn press(&self, keys: &str) {
        let focus = self.client.active_element().await.unwrap();
        focus.send_keys(keys).await.unwrap();
    }

    /// Drags from one place on an element to another. Both are shares of its width.
    pub(crate) async fn drag(&self, css: &str, from: f64, to: f64) {
        let (x, y, width, height) = self.find(css).await.rectangle().await.unwrap();
        let place = |share| PointerAction::MoveTo {
            duration: None,
            x: x + share * width,
            y: y + height / 2.0,
        };
        let button = MOUSE_BUTTON_LEFT;
        let mouse = MouseActions::new("mouse".to_owned())
            .then(place(from))
            .then(PointerAction::Down { button })
            .then(place(to))
            .then(PointerAction::Up { button });
        self.client.perform_actions(mouse).await.unwrap();
    }

    /// Agrees to a question of the page.
    pub(crate) async fn agree(&self) {
        self.until("question", async || self.client.accept_alert().await.ok())
            .await;
    }

    pub(crate) async fn run(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap()
    }

    /// Keeps a picture of the whole page in `target/screenshots`.
    pub(crate) async fn screenshot(&self, name: &str) {
        let height = self.run("return document.documentElement.scrollHeight").await;
        let height = u32::try_from(height.as_u64().unwrap()).unwrap().clamp(300, 1200);
        self.client.set_window_size(WIDTH, height + 10).await.unwrap();
        let directory = screenshots();
        fs::create_dir_all(&directory).unwrap();
        let picture = self.client.screenshot().await.unwrap();
        fs::write(directory.join(format!("{name}.png")), picture).unwrap();
        self.client.set_window_size(WIDTH, 900).await.unwrap();
    }

    pub(crate) async fn close(self) {
        let Self { client, driver } = self;
        client.close().await.unwrap();
        drop(driver);
    }
}

/// `target/screenshots`: this binary is in `target/debug/deps`.
fn screenshots() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let target = program.ancestors().nth(3).map(Path::to_owned);
    target.unwrap().join("screenshots")
}

impl Drop for Driver {
    /// Its browser is in its process group, and would stay behind after a test that fails.
    fn drop(&mut self) {
        let id = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        if let Some(id) = id {
            let _ = kill_process_group(id, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}
