//! What libtorch has and `tch` lacks: a small C++ shim and safe Rust over it.
//!
//! This is the only crate with C++ and the only one with `unsafe`. No C++ exception and no Rust
//! panic crosses the language border: both become a [`TorchError`].
//!
//! | module | what it gives |
//! |---|---|
//! | [`device`] | CUDA loaded at run time, device names resolved, threads, versions |
//! | [`autograd`] | autograd nodes from Rust closures; `backward` and `grad` that return errors |
//! | [`optim`] | fused `AdamW`, with moments of 32 or 8 bits |
//! | [`blockwise`] | numbers in 8 bits |
//! | [`four_bit`] | weights in 4 bits |
//! | [`foreach`] | norm, scale, zero, add, copy, unscale over many tensors at once |
//! | [`generator`] | the random generators' state |
//! | [`attention`] | causal attention over a flat row of documents |
//! | [`checkpoint`] | activation checkpointing |
//! | [`collective`] | processes that train together: a key-value store, sums and copies over all of them |
//! | [`head`] | linear + cross-entropy that never holds the full logits |
//! | [`fused`] | norms, activations and rotary positions in one pass each |
//! | [`linear`] | linear layers through oneDNN, over weights as they are or laid out for its kernels |
//! | [`sample`] | a token for each row of logits |
//! | [`memory`] | freed memory kept for the next tensor; statistics |

#![allow(unsafe_code, reason = "this crate is where the unsafe code of the workspace lives")]

pub mod attention;
pub mod autograd;
pub mod blockwise;
pub mod checkpoint;
pub mod collective;
pub mod device;
mod error;
mod ffi;
pub mod foreach;
pub mod four_bit;
pub mod fused;
pub mod generator;
pub mod head;
pub mod linear;
pub mod memory;
pub mod optim;
pub mod sample;
#[cfg(test)]
mod testing;

pub use error::{Result, TorchError};
