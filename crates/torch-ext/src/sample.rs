//! A token for each row of logits, on the CPU in one pass.

use tch::{Device, Kind, Tensor};

use crate::{Result, TorchError, ffi};

const OP: &str = "sample";

/// What [`rows`] chose.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token ids.
    pub ids: Vec<i64>,
    /// Their natural-log probabilities under `softmax(logits / temperature)`, at temperature 1 where it is 0. NaN where a
    /// row's logits are not finite.
    pub logprobs: Vec<f32>,
}

/// Chooses a token for each row of `logits` [R, V], fp32, bf16 or fp16 on the CPU: for `temperatures[i]` 0 the highest
/// logit (the first of equal ones), otherwise the first id whose cumulative probability exceeds `uniforms[i]` in [0, 1).
/// A row's choice depends on that row alone.
///
/// # Errors
/// Another shape, dtype or device; lists that are not one entry a row; a temperature below 0 or not finite.
pub fn rows(logits: &Tensor, temperatures: &[f32], uniforms: &[f64]) -> Result<Sampled> {
    let fail = |message: String| Err(TorchError::argument(OP, message));
    let size = logits.size();
    let half = matches!(logits.kind(), Kind::BFloat16 | Kind::Half);
    if logits.device() != Device::Cpu || !(half || logits.kind() == Kind::Float) {
        return fail(format!("logits are {:?} on {:?}", logits.kind(), logits.device()));
    }
    if size.len() != 2 || size[1] == 0 {
        return fail(format!("logits {size:?} are not [R, V]"));
    }
    let count = size[0] as usize;
    if temperatures.len() != count || uniforms.len() != count {
        let (t, u) = (temperatures.len(), uniforms.len());
        return fail(format!("{count} rows, {t} temperatures, {u} uniform numbers"));
    }
    if let Some(t) = temperatures.iter().find(|t| !(t.is_finite() && **t >= 0.0)) {
        return fail(format!("temperature {t} is not 0 or above"));
    }
    let mut sampled = Sampled { ids: vec![0; count], logprobs: vec![0.0; count] };
    let logits = logits.detach();
    // SAFETY: a borrowed matrix of R rows, and R entries in each list.
    let message = unsafe {
        let (ids, logprobs) = (sampled.ids.as_mut_ptr(), sampled.logprobs.as_mut_ptr());
        ffi::te_sample(ffi::ptr(&logits), temperatures.as_ptr(), uniforms.as_ptr(), ids, logprobs)
    };
    ffi::check(OP, message)?;
    Ok(sampled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    #[test]
    fn the_inverse_of_the_cumulative_distribution_is_taken_in_the_order_of_ids() {
        let probabilities = [0.1_f32, 0.0, 0.4, 0.3, 0.2];
        let logits = Tensor::from_slice(&probabilities).log().view([1, 5]);
        for (uniform, id) in [
            (0.0, 0),
            (0.09, 0),
            (0.11, 2),
            (0.49, 2),
            (0.51, 3),
            (0.79, 3),
            (0.81, 4),
            (0.999_999, 4),
        ] {
            let got = rows(&logits, &[1.0], &[uniform]).unwrap();
            assert_eq!(got.ids, [id], "{uniform}");
            assert!((got.logprobs[0].exp() - probabilities[id as usize]).abs() < 1e-6);
        }
        // At temperature 0.5 probabilities are squared and normalised: 0.01, 0, 0.16, 0.09, 0.04 over 0.3.
        let got = rows(&logits, &[0.5], &[0.6]).unwrap();
        assert_eq!(got.ids, [3]);
        assert!((got.logprobs[0].exp() - 0.3).abs() < 1e-6);
    }

    #[test]
    fn a_long_row_draws_as_the_sum_of_its_parts_says() {
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            let logits = random(&[3, 1013], 1, kind, Device::Cpu).detach();
            let exact = logits.to_kind(Kind::Double);
            let uniforms = [0.3, 0.0, 0.999];
            let got = rows(&logits, &[1.0, 0.7, 0.0], &uniforms).unwrap();
            for row in 0..2_i64 {
                let temperature = [1.0, 0.7][row as usize];
                let all = (exact.get(row) / temperature).log_softmax(0, Kind::Double);
                let all = Vec::<f64>::try_from(all).unwrap();
                let mut sum = 0.0;
                let want = all.iter().position(|l| {
                    sum += l.exp();
                    sum > uniforms[row as usize]
                });
                assert_eq!(got.ids[row as usize], want.unwrap() as i64);
                let logprob = f64::from(got.logprobs[row as usize]);
                assert!((logprob - all[want.unwrap()]).abs() < 1e-5);
            }
            assert_eq!(got.ids[2], exact.get(2).argmax(0, false).int64_value(&[]));
        }
    }

    #[test]
    fn rows_that_are_not_finite_have_no_probability() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let logits =
            Tensor::from_slice(&[1.0, nan, 2.0, 1.0, inf, 2.0, -inf, -inf, -inf, 0.0, -inf, 1e30]);
        let got = rows(&logits.view([4, 3]), &[1.0, 0.0, 1.0, 1.0], &[0.5; 4]).unwrap();
        assert!(got.logprobs[..3].iter().all(|l| l.is_nan()), "{:?}", got.logprobs);
        assert_eq!((got.ids[3], got.logprobs[3]), (2, 0.0));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let logits = Tensor::zeros([2, 4], (Kind::Float, Device::Cpu));
        let message =
            |logits: &Tensor, t: &[f32], u: &[f64]| rows(logits, t, u).unwrap_err().to_string();
        assert_eq!(
            message(&logits, &[1.0], &[0.5, 0.5]),
            "sample: 2 rows, 1 temperatures, 2 uniform numbers"
        );
        assert_eq!(
            message(&logits, &[1.0, -1.0], &[0.5, 0.5]),
            "sample: temperature -1 is not 0 or above"
        );
        assert_eq!(message(&logits.view([8]), &[1.0], &[0.5]), "sample: logits [8] are not [R, V]");
        let double = logits.to_kind(Kind::Double);
        assert_eq!(message(&double, &[1.0, 1.0], &[0.5, 0.5]), "sample: logits are Double on Cpu");
    }
}
