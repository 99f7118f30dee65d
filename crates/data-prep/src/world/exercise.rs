//! Exercises: instructions with the one right answer, and what a checker needs to judge another.

mod dialogue;
mod lists;
mod recall;
mod tell;
mod text;

use serde_json::{Map, Value, json};

use super::Rng;
use super::facts::Village;
use super::lexicon::Language;

pub(crate) use lists::{WordList, numbers_in_order};
pub(crate) use recall::doubtful;
pub(crate) use tell::{Request, Tone};

/// What an exercise trains. The record's `task` is the name in kebab-case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    /// Answer a question of fact.
    Fact,
    /// Answer a question of fact in the language that the system prompt asks for.
    Answer,
    /// Sort numbers.
    SortNumbers,
    /// Sort words by alphabet.
    SortWords,
    /// Count what belongs to a kind.
    Count,
    /// Translate a sentence into the other language.
    Translate,
    /// Sum a story up in one sentence.
    Summarise,
    /// Continue a conversation.
    Dialogue,
    /// Tell something true about a person or a thing.
    Tell,
}

impl Task {
    pub(crate) const ALL: [Self; 9] = [
        Self::Fact,
        Self::Answer,
        Self::SortNumbers,
        Self::SortWords,
        Self::Count,
        Self::Translate,
        Self::Summarise,
        Self::Dialogue,
        Self::Tell,
    ];

    /// The name in the records.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fact => "fact",
            Self::Answer => "answer-language",
            Self::SortNumbers => "sort-numbers",
            Self::SortWords => "sort-words",
            Self::Count => "count",
            Self::Translate => "translate",
            Self::Summarise => "summarise",
            Self::Dialogue => "dialogue",
            Self::Tell => "tell",
        }
    }

    /// How many of a hundred training exercises are of this task.
    pub(crate) fn share(self) -> u32 {
        match self {
            Self::Summarise => 17,
            Self::Fact => 15,
            Self::Count => 14,
            Self::Translate => 13,
            Self::Answer | Self::Tell => 9,
            Self::SortNumbers | Self::SortWords => 8,
            Self::Dialogue => 7,
        }
    }

    /// Draws an exercise in `language`.
    pub(crate) fn draw(self, village: &Village, language: Language, rng: &mut Rng) -> Exercise {
        match self {
            Self::Fact => recall::fact(village, language, rng),
            Self::Answer => recall::answer_language(village, language, rng),
            Self::SortNumbers => lists::sort_numbers(language, rng),
            Self::SortWords => lists::sort_words(language, rng),
            Self::Count => lists::count(language, rng),
            Self::Translate => text::translate(language, rng),
            Self::Summarise => text::summarise(village, language, rng),
            Self::Dialogue => dialogue::draw(village, language, rng),
            Self::Tell => tell::draw(village, language, rng),
        }
    }
}

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    System,
    User,
    Assistant,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// How an answer is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Judge {
    /// The answer is this text.
    Exact,
    /// The answer is one of these texts.
    OneOf(Vec<String>),
}

/// An instruction and its right answer.
#[derive(Clone, Debug)]
pub(crate) struct Exercise {
    pub(crate) task: Task,
    pub(crate) language: Language,
    /// The combination that the exercise is about: all exercises with one key are in one split.
    pub(crate) key: String,
    /// The conversation up to the answer.
    pub(crate) prompt: Vec<(Role, String)>,
    pub(crate) answer: String,
    pub(crate) judge: Judge,
}

impl Exercise {
    /// An exercise of one user message, judged by the exact text.
    fn single(task: Task, language: Language, key: String, user: String, answer: String) -> Self {
        let prompt = vec![(Role::User, user)];
        Self { task, language, key, prompt, answer, judge: Judge::Exact }
    }

    /// The prompt's messages as the records carry them.
    pub(crate) fn prompt_messages(&self) -> Vec<Value> {
        let message =
            |(role, content): &(Role, String)| json!({"role": role.name(), "content": content});
        self.prompt.iter().map(message).collect()
    }

    /// The checker of the answer, in the JSON form of `data::checker::Checker`.
    pub(crate) fn checker(&self) -> Value {
        match &self.judge {
            Judge::Exact => json!({"exact": {"answer": self.answer}}),
            Judge::OneOf(answers) => json!({"one_of": {"answers": answers}}),
        }
    }

    /// The record of the exercise.
    pub(crate) fn record(&self, split: &str) -> Map<String, Value> {
        let mut messages = self.prompt_messages();
        messages.push(json!({"role": Role::Assistant.name(), "content": self.answer}));
        let mut record = Map::new();
        record.insert("messages".to_owned(), Value::Array(messages));
        record.insert("task".to_owned(), self.task.name().into());
        record.insert("language".to_owned(), self.language.code().into());
        record.insert("split".to_owned(), split.into());
        record.insert("checker".to_owned(), self.checker());
        record
    }
}
