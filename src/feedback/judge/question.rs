//! What a language model is asked about two answers, and what its reply says.

use crate::data::messages::Message;
use crate::feedback::comparison::{Comparison, shown};

/// What makes an answer the better one, where nobody says otherwise.
pub const CRITERIA: &str = "It does what is asked, is correct, and is well and briefly said.";

/// The question about a comparison whose answers are shown in this order, as letters A and B. It is one
/// message: not every chat template knows a system's.
pub fn question(comparison: &Comparison, order: [usize; 2], criteria: &str) -> Message {
    let [a, b] = order.map(|place| shown(&comparison.answers[place]));
    let prompt = shown(&comparison.prompt);
    let (a, b) = (a.trim(), b.trim());
    let text = format!(
        "Compare two answers to the same request and say which one is better. The better answer: {criteria} The order in which the answers stand says nothing about them. Reply with one letter, A or B, and nothing else.\n\nThe request:\n{prompt}\n\nAnswer A:\n{a}\n\nAnswer B:\n{b}\n\nWhich answer is better, A or B?"
    );
    Message::new("user", text)
}

/// The place, 0 for A and 1 for B, that a reply says; None if it says neither or both.
pub fn letter(reply: &str) -> Option<usize> {
    // Models that think aloud weigh both letters before.
    let said = reply.rsplit("</think>").next().unwrap_or(reply).trim();
    let last = said.lines().rev().find(|line| line.chars().any(char::is_alphanumeric))?;
    let words = |text: &str| -> Vec<String> {
        let parts = text.split(|c: char| !c.is_alphanumeric() && c != '\'');
        parts.filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    let of = |word: &str| match word {
        "A" | "a" => Some(0),
        "B" | "b" => Some(1),
        _ => None,
    };
    // A line of the letter alone, or with what it is in front.
    match &words(last)[..] {
        [word] if of(word).is_some() => return of(word),
        [label, word] if LABELS.contains(&label.to_lowercase().as_str()) && of(word).is_some() => {
            return of(word);
        }
        _ => {}
    }
    if let Some(at) = said.rfind("[[") {
        let inside = said[at + 2..].split("]]").next().unwrap_or_default();
        return of(inside.trim());
    }
    // Elsewhere every sentence that names an answer must name the same one.
    let mut found = None;
    for sentence in said.split(['.', '!', '?', ';', '\n']) {
        match (better(sentence)?, found) {
            (None, _) => {}
            (Some(place), Some(other)) if place != other => return None,
            (place, _) => found = place,
        }
    }
    found
}

/// Words behind which a capital letter names an answer.
const LABELS: [&str; 9] =
    ["answer", "response", "option", "choice", "verdict", "assistant", "better", "is", "reply"];
/// Words before which a capital letter is no article.
const VERBS: [&str; 11] =
    ["is", "was", "has", "does", "gives", "seems", "wins", "answers", "and", "or", "nor"];
/// Words that turn round what is said of the answer near them.
const NEGATIVE: [&str; 10] =
    ["not", "no", "nor", "never", "worse", "worst", "wrong", "bad", "less", "inferior"];
/// Words with which a sentence names no answer as the better one.
const NEITHER: [&str; 5] = ["neither", "both", "equal", "equally", "tie"];

/// The answer that a sentence calls the better one: Some(None) if it names none, None if it cannot be
/// told which.
fn better(sentence: &str) -> Option<Option<usize>> {
    // Words, each with whether something else than a space follows it.
    let mut words: Vec<(&str, bool)> = Vec::new();
    let mut rest = sentence;
    while let Some(start) = rest.find(char::is_alphanumeric) {
        rest = &rest[start..];
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '\'').unwrap_or(rest.len());
        words.push((&rest[..end], !rest[end..].starts_with(' ')));
        rest = &rest[end..];
    }
    let lower = |i: usize| words.get(i).map(|(word, _)| word.to_lowercase()).unwrap_or_default();
    let letters: Vec<(usize, usize)> = (0..words.len())
        .filter_map(|i| {
            let labelled = i > 0 && LABELS.contains(&lower(i - 1).as_str());
            let next = lower(i + 1);
            let verb = VERBS.contains(&next.as_str()) || next.ends_with("n't");
            match words[i] {
                // As a word by itself it stands before another.
                ("A", ends) if labelled || ends || verb => Some((i, 0)),
                ("B", _) => Some((i, 1)),
                _ => None,
            }
        })
        .collect();
    let Some(&(_, first)) = letters.first() else { return Some(None) };
    let near = |list: &[&str]| {
        letters.iter().flat_map(|&(i, _)| i.saturating_sub(3)..i + 4).any(|i| {
            let word = lower(i);
            list.contains(&word.as_str()) || word.ends_with("n't")
        })
    };
    let neither = (0..words.len()).any(|i| NEITHER.contains(&lower(i).as_str()));
    let turned = neither || near(&NEGATIVE);
    let than = (1..words.len()).find(|&i| lower(i) == "than" || lower(i) == "over");
    if letters.iter().all(|&(_, place)| place == first) {
        // Behind "better than" stands the other one.
        let behind = than.is_some_and(|than| letters[0].0 > than);
        return (!turned && !behind).then_some(Some(first));
    }
    // One before and the other behind "better than", or the other way round.
    let than = than?;
    let side = |before: bool| {
        let mut of = letters.iter().filter(|(i, _)| (*i < than) == before).map(|&(_, place)| place);
        let place = of.next()?;
        of.all(|other| other == place).then_some(place)
    };
    let (before, behind) = (side(true)?, side(false)?);
    match (lower(than - 1).as_str(), turned) {
        ("worse", _) if before != behind && !neither && !near(&["not", "no", "never"]) => {
            Some(Some(behind))
        }
        (_, false) if before != behind => Some(Some(before)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rows::{Source, Text};

    #[test]
    fn letters_are_found_and_nothing_else() {
        for (reply, wanted) in [
            ("A", Some(0)),
            (" b.\n", Some(1)),
            ("**B**", Some(1)),
            ("Answer A", Some(0)),
            ("Verdict: B", Some(1)),
            ("Answer B is clearly better.", Some(1)),
            ("The better one is A.", Some(0)),
            ("Both are fine, but the second is shorter.\nB", Some(1)),
            ("A is right, B is not: [[A]]", Some(0)),
            ("<think>Is it B? B is longer.</think>\n\nA", Some(0)),
            ("A good question. Neither.", None),
            ("Answer A is worse than answer B.", Some(1)),
            ("A: A is better.", Some(0)),
            ("A is indeed better than B.", Some(0)),
            ("A: A is better than B.", Some(0)),
            ("I prefer B over A, because it is right.", Some(1)),
            ("B is not better than A.", None),
            ("A isn't better than B.", None),
            ("B is worse.", None),
            ("B has nothing to do with it. A is better.", None),
            ("A is good, B is better.", None),
            ("A and B are equal.", None),
            ("Both A and B are good.", None),
            ("I do not think that B is better.", None),
            ("Neither A nor B.", None),
            ("The first is better than B.", None),
            ("Answer B is clearly better, it has no errors.", Some(1)),
            ("A is better because it is less wordy.", Some(0)),
            ("I cannot say.", None),
            ("[[C]]", None),
            ("", None),
            ("Tie", None),
        ] {
            assert_eq!(letter(reply), wanted, "{reply:?}");
        }
    }

    #[test]
    fn answers_stand_in_the_order_asked() {
        let plain = |text: &str| Text::Plain(text.into());
        let comparison = Comparison {
            id: "x".into(),
            source: Source { file: "p".into(), line: 1 },
            prompt: plain("Why?"),
            given: Default::default(),
            answers: [plain(" one"), plain("two")],
        };
        let asked = question(&comparison, [1, 0], "It rhymes.");
        let text = asked.text();
        assert!(text.contains("It rhymes.") && text.contains("Why?"));
        assert!(text.contains("Answer A:\ntwo\n\nAnswer B:\none\n"));
    }
}
