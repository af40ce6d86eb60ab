//! Files written whole or not at all, and read only if they are files and of a size that makes sense.

use std::fs::File;
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::path::Path;
#[cfg(feature = "cli")]
use std::path::PathBuf;

use crate::error::{Error, Result};

/// How the name of a file begins that [`write_atomically`] has not finished.
pub(crate) const TEMPORARY: &str = ".tmp";

/// Writes `bytes` to `path`: a reader, or a run that is stopped half-way, sees the old file or the
/// new one, never a part.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole(path, &mut |file| file.write_all(bytes).map_err(|e| Error::io("write", path, e)))
}

/// As [`write_atomically`], with what `fill` writes. After an error there is no new file.
///
/// # Errors
/// Those of `fill`; whatever the disk refuses.
pub(crate) fn write_whole(
    path: &Path,
    fill: &mut dyn FnMut(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY);
    // Temporary files are private to their owner; this one becomes an ordinary file, for whom the
    // user's own mask decides.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let file = builder.tempfile_in(folder).map_err(|e| Error::io("create a file in", folder, e))?;
    let mut buffer = BufWriter::new(file);
    fill(&mut buffer)?;
    let file = buffer.into_inner().map_err(|e| Error::io("write", path, e.into_error()))?;
    file.persist(path).map_err(|e| Error::io("write", path, e.error))?;
    Ok(())
}

/// The folder of what a machine need not compute again: `ODDGRAD_CACHE`, else where the system keeps such things.
/// None where no home is known.
#[cfg(feature = "cli")]
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let dir = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(folder) = dir("ODDGRAD_CACHE") {
        return Some(folder);
    }
    let base = if cfg!(windows) {
        dir("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        dir("HOME").map(|home| home.join("Library/Caches"))
    } else {
        dir("XDG_CACHE_HOME").or_else(|| dir("HOME").map(|home| home.join(".cache")))
    };
    Some(base?.join("oddgrad"))
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

/// Opens a file to read it. None if nothing has that name.
///
/// # Errors
/// A link to nothing; a folder, pipe or device: to open a pipe can take for ever, and a device has
/// no end.
pub(crate) fn open_file(path: &Path) -> Result<Option<File>> {
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            if path.symlink_metadata().is_ok() {
                return Err(Error::file(path, "is a link to nothing; copy the file itself"));
            }
            return Ok(None);
        }
        Err(e) => return Err(Error::io("read", path, e)),
    };
    if !found.is_file() {
        let what = if found.is_dir() { "a folder" } else { "a pipe or a device" };
        return Err(Error::file(path, format!("is {what}, not a file")));
    }
    File::open(path).map(Some).map_err(|e| Error::io("read", path, e))
}

/// Reads a file of at most `most` bytes. None if nothing has that name.
///
/// # Errors
/// Those of [`open_file`], and a longer file.
pub(crate) fn read_file(path: &Path, most: usize) -> Result<Option<Vec<u8>>> {
    let Some(file) = open_file(path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
    if bytes.len() > most {
        let what = format!("is larger than {} KiB, which no file of its kind is", most >> 10);
        return Err(Error::file(path, what));
    }
    Ok(Some(bytes))
}

/// As [`read_file`], for JSON.
///
/// # Errors
/// Those of [`read_file`], and what is not JSON.
pub(crate) fn read_json(path: &Path, most: usize) -> Result<Option<serde_json::Value>> {
    let Some(bytes) = read_file(path, most)? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| Error::file(path, format!("not JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_a_sensible_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert_eq!(read_file(&at("absent"), 9).unwrap(), None);
        std::fs::write(at("five"), "12345").unwrap();
        assert_eq!(read_file(&at("five"), 5).unwrap().unwrap(), b"12345");
        assert!(read_file(&at("five"), 4).unwrap_err().to_string().contains("larger than"));
        assert!(read_file(folder.path(), 9).unwrap_err().to_string().contains("is a folder"));
    }

    #[cfg(unix)]
    #[test]
    fn links_to_nothing_and_devices_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("link");
        let refusal = |to: &str| {
            let _ = std::fs::remove_file(&path);
            std::os::unix::fs::symlink(to, &path).unwrap();
            read_file(&path, 9).unwrap_err().to_string()
        };
        assert!(refusal("nowhere").contains("a link to nothing"));
        assert!(refusal("/dev/zero").contains("a pipe or a device"));
    }

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
