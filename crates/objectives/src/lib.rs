//! The papers' equations as pure functions of tensors: no files, no random numbers, no choice of device.
//!
//! Shapes: `N` counted tokens, `T` tokens of a flat row, `D` model width, `V` vocabulary.

mod next_token;

pub use next_token::{NextToken, bits_per_byte, next_token, perplexity};
