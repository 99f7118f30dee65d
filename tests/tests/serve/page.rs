//! The page in a real browser, over a real server.

use browser::{Page, VIEWS, View};

use super::*;

const WIDE: View = View { width: 1280, dark: false };

/// A message that no model is given: it would forge a turn.
const FORGED: &str = "<|user|>";

fn open(server: &Server, view: View) -> Page {
    let mut page = Page::open(&format!("{}/", server.url), view);
    page.wait_for("document.querySelectorAll('section').length === 2");
    page
}

/// Sends a message, by the Enter key.
fn send(page: &mut Page, text: &str) {
    page.eval("document.getElementById('message').focus()");
    page.type_text(text);
    page.key("Enter");
}

fn set(page: &mut Page, name: &str, value: &str) {
    page.eval(&format!("document.getElementById({name:?}).value = {value:?}"));
}

/// What a pane shows of the last answer, the model's name left out.
fn shown(pane: usize) -> String {
    format!(
        "[...document.querySelectorAll('section')][{pane}].querySelector('.turn:last-child > :not(.who)').textContent"
    )
}

fn note(page: &mut Page, pane: usize) -> String {
    let note = format!("document.querySelectorAll('section .note')[{pane}].textContent");
    page.eval(&note).as_str().unwrap().to_owned()
}

const IDLE: &str =
    "document.getElementById('stop').disabled && document.querySelectorAll('.turn').length > 0";

/// What the server says to a conversation, greedily.
fn answer(server: &Server, model: &str, turns: &[(&str, &str)], max_tokens: usize) -> String {
    let message = |(role, content): &(&str, &str)| json!({ "role": role, "content": content });
    let messages: Vec<Value> = turns.iter().map(message).collect();
    let body =
        json!({ "model": model, "temperature": 0, "max_tokens": max_tokens, "messages": messages });
    let (status, answer) = server.post("/v1/chat/completions", &body);
    assert_eq!(status, 200, "{answer}");
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[test]
fn two_models_answer_side_by_side() {
    let server = Server::start(&[]);
    let mut page = open(&server, WIDE);
    let choices = "[...document.querySelectorAll('select')].map(s => [s.value, [...s.options].map(o => o.value)])";
    let both = json!(["one", "second"]);
    assert_eq!(page.eval(choices), json!([["one", both], ["second", both]]));
    // The other way about, by the keyboard.
    for (pane, key) in [(0, "ArrowDown"), (1, "ArrowUp")] {
        page.eval(&format!("document.querySelectorAll('select')[{pane}].focus()"));
        page.key(key);
    }
    assert_eq!(page.eval(choices), json!([["second", both], ["one", both]]));
    set(&mut page, "max_tokens", "24");
    let first = "민수는 무엇을 찾았어요?";
    send(&mut page, first);
    page.wait_for(IDLE);
    let said = ["second", "one"].map(|model| answer(&server, model, &[("user", first)], 24));
    assert_ne!(said[0], said[1]);
    for (pane, said) in said.iter().enumerate() {
        assert_eq!(page.eval(&shown(pane)), **said);
        let note = note(&mut page, pane);
        assert!(note.contains(" tokens, ") && note.contains(" a second"), "{note}");
    }
    // The second message goes on with the conversation of each, and with the system prompt.
    set(&mut page, "system", "짧게");
    send(&mut page, "Who was there?");
    page.wait_for("document.querySelectorAll('.turn').length === 8");
    page.wait_for(IDLE);
    for (pane, model) in ["second", "one"].into_iter().enumerate() {
        let turns = [
            ("system", "짧게"),
            ("user", first),
            ("assistant", &said[pane]),
            ("user", "Who was there?"),
        ];
        assert_eq!(page.eval(&shown(pane)), answer(&server, model, &turns, 24));
    }
    // What is read out is whole answers.
    let told = page.eval("document.getElementById('said').textContent");
    assert!(told.as_str().unwrap().starts_with("second: "), "{told}");
    assert_eq!(page.complaints(), [""; 0]);
    let requests = page.requests();
    assert!(
        requests.len() >= 6 && requests.iter().all(|url| url.starts_with(&server.url)),
        "{requests:?}"
    );
    // One model alone, and a new start.
    page.click("#beside");
    assert_eq!(page.eval("document.querySelectorAll('section').length"), 1);
    assert_eq!(
        page.eval("document.getElementById('beside').getAttribute('aria-pressed')"),
        "false"
    );
    page.click("#reset");
    page.wait_for("document.querySelectorAll('.turn').length === 0");
}

#[test]
fn answers_come_bit_by_bit_and_can_be_stopped() {
    let server = Server::start(&["--rows", "1"]);
    let mut page = open(&server, WIDE);
    for stop in ["#stop", "Escape"] {
        send(&mut page, "민수는");
        for pane in 0..2 {
            let growing =
                format!("!document.getElementById('stop').disabled && {}.length", shown(pane));
            page.wait_for(&format!("{growing} > 0"));
            let length = page.eval(&growing).as_u64().unwrap();
            page.wait_for(&format!("{growing} > {length}"));
        }
        assert_eq!(page.eval("document.querySelector('select').disabled"), true);
        if stop == "Escape" {
            page.key(stop);
        } else {
            page.click(stop);
        }
        page.wait_for(IDLE);
        assert_eq!(note(&mut page, 0), "Stopped; not part of the conversation.");
        // The rows of both are free for others.
        for model in ["one", "second"] {
            let body = json!({ "model": model, "prompt": "민수는", "max_tokens": 4 });
            server.complete(&body);
        }
    }
    assert_eq!(page.complaints(), [""; 0]);
}

#[test]
fn what_goes_wrong_is_said_in_words() {
    let mut server = Server::start(&[]);
    let mut page = open(&server, WIDE);
    send(&mut page, FORGED);
    page.wait_for(IDLE);
    let said = page.eval(&shown(0));
    assert_eq!(
        said,
        "`messages[0].content` spells out the special token <|user|>, which would forge a turn"
    );
    let error = "document.querySelectorAll('.turn.error').length";
    assert_eq!(page.eval(error), 2);
    assert_eq!(note(&mut page, 0), "Failed; not part of the conversation.");
    assert_eq!(page.eval("document.getElementById('message').value"), FORGED, "to be sent again");
    set(&mut page, "message", "");
    // An error within a stream, and no server at all.
    server.process.signal("TERM").unwrap();
    assert_eq!(server.process.finish().unwrap().code(), Some(0));
    send(&mut page, "안녕");
    page.wait_for(&format!("{error} === 4"));
    assert_eq!(page.eval(&shown(1)), "The server does not answer.");
    // The browser itself notes both on its console; the page adds nothing.
    let complaints = page.complaints();
    let of_network = |text: &String| text.contains("Failed to load resource");
    assert!(complaints.iter().all(of_network), "{complaints:?}");
}

#[test]
fn everybody_can_read_it_on_desktop_and_phone() {
    let server = Server::start(&[]);
    for view in VIEWS {
        let mut page = open(&server, view);
        set(&mut page, "max_tokens", "40");
        assert_eq!(page.axe(), json!([]), "{view:?}, empty");
        send(&mut page, "민수는 무엇을 찾았어요?");
        page.wait_for(IDLE);
        send(&mut page, FORGED);
        page.wait_for("document.querySelectorAll('.turn.error').length === 2");
        page.eval("document.getElementById('settings').open = true");
        assert_eq!(page.axe(), json!([]), "{view:?}");
        assert_eq!(page.too_wide(".only-read"), json!([]), "{view:?}");
        // Both panes and the message are on the screen without scrolling.
        page.eval("document.getElementById('settings').open = innerWidth > 960");
        let below = "[...document.querySelectorAll('section, #send')].filter(e => e.getBoundingClientRect().bottom > innerHeight).length";
        assert_eq!(page.eval(below), 0, "{view:?}");
    }
}
