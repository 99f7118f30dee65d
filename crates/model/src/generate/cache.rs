//! The key-value cache: one slot for each row being generated.

use crate::config::ModelConfig;
use crate::error::Result;
use tch::{Device, Kind, Tensor};
use torch_ext::attention::Varlen;

/// Keys and values of every layer, `[slots, len, Hkv, E]` each. The rows being generated are slots `0..n`.
#[derive(Debug)]
pub(super) struct Cache {
    layers: Vec<[Tensor; 2]>,
    slots: i64,
    len: i64,
}

/// What a decode step attends to: the same for all layers.
#[derive(Debug)]
pub(super) struct Reach {
    /// Where each row's new token goes in a layer's `[slots * len]` entries.
    places: Tensor,
    rows: i64,
    /// Length of the longest row, its new token included.
    longest: i64,
    /// 0 where a row sees a position, minus infinity elsewhere, `[R, 1, 1, longest]`; `None` where all see all.
    mask: Option<Tensor>,
    /// The same for layers with a sliding window.
    windowed: Option<(i64, Tensor)>,
}

impl Cache {
    /// Memory for `slots` rows of at most `len` tokens, zeroed: masked entries must at least be finite.
    pub(super) fn new(
        config: &ModelConfig,
        slots: usize,
        len: usize,
        kind: Kind,
        device: Device,
    ) -> Self {
        let (slots, len) = (slots as i64, len as i64);
        let shape = [slots, len, config.num_key_value_heads, config.head_dim];
        let layer = || [0, 1].map(|_| Tensor::zeros(shape, (kind, device)));
        Self { layers: (0..config.num_hidden_layers).map(|_| layer()).collect(), slots, len }
    }

    /// Whether this memory serves so many rows of such a length.
    pub(super) fn fits(&self, slots: usize, len: usize) -> bool {
        self.slots >= slots as i64 && self.len >= len as i64
    }

    /// The index of position `position` of slot `slot` among a layer's entries.
    pub(super) fn place(&self, slot: usize, position: usize) -> i64 {
        slot as i64 * self.len + position as i64
    }

    /// Writes keys and values `[N, Hkv, E]` of one layer to `places [N]`.
    pub(super) fn store(&self, layer: usize, places: &Tensor, key: &Tensor, value: &Tensor) {
        for (memory, new) in self.layers[layer].iter().zip([key, value]) {
            let _ = memory.flatten(0, 1).index_copy_(0, places, new);
        }
    }

    /// Copies the first `len` entries of slot `from` to slot `to`.
    pub(super) fn copy_slot(&self, from: usize, to: usize, len: usize) {
        for memory in self.layers.iter().flatten() {
            let row = |slot: usize| memory.get(slot as i64).narrow(0, 0, len as i64);
            row(to).copy_(&row(from));
        }
    }

    /// Prepares a step in which slot `i` gets its token number `lengths[i]` (counted from 0).
    pub(super) fn reach(
        &self,
        config: &ModelConfig,
        lengths: &[usize],
        like: (Kind, Device),
    ) -> Reach {
        let places: Vec<i64> =
            lengths.iter().enumerate().map(|(slot, &len)| self.place(slot, len)).collect();
        let last: Vec<i64> = lengths.iter().map(|&len| len as i64).collect();
        let (least, most) =
            last.iter().fold((i64::MAX, 0), |(low, high), &len| (low.min(len), high.max(len)));
        let longest = most + 1;
        let window = config.sliding_windows.iter().flatten().copied().max();
        let last = Tensor::from_slice(&last).to_device(like.1).unsqueeze(1);
        let positions = Tensor::arange(longest, (Kind::Int64, like.1)).unsqueeze(0);
        let mask = |hidden: Tensor| {
            let mask = Tensor::zeros(hidden.size(), like);
            mask.masked_fill(&hidden, f64::NEG_INFINITY).view([-1, 1, 1, longest])
        };
        let future = || positions.gt_tensor(&last);
        Reach {
            places: Tensor::from_slice(&places).to_device(like.1),
            rows: lengths.len() as i64,
            longest,
            mask: (least < most).then(|| mask(future())),
            windowed: window.filter(|&window| longest > window).map(|window| {
                let past = positions.le_tensor(&(&last - window));
                (window, mask(future().logical_or(&past)))
            }),
        }
    }

    /// Stores one new token a row and attends from it: `q [R, H, E]`, `k` and `v` `[R, Hkv, E]` to `[R, H, E]`.
    ///
    /// The query heads that share a key head stand as so many queries of that head, so that grouped-query attention
    /// needs no copies of keys and values.
    pub(super) fn attend(
        &self,
        layer: usize,
        reach: &Reach,
        qkv: [&Tensor; 3],
        options: &Varlen,
    ) -> Result<Tensor> {
        let [q, k, v] = qkv;
        self.store(layer, &reach.places, k, v);
        let (_, heads, size) = q.size3()?;
        let kv_heads = k.size()[1];
        let queries = q.reshape([reach.rows, kv_heads, heads / kv_heads, size]);
        let [keys, values] = &self.layers[layer];
        let seen = |memory: &Tensor| {
            memory.narrow(0, 0, reach.rows).narrow(1, 0, reach.longest).transpose(1, 2)
        };
        let mask = match (&reach.windowed, options.sliding_window) {
            (Some((_, mask)), Some(_)) => Some(mask),
            _ => reach.mask.as_ref(),
        };
        let out = Tensor::f_scaled_dot_product_attention(
            &queries,
            &seen(keys),
            &seen(values),
            mask,
            0.0,
            false,
            options.scale,
            false,
        )?;
        Ok(out.reshape([reach.rows, heads, size]))
    }
}
