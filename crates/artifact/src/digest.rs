//! SHA-256 digests of bytes, files, directories and JSON.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::atomic;
use crate::error::{Error, Result};
use crate::run_dir;

/// A SHA-256 digest, written `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The whole text, `sha256:…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve hexadecimal digits with their prefix, for messages.
    pub fn short(&self) -> &str {
        &self.0[..PREFIX.len() + 12]
    }

    fn from_hash(hash: Sha256) -> Self {
        let mut text = String::with_capacity(PREFIX.len() + 64);
        text.push_str(PREFIX);
        for byte in hash.finalize() {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
            }
        }
        Self(text)
    }
}

const PREFIX: &str = "sha256:";

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let hex = text.strip_prefix(PREFIX).unwrap_or_default();
        let lower = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if hex.len() == 64 && lower {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::BadDigest(text.to_owned()))
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

/// The digest of bytes in memory.
pub fn bytes(bytes: &[u8]) -> Digest {
    Digest::from_hash(Sha256::new_with_prefix(bytes))
}

/// The digest of everything a reader gives, in bounded memory.
///
/// # Errors
/// Those of the reader.
pub fn reader(mut reader: impl Read) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(Digest::from_hash(hash)),
            Ok(n) => hash.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The digest of a file's bytes.
///
/// # Errors
/// If the file cannot be read; the message names it.
pub fn file(path: impl AsRef<Path>) -> io::Result<Digest> {
    reader(fs_err::File::open(path.as_ref())?)
}

/// The digest of a directory: that of the sorted list of its files' relative paths and digests.
///
/// Names of empty folders, times and permissions do not count; links count as what they point to.
/// Unfinished files ([`crate::atomic`]) are left out, and so is `README.md`, a model's card: it is for people, who may edit it.
///
/// # Errors
/// If anything in it cannot be read; the message names it.
pub fn dir(path: impl AsRef<Path>) -> io::Result<Digest> {
    Ok(listing(&dir_files(path)?))
}

/// The digest of a file or of a directory.
///
/// # Errors
/// If it does not exist or cannot be read; the message names it.
pub fn path(path: impl AsRef<Path>) -> io::Result<Digest> {
    let path = path.as_ref();
    if fs_err::metadata(path)?.is_dir() { dir(path) } else { file(path) }
}

/// The digest of a JSON value, whatever the order of its keys.
pub fn json(value: &serde_json::Value) -> Digest {
    let mut text = String::new();
    canonical(value, &mut text);
    bytes(text.as_bytes())
}

/// Every file under `root` as (path relative to it with `/`, digest), sorted by path.
///
/// # Errors
/// If anything in it cannot be read; the message names it.
pub fn dir_files(root: impl AsRef<Path>) -> io::Result<Vec<(String, Digest)>> {
    names(root.as_ref())?.into_iter().map(|(name, path)| Ok((name, file(path)?))).collect()
}

/// Every file under `root` that a digest of it covers, as (path relative to it with `/`, path), sorted.
pub(crate) fn names(root: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    walk(root, "", &mut found)?;
    found.sort();
    Ok(found)
}

/// The digest of a list as [`dir_files`] gives it.
pub fn listing(files: &[(String, Digest)]) -> Digest {
    let mut hash = Sha256::new();
    for (name, digest) in files {
        hash.update(digest.as_str());
        hash.update(b"  ");
        hash.update(name);
        hash.update(b"\0");
    }
    Digest::from_hash(hash)
}

fn walk(dir: &Path, prefix: &str, found: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    for entry in fs_err::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if atomic::is_temporary(&name) || name == run_dir::CARD {
            continue;
        }
        let relative = format!("{prefix}{name}");
        if fs_err::metadata(&path)?.is_dir() {
            walk(&path, &format!("{relative}/"), found)?;
        } else {
            found.push((relative, path));
        }
    }
    Ok(())
}

fn canonical(value: &serde_json::Value, out: &mut String) {
    use serde_json::Value;
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            out.push('{');
            for key in keys {
                out.push_str(&Value::String(key.clone()).to_string());
                out.push(':');
                canonical(&map[key], out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                canonical(item, out);
                out.push(',');
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // FIPS 180-2, appendix B.1, and the empty message.
    const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn known_digests() {
        assert_eq!(bytes(b"abc").as_str(), ABC);
        assert_eq!(bytes(b"").as_str(), EMPTY);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        fs_err::write(&path, b"abc").unwrap();
        assert_eq!(file(&path).unwrap().as_str(), ABC);
        assert_eq!(super::path(&path).unwrap().as_str(), ABC);
        assert_eq!(bytes(b"abc").short(), "sha256:ba7816bf8f01");
    }

    #[test]
    fn a_directory_digest_follows_names_and_contents_only() {
        let make = |files: &[(&str, &str)]| {
            let root = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = root.path().join(name);
                fs_err::create_dir_all(path.parent().unwrap()).unwrap();
                fs_err::write(path, text).unwrap();
            }
            dir(root.path()).unwrap()
        };
        let base = make(&[("a", "1"), ("b/c", "2")]);
        assert_eq!(base, make(&[("b/c", "2"), ("a", "1")]));
        assert_eq!(base, make(&[("b/c", "2"), ("a", "1"), (".x.1-2-3.temper.tmp", "half")]));
        assert_ne!(base, make(&[("a", "1"), ("b/d", "2")]));
        assert_ne!(base, make(&[("a", "1"), ("b/c", "3")]));
        assert_ne!(base, make(&[("a", "1"), ("b_c", "2")]));
        // By hand: `digest␠␠name\0` for each file, in order of names.
        let by_hand = format!("{}  a\0{}  b/c\0", bytes(b"1"), bytes(b"2"));
        assert_eq!(base, bytes(by_hand.as_bytes()));
    }

    #[test]
    fn json_digests_ignore_key_order_but_not_values() {
        let parse = |text: &str| json(&serde_json::from_str(text).unwrap());
        assert_eq!(
            parse(r#"{"a":1,"b":{"x":[1,2],"가":null}}"#),
            parse(r#"{"b":{"가":null,"x":[1,2]},"a":1}"#)
        );
        assert_ne!(parse(r#"{"a":1}"#), parse(r#"{"a":1.0}"#));
        assert_ne!(parse(r#"{"a":[1,2]}"#), parse(r#"{"a":[2,1]}"#));
        assert_ne!(parse(r#"{"a":"b"}"#), parse(r#"{"a":{"b":null}}"#));
    }

    #[test]
    fn only_well_formed_digests_parse() {
        assert_eq!(ABC.parse::<Digest>().unwrap(), bytes(b"abc"));
        for bad in ["", "sha256:", "sha256:abc", &ABC.to_uppercase(), &ABC.replace("sha256", "md5")]
        {
            let message = bad.parse::<Digest>().unwrap_err().to_string();
            assert_eq!(
                message,
                format!(
                    "`{bad}` is not a digest; expected `sha256:` and 64 lower-case hexadecimal digits"
                )
            );
        }
        assert!(serde_json::from_str::<Digest>("\"sha256:zz\"").is_err());
        assert_eq!(serde_json::to_string(&bytes(b"abc")).unwrap(), format!("\"{ABC}\""));
    }
}
