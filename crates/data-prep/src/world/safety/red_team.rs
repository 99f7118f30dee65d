//! Requests alone: what a model answers for itself, to be criticised, or a policy, to be rewarded.

use serde_json::{Map, Value};

use super::super::Rng;
use super::super::stream::Drawn;
use super::{Request, turn, turns};

/// A request without an answer.
pub(in super::super) struct Prompted(Request);

impl Drawn for Prompted {
    type From = ();

    fn draw(from: &(), rng: &mut Rng) -> Self {
        Self(Request::draw(from, rng))
    }

    fn key(&self) -> &str {
        self.0.key()
    }

    fn identity(&self) -> String {
        self.0.identity()
    }

    fn record(self, split: &str) -> anyhow::Result<Map<String, Value>> {
        let Self(request) = self;
        let prompt = vec![turn("user", request.text.as_str())];
        Ok(turns("prompt", prompt, &request, request.task(), split, request.checker()))
    }
}
