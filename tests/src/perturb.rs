//! Changes of a model that a comparison must see.

use model::Decoder;
use tch::no_grad;

/// Multiplies every weight of one parameter by `factor`.
///
/// # Panics
/// If the model has no parameter of this name.
pub fn scale(decoder: &Decoder, parameter: &str, factor: f64) {
    let mut weight = decoder.params().get(parameter).expect("a name of this model");
    no_grad(|| {
        let _ = weight.g_mul_scalar_(factor);
    });
}

/// As [`scale`] by 1 %; but a norm behind a product takes the same factor of all its weights out again, so half of them
/// change there, and by more.
///
/// # Panics
/// As [`scale`].
pub fn change(decoder: &Decoder, parameter: &str) {
    let normed = decoder.config().qk_norm
        && (parameter.ends_with("q_proj.weight") || parameter.ends_with("k_proj.weight"));
    if !normed {
        return scale(decoder, parameter, 1.01);
    }
    let weight = decoder.params().get(parameter).expect("a name of this model");
    no_grad(|| {
        let _ = weight.narrow(0, 0, weight.size()[0] / 2).narrow(1, 0, 1).g_mul_scalar_(1.1);
    });
}
