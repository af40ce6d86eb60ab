//! A snapshot of a revision in the cache, made of contents that are all there.

use std::fs;
use std::path::Path;

use super::listing::Wanted;
use crate::error::{Error, Result};
use crate::files::write_atomically;

/// Makes the snapshot of files whose contents are all there, and names its commit.
pub(super) fn place(
    repository: &Path,
    revision: &str,
    commit: &str,
    files: &mut [Wanted],
) -> Result<()> {
    let snapshots = repository.join("snapshots");
    let snapshot = snapshots.join(commit);
    if snapshot.is_dir() {
        // Another tool fetched a part. Weights last: with them it counts as whole.
        files.sort_by_key(|wanted| wanted.file.ends_with(".safetensors"));
        fill(repository, &snapshot, files)?;
    } else {
        let beside = snapshots.join(format!("{commit}.incomplete"));
        fill(repository, &beside, files)?;
        fs::rename(&beside, &snapshot).map_err(|e| Error::io("rename", &beside, e))?;
    }
    if revision != commit {
        let folder = repository.join("refs");
        fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
        write_atomically(&folder.join(revision), commit.as_bytes())?;
    }
    Ok(())
}

/// Puts into `folder`, which stands beside or is a snapshot, what of `files` it lacks.
fn fill(repository: &Path, folder: &Path, files: &[Wanted]) -> Result<()> {
    for wanted in files {
        let path = folder.join(&wanted.file);
        if path.exists() {
            continue;
        }
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
        // A link may be there that leads nowhere.
        if fs::symlink_metadata(&path).is_ok() {
            fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        }
        let up = "../".repeat(1 + Path::new(&wanted.file).components().count());
        let blob = repository.join("blobs").join(&wanted.hash);
        link(Path::new(&format!("{up}blobs/{}", wanted.hash)), &blob, &path)
            .map_err(|e| Error::io("write", &path, e))?;
    }
    Ok(())
}

/// A link where the system has them; else a copy, as the hub's own tools do.
fn link(target: &Path, blob: &Path, path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    if std::os::unix::fs::symlink(target, path).is_ok() {
        return Ok(());
    }
    let _ = target;
    fs::copy(blob, path).map(drop)
}
