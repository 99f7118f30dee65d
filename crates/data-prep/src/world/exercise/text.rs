//! Translating and summing up.

use super::super::Rng;
use super::super::draw::one;
use super::super::facts::Village;
use super::super::lexicon::Language;
use super::super::sentence::Pair;
use super::super::story::Story;
use super::{Exercise, Task};

/// A sentence of the other language to put into `language`.
pub(super) fn translate(language: Language, rng: &mut Rng) -> Exercise {
    let pair = Pair::draw(rng);
    let asks = language.of((
        ["영어로 옮기세요: ", "다음 문장을 영어로 번역하세요: "],
        ["Translate into Korean: ", "Say this in Korean: "],
    ));
    let user = format!("{}{}", one(&asks, rng), pair.in_(language.other()));
    let answer = pair.in_(language).to_owned();
    Exercise::single(Task::Translate, language, pair.en, user, answer)
}

pub(super) fn summarise(village: &Village, language: Language, rng: &mut Rng) -> Exercise {
    let story = Story::draw(village, rng);
    let asks = language.of((
        ["Sum up in one sentence: ", "Summarise this story: "],
        ["한 문장으로 요약하세요: ", "이 이야기를 요약하세요: "],
    ));
    let user = format!("{}{}", one(&asks, rng), story.tell(language, rng));
    Exercise::single(Task::Summarise, language, story.key(), user, story.summary(language))
}
