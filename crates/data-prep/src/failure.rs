//! An error on its way from one process to another: what it says, and what its causes say.

use serde::{Deserialize, Deserializer, Serializer};

pub(crate) fn serialize<S: Serializer>(error: &anyhow::Error, to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(error.chain().map(ToString::to_string))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<anyhow::Error, D::Error> {
    let mut said = Vec::<String>::deserialize(from)?.into_iter().rev();
    let root = anyhow::Error::msg(said.next().unwrap_or_default());
    Ok(said.fold(root, anyhow::Error::context))
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use crate::prepare::Outcome;

    #[test]
    fn an_error_arrives_with_all_its_causes() {
        let inner: anyhow::Result<()> = Err(anyhow!("깨진 글자"));
        let error = inner.context("a.jsonl:3").context("data set `x`").unwrap_err();
        let text = serde_json::to_vec(&Outcome::<()>::Fail(error)).unwrap();
        let Outcome::Fail(error) = serde_json::from_slice::<Outcome<()>>(&text).unwrap() else {
            unreachable!("another outcome")
        };
        assert_eq!(format!("{error:#}"), "data set `x`: a.jsonl:3: 깨진 글자");
    }
}
