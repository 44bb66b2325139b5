//! The page of `peelfs web`, in a real browser: Debian's Chromium, driven over WebDriver.
//! Tests need root, `/dev/fuse` and chromedriver, and print why they skip.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use peelfs_loopback::faults::{Fault, Gate, Rule, Target};
use peelfs_loopback::image::{ImageBuilder, LayerBuilder};
use peelfs_loopback::registry::{Catalog, Registry};
use serde_json::{Value, json};
use support::random::Random;
use support::sandbox::{Sandbox, cannot_mount};

/// A name that would be markup if it were not set as text.
const HOSTILE: &str = "<img src=x onerror=\"document.title='owned'\">.bin";

/// A running `peelfs web`.
struct Web {
    process: Child,
    /// The whole address that it has printed.
    url: String,
    address: SocketAddr,
    token: String,
}

impl Web {
    fn start(sandbox: &Sandbox) -> Self {
        let mut process = sandbox.peelfs(["web"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim_end().to_owned();
        let (address, token) = url.strip_prefix("http://").unwrap().split_once("/#token=").unwrap();
        Self { process, address: address.parse().unwrap(), token: token.to_owned(), url }
    }

    fn get(&self, path: &str, host: &str, authorization: &str) -> String {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{authorization}Connection: close\r\n\r\n");
        let (head, body) = exchange(self.address, &head, "");
        head + &body
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Head and body of the answer to a request.
fn exchange(address: SocketAddr, head: &str, body: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), None);
    loop {
        let before = head.len();
        reader.read_line(&mut head).unwrap();
        let line = head[before..].trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(bytes) = line.strip_prefix("content-length:") {
            length = bytes.trim().parse::<u64>().ok();
        }
    }
    let mut text = Vec::new();
    match length {
        Some(length) => reader.take(length).read_to_end(&mut text).unwrap(),
        None => reader.read_to_end(&mut text).unwrap(),
    };
    (head, String::from_utf8(text).unwrap())
}

/// A browser without a window.
struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// `None`, with the reason, where there is none.
    fn start() -> Option<Self> {
        let driver = Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let Ok(mut driver) = driver else {
            eprintln!("skipped: there is no chromedriver (Debian: chromium-driver)");
            return None;
        };
        let lines = BufReader::new(driver.stdout.take().unwrap()).lines().map_while(Result::ok);
        let port =
            lines.filter_map(|line| line.split_once("successfully on port ").map(|(_, port)| port.to_owned())).next();
        let port = port.unwrap().trim_end_matches('.').parse().unwrap();
        let profile = tempfile::tempdir().unwrap();
        let directory = format!("--user-data-dir={}", profile.path().display());
        let mut browser =
            Self { driver, address: ([127, 0, 0, 1], port).into(), session: String::new(), _profile: profile };
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=1280,1600",
            &directory,
        ];
        let always = json!({"goog:chromeOptions": {"args": arguments}, "goog:loggingPrefs": {"browser": "ALL"}});
        let made = browser.post("/session", &json!({"capabilities": {"alwaysMatch": always}}));
        browser.session = made["sessionId"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
        Some(browser)
    }

    fn send(&self, method: &str, path: &str, body: &str) -> Value {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.address,
            body.len()
        );
        let (_, body) = exchange(self.address, &head, body);
        serde_json::from_str::<Value>(&body).unwrap()["value"].clone()
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.send("POST", path, &body.to_string())
    }

    fn open(&self, url: &str) {
        let opened = self.post(&format!("/session/{}/url", self.session), &json!({"url": url}));
        assert_eq!(opened, Value::Null, "{url}");
    }

    /// The value of an expression in the page.
    fn value(&self, expression: &str) -> Value {
        let script = json!({"script": format!("return {expression}"), "args": []});
        self.post(&format!("/session/{}/execute/sync", self.session), &script)
    }

    /// Waits until an expression is true.
    fn until(&self, expression: &str) {
        while self.value(expression) != true {
            support::pause();
        }
    }

    /// What the browser complains about, as what the page's policy forbids.
    fn complaints(&self) -> Vec<String> {
        let log = self.post(&format!("/session/{}/se/log", self.session), &json!({"type": "browser"}));
        log.as_array().into_iter().flatten().map(|line| line["message"].to_string()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.send("DELETE", &format!("/session/{}", self.session), "");
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

#[test]
fn the_page_shows_files_reasons_and_who_waits() {
    if cannot_mount() {
        return;
    }
    let Some(browser) = Browser::start() else { return };
    let mut random = Random::new(3);
    let lower = LayerBuilder::new().file("lower/slow.bin", random.bytes(400 << 10));
    let upper =
        LayerBuilder::new().file("upper/read.bin", random.bytes(400 << 10)).file(HOSTILE, random.bytes(400 << 10));
    let image = ImageBuilder::new().layer(lower).layer(upper).build();
    let registry = Registry::start(Catalog::new().image("app", "1", &image)).unwrap();
    let reference = registry.reference("app", "1");
    let sandbox = Sandbox::new();
    sandbox.mount(&reference, "once").unmount();
    sandbox.drop_content();
    let at = sandbox.mount_with(&reference, "a", &["--prefetch", "none"]);
    std::fs::read(at.join("upper/read.bin")).unwrap();
    std::fs::read(at.join(HOSTILE)).unwrap();
    let gate = Gate::new();
    registry.faults().add(Rule::new(Target::Blobs, Fault::Hang(gate.clone())));
    let mut waiting = Command::new("cat").arg(at.join("lower/slow.bin")).stdout(Stdio::null()).spawn().unwrap();

    let web = Web::start(&sandbox);
    browser.open(&web.url);
    // Other mounts of this machine are listed, too.
    let link = format!(
        "[...document.querySelectorAll('#mounts a')].find((link) => link.textContent.includes('{}'))",
        at.path.display()
    );
    browser.until(&format!("{link} !== undefined"));
    browser.value(&format!("{link}.click()"));
    browser.until("document.querySelector('#files tbody tr') !== null && !document.getElementById('waiting').hidden");
    let text = |selector: &str| -> String {
        browser
            .value(&format!("document.querySelector('{selector}').innerText"))
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let waits = text("#waits");
    assert!(waits.contains(&format!("cat ({})", waiting.id())) && waits.contains("/lower/slow.bin"), "{waits}");
    let files = text("#files");
    assert!(files.contains("/upper/read.bin") && files.contains("On demand"), "{files}");
    assert!(files.contains(HOSTILE), "a name is text: {files}");
    assert_eq!(browser.value("document.querySelectorAll('img').length"), 0);
    assert_ne!(browser.value("document.title"), "owned");
    assert_eq!(browser.value("document.querySelectorAll('#map .layer').length"), 2);
    assert!(browser.value("document.querySelectorAll('#map .file').length").as_u64() >= Some(2));

    browser.value("document.getElementById('scale-fetched').click()");
    browser.until("document.getElementById('scale-fetched').getAttribute('aria-pressed') === 'true'");
    browser.value("(() => { const field = document.getElementById('filter'); field.value = 'read'; field.dispatchEvent(new Event('input')); })()");
    browser.until("document.querySelectorAll('#files tbody tr').length === 1");
    let theme = browser.value("document.documentElement.dataset.theme");
    browser.value("document.getElementById('theme').click()");
    assert_ne!(browser.value("document.documentElement.dataset.theme"), theme);

    // What happens is shown without a reload.
    gate.open();
    assert!(waiting.wait().unwrap().success());
    browser.until("document.getElementById('waiting').hidden");
    assert_eq!(browser.complaints(), Vec::<String>::new());
    at.unmount();
    browser.until(&format!("{link} === undefined"));
}

#[test]
fn nothing_is_told_without_the_token() {
    let sandbox = Sandbox::new();
    let web = Web::start(&sandbox);
    let right = format!("Authorization: Bearer {}\r\n", web.token);
    let wrong = format!("Authorization: Bearer {}\r\n", "0".repeat(web.token.len()));
    for (path, host, authorization, status) in [
        ("/", "localhost", "", "200"),
        ("/data", "localhost", &right, "200"),
        ("/metrics", "127.0.0.1", &right, "200"),
        ("/data", "localhost", "", "401"),
        ("/data", "localhost", &wrong, "401"),
        ("/data", "localhost", "Authorization: Bearer \r\n", "401"),
        ("/metrics", "localhost", &wrong, "401"),
        (&format!("/data?token={}", web.token), "localhost", "", "401"),
        ("/data", "rebound.example", &right, "421"),
        ("/", "rebound.example", "", "421"),
        ("/elsewhere", "localhost", &right, "404"),
    ] {
        let answer = web.get(path, host, authorization);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path} {host} {authorization}: {answer}");
    }
    let page = web.get("/", "localhost", "").to_ascii_lowercase();
    assert!(page.contains("content-security-policy: default-src 'none'") && !page.contains(&web.token), "{page}");
    if let Some(browser) = Browser::start() {
        browser.open(web.url.split('#').next().unwrap());
        browser.until("document.getElementById('empty').innerText.includes('token')");
    }
}
