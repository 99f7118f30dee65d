mod live;

use super::sampling::{Seen, Settings};
use super::text::Text;
use super::*;
use crate::config::Architecture;
use crate::decoder::{Decoder, LoadOptions};
use crate::precision::Precision;
use crate::random::Philox;
use crate::testing::{row, tiny, token_ids};
use std::ops::ControlFlow;
use tch::{Device, Kind, Tensor, no_grad};

fn request(ids: Vec<i64>, max_new_tokens: usize, sampling: Sampling) -> Request {
    Request { ids, max_new_tokens, sampling }
}

fn generate(
    decoder: &Decoder,
    rows: usize,
    requests: &[Request],
    stop: &StopRules,
) -> Vec<Generated> {
    Engine::new(decoder, rows, 48).unwrap().generate(requests, stop, None, None).unwrap()
}

/// Log-probabilities of the next token after `ids`, from a whole forward pass without a cache, in f64.
fn next_logprobs(decoder: &Decoder, ids: &[i64], temperature: f64) -> Vec<f64> {
    let hidden = no_grad(|| decoder.hidden(&row(decoder, ids, &[ids.len()]))).unwrap();
    let logits =
        decoder.logits(&hidden.slice(0, -1, None, 1)).unwrap().to_kind(Kind::Double) / temperature;
    Vec::try_from(&logits.log_softmax(-1, Kind::Double).flatten(0, -1)).unwrap()
}

/// What generation must give, token by token, by the definition of sampling.
fn expected(decoder: &Decoder, request: &Request) -> (Vec<i64>, Vec<f64>) {
    let (mut ids, mut chosen, mut logprobs) = (request.ids.clone(), Vec::new(), Vec::new());
    let greedy = request.sampling.temperature == 0.0;
    for step in 0..request.max_new_tokens.min(48 - request.ids.len()) {
        let temperature = if greedy { 1.0 } else { request.sampling.temperature };
        let all = next_logprobs(decoder, &ids, temperature);
        let id = if greedy {
            (0..all.len()).max_by(|&a, &b| all[a].total_cmp(&all[b])).unwrap()
        } else {
            let uniform = Philox::new(request.sampling.seed).uniform(0, step as u64);
            let mut sum = 0.0;
            all.iter()
                .position(|l| {
                    sum += l.exp();
                    sum > uniform
                })
                .unwrap()
        };
        ids.push(id as i64);
        chosen.push(id as i64);
        logprobs.push(all[id]);
    }
    (chosen, logprobs)
}

/// Requests with prompts of many lengths and every kind of setting that needs no truncation.
fn ragged() -> Vec<Request> {
    [3, 11, 1, 7, 20, 2, 46, 5]
        .into_iter()
        .enumerate()
        .map(|(i, len)| {
            let temperature = [0.0, 1.0, 0.7, 1.5][i % 4];
            let sampling = Sampling { temperature, seed: 100 + i as u64, ..Sampling::default() };
            request(token_ids(len, 61, i as u64), 3 + 4 * (i % 4), sampling)
        })
        .collect()
}

#[test]
fn generation_equals_sampling_from_whole_forward_passes() {
    for architecture in Architecture::ALL {
        let decoder = tiny(architecture, &LoadOptions::default());
        let requests = ragged();
        // The CPU's kernels, with 8 rows over packed weights, and CUDA's way.
        for (rows, kernels) in [(1, true), (3, true), (8, true), (3, false)] {
            let engine = Engine::new(&decoder, rows, 48).unwrap();
            let mut engine = if kernels { engine } else { engine.without_kernels() };
            let got = engine.generate(&requests, &StopRules::default(), None, None).unwrap();
            for (request, got) in requests.iter().zip(&got) {
                let (ids, logprobs) = expected(&decoder, request);
                assert_eq!(got.ids, ids, "{architecture:?} in {rows} rows");
                assert_eq!(got.finish, Finish::Length);
                assert_eq!(got.logprobs.len(), ids.len());
                for (got, want) in got.logprobs.iter().zip(logprobs) {
                    assert!((f64::from(*got) - want).abs() < 1e-4, "{got} vs {want}");
                }
            }
        }
    }
}

#[test]
fn a_response_ends_at_the_end_of_the_context() {
    let decoder = tiny(Architecture::Llama, &LoadOptions::default());
    let requests = [request(token_ids(44, 61, 1), 100, Sampling::greedy())];
    let got = generate(&decoder, 1, &requests, &StopRules::default());
    assert_eq!((got[0].ids.len(), got[0].finish), (4, Finish::Length));
    // The last token was predicted from position 46, so position 47 is never used beyond the model's.
    assert_eq!(got[0].ids, expected(&decoder, &requests[0]).0);
    let none = [request(vec![1], 0, Sampling::greedy()), request(vec![2], 2, Sampling::greedy())];
    let got = generate(&decoder, 1, &none, &StopRules::default());
    assert_eq!((got[0].ids.len(), got[1].ids.len()), (0, 2));
    assert!(generate(&decoder, 4, &[], &StopRules::default()).is_empty());
}

#[test]
fn an_engine_is_used_again_with_more_and_longer_requests() {
    let decoder = tiny(Architecture::Qwen3, &LoadOptions::default());
    let mut engine = Engine::new(&decoder, 4, 48).unwrap();
    let short = [request(vec![3, 4], 2, Sampling::greedy())];
    let stop = StopRules::default();
    let first = engine.generate(&short, &stop, None, None).unwrap();
    let requests = ragged();
    let many = engine.generate(&requests, &stop, None, None).unwrap();
    assert_eq!(many, generate(&decoder, 4, &requests, &stop));
    assert_eq!(engine.generate(&short, &stop, None, None).unwrap(), first);
}

#[test]
fn weights_that_changed_between_calls_are_used() {
    let mut decoder =
        tiny(Architecture::Llama, &LoadOptions { trainable: true, ..LoadOptions::default() });
    let requests: Vec<Request> =
        (0..8).map(|i| request(token_ids(5, 61, i), 6, Sampling::greedy())).collect();
    let stop = StopRules::default();
    // One engine over two decoders cannot be: the weights are changed behind its back, as an optimiser does.
    let weights: Vec<Tensor> = decoder.params().iter().map(|(_, weight)| weight).collect();
    let mut engine = Engine::new(&decoder, 8, 48).unwrap();
    let before = engine.generate(&requests, &stop, None, None).unwrap();
    for weight in &weights {
        let _ = no_grad(|| weight.shallow_clone().g_mul_scalar_(-1.5));
    }
    let after = engine.generate(&requests, &stop, None, None).unwrap();
    drop(engine);
    decoder.params_mut().refresh_compute().unwrap();
    assert_ne!(before, after);
    assert_eq!(after, generate(&decoder, 8, &requests, &stop));
}

#[test]
fn samples_of_one_prompt_are_those_of_the_prompt_alone() {
    let decoder = tiny(Architecture::Qwen3, &LoadOptions::default());
    let prompts = [token_ids(9, 61, 1), token_ids(4, 61, 2)];
    let requests: Vec<Request> = (0..10)
        .map(|i| {
            let sampling = Sampling { seed: i, repetition_penalty: 1.1, ..Sampling::default() };
            request(prompts[i as usize % 2].clone(), 5 + i as usize, sampling)
        })
        .collect();
    for rows in [4, 10] {
        let together = generate(&decoder, rows, &requests, &StopRules::default());
        for (request, got) in requests.iter().zip(&together) {
            let alone =
                &generate(&decoder, 1, std::slice::from_ref(request), &StopRules::default())[0];
            assert_eq!(got.ids, alone.ids);
        }
        let different: std::collections::HashSet<_> =
            together.iter().map(|g| &g.ids[..5]).collect();
        assert!(different.len() > 5, "each sample has its own seed");
    }
}

#[test]
fn a_sample_depends_on_its_seed_and_on_nothing_beside_it() {
    let decoder = tiny(Architecture::Mistral, &LoadOptions::default());
    let prompt = token_ids(6, 61, 3);
    let full = Sampling {
        temperature: 0.9,
        top_k: Some(20),
        top_p: Some(0.9),
        min_p: Some(0.02),
        repetition_penalty: 1.2,
        seed: 7,
    };
    let asked = request(prompt.clone(), 12, full.clone());
    let alone = generate(&decoder, 1, std::slice::from_ref(&asked), &StopRules::default());
    let mut crowd = ragged();
    crowd.insert(5, asked.clone());
    let beside = generate(&decoder, 4, &crowd, &StopRules::default());
    assert_eq!(beside[5].ids, alone[0].ids);
    let different = |change: &dyn Fn(&mut Sampling)| {
        let mut other = asked.clone();
        change(&mut other.sampling);
        generate(&decoder, 1, &[other], &StopRules::default())[0].ids != alone[0].ids
    };
    assert!(different(&|s| s.seed = 8));
    assert!(!different(&|_| {}));
}

#[test]
fn half_precision_generates_close_log_probabilities() {
    let options = LoadOptions { precision: Precision::Bf16, ..LoadOptions::default() };
    let (half, exact) =
        (tiny(Architecture::Qwen2, &options), tiny(Architecture::Qwen2, &LoadOptions::default()));
    let requests = ragged();
    let got = generate(&half, 3, &requests, &StopRules::default());
    for (request, got) in requests.iter().zip(&got) {
        let temperature =
            if request.sampling.temperature == 0.0 { 1.0 } else { request.sampling.temperature };
        let mut ids = request.ids.clone();
        for (id, logprob) in got.ids.iter().zip(&got.logprobs) {
            let want = next_logprobs(&exact, &ids, temperature)[*id as usize];
            assert!((f64::from(*logprob) - want).abs() < 0.15, "{logprob} vs {want}");
            ids.push(*id);
        }
    }
}

#[test]
fn stop_ids_end_a_response_and_are_part_of_it() {
    let decoder = tiny(Architecture::Gpt2, &LoadOptions::default());
    let requests = [request(vec![5, 6, 7], 20, Sampling { seed: 3, ..Sampling::default() })];
    let free = generate(&decoder, 1, &requests, &StopRules::default()).remove(0);
    let stop = StopRules { ids: vec![60_000, free.ids[4]], strings: vec![] };
    let got = generate(&decoder, 1, &requests, &stop).remove(0);
    let end = free.ids.iter().position(|id| *id == free.ids[4]).unwrap();
    assert_eq!(got.ids, free.ids[..=end]);
    assert_eq!(got.logprobs, free.logprobs[..=end]);
    assert_eq!((got.finish, got.text), (Finish::Stop, None));
}

/// Bytes of each token id, put together into whole characters.
struct Bytes {
    table: fn(i64) -> Vec<u8>,
    pending: Vec<u8>,
}

impl TextDecoder for Bytes {
    fn push(&mut self, id: i64) -> String {
        self.pending.extend((self.table)(id));
        let whole = match std::str::from_utf8(&self.pending) {
            Ok(_) => self.pending.len(),
            Err(error) => error.valid_up_to(),
        };
        let text = self.pending.drain(..whole).collect();
        String::from_utf8(text).unwrap()
    }

    fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// Every id is one byte of this text.
const KOREAN: &str = "안녕 세계, hello 끝!";

fn korean(id: i64) -> Vec<u8> {
    vec![KOREAN.as_bytes()[id as usize]]
}

fn bytes() -> Box<dyn TextDecoder> {
    Box::new(Bytes { table: korean, pending: Vec::new() })
}

/// Feeds `KOREAN` byte by byte; returns what was shown piece by piece, the text, and the number of bytes taken.
fn feed(stops: &[&str]) -> (Vec<String>, String, usize) {
    let stops: Vec<String> = stops.iter().map(|&s| s.to_owned()).collect();
    let mut text = Text::new(bytes());
    let mut shown = Vec::new();
    for i in 0..KOREAN.len() {
        let stopped = text.push(i as i64, &stops);
        shown.push(text.take_shown(&stops, stopped).to_owned());
        if stopped {
            return (shown, text.into_string(), i + 1);
        }
    }
    assert!(!text.finish(&stops));
    shown.push(text.take_shown(&stops, true).to_owned());
    (shown, text.into_string(), KOREAN.len())
}

#[test]
fn stop_strings_are_found_across_tokens_and_never_shown() {
    let (shown, text, taken) = feed(&[]);
    assert_eq!((shown.concat().as_str(), text.as_str(), taken), (KOREAN, KOREAN, KOREAN.len()));
    assert_eq!(shown[..4], ["", "", "안", ""]);
    // A character of three bytes that comes in three tokens.
    let (shown, text, taken) = feed(&["세"]);
    assert_eq!((shown.concat().as_str(), text.as_str(), taken), ("안녕 ", "안녕 ", 10));
    // A string over a space; the start of a match is held back until it is sure.
    let (shown, text, taken) = feed(&["계, hello"]);
    assert_eq!((shown.concat().as_str(), text.as_str()), ("안녕 세", "안녕 세"));
    assert_eq!(taken, "안녕 세계, hello".len());
    // A start that comes to nothing is shown after all.
    let (shown, text, _) = feed(&["hellx", "끝?"]);
    assert_eq!((shown.concat().as_str(), text.as_str()), (KOREAN, KOREAN));
    let at_o = KOREAN.find('o').unwrap();
    assert_eq!(shown[at_o], "hello");
    assert!(shown[at_o - 4..at_o].iter().all(String::is_empty));
    // The earliest of several; one that the text ends with.
    assert_eq!(feed(&["hello", "세", "끝"]).1, "안녕 ");
    assert_eq!(feed(&["끝!"]).1, "안녕 세계, hello ");
    assert_eq!(feed(&["l", "ll"]).1, "안녕 세계, he");
}

#[test]
fn text_in_the_middle_of_a_character_is_given_up_at_the_end() {
    let mut text = Text::new(bytes());
    assert!(!text.push(0, &[]) && !text.push(1, &[]));
    assert_eq!(text.take_shown(&[], false), "");
    assert!(!text.finish(&[]));
    assert_eq!(text.take_shown(&[], true), "\u{fffd}");
}

#[test]
fn one_token_can_hold_a_whole_stop_string_and_more() {
    let table = |id: i64| if id == 0 { "가나 END 다".into() } else { b"x".to_vec() };
    let mut text = Text::new(Box::new(Bytes { table, pending: Vec::new() }));
    let stops = ["END".to_owned()];
    assert!(!text.push(1, &stops));
    assert!(text.push(0, &stops));
    assert_eq!(text.take_shown(&stops, true), "x가나 ");
    assert_eq!(text.into_string(), "x가나 ");
}

#[test]
fn streaming_gives_every_token_once_and_its_text_adds_up() {
    let decoder = tiny(Architecture::Qwen2, &LoadOptions::default());
    let table = |id: i64| format!("{id} 번, ").into_bytes();
    let new = || -> Box<dyn TextDecoder> { Box::new(Bytes { table, pending: Vec::new() }) };
    let requests = ragged();
    let stop = StopRules { ids: vec![], strings: vec!["7 번".into(), "1 번, 2".into()] };
    let mut engine = Engine::new(&decoder, 3, 48).unwrap();
    let mut seen = vec![(Vec::new(), String::new(), None); requests.len()];
    let mut collect = |event: Event<'_>| {
        let (ids, text, finish) = &mut seen[event.request];
        assert!(finish.is_none(), "nothing comes after the last event");
        ids.push(event.id);
        text.push_str(event.text);
        *finish = event.finish;
        ControlFlow::Continue(())
    };
    let got = engine.generate(&requests, &stop, Some(&new), Some(&mut collect)).unwrap();
    for (got, (ids, text, finish)) in got.iter().zip(seen) {
        assert_eq!(
            (&got.ids, got.text.as_deref(), Some(got.finish)),
            (&ids, Some(text.as_str()), finish)
        );
        assert!(!text.contains("7 번"));
        let all: Vec<String> = ids.iter().map(|id| format!("{id} 번, ")).collect();
        let all = all.concat();
        let stopped = all.contains("7 번") || all.contains("1 번, 2");
        assert_eq!(got.finish == Finish::Stop, stopped);
    }
    assert!(
        got.iter().any(|g| g.finish == Finish::Stop)
            && got.iter().any(|g| g.finish == Finish::Length)
    );
}

#[test]
fn a_callback_can_end_its_response_alone() {
    let decoder = tiny(Architecture::Llama, &LoadOptions::default());
    let requests: Vec<Request> =
        (0..3).map(|i| request(vec![i + 1], 6, Sampling::greedy())).collect();
    let free = generate(&decoder, 3, &requests, &StopRules::default());
    let mut count = 0;
    let mut cancel = |event: Event<'_>| {
        if event.request == 1 {
            count += 1;
        }
        if event.request == 1 && count == 2 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let mut engine = Engine::new(&decoder, 3, 48).unwrap();
    let got = engine.generate(&requests, &StopRules::default(), None, Some(&mut cancel)).unwrap();
    assert_eq!((got[1].finish, &got[1].ids[..]), (Finish::Cancelled, &free[1].ids[..2]));
    assert_eq!((&got[0], &got[2]), (&free[0], &free[2]));
}

/// Many rows of the same logits and settings but for the seed: how often each token comes, as a share.
fn frequencies(logits: &[f32], sampling: &Sampling, seen: &[i64]) -> Vec<f64> {
    const ROWS: usize = 20_000;
    let rows: Vec<Sampling> =
        (0..ROWS).map(|seed| Sampling { seed: seed as u64, ..sampling.clone() }).collect();
    let vocab = logits.len() as i64;
    let settings = Settings::new(&rows.iter().collect::<Vec<_>>(), vocab, Device::Cpu);
    let logits = Tensor::from_slice(logits).unsqueeze(0).repeat([ROWS as i64, 1]);
    let mask = Tensor::zeros([vocab], (Kind::Bool, Device::Cpu));
    let mask =
        mask.index_fill(0, &Tensor::from_slice(seen), 1).unsqueeze(0).repeat([ROWS as i64, 1]);
    let chosen = settings.choose(&logits, Some(&mask), &vec![3; ROWS]).unwrap();
    let mut counts = vec![0.0; vocab as usize];
    for id in chosen.ids {
        counts[id as usize] += 1.0;
    }
    counts.into_iter().map(|n: f64| n / ROWS as f64).collect()
}

#[track_caller]
fn assert_distribution(got: &[f64], expected: &[f64]) {
    for (got, want) in got.iter().zip(expected) {
        // Four standard deviations of 20,000 draws; a token that may not come must not.
        let tolerance = 1e-12 + 4.0 * (want * (1.0 - want) / 20_000.0).sqrt();
        assert!((got - want).abs() <= tolerance, "{got} instead of {want} +- {tolerance}");
    }
}

/// Natural logarithms of these probabilities, shifted: logits need not be normalised.
fn logits_of(probabilities: &[f64]) -> Vec<f32> {
    probabilities.iter().map(|p| (p.ln() + 2.5) as f32).collect()
}

const P: [f64; 5] = [0.1, 0.4, 0.05, 0.25, 0.2];

#[test]
fn sampling_follows_hand_computed_distributions() {
    let logits = logits_of(&P);
    let check = |sampling: Sampling, expected: [f64; 5]| {
        assert_distribution(&frequencies(&logits, &sampling, &[]), &expected);
    };
    let plain = Sampling::default();
    check(plain.clone(), P);
    // Temperature 0.5 squares the probabilities.
    let squares = P.map(|p| p * p / (0.01 + 0.16 + 0.0025 + 0.0625 + 0.04));
    check(Sampling { temperature: 0.5, ..plain.clone() }, squares);
    let top_2 = [0.0, 0.4 / 0.65, 0.0, 0.25 / 0.65, 0.0];
    check(Sampling { top_k: Some(2), ..plain.clone() }, top_2);
    check(Sampling { top_k: Some(1), ..plain.clone() }, [0.0, 1.0, 0.0, 0.0, 0.0]);
    check(Sampling { top_k: Some(100), ..plain.clone() }, P);
    // 0.4 + 0.25 < 0.7 <= 0.4 + 0.25 + 0.2: three stay.
    let nucleus = [0.0, 0.4 / 0.85, 0.0, 0.25 / 0.85, 0.2 / 0.85];
    check(Sampling { top_p: Some(0.7), ..plain.clone() }, nucleus);
    check(Sampling { top_p: Some(1e-6), ..plain.clone() }, [0.0, 1.0, 0.0, 0.0, 0.0]);
    check(Sampling { top_p: Some(1.0), ..plain.clone() }, P);
    // At least 0.45 of 0.4, which is 0.18.
    check(Sampling { min_p: Some(0.45), ..plain.clone() }, nucleus);
    check(Sampling { min_p: Some(0.0), ..plain.clone() }, P);
    // In this order: temperature, then top-k, then top-p of what is left, then min-p.
    // Squares over top-3: .16 .0625 .04 of .2625; the first two have .848 >= .8, so the third goes.
    let both = Sampling { temperature: 0.5, top_k: Some(3), top_p: Some(0.8), ..plain.clone() };
    check(both.clone(), [0.0, 0.16 / 0.2225, 0.0, 0.0625 / 0.2225, 0.0]);
    check(Sampling { min_p: Some(0.5), ..both }, [0.0, 1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn tokens_equal_to_the_kth_all_stay() {
    let logits = logits_of(&[0.25, 0.25, 0.25, 0.15, 0.1]);
    let sampling = Sampling { top_k: Some(2), ..Sampling::default() };
    let third = 1.0 / 3.0;
    assert_distribution(&frequencies(&logits, &sampling, &[]), &[third, third, third, 0.0, 0.0]);
}

#[test]
fn repetition_penalty_divides_positive_and_multiplies_negative_logits() {
    let logits = [1.0, -1.0, 0.5, -0.5];
    let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
    let weights = [0.5_f64, -2.0, 0.5, -0.5].map(f64::exp);
    let total: f64 = weights.iter().sum();
    let expected = weights.map(|w| w / total);
    assert_distribution(&frequencies(&logits, &sampling, &[0, 1]), &expected);
    // Greedy is penalised as well, and its log-probability is that of the unchanged logits.
    let greedy = Sampling { repetition_penalty: 3.0, ..Sampling::greedy() };
    let settings = Settings::new(&[&greedy], 4, Device::Cpu);
    let seen = Seen::new(1, 4, Device::Cpu);
    seen.start(0, &[0]);
    let chosen = settings.choose(
        &Tensor::from_slice(&[1.0_f32, -1.0, 0.5, -0.5]).unsqueeze(0),
        Some(&seen.slots(&[0])),
        &[0],
    );
    let chosen = chosen.unwrap();
    assert_eq!(chosen.ids, [2]);
    let sum: f64 = [1.0_f64, -1.0, 0.5, -0.5].map(f64::exp).iter().sum();
    assert!((f64::from(chosen.logprobs[0]) - (0.5 - sum.ln())).abs() < 1e-6);
}

#[test]
fn log_probabilities_are_of_the_whole_distribution_at_the_temperature() {
    let rows = [
        Sampling {
            temperature: 0.5,
            top_k: Some(1),
            repetition_penalty: 1.3,
            ..Sampling::default()
        },
        Sampling { temperature: 2.0, top_p: Some(0.3), ..Sampling::default() },
        Sampling::greedy(),
    ];
    let settings = Settings::new(&rows.iter().collect::<Vec<_>>(), 5, Device::Cpu);
    let logits = Tensor::from_slice(&logits_of(&P)).unsqueeze(0).repeat([3, 1]);
    let seen = Tensor::zeros([3, 5], (Kind::Bool, Device::Cpu));
    let chosen = settings.choose(&logits, Some(&seen), &[0, 0, 0]).unwrap();
    assert_eq!(chosen.ids, [1, 1, 1]);
    let of = |power: f64| {
        let total: f64 = P.iter().map(|p| p.powf(power)).sum();
        (0.4_f64.powf(power) / total).ln()
    };
    for (got, want) in chosen.logprobs.iter().zip([of(2.0), of(0.5), of(1.0)]) {
        assert!((f64::from(*got) - want).abs() < 1e-6, "{got} vs {want}");
    }
}

#[test]
fn greedy_takes_the_lowest_id_among_equals_in_any_precision() {
    let settings = Settings::new(&[&Sampling::greedy(), &Sampling::greedy()], 4, Device::Cpu);
    let logits = Tensor::from_slice(&[0.0_f32, 3.0, 3.0, 1.0, -1.0, -1.0, -1.0, -1.0]).view([2, 4]);
    for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
        assert_eq!(settings.choose(&logits.to_kind(kind), None, &[0, 0]).unwrap().ids, [1, 0]);
    }
}

#[test]
fn extreme_logits_stay_finite_and_draw_only_what_may_come() {
    let row = Sampling { top_p: Some(0.9), min_p: Some(0.1), seed: 5, ..Sampling::default() };
    let settings = Settings::new(&[&row], 4, Device::Cpu);
    let logits = Tensor::from_slice(&[-1e4_f32, 1e4, f32::NEG_INFINITY, 0.0]).unsqueeze(0);
    for step in 0..100 {
        let chosen = settings.choose(&logits, None, &[step]).unwrap();
        assert_eq!((chosen.ids[0], chosen.logprobs[0]), (1, 0.0));
    }
}

#[test]
fn bad_requests_are_named() {
    let decoder = tiny(Architecture::Llama, &LoadOptions::default());
    let message = |ids: Vec<i64>, sampling: Sampling| {
        let good = request(vec![1], 1, Sampling::greedy());
        let requests = [good, request(ids, 4, sampling)];
        let mut engine = Engine::new(&decoder, 2, 20).unwrap();
        engine.generate(&requests, &StopRules::default(), None, None).unwrap_err().to_string()
    };
    let greedy = Sampling::greedy;
    assert!(message(vec![], greedy()).starts_with("request 1: the prompt is empty"));
    let long = message(vec![1; 20], greedy());
    assert!(
        long.contains("prompt of 20 tokens leaves no room") && long.contains("context of 20"),
        "{long}"
    );
    assert!(
        message(vec![61], greedy()).contains("token id 61 is outside the model's vocabulary of 61")
    );
    let cases = [
        (
            Sampling { temperature: -1.0, ..greedy() },
            "`temperature` is -1; it must be 0 (greedy) or from 1e-6 to 1e6",
        ),
        (Sampling { temperature: f64::NAN, ..greedy() }, "`temperature` is NaN"),
        (Sampling { top_k: Some(0), ..greedy() }, "`top_k` is 0; it must be at least 1"),
        (
            Sampling { top_p: Some(0.0), ..greedy() },
            "`top_p` is 0; it must be above 0 and at most 1",
        ),
        (Sampling { min_p: Some(1.5), ..greedy() }, "`min_p` is 1.5; it must be from 0 to 1"),
        (Sampling { repetition_penalty: 0.0, ..greedy() }, "`repetition_penalty` is 0"),
    ];
    for (sampling, text) in cases {
        let got = message(vec![1], sampling);
        assert!(got.contains(text), "{got}");
    }
    let engine = |rows, len| Engine::new(&decoder, rows, len).unwrap_err().to_string();
    assert!(engine(0, 8).contains("at least one row"));
    assert!(
        engine(1, 49).contains("49 tokens is beyond the model's max_position_embeddings of 48")
    );
    let mut engine = Engine::new(&decoder, 1, 20).unwrap();
    let good = [request(vec![1], 1, greedy())];
    let stop = |text: &str| StopRules { ids: vec![], strings: vec![text.to_owned()] };
    let mut error =
        |stop: &StopRules| engine.generate(&good, stop, None, None).unwrap_err().to_string();
    assert!(error(&stop("")).contains("stop string is empty"));
    assert!(error(&stop("x")).contains("need a text decoder"));
}

#[test]
fn logits_that_are_not_finite_end_the_run_with_an_error() {
    let decoder = tiny(Architecture::Llama, &LoadOptions::default());
    let _ = no_grad(|| decoder.params().get("model.norm.weight").unwrap().fill_(f64::NAN));
    for sampling in [Sampling::greedy(), Sampling::default()] {
        let requests = [request(vec![1], 1, sampling)];
        let mut engine = Engine::new(&decoder, 1, 20).unwrap();
        let error = engine.generate(&requests, &StopRules::default(), None, None).unwrap_err();
        assert!(
            error.to_string().contains("request 0: the model's logits are not finite"),
            "{error}"
        );
    }
}
