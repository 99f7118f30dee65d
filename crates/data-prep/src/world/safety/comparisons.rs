//! Which of two answers is better by a principle.

use rand::Rng as _;
use serde_json::{Map, Value, json};

use super::super::Rng;
use super::super::draw::one;
use super::super::stream::Drawn;
use super::guide::written_in;
use super::{Guide, Harm, Request, turn, turns};

/// How many requests are unsafe, where the refusal is better; for the others it is worse.
const UNSAFE: f64 = 0.5;

/// Two answers to a request.
pub(in super::super) struct Compared {
    request: Request,
    worse: String,
    better_first: bool,
    guide: Guide,
    principle: usize,
}

impl Drawn for Compared {
    type From = Guide;

    fn draw(guide: &Guide, rng: &mut Rng) -> Self {
        let request = Request::draw_one(UNSAFE, rng);
        // What to do instead, where it names nobody that the request does not name.
        let instead = one(&[None, Some(Harm::Violence), Some(Harm::Damage)], rng);
        let worse = request.bad().unwrap_or_else(|| request.refusal(instead));
        let better_first = rng.random_bool(0.5);
        Self { request, worse, better_first, guide: guide.clone(), principle: guide.draw(rng) }
    }

    fn key(&self) -> &str {
        self.request.key()
    }

    fn identity(&self) -> String {
        let Self { request, worse, better_first, principle, .. } = self;
        format!("{}\n{worse}\n{better_first}\n{principle}", request.text)
    }

    fn record(self, split: &str) -> anyhow::Result<Map<String, Value>> {
        let Self { request, worse, better_first, guide, principle } = &self;
        let (constitution, principle) = (guide.constitution(), guide.principle(*principle));
        let language = written_in(request.language);
        let better = request.good();
        let (responses, letter) =
            if *better_first { ((&better, worse), 'A') } else { ((worse, &better), 'B') };
        let responses = (responses.0.as_str(), responses.1.as_str());
        let prompt = request.text.as_str();
        let asks = guide
            .made(constitution.comparison_turn(principle, language, prompt, responses, false))?;
        let answer = format!("{}{letter})", constitution.answer_prefix(language));
        let checker = json!({"exact": {"answer": answer}});
        let messages = vec![turn("user", asks), turn("assistant", answer)];
        Ok(turns("messages", messages, request, "comparison", split, checker))
    }
}
