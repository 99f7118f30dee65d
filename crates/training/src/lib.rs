//! Training: how weights are optimised, and how a run survives.
//!
//! - [`settings`]: the config tables that training stages share.
//! - [`plan`]: from those tables to a checked plan, without a tensor.
//! - [`supervised`]: the loop over a fixed set of rows, which exists once.
//! - [`loss`]: from a micro-batch to what the loop minimises.
//! - [`update`], [`optimizer`], [`schedule`]: an optimiser step, AdamW, the loss scale, the learning rate's course.
//! - [`branches`]: models over prompts that continuations share.
//! - [`checkpoint`]: all a run needs to go on as if it had never stopped.
//! - [`prompts`]: prompts read and tokenised.
//! - [`evaluate`](mod@evaluate), [`respond`](mod@respond): the loss on held-out rows, answers to held-out prompts.
//! - [`tasks`]: answers to held-out prompts compared with the right ones, before and after.
//! - [`peft`]: an adapter trained in place of the whole model; [`fine_tune`]: the stage that `finetune` and `peft` are.
//! - [`world`]: the processes that train together.
//! - [`stage_run`]: what every training stage does around its loop.

pub mod branches;
pub mod checkpoint;
pub mod evaluate;
pub mod fine_tune;
pub mod loss;
pub mod memory_estimate;
mod memory_use;
mod meter;
pub mod optimizer;
pub mod peft;
pub mod plan;
pub mod prompts;
pub mod respond;
pub mod schedule;
pub mod settings;
pub mod stage_run;
pub mod supervised;
pub mod tasks;
#[cfg(test)]
mod testing;
pub mod update;
pub mod world;
