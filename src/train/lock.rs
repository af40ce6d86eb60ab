//! One run at a time in a folder.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Name of the file that is locked in a run's folder. It stays there: a lock ends with its process,
/// however that ends, and a file that is removed could be locked twice.
pub const LOCK: &str = "run.lock";

/// Keeps other runs out of a folder for as long as it lives.
#[derive(Debug)]
pub struct RunLock {
    file: File,
    held: bool,
}

/// What became of a folder while it was locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is there.
    There,
    /// It was gone, and is there again, empty.
    Remade,
}

impl RunLock {
    /// Makes and locks the folder of a new run. It must not have appeared since it was looked for.
    ///
    /// # Errors
    /// When it is there by now or cannot be made; as [`RunLock::take`].
    pub fn make(folder: &Path) -> Result<Self> {
        if let Some(parent) = folder.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
        }
        match fs::create_dir(folder) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Err(Error::file(
                folder,
                "was made meanwhile, by another run as it seems. Choose another `output`.",
            )),
            Err(e) => Err(Error::io("create", folder, e)),
            Ok(()) => Self::take(folder),
        }
    }

    /// Finds out whether `folder` is still the one that was locked. One that was moved or removed
    /// is made and locked again; so is one that lost its lock alone.
    ///
    /// # Errors
    /// When another run has made the folder its own; as [`RunLock::make`].
    pub fn keep(&mut self, folder: &Path) -> Result<Kept> {
        let there = match fs::metadata(folder.join(LOCK)) {
            Ok(there) => there,
            Err(_) if folder.exists() => {
                *self = Self::take(folder)?;
                return Ok(Kept::There);
            }
            Err(_) => {
                *self = Self::make(folder)?;
                return Ok(Kept::Remade);
            }
        };
        let held = self.file.metadata().map_err(|e| Error::io("read", folder.join(LOCK), e))?;
        if same_file(&held, &there) {
            return Ok(Kept::There);
        }
        // It says which run, if that is still at work.
        Self::take(folder)?;
        Err(Error::file(
            folder,
            "was removed while the run was in it, and made anew by another run. Nothing is written into that.",
        ))
    }

    /// Locks an existing folder.
    ///
    /// # Errors
    /// When another run is at work in it, by its process if that is known; when the file of the
    /// lock cannot be made.
    pub fn take(folder: &Path) -> Result<Self> {
        let path = folder.join(LOCK);
        let mut options = OpenOptions::new();
        let open = options.read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(|e| Error::io("create", &path, e))?;
        let held = match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => return Err(taken(folder, &mut file)),
            // Some network file systems know no locks: a run alone in its folder needs none.
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => false,
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path, e)),
        };
        let mut lock = Self { file, held };
        if held {
            lock.note(&std::process::id().to_string()).map_err(|e| Error::io("write", &path, e))?;
        }
        Ok(lock)
    }

    /// Finds out whether another run is at work in a folder that may be anybody's; leaves nothing
    /// there.
    ///
    /// # Errors
    /// As [`RunLock::take`].
    pub fn check_free(folder: &Path) -> Result<()> {
        if folder.join(LOCK).is_file() { Self::take(folder).map(drop) } else { Ok(()) }
    }

    /// Whether the folder's file system knows locks at all.
    pub fn is_held(&self) -> bool {
        self.held
    }

    fn note(&mut self, text: &str) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all(text.as_bytes())
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        if self.held {
            // Only the name of the process goes; the lock itself ends with the file's handle.
            let _ = self.file.set_len(0);
        }
    }
}

/// Whether both are of one file, whatever names it has.
#[cfg(unix)]
pub(crate) fn same_file(a: &Metadata, b: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Elsewhere a file that is open cannot make room for another of its name.
#[cfg(not(unix))]
pub(crate) fn same_file(_: &Metadata, _: &Metadata) -> bool {
    true
}

fn taken(folder: &Path, file: &mut File) -> Error {
    let mut process = String::new();
    // Where a lock keeps readers out too, the process stays unknown.
    let _ = file.take(20).read_to_string(&mut process);
    let who = match process.parse::<u32>() {
        Ok(id) => format!("another run (process {id})"),
        Err(_) => "another run".to_owned(),
    };
    let what = format!(
        "{who} is at work in this folder. Wait for it, stop it, or choose another `output`."
    );
    Error::file(folder, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let lock = RunLock::take(dir.path()).unwrap();
        let refused = RunLock::take(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("another run") && refused.contains("at work"), "{refused}");
        if cfg!(unix) {
            assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        }
        assert!(RunLock::check_free(dir.path()).is_err());
        drop(lock);
        RunLock::check_free(dir.path()).unwrap();
        assert_eq!(std::fs::read(dir.path().join(LOCK)).unwrap(), b"");
        // What a killed process left says nothing.
        std::fs::write(dir.path().join(LOCK), "4294967295").unwrap();
        assert!(RunLock::take(dir.path()).unwrap().is_held());
        assert!(RunLock::take(&dir.path().join("absent")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_is_moved_or_taken_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let [run, moved] = ["deep/run", "moved"].map(|name| dir.path().join(name));
        let mut lock = RunLock::make(&run).unwrap();
        assert!(RunLock::make(&run).unwrap_err().to_string().contains("was made meanwhile"));
        assert_eq!(lock.keep(&run).unwrap(), Kept::There);
        fs::remove_file(run.join(LOCK)).unwrap();
        assert_eq!(lock.keep(&run).unwrap(), Kept::There);
        assert!(RunLock::take(&run).is_err(), "it is locked again");
        fs::rename(&run, &moved).unwrap();
        assert_eq!(lock.keep(&run).unwrap(), Kept::Remade);
        assert!(RunLock::take(&run).is_err(), "the new one is locked");
        fs::remove_dir_all(&run).unwrap();
        let other = RunLock::make(&run).unwrap();
        assert!(lock.keep(&run).unwrap_err().to_string().contains("is at work"));
        drop(other);
        assert!(lock.keep(&run).unwrap_err().to_string().contains("made anew by another run"));
    }
}
