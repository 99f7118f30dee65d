//! Weight files: header, offsets, number types; every tensor of a good one is read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use model::weights::WeightFiles;
use temper_fuzz::{readable, write};

fuzz_target!(|bytes: &[u8]| {
    // The first byte says whether this is an index of shards, beside a shard that is good.
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let files = if kind % 4 == 0 {
        let _ = std::fs::remove_file(temper_fuzz::folder().join("model.safetensors"));
        write("model.safetensors.index.json", bytes);
        write("shard.safetensors", SHARD);
        WeightFiles::open(temper_fuzz::folder())
    } else {
        WeightFiles::open_file(&write("one.safetensors", bytes))
    };
    let Some(files) = readable(files) else { return };
    let names: Vec<String> = files.names().take(64).map(str::to_owned).collect();
    for name in names {
        readable(files.tensor(&name));
    }
});

const SHARD: &[u8] = b"\x40\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}         \0\0\0\0";
