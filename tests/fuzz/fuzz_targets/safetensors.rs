//! Weight files: header, offsets, number types; every tensor of a good one is read, and a model made of those that fit one.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use model::weights::WeightFiles;
use model::{Decoder, LoadOptions};
use temper_fuzz::mutate::{self, Parts};
use temper_fuzz::{folder, readable, remove, write};

fuzz_target!(|bytes: &[u8]| {
    // The first byte says what the rest is.
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let files = match kind % 4 {
        // An index of shards, beside a shard that is good.
        0 => {
            remove("model.safetensors");
            write("model.safetensors.index.json", bytes);
            write("shard.safetensors", SHARD);
            WeightFiles::open(folder())
        }
        1 => WeightFiles::open_file(&write("one.safetensors", bytes)),
        // The header, and after a byte that no JSON has what the tensors hold; in a file of the right length.
        kind => {
            let path = write("model.safetensors", &with_header(bytes));
            if kind == 3 {
                write("config.json", CONFIG.as_bytes());
                readable(Decoder::load(folder(), &LoadOptions::default()));
            }
            WeightFiles::open_file(&path)
        }
    };
    let Some(files) = readable(files) else { return };
    let names: Vec<String> = files.names().take(64).map(str::to_owned).collect();
    for name in names {
        readable(files.tensor(&name));
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate::json(data, size, max_size, seed, Parts { before: 1, separator: Some(0xff) })
});

/// The file of a header and of its tensors' bytes, as many as the header asks for, within reason.
fn with_header(bytes: &[u8]) -> Vec<u8> {
    let mut parts = bytes.splitn(2, |byte| *byte == 0xff);
    let (header, data) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let value: serde_json::Value = serde_json::from_slice(header).unwrap_or_default();
    let ends = value
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(_, it)| it["data_offsets"][1].as_u64());
    let wanted = ends.max().filter(|end| *end < 1 << 20).unwrap_or_default();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.extend(data.iter().copied().chain(std::iter::repeat(0)).take(wanted as usize));
    file
}

const CONFIG: &str = include_str!("../../fixtures/parity/models/llama/model/config.json");

const SHARD: &[u8] = b"\x40\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}         \0\0\0\0";
