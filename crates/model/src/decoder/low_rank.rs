//! Low-rank updates of a frozen linear layer, computed with it in one autograd node: no gradient of the weight, and a
//! weight in 4 bits is there in full only while a product needs it.

#[cfg(test)]
mod tests;

use super::linear::{Linear, Matrix, product};
use crate::error::Result;
use tch::{Kind, Tensor};
use torch_ext::autograd::{self, GradMode, SavedTensor};

const OP: &str = "low_rank";

/// `scale · B A` for parts of a linear layer's outputs, all of which read the same input.
#[derive(Debug)]
pub(crate) struct LowRank {
    /// `[R, in]`: the parts' `A`, one below another.
    pub(crate) a: Tensor,
    /// In the order of their outputs.
    pub(crate) parts: Vec<Part>,
    /// On the input of `A`, in training. Parts share the mask, as they share the input; PEFT draws one for each.
    pub(crate) dropout: f64,
}

/// One Hugging Face layer.
#[derive(Debug)]
pub(crate) struct Part {
    /// Its first output and number of outputs.
    pub(crate) outputs: (i64, i64),
    /// Its first row of `a` and rank.
    pub(crate) rows: (i64, i64),
    /// `[out, r]`.
    pub(crate) b: Tensor,
    pub(crate) scale: f64,
    /// `DoRA`: the lengths of the weight's rows `[out]`.
    pub(crate) magnitude: Option<Tensor>,
}

impl Part {
    fn share(&self) -> Self {
        Self {
            b: self.b.shallow_clone(),
            magnitude: self.magnitude.as_ref().map(Tensor::shallow_clone),
            ..*self
        }
    }
}

/// What a part is without its tensors.
#[derive(Debug, Clone, Copy)]
struct Place {
    outputs: (i64, i64),
    rows: (i64, i64),
    scale: f64,
}

impl LowRank {
    /// A handle on the same tensors.
    pub(super) fn share(&self) -> Self {
        let parts = self.parts.iter().map(Part::share).collect();
        Self { a: self.a.shallow_clone(), parts, dropout: self.dropout }
    }

    pub(super) fn leaves(&self) -> impl Iterator<Item = &Tensor> {
        let parts =
            self.parts.iter().flat_map(|part| std::iter::once(&part.b).chain(&part.magnitude));
        std::iter::once(&self.a).chain(parts)
    }

    fn has_magnitudes(&self) -> bool {
        self.parts.iter().any(|part| part.magnitude.is_some())
    }

    /// The layer with the update: `x [T, in]` to `[T, out]`.
    pub(super) fn forward(&self, layer: &Linear, x: &Tensor, training: bool) -> Result<Tensor> {
        let drops = training && self.dropout > 0.0;
        let thinned = if drops { x.f_dropout(self.dropout, true)? } else { x.shallow_clone() };
        let apart = drops.then_some(&thinned);
        if self.has_magnitudes() {
            return self.decomposed(layer, x, apart);
        }
        self.updated(&layer.matrix, layer.bias.as_ref(), x, apart)
    }

    /// `x · weight + bias + scale · (thinned Aᵀ) Bᵀ`, `thinned` being `x` where it is absent.
    fn updated(
        &self,
        matrix: &Matrix,
        bias: Option<&Tensor>,
        x: &Tensor,
        thinned: Option<&Tensor>,
    ) -> Result<Tensor> {
        if !matrix.trains() {
            return self.node(Some(matrix), bias, 0).forward(x, thinned);
        }
        // Some of the layers side by side train whole.
        let whole = product(x, &matrix.in_out()?, bias)?;
        let update = self.node(None, None, whole.size()[1]).forward(thinned.unwrap_or(x), None)?;
        Ok(whole + update)
    }

    /// `DoRA`: the direction of `W + scale · B A`, times learned lengths. The length of the sum is taken as a constant in
    /// the backward pass (section 4.3).
    fn decomposed(&self, layer: &Linear, x: &Tensor, thinned: Option<&Tensor>) -> Result<Tensor> {
        let factors = self.factors(&layer.matrix)?;
        let matrix = &layer.matrix;
        let scaled = match thinned {
            None => self.updated(matrix, None, x, None)? * factors,
            Some(thinned) => {
                let whole = self.updated(matrix, None, thinned, None)?;
                let base = plain(matrix, None, x)?;
                base - plain(matrix, None, thinned)? + whole * factors
            }
        };
        Ok(match &layer.bias {
            Some(bias) => scaled + bias,
            None => scaled,
        })
    }

    /// What each output is multiplied with `[out]`: its magnitude over the length of its row.
    fn factors(&self, matrix: &Matrix) -> Result<Tensor> {
        let lengths = tch::no_grad(|| -> Result<Tensor> {
            let weight = matrix.in_out()?.tr();
            Ok(row_lengths(&self.sum(&weight.to_kind(Kind::Float))?))
        })?;
        let mut factors = Vec::new();
        let (mut at, total) = (0, lengths.size()[0]);
        let ones = |n: i64| lengths.new_ones([n], (Kind::Float, lengths.device()));
        for part in &self.parts {
            let (start, count) = part.outputs;
            factors.push(ones(start - at));
            factors.push(match &part.magnitude {
                Some(magnitude) => {
                    magnitude.to_kind(Kind::Float) / divisors(&lengths.narrow(0, start, count))
                }
                None => ones(count),
            });
            at = start + count;
        }
        factors.push(ones(total - at));
        Ok(Tensor::f_cat(&factors, 0)?.to_kind(self.a.kind()))
    }

    /// `weight + scale · B A`, fp32 `[out, in]`.
    fn sum(&self, weight: &Tensor) -> Result<Tensor> {
        let sum = weight.copy();
        for part in &self.parts {
            let (from, count) = part.outputs;
            let a = self.a.narrow(0, part.rows.0, part.rows.1).to_kind(Kind::Float);
            let update = part.b.to_kind(Kind::Float).f_mm(&a)? * part.scale;
            let _ = sum.narrow(0, from, count).f_add_(&update)?;
        }
        Ok(sum)
    }

    /// The weight of the plain layer that computes the same, from the frozen one: fp32 `[out, in]`.
    pub(crate) fn merged(&self, weight: &Tensor) -> Result<Tensor> {
        let sum = self.sum(weight)?;
        for part in &self.parts {
            let Some(magnitude) = &part.magnitude else { continue };
            let mut rows = sum.narrow(0, part.outputs.0, part.outputs.1);
            let factor = magnitude.to_kind(Kind::Float) / divisors(&row_lengths(&rows));
            let _ = rows.f_mul_(&factor.unsqueeze(1))?;
        }
        Ok(sum)
    }

    /// The update with what is frozen around it; `width` is the number of outputs where there is no matrix.
    fn node<'a>(
        &'a self,
        matrix: Option<&'a Matrix>,
        bias: Option<&'a Tensor>,
        width: i64,
    ) -> Node<'a> {
        let place = |p: &Part| Place { outputs: p.outputs, rows: p.rows, scale: p.scale };
        let places = self.parts.iter().map(place).collect();
        let bs = self.parts.iter().map(|part| &part.b).collect();
        Node { matrix, bias, a: Some(&self.a), bs, places, width }
    }
}

/// A layer without any change: the gradient of a frozen one goes to `x` (and the bias) only.
pub(super) fn plain(matrix: &Matrix, bias: Option<&Tensor>, x: &Tensor) -> Result<Tensor> {
    if matrix.trains() {
        return product(x, &matrix.in_out()?, bias);
    }
    Node { matrix: Some(matrix), bias, a: None, bs: Vec::new(), places: Vec::new(), width: 0 }
        .forward(x, None)
}

/// Lengths to divide by: a row of zeros stays one.
fn divisors(lengths: &Tensor) -> Tensor {
    lengths.clamp_min(f64::from(f32::MIN_POSITIVE))
}

/// L2 norms of the rows of `[out, in]`.
pub(crate) fn row_lengths(weight: &Tensor) -> Tensor {
    weight.square().sum_dim_intlist(1, false, Kind::Float).sqrt()
}

/// The inputs of one autograd node.
struct Node<'a> {
    matrix: Option<&'a Matrix>,
    bias: Option<&'a Tensor>,
    a: Option<&'a Tensor>,
    bs: Vec<&'a Tensor>,
    places: Vec<Place>,
    /// Number of outputs, where there is no matrix.
    width: i64,
}

impl Node<'_> {
    fn forward(&self, x: &Tensor, thinned: Option<&Tensor>) -> Result<Tensor> {
        let mut inputs: Vec<&Tensor> = vec![x];
        inputs.extend(thinned);
        inputs.extend(self.bias);
        inputs.extend(self.a);
        inputs.extend(&self.bs);
        let records = autograd::grad_enabled() && inputs.iter().any(|t| t.requires_grad());
        let (out, inner) = {
            let _guard = GradMode::set(false);
            self.compute(x, thinned)?
        };
        if !records {
            return Ok(out);
        }
        let save = |t: &Tensor| SavedTensor::new(t);
        let low_rank = match (self.a, inner) {
            (Some(a), Some(inner)) => Some(SavedLowRank {
                input: save(thinned.unwrap_or(x))?,
                a: save(a)?,
                bs: self.bs.iter().map(|b| save(b)).collect::<torch_ext::Result<_>>()?,
                places: self.places.clone(),
                inner,
            }),
            _ => None,
        };
        let backward = Backward {
            matrix: self.matrix.map(Matrix::share),
            low_rank,
            needs_x: x.requires_grad(),
            needs_thinned: thinned.map(Tensor::requires_grad),
            needs_bias: self.bias.map(Tensor::requires_grad),
        };
        let mut out =
            autograd::custom(OP, &inputs, &[out], move |grads| backward.run(grads.first()))?;
        Ok(out.remove(0))
    }

    /// The output, and `scale · input · Aᵀ` `[T, R]`.
    fn compute(&self, x: &Tensor, thinned: Option<&Tensor>) -> Result<(Tensor, Option<Tensor>)> {
        let x = x.detach();
        let out = match self.matrix {
            Some(matrix) => product(&x, &matrix.in_out()?, self.bias)?,
            None => x.new_zeros([x.size()[0], self.width], (x.kind(), x.device())),
        };
        let Some(a) = self.a else { return Ok((out, None)) };
        let input = thinned.map_or_else(|| x.shallow_clone(), Tensor::detach);
        let inner = scale_rows(product(&input, &a.detach().tr(), None)?, &self.places);
        for (place, b) in self.places.iter().zip(&self.bs) {
            let (outputs, rows) = (place.outputs, place.rows);
            let part = inner.narrow(1, rows.0, rows.1);
            let _ = out.narrow(1, outputs.0, outputs.1).f_addmm_(&part, &b.detach().tr())?;
        }
        Ok((out, Some(inner)))
    }
}

/// The columns `[T, R]` of each part times its scale.
fn scale_rows(inner: Tensor, places: &[Place]) -> Tensor {
    let first = places.first().map_or(1.0, |place| place.scale);
    if places.iter().all(|place| place.scale == first) {
        return inner * first;
    }
    for place in places {
        let _ = inner.narrow(1, place.rows.0, place.rows.1).g_mul_scalar_(place.scale);
    }
    inner
}

struct SavedLowRank {
    input: SavedTensor,
    a: SavedTensor,
    bs: Vec<SavedTensor>,
    places: Vec<Place>,
    inner: Tensor,
}

/// What the backward pass needs.
struct Backward {
    matrix: Option<Matrix>,
    low_rank: Option<SavedLowRank>,
    needs_x: bool,
    needs_thinned: Option<bool>,
    needs_bias: Option<bool>,
}

impl Backward {
    /// The gradients of `x`, `thinned`, bias, `A` and each `B`.
    fn run(&self, grad: Option<&Option<Tensor>>) -> anyhow::Result<Vec<Option<Tensor>>> {
        let count = 1
            + usize::from(self.needs_thinned.is_some())
            + usize::from(self.needs_bias.is_some())
            + self.low_rank.as_ref().map_or(0, |low_rank| 1 + low_rank.bs.len());
        let Some(Some(grad)) = grad else { return Ok((0..count).map(|_| None).collect()) };
        let mut of_x = None;
        if let Some(matrix) = self.matrix.as_ref().filter(|_| self.needs_x) {
            of_x = Some(product(grad, &matrix.in_out()?.tr(), None)?);
        }
        let mut of_thinned = None;
        let mut adapter = Vec::new();
        if let Some(saved) = &self.low_rank {
            let (of_inner, of_bs) = saved.of_inner(grad)?;
            let a = saved.a.get()?;
            match (self.needs_thinned, &mut of_x) {
                (Some(true), _) => of_thinned = Some(product(&of_inner, a, None)?),
                (None, Some(of_x)) => {
                    let _ = of_x.f_addmm_(&of_inner, a)?;
                }
                (None, None) if self.needs_x => of_x = Some(product(&of_inner, a, None)?),
                _ => {}
            }
            adapter.push(Some(of_inner.tr().f_mm(saved.input.get()?)?));
            adapter.extend(of_bs);
        }
        let mut all = vec![of_x];
        all.extend(self.needs_thinned.map(|_| of_thinned));
        all.extend(
            self.needs_bias
                .map(|needed| needed.then(|| grad.sum_dim_intlist(0, false, None::<Kind>))),
        );
        all.extend(adapter);
        Ok(all)
    }
}

impl SavedLowRank {
    /// The gradient of `input · Aᵀ` `[T, R]`, and those of each `B`.
    fn of_inner(&self, grad: &Tensor) -> anyhow::Result<(Tensor, Vec<Option<Tensor>>)> {
        let mut of_bs = Vec::new();
        let mut of_inner = Vec::new();
        for (place, b) in self.places.iter().zip(&self.bs) {
            let (outputs, rows) = (place.outputs, place.rows);
            let grad = grad.narrow(1, outputs.0, outputs.1);
            of_bs.push(Some(grad.tr().f_mm(&self.inner.narrow(1, rows.0, rows.1))?));
            of_inner.push(grad.f_mm(b.get()?)?);
        }
        let of_inner = match of_inner.len() {
            1 => of_inner.remove(0),
            _ => Tensor::f_cat(&of_inner, 1)?,
        };
        Ok((scale_rows(of_inner, &self.places), of_bs))
    }
}
