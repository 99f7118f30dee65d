//! sft
fn main() {}
