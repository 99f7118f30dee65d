use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// Gathers `values` at `indices`.
fn gather(values: &[i64], indices: &[i64]) -> Vec<i64> {
    indices.iter().map(|at| values[*at as usize]).collect()
}

#[test]
fn a_prompt_stands_once_and_attention_sees_a_copy_for_each_continuation() {
    let mut branches = Branches::new();
    branches.push(&[1, 2], &[&[10, 11, 12], &[20]]);
    branches.push(&[], &[&[30]]);
    branches.push(&[3], &[&[40, 41]]);
    assert_eq!(branches.input_ids, [1, 2, 10, 11, 12, 20, 30, 3, 40, 41]);
    assert_eq!(branches.positions, [0, 1, 2, 3, 4, 2, 0, 0, 1, 2]);
    assert_eq!(branches.cu_seqlens, [0, 5, 8, 9, 12]);
    assert_eq!(branches.expand, [0, 1, 2, 3, 4, 0, 1, 5, 6, 7, 8, 9]);
    assert_eq!(branches.keep, [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]);
    assert_eq!(branches.responses, [2..5, 5..6, 6..7, 8..10]);
    assert_eq!(branches.prompts, [0..2, 0..2, 6..6, 7..8]);
    assert_eq!((branches.num_tokens(), branches.num_expanded()), (10, 12));
    assert!(!branches.is_plain());
}

#[test]
fn one_continuation_a_prompt_is_plain() {
    let mut branches = Branches::default();
    assert!(branches.is_plain());
    branches.push(&[1, 2], &[&[3]]);
    branches.push(&[], &[&[4, 5], &[6]]);
    branches.push(&[7], &[&[8, 9]]);
    assert!(branches.is_plain());
    let identity: Vec<i64> = (0..9).collect();
    assert_eq!((&branches.expand, &branches.keep), (&identity, &identity));
    assert_eq!(branches.cu_seqlens, [0, 3, 5, 6, 9]);
}

/// Random ids, as many as some number of the range.
fn ids(random: &mut ChaCha8Rng, count: Range<u64>) -> Vec<i64> {
    let count = count.start + random.next_u64() % (count.end - count.start);
    (0..count).map(|_| (random.next_u64() % 1000) as i64).collect()
}

/// Against the plain concatenation of prompt and continuation, for many random shapes.
#[test]
fn the_layouts_agree_whatever_the_shapes() {
    let mut random = ChaCha8Rng::seed_from_u64(11);
    for _ in 0..300 {
        let mut branches = Branches::new();
        let (mut naive_ids, mut naive_positions, mut starts) = (vec![], vec![], vec![0]);
        let (mut once, mut responses, mut prompts) = (0, Vec::new(), Vec::new());
        for _ in 0..random.next_u64() % 6 {
            let prompt = ids(&mut random, 0..5);
            let count = 1 + random.next_u64() % 4;
            let continuations: Vec<Vec<i64>> = (0..count).map(|_| ids(&mut random, 1..7)).collect();
            let slices: Vec<&[i64]> = continuations.iter().map(Vec::as_slice).collect();
            branches.push(&prompt, &slices);
            once += prompt.len();
            for continuation in &continuations {
                once += continuation.len();
                let whole = [prompt.clone(), continuation.clone()].concat();
                naive_positions.extend(0..whole.len() as i64);
                naive_ids.extend(whole);
                starts.push(naive_ids.len() as i64);
                responses.push(continuation.clone());
                prompts.push(prompt.clone());
            }
        }
        assert_eq!(gather(&branches.input_ids, &branches.expand), naive_ids);
        assert_eq!(gather(&branches.positions, &branches.expand), naive_positions);
        assert_eq!(branches.cu_seqlens, starts);
        assert_eq!(branches.num_tokens(), once);
        let identity: Vec<i64> = (0..once as i64).collect();
        assert_eq!(gather(&branches.expand, &branches.keep), identity);
        let slice = |range: &Range<usize>| branches.input_ids[range.clone()].to_vec();
        assert_eq!(branches.responses.iter().map(slice).collect::<Vec<_>>(), responses);
        assert_eq!(branches.prompts.iter().map(slice).collect::<Vec<_>>(), prompts);
        // The last document of the layout ends with its continuation, so a response can be read there too.
        for (end, response) in branches.cu_seqlens[1..].iter().zip(&branches.responses) {
            assert_eq!(branches.keep[response.end - 1], end - 1);
        }
    }
}

#[test]
#[should_panic(expected = "a continuation needs tokens")]
fn an_empty_continuation_is_refused() {
    Branches::new().push(&[1], &[&[2], &[]]);
}

#[test]
#[should_panic(expected = "a prompt needs a continuation")]
fn a_prompt_alone_is_refused() {
    Branches::new().push(&[1], &[]);
}
