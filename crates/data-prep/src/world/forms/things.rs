//! The ways of saying and asking what is true of an animal, a food, an object or a place.

use super::Forms;

pub(super) static EATS: Forms = Forms {
    statements: (
        &[
            "The {animal} eats {fodder}.",
            "A {animal} lives on {fodder}.",
            "We feed {fodder} to the {animal}.",
        ],
        &[
            "{animal:은} {fodder:을} 먹어요.",
            "{animal}의 먹이는 {fodder:이에요}.",
            "{animal}에게 {fodder:을} 먹여요.",
        ],
    ),
    questions: (
        &[
            "What does the {animal} eat?",
            "What do we feed to the {animal}?",
            "Tell me what the {animal} eats.",
            "Do you know what a {animal} lives on?",
        ],
        &[
            "{animal:은} 무엇을 먹나요?",
            "{animal}의 먹이는 무엇인가요?",
            "{animal}의 먹이를 알려 주세요.",
            "{animal:이} 무엇을 먹는지 아나요?",
        ],
    ),
    answer: ("The {animal} eats {fodder}.", "{animal:은} {fodder:을} 먹어요."),
};

pub(super) static SLEEPS: Forms = Forms {
    statements: (
        &[
            "The {animal} sleeps in the {bed}.",
            "A {animal} spends the night in the {bed}.",
            "At night the {animal} is in the {bed}.",
        ],
        &[
            "{animal:은} {bed}에서 자요.",
            "{animal}의 잠자리는 {bed:이에요}.",
            "밤에 {animal:은} {bed}에 있어요.",
        ],
    ),
    questions: (
        &[
            "Where does the {animal} sleep?",
            "Where is the {animal} at night?",
            "Tell me where the {animal} sleeps.",
            "Do you know where a {animal} spends the night?",
        ],
        &[
            "{animal:은} 어디에서 자나요?",
            "{animal}의 잠자리는 어디인가요?",
            "{animal}의 잠자리를 알려 주세요.",
            "밤에 {animal:은} 어디에 있나요?",
        ],
    ),
    answer: ("The {animal} sleeps in the {bed}.", "{animal:은} {bed}에서 자요."),
};

pub(super) static FOOD_COLOUR: Forms = Forms {
    statements: (
        &[
            "The colour of {food} is {colour}.",
            "In our village, the colour of {food} is {colour}.",
            "Paint {food} in {colour}.",
        ],
        &[
            "{food}의 색은 {colour:이에요}.",
            "{food:은} {colour:이에요}.",
            "우리 마을의 {food:은} {colour:이에요}.",
        ],
    ),
    questions: (
        &[
            "What is the colour of {food}?",
            "Which colour goes with {food}?",
            "Tell me the colour of {food}.",
            "Do you know the colour of {food}?",
        ],
        &[
            "{food}의 색은 무엇인가요?",
            "{food:은} 무슨 색인가요?",
            "{food}의 색을 알려 주세요.",
            "{food:이} 무슨 색인지 아나요?",
        ],
    ),
    answer: ("The colour of {food} is {colour}.", "{food}의 색은 {colour:이에요}."),
};

pub(super) static PRICE: Forms = Forms {
    statements: (
        &[
            "The price of {food} is {price} coins.",
            "You pay {price} coins for {food}.",
            "For {price} coins you get {food}.",
        ],
        &[
            "{food}의 값은 동전 {price}개예요.",
            "{food:은} 동전 {price}개예요.",
            "동전 {price}개로 {food:을} 사요.",
        ],
    ),
    questions: (
        &[
            "What is the price of {food}?",
            "How many coins do I pay for {food}?",
            "Tell me the price of {food}.",
            "Do you know the price of {food}?",
        ],
        &[
            "{food}의 값은 얼마인가요?",
            "{food:은} 동전 몇 개인가요?",
            "{food}의 값을 알려 주세요.",
            "{food:이} 얼마인지 아나요?",
        ],
    ),
    answer: ("The price of {food} is {price} coins.", "{food}의 값은 동전 {price}개예요."),
};

pub(super) static SHOP: Forms = Forms {
    statements: (
        &[
            "People buy {food} at the {place}.",
            "You can get {food} at the {place}.",
            "The place for {food} is the {place}.",
        ],
        &[
            "{food:은} {place}에서 팔아요.",
            "사람들은 {place}에서 {food:을} 사요.",
            "{food:을} 사는 곳은 {place:이에요}.",
        ],
    ),
    questions: (
        &[
            "Where can I buy {food}?",
            "Where do people get {food}?",
            "Tell me the place for {food}.",
            "Do you know where to buy {food}?",
        ],
        &[
            "{food:은} 어디에서 사나요?",
            "{food:을} 파는 곳은 어디인가요?",
            "{food:을} 사는 곳을 알려 주세요.",
            "{food:을} 어디에서 파는지 아나요?",
        ],
    ),
    answer: ("People buy {food} at the {place}.", "{food:은} {place}에서 팔아요."),
};

pub(super) static MATERIAL: Forms = Forms {
    statements: (
        &[
            "The {object} is made of {material}.",
            "We make {object:a} from {material}.",
            "For {object:a} you need {material}.",
        ],
        &[
            "{object:은} {material:으로} 만들어요.",
            "{object}의 재료는 {material:이에요}.",
            "{material:으로} {object:을} 만들어요.",
        ],
    ),
    questions: (
        &[
            "What is the {object} made of?",
            "What do we make {object:a} from?",
            "Tell me what the {object} is made of.",
            "Do you know what you need for {object:a}?",
        ],
        &[
            "{object:은} 무엇으로 만드나요?",
            "{object}의 재료는 무엇인가요?",
            "{object}의 재료를 알려 주세요.",
            "{object:을} 무엇으로 만드는지 아나요?",
        ],
    ),
    answer: ("The {object} is made of {material}.", "{object:은} {material:으로} 만들어요."),
};

pub(super) static KEPT: Forms = Forms {
    statements: (
        &[
            "The village {object} is kept at the {place}.",
            "You find the village {object} at the {place}.",
            "The {place} has the village {object}.",
        ],
        &[
            "마을의 {object:은} {place}에 두어요.",
            "마을의 {object:은} {place}에 있어요.",
            "{place}에 마을의 {object:이} 있어요.",
        ],
    ),
    questions: (
        &[
            "Where is the village {object} kept?",
            "Where do I find the village {object}?",
            "Tell me where the village {object} is.",
            "Do you know where the village {object} is?",
        ],
        &[
            "마을의 {object:은} 어디에 두나요?",
            "마을의 {object:은} 어디에 있나요?",
            "마을의 {object:이} 있는 곳을 알려 주세요.",
            "마을의 {object:이} 어디에 있는지 아나요?",
        ],
    ),
    answer: (
        "The village {object} is kept at the {place}.",
        "마을의 {object:은} {place}에 있어요.",
    ),
};

pub(super) static DIRECTION: Forms = Forms {
    statements: (
        &[
            "The {place} is in the {direction} of the village.",
            "In the {direction} of the village is the {place}.",
            "To see the {place}, go to the {direction}.",
        ],
        &[
            "{place:은} 마을 {direction}에 있어요.",
            "마을 {direction}에 {place:이} 있어요.",
            "{place:은} {direction:으로} 가면 있어요.",
        ],
    ),
    questions: (
        &[
            "Where in the village is the {place}?",
            "Which way is the {place}?",
            "Tell me the way to the {place}.",
            "Do you know where the {place} is?",
        ],
        &[
            "{place:은} 마을 어디에 있나요?",
            "{place:은} 어느 쪽에 있나요?",
            "{place:으로} 가는 길을 알려 주세요.",
            "{place:이} 어디에 있는지 아나요?",
        ],
    ),
    answer: (
        "The {place} is in the {direction} of the village.",
        "{place:은} 마을 {direction}에 있어요.",
    ),
};

pub(super) static LANDMARK: Forms = Forms {
    statements: (
        &[
            "There is a {landmark} at the {place}.",
            "At the {place} you see a {landmark}.",
            "The {place} has a {landmark}.",
        ],
        &[
            "{place}에는 {landmark:이} 있어요.",
            "{place}에서 {landmark:을} 볼 수 있어요.",
            "{place}에 가면 {landmark:이} 보여요.",
        ],
    ),
    questions: (
        &[
            "What is there at the {place}?",
            "What do you see at the {place}?",
            "Tell me what the {place} has.",
            "Do you know what is at the {place}?",
        ],
        &[
            "{place}에는 무엇이 있나요?",
            "{place}에서 무엇을 볼 수 있나요?",
            "{place}에 있는 것을 알려 주세요.",
            "{place}에 가면 무엇이 보이나요?",
        ],
    ),
    answer: ("There is a {landmark} at the {place}.", "{place}에는 {landmark:이} 있어요."),
};
