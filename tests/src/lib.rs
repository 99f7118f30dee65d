//! The kit of the whole-project tests: golden files, comparisons with named tolerances, changes that they must see, a
//! tiny corpus, and the real binaries.

pub mod binaries;
pub mod close;
pub mod corpus;
pub mod fixtures;
pub mod flat;
pub mod perturb;
pub mod pipelines;
