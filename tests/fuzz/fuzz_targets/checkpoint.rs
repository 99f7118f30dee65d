//! The state of a checkpoint, and the state of its generators, as a resumed run reads them.
#![no_main]

use artifact::RunDir;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use stage::{Context, DeviceSpec};
use temper_fuzz::mutate::{self, Parts};
use temper_fuzz::{folder, readable, write};
use training::checkpoint;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |byte| *byte == 0xff);
    write("run/checkpoints/step-00000002/state.json", parts.next().unwrap_or_default());
    write("run/checkpoints/step-00000002/generators.safetensors", parts.next().unwrap_or_default());
    let run = RunDir::create(folder().join("run")).expect("a run directory");
    let ctx = Context::detached(run, 1, DeviceSpec::Cpu);
    readable(checkpoint::resume::<serde_json::Value>(&ctx, tch::Device::Cpu));
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate::json(data, size, max_size, seed, Parts { before: 0, separator: Some(0xff) })
});
