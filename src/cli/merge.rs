//! `oddgrad merge FOLDER --output FOLDER`

use crate::error::Result;
use crate::files::check_creatable;
use crate::model::merge::merge;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `oddgrad merge`.
#[derive(Args)]
pub struct MergeArgs {
    /// The folder of a LoRA adapter, as `oddgrad train` and PEFT write it. Its base model is where its
    /// adapter_config.json says.
    folder: PathBuf,
    /// Folder for the merged model.
    #[arg(long)]
    output: PathBuf,
}

pub(super) fn run(args: &MergeArgs) -> Result<()> {
    check_creatable(&args.output)?;
    merge(&args.folder, &args.output)?;
    outln!("merged     {}", args.output.display());
    Ok(())
}
