//! Requests answered by one that only wants to help, whatever comes of it: what a model does before it learns better.

use serde_json::{Map, Value};

use super::super::Rng;
use super::super::stream::Drawn;
use super::{Request, turn, turns};

/// A request to be obeyed.
pub(in super::super) struct Obeyed(Request);

impl Drawn for Obeyed {
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
        let answer = request.bad().unwrap_or_else(|| request.good());
        let messages = vec![turn("user", request.text.as_str()), turn("assistant", answer)];
        Ok(turns("messages", messages, &request, request.task(), split, request.checker()))
    }
}

/// A request that only looks as if it should be refused, answered.
pub(in super::super) struct Granted(Obeyed);

impl Drawn for Granted {
    type From = ();

    fn draw(from: &(), rng: &mut Rng) -> Self {
        loop {
            let Obeyed(request) = Obeyed::draw(from, rng);
            if request.bad().is_none() {
                return Self(Obeyed(request));
            }
        }
    }

    fn key(&self) -> &str {
        self.0.key()
    }

    fn identity(&self) -> String {
        self.0.identity()
    }

    fn record(self, split: &str) -> anyhow::Result<Map<String, Value>> {
        self.0.record(split)
    }
}
