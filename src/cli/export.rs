//! `oddgrad export MODEL --gguf TYPE --out FILE.gguf`

use super::working;
use crate::error::{Error, Result};
use crate::model::gguf::blocks::BlockType;
use crate::model::gguf::export::export;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Arguments of `oddgrad export`.
#[derive(Args)]
pub struct ExportArgs {
    /// A Hugging Face model folder, or a checkpoint.
    model: PathBuf,
    /// How its matrices are stored.
    #[arg(long, value_enum, value_name = "TYPE")]
    gguf: Stored,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Types of matrices.
#[derive(Clone, Copy, ValueEnum)]
enum Stored {
    F32,
    F16,
    #[value(name = "q8_0")]
    Q8,
}

pub(super) fn run(args: &ExportArgs) -> Result<()> {
    if args.out.symlink_metadata().is_ok() {
        let what = "exists already; name another file or move this one away";
        return Err(Error::file(&args.out, what));
    }
    let kind = match args.gguf {
        Stored::F32 => BlockType::F32,
        Stored::F16 => BlockType::F16,
        Stored::Q8 => BlockType::Q8_0,
    };
    working::on("exporting");
    for note in export(&args.model, &args.out, kind)? {
        errln!("note: {note}");
    }
    outln!("exported   {}", args.out.display());
    Ok(())
}
