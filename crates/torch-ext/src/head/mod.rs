//! The output layer and its cross-entropy in one, in chunks of rows: the logits of all tokens never
//! exist at once. Hsu et al. 2024 (Liger kernel, arXiv 2410.10989), section 3.2.

use tch::{Device, Kind, Tensor};

use crate::autograd::{self, GradMode, Gradients, SavedTensor};
use crate::{Result, TorchError, foreach, linear};

mod rows;
#[cfg(test)]
mod tests;

const OP: &str = "linear_cross_entropy";

/// Logits a chunk holds unless [`HeadOptions::chunk_rows`] says otherwise. Measured: smaller chunks
/// read the weight too often, larger ones leave the cache.
const CHUNK_LOGITS: i64 = 1 << 22;

/// Rows a chunk has at least: the product that gives the weight's gradient sums over them, and over few it only
/// writes memory. Measured for 50,257 tokens: 64 rows run at a third of the speed of 512.
const CHUNK_ROWS: i64 = 512;

/// Rows of logits that exist at a time over a vocabulary of `vocab`, unless [`HeadOptions::chunk_rows`] says otherwise.
pub fn chunk_rows(vocab: i64) -> i64 {
    (CHUNK_LOGITS / vocab.max(1)).max(CHUNK_ROWS) / TILE * TILE
}

/// Rows of the weight's gradient that one product in half precision gives: what it gives is then still in the cache when
/// it is added to the sum in fp32.
const PART_ROWS: i64 = 4096;

/// Rows are best a multiple of this many: see [`linear_cross_entropy`].
pub const TILE: i64 = 64;

/// What [`linear_cross_entropy`] computes beside the loss, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadOptions {
    /// The logits are divided by this, for the loss, the log-probabilities and the entropy alike.
    pub temperature: f64,
    /// Return the log-probability of each target.
    pub want_logprobs: bool,
    /// Return the entropy of each token's distribution.
    pub want_entropy: bool,
    /// Rows a chunk; `None` picks them so that a chunk holds about four million logits, in 512 rows at least.
    pub chunk_rows: Option<i64>,
}

impl Default for HeadOptions {
    fn default() -> Self {
        Self { temperature: 1.0, want_logprobs: false, want_entropy: false, chunk_rows: None }
    }
}

/// The results of [`linear_cross_entropy`], fp32 unless said otherwise, on the inputs' device.
#[derive(Debug)]
pub struct HeadOutput {
    /// Scalar, differentiable: minus the sum of the targets' log-probabilities, in nats.
    pub loss_sum: Tensor,
    /// `[N]`, differentiable: each target's log-probability. Where
    /// [`HeadOptions::want_logprobs`].
    pub logprobs: Option<Tensor>,
    /// `[N]`, differentiable: each distribution's entropy in nats. Where
    /// [`HeadOptions::want_entropy`].
    pub entropy: Option<Tensor>,
    /// Scalar, i64: how many targets had the highest logit (the first of equal ones).
    pub correct: Tensor,
    /// Scalar, not differentiable: the sum of the distributions' entropies, for metrics.
    pub entropy_sum: Tensor,
}

/// Cross-entropy of `softmax((hidden · weightᵀ + bias) / temperature)` against `targets`.
///
/// `hidden` may have more rows than there are targets: the rows behind the last target count for nothing and get zero
/// gradients, so a caller can round the number of rows up and spare the matrix kernels ever new shapes.
///
/// `hidden` `[N, D]`, `weight` `[V, D]` and `bias` `[V]` share a dtype (fp32, bf16, fp16; fp64 gives
/// fp64 results) and device; `targets` `[N]` is i64 on that device. Chunks of logits are in the
/// inputs' dtype, softmax and sums in fp32, and the gradient of `weight` is summed over chunks in
/// fp32. `N = 0` gives zeros, with zero gradients.
///
/// Loss only: when gradients are recorded, those of the inputs are computed here and now, and
/// backward only scales them; they hold a weight-sized fp32 tensor from forward to backward.
/// With log-probabilities or entropy, backward computes the logits again.
///
/// # Errors
/// Shapes, dtypes or devices that do not fit; a target outside `0..V` (named with its row); a
/// temperature that is not positive; `chunk_rows` below 1. On CUDA the check of the targets waits
/// for the device.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &Tensor,
    options: &HeadOptions,
) -> Result<HeadOutput> {
    check_arguments(hidden, weight, bias, targets, options)?;
    let inputs: Vec<&Tensor> = [hidden, weight].into_iter().chain(bias).collect();
    let needed: Vec<bool> =
        inputs.iter().map(|t| autograd::grad_enabled() && t.requires_grad()).collect();
    let lazy = options.want_logprobs || options.want_entropy;
    let chunks = Chunks::new(&inputs, targets, options)?;
    if lazy || !needed.contains(&true) {
        recomputing(chunks, &inputs, needed, options)
    } else {
        precomputing(&chunks, &inputs, needed)
    }
}

/// The loss alone, its gradients computed in forward.
fn precomputing(chunks: &Chunks, inputs: &[&Tensor], needed: Vec<bool>) -> Result<HeadOutput> {
    let (stats, sums) = {
        let _guard = GradMode::set(false);
        let mut sums = Sums::new(chunks, &needed);
        let stats = chunks.forward(Some(&mut sums)).map_err(torch_error)?;
        sums.part = None;
        (stats, sums)
    };
    let totals = Totals::of(&stats);
    let kinds: Vec<Kind> = inputs.iter().map(|t| t.kind()).collect();
    let mut sums = Some(sums);
    let loss_sum = one(autograd::custom(OP, inputs, &[totals.loss], move |grads| {
        let Some(Some(gain)) = grads.first() else {
            return Ok(needed.iter().map(|_| None).collect());
        };
        // The last use may scale in place; an earlier one leaves the sums for the next.
        let sums =
            if autograd::keeps_graph() { sums.as_ref().map(Sums::copy) } else { sums.take() };
        let sums = sums.ok_or_else(|| anyhow::anyhow!("the gradients are used up"))?;
        Ok(sums.finish(&kinds, Some(gain))?)
    })?)?;
    Ok(HeadOutput {
        loss_sum,
        logprobs: None,
        entropy: None,
        correct: totals.correct,
        entropy_sum: totals.entropy,
    })
}

/// The loss with log-probabilities and entropies, their gradients computed in backward.
fn recomputing(
    chunks: Chunks,
    inputs: &[&Tensor],
    needed: Vec<bool>,
    options: &HeadOptions,
) -> Result<HeadOutput> {
    let stats = {
        let _guard = GradMode::set(false);
        chunks.forward(None).map_err(torch_error)?
    };
    let totals = Totals::of(&stats);
    let column = |c: i64| stats.select(1, c).contiguous();
    let outputs = [totals.loss, column(rows::LOGPROB), column(rows::ENTROPY)];
    let kinds: Vec<Kind> = inputs.iter().map(|t| t.kind()).collect();
    let results = autograd::custom(OP, inputs, &outputs, move |grads| {
        let coefficients = chunks.coefficients(grads)?;
        let mut sums = Sums::new(&chunks, &needed);
        chunks.backward(&stats, &coefficients, &mut sums)?;
        Ok(sums.finish(&kinds, None)?)
    })?;
    let [loss_sum, logprobs, entropy] = <[Tensor; 3]>::try_from(results)
        .map_err(|_| TorchError::argument(OP, "missing outputs"))?;
    Ok(HeadOutput {
        loss_sum,
        logprobs: options.want_logprobs.then_some(logprobs),
        entropy: options.want_entropy.then_some(entropy),
        correct: totals.correct,
        entropy_sum: totals.entropy,
    })
}

fn one(tensors: Vec<Tensor>) -> Result<Tensor> {
    tensors.into_iter().next().ok_or_else(|| TorchError::argument(OP, "missing output"))
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn torch_error(error: tch::TchError) -> TorchError {
    TorchError::from_tch(OP, &error)
}

/// The inputs, and the size of the chunks their rows are taken in.
struct Chunks {
    hidden: SavedTensor,
    weight: SavedTensor,
    bias: Option<SavedTensor>,
    targets: Tensor,
    temperature: f64,
    rows: i64,
    size: Size,
}

/// `hidden` [padded, d], of which the first `n` rows have a target; `weight` [v, d].
#[derive(Clone, Copy)]
struct Size {
    n: i64,
    padded: i64,
    d: i64,
    v: i64,
    kind: Kind,
    device: Device,
}

impl Size {
    /// The dtype of statistics and sums.
    fn sum_kind(self) -> Kind {
        if self.kind == Kind::Double { Kind::Double } else { Kind::Float }
    }
}

/// The inputs of one pass, unpacked.
struct Unpacked<'a> {
    hidden: &'a Tensor,
    weight: &'a Tensor,
    weight_t: Tensor,
    bias: Option<&'a Tensor>,
    /// Room for one chunk of logits, of those chunks for which the product takes it.
    logits: Tensor,
}

impl Unpacked<'_> {
    /// The logits of rows `start..start + len`, which hold until the next call.
    fn logits(&self, start: i64, len: i64) -> std::result::Result<Tensor, tch::TchError> {
        let hidden = self.hidden.f_narrow(0, start, len)?;
        if linear::serves(&hidden) {
            return linear::forward(&hidden, self.weight, self.bias)
                .map_err(|e| tch::TchError::Torch(e.to_string()));
        }
        let out = self.logits.f_narrow(0, 0, len)?;
        match self.bias {
            Some(bias) => bias.f_addmm_out(&out, &hidden, &self.weight_t),
            None => hidden.f_mm_out(&out, &self.weight_t),
        }
    }
}

impl Chunks {
    fn new(inputs: &[&Tensor], targets: &Tensor, options: &HeadOptions) -> Result<Self> {
        let (hidden, weight) = (inputs[0], inputs[1]);
        let (padded, d, v) = (hidden.size()[0], hidden.size()[1], weight.size()[0]);
        let n = targets.size()[0];
        let size = Size { n, padded, d, v, kind: hidden.kind(), device: hidden.device() };
        // Whole tiles where there are any, so that the last chunk's size is one of few too.
        let rows = options.chunk_rows.unwrap_or_else(|| chunk_rows(v));
        Ok(Self {
            hidden: SavedTensor::new(hidden)?,
            weight: SavedTensor::new(weight)?,
            bias: inputs.get(2).map(|b| SavedTensor::new(b)).transpose()?,
            targets: targets.detach().contiguous(),
            temperature: options.temperature,
            rows: rows.min(padded.max(1)),
            size,
        })
    }

    fn unpack(&self) -> Result<Unpacked<'_>> {
        let (weight, hidden) = (self.weight.get()?, self.hidden.get()?);
        let whole = linear::serves(&hidden.narrow(0, 0, self.rows.min(self.size.padded)));
        let room = if whole { self.rows.min(linear::DENSE_FROM_ROWS) } else { self.rows };
        Ok(Unpacked {
            hidden,
            weight,
            weight_t: weight.tr(),
            bias: self.bias.as_ref().map(SavedTensor::get).transpose()?,
            logits: Tensor::empty([room, self.size.v], (self.size.kind, self.size.device)),
        })
    }

    /// First row and length of each chunk, and how many of its rows have a target.
    fn ranges(&self) -> impl Iterator<Item = (i64, i64, i64)> + use<> {
        let (Size { n, padded, .. }, rows) = (self.size, self.rows);
        (0..(padded + rows - 1) / rows).map(move |i| {
            let (start, len) = (i * rows, rows.min(padded - i * rows));
            (start, len, (n - start).clamp(0, len))
        })
    }

    /// Statistics of every row; with `sums`, also the gradients of the loss.
    fn forward(&self, mut sums: Option<&mut Sums>) -> std::result::Result<Tensor, tch::TchError> {
        let unpacked = self.unpack().map_err(|e| tch::TchError::Torch(e.to_string()))?;
        let options = (self.size.sum_kind(), self.size.device);
        let stats = Tensor::f_empty([self.size.n, rows::COLUMNS], options)?;
        for (start, len, counted) in self.ranges() {
            let logits = unpacked.logits(start, len)?;
            let first = start.min(self.size.n);
            let targets = self.targets.f_narrow(0, first, counted)?;
            let chunk = stats.f_narrow(0, first, counted)?;
            let real = logits.f_narrow(0, 0, counted)?;
            rows::statistics(&real, &targets, self.temperature, &chunk, sums.is_some())?;
            clear_tail(&logits, counted)?;
            if let Some(sums) = sums.as_deref_mut() {
                sums.add(&logits, &unpacked, start)?;
            }
        }
        Ok(stats)
    }

    /// `[N, 2]`: the gradients of each row's log-probability and entropy, from those of the outputs.
    fn coefficients(&self, grads: &[Option<Tensor>]) -> std::result::Result<Tensor, tch::TchError> {
        let zeros = || Tensor::f_zeros([self.size.n], (self.size.sum_kind(), self.size.device));
        let grad = |i: usize| match grads.get(i) {
            Some(Some(grad)) => Ok(grad.shallow_clone()),
            _ => zeros(),
        };
        let mut logprob = grad(1)?;
        if let Some(Some(loss)) = grads.first() {
            logprob = logprob.f_sub(loss)?;
        }
        Tensor::f_stack(&[logprob, grad(2)?], 1)
    }

    fn backward(&self, stats: &Tensor, coefficients: &Tensor, sums: &mut Sums) -> Result<()> {
        let unpacked = self.unpack()?;
        let mut chunk = |start: i64, len, counted| {
            let logits = unpacked.logits(start, len)?;
            let first = start.min(self.size.n);
            let targets = self.targets.f_narrow(0, first, counted)?;
            let stats = stats.f_narrow(0, first, counted)?;
            let coefficients = coefficients.f_narrow(0, first, counted)?;
            let real = logits.f_narrow(0, 0, counted)?;
            rows::gradient(&real, &targets, self.temperature, &stats, &coefficients)?;
            clear_tail(&logits, counted)?;
            sums.add(&logits, &unpacked, start)
        };
        let all = self.ranges().try_for_each(|(start, len, counted)| chunk(start, len, counted));
        all.map_err(torch_error)
    }
}

/// Sets the rows that have no target to zero: as gradients they add nothing.
fn clear_tail(logits: &Tensor, counted: i64) -> std::result::Result<(), tch::TchError> {
    let tail = logits.size()[0] - counted;
    if tail > 0 {
        let _ = logits.f_narrow(0, counted, tail)?.f_zero_()?;
    }
    Ok(())
}

/// The gradients of the inputs, summed over chunks.
struct Sums {
    /// In `hidden`'s dtype: rows are written once.
    hidden: Option<Tensor>,
    /// fp32 (fp64 for fp64 inputs).
    weight: Option<Tensor>,
    bias: Option<Tensor>,
    /// Room for some rows of one chunk's part of `weight` in half precision.
    part: Option<Tensor>,
}

impl Sums {
    fn new(chunks: &Chunks, needed: &[bool]) -> Self {
        let Size { padded, d, v, kind, device, .. } = chunks.size;
        let zeros = |i: usize, shape: &[i64], kind: Kind| {
            let wanted = needed.get(i).copied().unwrap_or(false);
            wanted.then(|| Tensor::zeros(shape, (kind, device)))
        };
        let sum_kind = chunks.size.sum_kind();
        let weight = zeros(1, &[v, d], sum_kind);
        let part = weight
            .is_some()
            .then(|| Tensor::empty([v.min(PART_ROWS), d], (kind, device)))
            .filter(|_| kind != sum_kind);
        Self { hidden: zeros(0, &[padded, d], kind), weight, bias: zeros(2, &[v], sum_kind), part }
    }

    /// Adds what `grad`, the gradient of the logits of the rows from `start`, gives.
    fn add(
        &mut self,
        grad: &Tensor,
        inputs: &Unpacked<'_>,
        start: i64,
    ) -> std::result::Result<(), tch::TchError> {
        let len = grad.size()[0];
        if let Some(sum) = &self.hidden {
            let _ = grad.f_mm_out(&sum.f_narrow(0, start, len)?, inputs.weight)?;
        }
        if let Some(sum) = &mut self.weight {
            let hidden = inputs.hidden.f_narrow(0, start, len)?;
            let grad_t = grad.f_tr()?;
            match &self.part {
                Some(part) => add_in_parts(sum, part, &grad_t, &hidden)?,
                None => {
                    let _ = sum.f_addmm_(&grad_t, &hidden)?;
                }
            }
        }
        if let Some(sum) = &mut self.bias {
            let part = grad.f_sum_dim_intlist(0, false, sum.kind())?;
            let _ = sum.f_add_(&part)?;
        }
        Ok(())
    }

    fn copy(&self) -> Self {
        let copy = |t: &Option<Tensor>| t.as_ref().map(Tensor::copy);
        Self {
            hidden: copy(&self.hidden),
            weight: copy(&self.weight),
            bias: copy(&self.bias),
            part: None,
        }
    }

    /// The gradients in the inputs' dtypes, multiplied by `gain`.
    fn finish(mut self, kinds: &[Kind], gain: Option<&Tensor>) -> Result<Gradients> {
        let mut all = [self.hidden.take(), self.weight.take(), self.bias.take()];
        if let Some(gain) = gain {
            for tensor in all.iter_mut().flatten() {
                let _ = tensor.f_mul_(gain).map_err(torch_error)?;
            }
        }
        let cast =
            all.into_iter().zip(kinds).map(|(tensor, kind)| tensor.map(|t| t.to_kind(*kind)));
        Ok(cast.collect())
    }
}

/// `sum += gradᵀ · hidden` in half precision, some rows of `sum` at a time.
fn add_in_parts(
    sum: &Tensor,
    part: &Tensor,
    grad_t: &Tensor,
    hidden: &Tensor,
) -> std::result::Result<(), tch::TchError> {
    let (rows, most) = (sum.size()[0], part.size()[0]);
    for start in (0..rows).step_by(most as usize) {
        let len = most.min(rows - start);
        let part = part.f_narrow(0, 0, len)?;
        let _ = grad_t.f_narrow(0, start, len)?.f_mm_out(&part, hidden)?;
        let sum = sum.f_narrow(0, start, len)?;
        foreach::add_(&[sum], &[part], 1.0).map_err(|e| tch::TchError::Torch(e.to_string()))?;
    }
    Ok(())
}

/// Sums over the rows' statistics.
struct Totals {
    loss: Tensor,
    correct: Tensor,
    entropy: Tensor,
}

impl Totals {
    fn of(stats: &Tensor) -> Self {
        let _guard = GradMode::set(false);
        let sum = |column: i64| stats.select(1, column).sum(Kind::Double);
        Self {
            loss: (-sum(rows::LOGPROB)).to_kind(stats.kind()),
            correct: sum(rows::CORRECT).to_kind(Kind::Int64),
            entropy: sum(rows::ENTROPY).to_kind(stats.kind()),
        }
    }
}

fn check_arguments(
    hidden: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &Tensor,
    options: &HeadOptions,
) -> Result<()> {
    let fail = |message: String| Err(TorchError::argument(OP, message));
    let (hs, ws, ts) = (hidden.size(), weight.size(), targets.size());
    if hs.len() != 2 || ws.len() != 2 || hs[1] != ws[1] || ws[0] == 0 {
        return fail(format!("hidden {hs:?} and weight {ws:?} are not [N, D] and [V, D]"));
    }
    if ts.len() != 1 || ts[0] > hs[0] || targets.kind() != Kind::Int64 {
        let (n, kind) = (hs[0], targets.kind());
        return fail(format!("targets are {kind:?} {ts:?}, not Int64 of at most [{n}]"));
    }
    if bias.is_some_and(|b| b.size() != ws[..1]) {
        return fail(format!("bias {:?} is not [{}]", bias.map(Tensor::size), ws[0]));
    }
    let (kind, device) = (hidden.kind(), hidden.device());
    if ![Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double].contains(&kind) {
        return fail(format!("hidden is {kind:?}, not a floating dtype"));
    }
    for (name, tensor) in [("weight", Some(weight)), ("bias", bias)] {
        if let Some(other) = tensor.map(Tensor::kind).filter(|k| *k != kind) {
            return fail(format!("{name} is {other:?}, hidden is {kind:?}"));
        }
    }
    for (name, tensor) in [("weight", Some(weight)), ("bias", bias), ("targets", Some(targets))] {
        if let Some(other) = tensor.map(Tensor::device).filter(|d| *d != device) {
            return fail(format!("{name} on {other:?}, hidden on {device:?}"));
        }
    }
    if !(options.temperature > 0.0 && options.temperature.is_finite()) {
        return fail(format!("temperature {} is not positive", options.temperature));
    }
    if options.chunk_rows.is_some_and(|rows| rows < 1) {
        return fail(format!("chunk_rows {:?} is below 1", options.chunk_rows));
    }
    check_targets(targets, ws[0])
}

fn check_targets(targets: &Tensor, vocab: i64) -> Result<()> {
    if targets.numel() == 0 {
        return Ok(());
    }
    let outside = targets.lt(0).logical_or(&targets.ge(vocab));
    if !bool::try_from(outside.any()).map_err(torch_error)? {
        return Ok(());
    }
    let row = outside.to_kind(Kind::Int64).argmax(0, false).int64_value(&[]);
    let target = targets.int64_value(&[row]);
    Err(TorchError::argument(OP, format!("target {target} in row {row} is outside 0..{vocab}")))
}
