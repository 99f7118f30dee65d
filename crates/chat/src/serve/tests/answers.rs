//! What a client gets: right, and in OpenAI's form.

use super::*;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn hello(more: &Value) -> Value {
    let mut body = json!({
        "model": "talker", "temperature": 0, "max_tokens": 24,
        "messages": [{ "role": "user", "content": "사과는 어디에 있어요?" }],
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The prompt of [`hello`], written out by hand.
fn hello_ids() -> Vec<u32> {
    let tokenizer = tokenizer();
    let bos = &tokenizer.specials().get("bos_token").unwrap();
    let text = format!("{bos}<|user|>사과는 어디에 있어요?<|end|><|assistant|>");
    tokenizer.encode(&text, false).unwrap().ids
}

#[test]
fn the_models_and_the_health_are_told() {
    wait(async {
        let yard = Yard::new(RUNNING, LIMITS);
        let get = async |path: &str| {
            let (status, _, body) =
                yard.send(Request::get(path).body(Body::empty()).unwrap()).await;
            (status, text(body).await)
        };
        let (status, list) = get("/v1/models").await;
        let list: Value = serde_json::from_str(&list).unwrap();
        assert_eq!((status, &list["object"]), (StatusCode::OK, &"list".into()));
        let ids: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
        assert_eq!(ids, ["talker", "plain"]);
        assert_eq!(
            (&list["data"][0]["chat"], &list["data"][1]["chat"]),
            (&true.into(), &false.into())
        );
        assert_eq!(list["data"][0]["context_length"], CONTEXT);
        let one: Value = serde_json::from_str(&get("/v1/models/plain").await.1).unwrap();
        assert_eq!(one, list["data"][1]);
        assert_eq!(get("/v1/models/other").await.0, StatusCode::NOT_FOUND);
        assert_eq!(get("/health").await, (StatusCode::OK, r#"{"status":"ok"}"#.into()));
        let (status, page) = get("/").await;
        assert_eq!(status, StatusCode::OK);
        // It loads nothing: every address in it is the server's own.
        assert!(
            page.starts_with("<!doctype html>")
                && !page.contains("http://")
                && !page.contains("https://")
        );
    });
}

#[test]
fn a_conversation_is_answered_as_the_engine_answers_its_tokens() {
    wait(async {
        let yard = Yard::new(RUNNING, LIMITS);
        let (ids, greedy) = (hello_ids(), Sampling::greedy());
        let want = generated(&ids, 24, greedy);
        let got = yard.ask(CHAT, &hello(&json!({ "user": "u", "metadata": {}, "n": null }))).await;
        assert_eq!(got["object"], "chat.completion");
        assert_eq!(got["model"], "talker");
        assert!(got["id"].as_str().unwrap().starts_with("chatcmpl-"));
        assert!(got["created"].as_u64().unwrap() > 1_700_000_000);
        let choice = &got["choices"][0];
        assert_eq!(choice["message"]["content"], decode(&want.ids));
        assert_eq!(choice["message"]["role"], "assistant");
        let reason = if want.ids.len() == 24 { "length" } else { "stop" };
        assert_eq!((&choice["finish_reason"], &choice["logprobs"]), (&reason.into(), &Value::Null));
        let (prompt, answer) = (ids.len(), want.ids.len());
        assert_eq!(
            got["usage"],
            json!({ "prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer })
        );
        // The same in parts of text, by the newer names, and with a system message, which changes it.
        let parts = json!([{ "role": "user", "content": [
            { "type": "text", "text": "사과는 " }, { "type": "text", "text": "어디에 있어요?" } ] }]);
        let mut other = hello(&json!({ "messages": parts, "max_completion_tokens": 24 }));
        other.as_object_mut().unwrap().remove("max_tokens");
        assert_eq!(yard.ask(CHAT, &other).await["choices"], got["choices"]);
        other["messages"]
            .as_array_mut()
            .unwrap()
            .insert(0, json!({ "role": "developer", "content": "짧게" }));
        let longer = yard.ask(CHAT, &other).await;
        assert_ne!(longer["choices"], got["choices"]);
        assert!(longer["usage"]["prompt_tokens"].as_u64().unwrap() > prompt as u64);
    });
}

#[test]
fn a_stream_adds_up_to_the_whole_answer() {
    wait(async {
        let yard = Yard::new(RUNNING, LIMITS);
        // Random weights at a high temperature: bytes that make whole characters and bytes that do not.
        for seed in 0..6 {
            let asked = json!({ "temperature": 1.5, "seed": seed, "n": 2, "max_tokens": 60, "logprobs": true,
                                "top_logprobs": 3 });
            let whole = yard.ask(CHAT, &hello(&asked)).await;
            let mut streamed = hello(&asked);
            streamed["stream_options"] = json!({ "include_usage": true });
            let events = yard.stream(CHAT, &streamed).await;
            let (usage, events) = events.split_last().unwrap();
            assert_eq!((&usage["choices"], &usage["usage"]), (&json!([]), &whole["usage"]));
            for at in 0..2 {
                let mine: Vec<&Value> =
                    events.iter().map(|e| &e["choices"][0]).filter(|c| c["index"] == at).collect();
                assert_eq!(mine[0]["delta"], json!({ "role": "assistant", "content": "" }));
                let text: String =
                    mine.iter().filter_map(|c| c["delta"]["content"].as_str()).collect();
                let want = &whole["choices"][at];
                assert_eq!(text, want["message"]["content"]);
                let (end, before) = mine.split_last().unwrap();
                assert_eq!(
                    (&end["finish_reason"], &end["delta"]),
                    (&want["finish_reason"], &json!({}))
                );
                assert!(before.iter().all(|c| c["finish_reason"].is_null()));
                let told: Vec<Value> = mine
                    .iter()
                    .filter_map(|c| c["logprobs"]["content"].as_array())
                    .flatten()
                    .cloned()
                    .collect();
                assert_eq!(Value::Array(told), want["logprobs"]["content"]);
            }
            assert!(
                events
                    .iter()
                    .all(|e| e["object"] == "chat.completion.chunk" && e["id"] == usage["id"])
            );
        }
    });
}

#[test]
fn log_probabilities_are_the_engines_and_bytes_make_the_text() {
    wait(async {
        let yard = Yard::new(RUNNING, LIMITS);
        let want = generated(&hello_ids(), 24, Sampling::greedy());
        let got = yard.ask(CHAT, &hello(&json!({ "logprobs": true, "top_logprobs": 2 }))).await;
        let content = got["choices"][0]["logprobs"]["content"].as_array().unwrap();
        assert_eq!(content.len(), want.ids.len());
        let mut bytes = Vec::new();
        for (token, logprob) in content.iter().zip(&want.logprobs) {
            assert!((token["logprob"].as_f64().unwrap() - f64::from(*logprob)).abs() < 1e-4);
            // Greedy: the token is the most probable one.
            assert_eq!(token["top_logprobs"][0]["token"], token["token"]);
            assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
            bytes.extend(
                token["bytes"].as_array().unwrap().iter().map(|b| b.as_u64().unwrap() as u8),
            );
        }
        let text = got["choices"][0]["message"]["content"].as_str().unwrap();
        let told = String::from_utf8_lossy(&bytes).into_owned();
        assert!(told.starts_with(text), "{told} and {text}");
        let plain = yard.ask(CHAT, &hello(&json!({ "logprobs": true }))).await;
        assert_eq!(plain["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
    });
}

#[test]
fn texts_are_completed() {
    wait(async {
        let yard = Yard::new(RUNNING, LIMITS);
        let ask = async |body: Value| yard.ask(TEXT, &body).await;
        let text = "민수는 공원에서";
        let ids = tokenizer().encode(text, true).unwrap().ids;
        let want = generated(&ids, 16, Sampling::greedy());
        let base =
            json!({ "model": "plain", "prompt": text, "temperature": 0, "ignore_eos": true });
        let with = |more: Value| {
            let mut body = base.clone();
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body
        };
        let one = ask(base.clone()).await;
        assert_eq!(
            (&one["object"], &one["usage"]["completion_tokens"]),
            (&"text_completion".into(), &16.into())
        );
        let said = one["choices"][0]["text"].as_str().unwrap().to_owned();
        assert!(said.starts_with(&decode(&want.ids)));
        // Token ids, and several prompts with several answers each.
        assert_eq!(ask(with(json!({ "prompt": ids }))).await["choices"], one["choices"]);
        let many = ask(with(json!({ "prompt": [text, "Who", text], "n": 2 }))).await;
        let texts: Vec<&str> = many["choices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["text"].as_str().unwrap())
            .collect();
        assert_eq!(
            (texts.len(), texts[0], texts[1], texts[4], texts[5]),
            (6, &*said, &*said, &*said, &*said)
        );
        assert_ne!(texts[2], said);
        let indices: Vec<u64> = many["choices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["index"].as_u64().unwrap())
            .collect();
        assert_eq!(indices, [0, 1, 2, 3, 4, 5]);
        assert_eq!(many["usage"]["completion_tokens"], 96);
    });
}

#[test]
fn a_prompt_is_told_with_its_log_probabilities() {
    wait(async {
        let yard = Yard::new(RUNNING, LIMITS);
        let ask = async |body: Value| yard.ask(TEXT, &body).await;
        let text = "민수는 공원에서";
        let ids = tokenizer().encode(text, true).unwrap().ids;
        let base =
            json!({ "model": "plain", "prompt": text, "temperature": 0, "ignore_eos": true });
        let with = |more: Value| {
            let mut body = base.clone();
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body
        };
        let said = ask(base.clone()).await["choices"][0]["text"].as_str().unwrap().to_owned();
        // The prompt told with its log-probabilities, alone and with an answer; as a stream it adds up.
        let echo = with(json!({ "echo": true, "logprobs": 3, "max_tokens": 4 }));
        let told = ask(echo.clone()).await;
        let choice = &told["choices"][0];
        let all = choice["text"].as_str().unwrap();
        assert!(all.starts_with(text) && said.starts_with(&all[text.len()..]));
        let logprobs = &choice["logprobs"];
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(logprobs[list].as_array().unwrap().len(), ids.len() + 4, "{list}");
        }
        assert_eq!(
            (&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]),
            (&Value::Null, &Value::Null)
        );
        assert!(logprobs["token_logprobs"][1].as_f64().unwrap() < 0.0);
        assert_eq!(logprobs["top_logprobs"][1].as_object().unwrap().len(), 3);
        assert_eq!(logprobs["text_offset"][0], 0);
        let events = yard.stream(TEXT, &echo).await;
        let streamed: String =
            events.iter().map(|e| e["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(streamed, all);
        let offsets: Vec<Value> = events
            .iter()
            .filter_map(|e| e["choices"][0]["logprobs"]["text_offset"].as_array())
            .flatten()
            .cloned()
            .collect();
        assert_eq!(Value::Array(offsets), logprobs["text_offset"]);
        let only = ask(with(json!({ "echo": true, "logprobs": 0, "max_tokens": 0 }))).await;
        assert_eq!(only["choices"][0]["text"], text);
        assert_eq!(only["usage"]["completion_tokens"], 0);
        assert_eq!(
            only["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap()[..],
            logprobs["token_logprobs"].as_array().unwrap()[..ids.len()]
        );
        let plain = ask(with(json!({ "echo": true, "max_tokens": 0 }))).await;
        assert_eq!(plain["choices"][0]["text"], text);
        assert_eq!(
            yard.stream(TEXT, &with(json!({ "echo": true, "max_tokens": 1 }))).await[0]["choices"]
                [0]["text"],
            text
        );
    });
}

#[test]
fn a_seed_decides_and_each_choice_has_its_own() {
    wait(async {
        let yard = Yard::new(RUNNING, LIMITS);
        let warm = json!({ "temperature": 1, "seed": 7, "n": 3 });
        let first = yard.ask(CHAT, &hello(&warm)).await;
        assert_eq!(yard.ask(CHAT, &hello(&warm)).await["choices"], first["choices"]);
        let want = generated(&hello_ids(), 24, Sampling { seed: 7, ..Sampling::default() });
        let texts: Vec<&Value> =
            (0..3).map(|i| &first["choices"][i]["message"]["content"]).collect();
        assert_eq!(texts[0], &decode(&want.ids));
        assert!(texts[0] != texts[1] && texts[1] != texts[2]);
        let free = json!({ "temperature": 1 });
        let [a, b] = [yard.ask(CHAT, &hello(&free)).await, yard.ask(CHAT, &hello(&free)).await];
        assert_ne!(a["choices"], b["choices"], "without a seed answers differ");
        // A negative seed is one too; a distribution cut to its best token is greedy.
        let one = json!({ "temperature": 1, "seed": -5, "top_k": 1 });
        let greedy = yard.ask(CHAT, &hello(&json!({}))).await;
        assert_eq!(yard.ask(CHAT, &hello(&one)).await["choices"], greedy["choices"]);
    });
}

#[test]
fn an_answer_ends_before_a_stop_string() {
    wait(async {
        let yard = Yard::new(RUNNING, LIMITS);
        let asked = json!({ "max_tokens": 40, "ignore_eos": true });
        let free = yard.ask(CHAT, &hello(&asked)).await;
        let said = free["choices"][0]["message"]["content"].as_str().unwrap();
        let stop: String = said.chars().skip(4).take(2).collect();
        let before = &said[..said.find(&stop).unwrap()];
        for stop in [json!(stop), json!(["not there", stop])] {
            let mut body = hello(&asked);
            body["stop"] = stop;
            let got = yard.ask(CHAT, &body).await;
            assert_eq!(got["choices"][0]["message"]["content"], before);
            assert_eq!(got["choices"][0]["finish_reason"], "stop");
            let events = yard.stream(CHAT, &body).await;
            let text: String = events
                .iter()
                .filter_map(|e| e["choices"][0]["delta"]["content"].as_str())
                .collect();
            assert_eq!(text, before);
        }
    });
}
