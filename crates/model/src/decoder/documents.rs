//! How attention divides a flat row: documents one after another, or continuations that share a prompt.

use crate::error::{Error, Result};
use tch::{Device, Kind, Tensor};
use torch_ext::attention::{Seqlens, Varlen, varlen};
use torch_ext::autograd;

/// The documents of a flat row. Cheap to clone.
#[derive(Debug)]
pub(crate) struct Documents {
    /// Of the layout that attention runs on: the flat row itself, or the spread one.
    seqlens: Seqlens,
    spread: Option<Spread>,
}

/// Where the tokens of a flat row lie in the spread layout, in which every continuation has its own copy of the prompt.
#[derive(Debug)]
struct Spread {
    /// `[U]`: for each token of the spread layout its index in the flat row.
    expand: Tensor,
    /// `[T]`: for each token of the flat row its first place in the spread layout.
    keep: Tensor,
    /// The second copies, the third ones, ...: places in the spread layout and in the flat row, each at most once a round.
    rounds: Vec<[Tensor; 2]>,
}

impl Documents {
    /// Documents one after another.
    pub(crate) fn plain(cu_seqlens: Vec<i64>) -> Result<Self> {
        Ok(Self { seqlens: Seqlens::new(cu_seqlens)?, spread: None })
    }

    /// Documents of the spread layout that `expand` describes, over a flat row of `tokens` tokens.
    ///
    /// # Errors
    /// A token of the row without a place, or a place without a token.
    pub(crate) fn spread(
        cu_seqlens: Vec<i64>,
        expand: &[i64],
        tokens: usize,
        device: Device,
    ) -> Result<Self> {
        let seqlens = Seqlens::new(cu_seqlens)?;
        let mut keep = vec![-1; tokens];
        let mut copies = vec![0_usize; tokens];
        let mut rounds: Vec<[Vec<i64>; 2]> = Vec::new();
        for (place, &token) in expand.iter().enumerate() {
            let index = usize::try_from(token).ok().filter(|&index| index < tokens);
            let index = index
                .ok_or_else(|| Error::Input(format!("no token {token} in a row of {tokens}")))?;
            let copy = copies[index];
            copies[index] += 1;
            if copy == 0 {
                keep[index] = place as i64;
                continue;
            }
            if rounds.len() < copy {
                rounds.push([Vec::new(), Vec::new()]);
            }
            rounds[copy - 1][0].push(place as i64);
            rounds[copy - 1][1].push(token);
        }
        if let Some(token) = keep.iter().position(|place| *place < 0) {
            return Err(Error::Input(format!("token {token} of the row is in no document")));
        }
        let on_device = |list: &[i64]| Tensor::from_slice(list).to_device(device);
        let rounds =
            rounds.iter().map(|round| [on_device(&round[0]), on_device(&round[1])]).collect();
        let spread = Spread { expand: on_device(expand), keep: on_device(&keep), rounds };
        Ok(Self { seqlens, spread: Some(spread) })
    }

    pub(crate) fn share(&self) -> Self {
        Self { seqlens: self.seqlens.clone(), spread: self.spread.as_ref().map(Spread::share) }
    }

    /// Causal attention inside each document: `q` `[T, H, E]`, `k` and `v` `[T, Hkv, E]` to `[T, H, E]`.
    pub(crate) fn attend(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        options: &Varlen,
    ) -> Result<Tensor> {
        let Some(spread) = &self.spread else {
            return Ok(varlen(q, k, v, &self.seqlens, options)?);
        };
        let (q, k, v) = (spread.expand(q)?, spread.expand(k)?, spread.expand(v)?);
        spread.collect(&varlen(&q, &k, &v, &self.seqlens, options)?)
    }
}

impl Spread {
    fn share(&self) -> Self {
        let rounds = self.rounds.iter();
        Self {
            expand: self.expand.shallow_clone(),
            keep: self.keep.shallow_clone(),
            rounds: rounds.map(|[to, from]| [to.shallow_clone(), from.shallow_clone()]).collect(),
        }
    }

    /// `[T, ..]` to `[U, ..]`: every token to all of its places. Its gradient is the sum over them, in a fixed order.
    fn expand(&self, x: &Tensor) -> Result<Tensor> {
        let out = tch::no_grad(|| x.f_index_select(0, &self.expand))?;
        let this = self.share();
        let backward = move |grads: &[Option<Tensor>]| {
            let Some(Some(grad)) = grads.first() else { return Ok(vec![None]) };
            // Sums of more than two terms in half precision would round too often.
            let wide = this.rounds.len() > 1 && grad.kind() != Kind::Double;
            let take = |places: &Tensor| -> anyhow::Result<Tensor> {
                let taken = grad.f_index_select(0, places)?;
                Ok(if wide { taken.to_kind(Kind::Float) } else { taken })
            };
            let mut sum = take(&this.keep)?;
            for [places, tokens] in &this.rounds {
                let both = sum.f_index_select(0, tokens)? + take(places)?;
                let _ = sum.f_index_copy_(0, tokens, &both)?;
            }
            Ok(vec![Some(sum.to_kind(grad.kind()))])
        };
        one(autograd::custom("Documents::expand", &[x], &[out], backward)?)
    }

    /// `[U, ..]` to `[T, ..]`: every token from its first place. The other places get no gradient.
    fn collect(&self, x: &Tensor) -> Result<Tensor> {
        let out = tch::no_grad(|| x.f_index_select(0, &self.keep))?;
        let (keep, shape) = (self.keep.shallow_clone(), x.size());
        let backward = move |grads: &[Option<Tensor>]| {
            let Some(Some(grad)) = grads.first() else { return Ok(vec![None]) };
            let mut all = Tensor::f_zeros(&shape, (grad.kind(), grad.device()))?;
            let _ = all.f_index_copy_(0, &keep, grad)?;
            Ok(vec![Some(all)])
        };
        one(autograd::custom("Documents::collect", &[x], &[out], backward)?)
    }
}

fn one(tensors: Vec<Tensor>) -> Result<Tensor> {
    let first = tensors.into_iter().next();
    first.ok_or_else(|| Error::Input("a node without output".into()))
}
