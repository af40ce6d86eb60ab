//! What there is to decide, what was decided, and what is being looked at.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::feedback::comparison::{Choice, Comparison, Decision};
use crate::feedback::journal::{Appended, Journal};

/// How long a comparison that somebody looks at is shown to nobody else.
const IN_HAND: Duration = Duration::from_secs(600);

/// The comparisons, and the file of what people decide about them. Threads share it.
pub struct Desk {
    model: Option<String>,
    seed: Option<u64>,
    inner: Mutex<Inner>,
}

struct Inner {
    all: Vec<Comparison>,
    known: HashSet<String>,
    /// More are on their way.
    open: bool,
    journal: Journal,
    decided: Decided,
    /// Who looks at which comparison, and since when.
    in_hand: HashMap<String, (String, Instant)>,
}

/// Decisions of the file by comparison, with who made them.
#[derive(Default)]
struct Decided {
    by: HashMap<String, Vec<String>>,
    choices: HashMap<String, usize>,
}

impl Decided {
    fn hear(&mut self, row: &Map<String, Value>) {
        let text = |name: &str| row.get(name).and_then(Value::as_str);
        if let (Some(id), Some(choice)) = (text("id"), text("choice")) {
            let (comparison, _) = id.split_once(' ').unwrap_or((id, ""));
            let who = text("who").unwrap_or_default().to_owned();
            self.by.entry(comparison.to_owned()).or_default().push(who);
            *self.choices.entry(choice.to_owned()).or_default() += 1;
        }
    }
}

/// What a person is to see next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// This comparison.
    Show(Box<Comparison>),
    /// Nothing yet: others look at what is left, or answers are still being drawn.
    Wait,
    /// All is decided.
    Done,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Comparisons so far.
    pub all: usize,
    /// Those that somebody decided.
    pub decided: usize,
    /// Decisions that say which is better.
    pub pairs: usize,
    /// Ties.
    pub ties: usize,
    /// Skips.
    pub skips: usize,
    /// Whether more comparisons are on their way.
    pub open: bool,
}

impl Desk {
    /// A desk whose decisions are in the file `rows`, with those that are there. `model` and `seed` say
    /// where the answers come from.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn open(rows: &Path, model: Option<String>, seed: Option<u64>) -> Result<Self> {
        let mut decided = Decided::default();
        let journal = Journal::open(rows, &mut |row| decided.hear(row))?;
        let inner = Inner {
            all: Vec::new(),
            known: HashSet::new(),
            open: true,
            journal,
            decided,
            in_hand: HashMap::new(),
        };
        Ok(Self { model, seed, inner: Mutex::new(inner) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lays more comparisons on the desk.
    pub fn add(&self, comparisons: impl IntoIterator<Item = Comparison>) {
        let mut inner = self.inner();
        for comparison in comparisons {
            if inner.known.insert(comparison.id.clone()) {
                inner.all.push(comparison);
            }
        }
    }

    /// No more comparisons come.
    pub fn close(&self) {
        self.inner().open = false;
    }

    /// What there is to tell about the file since the last call.
    pub fn take_notes(&self) -> Vec<String> {
        self.inner().journal.take_notes()
    }

    /// What `who` is to decide next: the first comparison that nobody decided and nobody else looks at.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn next(&self, who: &str) -> Result<Next> {
        let mut inner = self.inner();
        inner.refresh()?;
        let Inner { all, decided, in_hand, open, .. } = &mut *inner;
        let now = Instant::now();
        in_hand.retain(|_, (_, since)| now.duration_since(*since) < IN_HAND);
        let mut left = all.iter().filter(|c| !decided.by.contains_key(&c.id)).peekable();
        if left.peek().is_none() {
            return Ok(if *open { Next::Wait } else { Next::Done });
        }
        match left.find(|c| in_hand.get(&c.id).is_none_or(|(other, _)| other == who)) {
            Some(comparison) => {
                in_hand.insert(comparison.id.clone(), (who.to_owned(), now));
                Ok(Next::Show(Box::new(comparison.clone())))
            }
            None => Ok(Next::Wait),
        }
    }

    /// The comparison of this id.
    pub fn comparison(&self, id: &str) -> Option<Comparison> {
        self.inner().all.iter().find(|c| c.id == id).cloned()
    }

    /// Writes down what `who` decided; it is on the disk when this returns. The same person's second
    /// decision about a comparison is not written; another's is a row of its own.
    ///
    /// # Errors
    /// A file that cannot be written; nothing of the decision is in it then.
    pub fn decide(&self, comparison: &Comparison, choice: Choice, who: &str) -> Result<Appended> {
        let id = format!("{} {who}", comparison.id);
        let shown = if comparison.is_turned() { ["second", "first"] } else { ["first", "second"] };
        let decision = Decision {
            comparison,
            choice,
            who,
            model: self.model.as_deref(),
            seed: self.seed,
            more: Map::from_iter([("shown".to_owned(), json!(shown))]),
        };
        let mut row = decision.row();
        row.insert("id".to_owned(), id.into());
        let mut inner = self.inner();
        let Inner { journal, decided, in_hand, .. } = &mut *inner;
        let appended = journal.append(&row, &mut |other| decided.hear(other))?;
        if appended == Appended::New {
            decided.hear(&row);
        }
        in_hand.remove(&comparison.id);
        Ok(appended)
    }

    /// How far it is.
    pub fn counts(&self) -> Counts {
        let inner = self.inner();
        let of = |choice: &str| inner.decided.choices.get(choice).copied().unwrap_or(0);
        Counts {
            all: inner.all.len(),
            decided: inner.all.iter().filter(|c| inner.decided.by.contains_key(&c.id)).count(),
            pairs: of("first") + of("second") + of("written"),
            ties: of("tie"),
            skips: of("skip"),
            open: inner.open,
        }
    }
}

impl Inner {
    fn refresh(&mut self) -> Result<()> {
        let Self { journal, decided, .. } = self;
        // Another file in its place is read from its beginning.
        let before = journal.lines();
        let mut heard = Decided::default();
        journal.refresh(&mut |row| heard.hear(row))?;
        if journal.lines() < before {
            *decided = heard;
            return Ok(());
        }
        for (id, who) in heard.by {
            decided.by.entry(id).or_default().extend(who);
        }
        for (choice, n) in heard.choices {
            *decided.choices.entry(choice).or_default() += n;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rows::{Source, Text};
    use crate::feedback::comparison::{Answered, comparisons};

    fn some(n: usize) -> Vec<Comparison> {
        let answered = |i: usize| Answered {
            source: Source { file: "prompts.jsonl".into(), line: i + 1 },
            prompt: Text::Plain(format!("prompt {i}")),
            given: Map::new(),
            answers: vec![Text::Plain("yes".into()), Text::Plain("no".into())],
        };
        comparisons(&(0..n).map(answered).collect::<Vec<_>>(), 1).0
    }

    fn shown(desk: &Desk, who: &str) -> Comparison {
        match desk.next(who).unwrap() {
            Next::Show(comparison) => *comparison,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn two_people_at_one_desk_see_different_comparisons() {
        let folder = tempfile::tempdir().unwrap();
        let desk = Desk::open(&folder.path().join("rows.jsonl"), None, None).unwrap();
        desk.add(some(3));
        desk.add(some(2));
        let (a, b) = (shown(&desk, "Ann"), shown(&desk, "Bob"));
        assert_ne!(a.id, b.id);
        // Until they decide, they see the same again.
        assert_eq!((shown(&desk, "Ann").id, shown(&desk, "Bob").id), (a.id.clone(), b.id.clone()));
        desk.decide(&a, Choice::First, "Ann").unwrap();
        desk.decide(&b, Choice::Tie, "Bob").unwrap();
        let last = shown(&desk, "Ann");
        assert_eq!(desk.next("Bob").unwrap(), Next::Wait);
        desk.decide(&last, Choice::Skip, "Ann").unwrap();
        assert_eq!(desk.next("Bob").unwrap(), Next::Wait);
        desk.close();
        assert_eq!(desk.next("Bob").unwrap(), Next::Done);
        let Counts { all, decided, pairs, ties, skips, .. } = desk.counts();
        assert_eq!([all, decided, pairs, ties, skips], [3, 3, 1, 1, 1]);
    }

    #[test]
    fn two_desks_on_one_file_lose_nothing_and_repeat_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let desks = ["Ann", "Bob"].map(|who| {
            let desk = Desk::open(&path, None, None).unwrap();
            desk.add(some(4));
            (desk, who)
        });
        let first = shown(&desks[0].0, "Ann");
        for (desk, who) in &desks {
            // The same decision twice is one row; another person's is another.
            for expected in [Appended::New, Appended::Known] {
                assert_eq!(desk.decide(&first, Choice::First, who).unwrap(), expected, "{who}");
            }
        }
        let second = shown(&desks[1].0, "Bob");
        desks[1].0.decide(&second, Choice::Second, "Bob").unwrap();
        assert_ne!(shown(&desks[0].0, "Ann").id, second.id);
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert_eq!((lines, desks[0].0.counts().decided), (3, 2));
        // A third that comes later goes on.
        let later = Desk::open(&path, None, None).unwrap();
        later.add(some(4));
        assert_eq!(later.counts().decided, 2);
    }
}
