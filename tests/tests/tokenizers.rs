//! Both common kinds of tokenizer against `AutoTokenizer`, on Korean, English, emoji and odd bytes.

use anyhow::{Result, ensure};
use data::tokenizer::Tokenizer;
use serde::Deserialize;
use temper_tests::fixtures;

const KINDS: [&str; 2] = ["byte-level", "metaspace"];

#[derive(Debug, Deserialize)]
struct Row {
    text: String,
    ids: Vec<u32>,
    offsets: Vec<(usize, usize)>,
    ids_with_special: Vec<u32>,
    decoded: String,
    decoded_without_special: String,
}

fn rows(kind: &str) -> Result<Vec<Row>> {
    let rows: Vec<Row> = fixtures::json(&fixtures::parity(format!("tokenizers/{kind}.json")))?;
    ensure!(rows.len() >= 15);
    Ok(rows)
}

fn load(kind: &str) -> Result<Tokenizer> {
    Ok(Tokenizer::load(fixtures::parity(format!("tokenizers/{kind}")))?)
}

#[test]
fn ids_and_texts_are_those_of_auto_tokenizer() -> Result<()> {
    for kind in KINDS {
        let tokenizer = load(kind)?;
        for row in rows(kind)? {
            let what = format!("{kind} {:?}", row.text);
            assert_eq!(tokenizer.encode(&row.text, false)?.ids, row.ids, "{what}");
            assert_eq!(tokenizer.encode(&row.text, true)?.ids, row.ids_with_special, "{what}");
            assert_eq!(tokenizer.decode(&row.ids, false)?, row.decoded, "{what}");
            let without = tokenizer.decode(&row.ids, true)?;
            assert_eq!(without, row.decoded_without_special, "{what}");
        }
    }
    Ok(())
}

#[test]
fn offsets_end_where_auto_tokenizers_do_and_leave_no_byte_out() -> Result<()> {
    for kind in KINDS {
        let tokenizer = load(kind)?;
        for row in rows(kind)? {
            let what = format!("{kind} {:?}", row.text);
            let offsets = tokenizer.encode(&row.text, false)?.offsets;
            assert_eq!(offsets.len(), row.offsets.len(), "{what}");
            let mut covered = 0;
            for (&(start, end), &(their_start, their_end)) in offsets.iter().zip(&row.offsets) {
                ensure!(start <= covered && end >= start, "{what}: a gap before byte {start}");
                ensure!(start <= their_start && end >= their_end, "{what}: {offsets:?}");
                covered = covered.max(end);
            }
            ensure!(row.ids.is_empty() || covered == row.text.len(), "{what}: ends at {covered}");
        }
    }
    Ok(())
}

#[test]
fn streaming_gives_the_same_text_in_whole_characters() -> Result<()> {
    for kind in KINDS {
        let tokenizer = load(kind)?;
        for row in rows(kind)? {
            let mut stream = tokenizer.stream(false);
            let mut text = String::new();
            for &id in &row.ids {
                text += &stream.push(id)?;
            }
            text += &stream.finish()?;
            assert_eq!(text, row.decoded, "{kind}");
        }
    }
    Ok(())
}

#[test]
fn saved_and_loaded_again_is_the_same_tokenizer() -> Result<()> {
    for kind in KINDS {
        let tokenizer = load(kind)?;
        let dir = tempfile::tempdir()?;
        tokenizer.save(dir.path())?;
        let again = Tokenizer::load(dir.path())?;
        assert_eq!(again.digest(), tokenizer.digest());
        assert_eq!(again.vocab_size(), tokenizer.vocab_size());
        assert_eq!((again.bos_id(), again.eos_id()), (tokenizer.bos_id(), tokenizer.eos_id()));
        for row in rows(kind)? {
            assert_eq!(again.encode(&row.text, true)?.ids, row.ids_with_special);
        }
    }
    Ok(())
}
