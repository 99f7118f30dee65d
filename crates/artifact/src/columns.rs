//! The names of the Parquet columns that stages exchange: one place, one spelling.

/// Raw text of one document, `utf8`.
pub const TEXT: &str = "text";
/// Token ids of one row, `list<int32>`.
pub const INPUT_IDS: &str = "input_ids";
/// Which tokens of `input_ids` count in the loss, `list<bool>`; true = counts.
pub const LOSS_MASK: &str = "loss_mask";
/// What the model is given, `utf8`.
pub const PROMPT: &str = "prompt";
/// The conversation that a prompt renders, as a JSON list of messages, `utf8`.
pub const MESSAGES: &str = "messages";
/// What a model wrote in answer to a prompt, `utf8`.
pub const RESPONSE: &str = "response";
/// What a data set has as the answer to a prompt, `utf8`.
pub const COMPLETION: &str = "completion";
/// The preferred response of a pair, `utf8`.
pub const CHOSEN: &str = "chosen";
/// The other response of a pair, `utf8`.
pub const REJECTED: &str = "rejected";
/// Token ids of what both responses of a pair follow, `list<int32>`.
pub const PROMPT_IDS: &str = "prompt_ids";
/// Token ids of the preferred response alone, `list<int32>`.
pub const CHOSEN_IDS: &str = "chosen_ids";
/// Token ids of the other response alone, `list<int32>`.
pub const REJECTED_IDS: &str = "rejected_ids";
/// By how much `chosen` is preferred, `float32`.
pub const MARGIN: &str = "margin";
/// How likely it is that `chosen` is the better one, from 0 to 1, `float32`.
pub const PROBABILITY: &str = "probability";
/// The right answer to a prompt, where there is one, `utf8`.
pub const ANSWER: &str = "answer";
/// The rule that judges a response, as JSON, `utf8`.
pub const CHECKER: &str = "checker";
/// The kind of task a prompt belongs to, `utf8`.
pub const TASK: &str = "task";
/// The name of the evaluation that a prompt belongs to, `utf8`.
pub const EVALUATION: &str = "evaluation";
/// ROUGE-L of an answer, from 0 to 1, `float32`.
pub const ROUGE_L: &str = "rouge_l";
/// A scalar from a reward model or a checker, `float32`.
pub const SCORE: &str = "score";
/// The score of `chosen`, `float32`.
pub const CHOSEN_SCORE: &str = "chosen_score";
/// The score of `rejected`, `float32`.
pub const REJECTED_SCORE: &str = "rejected_score";
/// The optimiser step at which something was made, `int64`.
pub const STEP: &str = "step";
/// The split a row belongs to: `train`, `validation`, `test`; `utf8`.
pub const SPLIT: &str = "split";
/// The principle a critique appeals to, `utf8`.
pub const PRINCIPLE: &str = "principle";
/// A critique of a response, `utf8`.
pub const CRITIQUE: &str = "critique";
/// A response rewritten after a critique, `utf8`.
pub const REVISION: &str = "revision";
/// The first answer to a prompt, `utf8`.
pub const INITIAL: &str = "initial";
/// The answer after all revisions, `utf8`.
pub const FINAL: &str = "final";
/// Whether a text ended by itself rather than by its length, `bool`.
pub const ENDED: &str = "ended";
/// Why the rounds over an answer stopped, `utf8`.
pub const STOPPED: &str = "stopped";
/// The language of a text, `en` or `ko`; `utf8`.
pub const LANGUAGE: &str = "language";
/// The answer of a model before training, `utf8`.
pub const BEFORE: &str = "before";
/// The answer of the same model after it, `utf8`.
pub const AFTER: &str = "after";
/// The name of a model among several that were measured, `utf8`.
pub const MODEL: &str = "model";
/// The name of a test that models took, `utf8`.
pub const TEST: &str = "test";
/// Which item of a test, from 0, `int64`.
pub const ITEM: &str = "item";
/// The name of a metric, `utf8`.
pub const METRIC: &str = "metric";
/// What a metric's value counts, `utf8`.
pub const UNIT: &str = "unit";
/// A metric's value, `float64`.
pub const VALUE: &str = "value";
/// The lower end of a value's interval, `float64`.
pub const LOW: &str = "low";
/// The upper end of a value's interval, `float64`.
pub const HIGH: &str = "high";
/// How many items a value is over, `int64`.
pub const ITEMS: &str = "items";
