//! Prompts with the continuations that share them, each prompt present once.

#[cfg(test)]
mod tests;

use std::ops::Range;

/// Prompts that each have one or more continuations, as one flat row of `T` tokens in which a prompt
/// stands once, and the layout of `U` tokens that attention runs on, in which every continuation has
/// its own copy of the prompt.
///
/// Linear layers, norms and the loss depend on a token and what it has attended to alone. A causal
/// model sees the same before every copy of a prompt, so whatever it makes of one copy holds for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branches {
    /// `[T]` token ids: for each prompt its tokens, then those of each continuation.
    pub input_ids: Vec<i64>,
    /// `[T]` positions: those of a continuation go on from its prompt's.
    pub positions: Vec<i64>,
    /// Where the documents of the layout for attention start, then `U`. A document is a prompt with
    /// one continuation.
    pub cu_seqlens: Vec<i64>,
    /// `[U]` for each token of that layout its index in `input_ids`.
    pub expand: Vec<i64>,
    /// `[T]` for each token of `input_ids` one index in that layout; for a prompt's its first copy.
    pub keep: Vec<i64>,
    /// The tokens of each continuation in `input_ids`, in the order they were pushed.
    pub responses: Vec<Range<usize>>,
    /// For each of `responses` the tokens of its prompt in `input_ids`.
    pub prompts: Vec<Range<usize>>,
}

impl Default for Branches {
    fn default() -> Self {
        Self::new()
    }
}

impl Branches {
    /// No prompt yet.
    pub fn new() -> Self {
        Self {
            input_ids: Vec::new(),
            positions: Vec::new(),
            cu_seqlens: vec![0],
            expand: Vec::new(),
            keep: Vec::new(),
            responses: Vec::new(),
            prompts: Vec::new(),
        }
    }

    /// Adds a prompt, which may be empty, with its continuations.
    ///
    /// # Panics
    /// Without a continuation, or with an empty one: what reads or makes responses refuses those.
    pub fn push(&mut self, prompt: &[i64], continuations: &[&[i64]]) {
        assert!(!continuations.is_empty(), "a prompt needs a continuation");
        let start = self.input_ids.len();
        let shared = start..start + prompt.len();
        let first_copy = self.expand.len() as i64;
        self.input_ids.extend(prompt);
        self.positions.extend(0..prompt.len() as i64);
        self.keep.extend(first_copy..first_copy + prompt.len() as i64);
        for continuation in continuations {
            assert!(!continuation.is_empty(), "a continuation needs tokens");
            let at = self.input_ids.len();
            let own = at..at + continuation.len();
            self.input_ids.extend(*continuation);
            self.positions.extend(prompt.len() as i64..(prompt.len() + continuation.len()) as i64);
            self.expand.extend(shared.clone().map(|token| token as i64));
            let copied = self.expand.len() as i64;
            self.keep.extend(copied..copied + continuation.len() as i64);
            self.expand.extend(own.clone().map(|token| token as i64));
            self.cu_seqlens.push(self.expand.len() as i64);
            self.responses.push(own);
            self.prompts.push(shared.clone());
        }
    }

    /// Tokens, `T`.
    pub fn num_tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Tokens of the layout for attention, `U`.
    pub fn num_expanded(&self) -> usize {
        self.expand.len()
    }

    /// Whether no token is shared, as when every prompt has one continuation: `expand` and `keep`
    /// are then the identity.
    pub fn is_plain(&self) -> bool {
        self.expand.len() == self.input_ids.len()
    }
}
