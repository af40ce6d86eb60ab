//! Files written whole or not at all.

#[cfg(feature = "cli")]
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};

/// Writes `bytes` to `path`: a reader, or a run that is stopped half-way, sees the old file or the
/// new one, never a part.
#[cfg(feature = "cli")]
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    // Temporary files are private to their owner; this one becomes an ordinary file, for whom the
    // user's own mask decides.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file =
        builder.tempfile_in(folder).map_err(|e| Error::io("create a file in", folder, e))?;
    file.write_all(bytes).map_err(|e| Error::io("write", path, e))?;
    file.persist(path).map_err(|e| Error::io("write", path, e.error))?;
    Ok(())
}

/// Finds out, before anything is computed, whether a folder that does not exist yet can be made at
/// `path`; leaves nothing behind.
///
/// # Errors
/// Names the nearest folder that exists and what the system says about writing there.
pub(crate) fn check_creatable(path: &Path) -> Result<()> {
    let refuse = |at: &Path, why: String| {
        let text = format!("cannot be created: {} {why}. Choose another place.", at.display());
        Err(Error::file(path, text))
    };
    let mut there = path;
    while there.symlink_metadata().is_err() {
        match there.parent() {
            Some(parent) if parent != Path::new("") => there = parent,
            _ => there = Path::new("."),
        }
    }
    if !there.is_dir() {
        return refuse(there, "is not a folder".into());
    }
    match tempfile::tempfile_in(there) {
        Ok(_) => Ok(()),
        Err(e) => refuse(there, format!("cannot be written to ({e})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_replace_what_is_there_and_leave_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_atomically(&path, b"first").unwrap();
        write_atomically(&path, b"2").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"2");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let plain = folder.path().join("plain.txt");
        std::fs::write(&plain, b"").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions();
        assert_eq!(mode(&path), mode(&plain));
    }

    #[test]
    fn files_name_the_folder_they_cannot_write_to() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_atomically(&folder.path().join("absent/a.txt"), b"").unwrap_err();
        assert!(error.to_string().contains("absent"), "{error}");
    }

    #[test]
    fn folders_that_cannot_be_made_are_found_beforehand() {
        let folder = tempfile::tempdir().unwrap();
        check_creatable(&folder.path().join("a/b/c")).unwrap();
        check_creatable(Path::new("a-name-alone")).unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let error = check_creatable(&file.join("below")).unwrap_err().to_string();
        assert!(error.contains("file is not a folder"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
