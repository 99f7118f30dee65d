//! Tests of particles and templates.

use super::super::hangul::{fill, particle};
use super::super::lexicon::{Language, PEOPLE, Slots};

#[test]
fn particles_follow_the_final_sound() {
    for (word, name, expected) in [
        ("미나", "은", "는"),
        ("하준", "은", "은"),
        ("강", "이", "이"),
        ("다리", "이", "가"),
        ("빵", "을", "을"),
        ("사과", "을", "를"),
        ("밥", "과", "과"),
        ("배", "과", "와"),
        ("시장", "으로", "으로"),
        ("학교", "으로", "로"),
        ("연필", "으로", "로"),
        ("교실", "을", "을"),
        ("재단사", "이에요", "예요"),
        ("선생님", "이에요", "이에요"),
        ("7", "을", "을"),
        ("7", "으로", "로"),
        ("12", "을", "를"),
        ("30", "을", "을"),
        ("kite", "을", "를"),
    ] {
        assert_eq!(particle(word, name), Some(expected), "{word} {name}");
    }
    assert_eq!(particle("미나", "께"), None);
}

#[test]
fn templates_are_filled_in_both_languages() {
    let slots =
        Slots::new().word("who", PEOPLE[3]).text("object", "umbrella", "우산").number("n", 7);
    let text = fill("{who} has {object:a} and {n} cups.", Language::En, &slots);
    assert_eq!(text, "Hajun has an umbrella and 7 cups.");
    let text = fill("{who:은} {object:과} 컵 {n}개를 가지고 있어요.", Language::Ko, &slots);
    assert_eq!(text, "하준은 우산과 컵 7개를 가지고 있어요.");
    assert_eq!(fill("{nobody:은} {who:께} {", Language::Ko, &slots), "{nobody:은} {who:께} {");
}
