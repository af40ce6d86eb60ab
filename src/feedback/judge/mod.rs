//! Comparisons decided by a judge: a language model behind an address, one of ours, or a command that
//! scores answers.
//!
//! A comparison is asked `votes` times, each time in both orders where the judge sees an order. A vote
//! is the answer that both orders name; where they contradict each other it is none. A judge that gives
//! log-odds has their mean over both orders instead. The choice is the majority of votes, and a tie where
//! there is none.

pub mod command;
pub mod endpoint;
pub mod local;
pub mod question;
pub mod settings;
pub mod tally;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Instant;

use serde_json::{Map, Value, json};

use self::tally::{Tally, said};
use crate::error::{Error, Problem, Result};
use crate::feedback::comparison::{Choice, Comparison, Decision};
use crate::feedback::journal::{Appended, Journal};

/// Comparisons in a row that could not be judged, after which nothing more is asked.
const MOST_IN_A_ROW: usize = 5;

/// One reply of a judge.
#[derive(Debug, Clone, PartialEq)]
pub struct Ballot {
    /// The places of the answers in the order in which they were shown; None if the judge saw them one
    /// by one.
    pub order: Option<[usize; 2]>,
    /// The place of the better answer; None for neither.
    pub better: Option<usize>,
    /// What the judge said, by names: `reply`, `log_odds`, `scores`.
    pub raw: Map<String, Value>,
}

const PLACES: [&str; 2] = ["first", "second"];

impl Ballot {
    fn value(&self) -> Value {
        let mut map = Map::new();
        if let Some(order) = self.order {
            map.insert("order".into(), json!(order.map(|place| PLACES[place])));
        }
        map.extend(self.raw.clone());
        map.insert("better".into(), json!(self.better.map(|place| PLACES[place])));
        Value::Object(map)
    }

    fn of_value(value: &Value) -> Option<Self> {
        let place = |value: &Value| PLACES.iter().position(|name| value == name);
        let order = match value.get("order").and_then(Value::as_array) {
            Some(order) => match &order[..] {
                [a, b] => Some([place(a)?, place(b)?]),
                _ => return None,
            },
            None => None,
        };
        let better = value.get("better").and_then(place);
        let odds = value.get("log_odds").map(|odds| ("log_odds".to_owned(), odds.clone()));
        Some(Self { order, better, raw: odds.into_iter().collect() })
    }

    /// Log-odds of the first answer against the second, if the judge gave some.
    fn odds(&self) -> Option<f64> {
        let shown = self.raw.get("log_odds")?.as_f64()?;
        Some(if self.order? == [0, 1] { shown } else { -shown })
    }
}

/// Why there is no ballot.
#[derive(Debug)]
pub enum Failure {
    /// This comparison cannot be judged; others may.
    Here(String),
    /// Nothing can be.
    Stop(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Stop(error)
    }
}

/// What judging took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Questions to a model, or runs of a command.
    pub calls: u64,
    /// Of these, those that were made because an earlier one failed.
    pub retries: u64,
    /// Tokens of questions and replies, as the judge counts them; 0 where it does not.
    pub tokens: [u64; 2],
    /// Seconds.
    pub seconds: f64,
}

/// Who says which of two answers is better.
pub trait Judge {
    /// As rows name it.
    fn name(&self) -> String;

    /// Whether it sees both answers at once, in an order.
    fn sees_order(&self) -> bool {
        true
    }

    /// Asks once, with the answers at these places shown in this order.
    ///
    /// # Errors
    /// See [`Failure`].
    fn ask(
        &mut self,
        comparison: &Comparison,
        order: [usize; 2],
        vote: usize,
    ) -> std::result::Result<Ballot, Failure>;

    /// What it took so far, but for the seconds.
    fn cost(&self) -> Cost;

    /// One more of it, which may be asked at the same time and whose cost counts as its own; None where
    /// nothing is gained.
    fn another(&self) -> Option<Box<dyn Judge + Send>> {
        None
    }
}

/// How comparisons are judged, and what their rows say.
#[derive(Clone, Copy)]
pub struct Judging<'a> {
    /// Votes on each.
    pub votes: usize,
    /// Ask each vote once, in an order drawn from the comparison's id, not in both.
    pub one_way: bool,
    /// Comparisons that are asked about at the same time, where the judge can.
    pub parallel: usize,
    /// Whose answers these are.
    pub model: Option<&'a str>,
    /// The seed they were drawn with.
    pub seed: Option<u64>,
}

/// What came of it.
#[derive(Debug)]
pub struct Judged {
    /// Comparisons that were in the journal already.
    pub known: usize,
    /// Comparisons that were judged now.
    pub new: usize,
    /// Those that could not be judged, with the reason. They are not in the journal.
    pub unjudged: Vec<Problem>,
    /// Over these comparisons and those that were known.
    pub tally: Tally,
    /// What it took.
    pub cost: Cost,
}

/// Judges what `journal` does not know yet. Each decision is on the disk before the judge, or the one of
/// several that asked, is asked again. `tally` counts the journal's rows so far. `progress` hears how many
/// comparisons are done.
///
/// # Errors
/// [`Error::Stopped`] when `stop` is set; a judge that cannot be used; a journal that cannot be
/// written.
pub fn judge(
    comparisons: &[Comparison],
    judge: &mut dyn Judge,
    journal: &mut Journal,
    judging: &Judging,
    tally: Tally,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(usize),
) -> Result<Judged> {
    let start = Instant::now();
    let who = judge.name();
    let all = comparisons.len();
    let (known, new, in_a_row, unjudged) = (0, 0, 0, Vec::new());
    let mut desk = Desk { who: &who, judging, all, journal, known, new, in_a_row, unjudged, tally };
    let several = judging.parallel.min(all);
    let others: Vec<_> = match several {
        0 | 1 => Vec::new(),
        _ => (0..several).map_while(|_| judge.another()).collect(),
    };
    if others.is_empty() {
        for comparison in comparisons {
            progress(desk.done());
            if !desk.knows(comparison) {
                let votes = votes(comparison, judge, judging, stop);
                desk.enter(comparison, votes)?;
            }
        }
    } else {
        at_once(comparisons, others, &mut desk, stop, progress)?;
    }
    progress(desk.done());
    let cost = Cost { seconds: start.elapsed().as_secs_f64(), ..judge.cost() };
    let Desk { known, new, unjudged, tally, .. } = desk;
    Ok(Judged { known, new, unjudged, tally, cost })
}

/// Asks several judges at once and enters what they say as it comes. After an error nothing more is
/// asked, but what was asked already is waited for and entered.
fn at_once(
    comparisons: &[Comparison],
    judges: Vec<Box<dyn Judge + Send>>,
    desk: &mut Desk,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(usize),
) -> Result<()> {
    let (judging, count) = (desk.judging, judges.len());
    let (give, work) = mpsc::channel::<&Comparison>();
    let work = Mutex::new(work);
    let (send, said) = mpsc::channel();
    let mut result = Ok(());
    std::thread::scope(|scope| {
        for mut judge in judges {
            let (send, work) = (send.clone(), &work);
            scope.spawn(move || {
                let next = || work.lock().unwrap_or_else(PoisonError::into_inner).recv();
                while let Ok(comparison) = next()
                    && send
                        .send((comparison, votes(comparison, &mut *judge, judging, stop)))
                        .is_ok()
                {}
            });
        }
        drop(send);
        let (mut left, mut asking) = (comparisons.iter(), 0);
        loop {
            while asking < count
                && result.is_ok()
                && let Some(comparison) = left.next()
            {
                if !desk.knows(comparison) {
                    give.send(comparison).expect("the receiver outlives this");
                    asking += 1;
                }
            }
            progress(desk.done());
            let Some((comparison, votes)) = (asking > 0).then(|| said.recv().ok()).flatten() else {
                break;
            };
            asking -= 1;
            let entered = desk.enter(comparison, votes);
            result = std::mem::replace(&mut result, Ok(())).and(entered);
        }
        drop(give);
    });
    result
}

/// Where the votes on comparisons become decisions of the journal.
struct Desk<'a> {
    who: &'a str,
    judging: &'a Judging<'a>,
    /// Comparisons.
    all: usize,
    journal: &'a mut Journal,
    known: usize,
    new: usize,
    /// Those that could not be judged since the last one that could.
    in_a_row: usize,
    unjudged: Vec<Problem>,
    tally: Tally,
}

impl Desk<'_> {
    fn done(&self) -> usize {
        self.known + self.new + self.unjudged.len()
    }

    /// Whether the journal has a decision about it, perhaps another process's; then it is counted.
    fn knows(&mut self, comparison: &Comparison) -> bool {
        let knows = self.journal.knows(&comparison.id);
        self.known += usize::from(knows);
        knows
    }

    /// Enters the votes on a comparison, or why there are none.
    ///
    /// # Errors
    /// What ends it for all comparisons.
    fn enter(
        &mut self,
        comparison: &Comparison,
        votes: std::result::Result<Vec<Vec<Ballot>>, Failure>,
    ) -> Result<()> {
        let judged = self.known + self.new;
        let votes = match votes {
            Ok(votes) => votes,
            Err(Failure::Stop(Error::Stopped(_))) => {
                return Err(Error::Stopped(format!(
                    "stopped after {judged} of {} comparisons; the same command goes on",
                    self.all
                )));
            }
            Err(Failure::Stop(error)) => return Err(error),
            Err(Failure::Here(reason)) => {
                let place = format!("{} ({})", comparison.source, comparison.id);
                self.unjudged.push(Problem::new(place, reason));
                self.in_a_row += 1;
                if self.in_a_row < MOST_IN_A_ROW {
                    return Ok(());
                }
                let summary = format!(
                    "{} comparisons in a row could not be judged, so no more are asked; {judged} of {} are in {}, and the same command goes on",
                    self.in_a_row,
                    self.all,
                    self.journal.path().display()
                );
                return Err(Error::input(summary, self.unjudged.clone()));
            }
        };
        self.in_a_row = 0;
        let values = votes.iter().map(|vote| vote.iter().map(Ballot::value).collect::<Value>());
        let decision = Decision {
            comparison,
            choice: choice(&votes),
            who: self.who,
            model: self.judging.model,
            seed: self.judging.seed,
            more: Map::from_iter([("judge".to_owned(), values.collect())]),
        };
        let row = decision.row();
        let tally = &mut self.tally;
        match self.journal.append(&row, &mut |row| tally.add_row(row))? {
            Appended::New => {
                self.tally.add_row(&row);
                self.new += 1;
            }
            // Another process was faster.
            Appended::Known => self.known += 1,
        }
        Ok(())
    }
}

fn votes(
    comparison: &Comparison,
    judge: &mut dyn Judge,
    judging: &Judging,
    stop: &AtomicBool,
) -> std::result::Result<Vec<Vec<Ballot>>, Failure> {
    let orders: &[[usize; 2]] =
        match (judge.sees_order() && !judging.one_way, comparison.is_turned()) {
            (true, _) => &[[0, 1], [1, 0]],
            (false, false) => &[[0, 1]],
            (false, true) => &[[1, 0]],
        };
    let mut votes = Vec::new();
    for vote in 0..judging.votes {
        let mut ballots = Vec::new();
        for &order in orders {
            if stop.load(Ordering::Relaxed) {
                return Err(Failure::Stop(Error::Stopped(String::new())));
            }
            ballots.push(judge.ask(comparison, order, vote)?);
        }
        votes.push(ballots);
    }
    Ok(votes)
}

/// The majority of votes; a tie without one.
fn choice(votes: &[Vec<Ballot>]) -> Choice {
    let count = |place| votes.iter().filter(|vote| said(vote) == Some(place)).count();
    match count(0).cmp(&count(1)) {
        std::cmp::Ordering::Greater => Choice::First,
        std::cmp::Ordering::Less => Choice::Second,
        std::cmp::Ordering::Equal => Choice::Tie,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn votes_are_counted_and_contradictions_are_none() {
        let ballot = |better| Ballot { order: Some([0, 1]), better, raw: Map::new() };
        let (a, b, none) = (ballot(Some(0)), ballot(Some(1)), ballot(None));
        let vote = |x: &Ballot, y: &Ballot| vec![x.clone(), y.clone()];
        assert_eq!(choice(&[vote(&a, &a)]), Choice::First);
        assert_eq!(choice(&[vote(&b, &b)]), Choice::Second);
        assert_eq!(choice(&[vote(&a, &b)]), Choice::Tie);
        assert_eq!(choice(&[vote(&none, &none)]), Choice::Tie);
        assert_eq!(choice(&[vote(&a, &b), vote(&b, &b), vote(&a, &none)]), Choice::Second);
        assert_eq!(choice(&[vec![a.clone()], vec![b.clone()]]), Choice::Tie);
        for ballot in [a, b, none] {
            assert_eq!(Ballot::of_value(&ballot.value()), Some(ballot));
        }
    }
}
