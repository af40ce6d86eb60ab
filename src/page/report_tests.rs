use super::*;
use crate::train::objectives::Loss;

fn record(pairs: &[(&str, f64)]) -> BTreeMap<String, f64> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect()
}

/// A made-up run of 300 steps: noise that repeats, and curves of a plausible shape.
fn run(name: &str, ends: (f64, f64, f64), speed: f64) -> RunCurves {
    let noise = |i: u32| (f64::from(i * 7919 % 101) / 101.0 - 0.5) * 0.3;
    let towards = |from: f64, to: f64, at: f64| to + (from - to) * (-at * 3.0).exp();
    let train = (0..300)
        .map(|i| {
            let at = f64::from(i) / 300.0;
            record(&[
                ("step", f64::from(i)),
                ("loss", towards(3.1, 0.8 - ends.0, at) + noise(i)),
                ("tokens_per_second", speed + noise(i + 5) * 200.0),
            ])
        })
        .collect();
    let eval = (0..=10)
        .map(|i| {
            let at = f64::from(i) / 10.0;
            let (chosen, rejected) = (towards(-1.6, ends.0, at), towards(-1.2, ends.1, at));
            record(&[
                ("step", f64::from(i) * 30.0),
                ("eval_loss", -chosen + 0.1),
                ("eval_nll_loss", -chosen),
                ("eval_logps/chosen", chosen),
                ("eval_logps/rejected", rejected),
                ("eval_log_odds_chosen", chosen - rejected),
                ("eval_rewards/accuracies", 0.2 + at * ends.2),
            ])
        })
        .collect();
    RunCurves { name: name.into(), train, eval }
}

fn report() -> ReportPage {
    let sample = |wrong: &str, base: &str, orpo: &str, control: &str, right: &str| Sample {
        wrong: wrong.into(),
        outputs: [base, orpo, control].map(String::from).into(),
        right: right.into(),
    };
    let mut samples = vec![
        sample(
            "He don't know the the answer.",
            "He don't know the the answer.",
            "He doesn't know the answer.",
            "He don't know the answer.",
            "He doesn't know the answer.",
        ),
        sample(
            "Is this <b>more</b> optimal & good?",
            "",
            "Is this optimal?",
            "Is it <script>alert(1)</script>",
            "Is this optimal & good?",
        ),
    ];
    for i in 0..6 {
        samples.push(sample(
            &format!(
                "Sentence number {i} has a error in it, and it goes on for a while after that."
            ),
            &format!(
                "Sentence number {i} has a error in it, and it goes on for a while after that."
            ),
            &format!(
                "Sentence number {i} has an error in it, and it goes on for a while after that."
            ),
            &format!("Sentence number {i} has a error in it, and it goes on for a."),
            &format!(
                "Sentence number {i} has an error in it, and it goes on for a while after that."
            ),
        ));
    }
    let facts = [
        ("Adapter", "llvmpipe (LLVM 15.0.6, 256 bits), Vulkan, software"),
        ("Driver", "llvmpipe, Mesa 22.3.6"),
        ("Command", "oddgrad demo --seed 1"),
        ("Date", "2026-11-23"),
        ("Recipe", "objective = \"orpo\"\nlambda = 0.25\n\n[optim]\nlearning_rate = 1e-3\n"),
    ];
    ReportPage {
        title: "Learning to prefer the right sentence".into(),
        runs: vec![
            run("ORPO", (-1.1, -1.5, 0.5), 1400.0),
            run("SFT control", (-1.0, -0.9, 0.1), 1350.0),
        ],
        metrics: Loss::default().objective.metrics(),
        samples,
        facts: facts.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        ..ReportPage::default()
    }
}

#[test]
fn report_shows_everything_and_loads_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    let table = Table {
        title: "Sentences".into(),
        note: "of 8".into(),
        columns: vec!["ORPO".into()],
        rows: vec![("Exactly right".into(), vec!["7 of 8".into()])],
    };
    let continuation = Continuation {
        prompt: "Say <it>".into(),
        first: (0, "no".into()),
        last: (20, "yes".into()),
    };
    let report = ReportPage {
        verdict: vec!["ORPO is right & more".into()],
        tables: vec![table],
        continuations: vec![continuation],
        state: "Step 20 of 20".into(),
        refresh: Some(10),
        ..report()
    };
    write_report(&path, &report).unwrap();
    let html = std::fs::read_to_string(&path).unwrap();
    assert_eq!(html.matches("<figure").count(), 6);
    assert_eq!(html.matches("role=\"img\"").count(), 6);
    assert_eq!(html.matches("data-label=\"Right\"").count(), 8);
    for text in ["llvmpipe, Mesa 22.3.6", "20.0 % \u{2192} 70.0 %", "lambda = 0.25", "1\u{202F}400"]
    {
        assert!(html.contains(text), "{text} is not on the page");
    }
    for text in [
        "ORPO is right &amp; more",
        "Exactly right</th><td>7 of 8</td>",
        "Say &lt;it&gt;",
        "After step 20",
        "Step 20 of 20",
        "content=\"10\"",
    ] {
        assert!(html.contains(text), "{text} is not on the page");
    }
    assert!(
        !html.contains("on held-out rows:"),
        "the verdict stands for the sentences of the curves"
    );
    // Nothing is loaded: no address but SVG's name, no element that fetches.
    let addresses = html.replace("http://www.w3.org/2000/svg", "");
    for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link"] {
        assert!(!addresses.contains(outside), "{outside} on the page");
    }
    assert!(html.len() < 1_000_000, "{} bytes", html.len());
}

#[test]
fn report_says_what_the_figures_say() {
    let html = lead(&report());
    let chosen =
        "ORPO</strong>, on held-out rows: Log-prob per token of the chosen answer rose by 0.475; ";
    assert!(html.contains(chosen), "{html}");
    assert!(html.contains("rejected answer fell by 0.285"), "{html}");
    assert!(
        html.contains("SFT control</strong>") && html.contains("rejected answer rose by 0.285"),
        "{html}"
    );
}

#[test]
fn report_escapes_names_and_facts() {
    let mut report = report();
    report.title = "<i>title</i>".into();
    report.runs[0].name = "<i>run</i>".into();
    report.runs[1].name = "\"><i>control".into();
    report.facts.push(("<i>fact".into(), "<i>value\n<i>more".into()));
    let html = page(&report);
    assert!(!html.contains("<i>"));
    assert!(html.contains("data-label=\"&quot;&gt;&lt;i&gt;control\""));
}

#[test]
fn report_copes_with_little() {
    let html = page(&ReportPage::default());
    assert!(html.contains("No records") && html.ends_with("</html>\n"));

    // One run, one evaluation, values that are not numbers, steps out of order.
    let nan = record(&[("step", 2.0), ("loss", f64::NAN), ("eval_loss", f64::INFINITY)]);
    let late = record(&[("step", 3.0), ("loss", 1.0)]);
    let early = record(&[("step", 1.0), ("loss", 2.0)]);
    let eval = record(&[("step", 1.0), ("eval_nll_loss", 2.5)]);
    let run = RunCurves {
        name: "lm".into(),
        train: vec![nan.clone(), late, early],
        eval: vec![eval, nan],
    };
    let metrics = Loss::default().objective.metrics();
    let report =
        ReportPage { title: "t".into(), runs: vec![run], metrics, ..ReportPage::default() };
    let html = page(&report);
    assert_eq!(html.matches("<figure").count(), 2);
    assert!(html.contains("<b>2.000 \u{2192} 1.000</b>"), "{html}");
    assert!(!html.contains("NaN") && !html.contains("inf"));
}

#[test]
fn report_names_a_folder_it_cannot_write_to() {
    let folder = tempfile::tempdir().unwrap();
    let error = write_report(&folder.path().join("absent/report.html"), &report()).unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");
}
