use std::collections::BTreeSet;
use std::path::PathBuf;

use artifact::tokens::TokenWriter;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

use super::*;
use crate::dataset::TokenDataset;
use crate::dataset::tests::meta;

fn row(ids: &[i32], mask: &[bool]) -> Row {
    Row { ids: ids.to_vec(), mask: mask.to_vec() }
}

#[test]
fn documents_lie_one_after_another_and_never_predict_across() {
    let rows = [
        row(&[10, 11, 12], &[true, true, true]),
        row(&[20], &[true]),
        row(&[30, 31, 32, 33], &[true, false, true, false]),
    ];
    let batch = FlatBatch::new(&rows);
    assert_eq!(batch.input_ids, [10, 11, 12, 20, 30, 31, 32, 33]);
    assert_eq!(batch.positions, [0, 1, 2, 0, 0, 1, 2, 3]);
    assert_eq!(batch.cu_seqlens, [0, 3, 4, 8]);
    // Token 12 does not predict 20, nor 20 predict 30; the first token of a row is no target.
    assert_eq!(batch.target_rows, [0, 1, 5]);
    assert_eq!(batch.target_ids, [11, 12, 32]);
    assert_eq!((batch.num_tokens(), batch.num_documents()), (8, 3));
    let empty = FlatBatch::new(&[]);
    assert_eq!((empty.num_tokens(), empty.num_documents()), (0, 0));
}

/// 500 rows of 2 to 40 tokens, some with nothing to predict, in one file.
fn ragged(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("ragged.parquet");
    let mut writer = TokenWriter::create(&path, meta("a")).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(9);
    for n in 0..500_u32 {
        let length = 2 + (random.next_u64() % 39) as usize;
        let ids: Vec<u32> = (0..length as u32).map(|at| n * 100 + at).collect();
        let mask: Vec<bool> = ids
            .iter()
            .enumerate()
            .map(|(at, _)| n % 10 != 0 && (at == 1 || random.next_u64() % 2 == 0))
            .collect();
        writer.write_row(&ids, Some(&mask)).unwrap();
    }
    writer.finish().unwrap();
    path
}

fn batcher(path: &PathBuf, size: BatchSize, micro_batch_tokens: usize, epochs: u64) -> Batcher {
    let dataset = TokenDataset::open(&[path], 4).unwrap().with_epochs(Some(epochs));
    Batcher::new(dataset, BatchConfig { size, micro_batch_tokens })
}

fn steps(batcher: &mut Batcher, most: usize) -> Vec<Step> {
    std::iter::from_fn(|| batcher.next_step().unwrap()).take(most).collect()
}

/// What a step trains on, whatever its layout: (token before, token to predict).
fn pairs(step: &Step) -> BTreeSet<(i64, i64)> {
    let pairs = step.micro_batches.iter().flat_map(|batch| {
        let before = batch.target_rows.iter().map(|at| batch.input_ids[*at as usize]);
        before.zip(batch.target_ids.iter().copied())
    });
    pairs.collect()
}

#[test]
fn the_step_is_the_same_whatever_the_micro_batch() {
    let dir = tempfile::tempdir().unwrap();
    let path = ragged(&dir);
    for size in [BatchSize::Tokens(200), BatchSize::Sequences(7)] {
        let whole = steps(&mut batcher(&path, size, usize::MAX, 1), usize::MAX);
        assert!(whole.iter().all(|step| step.micro_batches.len() == 1));
        for limit in [1, 40, 64, 100, 1000] {
            let divided = steps(&mut batcher(&path, size, limit, 1), usize::MAX);
            assert_eq!(divided.len(), whole.len());
            for (a, b) in divided.iter().zip(&whole) {
                assert_eq!(pairs(a), pairs(b));
                assert_eq!(
                    (a.num_targets, a.num_tokens, a.num_rows),
                    (b.num_targets, b.num_tokens, b.num_rows)
                );
                assert_eq!(a.num_targets, pairs(a).len());
                for batch in &a.micro_batches {
                    assert!(batch.num_tokens() <= limit || batch.num_documents() == 1);
                }
            }
        }
    }
}

#[test]
fn an_epoch_trains_on_every_row_once_and_passes_over_rows_without_targets() {
    let dir = tempfile::tempdir().unwrap();
    let path = ragged(&dir);
    let mut batcher = batcher(&path, BatchSize::Tokens(333), 100, 1);
    let counted = batcher.count_steps().unwrap();
    let all = steps(&mut batcher, usize::MAX);
    assert_eq!(counted, Some(all.len() as u64));
    assert_eq!(all.iter().map(|step| step.num_rows).sum::<usize>(), 450);
    let targets: usize = all.iter().map(|step| step.num_targets).sum();
    assert_eq!(targets as u64, batcher.dataset().targets_per_epoch());
    for step in &all {
        assert!(step.num_tokens <= 333 && step.num_targets > 0);
    }
    // Full but for what the next row would have made too many; rows have at most 40 tokens.
    assert!(all[..all.len() - 1].iter().all(|step| step.num_tokens > 333 - 40));
    let endless = TokenDataset::open(&[&path], 4).unwrap();
    let config = BatchConfig { size: BatchSize::Tokens(333), micro_batch_tokens: 100 };
    assert_eq!(<Batcher>::new(endless, config).count_steps().unwrap(), None);
}

#[test]
fn going_on_from_a_cursor_gives_the_same_steps() {
    let dir = tempfile::tempdir().unwrap();
    let path = ragged(&dir);
    for size in [BatchSize::Tokens(150), BatchSize::Sequences(4)] {
        let straight = steps(&mut batcher(&path, size, 64, 2), usize::MAX);
        let mut random = ChaCha8Rng::seed_from_u64(6);
        let stops = (0..10).map(|_| random.next_u64() as usize % straight.len());
        for stop in stops.chain([0, 1, straight.len() - 1, straight.len()]) {
            let mut interrupted = batcher(&path, size, 64, 2);
            steps(&mut interrupted, stop);
            let mut resumed = batcher(&path, size, 64, 2);
            resumed.seek(interrupted.cursor()).unwrap();
            assert_eq!(
                steps(&mut resumed, usize::MAX),
                straight[stop..],
                "{size:?} stopped at {stop}"
            );
        }
    }
}

#[test]
fn a_row_longer_than_the_step_is_a_step_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.parquet");
    let mut writer = TokenWriter::create(&path, meta("a")).unwrap();
    for ids in [vec![1; 5], vec![2; 50], vec![3; 5]] {
        writer.write_row(&ids, None).unwrap();
    }
    writer.finish().unwrap();
    let dataset = TokenDataset::sequential(&[&path]).unwrap();
    let config = BatchConfig { size: BatchSize::Tokens(12), micro_batch_tokens: 8 };
    let lengths: Vec<usize> =
        steps(&mut Batcher::new(dataset, config), 9).iter().map(|step| step.num_tokens).collect();
    assert_eq!(lengths, [5, 50, 5]);
}

#[test]
fn micro_batches_are_few_and_even() {
    assert_eq!(divide(&[5, 5, 5, 5], 10, 1), [vec![0, 2], vec![1, 3]]);
    assert_eq!(divide(&[9, 1, 1, 1, 1, 1], 10, 1), [vec![0], vec![1, 2, 3, 4, 5]]);
    assert_eq!(divide(&[30], 10, 1), [vec![0]]);
    assert_eq!(divide(&[30, 2, 2], 10, 1), [vec![0], vec![1, 2]]);
    assert_eq!(divide(&[6, 6, 6], 10, 1), [vec![0], vec![1], vec![2]]);
    assert_eq!(divide(&[3, 4], 0, 1), [vec![0], vec![1]]);
    let lengths: Vec<usize> = (0..64).map(|n| 10 + n * 37 % 100).collect();
    let loads: Vec<usize> = divide(&lengths, 1024, 1)
        .iter()
        .map(|bin| bin.iter().map(|row| lengths[*row]).sum())
        .collect();
    let total: usize = lengths.iter().sum();
    assert_eq!(loads.len(), total.div_ceil(1024));
    assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 10, "{loads:?}");
}

#[test]
fn shares_make_up_the_step_whatever_their_number() {
    let dir = tempfile::tempdir().unwrap();
    let path = ragged(&dir);
    for size in [BatchSize::Sequences(5), BatchSize::Tokens(200)] {
        let whole = steps(&mut batcher(&path, size, 64, 1), 10_000);
        for ranks in [2, 3, 7] {
            let of_rank = |rank| {
                let share = Share { rank, size: ranks };
                steps(&mut batcher(&path, size, 64, 1).shared(share), 10_000)
            };
            let parts: Vec<Vec<Step>> = (0..ranks).map(of_rank).collect();
            for (at, step) in whole.iter().enumerate() {
                let counting =
                    |steps: &Vec<Step>| steps[at].micro_batches[..steps[at].num_counting].to_vec();
                let mut targets: Vec<i64> = parts
                    .iter()
                    .flat_map(counting)
                    .flat_map(|batch| batch.target_ids.clone())
                    .collect();
                let mut wanted: Vec<i64> =
                    step.micro_batches.iter().flat_map(|batch| batch.target_ids.clone()).collect();
                targets.sort_unstable();
                wanted.sort_unstable();
                assert_eq!(targets, wanted, "{ranks} ranks, step {at}");
                for part in parts.iter().map(|steps| &steps[at]) {
                    let count = part.micro_batches.len();
                    assert!(count > 0 && count == parts[0][at].micro_batches.len());
                    assert!(part.num_counting + 1 >= count);
                    let numbers = |step: &Step| (step.num_targets, step.num_tokens, step.num_rows);
                    assert_eq!(numbers(part), numbers(step));
                }
            }
        }
    }
}

#[test]
fn a_step_is_cut_into_as_many_micro_batches_as_there_are_ranks() {
    assert_eq!(divide(&[5, 5, 5, 5], 100, 2), [vec![0, 2], vec![1, 3]]);
    assert_eq!(divide(&[5, 5, 5, 5, 5], 10, 2).len(), 4);
    // Never more than rows.
    assert_eq!(divide(&[5, 5], 100, 3), [vec![0], vec![1]]);
}
