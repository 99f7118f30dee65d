//! Numbers and intervals, by hand.

use artifact::evaluation::{Better, Unit};

use super::*;

const BOOTSTRAP: Bootstrap = Bootstrap { samples: 2000, seed: 5 };

fn outcome(columns: &[(&str, &[Option<f64>])]) -> Outcome {
    let columns = columns.iter().map(|(name, values)| ((*name).to_owned(), values.to_vec()));
    Outcome { columns: columns.collect(), ..Outcome::default() }
}

fn share() -> Metric {
    Metric::share("accuracy", "right", Better::Higher)
}

fn all(values: &[f64]) -> Vec<Option<f64>> {
    values.iter().copied().map(Some).collect()
}

#[track_caller]
fn one(metric: &Metric, outcome: &Outcome) -> Estimate {
    let found = estimates(metric, &[Some(outcome)], &[Wanted::Of(0)], BOOTSTRAP);
    assert_eq!(found.len(), 1);
    found[0].1
}

#[test]
fn what_is_not_counted_is_no_item() {
    let own = outcome(&[("right", &[Some(1.0), None, Some(0.0), Some(1.0), None])]);
    let found = one(&share(), &own);
    assert_eq!((found.items, found.value), (3, 2.0 / 3.0));
    let first = share().of_part("first", vec![true, true, false, false, false]);
    let found = one(&first, &own);
    assert_eq!(
        (found.items, found.value, found.interval),
        (1, 1.0, None),
        "one item has no interval"
    );
    assert_eq!(first.name, "accuracy/first");
    let none = share().of_part("none", vec![false, true, false, false, true]);
    assert!(estimates(&none, &[Some(&own)], &[Wanted::Of(0)], BOOTSTRAP).is_empty());
    assert!(estimates(&share(), &[None, Some(&own)], &[Wanted::Of(0)], BOOTSTRAP).is_empty());
}

#[test]
fn a_share_of_all_or_nothing_has_the_interval_of_wilson() {
    let far = 3.841_458_820_694_124 / (20.0 + 3.841_458_820_694_124);
    for (value, low, high) in [(1.0, 1.0 - far, 1.0), (0.0, 0.0, far)] {
        let found = one(&share(), &outcome(&[("right", &all(&[value; 20]))]));
        let [a, b] = found.interval.unwrap();
        assert!((a - low).abs() < 1e-12 && (b - high).abs() < 1e-12, "{value}: {a} {b}");
    }
    // A number that is no share may well be the same everywhere.
    let mean = Metric::mean("score", "score", Unit::Score, Better::Higher);
    let found = one(&mean, &outcome(&[("score", &all(&[0.0; 20]))]));
    assert_eq!(found.interval, Some([0.0, 0.0]));
}

/// The mean of 25 of 100: the normal interval is 0.25 ± 1.96 · 0.0433.
#[test]
fn the_interval_of_a_share_is_nearly_the_normal_one() {
    let values: Vec<f64> = (0..100).map(|at| f64::from(at % 4 == 0)).collect();
    let [low, high] = one(&share(), &outcome(&[("right", &all(&values))])).interval.unwrap();
    assert!((low - 0.165).abs() < 0.015 && (high - 0.335).abs() < 0.015, "{low} {high}");
}

/// A ratio is one of sums, never a mean of ratios.
#[test]
fn long_documents_weigh_more() {
    let metric = Metric {
        columns: vec!["nats".to_owned(), "tokens".to_owned()],
        of: |sums| sums[0] / sums[1],
        ..Metric::mean("loss", "", Unit::NatsPerToken, Better::Lower)
    };
    let own = outcome(&[("nats", &all(&[9.0, 1.0])), ("tokens", &all(&[3.0, 1.0]))]);
    let found = one(&metric, &own);
    assert_eq!(found.value, 2.5);
    // Resamples are 9/3, 10/4 and 1/1.
    assert_eq!(found.interval, Some([1.0, 3.0]));
    // Over nothing there is no number.
    let own = outcome(&[("nats", &all(&[0.0, 0.0])), ("tokens", &all(&[0.0, 0.0]))]);
    assert!(estimates(&metric, &[Some(&own)], &[Wanted::Of(0)], BOOTSTRAP).is_empty());
}

#[test]
fn a_comparison_is_paired() {
    // The child is better by one tenth on every item, however far the items are apart.
    let parent: Vec<f64> = (0..50).map(|at| f64::from(at * at)).collect();
    let child: Vec<f64> = parent.iter().map(|value| value + 0.1).collect();
    let metric = Metric::mean("score", "score", Unit::Score, Better::Higher);
    let (parent, child) =
        (outcome(&[("score", &all(&parent))]), outcome(&[("score", &all(&child))]));
    let both = [Some(&parent), Some(&child)];
    let wanted = [Wanted::Of(0), Wanted::Of(1), Wanted::Above(1, 0)];
    let found = estimates(&metric, &both, &wanted, BOOTSTRAP);
    assert_eq!(found.iter().map(|(wanted, _)| *wanted).collect::<Vec<_>>(), wanted);
    let [low, high] = found[2].1.interval.unwrap();
    assert!((low - 0.1).abs() < 1e-9 && (high - 0.1).abs() < 1e-9, "{low} {high}");
    let [low, high] = found[0].1.interval.unwrap();
    assert!(high - low > 100.0, "alone each is uncertain");
}

#[test]
fn a_comparison_is_over_the_items_that_both_have() {
    let one = outcome(&[("right", &[Some(1.0), Some(1.0), None, Some(0.0)])]);
    let other = outcome(&[("right", &[Some(0.0), None, Some(1.0), Some(0.0)])]);
    let both = [Some(&one), Some(&other)];
    let found = estimates(&share(), &both, &[Wanted::Above(0, 1), Wanted::Of(1)], BOOTSTRAP);
    assert_eq!((found[0].1.items, found[0].1.value), (2, 0.5));
    assert_eq!((found[1].1.items, found[1].1.value), (3, 1.0 / 3.0));
    // Alike on every item: no difference in any resample.
    let found = estimates(&share(), &[Some(&one), Some(&one)], &[Wanted::Above(0, 1)], BOOTSTRAP);
    assert_eq!(found[0].1.interval, Some([0.0, 0.0]));
}

#[test]
fn parts_are_made_where_there_are_several() {
    let parts = [Some("ko"), Some("en"), None, Some("ko")];
    let names: Vec<String> =
        share().by_parts(&parts).into_iter().map(|metric| metric.name).collect();
    assert_eq!(names, ["accuracy/en", "accuracy/ko"]);
    let own = outcome(&[("right", &all(&[1.0, 0.0, 1.0, 0.0]))]);
    let ko = &share().by_parts(&parts)[1];
    assert_eq!(one(ko, &own).value, 0.5);
    assert!(share().by_parts(&[Some("ko"), None, Some("ko")]).is_empty());
}
