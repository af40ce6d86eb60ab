//! Models and data sets by their names on the Hugging Face hub, from the cache that transformers and
//! datasets keep on this machine; what is not there is brought there by `download.rs`, and by that
//! alone.
//!
//! The cache: `models--owner--name/refs/main` holds the commit of a branch,
//! `models--owner--name/snapshots/<commit>/` its files (datasets: `datasets--…`). It lies in
//! `HF_HUB_CACHE`, else in `hub` below `HF_HOME`, else below `huggingface` in the user's cache
//! folder (<https://huggingface.co/docs/huggingface_hub/guides/manage-cache>).

#[cfg(feature = "hub")]
pub mod download;
#[cfg(feature = "hub")]
mod listing;
#[cfg(feature = "hub")]
mod snapshot;

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What stands in front of a data set's name.
const DATA: &str = "hf:";

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A model's folder.
    Model,
    /// Files of rows.
    DataSet,
}

impl Kind {
    /// The hub's word: in the cache's folders, in addresses.
    fn word(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::DataSet => "datasets",
        }
    }
}

/// A model's folder: `path` itself if it is there or is no name of the hub (`owner/name` or
/// `owner/name@revision`), else the cached one.
///
/// # Errors
/// A name of the hub that is not in the cache, with what brings it there.
pub fn model_folder(path: &Path) -> Result<PathBuf> {
    match Name::of(path, Kind::Model) {
        Some(name) => {
            let missing = |cache: &Path| {
                format!(
                    "is no folder here and no model in the hub's cache ({}); name a folder, or fetch it with `hf download {}`",
                    cache.display(),
                    name.name
                )
            };
            name.cached(Kind::Model, cache().as_deref()).ok_or_else(|| not_there(path, missing))
        }
        None => Ok(path.to_owned()),
    }
}

/// Files or a folder of rows: `path` itself, or for `hf:owner/name` the cached data set.
///
/// # Errors
/// A name that is none, or is not in the cache, with what brings it there.
pub fn data_folder(path: &Path) -> Result<PathBuf> {
    if !path.to_str().is_some_and(|text| text.starts_with(DATA)) {
        return Ok(path.to_owned());
    }
    let Some(name) = Name::of(path, Kind::DataSet) else {
        return Err(Error::file(path, "is no data set of the hub; write hf:owner/name"));
    };
    let missing = |cache: &Path| {
        format!(
            "is not in the hub's cache ({}); fetch it with `hf download --repo-type dataset {}`",
            cache.display(),
            name.name
        )
    };
    name.cached(Kind::DataSet, cache().as_deref()).ok_or_else(|| not_there(path, missing))
}

fn not_there(path: &Path, what: impl Fn(&Path) -> String) -> Error {
    let cache = cache().unwrap_or_else(|| PathBuf::from("HF_HOME is not set"));
    Error::file(path, what(&cache))
}

/// A folder that a variable names.
fn named(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// The folder of the hub's tools, by the first of the variables that is set.
fn home() -> Option<PathBuf> {
    let home = || named("HOME").or_else(|| named("USERPROFILE"));
    named("HF_HOME")
        .or_else(|| named("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
        .or_else(|| home().map(|home| home.join(".cache/huggingface")))
}

/// Where the cache is.
fn cache() -> Option<PathBuf> {
    named("HF_HUB_CACHE").or_else(|| home().map(|home| home.join("hub")))
}

/// `owner/name`, perhaps with `@revision`.
struct Name<'a> {
    name: &'a str,
    revision: &'a str,
}

impl<'a> Name<'a> {
    /// The name that `path` is; None for what lies on this machine, and for what is no name.
    fn of(path: &'a Path, kind: Kind) -> Option<Self> {
        let text = path.to_str()?;
        match kind {
            Kind::Model => Self::parse(text).filter(|_| std::fs::symlink_metadata(path).is_err()),
            Kind::DataSet => Self::parse(text.strip_prefix(DATA)?),
        }
    }

    fn parse(text: &'a str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let word = |text: &str| {
            let right = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            (1..=96).contains(&text.len()) && text.chars().all(right) && !text.starts_with('.')
        };
        let (owner, rest) = name.split_once('/')?;
        (word(owner) && word(rest) && word(revision)).then_some(Self { name, revision })
    }

    /// Its folder in a cache.
    fn repository(&self, kind: Kind, cache: &Path) -> PathBuf {
        cache.join(format!("{}--{}", kind.word(), self.name.replace('/', "--")))
    }

    /// The folder of its files in a cache, if they are there. The revision is a branch, a tag or a commit.
    fn cached(&self, kind: Kind, cache: Option<&Path>) -> Option<PathBuf> {
        let repository = self.repository(kind, cache?);
        let commit = std::fs::read_to_string(repository.join("refs").join(self.revision)).ok();
        let commit = commit.as_deref().map_or(self.revision, str::trim);
        // What stands in the file must not lead out of the cache.
        let plain = !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric());
        let folder = repository.join("snapshots").join(commit);
        (plain && folder.is_dir()).then_some(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        for text in ["owner/name", "Qwen/Qwen2.5-0.5B", "a/b@v1.0", "a_b/c-d@0123abcd"] {
            assert!(Name::parse(text).is_some(), "{text}");
        }
        for text in [
            "name", "./name", "../name", "a/b/c", "/a/b", "a/.b", "a/", "a b/c", "a/b@", "a/b@../c",
        ] {
            assert!(Name::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn the_cache_is_read_as_it_is_laid_out() {
        let folder = tempfile::tempdir().unwrap();
        let repository = folder.path().join("models--owner--name");
        let commit = "0123456789abcdef";
        std::fs::create_dir_all(repository.join("snapshots").join(commit)).unwrap();
        std::fs::create_dir_all(repository.join("refs")).unwrap();
        std::fs::write(repository.join("refs/main"), format!("{commit}\n")).unwrap();
        let found =
            |text: &str| Name::parse(text).unwrap().cached(Kind::Model, Some(folder.path()));
        let there = repository.join("snapshots").join(commit);
        assert_eq!(found("owner/name"), Some(there.clone()));
        assert_eq!(found("owner/name@0123456789abcdef"), Some(there));
        assert_eq!((found("owner/other"), found("owner/name@v2")), (None, None));
        std::fs::write(repository.join("refs/main"), "../../..").unwrap();
        assert_eq!(found("owner/name"), None);
        std::fs::write(repository.join("refs/main"), "ffff").unwrap();
        assert_eq!(found("owner/name"), None, "a commit that was not fetched");
    }
}
