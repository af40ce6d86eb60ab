//! `oddgrad data check`: what it says of rows is what training would do with them.

use crate::place::Place;

const MODEL: &str = "--model model";

#[test]
fn rows_are_counted_measured_and_shown() {
    let p = Place::new();
    let row = |prompt: &str, chosen: &str, rejected: &str| {
        serde_json::json!({"prompt": prompt, "chosen": chosen, "rejected": rejected}).to_string()
    };
    let long = "word ".repeat(60);
    let rows = [
        row("Say it.", " Yes.", " No."),
        row("Say more.", " Of course, at once.", " Never."),
        row("Say it.", " Yes.", " No."),
        row(&long, " Yes.", " No."),
        row("Say it.", &long, " No."),
    ];
    p.write("rows.jsonl", rows.join("\n"));
    let check = format!("data check rows.jsonl {MODEL} --max-length 64");
    let found = p.run(&check);
    assert_eq!(found.code, Some(0), "{}", found.err);
    for part in [
        "rows       5 read, 5 usable, 0 refused",
        "5 with a rejected side, 0 without",
        "drop       at 64 tokens: 3 rows kept, 2 chosen too long, 1 rejected too long, 2 rows dropped as too long",
        "truncate-prompt at 64 tokens: 4 rows kept",
        "truncate-response at 64 tokens: 4 rows kept",
        "duplicates 1 rows are an earlier one",
        "rows.jsonl:3 is rows.jsonl:1",
        "appended to 5 chosen and 5 rejected",
        "rows.jsonl:1\n  chosen",
    ] {
        assert!(found.out.contains(part), "`{part}` is missing: {}", found.out);
    }
    // What stands between the marks is the answer with its end.
    assert!(found.out.contains("Say it.⟦ Yes."), "{}", found.out);
    // Training keeps as many.
    let trained = p.run(
        "train r.toml --set data.train=rows.jsonl --set data.max_length=64 --set train.max_steps=1",
    );
    assert_eq!(trained.code, Some(0), "{}", trained.err);
    assert!(
        trained.out.contains("3 rows kept") || trained.err.contains("3 rows kept"),
        "{}{}",
        trained.out,
        trained.err
    );
}

#[test]
fn what_is_refused_is_named_with_its_line() {
    let p = Place::new();
    p.write(
        "rows.jsonl",
        "{\"prompt\": \"a\", \"chosen\": \" b\", \"rejected\": \" c\"}\nnot JSON\n{\"prompt\": \"a\", \"chosen\": \" b\", \"rejected\": \" b\"}\n{\"prompt\": \"a\", \"chosen\": \" b\"}\n",
    );
    let found = p.run(&format!("data check rows.jsonl {MODEL}"));
    assert_eq!(found.code, Some(1), "{}", found.out);
    assert!(found.out.contains("4 read, 1 usable, 3 refused"), "{}", found.out);
    for part in [
        "3 of 4 rows cannot be used",
        "rows.jsonl:2: ",
        "rows.jsonl:3: chosen and rejected are identical",
        "rows.jsonl:4: column \"rejected\" is missing",
    ] {
        assert!(found.err.contains(part), "`{part}` is missing: {}", found.err);
    }
    let answers = p.run(&format!("data check rows.jsonl {MODEL} --sft"));
    assert!(answers.out.contains("4 read, 2 usable, 2 refused"), "{}{}", answers.out, answers.err);
    p.refused(&format!("data check nowhere.jsonl {MODEL}"), &["nowhere.jsonl"]);
    p.refused("data check rows.jsonl --model nowhere", &["nowhere"]);
    p.refused(
        &format!("data check rows.jsonl {MODEL} --map good=x"),
        &["data.map.good", "no column to map"],
    );
}

#[test]
fn comparisons_that_prefer_nothing_are_left_out_by_name() {
    let p = Place::new();
    let decided =
        "{\"prompt\": \"a\", \"chosen\": \" b\", \"rejected\": \" c\", \"choice\": \"first\"}\n";
    let undecided = |choice: &str| {
        format!("{{\"prompt\": \"a\", \"answers\": [\" b\", \" c\"], \"choice\": \"{choice}\"}}\n")
    };
    let (tie, skip) = (undecided("tie"), undecided("skip"));
    p.write("rows.jsonl", format!("{tie}{}{tie}{skip}", decided.repeat(4)));
    let found = p.run(&format!("data check rows.jsonl {MODEL}"));
    assert_eq!(found.code, Some(0), "{}", found.err);
    assert!(found.out.contains("4 read, 4 usable, 0 refused"), "{}", found.out);
    assert!(found.out.contains("2 ties and 1 skip left out"), "{}", found.out);
    let trained = p.run("train r.toml --set train.max_steps=1");
    assert_eq!(trained.code, Some(0), "{}", trained.err);
    let said = format!("{}{}", trained.out, trained.err);
    assert!(said.contains("4 rows, plain text") && said.contains("2 ties and 1 skip"), "{said}");
    p.write("rows.jsonl", format!("{tie}{skip}"));
    let left = "1 tie and 1 skip left out";
    p.refused(&format!("data check rows.jsonl {MODEL}"), &["there is no row", left]);
    p.refused("train r.toml --set output=other", &["no usable row in rows.jsonl", left]);
}

/// Rows of several chunks, which become tokens on all cores, are counted and named in their order.
#[test]
fn many_rows_are_counted_in_their_order() {
    let p = Place::new();
    let row = |n: usize| {
        let bad = n.is_multiple_of(2000);
        let rejected = if bad { "Yes" } else { "No" };
        serde_json::json!({
            "prompt": format!("Say {n}, if you please"), "chosen": format!(" Yes, {n}."),
            "rejected": format!(" {rejected}, {n}."),
        })
        .to_string()
    };
    let mut rows: Vec<String> = (1..=9000).map(row).collect();
    rows[4499] = "not JSON".into();
    rows[8999] = rows[1].clone();
    p.write("rows.jsonl", rows.join("\n"));
    let found = p.run(&format!("data check rows.jsonl {MODEL} --max-length 64"));
    assert_eq!(found.code, Some(1), "{}", found.out);
    for part in [
        "9000 read, 8995 usable, 5 refused",
        "drop       at 64 tokens: 8995 rows kept",
        "duplicates 1 rows are an earlier one",
        "rows.jsonl:9000 is rows.jsonl:2",
        "rows.jsonl:1\n  chosen",
    ] {
        assert!(found.out.contains(part), "`{part}` is missing: {}", found.out);
    }
    let at = |line: usize| found.err.find(&format!("rows.jsonl:{line}: ")).unwrap();
    assert!(at(2000) < at(4000) && at(4000) < at(6000) && at(6000) < at(8000), "{}", found.err);
    at(4500);
}

/// Exports of tools for feedback are trained on as they are, and converted to rows of one layout.
#[test]
fn exports_of_other_tools_are_rows() {
    let p = Place::new();
    let pairwise = |side: &str| {
        serde_json::json!({"data": {"prompt": "Say it.", "text1": "Yes.", "text2": "No."}, "annotations": [{"completed_by": 3,
            "result": [{"type": "pairwise", "value": {"selected": side}}]}]})
    };
    let skipped = serde_json::json!({"data": {"prompt": "Say it.", "text1": "Yes.", "text2": "No."}, "annotations": []});
    let tasks = serde_json::json!([pairwise("left"), pairwise("right"), skipped]);
    p.write("tasks.json", serde_json::to_string_pretty(&tasks).unwrap());
    let rated = |ratings: [u32; 2]| serde_json::json!({"instruction": "Say it.", "generations": ["Yes.", "No."], "ratings": ratings});
    p.write("rated.jsonl", format!("{}\n{}\n", rated([1, 5]), rated([2, 2])));
    let messages = serde_json::json!({
        "q": {"id": "q", "parentId": null, "role": "user", "content": "Say it."},
        "a": {"id": "a", "parentId": "q", "role": "assistant", "content": "Yes.", "annotation": {"rating": 1}},
    });
    let chats = serde_json::json!([{"chat": {"history": {"messages": messages}}}]);
    p.write("chats.json", chats.to_string());

    let trained = p.run(
        "train r.toml --untuned --set data.train=[\"tasks.json\",\"rated.jsonl\"] --set train.max_steps=1",
    );
    assert_eq!(trained.code, Some(0), "{}", trained.err);
    for part in [
        "2 rows, plain text, no chat template; 1 skip left out",
        "1 rows, plain text, no chat template; 1 tie left out",
    ] {
        assert!(trained.err.contains(part), "{part}: {}", trained.err);
    }
    let done = p.run("data convert tasks.json rated.jsonl chats.json --out all.jsonl");
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert!(
        done.out.contains(
            "3 rows with an answer that is preferred or labelled, 1 ties, 1 skips, 1 ratings"
        ),
        "{}",
        done.out
    );
    let text = std::fs::read_to_string(p.path("all.jsonl")).unwrap();
    let rows: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        rows[0],
        serde_json::json!({"prompt": "Say it.", "chosen": "Yes.", "rejected": "No.", "who": "3"})
    );
    assert_eq!((&rows[3]["chosen"], &rows[3]["margin"]), (&"No.".into(), &serde_json::json!(4.0)));
    assert_eq!((&rows[5]["label"], &rows[5]["choice"]), (&true.into(), &"alone".into()));
    // What was written is read again, to the same rows.
    let again = p.run("data convert all.jsonl --out again.jsonl");
    assert_eq!(again.code, Some(0), "{}", again.err);
    assert_eq!(std::fs::read_to_string(p.path("again.jsonl")).unwrap(), text);
    let checked = p.run("data check all.jsonl --model model");
    assert!(
        checked.out.contains("1 tie and 1 skip and 1 rating of a single answer left out"),
        "{}",
        checked.out
    );
    p.refused("data convert tasks.json --out tasks.json", &["must end in .jsonl"]);
    p.write("bad.jsonl", "{\"prompt\": \"a\"}\n{\"instruction\": \"a\", \"generations\": [\"b\"], \"ratings\": [1]}\n");
    p.refused(
        "data convert bad.jsonl --out x.jsonl",
        &["bad.jsonl:1", "bad.jsonl:2", "fewer than two"],
    );
}
