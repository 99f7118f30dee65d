//! The ways of saying and asking each kind of fact, in English and Korean.

mod people;
mod things;

use super::facts::Kind;

/// The templates of one kind of fact; every pair is English, Korean.
#[derive(Debug)]
pub(crate) struct Forms {
    /// Ways of saying the fact.
    pub(crate) statements: (&'static [&'static str], &'static [&'static str]),
    /// Ways of asking for it.
    pub(crate) questions: (&'static [&'static str], &'static [&'static str]),
    /// The one answer.
    pub(crate) answer: (&'static str, &'static str),
}

/// The templates of `kind`.
pub(crate) fn forms(kind: Kind) -> &'static Forms {
    match kind {
        Kind::Age => &people::AGE,
        Kind::Job => &people::JOB,
        Kind::Home => &people::HOME,
        Kind::Pet => &people::PET,
        Kind::PetOwner => &people::PET_OWNER,
        Kind::Treasure => &people::TREASURE,
        Kind::TreasureOwner => &people::TREASURE_OWNER,
        Kind::Food => &people::FOOD,
        Kind::Colour => &people::COLOUR,
        Kind::Friend => &people::FRIEND,
        Kind::Hobby => &people::HOBBY,
        Kind::Eats => &things::EATS,
        Kind::Sleeps => &things::SLEEPS,
        Kind::FoodColour => &things::FOOD_COLOUR,
        Kind::Price => &things::PRICE,
        Kind::Shop => &things::SHOP,
        Kind::Material => &things::MATERIAL,
        Kind::Kept => &things::KEPT,
        Kind::Direction => &things::DIRECTION,
        Kind::Landmark => &things::LANDMARK,
    }
}
