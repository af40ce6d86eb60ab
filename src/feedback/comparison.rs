//! Two answers to one prompt, what was decided about them, and the row that training reads.

use std::collections::BTreeSet;

use chrono::{SecondsFormat, Utc};
use serde_json::{Map, Value, json};

use crate::data::messages::Message;
use crate::data::rows::{Source, Text, put_given};

/// A prompt with the answers that are to be compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// Where the prompt comes from.
    pub source: Source,
    /// What was asked, in the form in which the row of a comparison has it.
    pub prompt: Text,
    /// Variables of the chat template.
    pub given: Map<String, Value>,
    /// The answers, in the form of the prompt.
    pub answers: Vec<Text>,
}

/// Two answers to one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// A hash of prompt and answers: the same comparison has the same id in every process.
    pub id: String,
    /// Where the prompt comes from.
    pub source: Source,
    /// What was asked.
    pub prompt: Text,
    /// Variables of the chat template.
    pub given: Map<String, Value>,
    /// The answers, as the row will have them.
    pub answers: [Text; 2],
}

impl Comparison {
    /// A coin that lies the same way in every process: in which order the answers are shown, where
    /// that is drawn.
    pub fn is_turned(&self) -> bool {
        self.id.bytes().next_back().is_some_and(|digit| digit % 2 == 1)
    }
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The first answer is better.
    First,
    /// The second answer is better.
    Second,
    /// Neither is.
    Tie,
    /// Nobody wanted to say, or could.
    Skip,
    /// Another answer, better than the one at this place (0 or 1).
    Written {
        /// The answer.
        text: String,
        /// The place of the answer that it is better than.
        over: usize,
    },
}

impl Choice {
    /// As the column `choice` has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Second => "second",
            Self::Tie => "tie",
            Self::Skip => "skip",
            Self::Written { .. } => "written",
        }
    }

    /// The choice that prefers the answer at this place.
    pub fn of(place: usize) -> Self {
        if place == 0 { Self::First } else { Self::Second }
    }
}

/// What pairing left out, by the place of its prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Answers that are an earlier one once more.
    pub equal: usize,
    /// Answers that say nothing: training could not learn from them.
    pub empty: usize,
    /// Prompts with fewer than two answers that differ.
    pub alone: Vec<Source>,
    /// Comparisons of a prompt that stands there twice.
    pub repeated: usize,
}

impl LeftOut {
    /// A line that says what was left out, if anything was.
    pub fn told(&self) -> Option<String> {
        const SHOWN: usize = 8;
        let mut parts = Vec::new();
        for (count, what) in [
            (self.equal, "answers that another one says too"),
            (self.empty, "empty answers"),
            (self.repeated, "comparisons that stand there twice"),
        ] {
            if count > 0 {
                parts.push(format!("{count} {what}"));
            }
        }
        if !self.alone.is_empty() {
            let mut places: Vec<String> =
                self.alone.iter().take(SHOWN).map(ToString::to_string).collect();
            if self.alone.len() > SHOWN {
                places.push(format!("{} more", self.alone.len() - SHOWN));
            }
            parts.push(format!(
                "{} prompts without two different answers ({})",
                self.alone.len(),
                places.join(", ")
            ));
        }
        (!parts.is_empty()).then(|| format!("left out: {}", parts.join("; ")))
    }

    /// Counts another part with this one.
    pub fn add(&mut self, other: Self) {
        self.equal += other.equal;
        self.empty += other.empty;
        self.alone.extend(other.alone);
        self.repeated += other.repeated;
    }
}

/// The comparisons of all pairs of different answers, at most `most` for each prompt (neighbours
/// first), and what was left out.
pub fn comparisons(answered: &[Answered], most: usize) -> (Vec<Comparison>, LeftOut) {
    let mut left = LeftOut::default();
    let mut all: Vec<Comparison> = Vec::new();
    let mut ids = BTreeSet::new();
    for Answered { source, prompt, given, answers } in answered {
        let mut different: Vec<&Text> = Vec::new();
        for answer in answers {
            if answer.is_blank() {
                left.empty += 1;
            } else if different.iter().any(|other| same(other, answer)) {
                left.equal += 1;
            } else {
                different.push(answer);
            }
        }
        let n = different.len();
        if n < 2 {
            left.alone.push(source.clone());
        }
        let pairs = (1..n).flat_map(|apart| (0..n - apart).map(move |i| (i, i + apart)));
        for (i, j) in pairs.take(most) {
            let answers = [different[i].clone(), different[j].clone()];
            let id = id_of(prompt, given, &answers);
            if !ids.insert(id.clone()) {
                left.repeated += 1;
                continue;
            }
            let (source, prompt, given) = (source.clone(), prompt.clone(), given.clone());
            all.push(Comparison { id, source, prompt, given, answers });
        }
    }
    (all, left)
}

/// Whether two answers say the same: white space around them says nothing.
fn same(a: &Text, b: &Text) -> bool {
    match (a, b) {
        (Text::Plain(a), Text::Plain(b)) => a.trim() == b.trim(),
        _ => a == b,
    }
}

/// The same for both orders of the answers, so that no pair is decided twice.
fn id_of(prompt: &Text, given: &Map<String, Value>, answers: &[Text; 2]) -> String {
    let mut answers = answers.each_ref().map(|answer| value(answer).to_string());
    answers.sort();
    let mut hasher = blake3::Hasher::new();
    for part in [&value(prompt).to_string(), &json!(given).to_string(), &answers[0], &answers[1]] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..24].to_owned()
}

/// Text, or messages as a list.
pub fn value(text: &Text) -> Value {
    match text {
        Text::Plain(text) => text.as_str().into(),
        Text::Messages(list) => json!(list),
    }
}

/// A text as a person or a judge reads it: plain text as it is; of one message its content; more of
/// them with who speaks.
pub fn shown(text: &Text) -> String {
    match text {
        Text::Plain(text) => text.clone(),
        Text::Messages(list) => match &list[..] {
            [one] if one.fields.is_empty() => one.text().to_owned(),
            list => list.iter().map(spoken).collect::<Vec<_>>().join("\n\n"),
        },
    }
}

fn spoken(message: &Message) -> String {
    let mut text = format!("{}: {}", message.role, message.text());
    for (name, value) in &message.fields {
        text += &format!("\n{name}: {value}");
    }
    text
}

/// A decision about a comparison.
pub struct Decision<'a> {
    /// What was compared.
    pub comparison: &'a Comparison,
    /// What was decided.
    pub choice: Choice,
    /// Who decided: a person's name, or the judge's.
    pub who: &'a str,
    /// Whose answers these are.
    pub model: Option<&'a str>,
    /// The seed they were drawn with.
    pub seed: Option<u64>,
    /// Further columns, under names of their own.
    pub more: Map<String, Value>,
}

impl Decision<'_> {
    /// The row: `prompt`, `chosen` and `rejected` as training reads them (both absent for ties and
    /// skips), then `choice`, `answers`, `id`, `who`, `when` (UTC) and the rest.
    pub fn row(self) -> Map<String, Value> {
        let Comparison { id, prompt, given, answers, .. } = self.comparison;
        let mut row = Map::new();
        let mut put = |name: &str, value: Value| row.insert(name.to_owned(), value);
        put("prompt", value(prompt));
        let written = |text: &str| match prompt {
            Text::Plain(_) => Value::from(text),
            Text::Messages(_) => json!([Message::new("assistant", text)]),
        };
        let sides = match &self.choice {
            Choice::First => Some((value(&answers[0]), value(&answers[1]))),
            Choice::Second => Some((value(&answers[1]), value(&answers[0]))),
            Choice::Written { text, over } => Some((written(text), value(&answers[*over]))),
            Choice::Tie | Choice::Skip => None,
        };
        if let Some((chosen, rejected)) = sides {
            put("chosen", chosen);
            put("rejected", rejected);
        }
        put_given(&mut row, given);
        let mut put = |name: &str, value: Value| row.insert(name.to_owned(), value);
        put("choice", self.choice.name().into());
        put("answers", answers.iter().map(value).collect());
        put("id", id.as_str().into());
        put("who", self.who.into());
        put("when", Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true).into());
        if let Some(model) = self.model {
            put("model", model.into());
        }
        if let Some(seed) = self.seed {
            put("seed", seed.into());
        }
        row.extend(self.more);
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rows::{ReadOptions, read_preferences};
    use crate::feedback::journal::Journal;

    fn answered(prompt: Text, answers: Vec<Text>) -> Answered {
        let source = Source { file: "p.txt".into(), line: 7 };
        Answered { source, prompt, given: Map::new(), answers }
    }

    fn plain(text: &str) -> Text {
        Text::Plain(text.into())
    }

    fn talk(role: &str, text: &str) -> Text {
        Text::Messages(vec![Message::new(role, text)])
    }

    #[test]
    fn pairs_are_of_different_answers_and_known_again() {
        let of = |answers: &[&str]| {
            answered(plain("Q"), answers.iter().map(|text| plain(text)).collect())
        };
        let (all, left) = comparisons(&[of(&["a", " a", "b", "", "c"])], 9);
        let texts: Vec<_> = all.iter().map(|c| c.answers.each_ref().map(shown).concat()).collect();
        assert_eq!(texts, ["ab", "bc", "ac"]);
        assert_eq!((left.equal, left.empty, left.alone.len()), (1, 1, 0));
        let (again, _) = comparisons(&[of(&["b", "a"])], 9);
        assert_eq!(again[0].id, all[0].id, "in the other order it is the same");
        let (few, left) = comparisons(&[of(&["a", "b", "c"]), of(&["b", "a"]), of(&["x"])], 2);
        assert_eq!((few.len(), left.repeated, left.alone.len()), (2, 1, 1));
        let other = comparisons(&[answered(plain("Qa"), vec![plain("b"), plain("")])], 9);
        assert!(other.0.is_empty());
    }

    #[test]
    fn rows_are_those_that_training_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let mut journal = Journal::open(&path, &mut |_| ()).unwrap();
        let chat =
            answered(talk("user", "Hi"), vec![talk("assistant", "Yes"), talk("assistant", "No")]);
        let pairs = [
            (chat.clone(), Choice::Second),
            (answered(talk("user", "A"), chat.answers.clone()), Choice::First),
            (answered(talk("user", "B"), chat.answers.clone()), Choice::Tie),
            (answered(talk("user", "C"), chat.answers.clone()), Choice::Skip),
            (
                answered(talk("user", "D"), chat.answers.clone()),
                Choice::Written { text: "Better".into(), over: 1 },
            ),
        ];
        for (answered, choice) in pairs {
            let comparison = &comparisons(&[answered], 1).0[0];
            let decision = Decision {
                comparison,
                choice,
                who: "somebody",
                model: Some("model"),
                seed: Some(3),
                more: Map::new(),
            };
            journal.append(&decision.row(), &mut |_| ()).unwrap();
        }
        let read = read_preferences(std::slice::from_ref(&path), &ReadOptions::default()).unwrap();
        let sides: Vec<_> = read
            .rows
            .iter()
            .map(|r| (shown(&r.chosen), shown(r.rejected.as_ref().unwrap())))
            .collect();
        let wanted = [("No", "Yes"), ("Yes", "No"), ("Better", "No")];
        assert_eq!(sides, wanted.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert!(
            read.notes[0].contains("3 rows") && read.notes[0].contains("1 tie and 1 skip left out")
        );
        assert!(read.notes[0].contains("conversations"), "{:?}", read.notes);
    }
}
