use super::*;

#[test]
fn the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    truncate_after_step(&path, 3).unwrap();
    assert!(!path.exists());
    let record = |split, step: u64| {
        let figures = [("loss", 0.1 + step as f64), ("rewards/accuracies", 1.0)];
        MetricsRecord::new(split, step, step as f64 / 4.0, &figures)
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
    assert_eq!(
        (read[2].step, read[2].epoch, read[2].get("rewards/accuracies")),
        (2, 0.5, Some(1.0))
    );
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
    let mut names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [EVENTS, "metrics.jsonl"], "no temporary file is left");

    let damaged = b"{\"step\": 1}\n\0\0\0\nnot json \xff\n[2]\n{\"step\": 2}\n{\"step\": 3}\n{\"st";
    std::fs::write(&path, damaged).unwrap();
    let error = read_metrics(&path).unwrap_err().to_string();
    assert!(error.contains("metrics.jsonl") && error.contains("line 2"), "{error}");
    let aside = truncate_after_step(&path, 2).unwrap().unwrap();
    assert_eq!(steps(&path), [1, 2], "what is whole stays");
    assert_eq!(std::fs::read(aside).unwrap(), damaged, "nothing is lost");
    assert_eq!(truncate_after_step(&path, 2).unwrap(), None);
}
