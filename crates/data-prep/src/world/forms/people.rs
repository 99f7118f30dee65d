//! The ways of saying and asking what is true of a person.

use super::Forms;

pub(super) static AGE: Forms = Forms {
    statements: (
        &[
            "{who} is {age} years old.",
            "The age of {who} is {age}.",
            "{who} turned {age} this year.",
        ],
        &[
            "{who:은} {age}살이에요.",
            "{who}의 나이는 {age}살이에요.",
            "{who:은} 올해 {age}살이 되었어요.",
        ],
    ),
    questions: (
        &[
            "How old is {who}?",
            "What is {who}'s age?",
            "Tell me the age of {who}.",
            "Do you know how old {who} is?",
        ],
        &[
            "{who:은} 몇 살인가요?",
            "{who}의 나이는 몇 살인가요?",
            "{who}의 나이를 알려 주세요.",
            "{who:이} 몇 살인지 아나요?",
        ],
    ),
    answer: ("{who} is {age} years old.", "{who:은} {age}살이에요."),
};

pub(super) static JOB: Forms = Forms {
    statements: (
        &["{who} is {job:a}.", "{who} works as {job:a}.", "By trade, {who} is {job:a}."],
        &["{who:은} {job:이에요}.", "{who:은} {job:으로} 일해요.", "{who}의 직업은 {job:이에요}."],
    ),
    questions: (
        &[
            "What is {who}'s job?",
            "What does {who} do for work?",
            "Tell me the job of {who}.",
            "Do you know what {who} works as?",
        ],
        &[
            "{who}의 직업은 무엇인가요?",
            "{who:은} 무슨 일을 하나요?",
            "{who}의 직업을 알려 주세요.",
            "{who:이} 무슨 일을 하는지 아나요?",
        ],
    ),
    answer: ("{who} works as {job:a}.", "{who:은} {job:으로} 일해요."),
};

pub(super) static HOME: Forms = Forms {
    statements: (
        &[
            "{who} lives near the {place}.",
            "{who}'s house is near the {place}.",
            "The home of {who} is near the {place}.",
        ],
        &[
            "{who:은} {place} 근처에 살아요.",
            "{who}의 집은 {place} 근처에 있어요.",
            "{place} 근처에 {who}의 집이 있어요.",
        ],
    ),
    questions: (
        &[
            "Where does {who} live?",
            "Where is {who}'s house?",
            "Tell me where {who} lives.",
            "Do you know where the home of {who} is?",
        ],
        &[
            "{who:은} 어디에 사나요?",
            "{who}의 집은 어디에 있나요?",
            "{who:이} 사는 곳을 알려 주세요.",
            "{who}의 집이 어디인지 아나요?",
        ],
    ),
    answer: ("{who} lives near the {place}.", "{who:은} {place} 근처에 살아요."),
};

pub(super) static PET: Forms = Forms {
    statements: (
        &[
            "{who} has a {colour} {animal}.",
            "{who} keeps a {colour} {animal}.",
            "{who} looks after a {colour} {animal}.",
        ],
        &[
            "{who:은} {colour} {animal:을} 키워요.",
            "{who}의 동물은 {colour} {animal:이에요}.",
            "{who:은} {colour} {animal:을} 돌봐요.",
        ],
    ),
    questions: (
        &[
            "What animal does {who} have?",
            "Which animal does {who} keep?",
            "Tell me about {who}'s animal.",
            "Do you know what animal {who} looks after?",
        ],
        &[
            "{who:은} 어떤 동물을 키우나요?",
            "{who}의 동물은 무엇인가요?",
            "{who}의 동물을 알려 주세요.",
            "{who:이} 어떤 동물을 키우는지 아나요?",
        ],
    ),
    answer: ("{who} has a {colour} {animal}.", "{who:은} {colour} {animal:을} 키워요."),
};

pub(super) static PET_OWNER: Forms = Forms {
    statements: (
        &[
            "The {colour} {animal} belongs to {who}.",
            "The {colour} {animal} is {who}'s.",
            "The owner of the {colour} {animal} is {who}.",
        ],
        &[
            "{colour} {animal:은} {who}의 동물이에요.",
            "{colour} {animal}의 주인은 {who:이에요}.",
            "{colour} {animal:은} {who:이} 키워요.",
        ],
    ),
    questions: (
        &[
            "Who has the {colour} {animal}?",
            "Whose is the {colour} {animal}?",
            "Tell me who owns the {colour} {animal}.",
            "Who is the owner of the {colour} {animal}?",
        ],
        &[
            "{colour} {animal:은} 누가 키우나요?",
            "{colour} {animal:은} 누구의 동물인가요?",
            "{colour} {animal}의 주인을 알려 주세요.",
            "{colour} {animal}의 주인은 누구인가요?",
        ],
    ),
    answer: ("The {colour} {animal} belongs to {who}.", "{colour} {animal}의 주인은 {who:이에요}."),
};

pub(super) static TREASURE: Forms = Forms {
    statements: (
        &[
            "{who} owns a {colour} {object}.",
            "{who} treasures a {colour} {object}.",
            "{who}'s treasure is a {colour} {object}.",
        ],
        &[
            "{who}의 보물은 {colour} {object:이에요}.",
            "{who:은} {colour} {object:을} 아껴요.",
            "{who:은} {colour} {object:을} 가지고 있어요.",
        ],
    ),
    questions: (
        &[
            "What is {who}'s treasure?",
            "What does {who} treasure?",
            "Tell me the treasure of {who}.",
            "Do you know what {who} owns?",
        ],
        &[
            "{who}의 보물은 무엇인가요?",
            "{who:이} 아끼는 것은 무엇인가요?",
            "{who}의 보물을 알려 주세요.",
            "{who:이} 무엇을 아끼는지 아나요?",
        ],
    ),
    answer: (
        "{who}'s treasure is a {colour} {object}.",
        "{who}의 보물은 {colour} {object:이에요}.",
    ),
};

pub(super) static TREASURE_OWNER: Forms = Forms {
    statements: (
        &[
            "The {colour} {object} belongs to {who}.",
            "The {colour} {object} is {who}'s.",
            "The owner of the {colour} {object} is {who}.",
        ],
        &[
            "{colour} {object:은} {who}의 것이에요.",
            "{colour} {object}의 주인은 {who:이에요}.",
            "{colour} {object:은} {who:이} 아껴요.",
        ],
    ),
    questions: (
        &[
            "Who has the {colour} {object}?",
            "Whose is the {colour} {object}?",
            "Tell me who owns the {colour} {object}.",
            "Who is the owner of the {colour} {object}?",
        ],
        &[
            "{colour} {object:은} 누가 가지고 있나요?",
            "{colour} {object:은} 누구의 것인가요?",
            "{colour} {object}의 주인을 알려 주세요.",
            "{colour} {object}의 주인은 누구인가요?",
        ],
    ),
    answer: ("The {colour} {object} belongs to {who}.", "{colour} {object}의 주인은 {who:이에요}."),
};

pub(super) static FOOD: Forms = Forms {
    statements: (
        &[
            "{who} likes {food}.",
            "{who}'s favourite food is {food}.",
            "{who} likes to eat {food} most of all.",
        ],
        &[
            "{who:은} {food:을} 좋아해요.",
            "{who:이} 가장 좋아하는 음식은 {food:이에요}.",
            "{who:은} {food:을} 자주 먹어요.",
        ],
    ),
    questions: (
        &[
            "What does {who} like to eat?",
            "What is {who}'s favourite food?",
            "Tell me the favourite food of {who}.",
            "Do you know which food {who} likes?",
        ],
        &[
            "{who:은} 무엇을 잘 먹나요?",
            "{who:이} 가장 좋아하는 음식은 무엇인가요?",
            "{who:이} 좋아하는 음식을 알려 주세요.",
            "{who:이} 어떤 음식을 좋아하는지 아나요?",
        ],
    ),
    answer: ("{who} likes to eat {food}.", "{who:이} 좋아하는 음식은 {food:이에요}."),
};

pub(super) static COLOUR: Forms = Forms {
    statements: (
        &[
            "{who}'s favourite colour is {colour}.",
            "The colour {who} likes is {colour}.",
            "Of all colours, {who} likes {colour}.",
        ],
        &[
            "{who:이} 좋아하는 색은 {colour:이에요}.",
            "{who:은} {colour:을} 가장 좋아해요.",
            "{who:은} 색 가운데 {colour:을} 좋아해요.",
        ],
    ),
    questions: (
        &[
            "What is {who}'s favourite colour?",
            "Which colour does {who} like?",
            "Tell me the favourite colour of {who}.",
            "Do you know which colour {who} likes?",
        ],
        &[
            "{who:이} 좋아하는 색은 무엇인가요?",
            "{who:은} 어떤 색을 좋아하나요?",
            "{who:이} 좋아하는 색을 알려 주세요.",
            "{who:이} 어떤 색을 좋아하는지 아나요?",
        ],
    ),
    answer: ("{who}'s favourite colour is {colour}.", "{who:이} 좋아하는 색은 {colour:이에요}."),
};

pub(super) static FRIEND: Forms = Forms {
    statements: (
        &[
            "{who}'s best friend is {friend}.",
            "The best friend of {who} is {friend}.",
            "{who} calls {friend} the best friend of all.",
        ],
        &[
            "{who}의 친구는 {friend:이에요}.",
            "{who:은} {friend:과} 가장 친해요.",
            "{who:은} {friend:을} 가장 친한 친구라고 말해요.",
        ],
    ),
    questions: (
        &[
            "Who is {who}'s best friend?",
            "Who is the best friend of {who}?",
            "Tell me the best friend of {who}.",
            "Do you know {who}'s best friend?",
        ],
        &[
            "{who}의 친구는 누구인가요?",
            "{who:은} 누구와 가장 친한가요?",
            "{who}의 친구를 알려 주세요.",
            "{who}의 친구가 누구인지 아나요?",
        ],
    ),
    answer: ("{who}'s best friend is {friend}.", "{who}의 친구는 {friend:이에요}."),
};

pub(super) static HOBBY: Forms = Forms {
    statements: (
        &[
            "{who}'s hobby is {hobby}.",
            "{who} enjoys {hobby}.",
            "After work, {who} enjoys {hobby}.",
        ],
        &[
            "{who}의 취미는 {hobby:이에요}.",
            "{who:은} {hobby:을} 즐겨요.",
            "일이 끝나면 {who:은} {hobby:을} 즐겨요.",
        ],
    ),
    questions: (
        &[
            "What is {who}'s hobby?",
            "What does {who} enjoy?",
            "Tell me the hobby of {who}.",
            "Do you know what {who} enjoys after work?",
        ],
        &[
            "{who}의 취미는 무엇인가요?",
            "{who:은} 무엇을 즐기나요?",
            "{who}의 취미를 알려 주세요.",
            "{who:이} 일이 끝나면 무엇을 즐기는지 아나요?",
        ],
    ),
    answer: ("{who}'s hobby is {hobby}.", "{who}의 취미는 {hobby:이에요}."),
};
