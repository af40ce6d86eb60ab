//! What the comparisons of a judge come to: choices, agreement, and how much the place of an answer
//! counted.

use serde_json::{Map, Value};

use super::Ballot;

/// Questions from which a preference for a place is told apart from chance.
const ENOUGH: usize = 6;
/// Standard deviations from one half at which it is told.
const FAR: f64 = 3.0;

/// Counts over the rows of a judge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rows with a better answer.
    pub decided: usize,
    /// Rows without one.
    pub ties: usize,
    /// Questions with the answers in an order and a reply that names one.
    pub ordered: usize,
    /// Of these, those in which the answer that stood first was named.
    pub first_place: usize,
    /// Votes that were asked both ways round.
    pub both_ways: usize,
    /// Of these, those that named the same answer both times.
    pub agreeing: usize,
    /// Rows with several votes.
    pub voted: usize,
    /// Of these, those in which all votes say the same.
    pub unanimous: usize,
}

impl Tally {
    /// Counts a row of a journal, if a judge wrote it.
    pub fn add_row(&mut self, row: &Map<String, Value>) {
        let Some(votes) = row.get("judge").and_then(Value::as_array) else { return };
        match row.get("choice").and_then(Value::as_str) {
            Some("first" | "second") => self.decided += 1,
            Some("tie") => self.ties += 1,
            _ => return,
        }
        let list = |vote: &Value| -> Vec<Ballot> {
            vote.as_array().into_iter().flatten().filter_map(Ballot::of_value).collect()
        };
        let votes: Vec<Vec<Ballot>> = votes.iter().map(list).collect();
        for vote in &votes {
            for ballot in vote {
                if let (Some(order), Some(better)) = (ballot.order, ballot.better) {
                    self.ordered += 1;
                    self.first_place += usize::from(order[0] == better);
                }
            }
            if let [Ballot { order: Some(_), better: a, .. }, Ballot { better: b, .. }] = &vote[..]
            {
                self.both_ways += 1;
                self.agreeing += usize::from(a == b && a.is_some());
            }
        }
        if votes.len() > 1 {
            self.voted += 1;
            let says: Vec<Option<usize>> = votes.iter().map(|vote| said(vote)).collect();
            self.unanimous += usize::from(says.iter().all(|one| *one == says[0]));
        }
    }

    /// The share of questions in which the first place won, if the place of an answer, and not the
    /// answer, decided: it is three standard deviations of fair draws from one half (orders are drawn, or
    /// both are asked), or all replies to questions both ways round name one place.
    pub fn bias(&self) -> Option<f64> {
        if self.ordered < ENOUGH {
            return None;
        }
        let n = self.ordered as f64;
        let share = self.first_place as f64 / n;
        let far = (share - 0.5).abs() * 2.0 * n.sqrt() > FAR;
        let always = self.both_ways > 0 && (share == 0.0 || share == 1.0);
        (far || always).then_some(share)
    }

    /// Lines for a person.
    pub fn lines(&self) -> Vec<String> {
        let share = |part: usize, all: usize| {
            format!("{part} of {all} ({:.0} %)", 100.0 * part as f64 / all as f64)
        };
        let mut lines = vec![format!("choices    {} decided, {} ties", self.decided, self.ties)];
        if self.both_ways > 0 {
            let text = share(self.agreeing, self.both_ways);
            lines.push(format!("agreement  the same answer both ways round: {text}"));
        }
        if self.voted > 0 {
            let text = share(self.unanimous, self.voted);
            lines.push(format!("votes      unanimous: {text}"));
        }
        if self.ordered > 0 {
            let text = share(self.first_place, self.ordered);
            lines.push(format!("position   the answer that stood first won {text}"));
        }
        if let Some(first) = self.bias() {
            let place = if first > 0.5 { "A, the first" } else { "B, the second" };
            lines.push(format!(
                "bias       the judge leans to {place} place, whichever answer stands there; its choices are worth little. Take another judge, or other --criteria"
            ));
        }
        lines
    }
}

/// What a vote says: the answer that all its ballots name, or that their log-odds prefer in the mean.
pub(super) fn said(vote: &[Ballot]) -> Option<usize> {
    let odds: Option<Vec<f64>> = vote.iter().map(Ballot::odds).collect();
    if let Some(odds) = odds.filter(|odds| !odds.is_empty()) {
        let sum: f64 = odds.iter().sum();
        return (sum != 0.0).then_some(usize::from(sum < 0.0));
    }
    let first = vote.first()?.better?;
    vote.iter().all(|ballot| ballot.better == Some(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(choice: &str, votes: Value) -> Map<String, Value> {
        Map::from_iter([("choice".into(), choice.into()), ("judge".into(), votes)])
    }

    fn ballot(order: [&str; 2], better: &str) -> Value {
        json!({"order": order, "better": better})
    }

    const AB: [&str; 2] = ["first", "second"];
    const BA: [&str; 2] = ["second", "first"];

    #[test]
    fn rows_are_counted() {
        let mut tally = Tally::default();
        let fair = || json!([[ballot(AB, "first"), ballot(BA, "first")]]);
        tally.add_row(&row("first", fair()));
        tally.add_row(&row("tie", json!([[ballot(AB, "first"), ballot(BA, "second")]])));
        let twice = json!([fair()[0], [ballot(AB, "second"), ballot(BA, "second")]]);
        tally.add_row(&row("tie", twice));
        // A person's row, and one of scores.
        tally.add_row(&Map::from_iter([("choice".into(), "first".into())]));
        tally.add_row(&row("second", json!([[{"scores": [1, 2], "better": "second"}]])));
        let wanted = Tally {
            decided: 2,
            ties: 2,
            ordered: 8,
            first_place: 5,
            both_ways: 4,
            agreeing: 3,
            voted: 1,
            unanimous: 0,
        };
        assert_eq!(tally, wanted);
        assert_eq!(tally.bias(), None);
    }

    #[test]
    fn a_judge_of_places_is_told() {
        let mut tally = Tally::default();
        for _ in 0..3 {
            tally.add_row(&row("tie", json!([[ballot(AB, "first"), ballot(BA, "second")]])));
        }
        assert_eq!(tally.bias(), Some(1.0));
        assert!(
            tally
                .lines()
                .iter()
                .any(|line| line.starts_with("bias") && line.contains("A, the first"))
        );
        let mut second = Tally::default();
        for _ in 0..30 {
            second.add_row(&row("tie", json!([[ballot(AB, "second"), ballot(BA, "first")]])));
        }
        for _ in 0..6 {
            second.add_row(&row("first", json!([[ballot(AB, "first"), ballot(BA, "first")]])));
        }
        assert!(second.bias().is_some_and(|share| share < 0.2));
    }
}
