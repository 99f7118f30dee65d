//! `manifest.json`, `results.json` and what is read because of what they say.
#![no_main]

use artifact::evaluation::Evaluation;
use artifact::{Manifest, RunDir, check_input};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use temper_fuzz::mutate::{self, Parts};
use temper_fuzz::{folder, readable, write};

fuzz_target!(|bytes: &[u8]| {
    let file = write("run/manifest.json", bytes);
    write("run/data/a/train.parquet", b"x");
    write("run/results.json", bytes);
    let run = folder().join("run");
    readable(Manifest::read(&file));
    readable(Manifest::read(&run));
    readable(Evaluation::read(&run.join("results.json")));
    readable(check_input(&run));
    readable(check_input(run.join("data/a/train.parquet")));
    readable(artifact::model_dir(&run));
    readable(artifact::adapter_dir(&run));
    let _ = RunDir::look(&run);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate::json(data, size, max_size, seed, Parts { before: 0, separator: None })
});
