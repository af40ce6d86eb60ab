//! `oddgrad import FILE.gguf DIR`, and GGUF files where a model folder is asked for

use super::hub::bring_model;
use super::working;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::files::{cache_folder, check_creatable};
use crate::hub;
use crate::model::gguf::import::{import, import_once};
use crate::model::gguf::is_gguf;
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

/// Arguments of `oddgrad import`.
#[derive(Args)]
pub struct ImportArgs {
    /// A GGUF file.
    file: PathBuf,
    /// Folder for the model.
    folder: PathBuf,
    /// The type of all weights. Without it weights of 16 bits stay as they are, and quantised ones
    /// become f32, which holds each of their values.
    #[arg(long, value_enum)]
    dtype: Option<Float>,
}

/// Types of weights in a model folder.
#[derive(Clone, Copy, ValueEnum)]
enum Float {
    F32,
    F16,
    Bf16,
}

pub(super) fn run(args: &ImportArgs) -> Result<()> {
    check_creatable(&args.folder)?;
    let dtype = args.dtype.map(|dtype| match dtype {
        Float::F32 => DType::F32,
        Float::F16 => DType::F16,
        Float::Bf16 => DType::BF16,
    });
    working::on("importing");
    for note in import(&args.file, &args.folder, dtype)? {
        errln!("note: {note}");
    }
    outln!("imported   {}", args.folder.display());
    Ok(())
}

/// The model folder that `model` names: itself, a model of the hub, which is fetched if it is not in
/// the cache, or what a GGUF file is
/// imported to in ours.
pub(super) fn model_folder(model: &Path) -> Result<PathBuf> {
    bring_model(model)?;
    let model = &hub::model_folder(model)?;
    if !is_gguf(model)? {
        return Ok(model.to_owned());
    }
    let Some(cache) = cache_folder() else {
        let what = "is a GGUF file, and no cache folder is known to import it to; set ODDGRAD_CACHE to one, or use `oddgrad import`";
        return Err(Error::file(model, what));
    };
    working::on("importing");
    let cached = import_once(model, &cache)?;
    let when = if cached.fresh.is_some() { "imported" } else { "imported before" };
    errln!("model      {}, {when} to {}", model.display(), cached.folder.display());
    for note in cached.fresh.into_iter().flatten() {
        errln!("note: {note}");
    }
    Ok(cached.folder)
}
