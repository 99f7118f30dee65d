//! What is true in the village: one value for every subject and kind of fact, drawn from the seed
//! where common sense does not settle it.

use rand::Rng as _;
use rand::seq::SliceRandom as _;

use super::Rng;
use super::draw::one;
use super::forms::{Forms, forms};
use super::hangul::{capitalised, fill};
use super::lexicon::{
    ANIMALS, BEDS, COLOUR_NAMES, COLOURS, DIRECTIONS, FODDER, FOOD_COLOURS, FOODS, FUR_COLOURS,
    HOBBIES, JOBS, LANDMARKS, Language, MATERIALS, OBJECTS, PEOPLE, PLACES, Slots, Word,
};

/// What a fact says about its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Age,
    Job,
    Home,
    Pet,
    /// The pet's fact asked from the other side: whose is it?
    PetOwner,
    Treasure,
    /// The treasure's fact asked from the other side.
    TreasureOwner,
    Food,
    Colour,
    Friend,
    Hobby,
    Eats,
    Sleeps,
    FoodColour,
    Price,
    Shop,
    Material,
    Kept,
    Direction,
    Landmark,
}

/// One true thing about one subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fact {
    pub(crate) kind: Kind,
    /// The English name of what the fact is about; facts with the same subject tell of one thing.
    pub(crate) subject: &'static str,
    pub(crate) slots: Slots,
}

impl Fact {
    fn forms(&self) -> &'static Forms {
        forms(self.kind)
    }

    fn say(&self, template: &str, language: Language) -> String {
        capitalised(&fill(template, language, &self.slots))
    }

    /// The fact in one of the ways of saying it.
    pub(crate) fn statement(&self, language: Language, rng: &mut Rng) -> String {
        let templates = language.of(self.forms().statements);
        self.say(one(templates, rng), language)
    }

    /// All ways of saying the fact.
    pub(crate) fn statements(&self, language: Language) -> Vec<String> {
        let templates = language.of(self.forms().statements);
        templates.iter().map(|template| self.say(template, language)).collect()
    }

    /// All ways of asking for the fact.
    pub(crate) fn questions(&self, language: Language) -> Vec<String> {
        let templates = language.of(self.forms().questions);
        templates.iter().map(|template| self.say(template, language)).collect()
    }

    /// The one answer to any of the questions.
    pub(crate) fn answer(&self, language: Language) -> String {
        self.say(language.of(self.forms().answer), language)
    }

    /// What the fact would say if it were one about the subject of `other`, a fact of a like
    /// subject.
    pub(crate) fn told_of(&self, other: &Self) -> Self {
        Self { slots: self.slots.with_first_of(&other.slots), ..self.clone() }
    }

    /// What names the fact among all facts.
    pub(crate) fn key(&self) -> String {
        format!("{:?}/{}", self.kind, self.subject)
    }
}

/// The facts about one subject.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    pub(crate) facts: Vec<Fact>,
}

impl Profile {
    /// All ways of saying all facts.
    pub(crate) fn statements(&self, language: Language) -> Vec<String> {
        self.facts.iter().flat_map(|fact| fact.statements(language)).collect()
    }
}

/// The village: all its facts.
#[derive(Clone, Debug)]
pub(crate) struct Village {
    /// One profile for every person, in the order of [`PEOPLE`].
    pub(crate) people: Vec<Profile>,
    /// One profile for every animal, food, object and place.
    pub(crate) things: Vec<Profile>,
}

impl Village {
    /// The village of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        let rng = &mut super::random_stream(seed, "village");
        Self { people: people(rng), things: things(rng) }
    }

    pub(crate) fn profiles(&self) -> impl Iterator<Item = &Profile> {
        self.people.iter().chain(&self.things)
    }

    pub(crate) fn facts(&self) -> impl Iterator<Item = &Fact> {
        self.profiles().flat_map(|profile| &profile.facts)
    }

    /// The fact of `kind` about `subject`.
    pub(crate) fn fact(&self, kind: Kind, subject: &str) -> Option<&Fact> {
        self.facts().find(|fact| fact.kind == kind && fact.subject == subject)
    }
}

/// `count` values of `words`, each as often as the others, in random order.
fn dealt(words: &[Word], count: usize, rng: &mut Rng) -> Vec<Word> {
    let mut hand: Vec<Word> = words.iter().copied().cycle().take(count).collect();
    hand.shuffle(rng);
    hand
}

/// `count` different pairs of the first `colours` colours and `things`.
fn coloured(things: &[Word], colours: usize, count: usize, rng: &mut Rng) -> Vec<(Word, Word)> {
    let mut pairs: Vec<(Word, Word)> = (0..colours)
        .flat_map(|colour| things.iter().map(move |thing| (COLOURS[colour], *thing)))
        .collect();
    pairs.shuffle(rng);
    pairs.truncate(count);
    pairs
}

fn people(rng: &mut Rng) -> Vec<Profile> {
    let count = PEOPLE.len();
    let jobs = dealt(JOBS, count, rng);
    let homes = dealt(PLACES, count, rng);
    let pets = coloured(ANIMALS, FUR_COLOURS, count, rng);
    let treasures = coloured(OBJECTS, COLOURS.len(), count, rng);
    let foods = dealt(FOODS, count, rng);
    let colours = dealt(COLOUR_NAMES, count, rng);
    let hobbies = dealt(HOBBIES, count, rng);
    let friends = friends(rng);
    let mut profiles = Vec::with_capacity(count);
    for (i, person) in PEOPLE.iter().enumerate() {
        let who = || Slots::new().word("who", *person);
        let pet = || who().word("colour", pets[i].0).word("animal", pets[i].1);
        let treasure = || who().word("colour", treasures[i].0).word("object", treasures[i].1);
        let slots = [
            (Kind::Age, who().number("age", rng.random_range(20..70))),
            (Kind::Job, who().word("job", jobs[i])),
            (Kind::Home, who().word("place", homes[i])),
            (Kind::Pet, pet()),
            (Kind::PetOwner, pet()),
            (Kind::Treasure, treasure()),
            (Kind::TreasureOwner, treasure()),
            (Kind::Food, who().word("food", foods[i])),
            (Kind::Colour, who().word("colour", colours[i])),
            (Kind::Friend, who().word("friend", friends[i])),
            (Kind::Hobby, who().word("hobby", hobbies[i])),
        ];
        profiles.push(profile(person.en, slots));
    }
    profiles
}

/// Everyone's best friend: the next one on a round through the village.
fn friends(rng: &mut Rng) -> Vec<Word> {
    let mut round: Vec<usize> = (0..PEOPLE.len()).collect();
    round.shuffle(rng);
    let mut friends = PEOPLE.to_vec();
    for (at, &person) in round.iter().enumerate() {
        friends[person] = PEOPLE[round[(at + 1) % round.len()]];
    }
    friends
}

fn things(rng: &mut Rng) -> Vec<Profile> {
    let mut profiles = Vec::new();
    for (i, animal) in ANIMALS.iter().enumerate() {
        let slots = || Slots::new().word("animal", *animal);
        let eats = (Kind::Eats, slots().word("fodder", FODDER[i]));
        profiles.push(profile(animal.en, [eats, (Kind::Sleeps, slots().word("bed", BEDS[i]))]));
    }
    let shops = dealt(PLACES, FOODS.len(), rng);
    for (i, food) in FOODS.iter().enumerate() {
        let slots = || Slots::new().word("food", *food);
        let colour = (Kind::FoodColour, slots().word("colour", FOOD_COLOURS[i]));
        let price = (Kind::Price, slots().number("price", rng.random_range(2..10)));
        let shop = (Kind::Shop, slots().word("place", shops[i]));
        profiles.push(profile(food.en, [colour, price, shop]));
    }
    let kept = dealt(PLACES, OBJECTS.len(), rng);
    for (i, object) in OBJECTS.iter().enumerate() {
        let slots = || Slots::new().word("object", *object);
        let material = (Kind::Material, slots().word("material", MATERIALS[i]));
        profiles.push(profile(object.en, [material, (Kind::Kept, slots().word("place", kept[i]))]));
    }
    let directions = dealt(DIRECTIONS, PLACES.len(), rng);
    let landmarks = dealt(LANDMARKS, PLACES.len(), rng);
    for (i, place) in PLACES.iter().enumerate() {
        let slots = || Slots::new().word("place", *place);
        let direction = (Kind::Direction, slots().word("direction", directions[i]));
        let landmark = (Kind::Landmark, slots().word("landmark", landmarks[i]));
        profiles.push(profile(place.en, [direction, landmark]));
    }
    profiles
}

fn profile<const N: usize>(subject: &'static str, slots: [(Kind, Slots); N]) -> Profile {
    let fact = |(kind, slots)| Fact { kind, subject, slots };
    Profile { facts: slots.into_iter().map(fact).collect() }
}
