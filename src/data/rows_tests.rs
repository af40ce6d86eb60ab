//! Every layout that must load, and every row that must not.

use super::*;
use std::io::Write;
use std::path::Path;

fn write(folder: &Path, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Reads rows given as JSON values, one line each.
fn read(rows: &[Value], options: &ReadOptions) -> Result<Rows> {
    let folder = tempfile::tempdir().unwrap();
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    read_preferences(&[write(folder.path(), "rows.jsonl", lines.join("\n"))], options)
}

fn one(row: Value) -> (Text, Text, Text) {
    let row = read(&[row], &ReadOptions::default()).unwrap().rows.remove(0);
    (row.prompt, row.chosen, row.rejected.unwrap())
}

fn refusal(row: Value) -> String {
    let text = read(&[row], &ReadOptions::default()).unwrap_err().to_string();
    assert!(text.contains("rows.jsonl:1: "), "{text}");
    text
}

fn plain(text: &str) -> Text {
    Text::Plain(text.into())
}

fn talk(turns: &[(&str, &str)]) -> Text {
    Text::Messages(turns.iter().map(|(role, text)| Message::new(*role, *text)).collect())
}

macro_rules! row {
    ($($json:tt)+) => { serde_json::json!({$($json)+}) };
}

#[test]
fn strings_are_taken_as_they_are() {
    let row = row!("prompt": "2+2=", "chosen": " 4", "rejected": " 5", "score": 0.5, "id": null);
    assert_eq!(one(row), (plain("2+2="), plain(" 4"), plain(" 5")));
}

#[test]
fn conversations_load_in_every_layout() {
    let user = serde_json::json!({"role": "user", "content": "Hi"});
    let yes = serde_json::json!({"role": "assistant", "content": "Yes"});
    let no = serde_json::json!({"role": "assistant", "content": [{"type": "text", "text": "No"}]});
    let wanted =
        (talk(&[("user", "Hi")]), talk(&[("assistant", "Yes")]), talk(&[("assistant", "No")]));
    let human = serde_json::json!([{"from": "human", "value": "Hi"}]);
    let gpt = |text: &str| serde_json::json!({"from": "gpt", "value": text});
    for row in [
        row!("prompt": [user], "chosen": [yes], "rejected": [no]),
        row!("prompt": [user], "chosen": [user, yes], "rejected": [user, no]),
        row!("prompt": [user], "chosen": "Yes", "rejected": "No"),
        row!("prompt": "Hi", "chosen": [user, yes], "rejected": [user, no], "messages": [user, yes]),
        row!("prompt": "Hi", "chosen": [yes], "rejected": [no]),
        row!("chosen": [user, yes], "rejected": [user, no]),
        row!("messages": [user, yes], "chosen": [user, yes], "rejected": [user, no]),
        row!("conversations": human, "chosen": gpt("Yes"), "rejected": gpt("No")),
        row!("question": "Hi", "system": "", "chosen": "Yes", "rejected": "No"),
    ] {
        assert_eq!(one(row.clone()), wanted, "{row}");
    }
    let system = ("system", "Be brief.");
    for row in [
        row!("question": "Hi", "system": "Be brief.", "chosen": "Yes", "rejected": "No"),
        row!("conversations": human, "system": "Be brief.", "chosen": gpt("Yes"), "rejected": gpt("No")),
    ] {
        assert_eq!(one(row).0, talk(&[system, ("user", "Hi")]));
    }
}

#[test]
fn instructions_and_inputs_are_prompts() {
    let prompt = |row: Value| one(row).0;
    for name in ["question", "instruction", "input"] {
        let mut row = row!("chosen": "a", "rejected": "b");
        row[name] = "Why?".into();
        assert_eq!(prompt(row), plain("Why?"));
    }
    let both = row!("instruction": "Add", "input": "1 2", "chosen": "3", "rejected": "4");
    assert_eq!(prompt(both), plain("Add\n1 2"));
    let blank = row!("instruction": "Add", "input": "", "chosen": "3", "rejected": "4");
    assert_eq!(prompt(blank), plain("Add"));
}

#[test]
fn transcripts_are_split_at_the_last_common_assistant_turn() {
    let start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Is é a letter?\n\nAssistant:";
    // The answers begin alike, even within a word and within a character's bytes.
    let row = row!("chosen": format!("{start} Yes: é"), "rejected": format!("{start} Yes: è"));
    assert_eq!(one(row), (plain(start), plain(" Yes: é"), plain(" Yes: è")));
    let shorter = row!("chosen": format!("{start} Yes"), "rejected": format!("{start} Yesterday"));
    assert_eq!(one(shorter), (plain(start), plain(" Yes"), plain(" Yesterday")));

    let earlier = row!(
        "chosen": "\n\nHuman: Hi\n\nAssistant: A\n\nHuman: so\n\nAssistant: B",
        "rejected": "\n\nHuman: Hi\n\nAssistant: C\n\nHuman: so\n\nAssistant: D"
    );
    assert!(refusal(earlier).contains("the prompts differ"));
    let other = row!("chosen": "\n\nHuman: Hi\n\nAssistant: A", "rejected": "\n\nHuman: Ho\n\nAssistant: A");
    assert!(refusal(other).contains("the prompts differ"));
    assert!(refusal(row!("chosen": "A", "rejected": "B")).contains("column \"prompt\" is missing"));
}

#[test]
fn unusable_rows_are_refused_with_a_reason() {
    let m = |role: &str, text: &str| serde_json::json!({"role": role, "content": text});
    for (row, reason) in [
        (
            row!("prompt": "a", "chosen": "b"),
            "column \"rejected\" is missing; the row has prompt, chosen",
        ),
        (row!("prompt": "a", "rejected": "b"), "column \"chosen\" is missing"),
        (row!("prompt": "a", "chosen": null, "rejected": "b"), "column \"chosen\" is missing"),
        (row!("prompt": "a", "chosen": 3, "rejected": "b"), "column \"chosen\" is a number"),
        (
            row!("prompt": true, "chosen": "c", "rejected": "b"),
            "column \"prompt\" is true or false",
        ),
        (row!("prompt": "a", "chosen": "b", "rejected": "b"), "chosen and rejected are identical"),
        (row!("prompt": "a", "chosen": " \n", "rejected": "b"), "chosen is empty"),
        (row!("prompt": "a", "chosen": "b", "rejected": ""), "rejected is empty"),
        (
            row!("prompt": [m("user", "a")], "chosen": [m("assistant", "b")], "rejected": [m("assistant", " ")]),
            "rejected is empty",
        ),
        (
            row!("prompt": [m("user", "a")], "chosen": [], "rejected": [m("assistant", "x")]),
            "chosen: the last message is user's",
        ),
        (
            row!("prompt": [m("user", "a"), m("user", "a")], "chosen": "b", "rejected": "c"),
            "roles are out of order: message 2 is user after user",
        ),
        (
            row!("prompt": [m("user", "a"), m("assistant", "a")], "chosen": "b", "rejected": "c"),
            "roles are out of order",
        ),
        (
            row!("prompt": [m("user", "a"), m("system", "s")], "chosen": "b", "rejected": "c"),
            "roles are out of order",
        ),
        (
            row!("prompt": [m("assistant", "a")], "chosen": "b", "rejected": "c"),
            "message 1 is assistant at the start",
        ),
        (
            row!("chosen": [m("user", "a")], "rejected": [m("user", "b")]),
            "the last message is user's",
        ),
        (row!("chosen": [], "rejected": []), "the last message is nothing's"),
        (
            row!("chosen": [m("user", "a"), m("assistant", "x")], "rejected": [m("user", "b"), m("assistant", "x")]),
            "the prompts differ",
        ),
        (
            row!("chosen": [m("user", "a"), m("assistant", "x")], "rejected": [m("user", "a"), m("assistant", "x")]),
            "identical",
        ),
        (
            row!("prompt": [m("user", "q")], "chosen": [m("user", "a"), m("assistant", "x")], "rejected": [m("user", "a"), m("assistant", "y")]),
            "the prompts differ",
        ),
        (row!("chosen": [m("narrator", "a")], "rejected": "x"), "role \"narrator\" is unknown"),
        (row!("chosen": [{"content": "a"}], "rejected": "x"), "message 1: it has no \"role\""),
        (row!("chosen": [{"role": "user"}], "rejected": "x"), "it has no \"content\""),
        (row!("chosen": ["a"], "rejected": "x"), "message 1: text is no message"),
        (
            row!("chosen": [m("user", "a"), m("assistant", "b")], "rejected": "x"),
            "rejected is text while chosen is a list",
        ),
        (
            row!("prompt": "a", "chosen": "b", "rejected": [m("assistant", "b")]),
            "rejected is a list of messages while chosen is text",
        ),
        (serde_json::json!([1]), "a row must be a JSON object, this is a number"),
    ] {
        let text = refusal(row.clone());
        assert!(text.contains(reason), "{row}\n{text}");
    }
}

#[test]
fn all_problems_are_reported_at_once_or_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let good = r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#;
    let mut bytes = format!("\u{feff}{good}\n\n{{\"prompt\": \n{good}\r\n").into_bytes();
    bytes.extend(b"{\"prompt\": \"\xff\"}\n{}\n");
    let path = write(folder.path(), "mixed.jsonl", bytes);
    let strict = ReadOptions::default();
    let text = read_preferences(std::slice::from_ref(&path), &strict).unwrap_err().to_string();
    for part in [
        "3 of 5 rows",
        "mixed.jsonl:3: not JSON",
        "mixed.jsonl:5: not UTF-8 (byte 13",
        "mixed.jsonl:6: ",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let lenient = ReadOptions { skip_bad_rows: true, ..strict };
    let rows = read_preferences(&[path], &lenient).unwrap();
    let lines: Vec<usize> = rows.rows.iter().map(|row| row.source.line).collect();
    assert_eq!((lines, rows.skipped.len()), (vec![1, 4], 3));
    let none = write(folder.path(), "none.jsonl", "{}\n");
    assert!(read_preferences(&[none], &lenient).unwrap_err().to_string().contains("no usable row"));
}

#[test]
fn columns_can_have_other_names() {
    let row = row!("ask": "a", "good": "b", "bad": "c", "chosen": 1);
    let names = [("prompt", "ask"), ("chosen", "good"), ("rejected", "bad")];
    let map = names.map(|(ours, theirs)| (ours.to_owned(), theirs.to_owned()));
    let options = ReadOptions { map: map.into(), ..ReadOptions::default() };
    let read_row = read(&[row], &options).unwrap().rows.remove(0);
    assert_eq!((read_row.prompt, read_row.chosen), (plain("a"), plain("b")));
    let text = read(&[row!("prompt": "a", "chosen": "b", "rejected": "c")], &options);
    let text = text.unwrap_err().to_string();
    assert!(text.contains("column \"ask\" (mapped to prompt) is missing"), "{text}");
    let unknown = ReadOptions { map: BTreeMap::from([("chose".into(), "x".into())]), ..options };
    assert!(read(&[], &unknown).unwrap_err().to_string().contains("data.map.chose: is no column"));
}

#[test]
fn rows_without_a_rejected_side_load_for_sft_only() {
    let options = ReadOptions { needs: Needs::Answer, ..ReadOptions::default() };
    let hi = serde_json::json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]);
    let talked = (talk(&[("user", "Hi")]), talk(&[("assistant", "Yes")]), None);
    let written = (plain("Hi"), plain("Yes"), None);
    for (row, wanted) in [
        (row!("messages": hi), &talked),
        (row!("chosen": hi), &talked),
        (row!("prompt": "Hi", "completion": "Yes"), &written),
        (row!("instruction": "Hi", "output": "Yes"), &written),
        (row!("prompt": "Hi", "chosen": "Yes", "rejected": null), &written),
    ] {
        let found = read(std::slice::from_ref(&row), &options).unwrap().rows.remove(0);
        assert_eq!(&(found.prompt, found.chosen, found.rejected), wanted, "{row}");
        assert!(read(&[row], &ReadOptions::default()).is_err());
    }
    let pair = row!("prompt": "Hi", "chosen": "Yes", "rejected": "No");
    assert_eq!(read(&[pair], &options).unwrap().rows[0].rejected, Some(plain("No")));
}

const LINES: &str = "{\"prompt\":\"a\",\"chosen\":\"b\",\"rejected\":\"c\"}\n{\"prompt\":\"d\",\"chosen\":\"e\",\"rejected\":\"f\"}\n";

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn every_kind_of_file_gives_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let array = format!("[{}]", LINES.trim_end().replace('\n', ",\n"));
    let files = [
        write(folder.path(), "a.jsonl", LINES),
        write(folder.path(), "b.json", &array),
        write(folder.path(), "c.json", LINES),
        write(folder.path(), "d.jsonl.gz", gzip(LINES)),
        write(folder.path(), "e.json.gz", gzip(&array)),
    ];
    for path in &files {
        let rows = read_preferences(std::slice::from_ref(path), &ReadOptions::default()).unwrap();
        let found: Vec<(String, Text)> =
            rows.rows.into_iter().map(|row| (row.source.to_string(), row.chosen)).collect();
        let place = |line| format!("{}:{line}", path.display());
        assert_eq!(found, [(place(1), plain("b")), (place(2), plain("e"))]);
    }
    // A folder: data files in order of name, no descriptions, nothing hidden.
    write(folder.path(), "README.md", "x");
    std::fs::create_dir(at("sub")).unwrap();
    write(&at("sub"), "f.jsonl", LINES);
    std::fs::create_dir(at(".cache")).unwrap();
    write(&at(".cache"), "g.jsonl", LINES);
    let all = read_preferences(&[folder.path().into()], &ReadOptions::default()).unwrap().rows;
    let names: Vec<_> = all.iter().step_by(2).map(|r| r.source.file.file_name().unwrap()).collect();
    assert_eq!(names, ["a.jsonl", "d.jsonl.gz", "e.json.gz", "f.jsonl"]);
}

#[test]
fn files_that_cannot_be_read_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut broken = gzip(&LINES.repeat(50));
    broken.truncate(broken.len() - 12);
    let cases = [
        (folder.path().join("absent.jsonl"), "absent.jsonl"),
        (write(folder.path(), "rows.csv", "a,b"), "cannot be told from its name"),
        (write(folder.path(), "cut.jsonl.gz", broken), "cannot be read further"),
        (write(folder.path(), "cut.json", "[{\"prompt\": "), "not a JSON array of rows"),
        (
            write(folder.path(), "latin.json", b"[\n\"\xe9\"]"),
            "latin.json (text line 2): not UTF-8",
        ),
        (
            write(folder.path(), "noise.parquet", b"PAR1 is not enough PAR1"),
            "not a readable Parquet file",
        ),
        (write(folder.path(), "empty.jsonl", ""), "no usable row"),
    ];
    for (path, part) in cases {
        let lenient = ReadOptions { skip_bad_rows: true, ..ReadOptions::default() };
        let text = read_preferences(&[path], &lenient).unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    }
    let empty = tempfile::tempdir().unwrap();
    let text = read_preferences(&[empty.path().into()], &ReadOptions::default()).unwrap_err();
    assert!(text.to_string().contains("the folder holds no data"));
    assert!(read_preferences(&[], &ReadOptions::default()).is_err());
}

/// Writes a Parquet file as the hub's are: optional strings, and messages as lists of structures.
fn write_parquet(path: &Path, compression: parquet::basic::Compression) {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    let schema = "message schema {
        optional binary prompt (UTF8);
        optional group chosen (LIST) { repeated group list { optional group element {
            optional binary content (UTF8); optional binary role (UTF8); } } }
        optional group rejected (LIST) { repeated group list { optional group element {
            optional binary content (UTF8); optional binary role (UTF8); } } }
        optional int64 score; }";
    let schema = parquet::schema::parser::parse_message_type(schema).unwrap();
    let compressed = WriterProperties::builder().set_compression(compression).build();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema.into(), compressed.into()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    // Two rows of two messages each; in a list the second entry repeats (repetition level 1).
    let columns: [&[&str]; 5] = [
        &["Hi", "Ho"],
        &["Hi", "Yes", "Ho", "Ja"],
        &["user", "assistant", "user", "assistant"],
        &["Hi", "No", "Ho", "Nein"],
        &["user", "assistant", "user", "assistant"],
    ];
    for values in columns {
        let values: Vec<ByteArray> = values.iter().map(|v| ByteArray::from(*v)).collect();
        let mut column = group.next_column().unwrap().unwrap();
        let (definition, repetition): (&[i16], Option<&[i16]>) =
            if values.len() == 2 { (&[1, 1], None) } else { (&[4; 4], Some(&[0, 1, 0, 1])) };
        column.typed::<ByteArrayType>().write_batch(&values, Some(definition), repetition).unwrap();
        column.close().unwrap();
    }
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<parquet::data_type::Int64Type>().write_batch(&[7], Some(&[1, 0]), None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn parquet_rows_load() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train-00000.parquet");
    use parquet::basic::Compression::{self, LZ4, LZ4_RAW, SNAPPY, UNCOMPRESSED};
    let (gzip, brotli) =
        (Compression::GZIP(Default::default()), Compression::BROTLI(Default::default()));
    let zstd = Compression::ZSTD(Default::default());
    for compression in [gzip, brotli, zstd, LZ4, LZ4_RAW, UNCOMPRESSED, SNAPPY] {
        write_parquet(&path, compression);
        let rows = read_preferences(std::slice::from_ref(&path), &ReadOptions::default());
        assert_eq!(rows.unwrap().rows.len(), 2, "{compression}");
    }
    let rows = read_preferences(std::slice::from_ref(&path), &ReadOptions::default()).unwrap().rows;
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[1].prompt, talk(&[("user", "Ho")]));
    assert_eq!(rows[1].chosen, talk(&[("assistant", "Ja")]));
    assert_eq!(rows[0].rejected, Some(talk(&[("assistant", "No")])));
    assert_eq!(rows[1].source, Source { file: path.clone(), line: 2 });
    // No damage to the file may end the program.
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        std::fs::write(&path, &damaged).unwrap();
        let _ = read_preferences(std::slice::from_ref(&path), &ReadOptions::default());
    }
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(read_preferences(&[path], &ReadOptions::default()).is_err());
}

#[test]
fn documents_load_from_text_and_from_rows() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.txt", "\u{feff}Once upon\na time");
    write(folder.path(), "b.txt", " \n");
    write(
        folder.path(),
        "c.jsonl",
        "{\"text\": \"x\"}\n{\"text\": \"\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}\n",
    );
    let texts = read_texts(&[folder.path().into()]).unwrap();
    let found: Vec<(usize, Text)> = texts.into_iter().map(|(s, t)| (s.line, t)).collect();
    let wanted = [(1, plain("Once upon\na time")), (1, plain("x")), (3, talk(&[("user", "Hi")]))];
    assert_eq!(found, wanted);
    let bad = write(folder.path(), "bad.jsonl", "{\"txt\": \"x\"}\n{\"text\": 3}\n");
    let latin = write(folder.path(), "latin.txt", b"a\n\xe9");
    let text = read_texts(&[bad, latin]).unwrap_err().to_string();
    for part in [
        "bad.jsonl:1: neither column",
        "bad.jsonl:2: column \"text\" is a number",
        "latin.txt:2: not UTF-8",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn keys_of_messages_and_tools_are_kept() {
    let call = serde_json::json!([{"function": {"name": "f", "arguments": {"z": 1, "a": null}}}]);
    let tools = serde_json::json!([{"name": "f"}]);
    let asked = serde_json::json!({"role": "user", "content": "Hi", "name": "Ann", "id": null});
    let calling = serde_json::json!({"role": "assistant", "content": null, "tool_calls": call});
    let told = serde_json::json!({"role": "ipython", "content": "4"});
    let yes = serde_json::json!({"role": "assistant", "content": "Yes", "thinking": "hm"});
    let no = serde_json::json!({"role": "assistant", "content": "Yes"});
    let row = row!("prompt": [asked, calling, told], "chosen": [yes], "rejected": [no],
                   "tools": tools.to_string(), "chat_template_kwargs": {"loud": true});
    let read_row = read(&[row], &ReadOptions::default()).unwrap().rows.remove(0);
    let Text::Messages(prompt) = &read_row.prompt else { panic!("a conversation") };
    assert_eq!(prompt[0].fields.keys().collect::<Vec<_>>(), ["name"]);
    assert_eq!((&prompt[1].content, &prompt[1].fields["tool_calls"]), (&None, &call));
    assert_eq!(prompt[2].role, "ipython");
    assert_eq!(read_row.given, *row!("tools": tools, "loud": true).as_object().unwrap());
    assert_ne!(Some(&read_row.chosen), read_row.rejected.as_ref());
}

#[test]
fn what_a_row_says_is_used_or_refused_by_name() {
    let history = row!("instruction": "And in French?", "input": "",
        "history": [["Say hello.", "Hello."]], "chosen": "Bonjour.", "rejected": "Hola.");
    let turns = [("user", "Say hello."), ("assistant", "Hello."), ("user", "And in French?")];
    assert_eq!(one(history).0, talk(&turns));
    let context = row!("instruction": "How old is Ann?", "context": "Ann is nine.",
        "chosen": "Nine.", "rejected": "Ten.");
    assert_eq!(one(context).0, plain("How old is Ann?\nAnn is nine."));
    let base = row!("prompt": "a", "chosen": "b", "rejected": "c");
    for (name, value) in [
        ("context", serde_json::json!("x")),
        ("images", serde_json::json!(["a.png"])),
        ("thinking", serde_json::json!("x")),
        ("tool_calls", serde_json::json!([1])),
    ] {
        let mut row = base.clone();
        row[name] = value;
        let text = refusal(row);
        assert!(text.contains(&format!("column \"{name}\" says something")), "{text}");
    }
    let mut tools = base.clone();
    tools["tools"] = serde_json::json!([{"name": "f"}]);
    let weighted = row!("prompt": "a", "rejected": "c",
        "chosen": [{"role": "assistant", "content": "b", "weight": 0}]);
    assert!(refusal(weighted).contains("\"weight\": 0"));
    assert!(matches!(one(tools).0, Text::Messages(_)), "tools need a template");
    // Empty columns say nothing.
    let mut empty = base;
    empty["images"] = serde_json::json!([]);
    assert_eq!(one(empty).0, plain("a"));
}

#[test]
fn a_file_has_one_form_and_its_unused_columns_are_named_once() {
    let with = row!("question": "a", "system": "S", "chosen": "b", "rejected": "c", "score": 1);
    let without = row!("question": "d", "system": null, "chosen": "e", "rejected": "f", "id": "x");
    let found = read(&[with.clone(), without.clone()], &ReadOptions::default()).unwrap();
    assert_eq!(found.rows[1].prompt, talk(&[("user", "d")]));
    assert_eq!(found.rows[1].rejected, Some(talk(&[("assistant", "f")])));
    assert_eq!(found.notes.len(), 1);
    let note = &found.notes[0];
    assert!(note.contains("2 rows, conversations (plain rows among them"), "{note}");
    assert!(note.ends_with("columns not used: id, score"), "{note}");
    let alone = read(&[without], &ReadOptions::default()).unwrap();
    assert_eq!(alone.rows[0].prompt, plain("d"));
    assert!(alone.notes[0].contains("1 rows, plain text"), "{:?}", alone.notes);
    let transcript = row!("chosen": "\n\nHuman: Hi\n\nAssistant: A", "rejected": "\n\nHuman: Hi\n\nAssistant: B");
    let mixed = read(&[with, transcript], &ReadOptions::default()).unwrap_err().to_string();
    assert!(mixed.contains("rows.jsonl:2: is a transcript"), "{mixed}");
}

#[test]
fn a_conversation_beside_its_first_question_is_the_row() {
    let hi = serde_json::json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]);
    let options = ReadOptions { needs: Needs::Answer, ..ReadOptions::default() };
    let row = row!("prompt": "Hi", "prompt_id": "x1", "messages": hi);
    let found = read(&[row], &options).unwrap();
    assert_eq!(found.rows[0].chosen, talk(&[("assistant", "Yes")]));
    assert!(found.notes[0].ends_with("columns not used: prompt, prompt_id"), "{:?}", found.notes);
}

#[test]
fn a_folder_is_read_by_split() {
    let folder = tempfile::tempdir().unwrap();
    let names = |split| -> std::result::Result<Vec<String>, String> {
        let options = ReadOptions { split, ..ReadOptions::default() };
        let rows =
            read_preferences(&[folder.path().into()], &options).map_err(|e| e.to_string())?;
        let name = |r: &PreferenceRow| r.source.file.file_name().unwrap().to_string_lossy().into();
        Ok(rows.rows.iter().step_by(2).map(name).collect())
    };
    write(folder.path(), "train-00000-of-00001.jsonl", LINES);
    write(folder.path(), "test-00000-of-00001.jsonl", LINES);
    std::fs::create_dir(folder.path().join("data")).unwrap();
    write(&folder.path().join("data"), "training_2.jsonl", LINES);
    assert_eq!(names(Split::Train).unwrap(), ["training_2.jsonl", "train-00000-of-00001.jsonl"]);
    assert_eq!(names(Split::Validation).unwrap(), ["test-00000-of-00001.jsonl"]);
    write(folder.path(), "dev.jsonl", LINES);
    assert_eq!(names(Split::Validation).unwrap(), ["dev.jsonl"]);
    let notes = read_preferences(&[folder.path().into()], &ReadOptions::default()).unwrap().notes;
    assert!(notes[0].contains("left out: dev.jsonl, test-00000-of-00001.jsonl"), "{notes:?}");
    write(folder.path(), "train_sft-00000-of-00001.jsonl", LINES);
    assert!(names(Split::Train).unwrap_err().contains("several splits (train, train_sft)"));
    write(folder.path(), "more.jsonl", LINES);
    let mixed = names(Split::Train).unwrap_err();
    assert!(mixed.contains("some do not (more.jsonl); name the files"), "{mixed}");
    let only = tempfile::tempdir().unwrap();
    write(only.path(), "test.jsonl", LINES);
    let text = read_preferences(&[only.path().into()], &ReadOptions::default()).unwrap_err();
    assert!(text.to_string().contains("none of its files is of the split wanted"), "{text}");
}

#[test]
fn files_of_other_tools_load_or_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let read = |path: PathBuf| {
        read_preferences(&[path], &ReadOptions::default())
            .map(|rows| rows.rows)
            .map_err(|e| e.to_string())
    };
    let rows: Vec<Value> = LINES.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let pretty: String = rows.iter().map(|row| format!("{row:#}\n")).collect();
    for (name, text) in [
        ("pretty.json", pretty.clone()),
        ("pretty.jsonl", pretty),
        ("array.jsonl", format!("{:#}", Value::from(rows))),
    ] {
        let found = read(write(folder.path(), name, text)).unwrap();
        assert_eq!(
            (found.len(), found[1].source.line, &found[1].chosen),
            (2, 2, &plain("e")),
            "{name}"
        );
    }
    // Python's NaN, in a column that is not read and in one that is.
    let nan =
        r#"{"s": [NaN, -Infinity, Infinity], "prompt": "NaN", "chosen": "b", "rejected": "c"}"#;
    for (name, text) in [("nan.jsonl", nan.to_owned()), ("nan.json", format!("[\n{nan}]"))] {
        assert_eq!(read(write(folder.path(), name, text)).unwrap()[0].prompt, plain("NaN"));
    }
    let used = write(folder.path(), "used.jsonl", nan.replace("\"NaN\"", "NaN"));
    assert!(
        read(used).unwrap_err().contains("column \"prompt\" is a value that JSON does not have")
    );
    let saved = tempfile::tempdir().unwrap();
    write(saved.path(), "dataset_info.json", "{}");
    write(saved.path(), "data-00000-of-00001.arrow", "ARROW1");
    assert!(read(saved.path().into()).unwrap_err().contains("datasets.save_to_disk"));
}

#[test]
fn rows_without_an_end_are_refused_with_bounded_memory() {
    let folder = tempfile::tempdir().unwrap();
    let bomb = |start: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(start.as_bytes()).unwrap();
        (0..40).for_each(|_| encoder.write_all(&vec![b'x'; 1 << 20]).unwrap());
        encoder.finish().unwrap()
    };
    for (name, start) in [("line.jsonl.gz", ""), ("array.json.gz", "[{\"a\": \"")] {
        let path = write(folder.path(), name, bomb(start));
        let text = read_preferences(&[path], &ReadOptions::default()).unwrap_err().to_string();
        assert!(text.contains("longer than 32 MiB"), "{text}");
    }
    let many = write(folder.path(), "many.jsonl", "{}\n".repeat(MOST_BAD + 5));
    let text = read_preferences(&[many], &ReadOptions::default()).unwrap_err().to_string();
    assert!(text.contains("reading stopped") && text.len() < 10_000, "{text}");
    let key = format!("{{\"{}\\u001b\": 1}}", "k".repeat(1 << 20));
    let text = read_preferences(&[write(folder.path(), "key.jsonl", key)], &ReadOptions::default());
    let text = text.unwrap_err().to_string();
    assert!(text.len() < 2_000 && !text.contains('\u{1b}'), "{}", text.len());
}

#[test]
fn labels_are_read_where_they_are_asked_for() {
    let options = ReadOptions { needs: Needs::Label, ..ReadOptions::default() };
    let labelled = |label: Value| {
        let row = row!("prompt": "Hi", "completion": "Yes", "label": label);
        let found = read(std::slice::from_ref(&row), &options);
        found.map(|found| found.rows[0].desirable).map_err(|e| e.to_string())
    };
    for yes in [true.into(), 1.into(), 1.0.into(), "true".into(), " Desirable".into()] {
        assert_eq!(labelled(yes), Ok(Some(true)));
    }
    for no in [false.into(), 0.into(), (-1).into(), "False".into(), "0".into(), "no".into()] {
        assert_eq!(labelled(no), Ok(Some(false)));
    }
    for other in [2.into(), 0.5.into(), "maybe".into(), serde_json::json!([true])] {
        let error = labelled(other.clone()).unwrap_err();
        let want = format!("column \"label\" is {other}, not true or false");
        assert!(error.contains(&want), "{want}: {error}");
    }
    let refused =
        |row: Value, options: &ReadOptions| read(&[row], options).unwrap_err().to_string();
    let without = row!("prompt": "Hi", "completion": "Yes", "label": null);
    assert!(refused(without, &options).contains("column \"label\" is missing"));
    let without = row!("prompt": "Hi", "label": true);
    let error = refused(without, &options);
    assert!(error.contains("column \"completion\" is missing"), "{error}");
    let mapped = ReadOptions { map: [("label".into(), "liked".into())].into(), ..options.clone() };
    let row = row!("prompt": "Hi", "completion": "Yes", "liked": 0);
    assert_eq!(read(&[row], &mapped).unwrap().rows[0].desirable, Some(false));
    // Messages, and the last of a conversation, are answers too.
    let list = serde_json::json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]);
    let rows = [
        row!("messages": list, "label": true),
        row!("prompt": [list[0]], "completion": [list[1]], "label": false),
    ];
    let found = read(&rows, &options).unwrap().rows;
    assert_eq!(found[0].desirable, Some(true));
    assert_eq!((&found[1].prompt, &found[1].chosen), (&found[0].prompt, &found[0].chosen));
    // For SFT the column says nothing, and to be judged by it may.
    let row = row!("prompt": "Hi", "completion": "Yes", "label": false);
    let kinds = [(Needs::Answer, None), (Needs::Judgement, Some(false))];
    for (needs, want) in kinds {
        let options = ReadOptions { needs, ..ReadOptions::default() };
        let found = read(std::slice::from_ref(&row), &options).unwrap();
        assert_eq!(found.rows[0].desirable, want);
        assert_eq!(found.notes[0].contains("not used: label"), want.is_none());
        let odd = row!("prompt": "Hi", "completion": "Yes", "label": "poem");
        assert_eq!(read(&[odd], &options).unwrap().rows[0].desirable, None);
    }
}

#[test]
fn a_pair_is_two_labelled_rows() {
    let options = ReadOptions { needs: Needs::Label, ..ReadOptions::default() };
    let rows = [
        row!("prompt": "a", "chosen": "b", "rejected": "c"),
        row!("prompt": "d", "completion": "e", "label": 0),
        row!("prompt": "f", "chosen": "g", "rejected": "h", "label": "any"),
    ];
    let found = read(&rows, &options).unwrap();
    let all: Vec<_> = found
        .rows
        .iter()
        .map(|r| (r.chosen.clone(), r.rejected.clone(), r.desirable.unwrap(), r.source.line))
        .collect();
    let row = |answer: &str, label, line| (plain(answer), None, label, line);
    let want = [
        row("b", true, 1),
        row("e", false, 2),
        row("g", true, 3),
        row("c", false, 1),
        row("h", false, 3),
    ];
    assert_eq!(all, want);
    assert!(found.notes[0].contains("5 rows"), "{:?}", found.notes);
    assert!(found.notes[1].contains("2 pairs are 4 rows"), "{:?}", found.notes);
}
