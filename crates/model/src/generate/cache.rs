//! The key-value cache: one slot for each row being generated.

use crate::config::ModelConfig;
use crate::error::Result;
use tch::{Device, Kind, Tensor};
use torch_ext::attention::{Varlen, cached};

/// Keys and values of every layer, `[slots, Hkv, len, E]` each: what one head reads lies together.
#[derive(Debug)]
pub(super) struct Cache {
    layers: Vec<[Tensor; 2]>,
    slots: i64,
    len: i64,
    like: (Kind, Device),
    any_slot: bool,
}

/// Positions of slots, `[N]` each.
#[derive(Debug)]
pub(super) struct Places {
    slots: Tensor,
    positions: Tensor,
}

/// What a decode step attends to: the same for all layers.
#[derive(Debug)]
pub(super) struct Reach {
    slots: Vec<i64>,
    /// Of each row, its new token included.
    lengths: Vec<i64>,
    /// For libtorch's attention; `None` where the kernel over slots serves.
    masks: Option<Masks>,
}

#[derive(Debug)]
struct Masks {
    /// Where each row's new token goes.
    places: Places,
    /// Length of the longest row.
    longest: i64,
    /// 0 where a row sees a position, minus infinity elsewhere, `[R, 1, 1, longest]`; `None` where all see all.
    mask: Option<Tensor>,
    /// The same for layers with a sliding window.
    windowed: Option<Tensor>,
}

impl Cache {
    /// Memory for `slots` rows of at most `len` tokens, zeroed: masked entries must at least be finite. Without `kernels`
    /// attention is libtorch's where the CPU has one of its own.
    pub(super) fn new(
        config: &ModelConfig,
        slots: usize,
        len: usize,
        like: (Kind, Device),
        kernels: bool,
    ) -> Self {
        let (slots, len) = (slots as i64, len as i64);
        let shape = [slots, config.num_key_value_heads, len, config.head_dim];
        let layer = || [0, 1].map(|_| Tensor::zeros(shape, like));
        let layers = (0..config.num_hidden_layers).map(|_| layer()).collect();
        let any_slot = kernels && cached::serves(like.0, like.1);
        Self { layers, slots, len, like, any_slot }
    }

    /// Whether this memory serves so many rows of such a length.
    pub(super) fn fits(&self, slots: usize, len: usize) -> bool {
        self.slots >= slots as i64 && self.len >= len as i64
    }

    /// Rows that have a place.
    pub(super) fn slots(&self) -> usize {
        self.slots as usize
    }

    /// Tokens that a row may have.
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    /// Makes room for `slots` rows of at most `len` tokens; what is there stays where it is. The layers are copied one by one.
    pub(super) fn grow(&mut self, slots: usize, len: usize) {
        let (slots, len) = (self.slots.max(slots as i64), self.len.max(len as i64));
        for memory in self.layers.iter_mut().flatten() {
            let size = memory.size();
            let larger = Tensor::zeros([slots, size[1], len, size[3]], self.like);
            larger.narrow(0, 0, size[0]).narrow(2, 0, size[2]).copy_(memory);
            *memory = larger;
        }
        (self.slots, self.len) = (slots, len);
    }

    /// Whether rows may lie in any slots; otherwise row i must lie in slot i.
    pub(super) fn takes_any_slot(&self) -> bool {
        self.any_slot
    }

    /// Where positions of slots lie, to [store](Self::store) to.
    pub(super) fn places(&self, slots: &[i64], positions: &[i64]) -> Places {
        let on_device = |list| Tensor::from_slice(list).to_device(self.like.1);
        Places { slots: on_device(slots), positions: on_device(positions) }
    }

    /// Writes keys and values `[N, Hkv, E]` of one layer to `N` places.
    pub(super) fn store(&self, layer: usize, places: &Places, key: &Tensor, value: &Tensor) {
        let at = [Some(&places.slots), None, Some(&places.positions)];
        for (memory, new) in self.layers[layer].iter().zip([key, value]) {
            let _ = memory.shallow_clone().index_put_(&at, new, false);
        }
    }

    /// Copies the first `len` entries of slot `from` to slot `to`.
    pub(super) fn copy_slot(&self, from: usize, to: usize, len: usize) {
        for memory in self.layers.iter().flatten() {
            let row = |slot: usize| memory.get(slot as i64).narrow(1, 0, len as i64);
            row(to).copy_(&row(from));
        }
    }

    /// Prepares a step in which the row in slot `slots[i]` gets its token number `cached[i]` (counted from 0).
    pub(super) fn reach(&self, config: &ModelConfig, slots: &[usize], cached: &[usize]) -> Reach {
        let masks = (!self.takes_any_slot()).then(|| self.masks(config, cached));
        Reach {
            slots: slots.iter().map(|&slot| slot as i64).collect(),
            lengths: cached.iter().map(|&len| len as i64 + 1).collect(),
            masks,
        }
    }

    fn masks(&self, config: &ModelConfig, cached: &[usize]) -> Masks {
        let device = self.like.1;
        let slots: Vec<i64> = (0..cached.len() as i64).collect();
        let last: Vec<i64> = cached.iter().map(|&len| len as i64).collect();
        let (least, most) =
            last.iter().fold((i64::MAX, 0), |(low, high), &len| (low.min(len), high.max(len)));
        let longest = most + 1;
        let window = config.sliding_windows.iter().flatten().copied().max();
        let places = self.places(&slots, &last);
        let last = places.positions.unsqueeze(1);
        let positions = Tensor::arange(longest, (Kind::Int64, device)).unsqueeze(0);
        let mask = |hidden: Tensor| {
            let mask = Tensor::zeros(hidden.size(), self.like);
            mask.masked_fill(&hidden, f64::NEG_INFINITY).view([-1, 1, 1, longest])
        };
        let future = || positions.gt_tensor(&last);
        Masks {
            places,
            longest,
            mask: (least < most).then(|| mask(future())),
            windowed: window.filter(|&window| longest > window).map(|window| {
                let past = positions.le_tensor(&(&last - window));
                mask(future().logical_or(&past))
            }),
        }
    }

    /// Stores one new token a row and attends from it: `q [R, H, E]`, `k` and `v` `[R, Hkv, E]` to `[R, H, E]`.
    pub(super) fn attend(
        &self,
        layer: usize,
        reach: &Reach,
        qkv: [&Tensor; 3],
        options: &Varlen,
    ) -> Result<Tensor> {
        let size = qkv[0].size()[2];
        let scale = options.scale.unwrap_or_else(|| 1.0 / (size as f64).sqrt());
        let Reach { slots, lengths, masks } = reach;
        if let Some(masks) = masks {
            self.store(layer, &masks.places, qkv[1], qkv[2]);
            let windowed = options.sliding_window.and(masks.windowed.as_ref());
            return self.attend_masked(layer, masks, windowed, qkv[0], scale);
        }
        let [keys, values] = &self.layers[layer];
        let cache = cached::Cache { keys, values, slots, lengths };
        Ok(cached::attend(qkv, cache, scale, options.sliding_window)?)
    }

    /// Through libtorch's attention over slots `0..R`.
    ///
    /// The query heads that share a key head stand as so many queries of that head, so that grouped-query attention
    /// needs no copies of keys and values.
    fn attend_masked(
        &self,
        layer: usize,
        masks: &Masks,
        windowed: Option<&Tensor>,
        q: &Tensor,
        scale: f64,
    ) -> Result<Tensor> {
        let (rows, heads, size) = q.size3()?;
        let [keys, values] = &self.layers[layer];
        let kv_heads = keys.size()[1];
        let queries = q.reshape([rows, kv_heads, heads / kv_heads, size]);
        let seen = |memory: &Tensor| memory.narrow(0, 0, rows).narrow(2, 0, masks.longest);
        let out = Tensor::f_scaled_dot_product_attention(
            &queries,
            &seen(keys),
            &seen(values),
            windowed.or(masks.mask.as_ref()),
            0.0,
            false,
            Some(scale),
            false,
        )?;
        Ok(out.reshape([rows, heads, size]))
    }
}
