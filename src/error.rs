//! The one error type for everything that comes from the world: adapters, files, rows, settings.
//!
//! Every sentence says what is wrong and what to do about it. Mistakes in how a graph is built
//! (shapes that do not fit) are programming errors and panic at the caller instead.

use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// One problem with a place in the input: a line of a file, a key of a recipe, a tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where: `pairs.jsonl:12`, `recipe.toml: optim.learning_rate`, `model.safetensors: lm_head.weight`.
    pub place: String,
    /// What is wrong and what to do.
    pub what: String,
}

impl Problem {
    /// A problem at `place`.
    pub fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { place: place.into(), what: what.into() }
    }
}

/// A text that comes from a file, fit for a terminal: control characters are escaped (a line break
/// stays one), and what is longer than `most` characters is cut in the middle.
pub(crate) fn shown(text: &str, most: usize) -> String {
    // Marks that turn the direction of writing are no control characters, but lie as well.
    let hides = |c: &char| {
        (c.is_control() && !matches!(c, '\n' | '\t'))
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let escape = |text: &str| -> String {
        text.chars()
            .map(|c| if hides(&c) { c.escape_default().to_string() } else { c.to_string() })
            .collect()
    };
    let start: usize = text.chars().take(most * 2 / 3).map(char::len_utf8).sum();
    let end: usize = text.chars().rev().take(most / 3).map(char::len_utf8).sum();
    if text.len() <= most || start + end >= text.len() {
        return escape(text);
    }
    let (head, tail) = (&text[..start], &text[text.len() - end..]);
    format!("{} […] {}", escape(head), escape(tail))
}

/// Characters of one problem that are printed.
const LONGEST: usize = 3_000;

fn list(problems: &[Problem]) -> String {
    const SHOWN: usize = 20;
    let mut text = String::new();
    for p in problems.iter().take(SHOWN) {
        text.push_str(&format!("\n  {}: {}", shown(&p.place, LONGEST), shown(&p.what, LONGEST)));
    }
    if problems.len() > SHOWN {
        text.push_str(&format!("\n  … and {} more", problems.len() - SHOWN));
    }
    text
}

/// What to do about a failure of the system, where its own answer does not say it.
fn advice(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            ". Make room on this disk, or write to another one"
        }
        ErrorKind::ReadOnlyFilesystem => ". Choose a place that can be written to",
        ErrorKind::PermissionDenied => ". Choose another place, or change who may use this one",
        _ => "",
    }
}

/// What can go wrong outside the program's own logic.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No adapter, or not the one asked for.
    #[error("{0}")]
    Adapter(String),
    /// The device ran out of memory or refused a command.
    #[error("{0}")]
    Device(String),
    /// The device is gone: a reset or an update of its driver, a watchdog, a cable. A new device can
    /// go on from what was saved.
    #[error("{0}")]
    Lost(String),
    /// The run does not fit the adapter's limits or memory.
    #[error("{0}")]
    Limit(String),
    /// A file could not be read, written or created.
    #[error("cannot {action} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// What was tried: "read", "write", "create".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's own answer.
        source: std::io::Error,
    },
    /// A file was read but is not what it should be.
    #[error("{}: {}", path.display(), shown(problem, LONGEST))]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Several problems found at once in what the user gave.
    #[error("{}{}", shown(summary, LONGEST), list(problems))]
    Input {
        /// One line that sums the problems up.
        summary: String,
        /// Every problem with its place.
        problems: Vec<Problem>,
    },
    /// A loss or gradient became NaN or infinite.
    #[error("{0}")]
    NonFinite(String),
    /// A run did what it was asked to and stopped before its end; says how it goes on.
    #[error("{0}")]
    Stopped(String),
    /// A comparison with reference values failed.
    #[error("{0}")]
    Mismatch(String),
    /// A comparison of measurements that are too uncertain to tell.
    #[error("{0}")]
    Inconclusive(String),
}

impl Error {
    /// An input/output error with its path and what was tried.
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { action, path: path.as_ref().to_path_buf(), source }
    }

    /// A file with unusable contents.
    pub fn file(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), problem: problem.into() }
    }

    /// Says what to do about a run that does not fit or a device that failed. The engine knows what
    /// is too large; which setting makes it smaller, only its caller does.
    #[must_use]
    pub fn advise(self, what_to_do: &str) -> Self {
        match self {
            Self::Limit(text) => Self::Limit(format!("{text} {what_to_do}")),
            Self::Device(text) => Self::Device(format!("{text} {what_to_do}")),
            other => other,
        }
    }

    /// Several problems under one summary line.
    pub fn input(summary: impl Into<String>, problems: Vec<Problem>) -> Self {
        Self::Input { summary: summary.into(), problems }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_files_is_escaped_and_cut() {
        assert_eq!(shown("é and\na line", 40), "é and\na line");
        assert_eq!(shown("\u{1b}[2J\r\0\u{202e}x", 40), "\\u{1b}[2J\\r\\u{0}\\u{202e}x");
        let long = shown(&"é".repeat(1_000_000), 30);
        assert_eq!(long, format!("{} […] {}", "é".repeat(20), "é".repeat(10)));
        let problem = Problem::new("rows.jsonl:1", format!("key \"{}\"", "k".repeat(1 << 20)));
        let text = Error::input("\u{1b}c", vec![problem]).to_string();
        assert!(text.len() < 10_000 && text.starts_with("\\u{1b}c"), "{text}");
    }
}
