//! The papers' equations as pure functions: no files, no random numbers, no choice of device.
//!
//! Shapes: `N` counted tokens or pairs, `T` tokens of a flat row, `D` model width, `V` vocabulary.

mod advantage;
mod kl;
mod next_token;
mod ppo;
mod preference;

pub use advantage::{gae, grpo, mean_and_deviation, rloo, whiten};
pub use kl::{KlEstimator, adapt_kl_coef};
pub use next_token::{NextToken, bits_per_byte, next_token, perplexity};
pub use ppo::{PolicyLoss, ValueLoss, policy_loss, value_loss};
pub use preference::{
    Preference, bradley_terry, calibration_error, choice_probability, correlation, preference_label,
};
