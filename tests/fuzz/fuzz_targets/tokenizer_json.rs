//! `tokenizer.json` and `tokenizer_config.json`, and texts through a tokenizer that loads.
#![no_main]

use data::tokenizer::Tokenizer;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use temper_fuzz::mutate::{self, Parts};
use temper_fuzz::{allow_guarded_panics, folder, readable, write};

const TEXTS: [&str; 4] =
    ["Hello, 세상! 123\n", "", "<|user|>\u{0}\u{10FFFF}", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!"];

fuzz_target!(init: allow_guarded_panics(), |bytes: &[u8]| {
    // Both files, with a byte that no JSON has between them.
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    write("tokenizer.json", parts.next().unwrap_or_default());
    write("tokenizer_config.json", parts.next().unwrap_or(b"{}"));
    let Some(tokenizer) = readable(Tokenizer::load(folder())) else { return };
    let _ = (tokenizer.specials(), tokenizer.stop_ids(None), tokenizer.byte_lengths());
    for text in TEXTS {
        let _ = tokenizer.special_in(text);
        for special in [true, false] {
            readable(tokenizer.ids_plain(text, special));
            readable(tokenizer.encode_plain(text, special));
            let Some(encoding) = readable(tokenizer.encode(text, special)) else { continue };
            for (start, end) in &encoding.offsets {
                assert!(start <= end && *end <= text.len(), "{start}..{end} of {text:?}");
            }
            readable(tokenizer.decode(&encoding.ids, special));
            let mut stream = tokenizer.stream(special);
            for id in encoding.ids {
                readable(stream.push(id));
            }
        }
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate::json(data, size, max_size, seed, Parts { before: 0, separator: Some(0) })
});
