//! The village paper: one or two stories and the notes it prints of them. Material to fine-tune on; the
//! form of the notes occurs in no other part.

use rand::Rng as _;
use serde_json::{Map, Value, json};

use super::Rng;
use super::draw::one;
use super::facts::Village;
use super::lexicon::Language;
use super::story::Story;
use super::stream::Drawn;

/// Stories and their notes.
pub(crate) struct Page {
    language: Language,
    key: String,
    text: String,
    notes: String,
}

impl Drawn for Page {
    type From = Village;

    fn draw(village: &Village, rng: &mut Rng) -> Self {
        let language = one(&Language::ALL, rng);
        let stories: Vec<Story> =
            (0..rng.random_range(1..=2)).map(|_| Story::draw(village, rng)).collect();
        let join = |texts: Vec<String>| texts.join(" ");
        Self {
            language,
            key: join(stories.iter().map(Story::key).collect()),
            text: join(stories.iter().map(|story| story.tell(language, rng)).collect()),
            notes: join(stories.iter().map(|story| story.note(language)).collect()),
        }
    }

    fn key(&self) -> &str {
        &self.key
    }

    fn identity(&self) -> String {
        self.text.clone()
    }

    fn record(self, split: &str) -> anyhow::Result<Map<String, Value>> {
        Ok(Map::from_iter([
            ("checker".to_owned(), json!({"exact": {"answer": self.notes}})),
            ("story".to_owned(), self.text.into()),
            ("summary".to_owned(), self.notes.into()),
            ("task".to_owned(), "paper".into()),
            ("language".to_owned(), self.language.code().into()),
            ("split".to_owned(), split.into()),
        ]))
    }
}
