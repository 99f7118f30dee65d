//! How a server begins and ends.

use super::*;

#[test]
fn a_signal_lets_answers_end_and_takes_no_more() {
    for (signal, limit) in [("TERM", "60"), ("INT", "1")] {
        let mut server = Server::start(&["--shutdown-timeout", limit]);
        let tokens = if limit == "1" { 90_000 } else { 3000 };
        let mut body = endless();
        body["max_tokens"] = tokens.into();
        let mut stream = server.stream("/v1/completions", &body);
        assert!(stream.next().is_some());
        server.process.signal(signal).unwrap();
        let events: Vec<String> = stream.collect();
        let last = events.last().unwrap();
        if limit == "1" {
            assert!(last.contains("the server is shutting down"), "{last}");
        } else {
            assert_eq!(last, "[DONE]");
        }
        let address = server.address().to_owned();
        let outcome = server.process.finish().unwrap();
        assert_eq!(outcome.code(), Some(0), "{outcome}");
        assert!(outcome.stderr.contains(&format!("SIG{signal}")), "{outcome}");
        assert!(std::net::TcpStream::connect(address).is_err());
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Server::start(&[]);
    let mut stream = server.stream("/v1/completions", &endless());
    assert!(stream.next().is_some());
    server.process.signal("TERM").unwrap();
    // The first has been heard when health says so, or nobody is let in any more.
    while agent().get(format!("{}/health", server.url)).call().is_ok_and(|r| r.status() == 200) {}
    server.process.signal("TERM").unwrap();
    let outcome = server.process.finish().unwrap();
    assert_eq!(outcome.code(), Some(143), "{outcome}");
}

#[test]
fn wrong_use_is_explained() {
    let server = Server::start(&[]);
    let port = server.address().rsplit(':').next().unwrap();
    serve(&["--model", "one", "--port", port])
        .fail(
            2,
            &[
                "error: cannot listen on 127.0.0.1, port",
                "hint: give another with --host and --port",
            ],
        )
        .unwrap();
    serve(&["--model", "one", "--model", "two/../one"])
        .fail(2, &["error: two models are called `one`", "--model NAME=DIR"])
        .unwrap();
    serve(&["--model", "nowhere"]).fail(2, &["error: nowhere: does not exist"]).unwrap();
    serve(&["--model", "one", "--adapter", "two"])
        .fail(2, &["error: --adapter two: give it a name, as in --adapter NAME=two"])
        .unwrap();
    serve(&["--model", "one", "--context", "100001"])
        .fail(2, &["error: --context 100001 is beyond the 100000 positions of model `one`"])
        .unwrap();
    let missing = serve(&[]).run().unwrap();
    assert_eq!(missing.code(), Some(2), "{missing}");
    assert!(missing.stderr.contains("--model <[NAME=]DIR>"), "{missing}");
}
