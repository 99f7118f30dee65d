//! Many clients, and such as leave, hang, or come when there is no room.

use super::*;

const TEXT: &str = "/v1/completions";

/// One that would take the engine a minute.
fn endless() -> Value {
    json!({ "model": "plain", "prompt": "민수는", "max_tokens": 90_000, "ignore_eos": true, "temperature": 1 })
}

fn short(number: usize) -> Value {
    let prompt = format!("민수는 {number}번 자리에서 {}", "x".repeat(number % 7));
    json!({ "model": "plain", "prompt": prompt, "max_tokens": 20 + number % 9, "temperature": 0 })
}

/// One row, so that whoever has it keeps all others out.
fn narrow(limits: Limits) -> Yard {
    Yard::new(Running { rows: 1, ..RUNNING }, limits)
}

async fn open(yard: &Yard) -> Body {
    let mut body = endless();
    body["stream"] = true.into();
    let (status, _, mut stream) = yard.post(TEXT, &body).await;
    assert_eq!(status, StatusCode::OK);
    assert!(next(&mut stream).await.unwrap().starts_with("data: {"));
    stream
}

#[test]
fn sixty_four_clients_get_what_each_gets_alone() {
    wait(async {
        let yard = Yard::new(RUNNING, LIMITS);
        let mut alone = Vec::new();
        for number in 0..64 {
            alone.push(yard.ask(TEXT, &short(number)).await["choices"].clone());
        }
        let yard = Arc::new(yard);
        let clients: Vec<_> = (0..64)
            .map(|number| {
                let yard = Arc::clone(&yard);
                let client = async move {
                    if number % 2 == 0 {
                        return yard.ask(TEXT, &short(number)).await["choices"][0]["text"].clone();
                    }
                    let events = yard.stream(TEXT, &short(number)).await;
                    let texts = events.iter().map(|e| e["choices"][0]["text"].as_str().unwrap());
                    texts.collect::<String>().into()
                };
                tokio::task::spawn_local(client)
            })
            .collect();
        for (client, alone) in clients.into_iter().zip(alone) {
            assert_eq!(client.await.unwrap(), alone[0]["text"]);
        }
    });
}

#[test]
fn a_client_that_leaves_makes_room() {
    wait(async {
        let yard = narrow(LIMITS);
        let stream = open(&yard).await;
        drop(stream);
        yard.ask(TEXT, &short(1)).await;
        // One that waits for a whole answer leaves the same way.
        let whole = endless();
        let left = tokio::time::timeout(Duration::from_millis(200), yard.ask(TEXT, &whole)).await;
        assert!(left.is_err());
        yard.ask(TEXT, &short(2)).await;
    });
}

#[test]
fn a_client_that_does_not_read_loses_its_row() {
    wait(async {
        let yard = narrow(Limits { client: Duration::from_millis(300), ..LIMITS });
        let stream = open(&yard).await;
        yard.ask(TEXT, &short(1)).await;
        let all = text(stream).await;
        assert!(all.ends_with("\n\n") && all.contains("the answer was not read"), "{all}");
        assert!(!all.contains("[DONE]"));
    });
}

#[test]
fn an_answer_that_takes_too_long_is_broken_off() {
    wait(async {
        let yard = narrow(Limits { request: Duration::from_millis(300), ..LIMITS });
        let (status, _, body) = yard.post(TEXT, &endless()).await;
        let told = text(body).await;
        assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{told}");
        let all = text(open(&yard).await).await;
        assert!(all.contains("was not finished within the server's time limit"), "{all}");
    });
}

#[test]
fn more_than_may_wait_are_turned_away_for_now() {
    wait(async {
        let yard = Arc::new(narrow(Limits { waiting: 2, ..LIMITS }));
        let stream = open(&yard).await;
        let ask = |number| {
            let yard = Arc::clone(&yard);
            tokio::task::spawn_local(async move { yard.ask(TEXT, &short(number)).await })
        };
        let waiting = [ask(1), ask(2)];
        tokio::task::yield_now().await;
        let (status, headers, body) = yard.post(TEXT, &short(3)).await;
        let told = text(body).await;
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{told}");
        assert_eq!(headers["retry-after"], "1");
        assert!(
            told.contains("2 requests are waiting already") && told.contains("rate_limit_error")
        );
        // The place of one that has left is free.
        waiting[0].abort();
        tokio::task::yield_now().await;
        let third = ask(4);
        tokio::task::yield_now().await;
        drop(stream);
        let [_, second] = waiting;
        second.await.unwrap();
        third.await.unwrap();
    });
}

#[test]
fn a_server_that_stops_ends_what_it_must() {
    wait(async {
        let yard = narrow(LIMITS);
        let running = open(&yard).await;
        let queue = &yard.served[1].queue;
        queue.close();
        let (status, headers, _) = yard.post(TEXT, &short(1)).await;
        assert_eq!(
            (status, &headers["retry-after"]),
            (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap())
        );
        queue.break_off();
        let all = text(running).await;
        assert!(all.contains("the server is shutting down") && !all.contains("[DONE]"));
    });
}
