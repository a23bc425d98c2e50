//! chromium, by the WebDriver protocol (W3C).

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::fcgi::PATIENCE;
use crate::support::process::{Daemon, that_dies_with_us};
use crate::support::server::free_port;

/// The name of an element's id in an answer, by the standard.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one window; ended when dropped.
pub struct Chromium {
    _driver: Daemon,
    agent: ureq::Agent,
    /// `http://127.0.0.1:PORT/session/ID`, once there is one.
    session: String,
}

impl Chromium {
    /// Starts chromedriver, and by it a browser whose files are in `profile`.
    pub fn start(profile: &Path) -> Result<Self, String> {
        let port = free_port("127.0.0.1").map_err(|e| e.to_string())?;
        let mut command = that_dies_with_us("TERM", "chromedriver");
        command.arg(format!("--port={port}"));
        let base = format!("http://127.0.0.1:{port}");
        let driver = Daemon::start(command, profile, || ureq::get(format!("{base}/status")).call().is_ok())?;
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE * 3));
        let mut chromium = Self {
            _driver: driver,
            agent: config.build().into(),
            session: String::new(),
        };
        let options = json!({
            "args": [
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--window-size=1200,800", format!("--user-data-dir={}", profile.display()),
            ]
        });
        let wanted = json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}});
        let session = chromium.ask(&format!("{base}/session"), &wanted)?;
        let id = session["sessionId"]
            .as_str()
            .ok_or_else(|| format!("no session: {session}"))?;
        chromium.session = format!("{base}/session/{id}");
        Ok(chromium)
    }

    pub fn open(&self, url: &str) -> Result<(), String> {
        self.command("url", &json!({"url": url})).map(drop)
    }

    /// Empties the element and types into it.
    pub fn fill(&self, selector: &str, text: &str) -> Result<(), String> {
        let element = self.element(selector)?;
        self.command(&format!("element/{element}/clear"), &json!({}))?;
        // chromedriver types no characters beyond the basic plane: those are put in by a script.
        if text.chars().all(|c| u32::from(c) < 0x1_0000) {
            return self
                .command(&format!("element/{element}/value"), &json!({"text": text}))
                .map(drop);
        }
        let script = "arguments[0].value = arguments[1];";
        let arguments = json!([{ELEMENT: element}, text]);
        self.command("execute/sync", &json!({"script": script, "args": arguments}))
            .map(drop)
    }

    pub fn click(&self, selector: &str) -> Result<(), String> {
        let element = self.element(selector)?;
        self.command(&format!("element/{element}/click"), &json!({})).map(drop)
    }

    /// Waits until an element shows a text.
    pub fn wait_for(&self, selector: &str, text: &str) -> Result<(), String> {
        let script = format!(
            "return [...document.querySelectorAll({})].some(e => e.innerText.includes({}))",
            json!(selector),
            json!(text)
        );
        self.wait_until(&script)
    }

    /// Waits until a script returns true.
    pub fn wait_until(&self, script: &str) -> Result<(), String> {
        let holds = || Ok(self.command("execute/sync", &json!({"script": script, "args": []}))? == json!(true));
        until(script, holds)
    }

    /// Writes what the window shows to a PNG file.
    pub fn picture(&self, file: &str) -> Result<(), String> {
        let url = format!("{}/screenshot", self.session);
        let mut response = self.agent.get(url).call().map_err(|e| e.to_string())?;
        let answer: Value = parse(&mut response)?;
        let text = answer.as_str().ok_or("the picture is no text")?;
        fs::write(file, base64(text)).map_err(|e| format!("{file}: {e}"))
    }

    /// From now on the window is as large as a telephone's.
    pub fn be_a_telephone(&self) -> Result<(), String> {
        let size = json!({"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": true});
        let command = json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": size});
        self.command("goog/cdp/execute", &command).map(drop)
    }

    fn element(&self, selector: &str) -> Result<String, String> {
        let found = self.command("element", &json!({"using": "css selector", "value": selector}))?;
        let id = found[ELEMENT]
            .as_str()
            .ok_or_else(|| format!("no element {selector}: {found}"))?;
        Ok(id.to_owned())
    }

    fn command(&self, name: &str, arguments: &Value) -> Result<Value, String> {
        self.ask(&format!("{}/{name}", self.session), arguments)
    }

    fn ask(&self, url: &str, arguments: &Value) -> Result<Value, String> {
        let request = self.agent.post(url).header("Content-Type", "application/json");
        let mut response = request.send(arguments.to_string()).map_err(|e| format!("{url}: {e}"))?;
        parse(&mut response)
    }
}

/// The value of an answer, or the driver's complaint.
fn parse(response: &mut ureq::http::Response<ureq::Body>) -> Result<Value, String> {
    let text = response.body_mut().read_to_string().map_err(|e| e.to_string())?;
    let answer: Value = serde_json::from_str(&text).map_err(|e| format!("{e} in {text}"))?;
    let value = answer["value"].clone();
    if response.status().is_success() {
        return Ok(value);
    }
    Err(value["message"].as_str().unwrap_or(&text).to_owned())
}

fn until(what: &str, holds: impl Fn() -> Result<bool, String>) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        if Instant::now() > deadline {
            return Err(format!("this does not become true: {what}"));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The bytes that base64 text stands for.
fn base64(text: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits: Vec<u8> = text.bytes().filter_map(value).collect();
    let group = |group: &[u8]| {
        let bits = group
            .iter()
            .enumerate()
            .fold(0, |bits, (n, &digit)| bits | u32::from(digit) << (18 - 6 * n));
        bits.to_be_bytes()[1..group.len()].to_vec()
    };
    digits.chunks(4).flat_map(group).collect()
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // The browser ends with its session.
        if !self.session.is_empty() {
            let _ = self.agent.delete(&self.session).call();
        }
    }
}
