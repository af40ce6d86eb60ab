//! Threads that make tokens of rows for [`super::survey`]. They live as long as it does, because the
//! tokenizers library remembers words by the thread that met them.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

use super::example::Sequence;
use super::rows::{Needs, PreferenceRow, Source};
use super::tokenize::{EosRule, Tokenizer, Untrimmed};
use crate::error::Problem;
use crate::guard::{caught, on_own_stack};

/// How rows are looked at.
#[derive(Clone, Copy)]
pub(super) struct Looking<'a> {
    pub tokenizer: &'a Tokenizer,
    pub eos: EosRule,
    pub needs: Needs,
}

/// A usable row, looked at.
pub(super) struct Looked {
    pub row: Untrimmed,
    pub labels: [usize; 2],
    pub hash: u64,
}

/// The rows of a part in their order, or why the thread could not look at them.
type Part = Result<Vec<(Source, Result<Looked, Problem>)>, String>;

/// A thread that takes parts and gives them back in the same order.
pub(super) struct Worker {
    rows: Sender<Vec<PreferenceRow>>,
    looked: Receiver<Part>,
}

impl Worker {
    /// Starts a thread, which ends when this is dropped.
    pub fn start<'scope>(scope: &'scope Scope<'scope, '_>, looking: Looking<'scope>) -> Self {
        let (rows, taken) = channel::<Vec<PreferenceRow>>();
        let (give, looked) = channel();
        scope.spawn(move || {
            let work = || {
                for rows in taken {
                    let all = || rows.into_iter().map(|row| looking.look(row)).collect();
                    if give.send(caught(all)).is_err() {
                        return; // nobody waits any more
                    }
                }
            };
            if let Err(e) = on_own_stack(work) {
                // Whoever waits is told; if nobody does, there is nobody to tell.
                let _ = give.send(Err(e));
            }
        });
        Self { rows, looked }
    }

    /// Gives it rows.
    pub fn give(&self, rows: Vec<PreferenceRow>) {
        // A thread that has ended says so where its part is waited for.
        let _ = self.rows.send(rows);
    }

    /// Waits for the part that it was given first.
    pub fn take(&self) -> Part {
        self.looked.recv().unwrap_or_else(|_| Err("a thread has ended".into()))
    }
}

impl Looking<'_> {
    fn look(&self, given: PreferenceRow) -> (Source, Result<Looked, Problem>) {
        let looked = self.tokenizer.untrimmed(&given, self.eos).map(|row| {
            let hash = hash_of(&row.sides, given.desirable);
            Looked { row, labels: labels_of(&given, self.needs), hash }
        });
        (given.source, looked)
    }
}

/// Answers with label true and with label false.
fn labels_of(row: &PreferenceRow, needs: Needs) -> [usize; 2] {
    match row.desirable {
        Some(desirable) => [usize::from(desirable), usize::from(!desirable)],
        None => [usize::from(needs == Needs::Label); 2],
    }
}

fn hash_of(sides: &[Sequence], desirable: Option<bool>) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&desirable.map_or([2], |label| [u8::from(label)]));
    for side in sides {
        hasher.update(&(side.response_start as u64).to_le_bytes());
        hasher.update(&(side.ids.len() as u64).to_le_bytes());
        hasher.update(bytemuck::cast_slice(&side.ids));
    }
    let bytes = hasher.finalize();
    u64::from_le_bytes(bytes.as_bytes()[..8].try_into().expect("eight bytes"))
}
