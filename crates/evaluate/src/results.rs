//! From outcomes to numbers with intervals.

use artifact::evaluation::{Difference, Evaluation, Measurement, Unit};

use crate::bootstrap::{Bootstrap, percentiles, wilson};
use crate::outcome::{Metric, Outcome};
use crate::plan::Plan;

/// The outcome of each model, by test and model; none where it does not take the test.
pub(crate) type Outcomes = Vec<Vec<Option<Outcome>>>;

/// A value with its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) value: f64,
    pub(crate) interval: Option<[f64; 2]>,
    pub(crate) items: usize,
}

/// One number that is wanted of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Of a model.
    Of(usize),
    /// By how much a model's is above another's.
    Above(usize, usize),
}

impl Wanted {
    fn models(self) -> Vec<usize> {
        match self {
            Self::Of(model) => vec![model],
            Self::Above(model, other) => vec![model, other],
        }
    }
}

/// Everything that was measured.
pub(crate) fn evaluation(plan: &Plan, outcomes: &Outcomes) -> Evaluation {
    let mut measurements = Vec::new();
    let mut differences = Vec::new();
    for (exam, own) in plan.exams.iter().zip(outcomes) {
        let outcomes: Vec<Option<&Outcome>> = own.iter().map(Option::as_ref).collect();
        for metric in exam.metrics() {
            let Metric { name, unit, better, .. } = &metric;
            let (unit, better) = (*unit, *better);
            let singles = (0..outcomes.len()).map(Wanted::Of);
            let pairs = (0..outcomes.len()).filter_map(|model| {
                let parent = plan.parent(model)?;
                let vocab = |at: usize| plan.subjects[at].tokenizer.vocab();
                let same = metric.any_tokenizer || vocab(model) == vocab(parent);
                same.then_some(Wanted::Above(model, parent))
            });
            let wanted: Vec<Wanted> = singles.chain(pairs).collect();
            for (wanted, estimate) in estimates(&metric, &outcomes, &wanted, plan.bootstrap()) {
                let Estimate { value, interval, items } = estimate;
                let name_of = |at: usize| plan.subjects[at].name.clone();
                let (test, metric) = (exam.name.clone(), name.clone());
                match wanted {
                    Wanted::Of(model) => measurements.push(Measurement {
                        model: name_of(model),
                        test,
                        metric,
                        unit,
                        better,
                        value,
                        interval,
                        items: items as u64,
                    }),
                    Wanted::Above(model, from) => differences.push(Difference {
                        model: name_of(model),
                        from: name_of(from),
                        test,
                        metric,
                        unit,
                        better,
                        value,
                        interval,
                    }),
                }
            }
        }
    }
    let tests = plan.exams.iter().map(crate::exam::Exam::describe).collect();
    Evaluation { models: plan.models(), tests, measurements, differences }
}

/// Those of the wanted numbers that there are, in the order of `wanted`. What is over the same items is drawn together.
pub(crate) fn estimates(
    metric: &Metric,
    outcomes: &[Option<&Outcome>],
    wanted: &[Wanted],
    bootstrap: Bootstrap,
) -> Vec<(Wanted, Estimate)> {
    let rows: Vec<Vec<Option<Vec<f64>>>> = outcomes
        .iter()
        .map(|outcome| {
            let Some(outcome) = outcome else { return Vec::new() };
            let items = outcome.columns.values().map(Vec::len).max().unwrap_or(0);
            (0..items).map(|item| metric.row(outcome, item)).collect()
        })
        .collect();
    let counts = |model: usize, item: usize| rows[model].get(item).is_some_and(Option::is_some);
    let mut groups: Vec<(Vec<usize>, Vec<usize>)> = Vec::new();
    for (place, wanted) in wanted.iter().enumerate() {
        let models = wanted.models();
        let items = (0..rows[models[0]].len())
            .filter(|&item| models.iter().all(|&model| counts(model, item)))
            .collect::<Vec<usize>>();
        if items.is_empty() {
            continue;
        }
        match groups.iter_mut().find(|(own, _)| *own == items) {
            Some((_, members)) => members.push(place),
            None => groups.push((items, vec![place])),
        }
    }
    let mut found: Vec<(usize, Estimate)> = Vec::new();
    for (items, members) in groups {
        let own: Vec<Wanted> = members.iter().map(|&place| wanted[place]).collect();
        let estimates = of_group(metric, &rows, &items, &own, bootstrap);
        found.extend(members.into_iter().zip(estimates));
    }
    found.sort_by_key(|(place, _)| *place);
    let numbers = found.into_iter().filter(|(_, estimate)| estimate.value.is_finite());
    numbers.map(|(place, estimate)| (wanted[place], estimate)).collect()
}

/// The numbers over the same items.
fn of_group(
    metric: &Metric,
    rows: &[Vec<Option<Vec<f64>>>],
    items: &[usize],
    wanted: &[Wanted],
    bootstrap: Bootstrap,
) -> Vec<Estimate> {
    let mut models: Vec<usize> = wanted.iter().flat_map(|wanted| wanted.models()).collect();
    models.sort_unstable();
    models.dedup();
    let width = metric.columns.len();
    let mut matrix = Vec::with_capacity(items.len() * models.len() * width);
    for &item in items {
        for &model in &models {
            matrix.extend(rows[model][item].iter().flatten());
        }
    }
    let count = items.len() as f64;
    let value_of = |sums: &[f64], model: usize| {
        let at = models.iter().position(|own| *own == model).unwrap_or_default() * width;
        let mut own = sums[at..at + width].to_vec();
        own.push(count);
        (metric.of)(&own)
    };
    let number = |sums: &[f64], wanted: Wanted| match wanted {
        Wanted::Of(model) => value_of(sums, model),
        Wanted::Above(model, other) => value_of(sums, model) - value_of(sums, other),
    };
    let all = models.len() * width;
    let mut sums = vec![0.0; all];
    for row in matrix.chunks_exact(all) {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    let mut drawn: Vec<Vec<f64>> =
        wanted.iter().map(|_| Vec::with_capacity(bootstrap.samples)).collect();
    if items.len() > 1 {
        bootstrap.resample(&matrix, all, |sums| {
            for (values, wanted) in drawn.iter_mut().zip(wanted) {
                values.push(number(sums, *wanted));
            }
        });
    }
    let estimate = |(wanted, values): (&Wanted, Vec<f64>)| {
        let value = number(&sums, *wanted);
        let at_end = metric.unit == Unit::Share && (value == 0.0 || value == 1.0);
        let interval = match wanted {
            _ if items.len() < 2 => None,
            Wanted::Of(_) if at_end => Some(wilson(value, items.len() as u64)),
            _ => percentiles(values),
        };
        Estimate { value, interval, items: items.len() }
    };
    wanted.iter().zip(drawn).map(estimate).collect()
}

#[cfg(test)]
mod tests;
