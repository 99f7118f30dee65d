use serde::Deserialize;

use super::rouge::{common_subsequence, rouge};
use super::*;

/// What `rouge_score`, `sacrebleu` and the rules of `SQuAD`'s script say; made by `scripts/parity/text_metrics.py`.
#[derive(Deserialize)]
struct Fixture {
    rows: Vec<Row>,
    means: HashMap<String, f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    prediction: String,
    references: Vec<String>,
    rouge1: f64,
    rouge2: f64,
    #[serde(rename = "rougeL")]
    rouge_l: f64,
    exact_match: f64,
    f1: f64,
    chrf: f64,
}

impl Row {
    fn references(&self) -> Vec<&str> {
        self.references.iter().map(String::as_str).collect()
    }
}

fn fixture() -> Fixture {
    const JSON: &str =
        include_str!("../../../../tests/fixtures/parity/text-metrics/text-metrics.json");
    serde_json::from_str(JSON).unwrap()
}

fn close(what: &str, got: f64, want: f64) {
    assert!((got - want).abs() < 1e-6, "{what}: {got}, not {want}");
}

fn score(prediction: &str, references: &[&str]) -> RowScores {
    TextScores::default().add(prediction, references)
}

#[test]
fn rouge_is_that_of_rouge_score() {
    for row in fixture().rows {
        let got = rouge(&row.prediction, &row.references());
        close(&format!("rouge1 of {}", row.name), got.rouge1, row.rouge1);
        close(&format!("rouge2 of {}", row.name), got.rouge2, row.rouge2);
        close(&format!("rougeL of {}", row.name), got.rouge_l, row.rouge_l);
    }
}

#[test]
fn chrf_is_that_of_sacrebleu() {
    let fixture = fixture();
    let mut corpus = chrf::Statistics::default();
    for row in &fixture.rows {
        let statistics = chrf::Statistics::new(&row.prediction, &row.references());
        close(&row.name, statistics.score(), row.chrf);
        corpus.add(&statistics);
    }
    close("the corpus", corpus.score(), fixture.means["chrf"]);
}

#[test]
fn the_counts_of_a_corpus_can_be_summed_elsewhere() {
    let mut corpus = chrf::Statistics::default();
    let mut sums = [0; chrf::COUNTS];
    for row in &fixture().rows {
        let statistics = chrf::Statistics::new(&row.prediction, &row.references());
        assert_eq!(chrf::Statistics::from_counts(&statistics.counts()), statistics, "{}", row.name);
        sums.iter_mut().zip(statistics.counts()).for_each(|(sum, count)| *sum += count);
        corpus.add(&statistics);
    }
    assert_eq!(chrf::Statistics::from_counts(&sums), corpus);
    // "ab" of "ac": of one character 2, 2 and 1; of two 1, 1 and none.
    assert_eq!(chrf::Statistics::new("ab", &["ac"]).counts()[..7], [2, 2, 1, 1, 1, 0, 0]);
}

#[test]
fn answers_are_compared_as_squad_does() {
    for row in fixture().rows {
        let exact = answer::exact_match(&row.prediction, &row.references());
        assert_eq!(f64::from(exact), row.exact_match, "exact match of {}", row.name);
        close(
            &format!("f1 of {}", row.name),
            answer::token_f1(&row.prediction, &row.references()),
            row.f1,
        );
    }
}

#[test]
fn an_answer_is_normalised() {
    for (text, expected) in [
        ("  The Cat's a-b,\tAN  end!", "cats ab end"),
        ("theatre a_n and", "theatre and"),
        ("the—cat", "—cat"),
        ("the고양이 a 개", "the고양이 개"),
        ("\u{1112}\u{1161}\u{11AB}국 １２％", "한국 12"),
        ("ΟΔΟΣ", "οδος"),
        ("...", ""),
    ] {
        assert_eq!(answer::normalise(text), expected, "{text}");
    }
}

#[test]
fn rows_and_means_are_those_of_the_measures() {
    let fixture = fixture();
    assert!(fixture.rows.len() >= 12);
    let mut scores = TextScores::default();
    for row in &fixture.rows {
        let got = scores.add(&row.prediction, &row.references());
        let got = [got.rouge1, got.rouge2, got.rouge_l, got.exact_match, got.f1, got.chrf];
        let want = [row.rouge1, row.rouge2, row.rouge_l, row.exact_match, row.f1, row.chrf];
        got.into_iter().zip(want).for_each(|(got, want)| close(&row.name, got, want));
    }
    assert_eq!((scores.len(), scores.is_empty()), (fixture.rows.len(), false));
    let means = scores.means();
    let names: Vec<&str> = means.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["rouge1", "rouge2", "rougeL", "exact_match", "f1", "chrf"]);
    for (name, mean) in means {
        close(name, mean, fixture.means[name]);
    }
}

#[test]
fn no_rows_have_no_means() {
    let scores = TextScores::default();
    assert_eq!((scores.len(), scores.is_empty(), scores.means()), (0, true, Vec::new()));
}

#[test]
fn without_references_the_right_answer_is_none() {
    let silent = RowScores { exact_match: 1.0, f1: 1.0, ..RowScores::default() };
    assert_eq!(score(" . ", &[]), silent);
    assert_eq!(score("Paris", &[]), RowScores::default());
}

#[test]
fn scores_are_in_range_and_rouge_is_the_same_both_ways() {
    let rows = fixture().rows;
    let texts: Vec<&str> = rows
        .iter()
        .flat_map(|row| row.references().into_iter().chain([&*row.prediction]))
        .collect();
    for one in &texts {
        for other in &texts {
            let there = score(one, &[other]);
            let back = score(other, &[one]);
            let of =
                |row: RowScores| [row.rouge1, row.rouge2, row.rouge_l, row.exact_match, row.f1];
            assert_eq!(of(there), of(back), "{one:?} and {other:?}");
            assert!(of(there).iter().all(|share| (0.0..=1.0).contains(share)), "{there:?}");
            assert!((0.0..=100.0 + 1e-9).contains(&there.chrf), "{there:?}");
            assert!(there.rouge_l <= there.rouge1, "{there:?}: order can only cost");
        }
    }
}

#[test]
fn a_text_is_like_itself() {
    for text in ["two words", "The cat sat on the mat.", "고양이가 매트 위에 앉았다.", "1 2 3 ½"]
    {
        let row = score(text, &["other", text]);
        let shares = [row.rouge1, row.rouge2, row.rouge_l, row.exact_match, row.f1];
        assert_eq!(shares, [1.0; 5], "{text}");
        close(text, row.chrf, 100.0);
    }
}

#[test]
fn the_longest_common_subsequence_is_that_of_the_table() {
    let table = |one: &[u64], other: &[u64]| {
        let mut row = vec![0; other.len() + 1];
        for a in one {
            let mut diagonal = 0;
            for (at, b) in other.iter().enumerate() {
                let above = row[at + 1];
                row[at + 1] = if a == b { diagonal + 1 } else { above.max(row[at]) };
                diagonal = above;
            }
        }
        row[other.len()]
    };
    // A linear congruential generator: its upper bits are as good as random here.
    let mut state = 1_u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    for lengths in [(0, 5), (1, 1), (63, 64), (64, 65), (127, 300), (200, 129), (640, 640)] {
        for alphabet in [1, 2, 5, 40, 1000] {
            let one: Vec<u64> = (0..lengths.0).map(|_| draw(alphabet)).collect();
            let other: Vec<u64> = (0..lengths.1).map(|_| draw(alphabet)).collect();
            let want = table(&one, &other);
            assert_eq!(common_subsequence(&one, &other), want, "{lengths:?}, {alphabet} words");
            assert_eq!(common_subsequence(&other, &one), want, "{lengths:?}, {alphabet} words");
        }
    }
}

/// Pairs of one's own, scored by `scripts/parity/text_metrics_pairs.py`: `TEMPER_TEXT_METRICS` names its output.
#[test]
fn pairs_of_ones_own_are_scored_as_the_peers_do() {
    let Ok(path) = std::env::var("TEMPER_TEXT_METRICS") else { return };
    let fixture: Fixture = serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap();
    let (mut all, mut worst) = (TextScores::default(), [0.0_f64; 6]);
    for row in &fixture.rows {
        let own = all.add(&row.prediction, &row.references());
        let pairs = [
            (own.rouge1, row.rouge1),
            (own.rouge2, row.rouge2),
            (own.rouge_l, row.rouge_l),
            (own.exact_match, row.exact_match),
            (own.f1, row.f1),
            (own.chrf, row.chrf),
        ];
        for (worst, (ours, theirs)) in worst.iter_mut().zip(pairs) {
            *worst = worst.max((ours - theirs).abs());
        }
    }
    for (name, mean) in all.means() {
        close(name, mean, fixture.means[name]);
    }
    println!("{} pairs; largest differences: {worst:?}", fixture.rows.len());
    assert!(worst.iter().all(|worst| *worst < 1e-6), "{worst:?}");
}
