//! Short stories in both languages, each with the one sentence that sums it up.

use rand::Rng as _;

use super::Rng;
use super::draw::{one, two};
use super::facts::{Kind, Village};
use super::hangul::{capitalised, fill};
use super::lexicon::{FOODS, Language, PEOPLE, PLACES, Slots};

/// One step of a story: ways of telling it, in English and Korean.
type Beat = (&'static [&'static str], &'static [&'static str]);

/// The course of a story.
#[derive(Debug)]
struct Arc {
    beats: &'static [Beat],
    summary: (&'static str, &'static str),
    headline: (&'static str, &'static str),
    /// The facts of the first person that the story tells of.
    facts: &'static [Kind],
}

const OPENINGS: Beat = (
    &["It was a warm day.", "It was a quiet morning.", "The sun was out.", "The wind was soft."],
    &["따뜻한 날이었어요.", "조용한 아침이었어요.", "해가 밝았어요.", "바람이 부드러웠어요."],
);

const CLOSINGS: Beat = (
    &[
        "Everyone was glad.",
        "It was a good day.",
        "They laughed for a long time.",
        "They went home late.",
    ],
    &["모두 기뻐했어요.", "좋은 하루였어요.", "둘은 오래 웃었어요.", "둘은 늦게 집에 갔어요."],
);

/// All stories of the village.
static ARCS: [Arc; 8] = [
    Arc {
        beats: &[
            (
                &[
                    "{who} took the {colour} {object} to the {place}.",
                    "{who} went to the {place} with the {colour} {object}.",
                ],
                &[
                    "{who:은} {colour} {object:을} {place:으로} 가져갔어요.",
                    "{who:은} {colour} {object:을} 들고 {place}에 갔어요.",
                ],
            ),
            (
                &["In the evening it was gone.", "Then it was not there any more."],
                &["저녁에 보니 없어졌어요.", "그런데 어느새 사라졌어요."],
            ),
            (
                &[
                    "{friend} looked under every tree and found it.",
                    "{friend} searched and found it.",
                ],
                &["{friend:이} 나무 밑을 살펴서 찾았어요.", "{friend:이} 열심히 찾아냈어요."],
            ),
        ],
        summary: (
            "{friend} found {who}'s {object} at the {place}.",
            "{friend:이} {place}에서 {who}의 {object:을} 찾았어요.",
        ),
        headline: ("A thing lost and found", "잃었다 찾은 물건"),
        facts: &[Kind::Treasure],
    },
    Arc {
        beats: &[
            (
                &[
                    "{who}'s {colour} {animal} ran away to the {place}.",
                    "The {colour} {animal} of {who} ran off to the {place}.",
                ],
                &[
                    "{who}의 {colour} {animal:이} {place:으로} 달아났어요.",
                    "{who:이} 키우는 {colour} {animal:이} {place:으로} 도망갔어요.",
                ],
            ),
            (
                &["{who} was sad.", "{who} called and called."],
                &["{who:은} 슬펐어요.", "{who:은} 부르고 또 불렀어요."],
            ),
            (
                &[
                    "{friend} saw it there and led it home.",
                    "{friend} went there and carried it back.",
                ],
                &["{friend:이} 거기서 보고 데려왔어요.", "{friend:이} 거기로 가서 안고 왔어요."],
            ),
        ],
        summary: (
            "{friend} brought {who}'s {animal} home from the {place}.",
            "{friend:이} {place}에서 {who}의 {animal:을} 데려왔어요.",
        ),
        headline: ("The {animal} comes home", "돌아온 {animal}"),
        facts: &[Kind::Pet],
    },
    Arc {
        beats: &[
            (
                &["{friend} was tired and hungry.", "{friend} had worked all day."],
                &["{friend:은} 지치고 배가 고팠어요.", "{friend:은} 하루 종일 일했어요."],
            ),
            (
                &["{who} bought {food}.", "{who} packed some {food}."],
                &["{who:은} {food:을} 샀어요.", "{who:은} {food:을} 쌌어요."],
            ),
            (
                &[
                    "The two met at the {place} and ate.",
                    "They sat down at the {place} and shared it.",
                ],
                &["둘은 {place}에서 만나 먹었어요.", "둘은 {place}에 앉아 나누었어요."],
            ),
        ],
        summary: (
            "{who} gave {food} to {friend} at the {place}.",
            "{who:이} {place}에서 {friend}에게 {food:을} 주었어요.",
        ),
        headline: ("A meal for a friend", "친구와 나눈 음식"),
        facts: &[],
    },
    Arc {
        beats: &[
            (
                &["{who} was at the {place} all day.", "{who} walked alone to the {place}."],
                &[
                    "{who:은} 하루 종일 {place}에 있었어요.",
                    "{who:은} 혼자 {place:으로} 걸어갔어요.",
                ],
            ),
            (
                &["Suddenly it began to rain.", "Dark clouds came and it rained."],
                &["갑자기 비가 내렸어요.", "먹구름이 오고 비가 왔어요."],
            ),
            (
                &["{friend} came with a big umbrella.", "{friend} ran there with an umbrella."],
                &["{friend:이} 큰 우산을 들고 왔어요.", "{friend:이} 우산을 들고 달려왔어요."],
            ),
        ],
        summary: (
            "{friend} brought an umbrella to {who} at the {place}.",
            "{friend:이} {place}에 있는 {who}에게 우산을 가져다주었어요.",
        ),
        headline: ("Help in the rain", "빗속의 도움"),
        facts: &[],
    },
    Arc {
        beats: &[
            (
                &[
                    "{who} and {friend} ran a race to the {place}.",
                    "{who} raced {friend} to the {place}.",
                ],
                &[
                    "{who:과} {friend:은} {place}까지 달리기를 했어요.",
                    "{who:은} {friend:과} {place}까지 달렸어요.",
                ],
            ),
            (
                &["At first {who} was ahead.", "{who} was fast at the start."],
                &["처음에는 {who:이} 앞섰어요.", "{who:은} 처음에 빨랐어요."],
            ),
            (
                &[
                    "But {who} fell, and {friend} ran past.",
                    "In the end {friend} was a step faster.",
                ],
                &[
                    "하지만 {who:이} 넘어져 {friend:이} 앞질렀어요.",
                    "끝에는 {friend:이} 한 걸음 빨랐어요.",
                ],
            ),
        ],
        summary: (
            "{friend} won the race against {who} to the {place}.",
            "{friend:이} {place}까지 가는 달리기에서 {who:을} 이겼어요.",
        ),
        headline: ("A close race", "아슬아슬한 경주"),
        facts: &[],
    },
    Arc {
        beats: &[
            (
                &["{who} and {friend} made a plan.", "{who} asked {friend} for help."],
                &[
                    "{who:과} {friend:은} 계획을 세웠어요.",
                    "{who:은} {friend}에게 도움을 청했어요.",
                ],
            ),
            (
                &["They cooked a lot of {food}.", "They filled a pot with {food}."],
                &["둘은 {food:을} 많이 만들었어요.", "둘은 냄비에 {food:을} 가득 담았어요."],
            ),
            (
                &[
                    "All the village ate at the {place}.",
                    "They took it to the {place} for everyone.",
                ],
                &["온 마을이 {place}에서 먹었어요.", "모두를 위해 {place:으로} 가져갔어요."],
            ),
        ],
        summary: (
            "{who} and {friend} made {food} for everyone at the {place}.",
            "{who:과} {friend:이} {place}에서 모두를 위해 {food:을} 만들었어요.",
        ),
        headline: ("A feast for all", "모두의 잔치"),
        facts: &[],
    },
    Arc {
        beats: &[
            (
                &["{who} is good at {hobby}.", "Nobody loves {hobby} like {who}."],
                &["{who:은} {hobby:을} 잘해요.", "{who:은} {hobby:을} 무척 좋아해요."],
            ),
            (
                &["{friend} wanted to learn it.", "\"Teach me, please,\" said {friend}."],
                &[
                    "{friend:은} 그것을 배우고 싶었어요.",
                    "\"가르쳐 주세요.\" {friend:이} 말했어요.",
                ],
            ),
            (
                &["They practised at the {place}.", "They met at the {place} every day."],
                &["둘은 {place}에서 연습했어요.", "둘은 날마다 {place}에서 만났어요."],
            ),
        ],
        summary: (
            "{friend} learned {hobby} from {who} at the {place}.",
            "{friend:이} {place}에서 {who}에게 {hobby:을} 배웠어요.",
        ),
        headline: ("Lessons in {hobby}", "{hobby} 배우기"),
        facts: &[Kind::Hobby],
    },
    Arc {
        beats: &[
            (
                &[
                    "The {landmark} at the {place} was broken.",
                    "A storm broke the {landmark} at the {place}.",
                ],
                &[
                    "{place}에 있는 {landmark:이} 부서졌어요.",
                    "폭풍에 {place}의 {landmark:이} 망가졌어요.",
                ],
            ),
            (
                &["{who} brought wood and nails.", "{who} came with tools."],
                &["{who:은} 나무와 못을 가져왔어요.", "{who:은} 연장을 들고 왔어요."],
            ),
            (
                &["{friend} helped until it was done.", "With {friend} the work was soon done."],
                &["{friend:은} 끝까지 도왔어요.", "{friend:과} 함께하니 일이 금방 끝났어요."],
            ),
        ],
        summary: (
            "{who} and {friend} repaired the {landmark} at the {place}.",
            "{who:과} {friend:이} {place}의 {landmark:을} 고쳤어요.",
        ),
        headline: ("The {landmark} repaired", "다시 고친 {landmark}"),
        facts: &[],
    },
];

/// A story: what happened, to whom and where.
#[derive(Clone, Debug)]
pub(crate) struct Story {
    arc: &'static Arc,
    slots: Slots,
}

impl Story {
    /// Draws what happens; people keep the animals, treasures and hobbies they have in `village`.
    pub(crate) fn draw(village: &Village, rng: &mut Rng) -> Self {
        let index = rng.random_range(0..ARCS.len());
        let arc = &ARCS[index];
        let (who, friend) = two(PEOPLE, rng);
        let place = one(PLACES, rng);
        let mut slots = Slots::new().word("who", who).word("friend", friend).word("place", place);
        slots = slots.word("food", one(FOODS, rng));
        let told = arc.facts.iter().map(|&kind| (kind, who.en));
        for (kind, subject) in told.chain([(Kind::Landmark, place.en)]) {
            if let Some(fact) = village.fact(kind, subject) {
                slots = slots.and(&fact.slots);
            }
        }
        Self { arc, slots }
    }

    /// What names the story, whatever the words and the language it is told in.
    pub(crate) fn key(&self) -> String {
        self.summary(Language::En)
    }

    /// Tells the story.
    pub(crate) fn tell(&self, language: Language, rng: &mut Rng) -> String {
        let mut beats: Vec<&Beat> = self.arc.beats.iter().collect();
        if rng.random_bool(0.5) {
            beats.insert(0, &OPENINGS);
        }
        if rng.random_bool(0.5) {
            beats.push(&CLOSINGS);
        }
        let sentences: Vec<String> = beats
            .into_iter()
            .map(|beat| self.fill(one(language.of(*beat), rng), language))
            .collect();
        sentences.join(" ")
    }

    /// The one sentence that sums the story up.
    pub(crate) fn summary(&self, language: Language) -> String {
        self.fill(language.of(self.arc.summary), language)
    }

    /// The note that the village paper prints: what, where, who.
    pub(crate) fn note(&self, language: Language) -> String {
        let headline = language.of(self.arc.headline);
        let rest = language.of((
            "Place: {place}. People: {who}, {friend}.",
            "곳: {place}. 사람: {who}, {friend}.",
        ));
        self.fill(&format!("{headline}. {rest}"), language)
    }

    fn fill(&self, template: &str, language: Language) -> String {
        capitalised(&fill(template, language, &self.slots))
    }
}
