//! The real binary over run directories made here, and the page it writes in a real browser.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod drawn;
mod fixture;
mod look;
mod output;
