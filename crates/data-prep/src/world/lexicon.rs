//! The words of the village, in English and Korean.

use serde::{Deserialize, Serialize};

/// The two languages of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Language {
    /// English.
    En,
    /// Korean.
    Ko,
}

impl Language {
    /// Both languages.
    pub const ALL: [Self; 2] = [Self::En, Self::Ko];

    /// The two-letter code, as the records carry it.
    pub fn code(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::Ko => "ko",
        }
    }

    /// The language that is not this one.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::En => Self::Ko,
            Self::Ko => Self::En,
        }
    }

    /// The entry of a pair given as English, Korean.
    pub(crate) fn of<T: Copy>(self, pair: (T, T)) -> T {
        match self {
            Self::En => pair.0,
            Self::Ko => pair.1,
        }
    }
}

/// One word in both languages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Word {
    pub(crate) en: &'static str,
    pub(crate) ko: &'static str,
}

impl Word {
    pub(crate) fn in_(self, language: Language) -> &'static str {
        language.of((self.en, self.ko))
    }
}

/// The words that fill the slots of a template, by slot name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slots(Vec<(&'static str, String, String)>);

impl Slots {
    /// No words yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// These slots and one more, a word.
    pub(crate) fn word(self, name: &'static str, word: Word) -> Self {
        self.text(name, word.en, word.ko)
    }

    /// These slots and one more, a number in digits.
    pub(crate) fn number(self, name: &'static str, number: u32) -> Self {
        let digits = number.to_string();
        self.text(name, &digits, &digits)
    }

    /// These slots and one more, given in both languages.
    pub(crate) fn text(mut self, name: &'static str, en: &str, ko: &str) -> Self {
        self.0.push((name, en.to_owned(), ko.to_owned()));
        self
    }

    /// These slots and those of `other` that these lack.
    pub(crate) fn and(mut self, other: &Self) -> Self {
        for slot in &other.0 {
            if !self.0.iter().any(|(name, ..)| *name == slot.0) {
                self.0.push(slot.clone());
            }
        }
        self
    }

    /// These slots, the first of which is replaced by that of `other`.
    pub(crate) fn with_first_of(&self, other: &Self) -> Self {
        Self(other.0.iter().take(1).chain(self.0.iter().skip(1)).cloned().collect())
    }

    /// The slot's word in `language`.
    pub(crate) fn get(&self, name: &str, language: Language) -> Option<&str> {
        let (_, en, ko) = self.0.iter().find(|(slot, ..)| *slot == name)?;
        Some(language.of((en.as_str(), ko.as_str())))
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident: $($en:literal $ko:literal),+ $(,)?) => {
        $(#[$doc])*
        pub(crate) const $name: &[Word] = &[$(Word { en: $en, ko: $ko }),+];
    };
}

words! {
    /// The villagers.
    PEOPLE:
    "Mina" "미나", "Junho" "준호", "Sora" "소라", "Hajun" "하준", "Yuna" "유나", "Boram" "보람",
    "Daeun" "다은", "Taeo" "태오", "Nari" "나리", "Minsok" "민석", "Jiho" "지호", "Arin" "아린",
    "Garam" "가람", "Seri" "세리", "Doyun" "도윤", "Chanmi" "찬미",
}

words! {
    /// The kinds of animals.
    ANIMALS:
    "cat" "고양이", "dog" "강아지", "rabbit" "토끼", "duck" "오리", "horse" "말", "goat" "염소",
    "pig" "돼지", "parrot" "앵무새", "turtle" "거북이", "hen" "암탉",
}

words! {
    /// What people eat. The English words stand without an article.
    FOODS:
    "apples" "사과", "pears" "배", "bread" "빵", "rice" "밥", "soup" "수프", "honey" "꿀",
    "cheese" "치즈", "grapes" "포도", "noodles" "국수", "milk" "우유",
}

words! {
    /// Things one can carry.
    OBJECTS:
    "kite" "연", "ball" "공", "book" "책", "umbrella" "우산", "hat" "모자", "basket" "바구니",
    "drum" "북", "cup" "컵", "flute" "피리", "lamp" "등불",
}

words! {
    /// Where things happen.
    PLACES:
    "river" "강", "market" "시장", "school" "학교", "mill" "방앗간", "harbour" "항구", "lake" "호수",
    "bridge" "다리", "temple" "절", "farm" "농장", "station" "역",
}

words! {
    /// What people do for a living.
    JOBS:
    "baker" "제빵사", "farmer" "농부", "teacher" "선생님", "nurse" "간호사", "carpenter" "목수",
    "painter" "화가", "tailor" "재단사", "cook" "요리사",
}

words! {
    /// What people do for joy.
    HOBBIES:
    "singing" "노래", "drawing" "그림", "dancing" "춤", "fishing" "낚시", "running" "달리기",
    "reading" "독서", "swimming" "수영", "cooking" "요리",
}

words! {
    /// Colours as they stand before a noun.
    COLOURS:
    "white" "하얀", "black" "검은", "brown" "갈색", "grey" "회색", "red" "빨간", "blue" "파란",
    "yellow" "노란", "green" "초록색",
}

words! {
    /// Colours as nouns, in the order of [`COLOURS`].
    COLOUR_NAMES:
    "white" "하얀색", "black" "검은색", "brown" "갈색", "grey" "회색", "red" "빨간색",
    "blue" "파란색", "yellow" "노란색", "green" "초록색",
}

/// How many of [`COLOURS`], from the first, are those of animals.
pub(crate) const FUR_COLOURS: usize = 4;

words! {
    /// What the animals of [`ANIMALS`] eat, in that order.
    FODDER:
    "fish" "생선", "bones" "뼈다귀", "carrots" "당근", "worms" "벌레", "hay" "건초", "leaves" "나뭇잎",
    "potatoes" "감자", "seeds" "씨앗", "lettuce" "상추", "corn" "옥수수",
}

words! {
    /// Where the animals of [`ANIMALS`] sleep, in that order.
    BEDS:
    "basket" "바구니", "kennel" "개집", "burrow" "굴", "pond" "연못", "stable" "마구간",
    "shed" "헛간", "sty" "우리", "cage" "새장", "pond" "연못", "coop" "닭장",
}

words! {
    /// The colours of [`FOODS`], in that order.
    FOOD_COLOURS:
    "red" "빨간색", "yellow" "노란색", "brown" "갈색", "white" "하얀색", "green" "초록색",
    "yellow" "노란색", "yellow" "노란색", "green" "초록색", "white" "하얀색", "white" "하얀색",
}

words! {
    /// What [`OBJECTS`] are made of, in that order.
    MATERIALS:
    "paper" "종이", "leather" "가죽", "paper" "종이", "cloth" "천", "straw" "짚", "straw" "짚",
    "leather" "가죽", "clay" "흙", "wood" "나무", "glass" "유리",
}

words! {
    /// Parts of the village.
    DIRECTIONS:
    "north" "북쪽", "south" "남쪽", "east" "동쪽", "west" "서쪽", "middle" "가운데",
}

words! {
    /// What stands at a place.
    LANDMARKS:
    "bench" "의자", "well" "우물", "clock" "시계", "gate" "대문", "tower" "탑",
}
