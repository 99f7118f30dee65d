//! A headless Chromium, driven through the `DevTools` protocol over its pipe: one JSON message after another, each ended by a zero
//! byte, to file descriptor 3 and from 4.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How to come by a Chromium.
const MISSING: &str =
    "there is no headless Chromium to test the page with; get one with: scripts/browser --install";

/// The Chromium that `scripts/browser` names.
fn chromium() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let found = Command::new(root.join("scripts/browser")).output().unwrap();
    assert!(found.status.success(), "{MISSING}\n{}", String::from_utf8_lossy(&found.stderr));
    PathBuf::from(String::from_utf8(found.stdout).unwrap().trim())
}

/// A page in a browser of its own.
pub(crate) struct Page {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: String,
    next: u64,
    events: VecDeque<Value>,
    _profile: tempfile::TempDir,
}

/// How the page is looked at.
#[derive(Clone, Copy)]
pub(crate) struct View {
    pub(crate) width: u32,
    pub(crate) dark: bool,
}

impl Page {
    /// Opens a file and waits until it is drawn.
    pub(crate) fn open(file: &Path, view: View) -> Self {
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
        let from = BufReader::new(child.stdout.take().unwrap());
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
        page.call("Page.navigate", &json!({"url": format!("file://{}", file.display())}));
        page.wait_for("document.readyState === 'complete' && document.querySelector('#numbers div') !== null || window.failed");
        page
    }

    /// Sets width and colour scheme.
    pub(crate) fn view(&mut self, View { width, dark }: View) {
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", &size);
        let scheme = if dark { "dark" } else { "light" };
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.call("Emulation.setEmulatedMedia", &json!({"features": [feature]}));
    }

    /// Sends a command and returns its result; what happens meanwhile is kept.
    pub(crate) fn call(&mut self, method: &str, parameters: &Value) -> Value {
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
            let mut answer = Vec::new();
            let read = self.from.read_until(0, &mut answer).unwrap();
            assert!(read > 0, "Chromium ended at {method}; {MISSING}, or set CHROMIUM to another");
            answer.pop();
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            if answer["id"] == id {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].clone();
            }
            self.events.push_back(answer);
        }
    }

    /// The value of a JavaScript expression.
    #[track_caller]
    pub(crate) fn eval(&mut self, expression: &str) -> Value {
        let parameters =
            json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", &parameters);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression holds.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, expression: &str) {
        let start = Instant::now();
        while self.eval(&format!("Boolean({expression})")) != true {
            let page = self.eval("document.body ? document.body.innerText.slice(0, 300) : ''");
            let late = start.elapsed() > Duration::from_mins(1);
            assert!(!late, "never true: {expression}\n{page}\n{:?}", self.complaints());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Moves the pointer to the middle of what a selector finds first, or `dx`, `dy` from it.
    pub(crate) fn point_at(&mut self, selector: &str, [dx, dy]: [f64; 2]) {
        let place = self.eval(&format!(
            "(() => {{ const e = document.querySelector({selector:?}); e.scrollIntoView({{block: 'center', behavior: 'instant'}});
             const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()"
        ));
        let at = |axis: usize| place[axis].as_f64().unwrap() + [dx, dy][axis];
        let event = json!({"type": "mouseMoved", "x": at(0), "y": at(1), "pointerType": "mouse"});
        self.call("Input.dispatchMouseEvent", &event);
    }

    /// Presses and releases a key.
    pub(crate) fn key(&mut self, key: &str) {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            "Escape" => 27,
            "ArrowLeft" => 37,
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
    pub(crate) fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", &json!({"text": text}));
    }

    /// Everything the console, the page's scripts or its security policy complained of.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        self.call("Runtime.evaluate", &json!({"expression": "0"}));
        let bad = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown" | "Log.entryAdded") => true,
            Some("Runtime.consoleAPICalled") => event["params"]["type"] != "log",
            _ => false,
        };
        self.events.iter().filter(bad).map(ToString::to_string).collect()
    }

    /// Every address that was asked for.
    pub(crate) fn requests(&mut self) -> Vec<String> {
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
