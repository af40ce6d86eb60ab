//! Models and data sets by their names on the Hugging Face hub, from the cache that transformers and
//! datasets keep on this machine. Nothing is fetched.
//!
//! The cache: `models--owner--name/refs/main` holds the commit of a branch,
//! `models--owner--name/snapshots/<commit>/` its files (datasets: `datasets--…`). It lies in
//! `HF_HUB_CACHE`, else in `hub` below `HF_HOME`, else below `huggingface` in the user's cache
//! folder (<https://huggingface.co/docs/huggingface_hub/guides/manage-cache>).

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What stands in front of a data set's name.
const DATA: &str = "hf:";

/// A model's folder: `path` itself if it is there or is no name of the hub (`owner/name` or
/// `owner/name@revision`), else the cached one.
///
/// # Errors
/// A name of the hub that is not in the cache, with what brings it there.
pub fn model_folder(path: &Path) -> Result<PathBuf> {
    let name = path.to_str().and_then(Name::parse);
    match name {
        Some(name) if std::fs::symlink_metadata(path).is_err() => {
            let missing = |cache: &Path| {
                format!(
                    "is no folder here and no model in the hub's cache ({}); name a folder, or fetch it with `hf download {}`",
                    cache.display(),
                    name.name
                )
            };
            name.cached("models", cache().as_deref()).ok_or_else(|| not_there(path, missing))
        }
        _ => Ok(path.to_owned()),
    }
}

/// Files or a folder of rows: `path` itself, or for `hf:owner/name` the cached data set.
///
/// # Errors
/// A name that is none, or is not in the cache, with what brings it there.
pub fn data_folder(path: &Path) -> Result<PathBuf> {
    let Some(text) = path.to_str().and_then(|text| text.strip_prefix(DATA)) else {
        return Ok(path.to_owned());
    };
    let Some(name) = Name::parse(text) else {
        return Err(Error::file(path, "is no data set of the hub; write hf:owner/name"));
    };
    let missing = |cache: &Path| {
        format!(
            "is not in the hub's cache ({}); fetch it with `hf download --repo-type dataset {}`",
            cache.display(),
            name.name
        )
    };
    name.cached("datasets", cache().as_deref()).ok_or_else(|| not_there(path, missing))
}

fn not_there(path: &Path, what: impl Fn(&Path) -> String) -> Error {
    let cache = cache().unwrap_or_else(|| PathBuf::from("HF_HOME is not set"));
    Error::file(path, what(&cache))
}

/// Where the cache is, by the first of the variables that is set.
fn cache() -> Option<PathBuf> {
    let dir = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || dir("HOME").or_else(|| dir("USERPROFILE"));
    dir("HF_HUB_CACHE")
        .or_else(|| dir("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| dir("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| home().map(|home| home.join(".cache/huggingface/hub")))
}

/// `owner/name`, perhaps with `@revision`.
struct Name<'a> {
    name: &'a str,
    revision: &'a str,
}

impl<'a> Name<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let word = |text: &str| {
            let right = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            (1..=96).contains(&text.len()) && text.chars().all(right) && !text.starts_with('.')
        };
        let (owner, rest) = name.split_once('/')?;
        (word(owner) && word(rest) && word(revision)).then_some(Self { name, revision })
    }

    /// The folder of its files in a cache, if they are there. The revision is a branch, a tag or a commit.
    fn cached(&self, kind: &str, cache: Option<&Path>) -> Option<PathBuf> {
        let repository = cache?.join(format!("{kind}--{}", self.name.replace('/', "--")));
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
        let found = |text: &str| Name::parse(text).unwrap().cached("models", Some(folder.path()));
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
