//! Requests to tell something of someone, without answers: what a policy is to answer as the preferences like it.

use serde_json::{Map, Value, json};

use super::Rng;
use super::draw::one;
use super::exercise::{Request, Task, Tone};
use super::facts::Village;
use super::lexicon::Language;
use super::stream::Drawn;

/// A request, and the answers that are kind and true.
pub(crate) struct Asked {
    language: Language,
    key: String,
    text: String,
    best: Vec<String>,
}

impl Drawn for Asked {
    type From = Village;

    fn draw(village: &Village, rng: &mut Rng) -> Self {
        let language = one(&Language::ALL, rng);
        let request = Request::draw(village, language, rng);
        let best = request.true_answers(&[Tone::Warm]);
        Self { language, key: request.key(), text: request.text, best }
    }

    fn key(&self) -> &str {
        &self.key
    }

    fn identity(&self) -> String {
        self.text.clone()
    }

    fn record(self, split: &str) -> anyhow::Result<Map<String, Value>> {
        Ok(Map::from_iter([
            ("prompt".to_owned(), json!([{"role": "user", "content": self.text}])),
            ("task".to_owned(), Task::Tell.name().into()),
            ("language".to_owned(), self.language.code().into()),
            ("split".to_owned(), split.into()),
            ("checker".to_owned(), json!({"one_of": {"answers": self.best}})),
        ]))
    }
}
