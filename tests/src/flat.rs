//! Flat batches from the padded rows of a fixture, and the loss on them.

use anyhow::Result;
use data::batch::FlatBatch;
use model::Decoder;
use tch::{Kind, Tensor};
use training::loss::next_token_loss;

/// Label of a token that does not count, as in transformers.
pub const IGNORED: i64 = -100;

/// Documents laid end to end, without padding.
#[derive(Debug, Clone, Default)]
pub struct Flat {
    /// Token ids, `T` of them.
    pub ids: Vec<i64>,
    /// Positions, from 0 in each document.
    pub positions: Vec<i64>,
    /// Starts of the documents, and `T`.
    pub cu_seqlens: Vec<i64>,
    /// Rows whose next token counts.
    pub target_rows: Vec<i64>,
    /// The tokens that count.
    pub target_ids: Vec<i64>,
}

impl Flat {
    /// Documents with their labels; a label counts unless it is [`IGNORED`] or its document's first.
    pub fn new(documents: &[(&[i64], &[i64])]) -> Self {
        let mut flat = Self { cu_seqlens: vec![0], ..Self::default() };
        for (ids, labels) in documents {
            for (position, (&id, &label)) in ids.iter().zip(*labels).enumerate() {
                if position > 0 && label != IGNORED {
                    flat.target_rows.push(flat.ids.len() as i64 - 1);
                    flat.target_ids.push(label);
                }
                flat.ids.push(id);
                flat.positions.push(position as i64);
            }
            flat.cu_seqlens.push(flat.ids.len() as i64);
        }
        flat
    }

    /// Each document as a batch of its own.
    pub fn alone(&self) -> Vec<Self> {
        let documents = self.cu_seqlens.windows(2);
        documents
            .map(|at| {
                let (start, end) = (at[0], at[1]);
                let ids = &self.ids[start as usize..end as usize];
                let mut labels = vec![IGNORED; ids.len()];
                for (&row, &id) in self.target_rows.iter().zip(&self.target_ids) {
                    if (start..end).contains(&row) {
                        labels[(row - start) as usize + 1] = id;
                    }
                }
                Self::new(&[(ids, &labels)])
            })
            .collect()
    }

    /// Number of tokens that count.
    pub fn num_targets(&self) -> usize {
        self.target_ids.len()
    }

    /// Final hidden states `[T, D]`.
    ///
    /// # Errors
    /// If the model refuses the batch.
    pub fn hidden(&self, decoder: &Decoder) -> Result<Tensor> {
        let input = decoder.input(&self.ids, &self.positions, &self.cu_seqlens)?;
        Ok(decoder.hidden(&input)?)
    }

    /// Logits `[T, V]` in fp32, without autograd.
    ///
    /// # Errors
    /// If the model refuses the batch.
    pub fn logits(&self, decoder: &Decoder) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        Ok(decoder.logits(&self.hidden(decoder)?)?.to_kind(Kind::Float))
    }

    /// Sum of the negative log-likelihoods that count, differentiable, as the training loop computes it.
    ///
    /// # Errors
    /// If the model refuses the batch.
    pub fn loss_sum(&self, decoder: &Decoder) -> Result<Tensor> {
        let batch = FlatBatch {
            input_ids: self.ids.clone(),
            positions: self.positions.clone(),
            cu_seqlens: self.cu_seqlens.clone(),
            target_rows: self.target_rows.clone(),
            target_ids: self.target_ids.clone(),
        };
        Ok(next_token_loss(decoder, &batch)?.sum)
    }

    /// Mean loss, and gradients of it left in the model's parameters (cleared first).
    ///
    /// # Errors
    /// If the model refuses the batch or backward fails.
    pub fn backward(&self, decoder: &mut Decoder) -> Result<f64> {
        decoder.params_mut().clear_grads()?;
        self.accumulate(decoder, self.num_targets())
    }

    /// Sum of the losses divided by `count`, its gradients added to those in the model's parameters.
    ///
    /// # Errors
    /// If the model refuses the batch or backward fails.
    pub fn accumulate(&self, decoder: &mut Decoder, count: usize) -> Result<f64> {
        let loss = self.loss_sum(decoder)? / count as f64;
        torch_ext::autograd::backward(&loss)?;
        decoder.params_mut().gather_grads()?;
        Ok(loss.double_value(&[]))
    }
}
