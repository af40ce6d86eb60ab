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
    // Elsewhere only the capital letter behind a word that names an answer, or B, which is no word
    // by itself: and all of them must say the same.
    let words = words(said);
    let mut found = None;
    for (i, word) in words.iter().enumerate() {
        let labelled = i > 0 && LABELS.contains(&words[i - 1].to_lowercase().as_str());
        let place = match word.as_str() {
            "A" if labelled => 0,
            "B" => 1,
            _ => continue,
        };
        match found {
            Some(other) if other != place => return None,
            _ => found = Some(place),
        }
    }
    found
}

const LABELS: [&str; 9] =
    ["answer", "response", "option", "choice", "verdict", "assistant", "better", "is", "reply"];

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
            ("Answer A is worse than answer B.", None),
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
