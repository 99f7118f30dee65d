//! What clients get over sockets.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;

use super::*;

const CHAT: &str = "/v1/chat/completions";

#[test]
fn models_answer_over_http() {
    let server = Server::start(&[]);
    assert_eq!(server.get("/health"), (200, r#"{"status":"ok"}"#.to_owned()));
    assert!(server.get("/").1.contains("<title>temper chat</title>"));
    let list: Value = serde_json::from_str(&server.get("/v1/models").1).unwrap();
    assert_eq!((&list["data"][0]["id"], &list["data"][1]["id"]), (&"one".into(), &"second".into()));
    let ask = |model: &str| {
        json!({ "model": model, "temperature": 0, "max_tokens": 30, "ignore_eos": true,
                "messages": [{ "role": "user", "content": "민수는 무엇을 찾았어요?" }] })
    };
    let texts = ["one", "second"].map(|model| {
        let (status, whole) = server.post(CHAT, &ask(model));
        assert_eq!(status, 200, "{whole}");
        let whole = whole["choices"][0]["message"]["content"].clone();
        let mut events: Vec<String> = server.stream(CHAT, &ask(model)).collect();
        assert_eq!(events.pop().unwrap(), "[DONE]");
        let texts = events.iter().map(|event| {
            let event: Value = serde_json::from_str(event).unwrap();
            event["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()
        });
        assert_eq!(texts.collect::<String>(), whole);
        whole
    });
    assert_ne!(texts[0], texts[1], "two models");
    // The first is what `chat` says to the same.
    let prompt =
        ["--prompt", "민수는 무엇을 찾았어요?", "--max-new-tokens", "30", "--model", "one"];
    let said = Stage::new("chat", &MODELS).args(prompt).succeed().unwrap().stdout;
    assert!(texts[0].as_str().unwrap().starts_with(said.trim_end_matches('\n')), "{said}");
    let (status, error) = server.post(CHAT, &ask("third"));
    assert_eq!((status, &error["error"]["code"]), (404, &"model_not_found".into()));
    assert_eq!(server.get(CHAT).0, 405);
    assert_eq!(server.get("/v2").0, 404);
}

#[test]
fn sixty_four_clients_get_what_each_gets_alone() {
    let server = Server::start(&[]);
    let alone: Vec<String> = (0..64).map(|number| server.complete(&short(number))).collect();
    assert!(alone.iter().any(|text| text != &alone[0]));
    thread::scope(|scope| {
        let server = &server;
        let clients: Vec<_> =
            (0..64).map(|number| scope.spawn(move || server.complete(&short(number)))).collect();
        for (client, alone) in clients.into_iter().zip(&alone) {
            assert_eq!(&client.join().unwrap(), alone);
        }
    });
}

#[test]
fn a_client_that_leaves_or_does_not_read_makes_room() {
    let server = Server::start(&["--rows", "1", "--client-timeout", "1"]);
    let mut stream = server.stream("/v1/completions", &endless());
    assert!(stream.next().is_some());
    drop(stream);
    server.complete(&short(1));
    // Events of 20 log-probabilities fill the socket long before the answer ends.
    let mut body = endless();
    (body["stream"], body["logprobs"]) = (true.into(), 20.into());
    let _silent = post(&server, &body.to_string(), body.to_string().len());
    server.complete(&short(2));
}

/// A client that sends a request, or the beginning of one, and reads nothing.
fn post(server: &Server, body: &str, length: usize) -> TcpStream {
    let mut socket = TcpStream::connect(server.address()).unwrap();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).unwrap();
    socket.write_all(body.as_bytes()).unwrap();
    socket
}

fn rest(mut socket: TcpStream) -> String {
    let mut all = Vec::new();
    // A server that closes before it has read all resets the connection behind its answer.
    let _ = socket.read_to_end(&mut all);
    String::from_utf8(all).unwrap()
}

#[test]
fn a_client_that_hangs_is_given_up() {
    let server = Server::start(&["--client-timeout", "1", "--max-body", "5000"]);
    let mut silent = TcpStream::connect(server.address()).unwrap();
    silent.write_all(b"POST /v1/completions HT").unwrap();
    let half = post(&server, "{\"model\":", 100);
    assert!(rest(half).starts_with("HTTP/1.1 408 "));
    // Closed, with or without a word.
    let said = rest(silent);
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 408"), "{said}");
    let large = post(&server, "", 1 << 30);
    assert!(rest(large).starts_with("HTTP/1.1 413 "));
    let mut nonsense = TcpStream::connect(server.address()).unwrap();
    nonsense.write_all(b"\x16\x03\x01 what is this\r\n\r\n").unwrap();
    assert!(rest(nonsense).starts_with("HTTP/1.1 400 "));
    assert_eq!(server.get("/health").0, 200);
}
