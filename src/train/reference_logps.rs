//! What the model that a run starts from gives the rows, for objectives with a reference model.
//!
//! It is computed once, before the first step, by the forward pass of evaluations over the initial
//! weights, which are on the device anyway: no second copy of them is ever held. Then it is kept in
//! a file, for later runs and for a run that goes on. A run that goes on without that file puts the
//! initial weights on the device once more, before those of its checkpoint.
//!
//! The file's name is a hash of all that decides the values to the last bit: the initial weights,
//! their `config.json` and an adapter's additions, the rows' token ids, the length of streams, the adapter and the kernels. In
//! it stand the hash of the rest, the hash of its name, and two f32 for each row.

use crate::data::pack::{Capacity, PackedBatch, Pair};
use crate::error::{Error, Result};
use crate::files::{read_file, write_atomically};
use crate::model::adapter::Adapter;
use crate::model::folder::hash_file;
use crate::model::weights::{FolderWeights, ParameterValues};
use crate::train::dataset::Dataset;
use crate::train::learner::Learner;
use crate::train::objectives::Objective;
use crate::train::objectives::preference::MEAN_LOGP;
use crate::train::proof::Hashed;
use crate::train::trainer::TrainEvent;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Mean log-probabilities of the chosen and the rejected answer; 0 for a side that is not there.
pub(super) type Answers = [f32; 2];

/// Bytes of a blake3 hash.
const HASH: usize = 32;

/// The reference model of a run.
pub(super) struct ReferenceModel<'a> {
    /// Holds the initial weights, or those of a checkpoint.
    pub learner: &'a Learner,
    pub objective: &'a dyn Objective,
    pub capacity: Capacity,
    /// The model's folder.
    pub model: &'a Path,
    /// [`Hashed::hash`] of the initial weights.
    pub start_hash: &'a str,
    /// The folder that files are kept in; None to compute every time.
    pub cache: Option<&'a Path>,
    pub stop: &'a AtomicBool,
}

/// The weights that a run started from and those it goes on with.
pub(super) struct Resumed<'a> {
    pub initial: &'a dyn ParameterValues,
    pub checkpoint: &'a FolderWeights,
}

impl ReferenceModel<'_> {
    /// Enters what the model gives the rows of `sets`, each with what it is called.
    ///
    /// # Errors
    /// Values that are not finite, by row; other initial weights than the run began with; a lost
    /// device; [`Error::Stopped`].
    pub fn enter(
        &self,
        sets: Vec<(&str, &mut Dataset)>,
        resumed: Option<Resumed>,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        let mut missing = Vec::new();
        for (name, rows) in sets {
            let key = self.key(rows)?;
            let path = self.cache.map(|folder| path_of(folder, &key));
            let kept = path.as_deref().map(|path| read(path, &key, rows.examples.len()));
            match kept {
                Some(Ok(Some(values))) => {
                    let count = values.len();
                    rows.refer(&values);
                    let path = path.unwrap_or_default();
                    mark_used(&path);
                    on_event(TrainEvent::Note(format!(
                        "{name}reference log-probs: {count} rows read from the cache ({})",
                        path.display()
                    )));
                    continue;
                }
                Some(Err(error)) => on_event(TrainEvent::Note(format!(
                    "{name}reference log-probs: {error}; they are computed again"
                ))),
                Some(Ok(None)) | None => {}
            }
            missing.push((name, rows, key, path));
        }
        if missing.is_empty() {
            return Ok(());
        }
        if let Some(Resumed { initial, .. }) = &resumed {
            let initial = Hashed::new(*initial);
            self.learner.put(&initial)?;
            if initial.hash() != self.start_hash {
                let what = "holds other weights than those the run began with, which are its reference model. Put them back, or start a new run.";
                return Err(Error::file(self.model, what));
            }
        }
        for (name, rows, key, path) in missing {
            let start = Instant::now();
            on_event(TrainEvent::Referring { rows: rows.examples.len() });
            let values = self.compute(rows)?;
            on_event(TrainEvent::Note(format!(
                "{name}reference log-probs: {} rows computed in {:.1} s",
                values.len(),
                start.elapsed().as_secs_f64()
            )));
            rows.refer(&values);
            if let Some(Err(error)) = path.map(|path| write(&path, &key, &values)) {
                // They are needed now, and the next run can compute them too.
                on_event(TrainEvent::Note(format!(
                    "{name}reference log-probs: {error}; they are not kept for other runs"
                )));
            }
        }
        match resumed {
            Some(Resumed { checkpoint, .. }) => self.learner.put(checkpoint),
            None => Ok(()),
        }
    }

    /// A hash of all that decides the values for these rows.
    fn key(&self, rows: &Dataset) -> Result<blake3::Hash> {
        let Capacity { tokens, targets, pairs } = self.capacity;
        let in_order: Vec<usize> = (0..rows.examples.len()).collect();
        let mut hasher = blake3::Hasher::new();
        let adapter = Adapter::of(self.model)?;
        let base = adapter.as_ref().map_or(self.model, |adapter| &adapter.base);
        for part in [
            "oddgrad reference log-probs 1",
            self.start_hash,
            &hash_file(&base.join("config.json"))?,
            &rows.order_hash(&in_order),
            &format!("{tokens} {targets} {pairs}"),
            &self.learner.gpu().describe(),
            &self.learner.eval_kernels_hash(),
        ] {
            hasher.update(part.as_bytes()).update(&[0]);
        }
        if let Some(Adapter { lora, .. }) = adapter {
            // Fresh additions add nothing, whatever they are.
            hasher.update(&lora.scale().to_le_bytes()).update(&[0]);
        }
        Ok(hasher.finalize())
    }

    /// What the weights on the device give every example.
    fn compute(&self, rows: &Dataset) -> Result<Vec<Answers>> {
        let shares = rows.share_out(self.capacity)?;
        let streams = shares.iter().map(|share| rows.stream(share, self.capacity));
        let mut values = vec![[0.0; 2]; rows.examples.len()];
        let (mut done, mut bad) = (shares.iter(), Vec::new());
        answers(self.learner, self.objective, streams, |stream, answers| {
            if self.stop.load(Ordering::Relaxed) {
                let what = "stopped while the reference log-probs were computed, before the first step; start again with --resume";
                return Err(Error::Stopped(what.into()));
            }
            let share = done.next().expect("streams come back in their order");
            for ((&example, &row), &answers) in share.iter().zip(&stream.rows).zip(answers) {
                values[example] = answers;
                if answers.iter().any(|value| !value.is_finite()) {
                    bad.push(row);
                }
            }
            Ok(())
        })?;
        if bad.is_empty() {
            return Ok(values);
        }
        const SHOWN: usize = 8;
        let mut places: Vec<String> =
            bad.iter().take(SHOWN).map(|&row| rows.sources[row].to_string()).collect();
        if bad.len() > SHOWN {
            places.push(format!("and {} more", bad.len() - SHOWN));
        }
        Err(Error::NonFinite(format!(
            "the reference log-probs are not finite (rows {}): the weights in {} give these rows no probability. Look at the rows, or take another model.",
            places.join(", "),
            self.model.display()
        )))
    }
}

/// Tells `each` what the weights on the device give the answers of every pair of these streams, in
/// their order.
///
/// # Errors
/// A lost device, or what `each` says.
pub(super) fn answers(
    learner: &Learner,
    objective: &dyn Objective,
    streams: impl IntoIterator<Item = PackedBatch>,
    mut each: impl FnMut(&PackedBatch, &[Answers]) -> Result<()>,
) -> Result<()> {
    let streams = streams.into_iter().map(|stream| {
        let coefficients = objective.coefficients(&[&stream], 1).remove(0);
        (stream, coefficients)
    });
    learner.evaluate_all(streams, |stream, results| {
        let mean = results.get(MEAN_LOGP);
        let of_pair = |pair: Pair| [mean[pair.chosen], pair.rejected.map_or(0.0, |r| mean[r])];
        each(stream, &stream.pairs().map(of_pair).collect::<Vec<_>>())
    })
}

/// How the name of a file begins and ends.
const NAME: &str = "reference-";
const ENDING: &str = ".logps";

fn path_of(cache: &Path, key: &blake3::Hash) -> PathBuf {
    cache.join(format!("{NAME}{}{ENDING}", &key.to_hex()[..32]))
}

/// The values in a file; None without one.
///
/// # Errors
/// A file that cannot be read or is not the one that was written.
fn read(path: &Path, key: &blake3::Hash, count: usize) -> Result<Option<Vec<Answers>>> {
    let Some(bytes) = read_file(path, 2 * HASH + 8 * count)? else { return Ok(None) };
    let whole = bytes.len() == 2 * HASH + 8 * count
        && bytes[HASH..2 * HASH] == *key.as_bytes()
        && bytes[..HASH] == *blake3::hash(&bytes[HASH..]).as_bytes();
    if !whole {
        return Err(Error::file(path, "is damaged"));
    }
    let values: Vec<f32> = bytes[2 * HASH..].chunks_exact(4).map(f32_of).collect();
    Ok(Some(values.chunks_exact(2).map(|both| [both[0], both[1]]).collect()))
}

/// A file that no run has read or written for so long is deleted when another one is written.
const KEPT: Duration = Duration::from_secs(90 * 24 * 3600);

/// Notes that a file was of use, for [`forget_unused`]. One that cannot be touched is merely older.
fn mark_used(path: &Path) {
    let _ = File::options().append(true).open(path).and_then(|f| f.set_modified(SystemTime::now()));
}

/// Deletes the files in a cache that were of no use for [`KEPT`]; what cannot be deleted stays.
fn forget_unused(cache: &Path) {
    let oldest = SystemTime::now().checked_sub(KEPT);
    for entry in std::fs::read_dir(cache).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|n| n.starts_with(NAME) && n.ends_with(ENDING));
        let used = entry.metadata().and_then(|m| m.modified()).ok();
        if ours && used.zip(oldest).is_some_and(|(used, oldest)| used < oldest) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn f32_of(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn write(path: &Path, key: &blake3::Hash, values: &[Answers]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        forget_unused(folder);
    }
    let mut body = key.as_bytes().to_vec();
    body.extend(values.iter().flatten().flat_map(|value| value.to_le_bytes()));
    let mut bytes = blake3::hash(&body).as_bytes().to_vec();
    bytes.extend(body);
    write_atomically(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_no_use_for_long_are_deleted_when_one_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = |n: &str| path_of(folder.path(), &blake3::hash(n.as_bytes()));
        let values = [[-1.0, -2.0]];
        for name in ["old", "used", "new"] {
            write(&path(name), &blake3::hash(name.as_bytes()), &values).unwrap();
        }
        let other = folder.path().join("other.logps");
        std::fs::write(&other, b"").unwrap();
        let long_ago = SystemTime::now() - KEPT - Duration::from_secs(60);
        for file in [path("old"), path("used"), other.clone()] {
            File::options().append(true).open(file).unwrap().set_modified(long_ago).unwrap();
        }
        mark_used(&path("used"));
        write(&path("one more"), &blake3::hash(b"one more"), &values).unwrap();
        assert!(!path("old").exists(), "the one that nobody read");
        assert!(path("used").exists() && path("new").exists() && other.exists());
    }

    #[test]
    fn a_file_is_read_as_it_was_written_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let key = blake3::hash(b"these weights and rows");
        let path = path_of(&folder.path().join("made"), &key);
        let values = [[-1.5, -2.25], [f32::MIN_POSITIVE, -1e-7]];
        assert_eq!(read(&path, &key, 2).unwrap(), None);
        write(&path, &key, &values).unwrap();
        assert_eq!(read(&path, &key, 2).unwrap().unwrap(), values);
        let whole = std::fs::read(&path).unwrap();
        let damaged = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            assert!(read(&path, &key, 2).is_err(), "{} bytes", bytes.len());
        };
        for at in [0, HASH, 2 * HASH, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            damaged(&bytes);
        }
        damaged(&whole[..whole.len() - 8]);
        damaged(&[&whole[..], &[0; 8]].concat());
        damaged(&[]);
        std::fs::write(&path, &whole).unwrap();
        assert!(read(&path, &blake3::hash(b"others"), 2).is_err());
    }
}
