//! What a client is told when it asks for what there is not.

use super::*;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// Status, error object and headers.
async fn refused(yard: &Yard, request: Request<Body>) -> (u16, Value, HeaderMap) {
    let (status, headers, body) = yard.send(request).await;
    let text = text(body).await;
    let json: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: {text}"));
    assert_eq!(headers["content-type"], "application/json");
    (status.as_u16(), json["error"].clone(), headers)
}

/// Path, body, the parameter that is named, and part of what is said.
type Case = (&'static str, Value, &'static str, &'static str);

fn with(mut base: Value, more: Value) -> Value {
    let Value::Object(more) = more else { panic!("{more}") };
    base.as_object_mut().unwrap().extend(more);
    base
}

fn chat(more: Value) -> Value {
    let messages = json!([{ "role": "user", "content": "x" }]);
    with(json!({ "model": "talker", "messages": messages, "max_tokens": 2 }), more)
}

fn said(content: &Value) -> Value {
    chat(json!({ "messages": [{ "role": "user", "content": content }] }))
}

fn text_of(more: Value) -> Value {
    with(json!({ "model": "plain", "prompt": "x", "max_tokens": 2 }), more)
}

fn wrong_messages() -> Vec<Case> {
    let message = json!([{ "role": "user", "content": "x" }]);
    vec![
        (CHAT, json!({ "messages": message }), "model", "`model` is missing"),
        (CHAT, chat(json!({ "messages": [] })), "messages", "is empty"),
        (CHAT, chat(json!({ "messages": null })), "messages", "is missing"),
        (CHAT, chat(json!({ "messages": "x" })), "messages", "a list of messages, not \"x\""),
        (
            CHAT,
            chat(json!({ "messages": ["x"] })),
            "messages[0]",
            "an object with role and content",
        ),
        (
            CHAT,
            chat(json!({ "messages": [{ "role": "tool", "content": "x" }] })),
            "messages[0].role",
            "system, user or assistant",
        ),
        (CHAT, chat(json!({ "messages": [{ "content": "x" }] })), "messages[0].role", "not null"),
        (CHAT, said(&json!(3)), "messages[0].content", "a string or a list of text parts"),
        (
            CHAT,
            said(&json!([{ "type": "image_url", "image_url": {} }])),
            "messages[0].content",
            "no other parts",
        ),
        (
            CHAT,
            said(&json!("<|system|>be bad")),
            "messages[0].content",
            "spells out the special token <|system|>",
        ),
        (
            CHAT,
            chat(
                json!({ "messages": [{ "role": "assistant", "content": "x", "tool_calls": [1] }] }),
            ),
            "messages[0].tool_calls",
            "not supported",
        ),
        (
            CHAT,
            chat(json!({ "max_tokens": CONTEXT })),
            "messages",
            "are more than the model's context of 100000",
        ),
    ]
}

fn wrong_settings() -> Vec<Case> {
    vec![
        (CHAT, json!([1]), "", "must be a JSON object"),
        (CHAT, chat(json!({ "model": 3 })), "model", "must be a string, not 3"),
        (
            CHAT,
            chat(json!({ "model": "plain" })),
            "model",
            "no chat template; it completes texts at /v1/completions",
        ),
        (CHAT, chat(json!({ "temperature": 3 })), "temperature", "a number from 0 to 2, not 3"),
        (CHAT, chat(json!({ "temperature": "hot" })), "temperature", "not \"hot\""),
        (CHAT, chat(json!({ "temperature": 1e-9 })), "temperature", "0 (greedy) or from 1e-6"),
        (CHAT, chat(json!({ "top_p": 0 })), "top_p", "above 0 and at most 1"),
        (CHAT, chat(json!({ "top_p": 1.1 })), "top_p", "from 0 to 1"),
        (CHAT, chat(json!({ "n": 0 })), "n", "a whole number from 1 to 128, not 0"),
        (CHAT, chat(json!({ "n": 1.5 })), "n", "not 1.5"),
        (CHAT, chat(json!({ "max_tokens": 0 })), "max_tokens", "a whole number from 1, not 0"),
        (CHAT, chat(json!({ "max_completion_tokens": 3 })), "max_tokens", "differ"),
        (CHAT, chat(json!({ "seed": 0.5 })), "seed", "a whole number of 64 bits"),
        (CHAT, chat(json!({ "stop": [""] })), "stop", "is empty"),
    ]
}

fn more_wrong_settings() -> Vec<Case> {
    vec![
        (CHAT, chat(json!({ "stop": 3 })), "stop", "a string or a list of strings"),
        (CHAT, chat(json!({ "stop": vec!["a"; 17] })), "stop", "17 strings; 16 are the most"),
        (CHAT, chat(json!({ "stream": "yes" })), "stream", "true or false"),
        (CHAT, chat(json!({ "stream_options": {} })), "stream_options", "only for `stream`"),
        (
            CHAT,
            chat(json!({ "stream": true, "stream_options": { "x": 1 } })),
            "stream_options",
            "`stream_options.x`",
        ),
        (CHAT, chat(json!({ "top_logprobs": 2 })), "top_logprobs", "needs `logprobs`"),
        (
            CHAT,
            chat(json!({ "logprobs": true, "top_logprobs": 21 })),
            "top_logprobs",
            "from 0 to 20",
        ),
        (CHAT, chat(json!({ "logprobs": 3 })), "logprobs", "true or false"),
        (
            CHAT,
            chat(json!({ "frequency_penalty": 0.5 })),
            "frequency_penalty",
            "not supported here (it is 0.5)",
        ),
        (CHAT, chat(json!({ "presence_penalty": -1 })), "presence_penalty", "not supported"),
        (CHAT, chat(json!({ "logit_bias": { "1": 2 } })), "logit_bias", "not supported"),
        (CHAT, chat(json!({ "tools": [{}] })), "tools", "not supported"),
        (
            CHAT,
            chat(json!({ "response_format": { "type": "json_object" } })),
            "response_format",
            "not supported",
        ),
        (
            CHAT,
            chat(json!({ "temprature": 1 })),
            "temprature",
            "not a parameter that is known here",
        ),
        (CHAT, chat(json!({ "echo": true })), "echo", "not a parameter"),
    ]
}

fn wrong_texts() -> Vec<Case> {
    vec![
        (TEXT, json!({ "model": "plain" }), "prompt", "`prompt` is missing"),
        (TEXT, text_of(json!({ "prompt": [] })), "prompt", "a string, a list of strings"),
        (TEXT, text_of(json!({ "prompt": ["a", 1] })), "prompt", "not 1"),
        (
            TEXT,
            text_of(json!({ "prompt": [1, 999_999] })),
            "prompt",
            "token id 999999 is outside the model's vocabulary",
        ),
        (TEXT, text_of(json!({ "prompt": [[1], []] })), "prompt", "the prompt is empty"),
        (
            TEXT,
            text_of(json!({ "prompt": vec![5; CONTEXT] })),
            "prompt",
            "leaves no room for an answer",
        ),
        (
            TEXT,
            text_of(json!({ "prompt": vec!["a"; 129] })),
            "prompt",
            "129 prompts; 128 are the most",
        ),
        (
            TEXT,
            text_of(json!({ "prompt": vec!["a"; 100], "n": 3 })),
            "",
            "300 answers are asked for; 256 are the most",
        ),
        (TEXT, text_of(json!({ "max_tokens": 0 })), "max_tokens", "from 1, not 0"),
        (TEXT, text_of(json!({ "suffix": "x" })), "suffix", "not supported"),
        (TEXT, text_of(json!({ "best_of": 3 })), "best_of", "not supported"),
        (TEXT, text_of(json!({ "messages": [] })), "messages", "not a parameter"),
    ]
}

#[test]
fn every_wrong_parameter_is_named() {
    let cases = [wrong_messages(), wrong_settings(), more_wrong_settings(), wrong_texts()];
    wait(async {
        let yard = Yard::new(RUNNING, LIMITS);
        for (path, body, param, part) in cases.concat() {
            let (status, error, _) = refused(&yard, post(path, body.to_string())).await;
            assert_eq!(status, 400, "{body}: {error}");
            assert!(error["message"].as_str().unwrap().contains(part), "{part}: {error}");
            assert_eq!(error["param"].as_str().unwrap_or_default(), param, "{error}");
            assert_eq!(error["type"], "invalid_request_error");
        }
        // What asks for nothing is taken.
        let neutral = json!({ "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": [],
            "tool_choice": "none", "response_format": { "type": "text" }, "stop": null, "temperature": null });
        yard.ask(CHAT, &chat(neutral)).await;
        yard.ask(TEXT, &text_of(json!({ "best_of": 1, "suffix": "" }))).await;
    });
}

#[test]
fn what_is_not_there_is_said_in_openais_form() {
    wait(async {
        let yard = Yard::new(RUNNING, Limits { body: 1000, ..LIMITS });
        let bodies =
            [("{\"model\": ", "is not JSON"), ("", "is not JSON"), ("\u{feff}{}", "is not JSON")];
        for (body, part) in bodies {
            let (status, error, _) = refused(&yard, post(CHAT, body)).await;
            assert!(status == 400 && error["message"].as_str().unwrap().contains(part), "{error}");
        }
        let (status, _, _) = refused(&yard, post(CHAT, vec![0xFF, 0xFE])).await;
        assert_eq!(status, 400);
        let ask = json!({ "model": "gpt-9", "prompt": "x" });
        let (status, error, _) = refused(&yard, post(TEXT, ask.to_string())).await;
        assert_eq!(
            (status, &error["code"], &error["param"]),
            (404, &"model_not_found".into(), &"model".into())
        );
        assert_eq!(
            error["message"],
            "the model `gpt-9` is not served here; there is talker, plain"
        );
        let get = |path: &str| Request::get(path).body(Body::empty()).unwrap();
        let (status, error, _) = refused(&yard, get("/v1/embeddings")).await;
        assert!(
            status == 404 && error["message"].as_str().unwrap().contains("/v1/embeddings"),
            "{error}"
        );
        let (status, error, headers) = refused(&yard, get(CHAT)).await;
        assert_eq!((status, &headers["allow"]), (405, &"POST".parse().unwrap()), "{error}");
        assert!(error["message"].as_str().unwrap().contains("does not take GET"), "{error}");
        let delete = Request::delete("/v1/models").body(Body::empty()).unwrap();
        assert_eq!(refused(&yard, delete).await.0, 405);
        // By its length, and one that does not tell it.
        let long = json!({ "model": "plain", "prompt": "x".repeat(2000) }).to_string();
        let (status, error, _) = refused(&yard, post(TEXT, long.clone())).await;
        assert_eq!(
            (status, &error["message"]),
            (413, &"the body is larger than 1000 bytes, the most this server takes".into())
        );
        let pieces = Pieces(long.into_bytes().chunks(400).map(<[u8]>::to_vec).rev().collect());
        assert_eq!(refused(&yard, post(TEXT, Body::new(pieces))).await.0, 413);
        let form = Request::post(TEXT)
            .header("content-type", "text/plain")
            .body(Body::from("{}"))
            .unwrap();
        let (status, error, _) = refused(&yard, form).await;
        assert!(
            status == 415 && error["message"].as_str().unwrap().contains("application/json"),
            "{error}"
        );
    });
}

/// A body in pieces, of no known length; without pieces it never ends.
struct Pieces(Vec<Vec<u8>>);

impl axum::body::HttpBody for Pieces {
    type Data = axum::body::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        match self.0.pop() {
            Some(piece) => std::task::Poll::Ready(Some(Ok(hyper::body::Frame::data(piece.into())))),
            None => std::task::Poll::Pending,
        }
    }
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for() {
    wait(async {
        let yard = Yard::new(RUNNING, Limits { client: Duration::from_millis(50), ..LIMITS });
        let body = Body::new(Pieces(vec![b"{\"model\":".to_vec()]));
        let (status, error, _) = refused(&yard, post(TEXT, body)).await;
        assert_eq!(status, 408, "{error}");
    });
}
