//! AdamW over the fp32 master weights, with a state that can be saved and put back to the bit.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail, ensure};
use data::batch::Share;
use model::division::slice;
use model::{Precision, Trainable};
use tch::{Kind, Tensor};
use torch_ext::blockwise::BLOCK;
use torch_ext::optim::{self, AdamWOptions, adamw_8bit, fused_adamw};

use crate::settings;

/// AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2) over named fp32 tensors.
///
/// A parameter's learning rate is the settings' times its [`Trainable::rate`]. What is given as a slice of a parameter is treated
/// as that part of it.
///
/// # Deviations
/// 1. Weight decay acts on tensors of two or more dimensions only; biases and norm weights are not decayed.
/// 2. `learning_rate` multiplies the decay as in PyTorch, where the paper's η is the schedule factor alone.
#[derive(Debug)]
pub struct AdamW {
    groups: Vec<Group>,
    settings: settings::Optimizer,
}

/// Parameters that share weight decay and learning rate, in the order of the model's parameters.
#[derive(Debug)]
struct Group {
    decays: bool,
    rate: f64,
    states: Vec<State>,
}

/// What is kept of one parameter.
#[derive(Debug)]
struct State {
    name: String,
    /// Numbers in the whole parameter.
    numel: i64,
    moments: Moments,
    /// Steps taken, an fp32 scalar.
    step: Tensor,
    /// The same where it is known without asking the device.
    taken: Option<i64>,
}

#[derive(Debug)]
enum Moments {
    /// fp32, of the parameter's shape: the running means of the gradient and of its square.
    Full([Tensor; 2]),
    EightBit(optim::Moments),
}

/// As in bitsandbytes, smaller tensors keep their moments in fp32.
const LEAST_8BIT: i64 = 4096;

impl State {
    fn new(weight: &Trainable<'_>, bits: u32) -> Self {
        let (master, device) = (&weight.master, weight.master.device());
        let eight = bits == 8 && weight.numel() >= LEAST_8BIT && !weight.is_embedding();
        let moments = if eight {
            Moments::EightBit(optim::Moments::zeros(master.numel() as i64, device))
        } else {
            Moments::Full([master.zeros_like(), master.zeros_like()])
        };
        let step = Tensor::zeros([], (Kind::Float, device));
        let (name, numel) = (weight.name.to_owned(), weight.numel());
        Self { name, numel, moments, step, taken: Some(0) }
    }

    /// The pieces by the first part of their key.
    fn pieces(&self) -> Vec<(&'static str, &Tensor)> {
        let mut pieces = match &self.moments {
            Moments::Full([first, second]) => vec![("exp_avg", first), ("exp_avg_sq", second)],
            Moments::EightBit(optim::Moments { exp_avg, exp_avg_sq, .. }) => vec![
                ("exp_avg", &exp_avg.codes),
                ("exp_avg_absmax", &exp_avg.absmax),
                ("exp_avg_sq", &exp_avg_sq.codes),
                ("exp_avg_sq_absmax", &exp_avg_sq.absmax),
            ],
        };
        pieces.push(("step", &self.step));
        pieces
    }
}

impl Group {
    /// Whether a parameter belongs here.
    fn takes(&self, weight: &Trainable<'_>) -> bool {
        self.decays == decays(weight) && self.rate == weight.rate
    }

    fn step(&mut self, weights: &[&Trainable<'_>], options: &AdamWOptions) -> anyhow::Result<()> {
        let own = self.states.iter().map(|state| state.name.as_str());
        ensure!(own.eq(weights.iter().map(|weight| weight.name)), OTHERS);
        // All full ones in one call.
        let [mut masters, mut grads, mut firsts, mut seconds, mut steps] = [(); 5].map(|()| vec![]);
        for (state, weight) in self.states.iter_mut().zip(weights) {
            match &mut state.moments {
                Moments::Full([first, second]) => {
                    masters.push(&weight.master);
                    grads.push(&weight.grad);
                    firsts.push(&*first);
                    seconds.push(&*second);
                    steps.push(&state.step);
                }
                Moments::EightBit(moments) => {
                    let before = state.taken.unwrap_or_else(|| state.step.double_value(&[]) as i64);
                    let _ = tch::no_grad(|| state.step.g_add_scalar_(1));
                    state.taken = Some(before + 1);
                    adamw_8bit(&weight.master, &weight.grad, moments, before + 1, options)?;
                }
            }
        }
        fused_adamw(&masters, &grads, &firsts, &seconds, &steps, options)?;
        Ok(())
    }

    /// `(key, tensor)` for every piece of state; the tensors share storage with the state.
    fn entries(&self) -> impl Iterator<Item = (String, Tensor)> {
        self.states.iter().flat_map(|state| {
            let pieces = state.pieces().into_iter();
            pieces.map(|(kind, tensor)| (format!("{kind}.{}", state.name), tensor.shallow_clone()))
        })
    }
}

fn lacks(key: &str) -> String {
    format!("the optimiser state lacks `{key}`")
}

const OTHERS: &str = "the trainable parameters are not those the optimiser was made for";

/// Whether weight decay acts on this parameter.
fn decays(weight: &Trainable<'_>) -> bool {
    weight.shape.len() >= 2
}

impl AdamW {
    /// An optimiser with zero state over `parameters`.
    #[must_use]
    pub fn new(parameters: &[Trainable<'_>], settings: &settings::Optimizer) -> Self {
        // Decayed ones first.
        let mut groups: Vec<Group> = Vec::new();
        for decayed in [true, false] {
            for weight in parameters.iter().filter(|weight| decays(weight) == decayed) {
                let state = State::new(weight, settings.optim_bits);
                if let Some(group) = groups.iter_mut().find(|group| group.takes(weight)) {
                    group.states.push(state);
                } else {
                    let rate = weight.rate;
                    groups.push(Group { decays: decayed, rate, states: vec![state] });
                }
            }
        }
        Self { groups, settings: settings.clone() }
    }

    /// Bytes of all state.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let pieces = self.state().into_iter();
        pieces.map(|(_, piece)| piece.numel() * piece.kind().elt_size_in_bytes()).sum()
    }

    /// One update of `parameters`, the same as at [`Self::new`], from their gradients at `factor` times the peak
    /// learning rate.
    ///
    /// # Errors
    /// Other parameters than at the start, or whatever libtorch reports.
    pub fn step(&mut self, parameters: &[Trainable<'_>], factor: f64) -> anyhow::Result<()> {
        let known = parameters.iter().filter(|p| self.groups.iter().any(|group| group.takes(p)));
        ensure!(known.count() == parameters.len(), OTHERS);
        let settings = &self.settings;
        for group in &mut self.groups {
            let options = AdamWOptions {
                lr: settings.learning_rate * factor * group.rate,
                beta1: settings.adam_beta1,
                beta2: settings.adam_beta2,
                eps: settings.adam_epsilon,
                weight_decay: if group.decays { settings.weight_decay } else { 0.0 },
            };
            let own: Vec<_> = parameters.iter().filter(|weight| group.takes(weight)).collect();
            group.step(&own, &options)?;
        }
        Ok(())
    }

    /// What gradients are clipped to.
    #[must_use]
    pub fn max_grad_norm(&self) -> Option<f64> {
        self.settings.max_grad_norm
    }

    /// Every piece of state by name: `exp_avg.<weight>`, `exp_avg_sq.<weight>`, `step.<weight>`, all fp32; of moments in 8
    /// bits the first two are u8 codes, with `exp_avg_absmax.<weight>` and `exp_avg_sq_absmax.<weight>` beside them. The
    /// tensors share storage with the state.
    #[must_use]
    pub fn state(&self) -> Vec<(String, Tensor)> {
        self.groups.iter().flat_map(Group::entries).collect()
    }

    /// Puts back what one rank or many saved. `pieces` gives what the ranks have under a key, in their order: together the state
    /// of the whole parameter. `share` is the part of each parameter that this optimiser was made for.
    ///
    /// # Errors
    /// Those of `pieces`; as [`load_state`](Self::load_state).
    pub(crate) fn load_pieces(
        &mut self,
        pieces: &dyn Fn(&str) -> anyhow::Result<Vec<Tensor>>,
        share: Share,
    ) -> anyhow::Result<()> {
        let mut own = BTreeMap::new();
        for state in self.groups.iter().flat_map(|group| &group.states) {
            for (kind, piece) in state.pieces() {
                let key = format!("{kind}.{}", state.name);
                let found = pieces(&key)?;
                let first = found.first().with_context(|| lacks(&key))?;
                if kind == "step" {
                    own.insert(key, first.shallow_clone());
                    continue;
                }
                // Slices are whole blocks, so those of the scales follow one another as well.
                let flat: Vec<Tensor> = found.iter().map(|piece| piece.reshape([-1])).collect();
                let whole = Tensor::cat(&flat, 0);
                let unit = if kind.ends_with("absmax") { BLOCK } else { 1 };
                let range = slice(state.numel, share.rank, share.size);
                let (start, end) = (range.start / unit, (range.end + unit - 1) / unit);
                let there = whole.size()[0];
                ensure!(
                    there == (state.numel + unit - 1) / unit,
                    "the optimiser state's `{key}` has {there} numbers, the model's parameter {}",
                    state.numel
                );
                let part = whole.narrow(0, start, end - start);
                own.insert(key, part.view(piece.size().as_slice()));
            }
        }
        self.load_state(&own)
    }

    /// Puts back what [`Self::state`] gave.
    ///
    /// # Errors
    /// A piece missing, left over or of another shape; the message names it.
    pub fn load_state(&mut self, saved: &BTreeMap<String, Tensor>) -> anyhow::Result<()> {
        let own = self.state();
        for (key, tensor) in &own {
            let value = saved.get(key).with_context(|| lacks(key))?;
            ensure!(
                value.size() == tensor.size(),
                "the optimiser state's `{key}` has shape {:?}, the model's {:?}",
                value.size(),
                tensor.size()
            );
            let (stored, kind) = (value.kind(), tensor.kind());
            ensure!(stored == kind, "the optimiser state's `{key}` is {stored:?}, not {kind:?}");
            tch::no_grad(|| tensor.shallow_clone().copy_(value));
        }
        for state in self.groups.iter_mut().flat_map(|group| &mut group.states) {
            state.taken = None;
        }
        if saved.len() > own.len() {
            let known: BTreeSet<&String> = own.iter().map(|(key, _)| key).collect();
            let extra = saved.keys().find(|key| !known.contains(key));
            bail!(
                "the optimiser state has a `{}` that this model does not have",
                extra.map_or("", |k| k)
            );
        }
        Ok(())
    }
}

/// The factor that brings gradients of L2 norm `norm` down to `max_norm`; 1 where they are within it or it is absent.
///
/// Paper: Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", arXiv:1211.5063, algorithm 1.
///
/// # Deviations
/// 1e-6 is added to the norm, as in PyTorch.
#[must_use]
pub fn clip_factor(norm: f64, max_norm: Option<f64>) -> f64 {
    max_norm.map_or(1.0, |most| (most / (norm + 1e-6)).min(1.0))
}

/// The dynamic loss scale of fp16 training (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2).
///
/// The loss is multiplied by `scale` before the backward pass and gradients divided by it before they are used. An
/// overflow halves the scale and skips the step; 2,000 good steps in a row double it (PyTorch `GradScaler`'s defaults).
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LossScale {
    /// The factor on the loss.
    pub scale: f64,
    good_steps: u32,
}

impl LossScale {
    const GROWTH_INTERVAL: u32 = 2000;

    /// The scale a run starts with: 65,536 for fp16, 1 (and never changing) otherwise.
    #[must_use]
    pub fn new(precision: Precision) -> Self {
        let scale = if precision == Precision::Fp16 { 65536.0 } else { 1.0 };
        Self { scale, good_steps: 0 }
    }

    /// Takes note of whether the step's gradients were finite.
    pub fn update(&mut self, precision: Precision, finite: bool) {
        if precision != Precision::Fp16 {
            return;
        }
        if finite {
            self.good_steps += 1;
            if self.good_steps == Self::GROWTH_INTERVAL {
                self.scale *= 2.0;
                self.good_steps = 0;
            }
        } else {
            self.scale /= 2.0;
            self.good_steps = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Precision;

    fn settings() -> settings::Optimizer {
        settings::Optimizer {
            learning_rate: 0.1,
            weight_decay: 0.5,
            adam_beta1: 0.9,
            adam_beta2: 0.99,
            adam_epsilon: 1e-8,
            optim_bits: 32,
            max_grad_norm: None,
        }
    }

    /// A matrix and a bias of ones, with gradient 2.
    fn weights() -> Vec<Trainable<'static>> {
        [("matrix", vec![1, 1]), ("bias", vec![1])]
            .into_iter()
            .map(|(name, shape)| {
                let master = Tensor::ones(shape, (Kind::Float, tch::Device::Cpu));
                let shape: &'static [i64] = if name == "bias" { &[1] } else { &[1, 1] };
                Trainable { name, shape, grad: master.full_like(2.0), master, rate: 1.0 }
            })
            .collect()
    }

    fn values(weights: &[Trainable<'_>]) -> Vec<f64> {
        weights.iter().map(|w| w.master.sum(Kind::Double).double_value(&[])).collect()
    }

    #[test]
    fn decay_acts_on_matrices_only() {
        let weights = weights();
        AdamW::new(&weights, &settings()).step(&weights, 1.0).unwrap();
        // first step of Adam moves by lr whatever the gradient; decay takes lr * 0.5 of the matrix before it
        let got = values(&weights);
        assert!((got[0] - (1.0 - 0.05 - 0.1)).abs() < 1e-6, "{got:?}");
        assert!((got[1] - (1.0 - 0.1)).abs() < 1e-6, "{got:?}");
    }

    #[test]
    fn a_parameter_may_have_its_own_learning_rate() {
        let mut weights = weights();
        weights[1].rate = 4.0;
        let mut optimizer = AdamW::new(&weights, &settings());
        optimizer.step(&weights, 0.5).unwrap();
        let got = values(&weights);
        assert!((got[0] - (1.0 - 0.025 - 0.05)).abs() < 1e-6, "{got:?}");
        assert!((got[1] - (1.0 - 0.2)).abs() < 1e-6, "{got:?}");
        // Two moments and a step counter of each.
        assert_eq!(optimizer.bytes(), 2 * 3 * 4);
    }

    #[test]
    fn state_put_back_continues_to_the_bit() {
        let straight = weights();
        let mut optimizer = AdamW::new(&straight, &settings());
        optimizer.step(&straight, 1.0).unwrap();
        let saved: BTreeMap<String, Tensor> =
            optimizer.state().into_iter().map(|(k, t)| (k, t.copy())).collect();
        let after_one = values(&straight);
        optimizer.step(&straight, 0.5).unwrap();

        let mut resumed = weights();
        for (weight, value) in resumed.iter_mut().zip(after_one) {
            let _ = weight.master.fill_(value);
        }
        let mut second = AdamW::new(&resumed, &settings());
        second.load_state(&saved).unwrap();
        second.step(&resumed, 0.5).unwrap();
        assert_eq!(values(&straight), values(&resumed));
    }

    /// A large matrix, an embedding and a vector, with gradients that differ from number to number.
    fn large() -> Vec<Trainable<'static>> {
        [("a.weight", vec![64, 80]), ("wte.weight", vec![64, 80]), ("a.bias", vec![80])]
            .into_iter()
            .map(|(name, shape)| {
                let master = Tensor::ones(&shape, (Kind::Float, tch::Device::Cpu));
                let numbers =
                    Tensor::arange(master.numel() as i64, (Kind::Float, tch::Device::Cpu));
                let grad = (numbers * 0.37).sin().view(shape.as_slice());
                let shape: &'static [i64] = if name == "a.bias" { &[80] } else { &[64, 80] };
                Trainable { name, shape, grad, master, rate: 1.0 }
            })
            .collect()
    }

    #[test]
    fn matrices_alone_take_8_bits_and_their_state_continues_to_the_bit() {
        let eight = settings::Optimizer { optim_bits: 8, ..settings() };
        let straight = large();
        let mut optimizer = AdamW::new(&straight, &eight);
        optimizer.step(&straight, 1.0).unwrap();
        let saved: BTreeMap<String, Tensor> =
            optimizer.state().into_iter().map(|(k, t)| (k, t.copy())).collect();
        let kind = |key: &str| saved[key].kind();
        assert_eq!(kind("exp_avg.a.weight"), Kind::Uint8);
        assert_eq!(saved["exp_avg_sq_absmax.a.weight"].size(), [20]);
        assert_eq!([kind("exp_avg.wte.weight"), kind("exp_avg_sq.a.bias")], [Kind::Float; 2]);
        let after_one: Vec<Tensor> = straight.iter().map(|w| w.master.copy()).collect();
        optimizer.step(&straight, 0.5).unwrap();

        let resumed = large();
        for (weight, value) in resumed.iter().zip(&after_one) {
            weight.master.shallow_clone().copy_(value);
        }
        let mut second = AdamW::new(&resumed, &eight);
        second.load_state(&saved).unwrap();
        second.step(&resumed, 0.5).unwrap();
        assert!(straight.iter().zip(&resumed).all(|(a, b)| a.master.equal(&b.master)));
        let full = AdamW::new(&large(), &settings()).load_state(&saved).unwrap_err().to_string();
        assert!(full.contains("`exp_avg.a.weight`"), "{full}");
    }

    #[test]
    fn a_state_of_another_model_is_refused() {
        let mut optimizer = AdamW::new(&weights(), &settings());
        let mut state: BTreeMap<String, Tensor> = optimizer.state().into_iter().collect();
        let taken = state.remove("exp_avg.bias").unwrap();
        let missing = optimizer.load_state(&state).unwrap_err().to_string();
        assert_eq!(missing, "the optimiser state lacks `exp_avg.bias`");
        state.insert("exp_avg.bias".into(), taken.view([1, 1]));
        let shaped = optimizer.load_state(&state).unwrap_err().to_string();
        assert_eq!(
            shaped,
            "the optimiser state's `exp_avg.bias` has shape [1, 1], the model's [1]"
        );
        state.insert("exp_avg.bias".into(), taken.view([1]));
        state.insert("exp_avg.other".into(), taken);
        let extra = optimizer.load_state(&state).unwrap_err().to_string();
        assert_eq!(
            extra,
            "the optimiser state has a `exp_avg.other` that this model does not have"
        );
    }

    #[test]
    fn other_parameters_than_at_the_start_are_refused() {
        let mut optimizer = AdamW::new(&weights(), &settings());
        assert!(optimizer.step(&weights()[..1], 1.0).is_err());
    }

    #[test]
    fn gradients_are_scaled_down_to_the_norm_and_never_up() {
        assert!((clip_factor(4.0, Some(1.0)) - 0.25).abs() < 1e-6);
        assert_eq!((clip_factor(0.5, Some(1.0)), clip_factor(9.0, None)), (1.0, 1.0));
        assert_eq!(clip_factor(0.0, Some(1.0)), 1.0);
    }

    #[test]
    fn the_scale_halves_on_overflow_and_grows_after_2000_good_steps() {
        let mut scale = LossScale::new(Precision::Fp16);
        scale.update(Precision::Fp16, false);
        assert!((scale.scale - 32768.0).abs() < f64::EPSILON);
        for _ in 0..2000 {
            scale.update(Precision::Fp16, true);
        }
        assert!((scale.scale - 65536.0).abs() < f64::EPSILON);
        let mut fixed = LossScale::new(Precision::Bf16);
        fixed.update(Precision::Bf16, false);
        assert!((fixed.scale - 1.0).abs() < f64::EPSILON);
    }
}
