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

fn list(problems: &[Problem]) -> String {
    const SHOWN: usize = 20;
    let mut text = String::new();
    for p in problems.iter().take(SHOWN) {
        text.push_str(&format!("\n  {}: {}", p.place, p.what));
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
    /// The device was lost, ran out of memory or refused a command.
    #[error("{0}")]
    Device(String),
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
    #[error("{}: {problem}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Several problems found at once in what the user gave.
    #[error("{summary}{}", list(problems))]
    Input {
        /// One line that sums the problems up.
        summary: String,
        /// Every problem with its place.
        problems: Vec<Problem>,
    },
    /// A loss or gradient became NaN or infinite.
    #[error("{0}")]
    NonFinite(String),
    /// A comparison with reference values failed.
    #[error("{0}")]
    Mismatch(String),
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
