use std::path::{Path, PathBuf};

use artifact::pairs::{PairRow as Written, PairWriter};
use artifact::tokens::TokenWriter;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

use super::*;
use crate::batch::{BatchConfig, BatchSize, Batcher, Step};
use crate::dataset::PairDataset;
use crate::dataset::tests::meta;

/// 300 pairs of 2 to 60 tokens in one file; every sequence of a pair begins with its number.
fn ragged(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("pairs.parquet");
    let mut writer = PairWriter::create(&path, meta("a")).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(3);
    for n in 0..300_u32 {
        let mut ids = |least: u64, salt: u32| -> Vec<u32> {
            let length = least + random.next_u64() % 20;
            (0..length as u32).map(|at| n * 1000 + salt + at).collect()
        };
        let (prompt, chosen, rejected) = (ids(0, 0), ids(1, 100), ids(1, 200));
        let task = format!("종류 {}", n % 3);
        let row = Written {
            prompt: &prompt,
            chosen: &chosen,
            rejected: &rejected,
            margin: (n % 2 == 0).then_some(n as f32),
            probability: (n % 5 == 0).then_some(0.75),
            task: (n % 4 != 0).then_some(task.as_str()),
        };
        writer.write_row(&row).unwrap();
    }
    writer.finish().unwrap();
    path
}

fn batcher(path: &Path, size: BatchSize, limit: usize, epochs: u64) -> Batcher<PairBatch> {
    let dataset = PairDataset::open(&[path], 4).unwrap().with_epochs(Some(epochs));
    Batcher::new(dataset, BatchConfig { size, micro_batch_tokens: limit })
}

fn steps(batcher: &mut Batcher<PairBatch>, most: usize) -> Vec<Step<PairBatch>> {
    std::iter::from_fn(|| batcher.next_step().unwrap()).take(most).collect()
}

/// A pair as ids, margin, probability and task.
type Pair = ([Vec<i64>; 3], f32, f32, Option<String>);

/// The pairs of a step, sorted.
fn pairs(step: &Step<PairBatch>) -> Vec<Pair> {
    let mut found = Vec::new();
    for batch in &step.micro_batches {
        let branches = &batch.branches;
        assert_eq!(branches.responses.len(), 2 * batch.num_pairs());
        for pair in 0..batch.num_pairs() {
            assert_eq!(branches.prompts[2 * pair], branches.prompts[2 * pair + 1]);
            let ids = [
                branches.prompts[2 * pair].clone(),
                branches.responses[2 * pair].clone(),
                branches.responses[2 * pair + 1].clone(),
            ]
            .map(|range| branches.input_ids[range].to_vec());
            found.push((
                ids,
                batch.margins[pair],
                batch.probabilities[pair],
                batch.tasks[pair].clone(),
            ));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

#[test]
fn a_batch_has_the_chosen_response_first_and_defaults_for_what_is_not_known() {
    let row = |margin, probability, task: Option<&str>| PairRow {
        prompt: vec![1, 2],
        chosen: vec![3],
        rejected: vec![4, 5],
        margin,
        probability,
        task: task.map(str::to_owned),
    };
    let rows = [row(None, None, None), row(Some(0.5), Some(0.25), Some("친절"))];
    let batch = PairBatch::of_rows(rows.iter());
    assert_eq!(batch.branches.input_ids, [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]);
    assert_eq!(batch.branches.responses, [2..3, 3..5, 7..8, 8..10]);
    assert_eq!(batch.branches.cu_seqlens, [0, 3, 7, 10, 14]);
    assert_eq!(
        (batch.margins.as_slice(), batch.probabilities.as_slice()),
        (&[0.0, 0.5][..], &[1.0, 0.25][..])
    );
    assert_eq!(batch.tasks, [None, Some("친절".to_owned())]);
    assert_eq!((batch.num_pairs(), batch.num_targets()), (2, 2));
}

#[test]
fn the_step_is_the_same_whatever_the_micro_batch() {
    let dir = tempfile::tempdir().unwrap();
    let path = ragged(&dir);
    for size in [BatchSize::Tokens(200), BatchSize::Sequences(7)] {
        let whole = steps(&mut batcher(&path, size, usize::MAX, 1), usize::MAX);
        assert_eq!(whole.iter().map(|step| step.num_rows).sum::<usize>(), 300);
        for limit in [1, 40, 100, 1000] {
            let divided = steps(&mut batcher(&path, size, limit, 1), usize::MAX);
            assert_eq!(divided.len(), whole.len());
            for (a, b) in divided.iter().zip(&whole) {
                assert_eq!(pairs(a), pairs(b));
                assert_eq!(
                    (a.num_targets, a.num_tokens, a.num_rows),
                    (b.num_targets, b.num_tokens, b.num_rows)
                );
                assert_eq!((a.num_targets, a.num_rows), (pairs(a).len(), pairs(a).len()));
                let tokens: usize = a.micro_batches.iter().map(|m| m.branches.num_tokens()).sum();
                assert_eq!(a.num_tokens, tokens, "a prompt counts once");
                for batch in &a.micro_batches {
                    assert!(batch.branches.num_tokens() <= limit || batch.num_pairs() == 1);
                }
                match size {
                    BatchSize::Tokens(most) => assert!(a.num_tokens <= most),
                    BatchSize::Sequences(most) | BatchSize::Prompts(most) => {
                        assert!(a.num_rows <= most);
                    }
                }
            }
        }
    }
}

/// 40 rankings: of prompt `n` there are `1 + n % 6` pairs, the first ones of which are rejected in all.
fn rankings(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("rankings.parquet");
    let mut writer = PairWriter::create(&path, meta("a")).unwrap();
    for n in 0..40_u32 {
        for pair in 0..=n % 6 {
            let (prompt, chosen, rejected) = (vec![n, 1], vec![100 + pair], vec![200, 3]);
            let row = Written {
                prompt: &prompt,
                chosen: &chosen,
                rejected: &rejected,
                margin: None,
                probability: None,
                task: None,
            };
            writer.write_row(&row).unwrap();
        }
    }
    writer.finish().unwrap();
    path
}

#[test]
fn all_pairs_of_a_prompt_are_in_one_step() {
    let dir = tempfile::tempdir().unwrap();
    let path = rankings(&dir);
    let prompts = |step: &Step<PairBatch>| {
        let mut found: Vec<i64> = pairs(step).iter().map(|pair| pair.0[0][0]).collect();
        found.dedup();
        found
    };
    let size = BatchSize::Prompts(7);
    let whole = steps(&mut batcher(&path, size, usize::MAX, 1), usize::MAX);
    let sizes: Vec<usize> = whole.iter().map(|step| prompts(step).len()).collect();
    assert_eq!(sizes, [7, 7, 7, 7, 7, 5]);
    let mut all: Vec<i64> = whole.iter().flat_map(prompts).collect();
    assert!(!all.is_sorted(), "the prompts are shuffled");
    all.sort_unstable();
    assert_eq!(all, (0..40).collect::<Vec<i64>>(), "no prompt is in two steps");
    for step in &whole {
        let pairs: i64 = prompts(step).iter().map(|n| 1 + n % 6).sum();
        assert_eq!(step.num_targets as i64, pairs);
    }
    // One micro-batch or many, from the beginning or from a cursor: the same steps.
    let divided = steps(&mut batcher(&path, size, 9, 2), usize::MAX);
    assert_eq!(batcher(&path, size, 9, 2).count_steps().unwrap(), Some(divided.len() as u64));
    assert!(whole.iter().zip(&divided).take(5).all(|(a, b)| pairs(a) == pairs(b)));
    for stop in [1, 5, 6, 9] {
        let mut interrupted = batcher(&path, size, 9, 2);
        steps(&mut interrupted, stop);
        let mut resumed = batcher(&path, size, 9, 2);
        resumed.seek(interrupted.cursor()).unwrap();
        assert_eq!(steps(&mut resumed, usize::MAX), divided[stop..], "at {stop}");
    }
    // Sizes in pairs tear them apart.
    let torn = steps(&mut batcher(&path, BatchSize::Sequences(7), usize::MAX, 1), usize::MAX);
    assert!(torn.iter().map(|step| prompts(step).len()).sum::<usize>() > 40);
}

#[test]
fn going_on_from_a_cursor_gives_the_same_steps() {
    let dir = tempfile::tempdir().unwrap();
    let path = ragged(&dir);
    for size in [BatchSize::Tokens(150), BatchSize::Sequences(4)] {
        let straight = steps(&mut batcher(&path, size, 64, 2), usize::MAX);
        assert_eq!(batcher(&path, size, 64, 2).count_steps().unwrap(), Some(straight.len() as u64));
        for stop in [0, 1, straight.len() / 3, straight.len() - 1, straight.len()] {
            let mut interrupted = batcher(&path, size, 64, 2);
            steps(&mut interrupted, stop);
            let mut resumed = batcher(&path, size, 64, 2);
            resumed.seek(interrupted.cursor()).unwrap();
            assert_eq!(steps(&mut resumed, usize::MAX), straight[stop..], "{size:?} at {stop}");
        }
    }
}

#[test]
fn a_data_set_of_pairs_counts_pairs_and_refuses_other_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = ragged(&dir);
    let dataset = PairDataset::sequential(&[&path]).unwrap();
    assert_eq!((dataset.num_rows(), dataset.targets_per_epoch()), (300, 300));
    let mut whole = Batcher::<PairBatch>::new(
        PairDataset::sequential(&[&path]).unwrap(),
        BatchConfig { size: BatchSize::Sequences(300), micro_batch_tokens: usize::MAX },
    );
    let step = whole.next_step().unwrap().unwrap();
    assert_eq!(dataset.tokens_per_epoch(), step.num_tokens as u64);
    let branches = &step.micro_batches[0].branches;
    let longest = branches.cu_seqlens.windows(2).map(|ends| ends[1] - ends[0]).max().unwrap();
    assert_eq!(dataset.longest_row(), longest as u64);

    let error = |paths: &[&Path]| {
        let message = PairDataset::open(paths, 1).err().unwrap().to_string();
        message.replace(&dir.path().display().to_string(), "DIR")
    };
    let tokens = dir.path().join("tokens.parquet");
    TokenWriter::create(&tokens, meta("a")).unwrap().finish().unwrap();
    assert!(error(&[&tokens]).starts_with("DIR/tokens.parquet: holds token rows, not pair rows; "));
    let empty = dir.path().join("empty.parquet");
    PairWriter::create(&empty, meta("a")).unwrap().finish().unwrap();
    assert_eq!(
        error(&[&empty]),
        "DIR/empty.parquet: no pair rows; the data set is empty: check what data-prep dropped and why"
    );
    assert_eq!(error(&[]), "no pair files given; name at least one data/<set>/train.parquet");
}
