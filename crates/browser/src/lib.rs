//! For tests of the pages that programs make: a headless Chromium, driven through the `DevTools` protocol over its pipe: one JSON
//! message after another, each ended by a zero byte, to file descriptor 3 and from 4. Whatever goes wrong panics, as in a test.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "for tests alone, which fail by panicking"
)]

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How to come by a Chromium.
const MISSING: &str =
    "there is no headless Chromium to test the page with; get one with: scripts/browser --install";

/// How often a page is looked at until it is as expected, and for how long at most.
const OFTEN: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_mins(1);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

/// The Chromium that `scripts/browser` names.
fn chromium() -> PathBuf {
    let found = Command::new(root().join("scripts/browser")).output().unwrap();
    assert!(found.status.success(), "{MISSING}\n{}", String::from_utf8_lossy(&found.stderr));
    PathBuf::from(String::from_utf8(found.stdout).unwrap().trim())
}

/// A page in a browser of its own.
#[derive(Debug)]
pub struct Page {
    child: Child,
    to: ChildStdin,
    /// What it says, read as it comes: where nobody reads, Chromium waits.
    from: Receiver<Value>,
    session: String,
    next: u64,
    events: VecDeque<Value>,
    _profile: tempfile::TempDir,
}

/// How the page is looked at.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// Of the window, in CSS pixels; it is 900 high.
    pub width: u32,
    /// Whether the system asks for dark colours.
    pub dark: bool,
}

/// A desktop and a phone, in light and dark.
pub const VIEWS: [View; 4] = [
    View { width: 1280, dark: false },
    View { width: 1280, dark: true },
    View { width: 390, dark: false },
    View { width: 390, dark: true },
];

/// Reads messages on a thread of its own until Chromium ends.
fn listen(from: ChildStdout) -> Receiver<Value> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for message in BufReader::new(from).split(0).map_while(Result::ok) {
            if tell.send(serde_json::from_slice(&message).unwrap()).is_err() {
                return;
            }
        }
    });
    told
}

impl Page {
    /// Opens an address in a browser of its own and waits until it is loaded.
    ///
    /// # Panics
    /// If there is no browser, or it breaks off.
    pub fn open(url: &str, view: View) -> Self {
        let profile = tempfile::tempdir().unwrap();
        // The pipe's ends are 3 and 4; only standard streams can be given without unsafe code.
        let mut child = Command::new("bash")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1"])
            .arg(chromium())
            .args(["--headless=shell", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"])
            .args(["--hide-scrollbars", "--force-device-scale-factor=1", "--no-first-run"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let to = child.stdin.take().unwrap();
        let from = listen(child.stdout.take().unwrap());
        let (session, events) = (String::new(), VecDeque::new());
        let mut page = Self { child, to, from, session, next: 0, events, _profile: profile };
        let target = page.call("Target.createTarget", &json!({"url": "about:blank"}));
        let target = json!({"targetId": target["targetId"], "flatten": true});
        let session = page.call("Target.attachToTarget", &target);
        session["sessionId"].as_str().unwrap().clone_into(&mut page.session);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            page.call(&format!("{domain}.enable"), &json!({}));
        }
        page.view(view);
        page.call("Page.navigate", &json!({"url": url}));
        page.wait_for("document.readyState === 'complete'");
        page
    }

    /// Sets width and colour scheme.
    pub fn view(&mut self, View { width, dark }: View) {
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", &size);
        let scheme = if dark { "dark" } else { "light" };
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.call("Emulation.setEmulatedMedia", &json!({"features": [feature]}));
    }

    /// Sends a command and returns its result; what happens meanwhile is kept.
    pub fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut message = json!({"id": id, "method": method, "params": parameters});
        if !self.session.is_empty() {
            message["sessionId"] = self.session.clone().into();
        }
        let mut bytes = serde_json::to_vec(&message).unwrap();
        bytes.push(0);
        self.to.write_all(&bytes).unwrap();
        self.to.flush().unwrap();
        loop {
            let answer = self.from.recv_timeout(LONG).unwrap_or_else(|error| match error {
                RecvTimeoutError::Timeout => panic!("Chromium does not answer {method}"),
                RecvTimeoutError::Disconnected => {
                    panic!("Chromium ended at {method}; {MISSING}, or set CHROMIUM to another")
                }
            });
            if answer["id"] == id {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].clone();
            }
            self.events.push_back(answer);
        }
    }

    /// The value of a JavaScript expression.
    #[track_caller]
    pub fn eval(&mut self, expression: &str) -> Value {
        let parameters =
            json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", &parameters);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression holds.
    #[track_caller]
    pub fn wait_for(&mut self, expression: &str) {
        let start = Instant::now();
        while self.eval(&format!("Boolean({expression})")) != true {
            let page = self.eval("document.body ? document.body.innerText.slice(0, 300) : ''");
            assert!(
                start.elapsed() < LONG,
                "never true: {expression}\n{page}\n{:?}",
                self.complaints()
            );
            std::thread::sleep(OFTEN);
        }
    }

    /// Moves the pointer to the middle of what a selector finds first, or `dx`, `dy` from it, and says where that is.
    pub fn point_at(&mut self, selector: &str, [dx, dy]: [f64; 2]) -> [f64; 2] {
        let place = self.eval(&format!(
            "(() => {{ const e = document.querySelector({selector:?}); e.scrollIntoView({{block: 'center', behavior: 'instant'}});
             const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()"
        ));
        let at = |axis: usize| place[axis].as_f64().unwrap() + [dx, dy][axis];
        let [x, y] = [at(0), at(1)];
        let event = json!({"type": "mouseMoved", "x": x, "y": y, "pointerType": "mouse"});
        self.call("Input.dispatchMouseEvent", &event);
        [x, y]
    }

    /// Clicks on the middle of what a selector finds first.
    pub fn click(&mut self, selector: &str) {
        let [x, y] = self.point_at(selector, [0.0, 0.0]);
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", &event);
        }
    }

    /// Presses and releases a key.
    pub fn key(&mut self, key: &str) {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            "Escape" => 27,
            "ArrowLeft" => 37,
            "ArrowUp" => 38,
            "ArrowRight" => 39,
            "ArrowDown" => 40,
            _ => 0,
        };
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text});
            self.call("Input.dispatchKeyEvent", &event);
        }
    }

    /// Types text into what has the focus.
    pub fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", &json!({"text": text}));
    }

    /// What axe-core has against the page as it is: a list of its rules, each with what breaks it. `scripts/browser --install`
    /// puts axe-core beside Chromium.
    ///
    /// # Panics
    /// If axe-core is not there.
    #[track_caller]
    pub fn axe(&mut self) -> Value {
        let axe = fs_err::read_to_string(root().join(".browser/axe.min.js"));
        let axe = axe.unwrap_or_else(|error| {
            panic!("axe-core is missing ({error}); get it with: scripts/browser --install")
        });
        self.eval(&format!("{axe}; true"));
        self.eval(
            "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.map(v => v.id + ': ' + v.help + ' ' + v.nodes.slice(0, 3).map(n => n.html.slice(0, 200) + ' ' + (n.any[0]?.message ?? '')).join(' | ')))",
        )
    }

    /// What is wider than the page: the beginnings of the elements' sources. `but` is a selector of what may be, with all in it.
    #[track_caller]
    pub fn too_wide(&mut self, but: &str) -> Value {
        self.eval(&format!(
            "[...document.querySelectorAll('body *')].filter(e => !e.closest({but:?}) && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 120))"
        ))
    }

    /// Everything the console, the page's scripts or its security policy complained of.
    pub fn complaints(&mut self) -> Vec<String> {
        self.call("Runtime.evaluate", &json!({"expression": "0"}));
        let bad = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown" | "Log.entryAdded") => true,
            Some("Runtime.consoleAPICalled") => event["params"]["type"] != "log",
            _ => false,
        };
        self.events.iter().filter(bad).map(ToString::to_string).collect()
    }

    /// Every address that was asked for.
    pub fn requests(&mut self) -> Vec<String> {
        self.call("Runtime.evaluate", &json!({"expression": "0"}));
        let events =
            self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        events.map(|event| event["params"]["request"]["url"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
