//! One run at a time in a folder.

use std::fs::{File, OpenOptions, TryLockError};
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

impl RunLock {
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
}
