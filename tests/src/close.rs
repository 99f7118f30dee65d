//! Comparing numbers, with tolerances that have names and cannot be loose.

use anyhow::{Result, bail, ensure};
use tch::{Kind, Tensor};

/// How far two results may differ, and why that far.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance {
    /// What it is for; part of the message.
    pub name: &'static str,
    /// Largest absolute difference of an element.
    pub absolute: f64,
    /// Largest difference relative to the largest expected magnitude of the tensor.
    pub relative: f64,
}

/// Logits in fp32 against transformers: about four times the rounding noise of the fixtures.
pub const LOGITS: Tolerance = Tolerance { name: "logits", absolute: 1e-5, relative: 0.0 };
/// Scores of a reward model in fp32 against transformers.
pub const SCORE: Tolerance = Tolerance { name: "score", absolute: 1e-5, relative: 0.0 };
/// A mean loss in fp32 against transformers.
pub const LOSS: Tolerance = Tolerance { name: "loss", absolute: 1e-5, relative: 0.0 };
/// A parameter's gradient in fp32 against transformers.
pub const GRADIENT: Tolerance = Tolerance { name: "gradient", absolute: 0.0, relative: 1e-4 };
/// A weight after optimiser steps against torch.
pub const WEIGHT: Tolerance = Tolerance { name: "weight", absolute: 1e-6, relative: 0.0 };
/// Packed documents against the same documents alone.
pub const PACKING: Tolerance = Tolerance { name: "packing", absolute: 1e-6, relative: 0.0 };
/// Probabilities and learning rates computed in double precision on both sides.
pub const DOUBLE: Tolerance = Tolerance { name: "double", absolute: 1e-12, relative: 1e-12 };

impl Tolerance {
    /// The same tolerance, widened to `floor` where the reference's own rounding noise is larger.
    #[must_use]
    pub fn at_least(self, floor: f64) -> Self {
        Self { absolute: self.absolute.max(floor), ..self }
    }

    fn allowed(&self, largest: f64) -> f64 {
        self.absolute.max(self.relative * largest)
    }
}

/// The largest difference between `got` and `want`.
///
/// # Errors
/// Another shape; a value that is not finite; a difference beyond the tolerance (with its value and index); a tolerance
/// that a change of 1 % would pass as well, unless nothing is expected but zeros.
pub fn close(what: &str, got: &Tensor, want: &Tensor, tolerance: Tolerance) -> Result<f64> {
    ensure!(
        got.size() == want.size(),
        "{what}: shape {:?}, expected {:?}",
        got.size(),
        want.size()
    );
    if want.numel() == 0 {
        return Ok(0.0);
    }
    if want.dim() == 0 {
        return close(what, &got.view(1), &want.view(1), tolerance);
    }
    let (got, want) = (got.detach().to_kind(Kind::Double), want.detach().to_kind(Kind::Double));
    ensure!(
        bool::try_from(got.isfinite().all())?,
        "{what}: not finite at {:?}",
        position(&got.isfinite().logical_not())
    );
    let difference = (&got - &want).abs();
    let largest = f64::try_from(want.abs().max())?;
    let allowed = tolerance.allowed(largest);
    ensure!(
        largest == 0.0 || allowed < 0.01 * largest,
        "{what}: the tolerance `{}` of {allowed:.1e} is loose: the largest expected value is {largest:.1e}",
        tolerance.name
    );
    let max = f64::try_from(difference.max())?;
    if max > allowed {
        let at = position(&difference);
        let index: Vec<_> = at.iter().map(|&i| Some(Tensor::from(i))).collect();
        bail!(
            "{what}: differs by {max:.3e} at {at:?} ({} instead of {}), allowed {allowed:.1e} ({})",
            f64::try_from(got.index(&index))?,
            f64::try_from(want.index(&index))?,
            tolerance.name
        );
    }
    Ok(max)
}

/// Index of the largest element.
fn position(tensor: &Tensor) -> Vec<i64> {
    let mut flat = tensor.to_kind(Kind::Double).argmax(None, false).int64_value(&[]);
    let mut index: Vec<i64> = Vec::new();
    for size in tensor.size().into_iter().rev() {
        index.insert(0, flat % size);
        flat /= size;
    }
    index
}

/// [`close`] for one number.
///
/// # Errors
/// As [`close`].
pub fn close_number(what: &str, got: f64, want: f64, tolerance: Tolerance) -> Result<f64> {
    close(what, &Tensor::from(got), &Tensor::from(want), tolerance)
}

/// Fails unless every element of `got` is near `want`; says where they differ most.
///
/// # Panics
/// With the message of [`close`].
#[track_caller]
pub fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: Tolerance) -> f64 {
    close(what, got, want, tolerance).unwrap_or_else(|error| panic!("{error}"))
}

/// Fails if the comparison would pass: for results that were changed on purpose.
///
/// # Panics
/// If the change goes unseen.
#[track_caller]
pub fn assert_differs(what: &str, got: &Tensor, want: &Tensor, tolerance: Tolerance) {
    assert!(
        close(what, got, want, tolerance).is_err(),
        "{what}: the comparison misses a change of 1 %"
    );
}

/// Measured differences, seen with `cargo test -- --nocapture`.
#[expect(
    clippy::print_stdout,
    reason = "the measured numbers are part of what a parity run is for"
)]
pub fn report(what: &str, numbers: &[(&str, f64)]) {
    let list: Vec<String> = numbers.iter().map(|(name, n)| format!("{name} {n:.1e}")).collect();
    println!("{what}: {}", list.join(", "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_value_and_index() {
        let want = Tensor::from_slice(&[1.0, 2.0, 3.0, 4.0]).view([2, 2]);
        let got = Tensor::from_slice(&[1.0, 2.0, 3.5, 4.0]).view([2, 2]);
        let error = close("x", &got, &want, LOGITS).unwrap_err().to_string();
        assert_eq!(
            error,
            "x: differs by 5.000e-1 at [1, 0] (3.5 instead of 3), allowed 1.0e-5 (logits)"
        );
    }

    #[test]
    fn a_loose_tolerance_is_refused() {
        let want = Tensor::from_slice(&[1e-4]);
        let error = close("x", &want, &want, LOGITS).unwrap_err().to_string();
        assert!(error.contains("is loose"), "{error}");
    }

    #[test]
    fn shape_and_nan_are_errors() {
        let want = Tensor::from_slice(&[1.0, 2.0]);
        let nan = Tensor::from_slice(&[1.0, f64::NAN]);
        assert_eq!(
            close("x", &nan, &want, LOGITS).unwrap_err().to_string(),
            "x: not finite at [1]"
        );
        let other = Tensor::from_slice(&[1.0]);
        assert_eq!(
            close("x", &other, &want, LOGITS).unwrap_err().to_string(),
            "x: shape [1], expected [2]"
        );
    }

    #[test]
    fn relative_is_to_the_largest_expected_value() {
        let want = Tensor::from_slice(&[100.0, 0.0]);
        let got = Tensor::from_slice(&[100.0, 0.009]);
        assert!(close("x", &got, &want, GRADIENT).is_ok());
        assert!(close("x", &(got + 0.002), &want, GRADIENT).is_err());
    }
}
