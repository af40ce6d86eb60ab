//! What a model folder holds in the way of weights. That there are none is never taken for a wish:
//! whatever looks like weights and cannot be used is named, and only who asks for it trains from
//! random values.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Problem, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const ADAPTERS: [&str; 3] =
    ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"];

/// Files of a training run that end as weights do and are none.
const STATE: [&str; 5] = ["optimizer.", "scheduler.", "scaler.", "rng_state", "training_args."];

/// The weights of a model folder, by transformers' names.
pub(super) enum WeightFiles {
    /// One file with everything.
    Single(PathBuf),
    /// The index of shards that lie beside it.
    Index(PathBuf),
}

/// What a folder holds.
struct Found {
    usable: Option<WeightFiles>,
    /// What looks like weights, or belongs to them, and cannot be used.
    unusable: Vec<Problem>,
}

impl WeightFiles {
    /// The weights in `folder`.
    ///
    /// # Errors
    /// When there are none that can be used: everything that was found instead, and what to do. An
    /// adapter beside weights: to leave it out would be another model.
    pub(super) fn of(folder: &Path) -> Result<Self> {
        let Found { usable, mut unusable } = look(folder)?;
        match usable {
            Some(files) if unusable.is_empty() => Ok(files),
            Some(_) => Err(Error::input(
                format!("the weights in {} are not all of its model", folder.display()),
                unusable,
            )),
            None => {
                if unusable.is_empty() {
                    let what = format!(
                        "holds no file of weights; it needs {SINGLE}, or shards with {INDEX}. Download or copy the whole folder; a recipe with init = \"random\" trains a new model instead"
                    );
                    unusable.push(Problem::new(folder.display().to_string(), what));
                }
                let summary = format!("{} holds no weights that can be read", folder.display());
                Err(Error::input(summary, unusable))
            }
        }
    }

    /// The file that stands for all of them.
    fn path(&self) -> &Path {
        match self {
            Self::Single(path) | Self::Index(path) => path,
        }
    }
}

/// Finds out whether the weights of a model folder are there, without opening them.
///
/// # Errors
/// When there are none, or none that can be used: everything that was found, and what to do.
pub fn check_weights_there(folder: &Path) -> Result<()> {
    WeightFiles::of(folder).map(|_| ())
}

/// Finds out whether a model folder is free of weights, as one that starts from random values must
/// be.
///
/// # Errors
/// Everything in it that is, or looks like, weights.
pub fn check_weights_absent(folder: &Path) -> Result<()> {
    let Found { usable, unusable } = look(folder)?;
    let mut there: Vec<String> = usable.iter().map(|f| f.path().display().to_string()).collect();
    there.extend(unusable.into_iter().map(|p| p.place));
    if there.is_empty() {
        return Ok(());
    }
    let what = "is there, and init = \"random\" would leave it out. Remove the key to train from what is there, or name a folder that holds config.json and the tokenizer alone";
    let problems = there.into_iter().map(|place| Problem::new(place, what)).collect();
    Err(Error::input(format!("{} is not a model without weights", folder.display()), problems))
}

fn look(folder: &Path) -> Result<Found> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))? {
        let entry = entry.map_err(|e| Error::io("read", folder, e))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let has = |name: &str| names.iter().any(|n| n == name);
    let mut found = Found { usable: None, unusable: Vec::new() };
    let weights = [(SINGLE, WeightFiles::Single as fn(_) -> _), (INDEX, WeightFiles::Index)];
    for (name, kind) in weights {
        let path = folder.join(name);
        match has(name).then(|| fs::metadata(&path)) {
            None => {}
            Some(Ok(_)) => {
                found.usable.get_or_insert(kind(path));
            }
            Some(Err(e)) => {
                let what = match fs::read_link(&path) {
                    Ok(to) => format!(
                        "is a link to nothing ({}); copy or download the file itself",
                        to.display()
                    ),
                    Err(_) => format!("cannot be read: {e}"),
                };
                found.unusable.push(Problem::new(path.display().to_string(), what));
            }
        }
    }
    let named = |name: &str| folder.join(name).display().to_string();
    if let Some(adapter) = ADAPTERS.iter().find(|name| has(name)) {
        let what = match found.usable {
            Some(_) => {
                "belongs to a LoRA adapter, and whole weights lie beside it: one of them would be left out. Move the adapter into a folder of its own and name that, or name the model without it"
            }
            None => {
                "belongs to a LoRA adapter that is not whole: adapter_config.json and adapter_model.safetensors make one. Copy the missing one, or save it anew with PEFT's save_pretrained"
            }
        };
        found.unusable.push(Problem::new(named(adapter), what));
    }
    if found.usable.is_some() {
        return Ok(found);
    }
    let other = |name: &&String| {
        ![SINGLE, INDEX].contains(&name.as_str())
            && !ADAPTERS.contains(&name.as_str())
            && !STATE.iter().any(|start| name.starts_with(start))
    };
    for name in names.iter().filter(other) {
        found.unusable.extend(unusable(name).map(|what| Problem::new(named(name), what)));
    }
    Ok(found)
}

/// Why a file that looks like weights is none that can be used; None for any other.
fn unusable(name: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    let ending = lower.strip_suffix(".index.json").unwrap_or(&lower);
    let ending = ending.rsplit_once('.').map_or("", |(_, ending)| ending);
    Some(match ending {
        "safetensors" if lower.contains("-of-") => format!(
            "is a shard, and {INDEX}, which says what each shard holds, is missing. Download or copy the whole folder"
        ),
        "safetensors" => format!(
            "is not called {SINGLE}. If it holds this model's weights under transformers' names, give it that name"
        ),
        "bin" | "pt" | "pth" | "ckpt" => {
            "is a PyTorch checkpoint; convert it with transformers' save_pretrained, which writes safetensors".into()
        }
        "h5" | "msgpack" | "onnx" => {
            "is of another framework; convert it with transformers' save_pretrained (from_tf or from_flax), which writes safetensors".into()
        }
        "gguf" | "ggml" => {
            "is made for llama.cpp; make a model folder of it with `oddgrad import`, or name the file itself as the model".into()
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in [&["config.json", "tokenizer.json", "notes.txt"], files].concat() {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        dir
    }

    #[test]
    fn weights_are_found_by_name() {
        for (files, want) in [
            (&["model.safetensors"][..], SINGLE),
            (&["model.safetensors.index.json", "model-00001-of-00002.safetensors"], INDEX),
            // Folders often hold a second copy in another format, and checkpoints their optimizer.
            (&["model.safetensors", "pytorch_model.bin", "optimizer.safetensors"], SINGLE),
            (&["model.safetensors", "model.safetensors.index.json"], SINGLE),
        ] {
            let dir = folder(files);
            assert_eq!(WeightFiles::of(dir.path()).unwrap().path(), dir.path().join(want));
            let there = check_weights_absent(dir.path()).unwrap_err().to_string();
            assert!(there.contains(want) && there.contains("init = \"random\""), "{there}");
        }
    }

    #[test]
    fn what_is_there_instead_is_named() {
        for (file, phrase) in [
            ("model-00001-of-00002.safetensors", "model.safetensors.index.json, which says"),
            ("consolidated.safetensors", "give it that name"),
            ("pytorch_model.bin", "PyTorch checkpoint"),
            ("pytorch_model.bin.index.json", "PyTorch checkpoint"),
            ("consolidated.00.pth", "PyTorch checkpoint"),
            ("tf_model.h5", "another framework"),
            ("flax_model.msgpack", "another framework"),
            ("model.Q4_K_M.gguf", "llama.cpp"),
            ("adapter_config.json", "that is not whole"),
            ("adapter_model.safetensors", "that is not whole"),
        ] {
            let dir = folder(&[file]);
            let refused = check_weights_there(dir.path()).unwrap_err().to_string();
            assert!(refused.contains(file) && refused.contains(phrase), "{refused}");
            // It is not nothing either.
            let refused = check_weights_absent(dir.path()).unwrap_err().to_string();
            assert!(refused.contains(file), "{refused}");
        }
        let dir = folder(&["model.safetensors", "adapter_config.json"]);
        let refused = check_weights_there(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("adapter_config.json"), "{refused}");
    }

    #[test]
    fn a_folder_without_weights_is_one() {
        let dir = folder(&["training_args.bin", "rng_state.pth"]);
        let refused = check_weights_there(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("holds no file of weights"), "{refused}");
        check_weights_absent(dir.path()).unwrap();
        assert!(check_weights_there(&dir.path().join("absent")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_nothing_is_named() {
        for name in [SINGLE, INDEX] {
            let dir = folder(&[]);
            std::os::unix::fs::symlink("../blobs/4f2c", dir.path().join(name)).unwrap();
            for refused in [check_weights_there(dir.path()), check_weights_absent(dir.path())] {
                let refused = refused.unwrap_err().to_string();
                assert!(refused.contains(name), "{refused}");
            }
            let refused = check_weights_there(dir.path()).unwrap_err().to_string();
            assert!(refused.contains("a link to nothing (../blobs/4f2c)"), "{refused}");
        }
    }
}
