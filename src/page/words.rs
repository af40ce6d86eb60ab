//! Text for the page: escaped, and with the words marked that differ from another text.

/// Text made safe for an element or a quoted attribute.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // A model may produce anything; control characters have no business in a page.
            c if c.is_control() && c != '\n' && c != '\t' => safe.push('\u{FFFD}'),
            c => safe.push(c),
        }
    }
    safe
}

/// How words that differ are marked: as faults or as corrections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Words of the other text are missing or different here.
    Wrong,
    /// These words are what the other text should have said.
    Right,
}

/// More words than this are shown without marks: the comparison costs the product of both counts.
const MAX_WORDS: usize = 400;

/// `text` as escaped HTML, the words that `other` has not (in this order) in `<mark>`.
pub(super) fn marked(text: &str, other: &str, side: Side) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let others: Vec<&str> = other.split_whitespace().collect();
    let common = if words.len().max(others.len()) <= MAX_WORDS {
        in_common(&words, &others)
    } else {
        vec![true; words.len()]
    };
    let class = match side {
        Side::Wrong => "wrong",
        Side::Right => "right",
    };
    let mut html = String::new();
    for (at, word) in words.iter().enumerate() {
        if at > 0 {
            html.push(' ');
        }
        match common[at] {
            true => html.push_str(&escape(word)),
            false => html.push_str(&format!("<mark class=\"{class}\">{}</mark>", escape(word))),
        }
    }
    html
}

/// Which words of `a` belong to a longest common subsequence with `b`.
fn in_common(a: &[&str], b: &[&str]) -> Vec<bool> {
    // length[i][j]: of the longest common subsequence of a[i..] and b[j..].
    let mut length = vec![vec![0_u32; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            length[i][j] = if a[i] == b[j] {
                length[i + 1][j + 1] + 1
            } else {
                length[i + 1][j].max(length[i][j + 1])
            };
        }
    }
    let mut common = vec![false; a.len()];
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        if a[i] == b[j] {
            common[i] = true;
            (i, j) = (i + 1, j + 1);
        } else if length[i + 1][j] >= length[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    common
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_marks_only_words_that_differ() {
        assert_eq!(
            marked("He go to <school> now", "He goes to <school> now", Side::Wrong),
            "He <mark class=\"wrong\">go</mark> to &lt;school&gt; now"
        );
        assert_eq!(marked("a b a", "b a", Side::Right), "<mark class=\"right\">a</mark> b a");
        assert_eq!(marked("same words", "same  words", Side::Right), "same words");
        assert_eq!(marked("", "x", Side::Right), "");
        let long = "word ".repeat(100_000);
        assert_eq!(marked(&long, "x", Side::Wrong), long.trim_end());
    }

    #[test]
    fn report_escapes_everything() {
        assert_eq!(
            escape("<a b=\"c\" d='e'>&\u{1b}\u{0}"),
            "&lt;a b=&quot;c&quot; d=&#39;e&#39;&gt;&amp;\u{FFFD}\u{FFFD}"
        );
    }
}
