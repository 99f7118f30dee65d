//! `tokenizer.json` and `tokenizer_config.json`, and texts through a tokenizer that loads.
#![no_main]

use data::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;
use temper_fuzz::{folder, readable, write};

fuzz_target!(|bytes: &[u8]| {
    // Both files, with a byte that no JSON has between them.
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    write("tokenizer.json", parts.next().unwrap_or_default());
    write("tokenizer_config.json", parts.next().unwrap_or(b"{}"));
    let Some(tokenizer) = readable(Tokenizer::load(folder())) else { return };
    let _ = (tokenizer.specials(), tokenizer.stop_ids(None), tokenizer.byte_lengths());
    for text in ["Hello, 세상! 123\n", "", "<|user|>\u{0}\u{10FFFF}"] {
        for special in [true, false] {
            if let Some(encoding) = readable(tokenizer.encode(text, special)) {
                readable(tokenizer.decode(&encoding.ids, special));
            }
        }
    }
});
