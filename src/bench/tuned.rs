//! The file that `oddgrad tune` writes and every other command reads: which kernel is fastest here.
//!
//! It is TOML that a person can read and mend. It counts for one adapter, driver and backend; each
//! choice also names the texts it was made between by a hash, so that a new driver or an edited
//! kernel makes it void instead of wrong.

use crate::error::{Error, Result};
use crate::files::{cache_folder, write_atomically};
use crate::gpu::Gpu;
use crate::kernel::{Pass, SizeClass, Tuned, VariantId};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A tuned adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunedFile {
    /// Name of the adapter.
    pub adapter: String,
    /// Its driver with version.
    pub driver: String,
    /// Vulkan, Metal, …
    pub backend: String,
    /// What was found.
    #[serde(default, rename = "choice")]
    pub choices: Vec<Choice>,
}

/// How kernels may read the factors of products.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Factors {
    /// As they are: results have the digits of single precision.
    #[default]
    F32,
    /// Rounded to 16 bits ([`Variant::tolerance`](crate::kernel::Variant::tolerance)): only for runs
    /// that ask for it.
    F16,
}

/// The fastest kernel of a pass for a class of sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// `matmul.nt`.
    pub pass: String,
    /// [`SizeClass::reads_below`].
    pub reads_below: u64,
    /// [`SizeClass::writes_below`].
    pub writes_below: u64,
    /// [`SizeClass::columns_below`]; a file of before there was one holds for no dispatch.
    #[serde(default)]
    pub columns_below: u64,
    /// What it was allowed to do to the factors: the file holds the best exact kernel and, where one
    /// is faster still, the best that loses digits.
    #[serde(default)]
    pub dtype: Factors,
    /// Number of the kernel.
    pub variant: u32,
    /// Its tile, where its file has several.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tile: String,
    /// Its idea, for the reader.
    pub idea: String,
    /// Microseconds of one dispatch.
    pub us: f64,
    /// Microseconds of the default kernel.
    #[serde(alias = "usual_us")]
    pub default_us: f64,
    /// [`texts_hash`] of the pass.
    pub kernels: String,
}

impl Choice {
    /// The class it holds for.
    pub fn size(&self) -> SizeClass {
        SizeClass {
            reads_below: self.reads_below,
            writes_below: self.writes_below,
            columns_below: self.columns_below,
        }
    }

    /// True if it was made between the kernels of this program and says what it does to digits.
    fn counts(&self, passes: &[&'static Pass]) -> bool {
        let Some(pass) = passes.iter().find(|p| p.full_name() == self.pass) else { return false };
        let exact = pass.find(&self.id()).is_none_or(|v| v.tolerance == 0.0);
        let sized = self.columns_below > 0;
        sized && texts_hash(pass) == self.kernels && (exact || self.dtype == Factors::F16)
    }

    /// The kernel.
    pub fn id(&self) -> VariantId {
        VariantId { number: self.variant, tile: self.tile.clone() }
    }
}

/// A hash of the names and texts of all kernels of a pass, each with the constants of its tile.
pub fn texts_hash(pass: &Pass) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in pass.variants.iter().flat_map(|v| v.identity()) {
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..16].into()
}

/// The file of an adapter, in `ODDGRAD_CACHE` or where the system keeps caches.
pub fn path_of(gpu: &Gpu) -> Option<PathBuf> {
    let info = gpu.info();
    let name = format!("{} {:?}", info.name, info.backend).to_lowercase();
    let words: Vec<&str> =
        name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
    Some(cache_folder()?.join(format!("tuned-{}.toml", words.join("-"))))
}

/// What a file holds for this program on this adapter.
#[derive(Debug, Default, PartialEq)]
pub struct Loaded {
    /// The choices that count.
    pub tuned: Tuned,
    /// How many of them lose digits.
    pub lossy: usize,
    /// Why all or some of the file does not count.
    pub void: Option<String>,
}

impl TunedFile {
    /// An empty file for an adapter.
    pub fn new(gpu: &Gpu) -> Self {
        let info = gpu.info();
        Self {
            adapter: info.name.clone(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().into(),
            backend: format!("{:?}", info.backend),
            choices: Vec::new(),
        }
    }

    /// The file at `path`; None if there is none.
    ///
    /// # Errors
    /// A file that cannot be read or is none of ours.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", path, e)),
        };
        let file = toml::from_str(&text).map_err(|e| {
            Error::file(path, format!("{e}\nDelete it, run `oddgrad tune` again, or use --untuned"))
        })?;
        Ok(Some(file))
    }

    /// The choices that count on the adapter `here` is an empty file of. Those that lose digits do
    /// only if `half`, and then come before the exact ones for the same sizes.
    pub fn applied_to(&self, here: &Self, half: bool) -> Loaded {
        let mine = |f: &Self| (f.adapter.clone(), f.driver.clone(), f.backend.clone());
        if mine(self) != mine(here) {
            let void =
                format!("was made with {} ({}, {})", self.adapter, self.driver, self.backend);
            return Loaded { void: Some(void), ..Loaded::default() };
        }
        let passes = crate::ops::passes();
        let of = |dtype: Factors| {
            let ours = self.choices.iter().filter(move |c| c.dtype == dtype);
            ours.filter(|c| c.counts(&passes)).map(|c| ((c.pass.clone(), c.size()), c.id()))
        };
        let mut tuned: Tuned = of(Factors::F32).collect();
        let lossy = if half { of(Factors::F16).count() } else { 0 };
        tuned.extend(of(Factors::F16).take(lossy));
        let old = self.choices.iter().filter(|c| !c.counts(&passes)).count();
        let void = (old > 0).then(|| format!("has {old} choices that do not count any more"));
        Loaded { tuned, lossy, void }
    }

    /// Puts `new` in the place of what is there for the same pass, sizes and factors, and drops
    /// what was chosen between other texts. If `half`, kernels that lose digits were measured too,
    /// and an old choice of one does not outlast the new choice of an exact one.
    pub fn merge(&mut self, new: Vec<Choice>, half: bool) {
        let passes = crate::ops::passes();
        let replaces = |n: &Choice, old: &Choice| {
            let measured = n.dtype == old.dtype || (half && old.dtype == Factors::F16);
            measured && n.pass == old.pass && n.size() == old.size()
        };
        self.choices.retain(|old| old.counts(&passes) && !new.iter().any(|n| replaces(n, old)));
        self.choices.extend(new);
        self.choices.sort_by_key(|c| (c.pass.clone(), c.size(), c.dtype));
    }

    /// Writes the file, and its folder if that is new.
    ///
    /// # Errors
    /// A folder that cannot be made, a full disk.
    pub fn save(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        }
        let body = toml::to_string(self).expect("strings and numbers");
        let text = format!(
            "# Kernels that `oddgrad tune` measured to be the fastest on this adapter, by what a\n\
             # dispatch reads and writes in bytes and by the columns of its result. Delete the file to go back to the defaults.\n\n{body}"
        );
        write_atomically(path, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass() -> &'static Pass {
        crate::ops::passes().into_iter().find(|p| p.full_name() == "adamw.update").unwrap()
    }

    fn choice(variant: u32, reads_below: u64) -> Choice {
        Choice {
            pass: "adamw.update".into(),
            reads_below,
            writes_below: 4096,
            columns_below: 1024,
            dtype: Factors::F32,
            variant,
            tile: String::new(),
            idea: "naive".into(),
            us: 1.5,
            default_us: 2.0,
            kernels: texts_hash(pass()),
        }
    }

    fn file(driver: &str, choices: Vec<Choice>) -> TunedFile {
        TunedFile {
            adapter: "a \"GPU\"".into(),
            driver: driver.into(),
            backend: "Vulkan".into(),
            choices,
        }
    }

    #[test]
    fn tuned_file_survives_the_disk_and_applies_to_its_driver_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/tuned.toml");
        assert_eq!(TunedFile::load(&path).unwrap(), None);
        let written = file("1", vec![choice(1, 1024), choice(2, 4096)]);
        written.save(&path).unwrap();
        let read = TunedFile::load(&path).unwrap().unwrap();
        assert_eq!(read, written);
        let loaded = read.applied_to(&file("1", Vec::new()), false);
        assert_eq!((loaded.tuned.len(), loaded.void), (2, None));
        let loaded = read.applied_to(&file("2", Vec::new()), false);
        assert!(loaded.tuned.is_empty() && loaded.void.unwrap().contains("was made with"));
    }

    #[test]
    fn tuned_choices_between_other_texts_are_void() {
        let old = Choice { kernels: "0123".into(), ..choice(1, 4096) };
        let unsized_choice = Choice { columns_below: 0, ..choice(1, 4096) };
        let mut both = file("1", vec![old, choice(2, 1024), unsized_choice]);
        let loaded = both.applied_to(&file("1", Vec::new()), false);
        assert_eq!(loaded.tuned.len(), 1);
        assert!(loaded.void.unwrap().contains("2 choices"));
        both.merge(vec![choice(1, 1024)], false);
        assert_eq!(both.choices, [choice(1, 1024)]);
    }

    #[test]
    fn tuned_choices_that_lose_digits_apply_only_when_asked_for() {
        let lossy = |variant| Choice { dtype: Factors::F16, ..choice(variant, 1024) };
        let mut both = file("1", vec![lossy(2), choice(1, 1024), choice(1, 4096)]);
        let numbers = |file: &TunedFile, half| -> Vec<u32> {
            let here = TunedFile { choices: Vec::new(), ..file.clone() };
            file.applied_to(&here, half).tuned.values().map(|id| id.number).collect()
        };
        assert_eq!(numbers(&both, false), [1, 1]);
        assert_eq!(numbers(&both, true), [2, 1]);
        // Each kind takes the place of its own.
        both.merge(vec![choice(2, 1024)], false);
        assert_eq!(both.choices, [choice(2, 1024), lossy(2), choice(1, 4096)]);
        both.merge(vec![lossy(1)], true);
        assert_eq!(both.choices, [choice(2, 1024), lossy(1), choice(1, 4096)]);
        // Measured again, and this time nothing that loses digits was faster.
        both.merge(vec![choice(2, 1024)], true);
        assert_eq!(both.choices, [choice(2, 1024), choice(1, 4096)]);
    }

    #[test]
    fn tuned_choice_of_a_lossy_kernel_that_passes_for_exact_is_void() {
        let pass = crate::ops::passes().into_iter().find(|p| p.full_name() == "matmul.nt").unwrap();
        let lossy = pass.variants.iter().find(|v| v.tolerance > 0.0).unwrap().number();
        let (name, kernels) = (pass.full_name(), texts_hash(pass));
        let exact = Choice { pass: name, kernels, ..choice(lossy, 1024) };
        let loaded = file("1", vec![exact]).applied_to(&file("1", Vec::new()), true);
        assert!(loaded.tuned.is_empty() && loaded.void.is_some());
    }

    #[test]
    fn tuned_file_that_is_none_is_named_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuned.toml");
        for text in ["[[choice]]", "adapter = 1", "\u{0}", "colour = 2"] {
            std::fs::write(&path, text).unwrap();
            let error = TunedFile::load(&path).unwrap_err().to_string();
            assert!(error.contains("tuned.toml") && error.contains("--untuned"), "{error}");
        }
    }
}
