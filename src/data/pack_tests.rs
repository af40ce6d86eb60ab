//! Expands random streams back and compares them with the plain layout, one sequence a row.

use super::*;
use crate::data::example::Sequence;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;

/// Random pairs over a small alphabet, so that shared prefixes of every length occur; prompts of
/// the two sides may differ by a token (a merge across the prompt's end) or altogether.
fn random_examples(rng: &mut ChaCha8Rng, n: usize) -> Vec<Example> {
    let ids = |rng: &mut ChaCha8Rng, len: usize| -> Vec<u32> {
        (0..len).map(|_| rng.random_range(1..4)).collect()
    };
    (0..n)
        .map(|row| {
            let prompt_len = rng.random_range(0..9);
            let prompt = ids(rng, prompt_len);
            let side = |rng: &mut ChaCha8Rng| {
                let mut all = if rng.random_bool(0.9) { prompt.clone() } else { ids(rng, 3) };
                let start = all.len().saturating_sub(rng.random_range(0..2));
                let answer_len = rng.random_range(2..12);
                all.extend(ids(rng, answer_len));
                Sequence { ids: all, response_start: start }
            };
            let chosen = side(rng);
            let rejected = rng.random_bool(0.8).then(|| side(rng));
            Example { row, chosen, rejected, desirable: None }
        })
        .collect()
}

/// Every sequence of a stream, rebuilt from the attention rule alone: the rows the last token of
/// the sequence attends, in order.
fn attended(stream: &PackedBatch, query: usize) -> Vec<usize> {
    let span = &stream.spans[4 * query..4 * query + 4];
    (0..stream.capacity.tokens as u32)
        .filter(|&j| (span[0] <= j && j < span[1]) || (span[2] <= j && j <= query as u32))
        .map(|j| j as usize)
        .collect()
}

/// The last row of each sequence of each pair, found by walking the pairs' footprints.
fn last_rows(stream: &PackedBatch, examples: &[Example]) -> Vec<(usize, Option<usize>)> {
    let mut at = 0;
    stream
        .rows
        .iter()
        .map(|&row| {
            let example = &examples[row];
            let chosen = at + example.chosen.ids.len() - 1;
            at += footprint(example).tokens;
            (chosen, example.rejected.as_ref().map(|_| at - 1))
        })
        .collect()
}

fn check_sequence(stream: &PackedBatch, last: usize, sequence: &Sequence) -> Vec<usize> {
    let rows = attended(stream, last);
    let tokens: Vec<u32> = rows.iter().map(|&i| stream.tokens[i]).collect();
    let positions: Vec<u32> = rows.iter().map(|&i| stream.position[i]).collect();
    assert_eq!(tokens, sequence.ids);
    assert_eq!(positions, (0..sequence.ids.len() as u32).collect::<Vec<_>>());
    // Every earlier token of the sequence sees exactly the tokens before it.
    for (t, &row) in rows.iter().enumerate() {
        assert_eq!(attended(stream, row), rows[..=t], "row {row} of the stream");
    }
    rows
}

fn check_targets(stream: &PackedBatch, sequence: usize, rows: &[usize], plain: &Sequence) {
    let range = stream.seq_offset[sequence] as usize..stream.seq_offset[sequence + 1] as usize;
    let found: Vec<(u32, u32)> = stream.seq_target[range]
        .iter()
        .map(|&n| {
            assert_eq!(stream.owner[2 * n as usize + sequence % 2], sequence as u32);
            (stream.target_row[n as usize], stream.target_id[n as usize])
        })
        .collect();
    let wanted: Vec<(u32, u32)> = (plain.response_start.max(1)..plain.ids.len())
        .map(|t| (rows[t - 1] as u32, plain.ids[t]))
        .collect();
    assert_eq!(found, wanted, "targets of sequence {sequence}");
}

fn check_nll(stream: &PackedBatch, pair: usize, rows: &[usize], plain: &Sequence) {
    let mut found: Vec<(u32, u32, bool)> = (0..stream.used_targets)
        .filter(|&n| stream.nll[n] != TargetKind::None && stream.nll_pair[n] == pair as u32)
        .map(|n| (stream.target_row[n], stream.target_id[n], stream.nll[n] == TargetKind::Response))
        .collect();
    found.sort_unstable();
    let mut wanted: Vec<(u32, u32, bool)> = (1..plain.ids.len())
        .map(|t| (rows[t - 1] as u32, plain.ids[t], t >= plain.response_start))
        .collect();
    wanted.sort_unstable();
    assert_eq!(found, wanted, "NLL targets of pair {pair}");
}

fn check_query_end(stream: &PackedBatch) {
    let queries: Vec<BTreeSet<usize>> =
        (0..stream.capacity.tokens).map(|i| attended(stream, i).into_iter().collect()).collect();
    for j in 0..stream.capacity.tokens {
        let last = (0..stream.capacity.tokens).rev().find(|&i| queries[i].contains(&j)).unwrap();
        assert_eq!(stream.spans[4 * j + 3] as usize, last + 1, "query_end of row {j}");
    }
}

fn check_tail(stream: &PackedBatch) {
    let (t, n) = (stream.used_tokens, stream.used_targets);
    for i in t..stream.capacity.tokens {
        assert_eq!(attended(stream, i), [i]);
        assert_eq!((stream.tokens[i], stream.position[i]), (0, 0));
    }
    assert!(stream.owner[2 * n..].iter().all(|&o| o == NONE));
    assert!(stream.nll[n..].iter().all(|&k| k == TargetKind::None));
    assert!(stream.target_row[n..].iter().chain(&stream.target_id[n..]).all(|&x| x == 0));
    assert!(stream.nll_pair[n..].iter().all(|&p| p == NONE));
    let end = stream.seq_offset[2 * stream.rows.len()];
    assert!(stream.seq_offset[2 * stream.rows.len()..].iter().all(|&o| o == end));
    let owners = stream.owner.iter().filter(|&&o| o != NONE).count();
    assert_eq!(owners, end as usize);
    assert!(stream.seq_target[end as usize..].iter().all(|&x| x == 0));
}

#[test]
fn streams_expand_to_the_plain_layout() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for (tokens, targets, pairs) in [(64, 60, 5), (128, 128, 32), (200, 90, 8), (41, 41, 1)] {
        let capacity = Capacity { tokens, targets, pairs };
        let examples = random_examples(&mut rng, 60);
        let given: Vec<&Example> = examples.iter().collect();
        let streams = pack(&given, capacity).unwrap();
        let mut seen = BTreeSet::new();
        for stream in &streams {
            assert!(!stream.rows.is_empty() && stream.rows.len() <= pairs);
            assert_eq!(stream.seq_offset.len(), 2 * pairs + 1);
            assert_eq!(stream.seq_target.len(), 2 * targets);
            for (pair, (chosen, rejected)) in last_rows(stream, &examples).into_iter().enumerate() {
                let example = &examples[stream.rows[pair]];
                assert!(seen.insert(example.row));
                let rows = check_sequence(stream, chosen, &example.chosen);
                check_targets(stream, 2 * pair, &rows, &example.chosen);
                check_nll(stream, pair, &rows, &example.chosen);
                match (&example.rejected, rejected) {
                    (Some(plain), Some(last)) => {
                        let rows = check_sequence(stream, last, plain);
                        check_targets(stream, 2 * pair + 1, &rows, plain);
                    }
                    _ => {
                        assert_eq!(stream.seq_offset[2 * pair + 1], stream.seq_offset[2 * pair + 2])
                    }
                }
            }
            check_query_end(stream);
            check_tail(stream);
        }
        assert_eq!(seen.len(), examples.len());
        assert_eq!(streams, pack(&given, capacity).unwrap(), "packing is deterministic");
    }
}

fn pair(row: usize, chosen: &[u32], rejected: &[u32], response_start: usize) -> Example {
    let side = |ids: &[u32]| Sequence { ids: ids.to_vec(), response_start };
    Example { row, chosen: side(chosen), rejected: Some(side(rejected)), desirable: None }
}

#[test]
fn a_pair_lies_as_the_module_says() {
    let example = pair(7, &[10, 11, 12, 13, 14], &[10, 11, 12, 23, 24, 25], 2);
    let capacity = Capacity { tokens: 10, targets: 8, pairs: 2 };
    let stream = pack(&[&example], capacity).unwrap().remove(0);
    assert_eq!(stream.tokens, [10, 11, 12, 13, 14, 23, 24, 25, 0, 0]);
    assert_eq!(stream.position, [0, 1, 2, 3, 4, 3, 4, 5, 0, 0]);
    #[rustfmt::skip]
    assert_eq!(stream.spans, [
        0, 0, 0, 8,  0, 0, 0, 8,  0, 0, 0, 8,
        0, 3, 3, 5,  0, 3, 3, 5,
        0, 3, 5, 8,  0, 3, 5, 8,  0, 3, 5, 8,
        0, 0, 8, 9,  0, 0, 9, 10,
    ]);
    assert_eq!(stream.target_row, [0, 1, 2, 3, 2, 5, 6, 0]);
    assert_eq!(stream.target_id, [11, 12, 13, 14, 23, 24, 25, 0]);
    #[rustfmt::skip]
    assert_eq!(stream.owner, [
        NONE, NONE,  0, 1,  0, NONE,  0, NONE,  NONE, 1,  NONE, 1,  NONE, 1,  NONE, NONE,
    ]);
    use TargetKind::{None, Prompt, Response};
    assert_eq!(stream.nll, [Prompt, Response, Response, Response, None, None, None, None]);
    assert_eq!(stream.seq_offset, [0, 3, 7, 7, 7]);
    assert_eq!(stream.seq_target[..7], [1, 2, 3, 1, 4, 5, 6]);
    assert_eq!((stream.used_tokens, stream.used_targets, stream.rows), (8, 7, vec![7]));
}

#[test]
fn a_side_that_continues_the_other_keeps_a_branch() {
    assert_eq!(shared_prefix(&[1, 2, 3], &[1, 2, 3, 4]), 2);
    assert_eq!(shared_prefix(&[1], &[1]), 0);
    assert_eq!(shared_prefix(&[], &[1]), 0);
}

#[test]
fn rows_that_do_not_fit_are_all_named() {
    let small = pair(0, &[1, 2], &[1, 3], 1);
    let large: Vec<Example> =
        [3, 9].map(|row| pair(row, &[1, 2, 3, 4, 5], &[1, 6, 7, 8, 9], 1)).into();
    let capacity = Capacity { tokens: 8, targets: 8, pairs: 4 };
    let text = pack(&[&large[0], &small, &large[1]], capacity).unwrap_err().to_string();
    assert!(text.contains("row 4: needs 9 tokens and 8 targets"), "{text}");
    assert!(text.contains("row 10:") && !text.contains("row 1:"), "{text}");
    assert!(pack(&[&small], Capacity { pairs: 0, ..capacity }).is_err());
    assert!(pack(&[], capacity).unwrap().is_empty());
}

#[test]
fn the_longest_rows_open_the_streams() {
    let sizes = [3usize, 8, 2, 5, 2];
    let examples: Vec<Example> = sizes
        .iter()
        .enumerate()
        .map(|(row, &n)| Example {
            row,
            chosen: Sequence { ids: vec![1; n], response_start: 1 },
            rejected: None,
            desirable: None,
        })
        .collect();
    let given: Vec<&Example> = examples.iter().collect();
    let streams = pack(&given, Capacity { tokens: 10, targets: 10, pairs: 3 }).unwrap();
    let rows: Vec<&[usize]> = streams.iter().map(|s| s.rows.as_slice()).collect();
    assert_eq!(rows, [&[1, 2][..], &[3, 0, 4]]);
}

#[test]
fn statistics_count_padded_concatenation() {
    let examples = [
        pair(0, &[1, 2, 3, 4], &[1, 2, 5], 2),
        pair(1, &[1, 2, 3], &[1, 4, 5], 1),
        pair(2, &[1, 2], &[1, 3], 1),
    ];
    let given: Vec<&Example> = examples.iter().collect();
    let capacity = Capacity { tokens: 16, targets: 16, pairs: 4 };
    let stats = PackStats::new(&given, capacity, 2).unwrap();
    // Batches of two pairs: 4 sequences of 4 tokens, then 2 sequences of 2.
    assert_eq!(stats.padded_concat_tokens, 16 + 4);
    assert_eq!((stats.stream_tokens, stats.used_tokens), (16, 5 + 5 + 3));
    assert_eq!(stats.ratio(), 20.0 / 16.0);
    // What is counted is what packing gives.
    let streams = pack(&given, Capacity { tokens: 8, ..capacity }).unwrap();
    let stats = PackStats::new(&given, Capacity { tokens: 8, ..capacity }, 2).unwrap();
    assert_eq!((stats.examples, stats.streams), (3, streams.len()));
    assert_eq!(stats.used_tokens, streams.iter().map(|s| s.used_tokens).sum::<usize>());
    // Counting makes no stream: no memory would hold one of these.
    let vast = Capacity { tokens: 1 << 50, targets: 1 << 50, pairs: 1 << 40 };
    assert_eq!(PackStats::new(&given, vast, 2).unwrap().stream_tokens, 1 << 50);
}
