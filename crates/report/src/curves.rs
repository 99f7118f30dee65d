//! Learning curves: `metrics.jsonl` as series of points, thinned to what a chart can show.

use std::path::Path;

use anyhow::bail;
use indexmap::IndexMap;
use serde::Serialize;
use serde_json::Value;

/// One metric over the steps of a run.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Series {
    pub(crate) metric: String,
    /// How many finite values were logged.
    pub(crate) logged: usize,
    /// How many were not finite: they are left out.
    pub(crate) not_finite: usize,
    /// Step and value.
    pub(crate) points: Vec<[f64; 2]>,
}

/// The series of a `metrics.jsonl`, none of them of more than `most` points; nothing where there is no file.
///
/// # Errors
/// A line that is no object with a step. The last one may be cut short, by a run that was killed or still writes.
pub(crate) fn read(path: &Path, most: usize) -> anyhow::Result<Vec<Series>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs_err::read_to_string(path)?;
    let mut found: IndexMap<String, (Vec<[f64; 2]>, usize)> = IndexMap::new();
    let lines: Vec<&str> = text.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let object: Option<serde_json::Map<String, Value>> = serde_json::from_str(line).ok();
        let step = object.as_ref().and_then(|object| object.get("step")?.as_f64());
        let (Some(object), Some(step)) = (object, step) else {
            if at + 1 == lines.len() {
                break;
            }
            bail!(
                "{}: line {} is no JSON object with a `step`; the file is damaged: run its stage again",
                path.display(),
                at + 1
            );
        };
        for (name, value) in object {
            if name == "step" || name == "time" {
                continue;
            }
            let (points, not_finite) = found.entry(name).or_default();
            match value.as_f64() {
                Some(value) => points.push([step, value]),
                None => *not_finite += 1,
            }
        }
    }
    let series = found.into_iter().map(|(metric, (points, not_finite))| Series {
        metric,
        logged: points.len(),
        not_finite,
        points: thin(&points, most).into_iter().map(|[x, y]| [x, rounded(y)]).collect(),
    });
    Ok(series.collect())
}

/// `value` to six significant digits: more than a chart or a tip shows.
pub(crate) fn rounded(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

/// At most `most` of the points, the first and the last among them: of each stretch the one that makes the largest triangle
/// with the point kept before and the mean of the stretch after, so peaks stay.
///
/// Steinarsson 2013, Downsampling Time Series for Visual Representation, section 4.2 (largest triangle three buckets).
pub(crate) fn thin(points: &[[f64; 2]], most: usize) -> Vec<[f64; 2]> {
    let most = most.max(3);
    if points.len() <= most {
        return points.to_vec();
    }
    let last = points.len() - 1;
    // The points between the first and the last, in `most - 2` stretches.
    let border = |stretch: usize| 1 + stretch * (last - 1) / (most - 2);
    let mut kept = vec![points[0]];
    for stretch in 0..most - 2 {
        let here = border(stretch)..border(stretch + 1);
        let after = &points[here.end..border(stretch + 2).clamp(here.end + 1, last + 1)];
        let mean = |axis: usize| after.iter().map(|p| p[axis]).sum::<f64>() / after.len() as f64;
        let (mean, before) = ([mean(0), mean(1)], kept[kept.len() - 1]);
        let area = |point: &[f64; 2]| {
            ((before[0] - mean[0]) * (point[1] - before[1])
                - (before[0] - point[0]) * (mean[1] - before[1]))
                .abs()
        };
        let largest = points[here].iter().max_by(|a, b| area(a).total_cmp(&area(b)));
        kept.extend(largest);
    }
    kept.push(points[last]);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_points_stay_as_they_are() {
        let points = [[0.0, 1.0], [1.0, 2.0], [2.0, 0.0]];
        assert_eq!(thin(&points, 3), points);
        assert_eq!(thin(&[], 3), [[0.0; 2]; 0]);
    }

    #[test]
    fn thinning_keeps_ends_order_number_and_peaks() {
        let mut points: Vec<[f64; 2]> = (0..1000).map(|x| [f64::from(x), 1.0]).collect();
        points[417][1] = 9.0;
        for most in [3, 7, 100, 999] {
            let kept = thin(&points, most);
            assert_eq!(kept.len(), most);
            assert_eq!((kept[0], kept[most - 1]), (points[0], points[999]));
            assert!(kept.is_sorted_by(|a, b| a[0] < b[0]));
            assert!(kept.contains(&[417.0, 9.0]), "{most}");
        }
    }

    #[test]
    fn a_triangle_by_hand() {
        // One stretch of two points between (0, 0) and (3, 0): twice the areas are 3·1 and 3·2.
        let kept = thin(&[[0.0, 0.0], [1.0, 1.0], [2.0, -2.0], [3.0, 0.0]], 3);
        assert_eq!(kept, [[0.0, 0.0], [2.0, -2.0], [3.0, 0.0]]);
    }

    #[test]
    fn six_digits_are_kept() {
        assert_eq!(rounded(1.234_567_89), 1.234_57);
        assert_eq!(rounded(-0.000_123_456_789), -0.000_123_457);
        assert_eq!(rounded(0.0), 0.0);
    }

    #[test]
    fn lines_become_series_and_gaps_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        assert_eq!(read(&path, 9).unwrap(), []);
        let lines = "{\"step\":1,\"loss\":2.5,\"time\":7.0}\n{\"step\":2,\"loss\":null,\"eval_loss\":3,\"time\":8}\n{\"step\":3,\"lo";
        fs_err::write(&path, lines).unwrap();
        let series = |metric: &str, not_finite, points: &[[f64; 2]]| Series {
            metric: metric.to_owned(),
            logged: points.len(),
            not_finite,
            points: points.to_vec(),
        };
        let wanted = [series("loss", 1, &[[1.0, 2.5]]), series("eval_loss", 0, &[[2.0, 3.0]])];
        assert_eq!(read(&path, 9).unwrap(), wanted);
        fs_err::write(&path, "{\"loss\":1}\n{\"step\":2}\n").unwrap();
        let error = read(&path, 9).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl: line 1 is no JSON object with a `step`"), "{error}");
    }
}
