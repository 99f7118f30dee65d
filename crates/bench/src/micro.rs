//! Single operations, each beside what libtorch itself offers for it.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::attention::{Seqlens, Varlen, cached, varlen};
use torch_ext::four_bit::{Code, FourBit};
use torch_ext::head::{HeadOptions, linear_cross_entropy};
use torch_ext::optim::{AdamWOptions, fused_adamw};
use torch_ext::{autograd, fused, linear, sample};

use crate::Target;
use crate::timing::Times;

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    target: Target,
    /// Only operations whose name holds this text.
    #[arg(long, default_value = "")]
    only: String,
    /// Milliseconds that each side of an operation is repeated for.
    #[arg(long, default_value_t = 400)]
    time: u64,
}

/// Runs one side of an operation once.
type Work = Box<dyn FnMut() -> Result<()>>;

struct Operation {
    name: &'static str,
    ours: Work,
    /// libtorch's own operations for the same.
    libtorch: Option<Work>,
}

/// A Markdown table: milliseconds, fastest, median and slowest.
pub(crate) fn table(options: &Options) -> Result<String> {
    let device = options.target.device()?;
    let like = (options.target.precision.kind(), device);
    let time = Duration::from_millis(options.time);
    let mut text = format!(
        "{:?} on {device:?}, milliseconds min–median–max\n\n| operation | ours | libtorch | ratio of medians |\n\
         |---|---|---|---|\n",
        like.0
    );
    for mut operation in operations(like)? {
        if !operation.name.contains(&options.only) {
            continue;
        }
        let ours = Times::of(device, time, &mut operation.ours)?;
        let theirs =
            operation.libtorch.as_mut().map(|work| Times::of(device, time, work)).transpose()?;
        let (spread, ratio) = theirs.as_ref().map_or_else(
            || ("—".into(), "—".into()),
            |theirs| (cell(theirs), format!("{:.2}", theirs.median() / ours.median())),
        );
        writeln!(text, "| {} | {} | {spread} | {ratio} |", operation.name, cell(&ours))?;
    }
    Ok(text)
}

fn cell(times: &Times) -> String {
    let [min, median, max] = [times.min(), times.median(), times.max()].map(|s| s * 1e3);
    format!("{min:.2}–{median:.2}–{max:.2}")
}

fn operations(like: (Kind, Device)) -> Result<Vec<Operation>> {
    let mut all = vec![
        head(like),
        attention(like)?,
        rms_norm(like),
        layer_norm(like),
        gelu(like),
        swiglu(like),
    ];
    all.push(adamw(like.1));
    all.push(four_bit(like)?);
    if like.1 == Device::Cpu {
        all.extend([packed_linear(like)?, decode(like), sampler(like)]);
    }
    Ok(all)
}

fn random(shape: &[i64], like: (Kind, Device)) -> Tensor {
    Tensor::randn(shape, like)
}

fn leaf(shape: &[i64], like: (Kind, Device)) -> Tensor {
    random(shape, like).set_requires_grad(true)
}

/// A forward and a backward pass of `f` over leaves.
fn both_ways(
    name: &'static str,
    leaves: Vec<Tensor>,
    ours: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
    libtorch: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
) -> Operation {
    fn pass(leaves: &[Tensor], f: &dyn Fn(&[Tensor]) -> Result<Tensor>) -> Result<()> {
        let inputs: Vec<&Tensor> = leaves.iter().collect();
        let out = f(leaves)?;
        let gradient = out.ones_like();
        autograd::grad(&[&out], &[Some(&gradient)], &inputs, false)?;
        Ok(())
    }
    let copies: Vec<Tensor> = leaves.iter().map(Tensor::shallow_clone).collect();
    Operation {
        name,
        ours: Box::new(move || pass(&leaves, &ours)),
        libtorch: Some(Box::new(move || pass(&copies, &libtorch))),
    }
}

fn head(like: (Kind, Device)) -> Operation {
    let targets = Tensor::randint(4096, [4096], (Kind::Int64, like.1));
    let same = targets.shallow_clone();
    both_ways(
        "output layer + cross-entropy, 4096 × 256 × 4096",
        vec![leaf(&[4096, 256], like), leaf(&[4096, 256], like)],
        move |t| {
            Ok(linear_cross_entropy(&t[0], &t[1], None, &targets, &HeadOptions::default())?
                .loss_sum)
        },
        move |t| {
            let logits = t[0].mm(&t[1].tr()).to_kind(Kind::Float);
            Ok(logits.cross_entropy_loss::<&Tensor>(&same, None, tch::Reduction::Sum, -100, 0.0))
        },
    )
}

/// 32 documents of 128 tokens; libtorch's takes them as a batch without padding, which suits it best.
fn attention(like: (Kind, Device)) -> Result<Operation> {
    let (documents, length, heads, size) = (32, 128, 4, 64);
    let shape = [documents * length, heads, size];
    let seqlens = Seqlens::new((0..=documents).map(|i| i * length).collect())?;
    Ok(both_ways(
        "attention, 32 documents of 128, 4 heads of 64",
        (0..3).map(|_| leaf(&shape, like)).collect(),
        move |t| Ok(varlen(&t[0], &t[1], &t[2], &seqlens, &Varlen::default())?),
        move |t| {
            let batch = |t: &Tensor| t.view([documents, length, heads, size]).transpose(1, 2);
            let [q, k, v] = [batch(&t[0]), batch(&t[1]), batch(&t[2])];
            Ok(Tensor::f_scaled_dot_product_attention(
                &q,
                &k,
                &v,
                None::<&Tensor>,
                0.0,
                true,
                None,
                false,
            )?)
        },
    ))
}

fn rms_norm(like: (Kind, Device)) -> Operation {
    both_ways(
        "RMSNorm, 4096 × 768",
        vec![leaf(&[4096, 768], like), leaf(&[768], like)],
        |t| Ok(fused::rms_norm(&t[0], &t[1], 1e-5)?),
        |t| Ok(t[0].f_rms_norm([768], Some(&t[1]), 1e-5)?),
    )
}

fn layer_norm(like: (Kind, Device)) -> Operation {
    both_ways(
        "LayerNorm, 4096 × 768",
        vec![leaf(&[4096, 768], like), leaf(&[768], like), leaf(&[768], like)],
        |t| Ok(fused::layer_norm(&t[0], &t[1], &t[2], 1e-5)?),
        |t| Ok(t[0].f_layer_norm([768], Some(&t[1]), Some(&t[2]), 1e-5, true)?),
    )
}

fn gelu(like: (Kind, Device)) -> Operation {
    both_ways(
        "GELU (tanh), 4096 × 1024",
        vec![leaf(&[4096, 1024], like)],
        |t| Ok(fused::gelu_tanh(&t[0])?),
        |t| Ok(t[0].f_gelu("tanh")?),
    )
}

fn swiglu(like: (Kind, Device)) -> Operation {
    both_ways(
        "SwiGLU, 4096 × 2 · 704",
        vec![leaf(&[4096, 1408], like)],
        |t| Ok(fused::swiglu(&t[0])?),
        |t| {
            let halves = t[0].chunk(2, 1);
            Ok(halves[0].silu() * &halves[1])
        },
    )
}

/// `QLoRA`'s weights as each product needs them; the other side leaves out what the scales are made of.
fn four_bit(like: (Kind, Device)) -> Result<Operation> {
    let shape = [4096, 2048];
    let stored = FourBit::quantise(&random(&shape, like), Code::Nf4, true)?;
    let out = Tensor::f_empty(shape, like)?;
    let (packed, table) =
        (stored.packed().shallow_clone(), Tensor::from_slice(&Code::Nf4.values()));
    let table = table.to_device(like.1);
    let scales = Tensor::f_ones([packed.size()[0] / 32, 1], (Kind::Float, like.1))?;
    Ok(Operation {
        name: "8 million weights out of 4 bits",
        ours: Box::new(move || Ok(stored.dequantise_into(&out)?)),
        libtorch: Some(Box::new(move || {
            let codes = Tensor::f_stack(
                &[packed.bitwise_right_shift_tensor_scalar(4), packed.bitwise_and(15)],
                1,
            )?;
            let numbers = table.f_index_select(0, &codes.flatten(0, -1).to_kind(Kind::Int))?;
            drop((numbers.view([-1, 64]) * &scales).to_kind(like.0));
            Ok(())
        })),
    })
}

/// Ours is libtorch's fused step; the other side is the same algorithm in single operations, as optimisers that are not
/// fused run it.
fn adamw(device: Device) -> Operation {
    let like = (Kind::Float, device);
    let tensors = || (0..20).map(|_| random(&[500_000], like).abs()).collect::<Vec<_>>();
    let [params, grads, firsts, seconds] = [(); 4].map(|()| tensors());
    let steps: Vec<Tensor> = params.iter().map(|_| Tensor::zeros([], like)).collect();
    let copies: Vec<[Tensor; 4]> =
        (0..20).map(|_| [(); 4].map(|()| random(&[500_000], like).abs())).collect();
    let options = AdamWOptions { lr: 1e-5, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
    Operation {
        name: "AdamW, 10 million parameters in 20 tensors",
        ours: Box::new(move || {
            Ok(fused_adamw(&params, &grads, &firsts, &seconds, &steps, &options)?)
        }),
        libtorch: Some(Box::new(move || {
            for [param, grad, first, second] in &copies {
                let [mut param, mut first, mut second] =
                    [param, first, second].map(Tensor::shallow_clone);
                let _ = param.g_mul_scalar_(1.0 - options.lr * options.weight_decay);
                let _ = first.lerp_(grad, 1.0 - options.beta1);
                let _ = second.g_mul_scalar_(options.beta2);
                let _ = second.addcmul_(grad, &(grad * (1.0 - options.beta2)));
                let _ = param.addcdiv_(&(first * -options.lr), &(second.sqrt() + options.eps));
            }
            Ok(())
        })),
    }
}
fn packed_linear(like: (Kind, Device)) -> Result<Operation> {
    let (x, weight) = (random(&[32, 768], like), random(&[3072, 768], like));
    let packed = linear::Packed::new(&weight, 32)?;
    let same = x.shallow_clone();
    Ok(Operation {
        name: "packed linear layer of generation, 32 × 768 × 3072",
        ours: Box::new(move || {
            let _ = packed.forward(&x, None)?;
            Ok(())
        }),
        libtorch: Some(Box::new(move || {
            let _ = no_grad(|| same.f_mm(&weight.tr()))?;
            Ok(())
        })),
    })
}

fn decode(like: (Kind, Device)) -> Operation {
    let (rows, heads, length, size) = (32, 4, 512, 64);
    let [q, k, v] = [(); 3].map(|()| random(&[rows, heads, size], like));
    let [keys, values] = [(); 2].map(|()| random(&[rows, heads, length, size], like));
    let slots: Vec<i64> = (0..rows).collect();
    let lengths = vec![length; rows as usize];
    let (query, all_keys, all_values) =
        (q.unsqueeze(2), keys.shallow_clone(), values.shallow_clone());
    Operation {
        name: "attention over the cache, 32 rows of 512, 4 heads of 64",
        ours: Box::new(move || {
            let cache =
                cached::Cache { keys: &keys, values: &values, slots: &slots, lengths: &lengths };
            let _ = cached::attend([&q, &k, &v], cache, 0.125, None)?;
            Ok(())
        }),
        libtorch: Some(Box::new(move || {
            let _ = Tensor::f_scaled_dot_product_attention(
                &query,
                &all_keys,
                &all_values,
                None::<&Tensor>,
                0.0,
                false,
                Some(0.125),
                false,
            )?;
            Ok(())
        })),
    }
}

fn sampler(like: (Kind, Device)) -> Operation {
    let logits = random(&[32, 50257], like);
    let (temperatures, uniforms) = (vec![1.0; 32], vec![0.5; 32]);
    let same = logits.shallow_clone();
    Operation {
        name: "sampler, 32 × 50257",
        ours: Box::new(move || {
            sample::rows(&logits, &temperatures, &uniforms)?;
            Ok(())
        }),
        libtorch: Some(Box::new(move || {
            let _ = same.f_softmax(-1, Kind::Float)?.f_multinomial(1, false)?;
            Ok(())
        })),
    }
}
