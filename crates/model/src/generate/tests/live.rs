//! Requests that come while others are generated.

use super::*;
use std::collections::VecDeque;
use std::sync::Arc;

/// A client's view of one request.
#[derive(Debug, Default)]
struct Told {
    prompt: Option<Vec<PromptToken>>,
    ids: Vec<i64>,
    tops: Vec<Vec<(i64, f32)>>,
    text: String,
    end: Option<std::result::Result<Generated, String>>,
    /// The number of tokens that all requests had had when it ended.
    ended_at: usize,
}

/// Requests that come when so many tokens have been generated in all.
struct Script<'t> {
    waiting: VecDeque<(usize, Job<'t>)>,
    /// Break at so many tokens of a request.
    leave_at: Option<(usize, usize)>,
    tokens: usize,
    told: Vec<Told>,
}

impl<'t> Script<'t> {
    fn new(jobs: Vec<(usize, Job<'t>)>) -> Self {
        let told = jobs.iter().map(|_| Told::default()).collect();
        Self { waiting: jobs.into(), leave_at: None, tokens: 0, told }
    }
}

impl<'t> Source<'t> for Script<'t> {
    fn next(&mut self, idle: bool) -> Option<Job<'t>> {
        let due = self.waiting.front().is_some_and(|(at, _)| idle || *at <= self.tokens);
        if due { self.waiting.pop_front().map(|(_, job)| job) } else { None }
    }

    fn on_prompt(&mut self, key: usize, prompt: Vec<PromptToken>) {
        assert!(self.told[key].prompt.is_none() && self.told[key].ids.is_empty());
        self.told[key].prompt = Some(prompt);
    }

    fn on_token(&mut self, event: Event<'_>) -> ControlFlow<()> {
        self.tokens += 1;
        let told = &mut self.told[event.request];
        assert!(told.end.is_none());
        told.ids.push(event.id);
        told.tops.push(event.top.to_vec());
        told.text.push_str(event.text);
        match self.leave_at {
            Some((key, count)) if key == event.request && told.ids.len() == count => {
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        }
    }

    fn on_end(&mut self, key: usize, result: Result<Generated>) {
        let told = &mut self.told[key];
        assert!(told.end.is_none(), "one end each");
        told.end = Some(result.map_err(|error| error.to_string()));
        told.ended_at = self.tokens;
    }
}

fn job<'t>(key: usize, request: &Request) -> Job<'t> {
    let (request, stop) = (request.clone(), Arc::default());
    Job { key, request, stop, text: None, report: Report::default() }
}

fn engine(decoder: &Decoder, rows: usize, kernels: bool) -> Engine<'_> {
    let engine = Engine::new(decoder, rows, 48).unwrap();
    if kernels { engine } else { engine.without_kernels() }
}

#[test]
fn a_request_that_comes_late_gets_what_it_gets_alone() {
    let decoder = tiny(Architecture::Qwen3, &LoadOptions::default());
    let mut requests = ragged();
    requests.extend(ragged().into_iter().map(|mut request| {
        request.sampling.repetition_penalty = 1.3;
        request.sampling.seed += 50;
        request
    }));
    let alone: Vec<Generated> = requests
        .iter()
        .map(|r| generate(&decoder, 1, std::slice::from_ref(r), &StopRules::default()).remove(0))
        .collect();
    // All at once, now and then, and one after another; the cache grows in slots and in length as they come.
    for (rows, kernels, apart) in
        [(1, true, 0), (3, true, 4), (16, true, 5), (16, true, 0), (16, true, 1000), (5, false, 3)]
    {
        let jobs = requests.iter().enumerate().map(|(i, r)| (i * apart, job(i, r))).collect();
        let mut script = Script::new(jobs);
        let mut engine = engine(&decoder, rows, kernels);
        engine.serve(&mut script).unwrap();
        for (i, (told, alone)) in script.told.iter().zip(&alone).enumerate() {
            let got = told.end.as_ref().unwrap().as_ref().unwrap();
            assert_eq!(got.ids, alone.ids, "request {i} in {rows} rows, {apart} apart");
            assert_eq!((&told.ids, got.finish), (&got.ids, alone.finish));
        }
        // The engine is as good as new.
        let again = engine.generate(&requests, &StopRules::default(), None, None).unwrap();
        let ids = |all: &[Generated]| all.iter().map(|one| one.ids.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&again), ids(&alone));
    }
}

#[test]
fn a_request_that_is_left_makes_room_for_the_next() {
    let decoder = tiny(Architecture::Llama, &LoadOptions::default());
    let requests: Vec<Request> =
        (0..3).map(|i| request(vec![i + 1], 20, Sampling::greedy())).collect();
    let free = generate(&decoder, 1, &requests, &StopRules::default());
    let jobs = requests.iter().enumerate().map(|(i, r)| (0, job(i, r))).collect();
    let mut script = Script { leave_at: Some((0, 3)), ..Script::new(jobs) };
    engine(&decoder, 2, true).serve(&mut script).unwrap();
    let [left, beside, next] = &script.told[..] else { panic!() };
    let left = left.end.as_ref().unwrap().as_ref().unwrap();
    assert_eq!((left.finish, &left.ids[..]), (Finish::Cancelled, &free[0].ids[..3]));
    assert_eq!(beside.ids, free[1].ids);
    assert_eq!(next.ids, free[2].ids);
    // 2 rows had 3 tokens each; then the third took the first's place with a token from its prompt, and 17 steps of 2 followed.
    assert_eq!((script.told[0].ended_at, beside.ended_at), (6, 6 + 1 + 2 * 17));
}

#[test]
fn each_request_has_its_own_stop_rules() {
    let decoder = tiny(Architecture::Gpt2, &LoadOptions::default());
    let asked = request(vec![5, 6, 7], 12, Sampling { seed: 3, ..Sampling::default() });
    let free = generate(&decoder, 1, std::slice::from_ref(&asked), &StopRules::default()).remove(0);
    let table = |id: i64| format!("{id} 번, ").into_bytes();
    let text =
        || -> Option<Box<dyn TextDecoder>> { Some(Box::new(Bytes { table, pending: Vec::new() })) };
    let end = free.ids.iter().position(|id| *id == free.ids[4]).unwrap();
    let by_id = StopRules { ids: vec![free.ids[4]], strings: vec![] };
    let by_string = StopRules { ids: vec![], strings: vec![format!("{} 번", free.ids[4])] };
    let stops = [StopRules::default(), by_id, by_string];
    let jobs = stops
        .into_iter()
        .enumerate()
        .map(|(key, stop)| (0, Job { stop: Arc::new(stop), text: text(), ..job(key, &asked) }));
    let mut script = Script::new(jobs.collect());
    engine(&decoder, 3, true).serve(&mut script).unwrap();
    let [all, by_id, by_string] = &script.told[..] else { panic!() };
    assert_eq!(all.ids, free.ids);
    assert_eq!(by_id.ids, free.ids[..=end]);
    assert_eq!(by_string.ids, free.ids[..=end]);
    // Digits before a match could belong to it ("1" of "11"), so compare with what comes before its string.
    let before: Vec<String> = free.ids[..=end].iter().map(|id| format!("{id} 번, ")).collect();
    let before = before.concat();
    let at = before.find(&format!("{} 번", free.ids[4])).unwrap();
    assert_eq!(by_string.text, before[..at]);
}

#[test]
fn probable_tokens_and_prompts_are_reported_as_whole_forward_passes_have_them() {
    let decoder = tiny(Architecture::Llama, &LoadOptions::default());
    let warm = Sampling { temperature: 0.7, top_k: Some(3), seed: 9, ..Sampling::default() };
    let asked = [
        (request(token_ids(9, 61, 1), 5, warm), Report { top: 4, prompt: true }),
        (request(token_ids(30, 61, 2), 4, Sampling::greedy()), Report { top: 0, prompt: false }),
        (request(token_ids(9, 61, 1), 3, Sampling::greedy()), Report { top: 61, prompt: true }),
        (request(vec![7], 2, Sampling::greedy()), Report { top: 1, prompt: true }),
        (request(token_ids(12, 61, 4), 0, Sampling::greedy()), Report { top: 2, prompt: true }),
    ];
    for kernels in [true, false] {
        let jobs = asked
            .iter()
            .enumerate()
            .map(|(key, (request, report))| (0, Job { report: *report, ..job(key, request) }));
        let mut script = Script::new(jobs.collect());
        engine(&decoder, 8, kernels).serve(&mut script).unwrap();
        for ((request, report), told) in asked.iter().zip(&script.told) {
            let greedy = request.sampling.temperature == 0.0;
            let temperature = if greedy { 1.0 } else { request.sampling.temperature };
            let mut ids = request.ids.clone();
            assert_eq!(told.ids.len(), request.max_new_tokens);
            for (id, top) in told.ids.iter().zip(&told.tops) {
                assert_eq!(top.len(), report.top);
                assert_top(top, &next_logprobs(&decoder, &ids, temperature));
                ids.push(*id);
            }
            let Some(prompt) = &told.prompt else {
                assert!(!report.prompt);
                continue;
            };
            assert_eq!((prompt[0].logprob, prompt.len()), (None, request.ids.len()));
            for (at, token) in prompt.iter().enumerate().skip(1) {
                let all = next_logprobs(&decoder, &request.ids[..at], 1.0);
                assert_eq!(token.id, request.ids[at]);
                assert!((f64::from(token.logprob.unwrap()) - all[token.id as usize]).abs() < 1e-4);
                assert_eq!(token.top.len(), report.top);
                assert_top(&token.top, &all);
            }
        }
    }
}

#[track_caller]
fn assert_top(top: &[(i64, f32)], all: &[f64]) {
    let mut sorted = all.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    for ((id, logprob), want) in top.iter().zip(sorted) {
        assert!((f64::from(*logprob) - want).abs() < 1e-4, "{logprob} instead of {want}");
        assert!((all[*id as usize] - want).abs() < 1e-4, "{id} has another probability");
    }
}

#[test]
fn a_request_that_is_wrong_ends_no_other() {
    let decoder = tiny(Architecture::Llama, &LoadOptions::default());
    let greedy = Sampling::greedy;
    let good = request(vec![1, 2], 4, greedy());
    let wrong = [
        (request(vec![], 4, greedy()), "the prompt is empty"),
        (request(vec![1; 48], 4, greedy()), "leaves no room for a response in a context of 48"),
        (request(vec![61], 4, greedy()), "token id 61 is outside"),
        (request(vec![1], 4, Sampling { top_p: Some(2.0), ..greedy() }), "`top_p` is 2"),
    ];
    let mut jobs = vec![(0, job(0, &good))];
    jobs.extend(wrong.iter().enumerate().map(|(i, (request, _))| (2, job(i + 1, request))));
    let stop = StopRules { ids: vec![], strings: vec!["x".into()] };
    jobs.push((2, Job { stop: Arc::new(stop), ..job(5, &good) }));
    jobs.push((2, job(6, &request(vec![3], 0, greedy()))));
    jobs.push((2, job(7, &good)));
    let mut script = Script::new(jobs);
    engine(&decoder, 4, true).serve(&mut script).unwrap();
    let end = |key: usize| script.told[key].end.clone().unwrap();
    for (i, (_, message)) in wrong.iter().enumerate() {
        let error = end(i + 1).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
    assert!(end(5).unwrap_err().contains("stop strings need a text decoder"));
    assert!(end(6).unwrap().ids.is_empty());
    assert_eq!(end(7).unwrap().ids, end(0).unwrap().ids);
    assert_eq!(end(0).unwrap().ids.len(), 4);
}

#[test]
fn logits_that_are_not_finite_end_their_request_alone() {
    let decoder = tiny(Architecture::Mistral, &LoadOptions::default());
    let table = decoder.params().get("model.embed_tokens.weight").unwrap();
    let head = decoder.params().get("lm_head.weight").unwrap();
    assert_ne!(table.data_ptr(), head.data_ptr(), "this model's output layer is its own");
    let of = |ids: Vec<i64>| request(ids, 4, Sampling::greedy());
    let mut requests = [of(vec![1, 2]), of(vec![0]), of(vec![3])];
    let alone = generate(&decoder, 1, &requests, &StopRules::default());
    // A token that neither of the others meets.
    let met = |id: &i64| [1, 2, 3].contains(id) || alone.iter().any(|one| one.ids.contains(id));
    let bad = (0..61).find(|id| !met(id)).unwrap();
    requests[1].ids = vec![bad, 2];
    let _ = no_grad(|| table.get(bad).fill_(f64::NAN));
    let jobs = requests.iter().enumerate().map(|(i, r)| (0, job(i, r))).collect();
    let mut script = Script::new(jobs);
    engine(&decoder, 4, true).serve(&mut script).unwrap();
    let error = script.told[1].end.clone().unwrap().unwrap_err();
    assert!(error.contains("the model's logits are not finite at response token 0"), "{error}");
    for key in [0, 2] {
        assert_eq!(script.told[key].ids, alone[key].ids);
    }
}
