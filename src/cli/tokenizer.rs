//! `oddgrad tokenizer TEXT… --vocab N --output FOLDER`

use crate::data::bpe::{CHAT_TOKENS, CHATML, train_bpe};
use crate::data::rows::{Message, Text, read_texts};
use crate::error::{Error, Result};
use crate::files::check_creatable;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `oddgrad tokenizer`.
#[derive(Args)]
pub struct TokenizerArgs {
    /// Text to learn from: .txt, or .jsonl/.json/.parquet with a `text` column; files or folders.
    #[arg(required = true)]
    texts: Vec<PathBuf>,
    /// Tokens of the vocabulary, the chat tokens and the 256 bytes among them.
    #[arg(long)]
    vocab: usize,
    /// Folder for tokenizer.json and tokenizer_config.json (with a ChatML template).
    #[arg(long)]
    output: PathBuf,
}

pub(super) fn run(args: &TokenizerArgs) -> Result<()> {
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        if args.output.join(file).exists() {
            return Err(Error::file(
                args.output.join(file),
                "exists already; choose another --output or remove it",
            ));
        }
    }
    check_creatable(&args.output)?;
    let texts = read_texts(&args.texts)?.into_iter().map(|(_, text)| match text {
        Text::Plain(text) => text,
        Text::Messages(list) => list.iter().map(Message::text).collect::<Vec<_>>().join("\n"),
    });
    let trained = train_bpe(texts, args.vocab, &CHAT_TOKENS)?;
    std::fs::create_dir_all(&args.output).map_err(|e| Error::io("create", &args.output, e))?;
    trained.write_tokenizer_folder(&args.output, CHATML)?;
    outln!("tokenizer  {}", args.output.display());
    Ok(())
}
