//! The files of a tokenizer directory.

use std::path::{Path, PathBuf};

use artifact::{atomic, guard};
use fs_err as fs;
use serde_json::{Map, Value};

use super::{Tokenizer, TokenizerError};

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const SPECIALS: &str = "special_tokens_map.json";
const GENERATION: &str = "generation_config.json";

/// Tables have an entry for every id, so one id must not fill the memory; no vocabulary is near.
const LARGEST_ID: u32 = (1 << 24) - 1;

/// The text of a special token as `tokenizer_config.json` writes it: a string, or an object with
/// `content`.
pub(super) fn token_text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        Value::Object(fields) => fields.get("content").and_then(Value::as_str),
        _ => None,
    }
}

fn find(path: &Path) -> Result<(PathBuf, Option<PathBuf>), TokenizerError> {
    if path.is_file() {
        return Ok((path.to_owned(), None));
    }
    let not_found =
        |what: &str| TokenizerError::NotFound { path: path.to_owned(), what: what.to_owned() };
    if !path.is_dir() {
        return Err(not_found("no such file or folder"));
    }
    for folder in [path.to_owned(), path.join("tokenizer"), path.join("model")] {
        let file = folder.join(TOKENIZER);
        if file.is_file() {
            return Ok((file, Some(folder)));
        }
    }
    if path.join("tokenizer.model").is_file() {
        return Err(not_found(
            "only a SentencePiece tokenizer.model, which must be converted: \
             AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) in Python writes tokenizer.json",
        ));
    }
    if path.join("vocab.json").is_file() && path.join("merges.txt").is_file() {
        return Err(not_found(
            "only vocab.json and merges.txt, which must be converted: \
             AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) in Python writes tokenizer.json",
        ));
    }
    Err(not_found("no tokenizer.json in it"))
}

pub(super) fn load(path: &Path) -> Result<Tokenizer, TokenizerError> {
    let (file, folder) = find(path)?;
    let json = fs::read(&file)?;
    let inner = read(&json).map_err(|message| TokenizerError::Bad { path: file, message })?;
    let Some(folder) = folder else {
        return Tokenizer::from_parts(inner, json, Map::new(), None, None);
    };
    let mut config = read_object(&folder.join(CONFIG))?.unwrap_or_default();
    for (name, token) in read_object(&folder.join(SPECIALS))?.unwrap_or_default() {
        if config.get(&name).is_none_or(Value::is_null) {
            config.insert(name, token);
        }
    }
    let generation = read_object(&folder.join(GENERATION))?.map(Value::Object);
    let in_config = config.shift_remove("chat_template");
    let template_file = folder.join(TEMPLATE);
    let template = if template_file.is_file() {
        Some(fs::read_to_string(template_file)?)
    } else {
        let bad = |message: String| TokenizerError::Bad { path: folder.join(CONFIG), message };
        in_config.map(|value| default_template(&value).map_err(bad)).transpose()?.flatten()
    };
    Tokenizer::from_parts(inner, json, config, generation, template)
}

/// The tokenizer of a `tokenizer.json`, or what is wrong with it.
fn read(json: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    let refused =
        |why: String| format!("not a tokenizer.json that the tokenizers library reads: {why}");
    let inner = guard::catching(|| tokenizers::Tokenizer::from_bytes(json))
        .map_err(&refused)?
        .map_err(|error| refused(error.to_string()))?;
    match inner.get_vocab(true).into_iter().find(|(_, id)| *id > LARGEST_ID) {
        Some((token, id)) => {
            Err(format!("the token `{token}` has the id {id}; ids up to {LARGEST_ID} are read"))
        }
        None => Ok(inner),
    }
}

/// The template itself, or the one named `default` in a list of named ones.
fn default_template(value: &Value) -> Result<Option<String>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(source) => Ok(Some(source.clone())),
        Value::Array(templates) => {
            let named = |name: &str| {
                templates.iter().find(|t| t.get("name").and_then(Value::as_str) == Some(name))
            };
            let source = named("default").and_then(|t| t.get("template")).and_then(Value::as_str);
            match source {
                Some(source) => Ok(Some(source.to_owned())),
                None => Err("chat_template is a list without one named `default`; put the one to \
                             use into chat_template.jinja"
                    .to_owned()),
            }
        }
        _ => Err("chat_template is neither a string nor a list of named templates".to_owned()),
    }
}

fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, TokenizerError> {
    if !path.is_file() {
        return Ok(None);
    }
    let bad = |message: String| TokenizerError::Bad { path: path.to_owned(), message };
    match serde_json::from_slice(&fs::read(path)?) {
        Ok(Value::Object(fields)) => Ok(Some(fields)),
        Ok(_) => Err(bad("expected a JSON object".to_owned())),
        Err(error) => Err(bad(format!("not valid JSON: {error}"))),
    }
}

pub(super) fn save(tokenizer: &Tokenizer, dir: &Path) -> Result<(), TokenizerError> {
    fs::create_dir_all(dir)?;
    atomic::write_bytes(dir.join(TOKENIZER), &tokenizer.json)?;
    let mut config = tokenizer.config.clone();
    let class = Value::String("PreTrainedTokenizerFast".to_owned());
    config.entry("tokenizer_class").or_insert(class);
    if let Some(template) = &tokenizer.chat_template {
        config.insert("chat_template".to_owned(), Value::String(template.clone()));
    }
    write_json(&dir.join(CONFIG), &Value::Object(config))?;
    let specials = Value::Object(tokenizer.specials.named.clone());
    write_json(&dir.join(SPECIALS), &specials)?;
    if let Some(generation) = &tokenizer.generation_config {
        write_json(&dir.join(GENERATION), generation)?;
    }
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<(), TokenizerError> {
    let mut text = serde_json::to_string_pretty(value).map_err(std::io::Error::other)?;
    text.push('\n');
    Ok(atomic::write_bytes(path, text.as_bytes())?)
}
