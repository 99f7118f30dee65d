//! data-prep
fn main() {}
