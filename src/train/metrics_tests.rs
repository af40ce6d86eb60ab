use super::*;

fn near(got: f64, want: f64, relative: f64) -> bool {
    (got - want).abs() <= relative * want.abs().max(1e-300)
}

/// Nine hand-picked pairs: l_w, l_l, z, loss, g_w, g_l, to the digits given.
const TABLE: [[f64; 6]; 9] = [
    [-1.0, -1.5, 0.706192686, 0.401135488, 0.522749431, 0.425348811],
    [-2.3, -2.1, -0.224980509, 0.811951165, 0.617965595, 0.633597119],
    [-0.5, -3.0, 3.38168295, 0.033425301, 0.0835461488, 0.0345952438],
    [-0.01, -4.0, 8.58168057, 0.000187492011, 0.018841337, 0.000190972214],
    [-1e-4, -1e-4, 0.0, std::f64::consts::LN_2, 5000.25, 5000.25],
    [-1e-6, -2.0, 15.6700966, 1.56517709e-07, 0.156517775, 1.81015477e-07],
    [-2.0, -1e-6, -15.6700966, 15.6700968, 1.15651746, 1000000.34],
    [-12.0, -0.7, -11.9863349, 11.9863411, 0.999999916, 1.98642149],
    [-8.0, -30.0, 22.0003355, 2.78853233e-10, 2.78946809e-10, 2.78853233e-10],
];

#[test]
fn the_table() {
    for [l_w, l_l, z, loss, g_w, g_l] in TABLE {
        let o = log_odds(l_w, l_l);
        for (got, want) in [(o.z, z), (o.loss, loss), (o.g_w, g_w), (o.g_l, g_l)] {
            assert!(near(got, want, 1e-8), "{l_w} {l_l}: {got} {want}");
        }
        assert!(!o.floored);
    }
}

/// 361 pairs against 50-digit arithmetic (tests/golden/odds). In the floor region only soundness
/// can be asked for.
#[test]
fn the_long_table() {
    let rows: Vec<Value> =
        serde_json::from_str(include_str!("../../tests/golden/odds/odds_table.json")).unwrap();
    assert_eq!(rows.len(), 361);
    let mut floored = 0;
    for row in &rows {
        let at = |key: &str| row[key].as_f64().unwrap();
        let o = log_odds(at("chosen"), at("rejected"));
        assert_eq!(o.floored, at("chosen").max(at("rejected")) > -1e-7 - 1e-14, "{row}");
        if o.floored {
            floored += 1;
            assert!(
                o.z.is_finite() && o.loss >= 0.0 && o.g_w >= 0.0 && o.g_l >= 0.0,
                "{row} {o:?}"
            );
            assert!(o.g_w <= 1e7 && o.g_l <= 1e7, "{row} {o:?}");
            continue;
        }
        assert!(
            (o.z - at("log_odds")).abs() <= 1e-13 * at("log_odds").abs().max(1.0),
            "{row} {o:?}"
        );
        // The loss carries z's rounding as a relative error.
        for (got, want) in
            [(o.loss, at("or_loss")), (o.g_w, -at("d_chosen")), (o.g_l, at("d_rejected"))]
        {
            assert!(near(got, want, 1e-12), "{row}: {got} {want}");
        }
    }
    assert!((30..361 / 2).contains(&floored), "{floored}");
}

#[test]
fn derivatives_are_those_of_the_loss() {
    for (l_w, l_l) in [(-1.0, -1.5), (-0.3, -0.02), (-5.0, -0.9), (-0.05, -7.0)] {
        let h = 1e-6;
        let o = log_odds(l_w, l_l);
        let d_w = (log_odds(l_w + h, l_l).loss - log_odds(l_w - h, l_l).loss) / (2.0 * h);
        let d_l = (log_odds(l_w, l_l + h).loss - log_odds(l_w, l_l - h).loss) / (2.0 * h);
        assert!(
            near(-o.g_w, d_w, 1e-5) && near(o.g_l, d_l, 1e-5),
            "{l_w} {l_l}: {o:?} {d_w} {d_l}"
        );
    }
}

#[test]
fn extremes_never_become_nan() {
    for l_w in [0.0, 1e-6, -1e-300, -1e-9, -1.0, -800.0, -1e6] {
        for l_l in [0.0, 1e-6, -1e-300, -1e-9, -1.0, -800.0, -1e6] {
            let o = log_odds(l_w, l_l);
            assert!(
                o.z.is_finite() && o.loss.is_finite() && o.g_w.is_finite() && o.g_l.is_finite(),
                "{l_w} {l_l} {o:?}"
            );
            assert!(o.g_w <= 1.0000001e7 && o.g_l <= 1.0000001e7, "{l_w} {l_l} {o:?}");
        }
    }
    let hopeless = log_odds(-1000.0, -0.5);
    assert!(near(hopeless.loss, -hopeless.z, 1e-15) && near(hopeless.g_w, 1.0, 1e-12));
    assert!(log_odds(f64::NAN, -1.0).loss.is_nan() && log_odds(f64::NAN, -1.0).g_l.is_nan());
}

/// Two pairs with known token log-probabilities, lambda 0.1: the totals of the token mean over
/// prompt and response, over the response, and of the per-sequence mean.
#[test]
fn a_batch_by_hand() {
    let chosen: [&[f64]; 2] = [&[-0.5, -0.25, -0.75], &[-1.5]];
    let rejected: [&[f64]; 2] = [&[-1.0, -2.0], &[-0.2, -0.4, -0.6, -0.8]];
    let prompt: [&[f64]; 2] = [&[-2.0, -1.0], &[-3.0]];
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let mut batches = [StepMetrics::new(0.1), StepMetrics::new(0.1), StepMetrics::new(0.1)];
    for i in 0..2 {
        for b in &mut batches {
            let odds = b.add_pair(mean(chosen[i]) as f32, mean(rejected[i]) as f32);
            assert!(near(odds.z.abs(), 1.68026967, 1e-7), "{odds:?}");
        }
        let all: Vec<f64> = prompt[i].iter().chain(chosen[i]).copied().collect();
        batches[0].add_nll(-all.iter().sum::<f64>(), all.len() as f64);
        batches[1].add_nll(-chosen[i].iter().sum::<f64>(), chosen[i].len() as f64);
        batches[2].add_nll(-mean(chosen[i]), 1.0);
    }
    for (batch, want) in batches.iter().zip([1.386813691, 0.851099405, 1.101099405]) {
        assert!((batch.loss() - want).abs() < 1e-8, "{} {want}", batch.loss());
    }
    let get = |name: &str| batches[0].values().into_iter().find(|(k, _)| *k == name).unwrap().1;
    assert!((get("logps/chosen") + 1.0).abs() < 1e-7 && (get("logps/rejected") + 1.0).abs() < 1e-7);
    assert!((get("rewards/chosen") + 0.1).abs() < 1e-8 && get("rewards/margins").abs() < 1e-8);
    assert_eq!(get("rewards/accuracies"), 0.5);
    assert!(get("log_odds_chosen").abs() < 1e-7);
    let mean_odds_loss = (0.851099405 - 0.75) / 0.1;
    assert!((get("log_odds_ratio") + mean_odds_loss).abs() < 1e-7);
}

/// The figures TRL logs for three pairs (float64 run on a small model that has overfitted).
#[test]
fn trl_figures() {
    let chosen = [-8.320064337267093, -10.131451632497951, -10.476869323850508];
    let rejected = [-0.01739397601647751, -0.013329681052983896, -0.008885063320988835];
    let mut m = StepMetrics::new(0.1);
    for (w, l) in chosen.iter().zip(rejected) {
        let odds = log_odds(*w, l);
        m.add_pair_with(*w as f32, l as f32, &odds);
    }
    m.add_nll(3.771165941450615 * 31.0, 31.0);
    assert!((m.loss() - 5.171200214685206).abs() < 1e-12, "{}", m.loss());
    let get = |name: &str| m.values().into_iter().find(|(k, _)| *k == name).unwrap().1;
    assert!((get("log_odds_ratio") + 14.000342732345908).abs() < 1e-12);
    assert_eq!(get("rewards/accuracies"), 0.0);
    assert!((get("rewards/margins") + 0.9629592191075034).abs() < 1e-7);
}

#[test]
fn the_split_into_batches_changes_nothing() {
    let mut rows: Vec<(f32, f32, f64)> = (0..13)
        .map(|i| (-0.1 - (i * 7 % 5) as f32, -0.3 - (i * 3 % 7) as f32, 3.0 + (i * i % 11) as f64))
        .collect();
    rows[4].1 = -1e-8;
    let sum = |parts: &[usize]| {
        let mut total = StepMetrics::new(0.2);
        let mut rest = &rows[..];
        for &n in parts {
            let (now, later) = rest.split_at(n);
            rest = later;
            let mut part = StepMetrics::new(0.2);
            for (w, l, tokens) in now {
                part.add_pair(*w, *l);
                part.add_nll(f64::from(-w) * tokens, *tokens);
            }
            total.merge(&part);
        }
        assert!(rest.is_empty());
        total
    };
    let whole = sum(&[13]);
    assert_eq!((whole.pairs(), whole.floored()), (13, 1));
    for parts in [&[1, 12][..], &[6, 7], &[5, 5, 3]] {
        for ((name, a), (_, b)) in whole.values().iter().zip(sum(parts).values()) {
            assert!((a - b).abs() < 1e-12, "{name}: {a} {b}");
        }
    }
    // The mean of means, which this must not be, is far away.
    let halves = (sum(&[13]).nll_loss(), {
        let one = |r: &[(f32, f32, f64)]| {
            r.iter().map(|x| f64::from(-x.0) * x.2).sum::<f64>()
                / r.iter().map(|x| x.2).sum::<f64>()
        };
        (one(&rows[..1]) + one(&rows[1..])) / 2.0
    });
    assert!((halves.0 - halves.1).abs() > 0.1, "{halves:?}");
}

#[test]
fn rows_without_a_rejected_answer() {
    let names = |m: &StepMetrics| m.values().into_iter().map(|(k, _)| k).collect::<Vec<_>>();
    let mut m = StepMetrics::new(0.0);
    m.add_nll(6.0, 4.0);
    assert_eq!(names(&m), ["loss", "nll_loss"]);
    m.add_single(-2.0);
    assert_eq!(names(&m), ["loss", "nll_loss", "logps/chosen", "rewards/chosen"]);
    assert_eq!((m.loss(), StepMetrics::new(0.1).loss()), (1.5, 0.0));
    m.add_pair(-1.0, -3.0);
    assert!(!names(&m).contains(&"rewards/margins"));
    let get = |name: &str| m.values().into_iter().find(|(k, _)| *k == name).unwrap().1;
    assert_eq!(
        (get("logps/chosen"), get("logps/rejected"), get("rewards/accuracies")),
        (-1.5, -3.0, 1.0)
    );
}

#[test]
fn the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    truncate_after_step(&path, 3).unwrap();
    assert!(!path.exists());
    let record = |split, step: u64| {
        let mut m = StepMetrics::new(0.1);
        m.add_pair(-1.0, -2.0);
        m.add_nll(step as f64, 2.0);
        Record::new(split, step, step as f64 / 4.0, &m)
            .with("grad_norm", f64::NAN)
            .with("num_tokens", 2e9)
    };
    let mut writer = MetricsWriter::open(&path).unwrap();
    writer.write(&record(Split::Eval, 0)).unwrap();
    for step in 1..=4 {
        writer.write(&record(Split::Train, step)).unwrap();
    }
    writer.write(&record(Split::Eval, 4)).unwrap();
    // Flushed while the writer is still open.
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 6);
    let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((&first["step"], &first["eval_rewards/accuracies"]), (&0.into(), &1.into()));
    assert!(first["eval_grad_norm"].is_null() && first.get("loss").is_none());
    assert!(
        text.contains("\"num_tokens\":2000000000,") || text.contains("\"num_tokens\":2000000000}")
    );

    let read = read_metrics(&path).unwrap();
    assert_eq!(
        (read[0].split, read[5].split, read[2].split),
        (Split::Eval, Split::Eval, Split::Train)
    );
    assert_eq!((read[2].step, read[2].epoch, read[2].get("nll_loss")), (2, 0.5, Some(1.0)));
    assert_eq!(read[2].get("loss"), record(Split::Train, 2).get("loss"));

    // A torn last line, then resuming at step 3.
    drop(writer);
    std::fs::write(&path, format!("{text}{{\"step\": 5, \"lo")).unwrap();
    assert_eq!(read_metrics(&path).unwrap().len(), 6);
    truncate_after_step(&path, 3).unwrap();
    let steps =
        |path: &Path| read_metrics(path).unwrap().iter().map(|r| r.step).collect::<Vec<_>>();
    assert_eq!(steps(&path), [0, 1, 2, 3]);
    MetricsWriter::open(&path).unwrap().write(&record(Split::Train, 4)).unwrap();
    assert_eq!(steps(&path), [0, 1, 2, 3, 4]);
    assert!(std::fs::read_to_string(&path).unwrap().starts_with(text.lines().next().unwrap()));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");

    std::fs::write(&path, "{\"step\": 1}\nnot json\n").unwrap();
    let error = truncate_after_step(&path, 1).unwrap_err().to_string();
    assert!(error.contains("metrics.jsonl") && error.contains("line 2"), "{error}");
}
