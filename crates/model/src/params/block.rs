//! Parameters in one allocation: with masters, without, or in 4 bits.

use crate::division::Slot;
use crate::error::Result;
use crate::layout::BlockSpec;
use crate::peft::{QuantType, Quantization};
use crate::precision::Precision;
use tch::{Device, Kind, Tensor};
use torch_ext::four_bit::{Code, FourBit};
use torch_ext::memory;

/// How a block is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// With fp32 masters, to train.
    Trained,
    /// As compute copies.
    Frozen,
    /// In 4 bits.
    FourBit {
        /// The code of a weight that files have in full.
        code: Code,
        /// Whether its scales take 8 bits.
        double_quant: bool,
        /// Whether Hugging Face has the weight as `[in, out]`.
        transposed: bool,
    },
}

impl Keep {
    pub(crate) fn four_bit(quantization: &Quantization, transposed: bool) -> Self {
        let code = match quantization.quant_type {
            QuantType::Nf4 => Code::Nf4,
            QuantType::Fp4 => Code::Fp4,
        };
        Self::FourBit { code, double_quant: quantization.double_quant, transposed }
    }
}

/// Parameters that share one allocation.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) storage: Storage,
    /// fp32 gradient of the master once there is one.
    pub(super) grad: Option<Tensor>,
    pub(super) parts: Vec<Part>,
}

#[derive(Debug)]
pub(super) enum Storage {
    Dense {
        /// fp32, without autograd; `None` for a frozen block.
        master: Option<Tensor>,
        /// The leaf that the forward pass uses.
        compute: Tensor,
    },
    /// Of several ranks each has slices.
    Divided {
        /// This rank's, `[columns]`: fp32 of what trains, else in the compute type.
        own: Tensor,
        /// Of each part.
        slots: Vec<Slot>,
        trained: bool,
        /// The leaf that the forward pass uses; without memory but while a pass needs it.
        compute: Tensor,
    },
    FourBit {
        code: Code,
        double_quant: bool,
        transposed: bool,
        /// One a part, `[out, in]`; `None` until it is filled.
        parts: Vec<Option<FourBit>>,
    },
}

/// A parameter as it is held.
#[derive(Debug)]
pub(crate) enum Stored<'a> {
    Whole(Tensor),
    FourBit(&'a FourBit),
    /// In slices; [`Params::whole`](super::Params::whole) has it by name.
    Divided(&'a [i64]),
}

/// A weight as the forward pass sees it.
#[derive(Debug)]
pub(crate) enum Weight {
    Dense(Tensor),
    /// The parts of a block, `[out, in]` each.
    FourBit(Vec<FourBit>),
}

#[derive(Debug)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) start: i64,
    pub(super) shape: Vec<i64>,
    pub(super) trainable: bool,
    pub(super) rate: f64,
}

impl Part {
    pub(super) fn view(&self, block: &Tensor) -> Tensor {
        block.narrow(0, self.start, self.shape[0])
    }
}

impl Block {
    /// With undefined numbers. Divided among so many ranks where that is said and it is not in 4 bits.
    pub(super) fn new(
        spec: &BlockSpec,
        keep: Keep,
        (device, precision): (Device, Precision),
        ranks: Option<usize>,
    ) -> Result<Self> {
        let mut start = 0;
        let mut parts = Vec::with_capacity(spec.parts.len());
        for part in &spec.parts {
            let (name, shape) = (part.name.clone(), part.shape.clone());
            parts.push(Part {
                name,
                start,
                shape,
                trainable: keep == Keep::Trained,
                rate: part.rate,
            });
            start += part.shape[0];
        }
        let storage = match (keep, ranks) {
            (Keep::FourBit { code, double_quant, transposed }, _) => {
                let parts = spec.parts.iter().map(|_| None).collect();
                Storage::FourBit { code, double_quant, transposed, parts }
            }
            (Keep::Trained | Keep::Frozen, Some(size)) => {
                let trained = keep == Keep::Trained;
                let (mut slots, mut columns) = (Vec::new(), 0);
                for part in &spec.parts {
                    let slot = Slot::new(part.shape.iter().product(), columns, size);
                    columns += slot.width;
                    slots.push(slot);
                }
                let held = if trained { Kind::Float } else { precision.kind() };
                let compute = Tensor::empty(spec.shape(), (precision.kind(), device));
                memory::release(&compute)?;
                Storage::Divided {
                    own: Tensor::zeros([columns], (held, device)),
                    slots,
                    trained,
                    compute: compute.set_requires_grad(trained),
                }
            }
            (Keep::Trained | Keep::Frozen, None) => {
                let (shape, trained) = (spec.shape(), keep == Keep::Trained);
                let master = trained.then(|| Tensor::empty(&shape, (Kind::Float, device)));
                let compute = match &master {
                    Some(master) if precision == Precision::Fp32 => master.detach(),
                    _ => Tensor::empty(&shape, (precision.kind(), device)),
                };
                Storage::Dense { master, compute: compute.set_requires_grad(trained) }
            }
        };
        Ok(Self { storage, grad: None, parts })
    }

    /// Whether any of its parts trains.
    pub(super) fn trains(&self) -> bool {
        self.may_train() && self.parts.iter().any(|part| part.trainable)
    }

    /// Whether it has masters.
    pub(super) fn may_train(&self) -> bool {
        match &self.storage {
            Storage::Dense { master, .. } => master.is_some(),
            Storage::Divided { trained, .. } => *trained,
            Storage::FourBit { .. } => false,
        }
    }

    pub(super) fn compute(&self) -> Option<&Tensor> {
        match &self.storage {
            Storage::Dense { compute, .. } | Storage::Divided { compute, .. } => Some(compute),
            Storage::FourBit { .. } => None,
        }
    }

    /// The master, or else the compute copy or what the 4 bits stand for, of one part.
    ///
    /// # Panics
    /// For a divided block, whose parameters [`Params::whole`](super::Params::whole) gives.
    pub(super) fn weight(&self, part: usize) -> Tensor {
        match &self.storage {
            Storage::Divided { .. } => unreachable!("a divided parameter is not at hand"),
            Storage::Dense { master, compute } => {
                self.parts[part].view(&master.as_ref().unwrap_or(compute).detach())
            }
            Storage::FourBit { parts, transposed, .. } => {
                let shape = self.parts[part].shape.as_slice();
                match parts[part].as_ref().and_then(|part| part.dequantise(Kind::Float).ok()) {
                    Some(whole) if *transposed => whole.tr(),
                    Some(whole) => whole,
                    None => Tensor::full(shape, f64::NAN, (Kind::Float, Device::Cpu)),
                }
            }
        }
    }

    pub(super) fn numel(&self) -> usize {
        self.parts.iter().map(|part| part.shape.iter().product::<i64>() as usize).sum()
    }

    /// Bytes of masters and compute copies.
    pub(super) fn bytes(&self) -> usize {
        let of = |t: &Tensor| t.numel() * t.kind().elt_size_in_bytes();
        match &self.storage {
            Storage::Dense { master: Some(master), compute } => {
                let apart = master.kind() != compute.kind();
                of(master) + if apart { of(compute) } else { 0 }
            }
            Storage::Dense { master: None, compute } => of(compute),
            Storage::Divided { own, .. } => of(own),
            Storage::FourBit { parts, .. } => parts.iter().flatten().map(FourBit::bytes).sum(),
        }
    }
}
