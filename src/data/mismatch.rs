//! Answers to other prompts: what objectives estimate a model's divergence from its reference with.

use super::example::{Example, Sequence};

/// Every example with the answer of another row in the place of its own: that of the nearest row
/// before it (behind the first comes the last) whose prompt and whose answer are both different.
/// Sequences longer than `max_length` lose their end. None where there is no such row.
///
/// TRL's KTO rotates the answers of a batch by one. Here the partner is the row's alone, whichever
/// batch the row falls into, so that its reference log-prob is computed once.
pub fn mismatch(examples: &[Example], max_length: usize) -> Vec<Option<Example>> {
    let mut recent: Vec<&Example> = Vec::new();
    let mut mismatched = Vec::with_capacity(examples.len());
    // The first pass finds what lies before the first row.
    for pass in 0..2 {
        for example in examples {
            if pass == 1 {
                let partner = recent.iter().find(|other| differ(example, other));
                mismatched.push(partner.map(|other| joined(example, other, max_length)));
            }
            remember(&mut recent, example);
        }
    }
    mismatched
}

fn prompt(example: &Example) -> &[u32] {
    &example.chosen.ids[..example.chosen.response_start]
}

fn answer(example: &Example) -> &[u32] {
    &example.chosen.ids[example.chosen.response_start..]
}

fn differ(a: &Example, b: &Example) -> bool {
    prompt(a) != prompt(b) && answer(a) != answer(b)
}

/// Examples that [`remember`] keeps: of seven of which no three share a prompt and no three an answer,
/// three differ from each other in both, and a row can be like only two of them.
const KEPT: usize = 7;

/// Puts `example` in front and drops those that no row could need any more: the third of a prompt,
/// because the two before it have different answers, and the third of an answer.
fn remember<'a>(recent: &mut Vec<&'a Example>, example: &'a Example) {
    let mut kept = vec![example];
    for &old in recent.iter() {
        let like = |of: fn(&Example) -> &[u32]| kept.iter().filter(|e| of(e) == of(old)).count();
        let known = kept.iter().any(|e| prompt(e) == prompt(old) && answer(e) == answer(old));
        if !known && like(prompt) < 2 && like(answer) < 2 && kept.len() < KEPT {
            kept.push(old);
        }
    }
    *recent = kept;
}

fn joined(example: &Example, other: &Example, max_length: usize) -> Example {
    let mut ids = [prompt(example), answer(other)].concat();
    ids.truncate(max_length);
    let response_start = example.chosen.response_start;
    Example { chosen: Sequence { ids, response_start }, rejected: None, ..*example }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn row(row: usize, prompt: u32, answer: u32) -> Example {
        let chosen = Sequence { ids: vec![0, prompt, answer, 9], response_start: 2 };
        Example { row, chosen, rejected: None, desirable: Some(row.is_multiple_of(2)) }
    }

    fn answers(examples: &[Example]) -> Vec<Option<u32>> {
        let mismatched = mismatch(examples, 10);
        mismatched.into_iter().map(|e| e.map(|e| e.chosen.ids[2])).collect()
    }

    #[test]
    fn each_row_has_the_answer_of_the_one_before() {
        let rows = [row(0, 1, 5), row(1, 2, 6), row(2, 3, 7)];
        assert_eq!(answers(&rows), [Some(7), Some(5), Some(6)]);
        let all = mismatch(&rows, 3);
        let second = all[1].as_ref().unwrap();
        assert_eq!((&second.chosen.ids[..], second.chosen.response_start), (&[0, 2, 5][..], 2));
        assert_eq!((second.row, second.desirable), (1, Some(false)));
        // The row before has the same prompt, the one before that the same answer.
        let rows = [row(0, 1, 5), row(1, 2, 6), row(2, 3, 7), row(3, 3, 6)];
        assert_eq!(answers(&rows), [Some(6), Some(5), Some(6), Some(5)]);
    }

    #[test]
    fn rows_without_another_prompt_and_answer_have_none() {
        assert_eq!(answers(&[]), []);
        assert_eq!(answers(&[row(0, 1, 5)]), [None]);
        assert_eq!(answers(&[row(0, 1, 5), row(1, 1, 6)]), [None, None]);
        assert_eq!(answers(&[row(0, 1, 5), row(1, 2, 5)]), [None, None]);
        assert_eq!(answers(&[row(0, 1, 5), row(1, 2, 5), row(2, 2, 6)]), [Some(6), None, Some(5)]);
    }

    /// Against the plain search, whose time grows with the square of the rows.
    #[test]
    fn it_finds_what_looking_at_every_row_finds() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        for (prompts, of_answers, n) in [(1, 4, 9), (2, 2, 12), (3, 3, 40), (9, 2, 40), (6, 9, 60)]
        {
            for _ in 0..60 {
                let draw = |rng: &mut ChaCha8Rng, n| rng.random_range(0..n);
                let rows: Vec<Example> = (0..n)
                    .map(|i| row(i, draw(&mut rng, prompts), draw(&mut rng, of_answers)))
                    .collect();
                let plain = |i: usize| {
                    let before = (1..n).map(|back| &rows[(i + n - back) % n]);
                    before
                        .into_iter()
                        .find(|other| differ(&rows[i], other))
                        .map(|e| e.chosen.ids[2])
                };
                let want: Vec<_> = (0..n).map(plain).collect();
                assert_eq!(answers(&rows), want, "{prompts} {of_answers}");
            }
        }
    }
}
