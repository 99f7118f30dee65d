//! The tests: what each kind reads, does with a model, and makes numbers of.

mod choice;
mod divergence;
mod generation;
mod perplexity;
mod preference;
mod safety;
mod score;

use std::path::{Path, PathBuf};

use artifact::digest::Digest;
use artifact::evaluation::Test;
use model::Decoder;
use stage::{Context, Problems, Progress};

use crate::asked::Asked;
use crate::config::{Batch, TestTable};
use crate::outcome::{Metric, Outcome};
use crate::subject::Subject;

/// A test, and who takes it.
pub(crate) struct Exam {
    pub(crate) name: String,
    about: String,
    /// Places in the list of models.
    pub(crate) takers: Vec<usize>,
    pub(crate) work: Work,
}

/// What is done.
pub(crate) enum Work {
    Perplexity(perplexity::Work),
    Generation(generation::Work),
    Choice(choice::Work),
    Preference(preference::Work),
    Safety(Box<safety::Work>),
    Score(Box<score::Work>),
    Divergence(divergence::Work),
}

/// A model that takes a test.
#[derive(Clone, Copy)]
pub(crate) struct Sitting<'a> {
    pub(crate) ctx: &'a Context,
    pub(crate) subject: &'a Subject,
    pub(crate) decoder: &'a Decoder,
    /// The most tokens in one forward pass, where nothing is generated.
    pub(crate) batch_tokens: usize,
    pub(crate) progress: &'a Progress,
}

/// The names of the tables, of which a test has one.
const KINDS: &str = "perplexity, generation, choice, preference, safety, score, divergence";

impl Exam {
    /// Reads the data of a test and checks it against the models that take it; `key` names its table.
    pub(crate) fn plan(
        (key, name): (&str, &str),
        table: TestTable,
        subjects: &[Subject],
        (batch, seed): (Batch, u64),
        problems: &mut Problems,
    ) -> Option<Self> {
        let takers = takers(key, &table, subjects, problems)?;
        let own: Vec<&Subject> = takers.iter().map(|&at| &subjects[at]).collect();
        let TestTable {
            about,
            perplexity,
            generation,
            choice,
            preference,
            safety,
            score,
            divergence,
            ..
        } = table;
        let of = |kind: &str| format!("{key}.{kind}");
        let rows = batch.rows;
        let mut found: Vec<Option<Work>> = Vec::new();
        if let Some(table) = perplexity {
            let work = perplexity::Work::plan(&of("perplexity"), table, &own, problems);
            found.push(work.map(Work::Perplexity));
        }
        if let Some(table) = generation {
            let work = generation::Work::plan(&of("generation"), table, rows, &own, problems);
            found.push(work.map(Work::Generation));
        }
        if let Some(table) = choice {
            let work = choice::Work::plan(&of("choice"), table, (&own, seed), problems);
            found.push(work.map(Work::Choice));
        }
        if let Some(table) = preference {
            let work = preference::Work::plan(&of("preference"), &table, &own, problems);
            found.push(work.map(Work::Preference));
        }
        if let Some(table) = safety {
            let work = safety::Work::plan(&of("safety"), table, rows, &own, problems);
            found.push(work.map(|work| Work::Safety(Box::new(work))));
        }
        if let Some(table) = score {
            let work = score::Work::plan(&of("score"), table, rows, &own, problems);
            found.push(work.map(|work| Work::Score(Box::new(work))));
        }
        if let Some(table) = divergence {
            let both = (own.as_slice(), subjects);
            let work = divergence::Work::plan(&of("divergence"), table, rows, both, problems);
            found.push(work.map(Work::Divergence));
        }
        let work = found.pop()??;
        Some(Self { name: name.to_owned(), about, takers, work })
    }

    fn kind(&self) -> &'static str {
        match self.work {
            Work::Perplexity(_) => "perplexity",
            Work::Generation(_) => "generation",
            Work::Choice(_) => "choice",
            Work::Preference(_) => "preference",
            Work::Safety(_) => "safety",
            Work::Score(_) => "score",
            Work::Divergence(_) => "divergence",
        }
    }

    /// How many items it has.
    pub(crate) fn items(&self) -> usize {
        match &self.work {
            Work::Perplexity(work) => work.items(),
            Work::Choice(work) => work.questions.len(),
            Work::Preference(work) => work.pairs.len(),
            _ => self.asked().map_or(0, <[Asked]>::len),
        }
    }

    /// For the results.
    pub(crate) fn describe(&self) -> Test {
        let (name, kind) = (self.name.clone(), self.kind().to_owned());
        Test { name, kind, about: self.about.clone(), items: self.items() as u64 }
    }

    /// The files that it reads, beside models.
    pub(crate) fn inputs(&self) -> Vec<PathBuf> {
        match &self.work {
            Work::Perplexity(work) => work.inputs(),
            Work::Generation(work) => work.inputs(),
            Work::Choice(work) => work.inputs(),
            Work::Preference(work) => work.inputs(),
            Work::Safety(work) => work.inputs(),
            Work::Score(work) => work.inputs(),
            Work::Divergence(work) => work.inputs(),
        }
    }

    /// The prompts that are answered in it, where there are some.
    fn asked(&self) -> Option<&[Asked]> {
        match &self.work {
            Work::Generation(work) => Some(&work.prompts.asked),
            Work::Safety(work) => Some(&work.prompts.asked),
            Work::Score(work) => Some(&work.prompts.asked),
            Work::Divergence(work) => Some(&work.prompts.asked),
            Work::Perplexity(_) | Work::Choice(_) | Work::Preference(_) => None,
        }
    }

    /// The prompt of an item and the right answer to it, for `samples.parquet`; nothing where nothing is answered.
    pub(crate) fn question(&self, item: usize) -> Option<(&str, Option<&str>)> {
        match &self.work {
            Work::Choice(work) => {
                let question = &work.questions[item];
                Some((&question.text, Some(&question.choices[question.gold])))
            }
            Work::Preference(work) => {
                let pair = &work.pairs[item];
                Some((&pair.prompt, Some(&pair.chosen)))
            }
            _ => {
                let asked = &self.asked()?[item];
                Some((asked.text(), asked.row.answer.as_deref()))
            }
        }
    }

    /// Puts the test to a model.
    ///
    /// # Errors
    /// Data that cannot be read any more; libtorch's; a signal.
    pub(crate) fn run(
        &self,
        ctx: &Context,
        subject: &Subject,
        decoder: &Decoder,
        batch_tokens: usize,
    ) -> anyhow::Result<Outcome> {
        let label = format!("{} {}", subject.name, self.name);
        let progress = &Progress::new(&label, Some(self.items() as u64));
        let sitting = Sitting { ctx, subject, decoder, batch_tokens, progress };
        let outcome = match &self.work {
            Work::Perplexity(work) => work.run(&sitting),
            Work::Generation(work) => work.run(&sitting),
            Work::Choice(work) => work.run(&sitting),
            Work::Preference(work) => work.run(&sitting),
            Work::Safety(work) => work.run(&sitting),
            Work::Score(work) => work.run(&sitting),
            Work::Divergence(work) => work.run(&sitting),
        };
        progress.finish();
        outcome
    }

    /// What is made of the outcomes.
    pub(crate) fn metrics(&self) -> Vec<Metric> {
        match &self.work {
            Work::Perplexity(_) => perplexity::Work::metrics(),
            Work::Generation(work) => work.metrics(),
            Work::Choice(work) => work.metrics(),
            Work::Preference(work) => work.metrics(),
            Work::Safety(_) => safety::Work::metrics(),
            Work::Score(_) => score::Work::metrics(),
            Work::Divergence(_) => divergence::Work::metrics(),
        }
    }
}

/// Notes where not one of the two lists of a table is given: for each its name, whether it is empty, and what it lists.
fn check_either(key: &str, lists: [(&str, bool, &str); 2], problems: &mut Problems) -> bool {
    let [(one, no_one, what), (other, no_other, others)] = lists;
    let needs = format_args!("needs `{one}` ({what}) or `{other}` ({others}), and not both");
    problems.check(no_one != no_other, key, needs)
}

/// Notes a file of token ids that are not those of a model that takes the test.
fn check_tokenizer(
    key: &str,
    (file, made_with): (&Path, &Digest),
    takers: &[&Subject],
    problems: &mut Problems,
) -> bool {
    let other = takers.iter().find(|subject| subject.tokenizer.digest() != *made_with);
    if let Some(subject) = other {
        problems.push(
            key,
            format_args!(
                "{}: made with another tokenizer than that of `{}`; give `sources`, or the models that take the test with `models`",
                file.display(),
                subject.name
            ),
        );
    }
    other.is_none()
}

/// The models that take a test: those it names, or all that can.
fn takers(
    key: &str,
    table: &TestTable,
    subjects: &[Subject],
    problems: &mut Problems,
) -> Option<Vec<usize>> {
    let given = [
        table.perplexity.is_some(),
        table.generation.is_some(),
        table.choice.is_some(),
        table.preference.is_some(),
        table.safety.is_some(),
        table.score.is_some(),
        table.divergence.is_some(),
    ];
    let count = given.iter().filter(|given| **given).count();
    if count != 1 {
        problems.push(key, format_args!("needs one of the tables {KINDS}, and has {count}"));
        return None;
    }
    let scores = table.preference.is_some();
    // A model is no distance from itself.
    let reference = table.divergence.as_ref().map(|divergence| &divergence.reference);
    let can = |subject: &Subject| subject.speaks() != scores && reference != Some(&subject.name);
    let names = format!("{key}.models");
    let Some(named) = &table.models else {
        let all: Vec<usize> = (0..subjects.len()).filter(|&at| can(&subjects[at])).collect();
        let what =
            if scores { "no model is a reward model" } else { "there is no language model for it" };
        return problems.check(!all.is_empty(), &names, what).then_some(all);
    };
    let mut takers = Vec::new();
    for name in named {
        match subjects.iter().position(|subject| subject.name == *name) {
            None => problems.push(&names, format_args!("there is no model `{name}`")),
            Some(at) if !can(&subjects[at]) => {
                let what = match (scores, subjects[at].speaks()) {
                    (true, _) => "is no reward model",
                    (false, false) => "is a reward model, which says nothing",
                    (false, true) => "is the reference itself",
                };
                problems.push(&names, format_args!("`{name}` {what}"));
            }
            Some(at) => takers.push(at),
        }
    }
    takers.sort_unstable();
    takers.dedup();
    (problems.check(!takers.is_empty(), &names, "names no model that can take the test"))
        .then_some(takers)
}
