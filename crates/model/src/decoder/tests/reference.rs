//! The same models computed one document and one number at a time in f64, written from the papers and from nothing in
//! this crate but the config: what the tensor code is held against.

use crate::config::{Architecture, ModelConfig, RopeScaling};
use crate::params::Params;
use std::collections::HashMap;
use tch::Kind;

type Matrix = Vec<Vec<f64>>;

pub(super) struct Reference<'a> {
    config: &'a ModelConfig,
    weights: HashMap<String, (Vec<f64>, Vec<i64>)>,
}

impl<'a> Reference<'a> {
    pub(super) fn new(config: &'a ModelConfig, params: &Params) -> Self {
        let weights = params
            .iter()
            .map(|(name, tensor)| {
                let flat = Vec::try_from(&tensor.to_kind(Kind::Double).flatten(0, -1)).unwrap();
                (name.to_owned(), (flat, tensor.size()))
            })
            .collect();
        Self { config, weights }
    }

    fn vector(&self, name: &str) -> Option<&[f64]> {
        self.weights.get(name).map(|(flat, _)| flat.as_slice())
    }

    /// `x W^T + b`, or `x W + b` for GPT-2.
    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (flat, shape) = &self.weights[&format!("{name}.weight")];
        let conv1d = self.config.architecture == Architecture::Gpt2;
        let outputs = shape[usize::from(conv1d)] as usize;
        let columns = shape[1] as usize;
        let bias = self.vector(&format!("{name}.bias"));
        (0..outputs)
            .map(|o| {
                let entry =
                    |i: usize| if conv1d { flat[i * columns + o] } else { flat[o * columns + i] };
                let sum: f64 = x.iter().enumerate().map(|(i, x)| x * entry(i)).sum();
                sum + bias.map_or(0.0, |bias| bias[o])
            })
            .collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = self.vector(&format!("{name}.weight")).unwrap();
        let n = x.len() as f64;
        let bias = self.vector(&format!("{name}.bias"));
        let mean = if bias.is_some() { x.iter().sum::<f64>() / n } else { 0.0 };
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let scale = (variance + self.config.norm_eps).powf(-0.5);
        (0..x.len())
            .map(|i| (x[i] - mean) * scale * weight[i] + bias.map_or(0.0, |bias| bias[i]))
            .collect()
    }

    /// The angle of pair `i` at a position, with Llama 3's or linear scaling.
    fn angle(&self, position: usize, i: usize) -> f64 {
        let rope = self.config.rope.unwrap();
        let mut f = rope.theta.powf(-2.0 * i as f64 / self.config.head_dim as f64);
        match rope.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => f /= factor,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
            } => {
                let turns = original * f / std::f64::consts::TAU;
                let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                f = (1.0 - smooth) * f / factor + smooth * f;
            }
        }
        position as f64 * f
    }

    fn rotate(&self, position: usize, head: &[f64]) -> Vec<f64> {
        let half = head.len() / 2;
        let pair = |i: usize| {
            let angle = self.angle(position, i % half);
            let (other, sign) = if i < half { (i + half, -1.0) } else { (i - half, 1.0) };
            head[i] * angle.cos() + sign * head[other] * angle.sin()
        };
        (0..head.len()).map(pair).collect()
    }

    /// Query, key and value heads of one token.
    fn heads(&self, at: &str, position: usize, x: &[f64]) -> [Matrix; 3] {
        let size = self.config.head_dim as usize;
        let chunks =
            |flat: Vec<f64>| -> Matrix { flat.chunks(size).map(<[f64]>::to_vec).collect() };
        if self.config.architecture == Architecture::Gpt2 {
            let all = chunks(self.linear(&format!("{at}.attn.c_attn"), x));
            let n = all.len() / 3;
            return [all[..n].to_vec(), all[n..2 * n].to_vec(), all[2 * n..].to_vec()];
        }
        let [mut q, mut k, v] = ["q", "k", "v"]
            .map(|which| chunks(self.linear(&format!("{at}.self_attn.{which}_proj"), x)));
        for (heads, which) in [(&mut q, "q"), (&mut k, "k")] {
            for head in heads {
                let name = format!("{at}.self_attn.{which}_norm");
                if self.config.architecture == Architecture::Qwen3 {
                    *head = self.norm(&name, head);
                }
                *head = self.rotate(position, head);
            }
        }
        [q, k, v]
    }

    fn attention(&self, at: &str, layer: usize, x: &Matrix) -> Matrix {
        let all: Vec<[Matrix; 3]> =
            x.iter().enumerate().map(|(t, x)| self.heads(at, t, x)).collect();
        let group = (self.config.num_attention_heads / self.config.num_key_value_heads) as usize;
        let window = self.config.sliding_windows[layer].unwrap_or(i64::MAX) as usize;
        let scale = self.config.attention_scales[layer];
        let one = |t: usize, head: usize| {
            let seen: Vec<usize> = (0..=t).filter(|s| t - s < window).collect();
            let dot = |s: &usize| -> f64 {
                let products = all[t][0][head].iter().zip(&all[*s][1][head / group]);
                products.map(|(q, k)| q * k).sum::<f64>() * scale
            };
            let weights: Vec<f64> = seen.iter().map(|s| dot(s).exp()).collect();
            let total: f64 = weights.iter().sum();
            let entry = |i: usize| -> f64 {
                seen.iter()
                    .zip(&weights)
                    .map(|(s, w)| w / total * all[*s][2][head / group][i])
                    .sum()
            };
            (0..self.config.head_dim as usize).map(entry).collect::<Vec<f64>>()
        };
        (0..x.len())
            .map(|t| {
                (0..self.config.num_attention_heads as usize).flat_map(|h| one(t, h)).collect()
            })
            .collect()
    }

    fn mlp(&self, at: &str, x: &[f64]) -> Vec<f64> {
        if self.config.architecture == Architecture::Gpt2 {
            let gelu = |x: f64| {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            };
            let inner = self.linear(&format!("{at}.mlp.c_fc"), x);
            let inner: Vec<f64> = inner.into_iter().map(gelu).collect();
            return self.linear(&format!("{at}.mlp.c_proj"), &inner);
        }
        let gate = self.linear(&format!("{at}.mlp.gate_proj"), x);
        let up = self.linear(&format!("{at}.mlp.up_proj"), x);
        let inner: Vec<f64> =
            gate.iter().zip(up).map(|(g, up)| g / (1.0 + (-g).exp()) * up).collect();
        self.linear(&format!("{at}.mlp.down_proj"), &inner)
    }

    /// Logits of one document.
    pub(super) fn logits(&self, ids: &[i64]) -> Matrix {
        let gpt2 = self.config.architecture == Architecture::Gpt2;
        let width = self.config.hidden_size as usize;
        let table = if gpt2 { "transformer.wte.weight" } else { "model.embed_tokens.weight" };
        let lookup = |table: &str, row: usize| {
            self.weights[table].0[row * width..(row + 1) * width].to_vec()
        };
        let add =
            |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
        let embed = |(t, &id): (usize, &i64)| {
            let token = lookup(table, id as usize);
            if gpt2 { add(&token, &lookup("transformer.wpe.weight", t)) } else { token }
        };
        let mut x: Matrix = ids.iter().enumerate().map(embed).collect();
        for layer in 0..self.config.num_hidden_layers as usize {
            let (at, names) = if gpt2 {
                (format!("transformer.h.{layer}"), ["ln_1", "attn.c_proj", "ln_2"])
            } else {
                let names = ["input_layernorm", "self_attn.o_proj", "post_attention_layernorm"];
                (format!("model.layers.{layer}"), names)
            };
            let [norm_1, out, norm_2] = names.map(|name| format!("{at}.{name}"));
            let normed: Matrix = x.iter().map(|x| self.norm(&norm_1, x)).collect();
            let attended = self.attention(&at, layer, &normed);
            for (x, attended) in x.iter_mut().zip(attended) {
                *x = add(x, &self.linear(&out, &attended));
                *x = add(x, &self.mlp(&at, &self.norm(&norm_2, x)));
            }
        }
        let final_norm = if gpt2 { "transformer.ln_f" } else { "model.norm" };
        let head = if self.config.tie_word_embeddings { table } else { "lm_head.weight" };
        let head = &self.weights[head].0;
        x.iter()
            .map(|x| {
                let x = self.norm(final_norm, x);
                head.chunks(width).map(|row| row.iter().zip(&x).map(|(w, x)| w * x).sum()).collect()
            })
            .collect()
    }
}
