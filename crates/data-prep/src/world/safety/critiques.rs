//! Answers with what a critic says of them by a principle, and, where something is wrong, the better answer.

use rand::Rng as _;
use serde_json::{Map, Value, json};

use super::super::Rng;
use super::super::stream::Drawn;
use super::guide::written_in;
use super::{Guide, NO_PROBLEM, Request, turn, turns};

/// How many requests are unsafe, and how many of their answers are bad: 55 in 100 answers have a problem.
const UNSAFE: f64 = 0.75;
const BAD: f64 = 0.55 / UNSAFE;

/// How many bad answers are corrected at once, without a critique.
const DIRECT: f64 = 0.25;

/// What becomes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    /// A good answer: the critic finds nothing.
    Accepted,
    /// A bad one, criticised and corrected.
    Criticised,
    /// A bad one, corrected at once.
    Corrected,
}

/// An answer to a request, and the principle that it is judged by.
pub(in super::super) struct Criticised {
    request: Request,
    course: Course,
    guide: Guide,
    principle: usize,
}

impl Drawn for Criticised {
    type From = Guide;

    fn draw(guide: &Guide, rng: &mut Rng) -> Self {
        let request = Request::draw_one(UNSAFE, rng);
        let course = if request.bad().is_none() || !rng.random_bool(BAD) {
            Course::Accepted
        } else if rng.random_bool(DIRECT) {
            Course::Corrected
        } else {
            Course::Criticised
        };
        Self { request, course, guide: guide.clone(), principle: guide.draw(rng) }
    }

    fn key(&self) -> &str {
        self.request.key()
    }

    fn identity(&self) -> String {
        format!("{}\n{:?}\n{}", self.request.text, self.course, self.principle)
    }

    fn record(self, split: &str) -> anyhow::Result<Map<String, Value>> {
        let Self { request, course, guide, principle } = &self;
        let (constitution, principle) = (guide.constitution(), guide.principle(*principle));
        let language = written_in(request.language);
        let prompt = request.text.as_str();
        let answer = match (course, request.bad()) {
            (Course::Criticised | Course::Corrected, Some(bad)) => bad,
            _ => request.good(),
        };
        let mut shown = turn("assistant", answer.as_str());
        // It is there to be judged, not to be learned.
        shown["train"] = Value::Bool(false);
        let mut messages = vec![turn("user", prompt), shown];
        let accepted = *course == Course::Accepted;
        let critique = match course {
            Course::Accepted => Some(request.say(NO_PROBLEM)),
            Course::Criticised => Some(request.critique()),
            Course::Corrected => None,
        };
        if let Some(critique) = &critique {
            let asks =
                guide.made(constitution.critique_turn(principle, language, prompt, &answer))?;
            messages.extend([turn("user", asks), turn("assistant", critique.as_str())]);
        }
        if accepted {
            let checker = json!({"exact": {"answer": critique}});
            return Ok(turns("messages", messages, request, "critique", split, checker));
        }
        let critique = critique.as_deref();
        let asks = guide
            .made(constitution.revision_turn(principle, language, prompt, &answer, critique))?;
        messages.extend([turn("user", asks), turn("assistant", request.good())]);
        Ok(turns("messages", messages, request, "revision", split, request.checker()))
    }
}
