//! Rows as they occur in the wild, read and brought to one form: prompt, chosen, rejected.
//!
//! | layout | becomes |
//! |---|---|
//! | `{prompt, chosen, rejected}`, all strings | plain text, taken as it is |
//! | the same, all message lists | messages |
//! | string prompt, full message lists | the lists' common prefix is the prompt |
//! | string prompt, assistant messages only | one user message, then the answer |
//! | `{chosen, rejected}`, message lists | the common prefix is the prompt |
//! | `{chosen, rejected}`, `\n\nHuman: … \n\nAssistant: …` transcripts | plain text, split behind the last common `\n\nAssistant:` |
//! | `{question` or `instruction` or `input, chosen, rejected}` | like `prompt`; instruction and input joined by a line break |
//! | a `system` column beside a string prompt | messages, the system message first if it is not blank |
//! | `{conversations, chosen, rejected}` with `from`/`value` | messages |
//! | a `history` of pairs beside a string prompt (LLaMA-Factory's alpaca) | messages, the earlier turns first |
//! | `{instruction, context, …}` (dolly) | the context is joined to the instruction as an input is |
//! | `tools`, `documents`, `chat_template_kwargs` beside messages | variables of the chat template |
//! | `{prompt, completion, label}` where a label is asked for (KTO) | an answer, desirable or not |
//! | a record of Argilla, Label Studio, distilabel or Open WebUI | one or several rows (`exports.rs`) |
//!
//! Without need of a rejected side (SFT, KTO) `{messages}`, `{conversations}` and an answer column
//! named `completion`, `response`, `output` or `answer` load too. Null counts as absent. Columns
//! that say something and have no place are refused; all others are ignored and named, once for
//! each file. Rows whose column `choice` says `tie` or `skip`, as those of `oddgrad judge` and
//! `collect` do, prefer nothing: they are left out and counted. A file has one form: if any row of it
//! is a conversation, rows of plain prompts and answers become conversations too. Whatever cannot be used is refused with file, line and reason.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::exports;
use super::files::{self, Format};
pub use super::files::{Source, Split};
use super::form::Form;
pub use super::messages::Message;
use super::messages::{self, says};
use super::normalise::{GIVEN, Normal, Side, has, normalise, note_unused, present, side, some_of};
use crate::error::{Error, Problem, Result};
use crate::files::read_file;

/// Largest document of a file of its own, in bytes.
pub(super) const LARGEST_TEXT: usize = 1 << 30;

/// Plain text, or a conversation that a chat template will render.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// Text taken as it is.
    Plain(String),
    /// Messages, rendered by the model's chat template.
    Messages(Vec<Message>),
}

impl Text {
    /// Plain text, or a conversation.
    pub fn form(&self) -> Form {
        match self {
            Self::Plain(_) => Form::Plain,
            Self::Messages(_) => Form::Chat,
        }
    }

    /// Whether there is nothing to learn in it: blank text, or a blank last message.
    pub fn is_blank(&self) -> bool {
        match self {
            Self::Plain(text) => text.trim().is_empty(),
            Self::Messages(list) => list.last().is_none_or(Message::is_blank),
        }
    }
}

/// One row: prompt and answers are of the same kind, and the answers hold only what follows the
/// prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferenceRow {
    /// File and line.
    pub source: Source,
    /// What both answers answer.
    pub prompt: Text,
    /// The preferred answer.
    pub chosen: Text,
    /// The other one; absent only where [`ReadOptions::needs`] allows it.
    pub rejected: Option<Text>,
    /// Whether `chosen` is an answer to be given, where the row has a label in the place of a rejected
    /// answer.
    pub desirable: Option<bool>,
    /// Variables of the chat template beside the messages: `tools`, `documents` and what
    /// `chat_template_kwargs` holds.
    pub given: Map<String, Value>,
}

/// Puts variables of the chat template into a row, as rows have them.
pub fn put_given(row: &mut Map<String, Value>, given: &Map<String, Value>) {
    let own = |name: &str| GIVEN.contains(&name);
    let (columns, settings): (Map<_, _>, Map<_, _>) =
        given.clone().into_iter().partition(|(name, _)| own(name));
    row.extend(columns);
    if !settings.is_empty() {
        row.insert("chat_template_kwargs".into(), Value::Object(settings));
    }
}

/// What a row must have beside its prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// A chosen and a rejected answer (preference training).
    Pair,
    /// An answer; a rejected one is read where there is one (SFT).
    Answer,
    /// As [`Needs::Answer`]; a label too is read where there is one (evaluation).
    Judgement,
    /// An answer and a label. A pair is two such rows (KTO).
    Label,
}

/// How rows are read.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Our column name to the file's: `chosen` to `good`. Keys: `prompt`, `system`, `chosen`,
    /// `rejected`, `label`.
    pub map: BTreeMap<String, String>,
    /// Go on without the rows that cannot be used.
    pub skip_bad_rows: bool,
    /// What every row must have beside its prompt.
    pub needs: Needs,
    /// Which files of a folder are meant, if their names say.
    pub split: Split,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { map: BTreeMap::new(), skip_bad_rows: false, needs: Needs::Pair, split: Split::Train }
    }
}

/// What was read.
#[derive(Debug, Clone)]
pub struct Rows {
    /// The usable rows, file after file in the order given.
    pub rows: Vec<PreferenceRow>,
    /// The rows left out, with their reasons; empty unless `skip_bad_rows` is on.
    pub skipped: Vec<Problem>,
    /// Lines for the user: each file with its rows, their form and the columns not used; files of
    /// a folder that are left out.
    pub notes: Vec<String>,
}

const MAPPED: [&str; 5] = ["prompt", "system", "chosen", "rejected", "label"];
/// Rows that cannot be used before the reading stops: the reasons take memory.
pub(super) const MOST_BAD: usize = 10_000;
/// The same where such rows are skipped.
const MOST_SKIPPED: usize = 1_000_000;

/// Reads preference rows from files or folders.
///
/// # Errors
/// A path that cannot be read, a file that breaks off, and, unless `skip_bad_rows` is on,
/// every row that cannot be used, all at once.
pub fn read_preferences(paths: &[PathBuf], options: &ReadOptions) -> Result<Rows> {
    check_map(options)?;
    let mut rows = Vec::new();
    let mut bad = Vec::new();
    let mut broken = Vec::new();
    let mut undecided = Undecided::default();
    let found = files::expand(paths, false, options.split)?;
    let mut notes = found.notes;
    let most = if options.skip_bad_rows { MOST_SKIPPED } else { MOST_BAD };
    for (path, format) in found.files {
        let before = rows.len();
        let mut each = |source: Source, row: std::result::Result<PreferenceRow, String>| {
            match row {
                Ok(row) => rows.push(row),
                Err(reason) => bad.push(Problem::new(source.to_string(), reason)),
            }
            bad.len() < most
        };
        let scan = scan(&path, format, options, &mut each)?;
        broken.extend(scan.broken.clone());
        let forms = Forms::of(&rows[before..]);
        for row in rows.split_off(before) {
            match forms.apply(row) {
                Ok(row) => rows.push(row),
                Err(problem) => bad.push(problem),
            }
        }
        let pairs = if options.needs == Needs::Label { unpair(&mut rows, before) } else { 0 };
        notes.push(file_note(&path, rows.len() - before, &forms.to_string(), &scan));
        undecided.add(scan.undecided);
        if pairs > 0 {
            notes.push(format!(
                "{}: {pairs} pairs are {} rows, their chosen answers with label true, their rejected ones with label false",
                path.display(),
                2 * pairs
            ));
        }
        if bad.len() >= most {
            let summary =
                format!("{most} rows cannot be used; reading stopped at {}", path.display());
            return Err(Error::input(summary, bad));
        }
    }
    if !broken.is_empty() {
        broken.append(&mut bad);
        return Err(Error::input("the data cannot be read to its end", broken));
    }
    if !bad.is_empty() && !options.skip_bad_rows {
        let summary = format!(
            "{} of {} rows cannot be used (mend them, or go on without them: --skip-bad-rows)",
            bad.len(),
            bad.len() + rows.len()
        );
        return Err(Error::input(summary, bad));
    }
    if rows.is_empty() {
        let left = undecided.left_out("; ");
        return Err(Error::input(format!("there is no usable row in {}{left}", names(paths)), bad));
    }
    Ok(Rows { rows, skipped: bad, notes })
}

/// Makes two labelled rows of every pair from `from` on, and says how many pairs there were. The
/// rejected answers stand behind all others, so that most rows beside each other have other prompts.
fn unpair(rows: &mut Vec<PreferenceRow>, from: usize) -> usize {
    let mut undesirable = Vec::new();
    for row in &mut rows[from..] {
        if let Some(rejected) = row.rejected.take() {
            row.desirable = Some(true);
            undesirable.push(PreferenceRow {
                chosen: rejected,
                desirable: Some(false),
                ..row.clone()
            });
        }
    }
    let pairs = undesirable.len();
    rows.append(&mut undesirable);
    pairs
}

/// Refuses a map of columns that are none of ours.
pub(super) fn check_map(options: &ReadOptions) -> Result<()> {
    if let Some(key) = options.map.keys().find(|key| !MAPPED.contains(&key.as_str())) {
        let what = format!("is no column to map; {} can be mapped", MAPPED.join(", "));
        let place = format!("data.map.{key}");
        return Err(Error::input("the columns cannot be mapped", vec![Problem::new(place, what)]));
    }
    Ok(())
}

/// What a file had beside its rows.
#[derive(Default)]
pub(super) struct Scan {
    /// Why it ends before its end.
    pub broken: Option<Problem>,
    /// Columns that hold something and are not used.
    pub unused: BTreeSet<String>,
    /// Rows that prefer nothing.
    pub undecided: Undecided,
}

/// Rows of comparisons that preferred neither answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Undecided {
    /// Both answers were found to be as good.
    pub ties: usize,
    /// Nobody wanted to say.
    pub skips: usize,
    /// Ratings of one answer, where another one or a label is needed.
    pub alone: usize,
}

impl Undecided {
    /// Counts a row whose column `choice` says so; whether it does.
    fn counts(&mut self, record: &Map<String, Value>, needs: Needs) -> bool {
        match record.get("choice").and_then(Value::as_str) {
            Some("tie") => self.ties += 1,
            Some("skip") => self.skips += 1,
            Some("alone") if !matches!(needs, Needs::Label | Needs::Judgement) => self.alone += 1,
            _ => return false,
        }
        true
    }

    pub(super) fn add(&mut self, other: Self) {
        self.ties += other.ties;
        self.skips += other.skips;
        self.alone += other.alone;
    }

    /// `12 ties and 3 skips left out` behind `before`; nothing where there are none.
    pub fn left_out(self, before: &str) -> String {
        let count = |n: usize, name: &str| match n {
            0 => None,
            1 => Some(format!("1 {name}")),
            n => Some(format!("{n} {name}s")),
        };
        let alone = match self.alone {
            0 => None,
            1 => Some("1 rating of a single answer".to_owned()),
            n => Some(format!("{n} ratings of single answers")),
        };
        let counts = [count(self.ties, "tie"), count(self.skips, "skip"), alone];
        let counts: Vec<String> = counts.into_iter().flatten().collect();
        match counts.is_empty() {
            true => String::new(),
            false => format!("{before}{} left out", counts.join(" and ")),
        }
    }
}

/// Calls `each` with every row of a file, in order, in the form that it has by itself, or with the
/// reason why it cannot be used; false stops the reading.
pub(super) fn scan(
    path: &Path,
    format: Format,
    options: &ReadOptions,
    each: &mut dyn FnMut(Source, std::result::Result<PreferenceRow, String>) -> bool,
) -> Result<Scan> {
    let mut unused = BTreeSet::new();
    let mut undecided = Undecided::default();
    let mut record = |source: Source, record: files::JsonRow| {
        let mut one = |record: Map<String, Value>| {
            if undecided.counts(&record, options.needs) {
                return true;
            }
            let row = normalise(&record, options, &mut unused);
            let row = row.map(|Normal { triple: (prompt, chosen, rejected), desirable, given }| {
                PreferenceRow { source: source.clone(), prompt, chosen, rejected, desirable, given }
            });
            each(source.clone(), row)
        };
        // Columns that are mapped by hand are no export.
        match record
            .map(|record| (exports::rows(&record).filter(|_| options.map.is_empty()), record))
        {
            Ok((None, record)) => one(record),
            Ok((Some(Ok(rows)), _)) => rows.into_iter().all(one),
            Ok((Some(Err(reason)), _)) | Err(reason) => each(source, Err(reason)),
        }
    };
    let broken = files::read_records(path, format, &mut record)?;
    Ok(Scan { broken, unused, undecided })
}

/// Which forms the rows of a file have: all are given one, conversations if any of them is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Forms {
    pub chat: bool,
    pub plain: bool,
}

impl Forms {
    fn of(rows: &[PreferenceRow]) -> Self {
        let mut forms = Self::default();
        rows.iter().for_each(|row| forms.add(row));
        forms
    }

    pub fn add(&mut self, row: &PreferenceRow) {
        match row.prompt {
            Text::Messages(_) => self.chat = true,
            Text::Plain(_) => self.plain = true,
        }
    }

    /// The row in the form of its file. A transcript, which is plain text for good, is a problem
    /// among conversations.
    pub fn apply(self, row: PreferenceRow) -> std::result::Result<PreferenceRow, Problem> {
        let (true, Text::Plain(text), Text::Plain(answer)) = (self.chat, &row.prompt, &row.chosen)
        else {
            return Ok(row);
        };
        if messages::is_transcript(text) {
            let what = "is a transcript, but other rows of the file are conversations; \
                        put them in a file of their own";
            return Err(Problem::new(row.source.to_string(), what));
        }
        let turn = |role: &str, text: &str| Text::Messages(vec![Message::new(role, text)]);
        let rejected = row.rejected.map(|side| match side {
            Text::Plain(text) => turn("assistant", &text),
            side => side,
        });
        let (prompt, chosen) = (turn("user", text), turn("assistant", answer));
        Ok(PreferenceRow { prompt, chosen, rejected, ..row })
    }
}

impl std::fmt::Display for Forms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match (self.chat, self.plain) {
            (false, _) => "plain text, no chat template",
            (true, true) => {
                "conversations (plain rows among them too), rendered by the chat template"
            }
            (true, false) => "conversations, rendered by the chat template",
        })
    }
}

/// The line about a file that was read.
pub(super) fn file_note(path: &Path, rows: usize, form: &str, scan: &Scan) -> String {
    let mut note = format!("{}: {rows} rows, {form}", path.display());
    note += &scan.undecided.left_out("; ");
    if !scan.unused.is_empty() {
        note += &format!("; columns not used: {}", some_of(scan.unused.iter()));
    }
    note
}

/// Reads plain documents for language modelling: `.txt` (one document per file), or rows with a
/// `text` column or with `messages` (or `conversations`) that a chat template renders.
///
/// Blank documents are passed over: corpora are full of them.
///
/// # Errors
/// A path that cannot be read; everything else that is not text, with file and line, all at once.
pub fn read_texts(paths: &[PathBuf]) -> Result<Vec<Document>> {
    read_usable_texts(paths, false, Split::Train).map(|texts| texts.documents)
}

/// A document and where it stands.
pub type Document = (Source, Text);

/// Documents with what was left out of them.
#[derive(Debug, Clone)]
pub struct Texts {
    /// Documents and where they stand.
    pub documents: Vec<Document>,
    /// Those that cannot be used, with their reasons.
    pub skipped: Vec<Problem>,
    /// Lines for the user, as [`Rows::notes`].
    pub notes: Vec<String>,
}

/// As [`read_texts`], going on without the documents that cannot be used if `skip_bad_rows` says
/// so. Of a folder whose files name splits, those of `split` are read.
///
/// # Errors
/// As [`read_texts`].
pub fn read_usable_texts(paths: &[PathBuf], skip_bad_rows: bool, split: Split) -> Result<Texts> {
    let mut texts = Vec::new();
    let mut bad = Vec::new();
    let found = files::expand(paths, true, split)?;
    let mut notes = found.notes;
    let most = if skip_bad_rows { MOST_SKIPPED } else { MOST_BAD };
    for (path, format) in found.files {
        let before = texts.len();
        if format == Format::Text {
            let bytes = read_file(&path, LARGEST_TEXT)?.unwrap_or_default();
            notes.push(format!("{}: a document", path.display()));
            let source = Source { file: path, line: 1 };
            match std::str::from_utf8(files::without_bom(&bytes)) {
                Ok(text) => texts.push((source, Text::Plain(text.to_owned()))),
                Err(e) => {
                    let line = 1 + bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count();
                    let place = Source { line, ..source }.to_string();
                    bad.push(Problem::new(place, "not UTF-8; save the file as UTF-8"));
                }
            }
            continue;
        }
        let mut unused = BTreeSet::new();
        let mut each = |source: Source, record: files::JsonRow| {
            match record.and_then(|record| document(&record, &mut unused)) {
                Ok(text) => texts.push((source, text)),
                Err(reason) => bad.push(Problem::new(source.to_string(), reason)),
            }
            bad.len() < most
        };
        let broken = files::read_records(&path, format, &mut each)?;
        bad.extend(broken);
        let scan = Scan { unused, ..Scan::default() };
        notes.push(file_note(&path, texts.len() - before, "documents", &scan));
        if bad.len() >= most {
            let summary =
                format!("{most} documents cannot be used; reading stopped at {}", path.display());
            return Err(Error::input(summary, bad));
        }
    }
    if !bad.is_empty() && !skip_bad_rows {
        return Err(Error::input(format!("{} documents cannot be used", bad.len()), bad));
    }
    texts.retain(|(_, text)| !text.is_blank());
    if texts.is_empty() {
        return Err(Error::input(format!("there is no text in {}", names(paths)), bad));
    }
    Ok(Texts { documents: texts, skipped: bad, notes })
}

pub(super) fn names(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn document(
    record: &Map<String, Value>,
    unused: &mut BTreeSet<String>,
) -> std::result::Result<Text, String> {
    const TEXTS: [&str; 4] = ["text", "messages", "conversations", "conversation"];
    let taken = TEXTS.into_iter().find(|name| present(record, name).is_some());
    note_unused(record, |name| Some(name) == taken, unused);
    if let Some(name) = GIVEN.into_iter().find(|name| record.get(*name).is_some_and(says)) {
        return Err(format!("column \"{name}\" has no place in a document; remove it"));
    }
    match present(record, "text") {
        Some(Value::String(text)) => return Ok(Text::Plain(text.clone())),
        Some(other) => {
            return Err(format!("column \"text\" is {}, not text", files::kind(other)));
        }
        None => {}
    }
    for name in ["messages", "conversations", "conversation"] {
        if let Some(value) = present(record, name) {
            return match side(value, name)? {
                Side::Turns(list) if list.is_empty() => Ok(Text::Messages(list)),
                Side::Turns(list) => {
                    messages::check_order(&list)?;
                    Ok(Text::Messages(list))
                }
                Side::Text(_) => Err(format!("column \"{name}\" is text, not a list of messages")),
            };
        }
    }
    Err(format!("neither column \"text\" nor \"messages\" is there; {}", has(record)))
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
