//! The instruction records: exercises of all tasks in both languages, no prompt twice.

use rand::Rng as _;
use serde_json::{Map, Value};

use super::draw::one;
use super::exercise::{Exercise, Task};
use super::facts::Village;
use super::lexicon::Language;
use super::stream::{Seen, TRIES};
use super::{Rng, Split, WorldSpec, random_stream};

/// Draws exercises, each prompt once.
struct Exercises {
    village: Village,
    split: Split,
    rng: Rng,
    seen: Seen,
    /// The tasks that still bring something new, each with its share.
    tasks: Vec<(Task, u32)>,
    held_out: bool,
}

impl Exercises {
    fn new(village: Village, split: Split, seed: u64, held_out: bool) -> Self {
        let (name, even) = if held_out { ("held-out", true) } else { ("instructions", false) };
        let share = |task: Task| (task, if even { 1 } else { task.share() });
        let tasks = Task::ALL.map(share).to_vec();
        let seen = Seen::default();
        Self { village, split, rng: random_stream(seed, name), seen, tasks, held_out }
    }

    /// An exercise of `task` that was not drawn before and belongs to this split.
    fn fresh(&mut self, task: Task) -> Option<Exercise> {
        for _ in 0..TRIES {
            let language = one(&Language::ALL, &mut self.rng);
            let exercise = task.draw(&self.village, language, &mut self.rng);
            if self.split.holds_out(&exercise.key) == self.held_out
                && self.seen.first(&format!("{:?}", exercise.prompt))
            {
                return Some(exercise);
            }
        }
        None
    }
}

impl Iterator for Exercises {
    type Item = Exercise;

    fn next(&mut self) -> Option<Exercise> {
        while !self.tasks.is_empty() {
            let total: u32 = self.tasks.iter().map(|(_, share)| share).sum();
            let mut ticket = self.rng.random_range(0..total);
            let mut at = 0;
            while ticket >= self.tasks[at].1 {
                ticket -= self.tasks[at].1;
                at += 1;
            }
            if let Some(exercise) = self.fresh(self.tasks[at].0) {
                return Some(exercise);
            }
            self.tasks.remove(at);
        }
        None
    }
}

/// The training records and then the held-out ones.
pub(crate) fn records(
    village: Village,
    split: Split,
    spec: &WorldSpec,
) -> impl Iterator<Item = Map<String, Value>> + Send + use<> {
    let train = Exercises::new(village.clone(), split, spec.seed, false);
    let held_out = Exercises::new(village, split, spec.seed, true);
    let train = train.take(spec.records).map(|exercise| exercise.record("train"));
    train.chain(held_out.take(spec.held_out).map(|exercise| exercise.record("held-out")))
}
