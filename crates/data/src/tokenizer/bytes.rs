//! The bytes that a token stands for.

use std::collections::HashMap;

/// The characters by which byte-level vocabularies write bytes, as GPT-2's `bytes_to_unicode` has them: printable ones stand for
/// themselves, the others for the characters from U+0100 on, in order.
pub(super) fn alphabet() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut others = (0x100..).filter_map(char::from_u32);
    let spelled = |byte: u8| {
        let char = if printable(byte) { Some(char::from(byte)) } else { others.next() };
        char.map(|char| (char, byte))
    };
    (0..=u8::MAX).filter_map(spelled).collect()
}

/// A byte-level token: each of its characters is one byte.
pub(super) fn of_byte_level(token: &str, alphabet: &HashMap<char, u8>) -> Vec<u8> {
    token.chars().map(|char| alphabet.get(&char).copied().unwrap_or(b'?')).collect()
}

/// A token of another vocabulary: `<0xEC>` is a byte, and `▁` a space.
pub(super) fn of_piece(token: &str) -> Vec<u8> {
    let byte = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    match byte.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        Some(byte) => vec![byte],
        None => token.replace('▁', " ").into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_from_their_spelling() {
        let alphabet = alphabet();
        assert_eq!(alphabet.len(), 256);
        // As GPT-2's vocabulary has them: a space, a line break, and "안" (EC 95 88).
        assert_eq!(of_byte_level("Ġa", &alphabet), b" a");
        assert_eq!(of_byte_level("Ċ", &alphabet), b"\n");
        assert_eq!(of_byte_level("ìķĪ", &alphabet), "안".as_bytes());
        assert_eq!(of_byte_level("ì", &alphabet), [0xEC]);
        assert_eq!(of_piece("<0xEC>"), [0xEC]);
        assert_eq!(of_piece("▁민수"), " 민수".as_bytes());
        for text in ["<0xZZ>", "<0xEC", "<0xECA>"] {
            assert_eq!(of_piece(text), text.as_bytes());
        }
    }
}
