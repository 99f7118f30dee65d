//! Korean particles, chosen by the sound a word ends in, and the small template language of the
//! world's sentences.
//!
//! A template holds slots: `{who}` is replaced by the slot's word, `{who:은}` by the word and the
//! particle that fits it (은 after a final consonant, 는 after a vowel). In English templates
//! `{job:a}` puts the indefinite article before the word.

use super::lexicon::{Language, Slots};

/// How a word ends, as far as the choice of a particle goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Vowel,
    /// The final consonant ㄹ, which 으로 treats as a vowel.
    Rieul,
    Consonant,
}

/// The sound of the last letter or digit of `word`; a word of other letters counts as ending in a
/// vowel.
fn ending(word: &str) -> Ending {
    match word.chars().next_back() {
        Some(last @ '가'..='힣') => match (u32::from(last) - u32::from('가')) % 28 {
            0 => Ending::Vowel,
            8 => Ending::Rieul,
            _ => Ending::Consonant,
        },
        // Digits are read 영 일 이 삼 사 오 육 칠 팔 구.
        Some('1' | '7' | '8') => Ending::Rieul,
        Some('0' | '3' | '6') => Ending::Consonant,
        _ => Ending::Vowel,
    }
}

/// The form of `particle` that fits after `word`, for the particles the world's templates use;
/// `None` for any other text.
///
/// Particles are named by the form that follows a consonant: 은 이 을 과 으로 이에요 이라고.
pub(crate) fn particle(word: &str, particle: &str) -> Option<&'static str> {
    let (consonant, vowel) = match particle {
        "은" => ("은", "는"),
        "이" => ("이", "가"),
        "을" => ("을", "를"),
        "과" => ("과", "와"),
        "으로" => ("으로", "로"),
        "이에요" => ("이에요", "예요"),
        "이라고" => ("이라고", "라고"),
        _ => return None,
    };
    Some(match ending(word) {
        Ending::Vowel => vowel,
        Ending::Rieul if particle == "으로" => vowel,
        Ending::Rieul | Ending::Consonant => consonant,
    })
}

/// `a` or `an`, by the first letter of `word`.
fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

/// Fills the slots of `template` in `language`.
///
/// A slot or suffix that is not known stays as it is written, braces included; the tests see to it
/// that no template of the world has one.
pub(crate) fn fill(template: &str, language: Language, slots: &Slots) -> String {
    let mut out = String::with_capacity(template.len() * 2);
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        let (before, from) = rest.split_at(open);
        out.push_str(before);
        let Some(close) = from.find('}') else {
            rest = from;
            break;
        };
        let body = &from[1..close];
        let (name, suffix) = body.split_once(':').unwrap_or((body, ""));
        match slots.get(name, language).and_then(|word| inflect(word, suffix)) {
            Some(text) => out.push_str(&text),
            None => out.push_str(&from[..=close]),
        }
        rest = &from[close + 1..];
    }
    out.push_str(rest);
    out
}

fn inflect(word: &str, suffix: &str) -> Option<String> {
    match suffix {
        "" => Some(word.to_owned()),
        "a" => Some(format!("{} {word}", article(word))),
        _ => particle(word, suffix).map(|fitting| format!("{word}{fitting}")),
    }
}

/// `sentence` with its first letter in capitals.
pub(crate) fn capitalised(sentence: &str) -> String {
    let mut letters = sentence.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
