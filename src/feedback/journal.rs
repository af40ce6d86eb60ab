//! A file of decisions that only grows: one line of JSON for each, whole and on the disk before
//! anything goes on.
//!
//! Several processes may append to one file. Each append locks it, reads what others have written
//! since, and writes one line; an id that is there by then is not written twice. A line without an
//! end, which a kill leaves behind, is moved to a file of its own beside it.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Problem, Result};
use crate::files::check_creatable;
use crate::model::folder::sync_directory;
use crate::train::lock::same_file;

/// Lines that are no JSON and are named at once.
const MOST_BAD: usize = 100;
/// Longest line in bytes.
const LONGEST: usize = 64 << 20;
/// Bytes in front of what is read next that are compared with what was there.
const TAIL: usize = 64;
/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// The file, and what of it was read.
pub struct Journal {
    path: PathBuf,
    /// Ids of the lines read so far.
    ids: HashSet<String>,
    /// Bytes read so far: always the end of a line.
    read: u64,
    /// Lines read so far.
    lines: usize,
    /// The last bytes read, to notice another file in its place, or another text in it.
    tail: Vec<u8>,
    /// Lines for the user: what was put aside.
    notes: Vec<String>,
}

/// What became of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is on the disk.
    New,
    /// Its id was there already, from this process or another: nothing was written.
    Known,
}

/// Hears each line that is read.
pub type Hear<'a> = dyn FnMut(&Map<String, Value>) + 'a;

impl Journal {
    /// Opens `path` and tells `hear` each of its lines. A file that is not there is made with its first
    /// line.
    ///
    /// # Errors
    /// A file that cannot be read, written or made; lines that are no JSON objects, all at once.
    pub fn open(path: &Path, hear: &mut Hear) -> Result<Self> {
        let mut new = Self {
            path: path.to_owned(),
            ids: HashSet::new(),
            read: 0,
            lines: 0,
            tail: Vec::new(),
            notes: Vec::new(),
        };
        if path.symlink_metadata().is_ok() {
            new.refresh(hear)?;
        } else {
            check_creatable(path)?;
        }
        Ok(new)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a line of this id was read or written.
    pub fn knows(&self, id: &str) -> bool {
        self.ids.contains(id)
    }

    /// Lines read and written so far.
    pub fn lines(&self) -> usize {
        self.lines
    }

    /// What there is to tell the user since the last call: bytes of a cut line that were put aside.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Reads what other processes have written since, and tells `hear`.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn refresh(&mut self, hear: &mut Hear) -> Result<()> {
        if self.read == 0 && !self.path.exists() {
            return Ok(());
        }
        let mut file = self.locked()?;
        self.catch_up(&mut file, hear)
    }

    /// Writes `row` as the last line, if its `id` is not there yet; it is on the disk when this
    /// returns. `hear` is told the lines of others that were there by then.
    ///
    /// # Errors
    /// As [`Journal::open`]; whatever the disk says. Then nothing of the row is in the file.
    ///
    /// # Panics
    /// When the row has no `id` of text.
    pub fn append(&mut self, row: &Map<String, Value>, hear: &mut Hear) -> Result<Appended> {
        let id = row.get("id").and_then(Value::as_str).expect("a row of a journal has an id");
        let mut file = self.locked()?;
        self.catch_up(&mut file, hear)?;
        if self.knows(id) {
            return Ok(Appended::Known);
        }
        let mut line = serde_json::to_vec(row).expect("a map of JSON values is JSON");
        line.push(b'\n');
        let written = file.seek(SeekFrom::Start(self.read)).and_then(|_| file.write_all(&line));
        if let Err(error) = written.and_then(|()| file.sync_data()) {
            // A part of a line would be put aside later; better that there is none.
            let _ = file.set_len(self.read);
            return Err(Error::io("write", &self.path, error));
        }
        self.ids.insert(id.to_owned());
        self.pass(&line);
        Ok(Appended::New)
    }

    /// Counts a line as read.
    fn pass(&mut self, line: &[u8]) {
        self.lines += 1;
        self.read += line.len() as u64;
        self.tail.extend_from_slice(&line[line.len().saturating_sub(TAIL)..]);
        self.tail.drain(..self.tail.len().saturating_sub(TAIL));
    }

    /// Whether the file still holds what was read, as far as its last bytes say.
    fn goes_on(&self, file: &mut File) -> std::io::Result<bool> {
        let mut tail = Vec::new();
        file.seek(SeekFrom::Start(self.read - self.tail.len() as u64))?;
        file.take(self.tail.len() as u64).read_to_end(&mut tail)?;
        Ok(tail == self.tail)
    }

    /// The file that has the name now, locked until it is dropped. Where an editor has put another in
    /// its place since, that is it: what is written to a file without a name is lost.
    fn locked(&mut self) -> Result<File> {
        let path = self.path.clone();
        if let Ok(found) = std::fs::metadata(&path)
            && !found.is_file()
        {
            return Err(Error::file(path, "is not a file that lines can be added to"));
        }
        if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        }
        loop {
            let fresh = !path.exists();
            let mut options = OpenOptions::new();
            let open = options.read(true).write(true).create(true).truncate(false).open(&path);
            let file = open.map_err(|e| Error::io("write", &path, e))?;
            match file.lock() {
                Ok(()) => {}
                // Some network file systems know no locks.
                Err(e) if e.kind() == ErrorKind::Unsupported => {}
                Err(e) => return Err(Error::io("lock", &path, e)),
            }
            let own = file.metadata().map_err(|e| Error::io("read", &path, e))?;
            let named = std::fs::metadata(&path).is_ok_and(|found| same_file(&found, &own));
            if !named {
                continue;
            }
            if fresh {
                let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
                sync_directory(folder.unwrap_or(Path::new(".")))?;
            }
            let mut file = file;
            if !self.goes_on(&mut file).map_err(|e| Error::io("read", &path, e))? {
                (self.read, self.lines) = (0, 0);
                self.tail.clear();
                self.ids.clear();
            }
            return Ok(file);
        }
    }

    /// Reads the lines behind [`Journal::read`] and puts a cut one aside.
    fn catch_up(&mut self, file: &mut File, hear: &mut Hear) -> Result<()> {
        let path = self.path.clone();
        let io = |e| Error::io("read", &path, e);
        file.seek(SeekFrom::Start(self.read)).map_err(io)?;
        let (mut rest, mut problems) = (Vec::new(), Vec::new());
        loop {
            let from = rest.len();
            let read = file.take(PIECE as u64).read_to_end(&mut rest).map_err(io)?;
            let end = rest[from..].iter().rposition(|&b| b == b'\n').map_or(0, |at| from + at + 1);
            for line in rest[..end].split_inclusive(|&b| b == b'\n') {
                self.pass(line);
                match (line.trim_ascii(), serde_json::from_slice::<Map<String, Value>>(line)) {
                    (b"", _) => {}
                    (_, Ok(row)) => {
                        let id = row.get("id").and_then(Value::as_str);
                        self.ids.extend(id.map(str::to_owned));
                        hear(&row);
                    }
                    (_, Err(_)) if problems.len() < MOST_BAD => {
                        let place = format!("{}:{}", self.path.display(), self.lines);
                        problems.push(Problem::new(place, "is no row in JSON; mend or remove it"));
                    }
                    _ => {}
                }
            }
            rest.drain(..end);
            if rest.len() > LONGEST {
                let what = format!(
                    "has a line longer than {} MiB; it is no file of decisions",
                    LONGEST >> 20
                );
                return Err(Error::file(&self.path, what));
            }
            if read == 0 {
                break;
            }
        }
        if !problems.is_empty() {
            return Err(Error::input("decisions cannot be added to this file", problems));
        }
        if rest.is_empty() {
            return Ok(());
        }
        self.mend(file, &rest, hear)
    }

    /// Ends a last line that is whole, and moves one that is cut to a file beside this one.
    fn mend(&mut self, file: &mut File, rest: &[u8], hear: &mut Hear) -> Result<()> {
        let path = self.path.clone();
        let io = |e| Error::io("write", &path, e);
        if let Ok(row) = serde_json::from_slice::<Map<String, Value>>(rest) {
            file.seek(SeekFrom::End(0)).map_err(io)?;
            file.write_all(b"\n").and_then(|()| file.sync_data()).map_err(io)?;
            self.pass(&[rest, b"\n"].concat());
            self.ids.extend(row.get("id").and_then(Value::as_str).map(str::to_owned));
            hear(&row);
            return Ok(());
        }
        let mut aside = self.path.clone().into_os_string();
        aside.push(".cut");
        let aside = PathBuf::from(aside);
        let keep = |line: &[u8]| {
            let mut kept = OpenOptions::new().append(true).create(true).open(&aside)?;
            kept.write_all(line)?;
            kept.write_all(b"\n")?;
            kept.sync_data()
        };
        keep(rest).map_err(|e| Error::io("write", &aside, e))?;
        file.set_len(self.read).and_then(|()| file.sync_data()).map_err(io)?;
        self.notes.push(format!(
            "{}: the last line was cut after {} bytes, as a kill leaves it; they were moved to {}",
            self.path.display(),
            rest.len(),
            aside.display()
        ));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str) -> Map<String, Value> {
        Map::from_iter([("id".to_owned(), id.into()), ("text".to_owned(), "é\n".into())])
    }

    fn open(path: &Path) -> (Journal, Vec<String>) {
        let mut ids = Vec::new();
        let journal = Journal::open(path, &mut |row| ids.push(row["id"].to_string())).unwrap();
        (journal, ids)
    }

    #[test]
    fn two_writers_write_each_row_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/rows.jsonl");
        let ids = |from: usize| (from..from + 60).map(|i| i.to_string());
        let write = |from: usize| {
            let mut journal = Journal::open(&path, &mut |_| ()).unwrap();
            let new = ids(from)
                .filter(|id| journal.append(&row(id), &mut |_| ()).unwrap() == Appended::New);
            new.count()
        };
        let new: usize = std::thread::scope(|scope| {
            let threads: Vec<_> =
                [0, 30, 0].map(|from| scope.spawn(move || write(from))).into_iter().collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let (journal, mut read) = open(&path);
        read.sort();
        read.dedup();
        assert_eq!((new, journal.lines(), read.len()), (90, 90, 90));
    }

    #[test]
    fn a_cut_line_is_put_aside_and_nothing_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let (mut journal, _) = open(&path);
        journal.append(&row("a"), &mut |_| ()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 1..whole.len() - 1 {
            std::fs::write(&path, [&whole[..], &whole[..cut]].concat()).unwrap();
            let (mut journal, ids) = open(&path);
            assert_eq!((ids.len(), journal.take_notes().len()), (1, 1), "cut at {cut}");
            assert_eq!(std::fs::read(&path).unwrap(), whole);
            let aside = folder.path().join("rows.jsonl.cut");
            assert_eq!(std::fs::read(&aside).unwrap(), [&whole[..cut], b"\n"].concat());
            std::fs::remove_file(aside).unwrap();
        }
        // Without its line break alone a row is whole.
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let (mut journal, ids) = open(&path);
        assert_eq!((ids.len(), journal.take_notes().len()), (1, 0));
        assert_eq!(journal.append(&row("a"), &mut |_| ()).unwrap(), Appended::Known);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }

    #[test]
    fn another_file_in_its_place_is_read_and_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let (mut journal, _) = open(&path);
        journal.append(&row("a"), &mut |_| ()).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "{\"id\": \"of an editor, and longer than before\"}\n").unwrap();
        assert_eq!(journal.append(&row("a"), &mut |_| ()).unwrap(), Appended::New);
        assert_eq!(open(&path).1.len(), 2);
        std::fs::write(&path, "").unwrap();
        assert_eq!(journal.append(&row("a"), &mut |_| ()).unwrap(), Appended::New);
        assert_eq!(open(&path).1.len(), 1);
    }

    #[test]
    fn what_is_no_journal_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, "{\"id\": \"a\"}\nhello\n[]\n\n").unwrap();
        let error = Journal::open(&path, &mut |_| ()).err().unwrap().to_string();
        assert!(error.contains("rows.jsonl:2: ") && error.contains("rows.jsonl:3: "), "{error}");
        assert!(Journal::open(folder.path(), &mut |_| ()).is_err());
    }
}
