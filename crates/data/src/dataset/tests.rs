use artifact::digest;
use artifact::tokens::TokenWriter;
use tempfile::TempDir;

use super::*;

pub(crate) fn meta(tokenizer: &str) -> TokenMeta {
    TokenMeta {
        tokenizer: digest::bytes(tokenizer.as_bytes()),
        vocab_size: 1 << 20,
        seq_len: 1 << 16,
        chat_template: None,
    }
}

pub(crate) fn write(dir: &TempDir, name: &str, rows: impl Iterator<Item = Vec<u32>>) -> PathBuf {
    let path = dir.path().join(name);
    let mut writer = TokenWriter::create(&path, meta("a")).unwrap();
    rows.for_each(|ids| writer.write_row(&ids, None).unwrap());
    writer.finish().unwrap();
    path
}

/// 20,000 rows in three row groups; each row begins with its own number.
fn numbered(dir: &TempDir) -> PathBuf {
    write(dir, "numbered.parquet", (0..20_000).map(|n| vec![n, n % 7, 1]))
}

fn first_ids(dataset: &mut TokenDataset, count: usize) -> Vec<i32> {
    let mut ids = Vec::new();
    while ids.len() < count {
        match dataset.next_row().unwrap() {
            Some(row) => ids.push(row.ids[0]),
            None => break,
        }
    }
    ids
}

#[test]
fn an_epoch_has_every_row_once_in_an_order_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = numbered(&dir);
    let mut dataset = TokenDataset::open(&[&path], 1).unwrap().with_window_groups(2);
    assert_eq!(
        (dataset.num_rows(), dataset.tokens_per_epoch(), dataset.targets_per_epoch()),
        (20_000, 60_000, 40_000)
    );
    let first = first_ids(&mut dataset, 20_000);
    let second = first_ids(&mut dataset, 20_000);
    assert_ne!(first, second);
    for mut epoch in [first.clone(), second] {
        epoch.sort_unstable();
        assert!(epoch.into_iter().eq(0..20_000));
    }
    let again = TokenDataset::open(&[&path], 1).unwrap();
    assert_eq!(first_ids(&mut again.with_window_groups(2), 20_000), first);
    let other = TokenDataset::open(&[&path], 2).unwrap();
    assert_ne!(first_ids(&mut other.with_window_groups(2), 20_000), first);
    // Shuffled, not merely rotated: neighbours on disk are seldom neighbours.
    let neighbours = first.windows(2).filter(|pair| pair[1] == pair[0] + 1).count();
    assert!(neighbours < 20, "{neighbours}");
}

#[test]
fn rows_keep_their_ids_and_masks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("masked.parquet");
    let mut writer = TokenWriter::create(&path, meta("a")).unwrap();
    writer.write_row(&[5, 6, 7], Some(&[false, true, false])).unwrap();
    writer.write_row(&[8], Some(&[false])).unwrap();
    writer.finish().unwrap();
    let mut dataset = TokenDataset::sequential(&[&path]).unwrap();
    let row = dataset.next_row().unwrap().unwrap();
    assert_eq!(row, Row { ids: vec![5, 6, 7], mask: vec![false, true, false] });
    assert_eq!(dataset.next_row().unwrap().unwrap().ids, [8]);
    assert_eq!(dataset.next_row().unwrap(), None);
    assert_eq!(dataset.next_row().unwrap(), None);
    assert_eq!((dataset.longest_row(), dataset.meta().vocab_size), (3, 1 << 20));
}

#[test]
fn going_on_from_a_cursor_gives_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    let path = numbered(&dir);
    let open =
        || TokenDataset::open(&[&path], 3).unwrap().with_window_groups(2).with_epochs(Some(2));
    let straight = first_ids(&mut open(), usize::MAX);
    assert_eq!(straight.len(), 40_000);
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut stops: Vec<usize> = (0..12).map(|_| (random.next_u64() % 40_000) as usize).collect();
    stops.extend([0, 1, 16_383, 16_384, 19_999, 20_000, 39_999, 40_000]);
    for stop in stops {
        let mut dataset = open();
        first_ids(&mut dataset, stop);
        let json = serde_json::to_string(&dataset.cursor()).unwrap();
        let mut resumed = open();
        resumed.seek(serde_json::from_str(&json).unwrap()).unwrap();
        assert_eq!(first_ids(&mut resumed, usize::MAX), straight[stop..], "stopped at {stop}");
    }
}

#[test]
fn several_files_are_one_data_set() {
    let dir = tempfile::tempdir().unwrap();
    let a = write(&dir, "a.parquet", (0..10).map(|n| vec![n, 1]));
    let b = write(&dir, "b.parquet", (10..15).map(|n| vec![n, 1, 2]));
    let mut dataset = TokenDataset::open(&[a, b], 1).unwrap();
    let mut ids = first_ids(&mut dataset, 15);
    assert_ne!(ids, (0..15).collect::<Vec<_>>());
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..15));
    assert_eq!(dataset.longest_row(), 3);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let a = write(&dir, "a.parquet", (0..3).map(|n| vec![n, 1]));
    let other = dir.path().join("other.parquet");
    let mut writer = TokenWriter::create(&other, meta("b")).unwrap();
    writer.write_row(&[1, 2], None).unwrap();
    writer.finish().unwrap();
    let root = dir.path().display().to_string();
    let error = |paths: &[&PathBuf]| {
        TokenDataset::open(paths, 1).err().unwrap().to_string().replace(&root, "DIR")
    };
    assert_eq!(
        error(&[&a, &other]),
        "DIR/other.parquet: made with another tokenizer than DIR/a.parquet; tokenise both with the same one"
    );
    let templated = |name: &str, template: &str| {
        let path = dir.path().join(name);
        let chat_template = Some(digest::bytes(template.as_bytes()));
        let mut writer =
            TokenWriter::create(&path, TokenMeta { chat_template, ..meta("a") }).unwrap();
        writer.write_row(&[1, 2], None).unwrap();
        writer.finish().unwrap();
        path
    };
    let (x, y) = (templated("x.parquet", "x"), templated("y.parquet", "y"));
    assert_eq!(
        error(&[&x, &y]),
        "DIR/y.parquet: made with another chat template than DIR/x.parquet; tokenise both with the same one"
    );
    assert!(TokenDataset::open(&[&a, &x], 1).is_ok(), "text beside conversations");
    let empty = write(&dir, "empty.parquet", std::iter::empty());
    assert_eq!(
        error(&[&empty]),
        "DIR/empty.parquet: no token rows; the data set is empty: check what data-prep dropped and why"
    );
    assert_eq!(error(&[]), "no token files given; name at least one data/<set>/train.parquet");
    assert!(error(&[&dir.path().join("no.parquet")]).contains("DIR/no.parquet"));
    let mut dataset = TokenDataset::open(&[&a], 1).unwrap();
    for cursor in [Cursor { epoch: 0, window: 1, row: 0 }, Cursor { epoch: 0, window: 0, row: 4 }] {
        assert_eq!(
            dataset.seek(cursor).unwrap_err().to_string(),
            format!(
                "the data position {cursor:?} is outside the data (1 windows an epoch); the data has changed \
                 since the checkpoint was made"
            )
        );
    }
}

/// The order must never change, or checkpoints would go on with other data. `ChaCha8` keyed by
/// (1, 2, 3, 4), computed apart from this code: upper halves of `next_u64 * (i + 1)`, last to first.
#[test]
fn the_shuffle_is_fixed() {
    let mut items: Vec<u32> = (0..10).collect();
    shuffle(&mut items, [1, 2, 3, 4]);
    let mut sorted = items.clone();
    sorted.sort_unstable();
    assert!(sorted.into_iter().eq(0..10));
    assert_eq!(items, SHUFFLED);
    shuffle(&mut [0_u8; 0], [0; 4]);
    shuffle(&mut [0_u8; 1], [0; 4]);
}

const SHUFFLED: [u32; 10] = [4, 8, 7, 5, 9, 6, 1, 2, 3, 0];

#[test]
fn every_order_is_about_as_likely() {
    let mut counts = [0_u32; 6];
    for n in 0..6000 {
        let mut items = [0_u8, 1, 2];
        shuffle(&mut items, [n, 0, 0, 0]);
        let order = match items {
            [0, 1, 2] => 0,
            [0, 2, 1] => 1,
            [1, 0, 2] => 2,
            [1, 2, 0] => 3,
            [2, 0, 1] => 4,
            _ => 5,
        };
        counts[order] += 1;
    }
    // Expected 1000 each, standard deviation 29.
    assert!(counts.iter().all(|count| (880..1120).contains(count)), "{counts:?}");
}
