//! Tokenization against TRL's (recorded in `tests/golden/tokenize`), and where it differs from
//! TRL's on purpose.

use super::*;
use crate::data::bpe::{CHAT_TOKENS, CHATML};
use crate::data::rows::{ReadOptions, read_preferences};
use std::path::PathBuf;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// The families share one vocabulary and differ in special tokens and template.
fn tokenizer(family: &str) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let from = golden("tokenize");
    std::fs::copy(from.join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    for entry in std::fs::read_dir(from.join(family)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    Tokenizer::from_folder(folder.path()).unwrap()
}

fn rows(name: &str) -> Vec<PreferenceRow> {
    let path = golden("data").join(format!("{name}.jsonl"));
    read_preferences(&[path], &ReadOptions::default()).unwrap().rows
}

fn trl(max_length: usize) -> TokenizeOptions {
    TokenizeOptions { max_length, over_length: OverLength::TruncateResponse, eos: EosRule::Trl }
}

fn labels(sequence: &Sequence) -> Vec<i64> {
    let ids = sequence.ids.iter().enumerate();
    ids.map(|(t, &id)| if t < sequence.response_start { -100 } else { i64::from(id) }).collect()
}

/// Compares one recorded file; returns the rows that TRL left without any answer.
fn compare(family: &str, data: &str, max_length: usize) -> Vec<usize> {
    let path = golden("tokenize").join(format!("{family}__{data}__max{max_length}.json"));
    let recorded: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let list = |row: &Value, key: &str| -> Vec<i64> {
        row[key].as_array().unwrap().iter().map(|x| x.as_i64().unwrap()).collect()
    };
    let tokenizer = tokenizer(family);
    for (key, id) in [("bos", tokenizer.bos()), ("eos", tokenizer.eos())] {
        assert_eq!(recorded[key].as_u64(), id.map(u64::from), "{key}");
    }
    let rows = rows(data);
    let recorded = recorded["rows"].as_array().unwrap();
    assert_eq!(rows.len(), recorded.len());
    let mut without_answer = Vec::new();
    for (i, (row, wanted)) in rows.iter().zip(recorded).enumerate() {
        assert_eq!(tokenizer.rendered(row).unwrap().prompt, wanted["prompt"].as_str().unwrap());
        let sides = ["chosen", "rejected"];
        let empty = sides.map(|s| list(wanted, &format!("{s}_labels")).iter().all(|&x| x == -100));
        let example = tokenizer.example(i, row, &trl(max_length)).unwrap();
        if empty.contains(&true) {
            assert_eq!(example, None, "row {i}: no room for an answer");
            // Up to the answer TRL's ids are ours all the same.
            let whole = tokenizer.example(i, row, &trl(10_000)).unwrap().unwrap();
            let ids = list(wanted, "chosen_input_ids");
            assert_eq!(ids.len(), whole.chosen.response_start);
            assert!(
                whole.chosen.ids.iter().map(|&id| i64::from(id)).zip(&ids).all(|(a, b)| a == *b)
            );
            without_answer.push(i);
            continue;
        }
        let example = example.unwrap();
        assert_eq!(example.row, i);
        for (side, name) in
            [(&example.chosen, "chosen"), (example.rejected.as_ref().unwrap(), "rejected")]
        {
            let ids: Vec<i64> = side.ids.iter().map(|&id| i64::from(id)).collect();
            assert_eq!(ids, list(wanted, &format!("{name}_input_ids")), "row {i} {name}");
            assert_eq!(labels(side), list(wanted, &format!("{name}_labels")), "row {i} {name}");
        }
    }
    without_answer
}

#[test]
fn ids_and_labels_are_those_of_trl() {
    let none: [usize; 0] = [];
    assert_eq!(compare("gpt2", "prefs_plain", 128), none);
    assert_eq!(compare("llama_tied", "prefs_plain", 128), none);
    // Row 17's prompt alone is longer than max_length; TRL trains on it without an answer.
    assert_eq!(compare("llama_tied", "prefs_plain", 48), [17]);
    assert_eq!(compare("llama_tied", "prefs_chat", 128), [17]);
    assert_eq!(compare("tok_smol", "prefs_chat", 128), [17]);
}

#[test]
fn implicit_rows_give_the_same_examples_as_explicit_ones() {
    let tokenizer = tokenizer("llama_tied");
    let options = TokenizeOptions::default();
    let explicit = tokenizer.examples(&rows("prefs_chat"), &options, false).unwrap();
    let implicit = tokenizer.examples(&rows("prefs_chat_implicit"), &options, false).unwrap();
    assert_eq!(explicit.examples.len(), 32);
    assert_eq!(explicit.examples, implicit.examples);
}

#[test]
fn an_end_written_by_the_template_is_not_written_twice() {
    let tokenizer = tokenizer("tok_smol");
    let eos = tokenizer.eos().unwrap();
    let newline = tokenizer.encode("\n").unwrap();
    for row in &rows("prefs_chat") {
        let long = TokenizeOptions { max_length: 10_000, ..TokenizeOptions::default() };
        let ours = tokenizer.example(0, row, &long).unwrap().unwrap().chosen;
        let trl = tokenizer.example(0, row, &trl(10_000)).unwrap().unwrap().chosen;
        let answer = &ours.ids[ours.response_start..];
        assert_eq!(answer.iter().filter(|&&id| id == eos).count(), 1);
        assert_eq!(answer.last(), Some(&eos));
        let second_end = [newline.as_slice(), &[eos]].concat();
        assert_eq!([ours.ids.as_slice(), &second_end].concat(), trl.ids);
    }
    // An answer that does not end with EOS gets one, whatever white space it ends with.
    let llama = self::tokenizer("llama_tied");
    let example = llama.example(0, &rows("prefs_chat")[0], &TokenizeOptions::default());
    let ids = example.unwrap().unwrap().chosen.ids;
    let text = llama.decode(&ids[ids.len() - 3..], false).unwrap();
    assert_eq!(text, "<|im_end|>\n</s>");
}

fn plain_row(prompt: &str, chosen: &str, rejected: &str) -> PreferenceRow {
    PreferenceRow {
        source: Source { file: "pairs.jsonl".into(), line: 12 },
        prompt: Text::Plain(prompt.into()),
        chosen: Text::Plain(chosen.into()),
        rejected: Some(Text::Plain(rejected.into())),
        desirable: None,
        given: Map::new(),
    }
}

#[test]
fn a_merge_across_the_prompts_end_belongs_to_the_answer() {
    let tokenizer = tokenizer("llama_tied");
    let row = plain_row("Question: ", "answer", " answer");
    let example = tokenizer.example(0, &row, &TokenizeOptions::default()).unwrap().unwrap();
    let rejected = example.rejected.unwrap();
    assert_eq!(example.chosen.response_start + 1, rejected.response_start);
    let answer = |s: &Sequence| tokenizer.decode(&s.ids[s.response_start..], true).unwrap();
    assert_eq!(
        (answer(&example.chosen).as_str(), answer(&rejected).as_str()),
        (" answer", " answer")
    );
    assert_eq!(tokenizer.decode(&example.chosen.ids, true).unwrap(), "Question: answer");
}

#[test]
fn a_begin_token_is_added_once() {
    let tokenizer = tokenizer("llama_tied");
    let bos = tokenizer.bos().unwrap();
    for prompt in ["Hello", "<s>Hello"] {
        let row = plain_row(prompt, " you", " there");
        let chosen =
            tokenizer.example(0, &row, &TokenizeOptions::default()).unwrap().unwrap().chosen;
        assert_eq!(chosen.ids.iter().filter(|&&id| id == bos).count(), 1);
        assert_eq!(chosen.ids[0], bos);
        assert_eq!(tokenizer.decode(&chosen.ids[chosen.response_start..], true).unwrap(), " you");
    }
}

#[test]
fn long_rows_are_dropped_and_counted_by_default() {
    let tokenizer = tokenizer("llama_tied");
    let rows = rows("prefs_plain");
    let long = TokenizeOptions { max_length: 10_000, ..TokenizeOptions::default() };
    let all = tokenizer.examples(&rows, &long, false).unwrap();
    assert_eq!(all.counts, Counts { kept: 32, ..Counts::default() });
    let over = |side: fn(&Example) -> &Sequence| {
        all.examples.iter().filter(|e| side(e).ids.len() > 48).count()
    };
    let options = TokenizeOptions { max_length: 48, ..long };
    let kept = tokenizer.examples(&rows, &options, false).unwrap();
    assert_eq!(kept.counts.long_chosen, over(|e| &e.chosen));
    assert_eq!(kept.counts.long_rejected, over(|e| e.rejected.as_ref().unwrap()));
    assert_eq!(kept.counts.kept + kept.counts.dropped, 32);
    assert!(kept.counts.dropped > 10);
    let fits = |e: &&Example| e.chosen.ids.len().max(e.rejected.as_ref().unwrap().ids.len()) <= 48;
    let expected: Vec<Example> = all.examples.iter().filter(fits).cloned().collect();
    assert_eq!(kept.examples, expected);

    let refuse = TokenizeOptions { over_length: OverLength::Error, ..options };
    let text = tokenizer.examples(&rows, &refuse, false).unwrap_err().to_string();
    assert!(text.contains("prefs_plain.jsonl:1: chosen has 69 tokens"), "{text}");
    let skipped = tokenizer.examples(&rows, &refuse, true).unwrap();
    assert_eq!(skipped.skipped.len(), kept.counts.dropped);
    assert_eq!(skipped.examples, expected);
}

#[test]
fn a_cut_answer_has_no_end_and_is_never_empty() {
    let tokenizer = tokenizer("llama_tied");
    let eos = tokenizer.eos().unwrap();
    let options = TokenizeOptions {
        max_length: 48,
        over_length: OverLength::TruncateResponse,
        ..TokenizeOptions::default()
    };
    let cut = tokenizer.examples(&rows("prefs_plain"), &options, false).unwrap();
    assert_eq!((cut.counts.kept, cut.counts.dropped), (31, 1));
    let mut ends = 0;
    for example in &cut.examples {
        for side in [&example.chosen, example.rejected.as_ref().unwrap()] {
            assert!(side.ids.len() <= 48 && side.response_start < side.ids.len());
            ends += usize::from(side.ids.last() == Some(&eos));
        }
    }
    let whole = 62 - cut.counts.truncated_chosen - cut.counts.truncated_rejected;
    assert_eq!(ends, whole, "a cut answer does not end with EOS, every other one does");

    let equal =
        plain_row("Say", &format!("{}yes", " a".repeat(99)), &format!("{}no", " a".repeat(99)));
    let cut = tokenizer.counted(0, &equal, &options, &mut Counts::default()).unwrap();
    assert_eq!(cut, None, "what is left expresses no preference");
}

#[test]
fn a_cut_prompt_keeps_its_begin_token_and_the_opening_of_the_answer() {
    let tokenizer = tokenizer("llama_tied");
    let options = |max_length| TokenizeOptions {
        max_length,
        over_length: OverLength::TruncatePrompt,
        eos: EosRule::Once,
    };
    let row = &rows("prefs_chat")[17];
    let whole = tokenizer.example(0, row, &options(10_000)).unwrap().unwrap();
    let longest = whole.chosen.ids.len().max(whole.rejected.as_ref().unwrap().ids.len());
    let mut counts = Counts::default();
    let cut = tokenizer.counted(0, row, &options(longest - 30), &mut counts).unwrap().unwrap();
    assert_eq!(counts.truncated_prompt, 1);
    for (cut, whole) in [
        (&cut.chosen, &whole.chosen),
        (cut.rejected.as_ref().unwrap(), whole.rejected.as_ref().unwrap()),
    ] {
        assert_eq!(cut.ids[0], whole.ids[0]);
        assert_eq!(cut.ids[1..], whole.ids[31..]);
        assert_eq!(cut.response_start + 30, whole.response_start);
        let prompt = tokenizer.decode(&cut.ids[..cut.response_start], false).unwrap();
        assert!(prompt.ends_with("<|im_start|>assistant\n"), "{prompt}");
    }
    // What cannot be cut without losing the opening is dropped.
    let opening = tokenizer.encode("<|im_start|>assistant\n").unwrap().len();
    let least = longest - whole.chosen.response_start + 1 + opening;
    assert!(tokenizer.example(0, row, &options(least)).unwrap().is_some());
    assert!(tokenizer.example(0, row, &options(least - 1)).unwrap().is_none());
}

#[test]
fn rows_without_anything_to_learn_are_refused_with_their_place() {
    let tokenizer = tokenizer("llama_tied");
    let options = TokenizeOptions::default();
    let bad = [plain_row("Hi", " you", " you"), plain_row("Hi", " ", " you")];
    let text = tokenizer.examples(&bad, &options, false).unwrap_err().to_string();
    assert!(
        text.contains("2 of 2 rows") && text.contains("pairs.jsonl:12: chosen is empty"),
        "{text}"
    );
    assert!(text.contains("same tokens"), "{text}");
    let mut mixed = plain_row("Hi", " you", " there");
    mixed.chosen = Text::Messages(vec![Message::new("assistant", "x")]);
    assert!(tokenizer.example(0, &mixed, &options).is_err());
}

#[test]
fn a_template_that_rewrites_the_prompt_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(golden("tokenize/tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let load = |template: &str| {
        std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
        Tokenizer::from_folder(folder.path()).unwrap()
    };
    let row = &rows("prefs_chat")[0];
    let options = TokenizeOptions::default();
    let rewriting = load("{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}");
    let problem = rewriting.example(0, row, &options).unwrap_err();
    assert!(problem.what.contains("renders the prompt differently"), "{}", problem.what);
    // A template that opens the answer in another way than its generation prompt is fine.
    let thinking = load(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}\
         {% if add_generation_prompt %}[assistant]<think>{% endif %}",
    );
    let text = thinking.rendered(row).unwrap();
    assert_eq!(text.prompt, "[user]Tell me about the moon.[assistant]");
    assert!(text.chosen.starts_with("I don't know"));
    let refusing = load("{{ raise_exception('no conversations today') }}");
    assert!(
        refusing.example(0, row, &options).unwrap_err().what.contains("no conversations today")
    );
}

#[test]
fn a_document_is_cut_into_pieces_that_predict_each_token_once() {
    let tokenizer = tokenizer("llama_tied");
    let source = Source { file: "book.txt".into(), line: 1 };
    let text = "It was a dark and stormy night; the rain fell in torrents. ".repeat(5);
    for max_length in [2, 7, 64, 1000] {
        let options = TokenizeOptions { max_length, ..TokenizeOptions::default() };
        let document = Text::Plain(text.clone());
        let pieces = tokenizer.document(3, &source, &document, &options).unwrap();
        let mut ids = vec![tokenizer.bos().unwrap()];
        for piece in &pieces {
            assert!((2..=max_length).contains(&piece.chosen.ids.len()));
            assert_eq!((piece.row, piece.chosen.response_start), (3, 1));
            assert_eq!(piece.chosen.ids[0], *ids.last().unwrap());
            ids.extend(&piece.chosen.ids[1..]);
        }
        assert_eq!(ids.pop(), tokenizer.eos());
        assert_eq!(tokenizer.decode(&ids[1..], false).unwrap(), text);
    }
    let options = TokenizeOptions::default();
    assert!(tokenizer.document(0, &source, &Text::Plain(String::new()), &options).is_err());
    let talk = Text::Messages(vec![Message::new("user", "Hi"), Message::new("assistant", "Yes")]);
    let pieces = tokenizer.document(0, &source, &talk, &options).unwrap();
    let text = tokenizer.decode(&pieces[0].chosen.ids, false).unwrap();
    assert_eq!(
        text,
        "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n</s>"
    );
}

#[test]
fn folders_that_cannot_be_used_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let refusal = |path: &Path| Tokenizer::from_folder(path).unwrap_err().to_string();
    assert!(refusal(path).contains("tokenizer.json"));
    std::fs::write(path.join("tokenizer.json"), "{\"model\": 3}").unwrap();
    assert!(refusal(path).contains("not a tokenizer"));
    std::fs::copy(golden("tokenize/tokenizer.json"), path.join("tokenizer.json")).unwrap();
    std::fs::write(path.join("tokenizer_config.json"), r#"{"eos_token": "<|nope|>"}"#).unwrap();
    assert!(refusal(path).contains("eos_token is \"<|nope|>\""));
    // Special tokens as objects, in the older file, or as ids of the model's configuration.
    let object = r#"{"eos_token": {"content": "</s>", "special": true}, "bos_token": null}"#;
    std::fs::write(path.join("tokenizer_config.json"), object).unwrap();
    let tokenizer = Tokenizer::from_folder(path).unwrap();
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos(), tokenizer.has_template()),
        (None, Some(4), false)
    );
    assert!(tokenizer.render_prompt(&[Message::new("user", "x")]).is_err());
    std::fs::remove_file(path.join("tokenizer_config.json")).unwrap();
    std::fs::write(path.join("config.json"), r#"{"bos_token_id": 3, "eos_token_id": [2, 4]}"#)
        .unwrap();
    let tokenizer = Tokenizer::from_folder(path).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(3), Some(2)));
    assert_eq!(tokenizer.vocab_size(), 512);
}

#[test]
fn a_trained_tokenizer_loads_and_gives_texts_back() {
    let texts = || {
        (0..400)
            .map(|i| format!("Line {i}: the cat number {} sat on the naïve mat — twice.\n", i * 7))
    };
    let folder = tempfile::tempdir().unwrap();
    let trained = train_bpe(texts(), 320, &CHAT_TOKENS).unwrap();
    trained.write_tokenizer_folder(folder.path(), CHATML).unwrap();
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 320);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (None, Some(2)));
    for text in texts().take(5).chain(["tabs\tand 日本語 🙂\n\n x".into(), " lead".into()]) {
        assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap(), false).unwrap(), text);
    }
    assert!(tokenizer.encode(" the cat").unwrap().len() < 6, "common words became tokens");
    let prompt = tokenizer.render_prompt(&[Message::new("user", "Hi")]).unwrap();
    assert_eq!(prompt, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(tokenizer.encode(&prompt).unwrap()[0], 1);
    let again = tempfile::tempdir().unwrap();
    train_bpe(texts(), 320, &CHAT_TOKENS)
        .unwrap()
        .write_tokenizer_folder(again.path(), CHATML)
        .unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let read = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
        assert_eq!(
            read(folder.path()),
            read(again.path()),
            "{name} depends on nothing but the texts"
        );
    }
    assert!(train_bpe(texts(), 200, &CHAT_TOKENS).is_err());
    assert!(train_bpe(["a".to_owned()].into_iter(), 5000, &CHAT_TOKENS).is_err());
}

/// A folder with the golden tokenizer, changed by `change`, and a configuration.
fn changed(change: impl FnOnce(&mut Value), config: Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(golden("tokenize/tokenizer.json")).unwrap();
    let mut json: Value = serde_json::from_slice(&bytes).unwrap();
    change(&mut json);
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    folder
}

#[test]
fn a_tokenizer_that_the_library_panics_on_is_refused_by_name() {
    use serde_json::json;
    let sequence = |steps: Value| json!({"type": "Sequence", "normalizers": steps});
    let double = json!({"type": "Replace", "pattern": {"String": "e"}, "content": "ee"});
    let normalizers = [
        json!({"type": "Precompiled", "precompiled_charsmap": ""}),
        json!({"type": "Precompiled", "precompiled_charsmap": "////"}),
        json!({"type": "Precompiled", "precompiled_charsmap": "//////////////"}),
        json!({"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
        json!({"type": "Prepend", "prepend": "x".repeat(1 << 20)}),
        sequence(vec![double; 60].into()),
        json!({"type": "Precompiled"}),
    ];
    let mut cases: Vec<(&str, &str, Value)> =
        normalizers.into_iter().map(|n| ("", "normalizer", n)).collect();
    cases.push(("/model", "continuing_subword_prefix", "##".into()));
    cases.push(("", "decoder", json!({"type": "nothing"})));
    cases.push(("", "decoder", json!(7)));
    for (place, key, value) in cases {
        let shown: String = value.to_string().chars().take(80).collect();
        let folder = changed(|json| json.pointer_mut(place).unwrap()[key] = value, Value::Null);
        let outcome = Tokenizer::from_folder(folder.path()).and_then(|tokenizer| {
            let row = plain_row("Hello there", " see me", " eel");
            tokenizer.examples(&[row], &TokenizeOptions::default(), false)
        });
        let text =
            outcome.err().map(|e| e.to_string()).unwrap_or_else(|| panic!("{shown} is taken"));
        assert!(
            text.contains("tokenizer.json") || text.contains("tokenizers library"),
            "{shown}: {text}"
        );
    }
}

#[test]
fn special_tokens_that_are_no_added_tokens_become_such() {
    let take = |json: &mut Value| {
        json["added_tokens"].as_array_mut().unwrap().retain(|t| t["content"] != "<|im_end|>");
    };
    let folder = changed(take, serde_json::json!({"eos_token": "<|im_end|>"}));
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(tokenizer.encode("<|im_end|>").unwrap(), [tokenizer.eos().unwrap()]);
    let decoder = serde_json::json!({"added_tokens_decoder": {"7": {"content": "<|im_end|>"}}});
    let text = Tokenizer::from_folder(changed(take, decoder).path()).unwrap_err().to_string();
    assert!(text.contains("added_tokens_decoder gives \"<|im_end|>\" the id 7"), "{text}");
    let more = serde_json::json!({"eos_token": "</s>", "additional_special_tokens": ["<nope>"]});
    let tokenizer = Tokenizer::from_folder(changed(|_| {}, more).path()).unwrap();
    assert!(tokenizer.notes()[0].contains("\"<nope>\""), "{:?}", tokenizer.notes());
}

#[test]
fn ends_are_found_in_the_order_of_transformers() {
    let folder = changed(|_| {}, serde_json::json!({"bos_token": "<s>"}));
    let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let load = || Tokenizer::from_folder(folder.path());
    let none = load().unwrap();
    assert_eq!((none.eos(), none.ends().0.len()), (None, 0));
    assert!(none.notes()[0].contains("does not learn to stop"), "{:?}", none.notes());
    put("config.json", r#"{"eos_token_id": 4}"#);
    let model = load().unwrap();
    assert_eq!((model.eos(), model.ends()), (Some(4), (&[4][..], "config.json")));
    assert!(model.notes()[0].contains("\"</s>\" (4) of config.json"), "{:?}", model.notes());
    put("generation_config.json", r#"{"eos_token_id": [2, 5]}"#);
    assert_eq!(load().unwrap().ends(), (&[2, 5][..], "generation_config.json"));
    put("tokenizer_config.json", r#"{"eos_token": "</s>"}"#);
    let all = load().unwrap();
    assert_eq!((all.eos(), all.ends().0, all.notes().len()), (Some(4), &[2, 5, 4][..], 0));
    put("generation_config.json", r#"{"eos_token_id": [70000]}"#);
    assert!(load().unwrap_err().to_string().contains("eos_token_id is 70000"));
    put("generation_config.json", r#"{"eos_token_id": "2"}"#);
    assert!(load().unwrap_err().to_string().contains("not a token id"));
}

#[test]
fn a_text_has_the_same_tokens_each_time() {
    let folder = changed(|json| json["model"]["dropout"] = 0.5.into(), Value::Null);
    let without = changed(|_| {}, Value::Null);
    let ids = |folder: &tempfile::TempDir| {
        Tokenizer::from_folder(folder.path()).unwrap().encode("a stormy night and more").unwrap()
    };
    assert_eq!(ids(&folder), ids(&without));
}

#[test]
fn a_text_that_cannot_be_expressed_is_an_error() {
    let folder = changed(
        |json| {
            json["model"] = serde_json::json!({"type": "WordLevel", "vocab": {"one": 0, "two": 1}, "unk_token": "<unk>"});
            for key in ["normalizer", "decoder", "post_processor"] {
                json[key] = Value::Null;
            }
            json["added_tokens"] = Value::Array(vec![]);
            json["pre_tokenizer"] = serde_json::json!({"type": "WhitespaceSplit"});
        },
        Value::Null,
    );
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(tokenizer.encode("two one").unwrap(), [1, 0]);
    let text = tokenizer.encode("seven").unwrap_err().to_string();
    assert!(text.contains("cannot express the text"), "{text}");
}

#[test]
fn tool_calls_reach_the_template_or_the_row_is_refused_by_name() {
    let folder = changed(|_| {}, serde_json::json!({"eos_token": "</s>"}));
    let load = |extra: &str| {
        let template = format!(
            "{extra}{{% for m in messages %}}[{{{{ m.role }}}}]{{{{ m.content }}}}{{% if m.tool_calls %}}\
             {{{{ m.tool_calls | tojson }}}}{{% endif %}}{{% endfor %}}"
        );
        std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
        Tokenizer::from_folder(folder.path()).unwrap()
    };
    let mut row = plain_row("", "", "");
    let side = |name: &str| {
        let mut message = Message::new("assistant", "I look.");
        message.fields.insert("tool_calls".into(), serde_json::json!([{"name": name}]));
        message.fields.insert("id".into(), 7.into());
        Text::Messages(vec![message])
    };
    row.prompt = Text::Messages(vec![Message::new("user", "Weather?")]);
    (row.chosen, row.rejected) = (side("weather"), Some(side("time")));
    let tokenizer = load("");
    let rendered = tokenizer.rendered(&row).unwrap();
    assert!(rendered.chosen.ends_with(r#"I look.[{"name": "weather"}]"#), "{}", rendered.chosen);
    assert_ne!(Some(rendered.chosen), rendered.rejected);
    let found = tokenizer.examples(std::slice::from_ref(&row), &TokenizeOptions::default(), false);
    assert!(found.unwrap().unused.contains("id"));
    row.given.insert("tools".into(), serde_json::json!([1]));
    let refused = tokenizer.example(0, &row, &TokenizeOptions::default()).unwrap_err();
    assert!(
        refused.what.contains("the row has tools, which the chat template"),
        "{}",
        refused.what
    );
    let tools = load("{% if tools %}{{ tools | tojson }}{% endif %}");
    assert!(tools.rendered(&row).unwrap().prompt.starts_with("[1]"));
    // A template that knows nothing of calls.
    std::fs::write(
        folder.path().join("chat_template.jinja"),
        "{% for m in messages %}{{ m.content }}{% endfor %}",
    )
    .unwrap();
    row.given.clear();
    let plain = Tokenizer::from_folder(folder.path()).unwrap();
    let refused = plain.example(0, &row, &TokenizeOptions::default()).unwrap_err().what;
    assert!(refused.contains("message 2 (assistant) has tool_calls"), "{refused}");
}
