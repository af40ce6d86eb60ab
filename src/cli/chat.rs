//! `oddgrad chat MODEL`

use super::DeviceArgs;
use super::import::model_folder;
use super::output;
use super::sampling::SamplingArgs;
use super::working;
use crate::data::messages::Message;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::model::adapter::tokenizer_folder;
use crate::model::config::ModelConfig;
use crate::model::generate::Sampling;
use crate::model::weights::FolderWeights;
use crate::program::Store;
use crate::train::conversation::Conversation;
use crate::train::learner::check_weights;
use clap::Args;
use std::io::{BufRead, IsTerminal, Read, stdin, stdout};
use std::path::{Path, PathBuf};

/// Arguments of `oddgrad chat`.
#[derive(Args)]
pub struct ChatArgs {
    /// A Hugging Face model folder with a chat template, a checkpoint, the folder of a LoRA
    /// adapter, or a GGUF file.
    model: PathBuf,
    /// A system message in front of the conversation.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most new tokens of an answer.
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// Most tokens of the whole conversation; at most what the model was made for.
    #[arg(long, default_value_t = 2048)]
    context: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
}

const HELP: &str = "/reset begins anew, /save FILE keeps the conversation as a row of messages, /exit or the end of input leaves";
/// Longest line that is read, in bytes.
const LONGEST: u64 = 1 << 20;

pub(super) fn run(args: &ChatArgs, device: &DeviceArgs) -> Result<()> {
    let (sampling, stops) = args.sampling.read(args.max_tokens)?;
    working::on("reading the model");
    let model = &model_folder(&args.model)?;
    let config = ModelConfig::load(model)?;
    let tokenizer = Tokenizer::from_folder(&tokenizer_folder(model)?)?;
    if !tokenizer.has_template() {
        return Err(Error::file(
            &args.model,
            "has no chat template, so it was not made for conversations; continue a text with `oddgrad generate`, or put chat_template.jinja into the folder",
        ));
    }
    let weights = FolderWeights::open(model, &config)?;
    let gpu = device.open()?;
    check_weights(gpu.target(), weights.stored_bytes())?;
    working::on("reading weights");
    let store = Store::new(&gpu);
    weights.put(&store)?;
    let mut chat =
        Conversation::new(&gpu, &store, &config, tokenizer, args.system.clone(), args.context)?;
    chat.set_seed(sampling.seed);
    working::done();
    let terminal = stdin().is_terminal() && stdout().is_terminal();
    if terminal {
        errln!("{HELP}");
    }
    loop {
        if terminal {
            out!("> ");
            output::flush();
        }
        let Some(line) = line()? else { break };
        match line.split_once(' ').map_or((line.as_str(), ""), |(a, b)| (a, b.trim())) {
            ("", _) => {}
            ("/exit" | "/quit", "") => break,
            ("/help", "") => errln!("{HELP}"),
            ("/reset", "") => {
                chat.reset();
                errln!("the conversation begins anew");
            }
            ("/save", "") => errln!("write /save FILE"),
            ("/save", path) => save(&chat, Path::new(path)),
            (command, _) if command.starts_with('/') => errln!("{command} is not known; {HELP}"),
            _ => answer(&mut chat, line, &sampling, stops)?,
        }
    }
    if terminal {
        outln!("");
    }
    Ok(())
}

/// A line of input without the white space around it; None at the end.
fn line() -> Result<Option<String>> {
    let mut bytes = Vec::new();
    let read = stdin().lock().take(LONGEST).read_until(b'\n', &mut bytes);
    read.map_err(|e| Error::io("read", "standard input", e))?;
    if bytes.is_empty() {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned()))
}

fn save(chat: &Conversation, path: &Path) {
    let row = serde_json::json!({ "messages": chat.messages() });
    let saved = match path.exists() {
        true => Err(Error::file(path, "is there already; choose another name")),
        false => write_atomically(path, format!("{row}\n").as_bytes()),
    };
    match saved {
        Ok(()) => errln!("saved      {}", path.display()),
        Err(error) => errln!("error: {error}"),
    }
}

/// Prints the answer to a line as it comes. A line that cannot be answered is told and forgotten.
fn answer(
    chat: &mut Conversation,
    line: String,
    sampling: &Sampling,
    stops: &[String],
) -> Result<()> {
    working::on("thinking");
    let mut hear = |piece: &str| {
        if !piece.is_empty() {
            out!("{piece}");
            output::flush();
        }
    };
    match chat.say(Message::new("user", &line), sampling, stops, &mut hear) {
        Ok(()) => outln!(""),
        Err(error @ Error::Input { .. }) => errln!("error: {error}"),
        Err(error) => return Err(error),
    }
    Ok(())
}
