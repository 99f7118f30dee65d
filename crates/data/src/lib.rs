//! From raw records to training batches, without libtorch.
//!
//! The path of a record: [`records`] streams it out of files, [`format`](mod@format) turns it into an
//! [`Example`](format::Example), [`template`] renders a conversation and says which bytes count in
//! the loss, [`encode`] makes a token row or a pair row of it with [`tokenizer`]. At training time
//! [`dataset`] reads rows back in a shuffled but resumable order and [`batch`] lays them out as flat,
//! padding-free batches. [`checker`] judges an answer by rule, and [`constitution`] has the principles and the
//! turns by which a model judges its own. [`metrics`] compares generated text with references,
//! and [`safety`] tells answers that do harm from refusals.
//!
//! Invariants: nothing here links libtorch; memory is bounded by a window of rows, never by the
//! data set; the same input and seed give the same rows whatever the number of threads.

pub mod batch;
pub mod checker;
pub mod constitution;
pub mod dataset;
pub mod encode;
pub mod format;
pub mod metrics;
pub mod records;
pub mod rule;
pub mod safety;
pub mod template;
pub mod tokenizer;
