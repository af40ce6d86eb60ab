//! Prompts without a preference yet: what a model is to answer, with answers that are there already.
//!
//! | row | prompt | answers |
//! |---|---|---|
//! | a line of a `.txt` file | the line, plain text | none |
//! | `{prompt}`, text or messages (or `question`, `instruction`, `conversations`, `messages`, with `system`, `history`, `tools`) | as preference rows have it; an answer at the end of a conversation is not part of it | none |
//! | the same with a list `answers`, `generations`, `completions` or `responses` | the same | the list's, texts or messages |
//! | a preference row (`chosen`, `rejected`) | its prompt | both |

use std::path::Path;

use serde_json::{Map, Value};

use super::files::{self, Format, Source, Split};
use super::messages::{self, Message};
use super::normalise::{Normal, Side, asked, normalise, present, side};
use super::rows::{LARGEST_TEXT, MOST_BAD, ReadOptions, Text};
use crate::error::{Error, Problem, Result};
use crate::files::read_file;

/// Lists of answers, by their columns.
const LISTS: [&str; 4] = ["answers", "generations", "completions", "responses"];

/// The columns of a row.
type Record = Map<String, Value>;

/// A prompt and the answers that its row has.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptRow {
    /// File and line.
    pub source: Source,
    /// What is asked.
    pub prompt: Text,
    /// Variables of the chat template, as [`super::rows::PreferenceRow::given`].
    pub given: Map<String, Value>,
    /// Answers in the form of the prompt.
    pub answers: Vec<Text>,
}

/// Reads prompts with their answers from a file or folder.
///
/// # Errors
/// A file that cannot be read or has another ending; every row without a prompt that can be used, all at
/// once; no prompt at all.
pub fn read_prompt_rows(path: &Path) -> Result<Vec<PromptRow>> {
    let of = |source: Source, record: &Record| {
        let (prompt, given, answers) = prompt_of(record)?;
        Ok(PromptRow { source, prompt, given, answers })
    };
    let paths = [path.to_path_buf()];
    let (mut prompts, mut problems) = (Vec::new(), Vec::new());
    for (path, format) in files::expand(&paths, true, Split::Train)?.files {
        let mut each = |source: Source, record: files::JsonRow| {
            match record.and_then(|record| of(source.clone(), &record)) {
                Ok(prompt) => prompts.push(prompt),
                Err(reason) => problems.push(Problem::new(source.to_string(), reason)),
            }
            problems.len() < MOST_BAD
        };
        if format == Format::Text {
            let bytes = read_file(&path, LARGEST_TEXT)?.unwrap_or_default();
            // A line of text is a record with a prompt.
            let text = std::str::from_utf8(files::without_bom(&bytes))
                .map_err(|_| Error::file(&path, "is not UTF-8; save the file as UTF-8"))?;
            for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
                let record = Map::from_iter([("prompt".to_owned(), Value::from(line))]);
                each(Source { file: path.clone(), line: i + 1 }, Ok(record));
            }
            continue;
        }
        let broken = files::read_records(&path, format, &mut each)?;
        problems.extend(broken);
    }
    if problems.is_empty() && prompts.is_empty() {
        return Err(Error::file(path, "has no prompt in it"));
    }
    if problems.is_empty() {
        return Ok(prompts);
    }
    Err(Error::input("these prompts cannot be read", problems))
}

type Asked = (Text, Record, Vec<Text>);

fn prompt_of(record: &Record) -> std::result::Result<Asked, String> {
    let options = ReadOptions::default();
    let list = LISTS.into_iter().find_map(|name| Some((name, present(record, name)?.as_array()?)));
    let both = ["chosen", "rejected"].iter().all(|name| present(record, name).is_some());
    if list.is_none() && both {
        let Normal { triple: (prompt, chosen, rejected), given, .. } =
            normalise(record, &options, &mut Default::default())?;
        return Ok((prompt, given, [chosen].into_iter().chain(rejected).collect()));
    }
    let (mut prompt, given) = asked(record, &options)?;
    if prompt.is_blank() {
        return Err("the prompt is empty; write what is to be answered".into());
    }
    let (name, list) = list.map_or(("", &[][..]), |(name, list)| (name, &list[..]));
    let sides = list
        .iter()
        .enumerate()
        .map(|(i, value)| side(value, &format!("{name}[{i}]")))
        .collect::<std::result::Result<Vec<Side>, String>>()?;
    if let Text::Plain(text) = &prompt
        && sides.iter().any(|side| matches!(side, Side::Turns(_)))
    {
        prompt = Text::Messages(vec![Message::new("user", text)]);
    }
    let answer = |side| match (&prompt, side) {
        (Text::Plain(_), Side::Text(text)) => Ok(Text::Plain(text)),
        (_, Side::Text(text)) => Ok(Text::Messages(vec![Message::new("assistant", text)])),
        (Text::Messages(prompt), Side::Turns(list)) => {
            messages::check_answer(prompt, &list).map_err(|e| format!("{name}: {e}"))?;
            Ok(Text::Messages(list))
        }
        (Text::Plain(_), Side::Turns(_)) => unreachable!("the prompt became messages"),
    };
    let answers = sides.into_iter().map(answer).collect::<std::result::Result<_, String>>()?;
    Ok((prompt, given, answers))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(name: &str, text: &str) -> Result<Vec<PromptRow>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read_prompt_rows(&path)
    }

    fn plain(text: &str) -> Text {
        Text::Plain(text.into())
    }

    fn talk(turns: &[(&str, &str)]) -> Text {
        Text::Messages(turns.iter().map(|(role, text)| Message::new(*role, *text)).collect())
    }

    #[test]
    fn prompts_of_every_layout() {
        let lines = rows("p.txt", "one\n\n two \n").unwrap();
        assert_eq!(lines.iter().map(|r| r.source.line).collect::<Vec<_>>(), [1, 3]);
        assert_eq!((&lines[0].prompt, &lines[1].prompt), (&plain("one"), &plain(" two ")));
        let user = r#"{"role": "user", "content": "Hi"}"#;
        let says = r#"{"role": "assistant", "content": "Yes"}"#;
        let (hi, yes) = (talk(&[("user", "Hi")]), talk(&[("assistant", "Yes")]));
        for (row, prompt, answers) in [
            (r#"{"prompt": "Hi"}"#.into(), plain("Hi"), vec![]),
            (format!(r#"{{"prompt": [{user}]}}"#), hi.clone(), vec![]),
            (format!(r#"{{"messages": [{user}, {says}]}}"#), hi.clone(), vec![]),
            (r#"{"instruction": "Hi", "output": "Yes"}"#.into(), plain("Hi"), vec![]),
            (
                r#"{"system": "Be brief.", "prompt": "Hi"}"#.into(),
                talk(&[("system", "Be brief."), ("user", "Hi")]),
                vec![],
            ),
            (
                r#"{"prompt": "Hi", "answers": ["Yes", " No"]}"#.into(),
                plain("Hi"),
                vec![plain("Yes"), plain(" No")],
            ),
            (
                format!(r#"{{"prompt": "Hi", "generations": [[{says}], "Yes"]}}"#),
                hi.clone(),
                vec![yes.clone(), yes.clone()],
            ),
            (
                format!(
                    r#"{{"prompt": "Hi", "chosen": [{user}, {says}], "rejected": [{user}, {{"role": "assistant", "content": "No"}}]}}"#
                ),
                hi.clone(),
                vec![yes.clone(), talk(&[("assistant", "No")])],
            ),
            // A tie of a journal: answers without a choice.
            (
                r#"{"prompt": "Hi", "choice": "tie", "answers": ["Yes", "No"]}"#.into(),
                plain("Hi"),
                vec![plain("Yes"), plain("No")],
            ),
        ] {
            let row: String = row;
            let found = rows("p.jsonl", &row).unwrap().remove(0);
            assert_eq!((found.prompt, found.answers), (prompt, answers), "{row}");
        }
    }

    #[test]
    fn rows_that_ask_nothing_are_named_at_once() {
        let text = [
            r#"{"text": "x"}"#,
            r#"{"prompt": " "}"#,
            r#"{"messages": [{"role": "assistant", "content": "x"}]}"#,
            r#"{"prompt": "x", "answers": [5]}"#,
            r#"{"prompt": [{"role": "user", "content": "x"}], "answers": [[{"role": "user", "content": "y"}]]}"#,
            "[",
        ];
        let error = rows("p.jsonl", &text.join("\n")).unwrap_err().to_string();
        for part in [
            "p.jsonl:1: column \"prompt\" is missing; the row has text",
            "p.jsonl:2: the prompt is empty",
            "p.jsonl:3: no message in it is the user's",
            "p.jsonl:4: column \"answers[0]\" is a number",
            "p.jsonl:5: answers: the last message is user's",
            "p.jsonl:6: not JSON",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(rows("p.jsonl", "").unwrap_err().to_string().contains("has no prompt in it"));
    }
}
