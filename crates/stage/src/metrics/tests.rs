use std::path::Path;

use artifact::RunDir;
use serde_json::{Value, json};

use super::*;

fn run() -> (tempfile::TempDir, RunDir) {
    let dir = tempfile::tempdir().unwrap();
    let run = RunDir::create(dir.path().join("run")).unwrap();
    (dir, run)
}

/// The lines of `metrics.jsonl` without their `time`.
fn lines(run: &RunDir) -> Vec<Value> {
    let text = fs_err::read_to_string(run.metrics_path()).unwrap();
    let parse = |line: &str| {
        let mut object: serde_json::Map<_, _> = serde_json::from_str(line).unwrap();
        assert!(object.remove("time").unwrap().as_f64().unwrap() > 1.7e9);
        Value::Object(object)
    };
    text.lines().map(parse).collect()
}

fn event_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs_err::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn each_log_step_is_a_line_in_the_order_given() {
    let (_dir, run) = run();
    let mut metrics = Metrics::quiet(&run);
    metrics.log(1, &[("loss", 2.5), ("grad_norm", 1.0)]).unwrap();
    metrics.log(2, &[("loss", f64::NAN), ("평가", f64::INFINITY)]).unwrap();
    let text = fs_err::read_to_string(run.metrics_path()).unwrap();
    assert!(text.starts_with("{\"step\":1,\"loss\":2.5,\"grad_norm\":1.0,\"time\":"), "{text}");
    assert_eq!(lines(&run)[1], json!({"step": 2, "loss": null, "평가": null}));
}

#[test]
fn resuming_cuts_what_comes_again_and_a_fresh_start_cuts_all() {
    let (_dir, run) = run();
    let mut metrics = Metrics::quiet(&run);
    for step in [10, 20, 20, 30] {
        metrics.log(step, &[("loss", 1.0)]).unwrap();
    }
    drop(metrics);
    let mut metrics = Metrics::quiet(&run);
    metrics.begin(Some(20)).unwrap();
    let steps =
        |run: &RunDir| lines(run).iter().map(|l| l["step"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(steps(&run), [10, 20, 20]);
    metrics.log(30, &[("loss", 0.5)]).unwrap();
    assert_eq!(steps(&run), [10, 20, 20, 30]);
    assert_eq!(event_files(&run.tensorboard_dir()).len(), 2);

    let mut metrics = Metrics::quiet(&run);
    metrics.begin(None).unwrap();
    assert_eq!(steps(&run), [0; 0]);
    assert_eq!(event_files(&run.tensorboard_dir()).len(), 1);
    metrics.log(10, &[("loss", 3.0)]).unwrap();
    assert_eq!(steps(&run), [10]);
}

#[test]
fn a_line_that_a_kill_left_half_written_goes() {
    for tail in ["{\"step\": 20, \"lo", "{\"step\": 20}", "\0\0\0\0\n{\"step\":15}\n", "{}\n"] {
        let (_dir, run) = run();
        fs_err::write(run.metrics_path(), format!("{{\"step\":10,\"time\":2e9}}\n{tail}")).unwrap();
        let mut metrics = Metrics::quiet(&run);
        metrics.begin(Some(100)).unwrap();
        assert_eq!(lines(&run), [json!({"step": 10})], "{tail}");
    }
}

/// A record's fields by wire type, parsed by hand: (field, bytes or little-endian number).
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => {
                found.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, bytes[..length].to_vec()));
        bytes = &bytes[length..];
    }
    found
}

/// CRC-32C bit by bit (reflected polynomial 0x82f63b78), then masked as TensorFlow does.
fn masked_crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    let crc = !crc;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The events of a file, by hand: length, its CRC, data, its CRC.
fn events(path: &Path) -> Vec<Vec<(u64, Vec<u8>)>> {
    let bytes = fs_err::read(path).unwrap();
    let (mut rest, mut found) = (&bytes[..], Vec::new());
    let u32_at = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(u32_at(&rest[8..]), masked_crc(&rest[..8]));
        let data = &rest[12..12 + length];
        assert_eq!(u32_at(&rest[12 + length..]), masked_crc(data));
        found.push(fields(data));
        rest = &rest[16 + length..];
    }
    found
}

fn get(fields: &[(u64, Vec<u8>)], field: u64) -> Vec<u8> {
    fields
        .iter()
        .find(|(found, _)| *found == field)
        .unwrap_or_else(|| panic!("field {field}"))
        .1
        .clone()
}

#[test]
fn the_checksum_is_crc32c() {
    // RFC 3720, B.4: 32 bytes of zeros have the CRC 0x8a9136aa; "123456789" has 0xe3069283.
    let mask = |crc: u32| crc.rotate_right(15).wrapping_add(0xa282_ead8);
    assert_eq!(masked_crc(&[0; 32]), mask(0x8a91_36aa));
    assert_eq!(masked_crc(b"123456789"), mask(0xe306_9283));
    assert_eq!(tensorboard::masked_crc(&[0; 32]), mask(0x8a91_36aa));
    assert_eq!(tensorboard::masked_crc(b"123456789"), mask(0xe306_9283));
}

#[test]
fn event_files_hold_scalars_and_texts_as_tensorboard_reads_them() {
    let (_dir, run) = run();
    let mut metrics = Metrics::quiet(&run);
    metrics.log(300, &[("objective/kl", 0.25), ("loss", f64::NAN)]).unwrap();
    metrics.text("samples/질문", 301, "답: 고양이").unwrap();
    let files = event_files(&run.tensorboard_dir());
    let name = files[0].file_name().unwrap().to_str().unwrap();
    assert!(
        name.starts_with("events.out.tfevents.1") || name.starts_with("events.out.tfevents.2"),
        "{name}"
    );
    let events = events(&files[0]);
    assert_eq!(events.len(), 3);

    assert_eq!(get(&events[0], 3), b"brain.Event:2");
    assert!(f64::from_le_bytes(get(&events[0], 1).try_into().unwrap()) > 1.7e9);

    assert_eq!(get(&events[1], 2), 300_u64.to_le_bytes());
    let summary = fields(&get(&events[1], 5));
    assert_eq!(summary.len(), 2);
    let scalar = fields(&summary[0].1);
    assert_eq!(get(&scalar, 1), b"objective/kl");
    assert_eq!(get(&scalar, 2), 0.25_f32.to_le_bytes());
    let scalar = fields(&summary[1].1);
    assert!(f32::from_le_bytes(get(&scalar, 2).try_into().unwrap()).is_nan());

    assert_eq!(get(&events[2], 2), 301_u64.to_le_bytes());
    let value = fields(&get(&fields(&get(&events[2], 5)), 1));
    assert_eq!(get(&value, 1), "samples/질문".as_bytes());
    let tensor = fields(&get(&value, 8));
    assert_eq!(get(&tensor, 1), 7_u64.to_le_bytes(), "DT_STRING");
    let dim = fields(&get(&fields(&get(&tensor, 2)), 2));
    assert_eq!(get(&dim, 1), 1_u64.to_le_bytes());
    assert_eq!(get(&tensor, 8), "답: 고양이".as_bytes());
    let plugin = fields(&get(&fields(&get(&value, 9)), 1));
    assert_eq!(get(&plugin, 1), b"text");
}

#[test]
fn a_resumed_run_tells_tensorboard_what_to_forget() {
    let (_dir, run) = run();
    Metrics::quiet(&run).begin(None).unwrap();
    Metrics::quiet(&run).begin(Some(20)).unwrap();
    let files = event_files(&run.tensorboard_dir());
    assert_eq!(files.len(), 2);
    let [_, purge] = &events(&files[1])[..] else { panic!("two events") };
    assert_eq!(get(purge, 2), 21_u64.to_le_bytes());
    assert_eq!(get(&fields(&get(purge, 7)), 1), 1_u64.to_le_bytes(), "START");
}

#[test]
fn numbers_are_short() {
    let words: Vec<String> = [
        0.0,
        500.0,
        -3.0,
        2.34567,
        123.456,
        0.00003,
        1e-3,
        12345.6,
        1.5e9,
        f64::NAN,
        f64::INFINITY,
    ]
    .map(short)
    .into();
    let expected = [
        "0", "500", "-3", "2.3457", "123.5", "3.00e-5", "0.0010", "12345.6", "1.50e9", "NaN", "inf",
    ];
    assert_eq!(words, expected);
}

#[test]
fn the_terminal_shows_what_matters() {
    let values = [
        ("loss", 2.34567),
        ("learning_rate", 3e-5),
        ("grad_norm", 0.8125),
        ("mean_token_accuracy", 0.5),
        ("tokens_per_second", 12345.6),
    ];
    let rss = Some(512 << 20);
    assert_eq!(
        plain_line("120/500 (24%)", &values, rss, Some(Duration::from_secs(62))),
        "step 120/500 (24%)  loss 2.3457  lr 3.00e-5  grad_norm 0.8125  mean_token_accuracy 0.5000  \
         tok/s 12345.6  mem 512.0 MiB  eta 1m 02s"
    );
    assert_eq!(
        bar_words(&values, rss),
        "loss 2.3457  lr 3.00e-5  grad_norm 0.8125  tok/s 12345.6  mem 512.0 MiB"
    );
    // A device's memory takes the place of the process's.
    assert_eq!(bar_words(&[("memory_bytes", 1024.0)], rss), "mem 1.0 KiB");
    assert_eq!(plain_line("3", &[("memory_bytes", 1024.0)], rss, None), "step 3  mem 1.0 KiB");
}
