//! Folders that appear whole or not at all: model folders and checkpoints.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::adapter::{ADAPTER_CONFIG, Adapter, adapter_config};
use super::config::ModelConfig;
use super::save::{ReadParameter, write_factors, write_weights};
use crate::data::form::Form;
use crate::error::{Error, Result};
use crate::files::read_json;

/// Files that make a model usable and that training does not change.
pub const SIDE_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];

/// What oddgrad knows of a model beside transformers' files, which pass over it.
const RECORD: &str = "oddgrad.json";

/// The form that a model folder says it was trained in; None if it says nothing.
///
/// # Errors
/// A record that cannot be read.
pub fn recorded_form(folder: &Path) -> Result<Option<Form>> {
    let path = folder.join(RECORD);
    let Some(value) = read_json(&path, 1 << 16)? else { return Ok(None) };
    let form = value.get("form").unwrap_or(&Value::Null);
    serde_json::from_value(form.clone())
        .map(Some)
        .map_err(|_| Error::file(path, format!("form is {form}; it must be \"plain\" or \"chat\"")))
}

/// The ending of a folder that is still being written; what a killed process leaves behind.
pub const PARTIAL: &str = ".partial";

/// Where `write_folder` prepares `destination`: a hidden sibling, so that the final rename stays
/// on one file system.
pub fn partial_sibling(destination: &Path) -> PathBuf {
    let name = destination.file_name().unwrap_or_default().to_string_lossy();
    destination.with_file_name(format!(".{name}{PARTIAL}"))
}

/// Creates `destination` with what `fill` puts into it, atomically: `fill` works in a temporary
/// sibling, which is flushed to disk and renamed. An existing destination is refused; after an
/// error nothing is left behind. What an earlier, killed attempt at the same folder left is
/// removed first.
pub fn write_folder(destination: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if destination.file_name().is_none() {
        return Err(Error::file(
            destination,
            "is not a folder that can be created; name a new one",
        ));
    }
    if fs::symlink_metadata(destination).is_ok() {
        return Err(Error::file(
            destination,
            "exists already; name another folder or move this one away",
        ));
    }
    if let Some(parent) = destination.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
    }
    let partial = partial_sibling(destination);
    if fs::symlink_metadata(&partial).is_ok() {
        fs::remove_dir_all(&partial).map_err(|e| Error::io("remove", &partial, e))?;
    }
    fs::create_dir(&partial).map_err(|e| Error::io("create", &partial, e))?;
    let result = fill(&partial).and_then(|()| sync_folder(&partial)).and_then(|()| {
        fs::rename(&partial, destination).map_err(|e| Error::io("create", destination, e))
    });
    if result.is_err() {
        // The first error is the one worth telling.
        let _ = fs::remove_dir_all(&partial);
        return result;
    }
    let parent =
        destination.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync_directory(parent)
}

/// Flushes every file of a flat folder, then the folder itself.
fn sync_folder(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))? {
        let path = entry.map_err(|e| Error::io("read", folder, e))?.path();
        // Windows flushes only through a handle that may write.
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| Error::io("write", &path, e))?;
        file.sync_all().map_err(|e| Error::io("write", &path, e))?;
    }
    sync_directory(folder)
}

/// Flushes the entries of a folder, so that a new file in it is there after a power cut.
#[cfg(unix)]
pub(crate) fn sync_directory(folder: &Path) -> Result<()> {
    fs::File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io("write", folder, e))
}

/// Only Unix can flush a directory entry on its own.
#[cfg(not(unix))]
pub(crate) fn sync_directory(_folder: &Path) -> Result<()> {
    Ok(())
}

/// Writes text to a file in a folder under construction.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|e| Error::io("write", path, e))
}

/// Writes `config.json`, `model.safetensors` and the side files of `source` (tokenizer, chat
/// template, generation settings, as far as they are there) into an existing folder, and a record
/// of the `form` it was trained in. `read` gives the parameters' values, one at a time. Of a model
/// with an adapter that is written alone, as PEFT does, with `source` as its base, or the base of
/// `source` where that is an adapter.
pub fn fill_model_folder(
    folder: &Path,
    source: Option<&Path>,
    form: Option<Form>,
    config: &ModelConfig,
    read: &ReadParameter,
) -> Result<()> {
    let adapter = source.map(Adapter::of).transpose()?.flatten();
    if let Some(form) = form {
        write_text(&folder.join(RECORD), &format!("{:#}\n", json!({ "form": form })))?;
    }
    match config.lora() {
        None => {
            write_text(&folder.join("config.json"), &format!("{:#}\n", config.to_json()))?;
            write_weights(folder, config, read)?;
        }
        Some(lora) => {
            let base = adapter.as_ref().map(|adapter| adapter.base.as_path()).or(source);
            let text = format!("{:#}\n", adapter_config(lora, base));
            write_text(&folder.join(ADAPTER_CONFIG), &text)?;
            write_factors(folder, config, read)?;
        }
    }
    let Some(source) = source else { return Ok(()) };
    let source = adapter.as_ref().map_or(source, |adapter| adapter.tokenizer_folder(source));
    for name in SIDE_FILES {
        let from = source.join(name);
        if from.is_file() {
            // The bytes only: a read-only original must not make a read-only copy.
            let bytes = fs::read(&from).map_err(|e| Error::io("read", &from, e))?;
            let to = folder.join(name);
            fs::write(&to, bytes).map_err(|e| Error::io("write", &to, e))?;
        }
    }
    Ok(())
}

/// Saves a model folder that transformers loads: see [`fill_model_folder`] and [`write_folder`].
///
/// # Errors
/// An existing `destination`, values that are not finite, and anything the disk refuses.
pub fn save_model_folder(
    destination: &Path,
    source: Option<&Path>,
    form: Option<Form>,
    config: &ModelConfig,
    read: &ReadParameter,
) -> Result<()> {
    write_folder(destination, |folder| fill_model_folder(folder, source, form, config, read))
}

/// As [`save_model_folder`] where the folder may be there already: one that holds the same files
/// stays, any other is set aside. Returns where that is.
///
/// # Errors
/// As [`save_model_folder`]; a folder that cannot be renamed.
pub fn replace_model_folder(
    destination: &Path,
    source: Option<&Path>,
    form: Option<Form>,
    config: &ModelConfig,
    read: &ReadParameter,
) -> Result<Option<PathBuf>> {
    if fs::symlink_metadata(destination).is_err() {
        return save_model_folder(destination, source, form, config, read).map(|()| None);
    }
    let name = destination.file_name().unwrap_or_default().to_string_lossy();
    let fresh = destination.with_file_name(format!(".new-{name}{PARTIAL}"));
    if fresh.exists() {
        fs::remove_dir_all(&fresh).map_err(|e| Error::io("remove", &fresh, e))?;
    }
    save_model_folder(&fresh, source, form, config, read)?;
    if holds_the_same(&fresh, destination)? {
        fs::remove_dir_all(&fresh).map_err(|e| Error::io("remove", &fresh, e))?;
        return Ok(None);
    }
    let aside = set_aside(destination, "replaced")?;
    fs::rename(&fresh, destination).map_err(|e| Error::io("create", destination, e))?;
    Ok(Some(aside))
}

/// Whether each file of `fresh` is in `there` with the same bytes.
fn holds_the_same(fresh: &Path, there: &Path) -> Result<bool> {
    for entry in fs::read_dir(fresh).map_err(|e| Error::io("read", fresh, e))? {
        let path = entry.map_err(|e| Error::io("read", fresh, e))?.path();
        let other = there.join(path.file_name().unwrap_or_default());
        if !other.is_file() || hash_file(&path)? != hash_file(&other)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The blake3 hash of a file's bytes, in hexadecimal digits.
///
/// # Errors
/// A file that cannot be read.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).map_err(|e| Error::io("read", path, e))?;
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut file, &mut hasher).map_err(|e| Error::io("read", path, e))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Renames a folder or file, so that another can take its place, and returns where it is: beside it, with
/// `why` and a number in front of its name.
///
/// # Errors
/// When it cannot be renamed.
pub fn set_aside(folder: &Path, why: &str) -> Result<PathBuf> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let aside = (1..)
        .map(|n| folder.with_file_name(format!("{why}-{n}-{name}")))
        .find(|path| fs::symlink_metadata(path).is_err())
        .expect("some number is free");
    fs::rename(folder, &aside).map_err(|e| Error::io("rename", folder, e))?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::weights::tests::{all_equal, tiny};
    use crate::model::weights::{FolderWeights, collect, init_weights};

    #[test]
    fn a_saved_model_loads_again() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("tokenizer.json"), "{}").unwrap();
        fs::write(source.join("chat_template.jinja"), "x").unwrap();
        fs::write(source.join("notes.txt"), "not a model file").unwrap();
        let config = tiny(true);
        let weights = init_weights(&config, 1);
        let out = dir.path().join("deep/er/model");
        let read = |name: &str| Ok(weights[name].data.clone());
        save_model_folder(&out, Some(&source), Some(Form::Plain), &config, &read).unwrap();

        let mut names: Vec<_> = fs::read_dir(&out)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "chat_template.jinja",
                "config.json",
                "model.safetensors",
                "oddgrad.json",
                "tokenizer.json"
            ]
        );
        let mode = |name: &str| fs::metadata(out.join(name)).unwrap().permissions();
        assert_eq!(
            mode("model.safetensors"),
            mode("config.json"),
            "weights are not more private than the rest"
        );
        assert_eq!(recorded_form(&out).unwrap(), Some(Form::Plain));
        assert_eq!(recorded_form(&source).unwrap(), None);
        fs::write(source.join(RECORD), "{\"form\": \"poem\"}").unwrap();
        let wrong = recorded_form(&source).unwrap_err().to_string();
        assert!(wrong.contains("oddgrad.json: form is \"poem\""), "{wrong}");
        let loaded = ModelConfig::load(&out).unwrap();
        assert_eq!(loaded.parameters(), config.parameters());
        let back = collect(&FolderWeights::open(&out, &loaded).unwrap()).unwrap();
        assert!(all_equal(&back, &weights));
        assert_eq!(
            fs::read_dir(out.parent().unwrap()).unwrap().count(),
            1,
            "nothing temporary is left"
        );

        let again = save_model_folder(&out, None, None, &config, &read).unwrap_err();
        assert!(again.to_string().contains("exists already"), "{again}");
        assert!(out.join("tokenizer.json").exists(), "the existing folder is untouched");
    }

    #[test]
    fn a_model_is_replaced_by_another_and_kept_if_it_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("model");
        let config = tiny(true);
        let save = |seed: u64| {
            let weights = init_weights(&config, seed);
            replace_model_folder(&out, None, Some(Form::Chat), &config, &|name| {
                Ok(weights[name].data.clone())
            })
            .unwrap()
        };
        let bytes = || fs::read(out.join("model.safetensors")).unwrap();
        assert_eq!(save(1), None);
        let first = bytes();
        fs::write(out.join("README.md"), "mine").unwrap();
        assert_eq!(save(1), None);
        assert!(out.join("README.md").exists(), "the same model stays as it is");
        let aside = save(2).unwrap();
        assert_eq!(aside, dir.path().join("replaced-1-model"));
        assert_ne!(bytes(), first);
        assert_eq!(fs::read(aside.join("model.safetensors")).unwrap(), first);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing temporary is left");
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("model");
        let error = write_folder(&out, |folder| {
            write_text(&folder.join("half"), "written")?;
            Err(Error::file(folder, "stopped"))
        });
        assert!(error.is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn leftovers_of_a_killed_process_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("model");
        fs::create_dir(partial_sibling(&out)).unwrap();
        fs::write(partial_sibling(&out).join("stale"), "x").unwrap();
        write_folder(&out, |folder| write_text(&folder.join("fresh"), "y")).unwrap();
        let names: Vec<_> = fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["fresh"]);
    }

    #[test]
    fn places_where_no_folder_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        let never =
            |_: &Path| -> Result<()> { panic!("nothing is computed for a folder that cannot be") };
        let under = write_folder(&file.join("model"), never).unwrap_err().to_string();
        assert!(under.starts_with("cannot create") && under.contains("file"), "{under}");
        assert!(write_folder(&dir.path().join(".."), never).is_err());
        assert!(write_folder(&file, never).unwrap_err().to_string().contains("exists already"));
        assert_eq!(fs::read(&file).unwrap(), b"x");
    }
}
