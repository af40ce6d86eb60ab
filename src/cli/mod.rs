//! Parsing and printing: one file per subcommand. Nothing is computed here.

#![deny(clippy::print_stdout, clippy::print_stderr)]

#[macro_use]
mod output;

mod bench;
mod chat;
mod collect;
mod compare;
mod data;
mod demo;
mod display;
mod doctor;
mod eval;
mod export;
mod generate;
mod hub;
mod import;
mod interrupt;
mod judge;
mod merge;
mod plan;
mod rounds;
mod sampling;
mod tokenizer;
mod train;
mod tune;
mod verify;
mod working;

use crate::bench::tuned::{self, TunedFile};
use crate::error::{Error, Problem, Result};
use crate::gpu::{AdapterChoice, Backend, Gpu};
use crate::ops::self_test::self_test;
use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;
use std::rc::Rc;

/// Train small transformer language models with ORPO on any GPU.
#[derive(Parser)]
#[command(name = "oddgrad", version, about, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    device: DeviceArgs,
    #[command(subcommand)]
    command: Command,
}

/// Which adapter, and which kernels.
#[derive(Args)]
struct DeviceArgs {
    /// Use this adapter: part of its name, or its index in `oddgrad doctor`.
    #[arg(long, global = true, value_name = "NAME|INDEX")]
    adapter: Option<String>,
    /// Use only this backend.
    #[arg(long, global = true, value_enum)]
    backend: Option<Backend>,
    /// Use this numbered kernel: `softmax=1`, `matmul.nt=2`, `matmul.nt=11/128x64` with the tile of
    /// one that has several; may be repeated.
    #[arg(long, global = true, value_name = "OP=NUMBER[/TILE]")]
    kernel: Vec<String>,
    /// Use the built-in choice of kernels, not what `oddgrad tune` found.
    #[arg(long, global = true)]
    untuned: bool,
    /// Use kernels that read the factors of products as f16 (sums stay f32) where `oddgrad tune
    /// --f16` found them faster: results then agree to three digits instead of six. `tune` measures
    /// them beside the others.
    #[arg(long, global = true, conflicts_with = "untuned")]
    f16: bool,
}

impl DeviceArgs {
    fn choice(&self) -> Result<AdapterChoice> {
        let mut choice = AdapterChoice {
            adapter: self.adapter.clone(),
            backend: self.backend,
            ..AdapterChoice::default()
        };
        let mut problems = Vec::new();
        for text in &self.kernel {
            match text.split_once('=').and_then(|(op, n)| Some((op, n.parse().ok()?))) {
                Some((op, id)) => {
                    choice.kernels.insert(op.to_owned(), id);
                }
                None => problems.push(Problem::new(
                    format!("--kernel {text}"),
                    "write OP=NUMBER or OP=NUMBER/TILE, as in softmax=1 or matmul=11/128x64",
                )),
            }
        }
        if !problems.is_empty() {
            return Err(Error::input("these kernels cannot be used", problems));
        }
        crate::ops::check_pins(&choice.kernels, None)?;
        Ok(choice)
    }

    /// Opens the adapter with the kernels that `oddgrad tune` found for it, if it has been run, and
    /// without those that give wrong results here.
    fn open(&self) -> Result<Rc<Gpu>> {
        let mut gpu = self.open_bare()?;
        let mut lossy = 0;
        if let Some(path) = tuned::path_of(&gpu).filter(|_| !self.untuned)
            && let Some(file) = TunedFile::load(&path)?
        {
            let loaded = file.applied_to(&TunedFile::new(&gpu), self.f16);
            if let Some(void) = loaded.void {
                errln!(
                    "note: {} {void}, so that part is not used; run `oddgrad tune` again",
                    path.display()
                );
            }
            lossy = loaded.lossy;
            gpu.set_tuned(loaded.tuned);
        }
        if self.f16 && lossy == 0 {
            errln!(
                "note: --f16 changes nothing, because no kernel that reads f16 is known to be faster here; `oddgrad tune --f16` measures them"
            );
        }
        let mut gpu = Rc::new(gpu);
        self_test(&mut gpu, &mut |variant, fault| {
            errln!("note: {} is wrong on this adapter and not used: {fault}", variant.label());
        })?;
        // A kernel that was asked for by number and is wrong here cannot be had.
        crate::ops::check_pins(&gpu.target().pinned, Some(gpu.target()))?;
        Ok(gpu)
    }

    /// Opens the adapter with the built-in choice of kernels and no test of them: for the commands
    /// that put every kernel through a gate themselves.
    fn open_untuned(&self) -> Result<Rc<Gpu>> {
        Ok(Rc::new(self.open_bare()?))
    }

    fn open_bare(&self) -> Result<Gpu> {
        let gpu = Gpu::open(&self.choice()?)?;
        crate::ops::check_pins(&gpu.target().pinned, Some(gpu.target()))?;
        working::on_compiling(&gpu);
        Ok(gpu)
    }
}

#[derive(Subcommand)]
enum Command {
    /// Train with ORPO on real pairs, a control beside it, and write a report.
    Demo(demo::DemoArgs),
    /// Train a model as a recipe says.
    Train(train::TrainArgs),
    /// Compare this engine with reference values of PyTorch and TRL.
    Verify(verify::VerifyArgs),
    /// Show adapters, what they can do and what that is used for.
    Doctor(doctor::DoctorArgs),
    /// Look at rows before they are trained on.
    Data(data::DataArgs),
    /// Say how much memory a recipe needs, before anything is allocated.
    Plan(plan::PlanArgs),
    /// Measure this adapter.
    Bench(Box<bench::BenchArgs>),
    /// Find the fastest kernels for this adapter; the other commands use them from then on.
    Tune(tune::TuneArgs),
    /// Continue prompts with a model.
    Generate(generate::GenerateArgs),
    /// Train the same rows with several objectives and lay them side by side.
    CompareObjectives(compare::CompareArgs),
    /// Judge a model, or two side by side, by rows it was not trained on.
    Eval(eval::EvalArgs),
    /// Have pairs of answers compared by a judge: a model or a command. The rows are for training.
    Judge(Box<judge::JudgeArgs>),
    /// Sample, judge, train and evaluate, again and again.
    Rounds(rounds::RoundsArgs),
    /// Let people choose between two answers, on a page of this machine.
    Collect(collect::CollectArgs),
    /// Talk to a model, line by line.
    Chat(chat::ChatArgs),
    /// Make one model of a LoRA adapter and its base.
    Merge(merge::MergeArgs),
    /// Make a model folder of a GGUF file.
    Import(import::ImportArgs),
    /// Make a GGUF file of a model folder, for llama.cpp.
    Export(export::ExportArgs),
    /// Train a byte-level BPE tokenizer on text.
    Tokenizer(tokenizer::TokenizerArgs),
}

/// Exit code of a comparison whose measurements are too uncertain to tell.
const INCONCLUSIVE: u8 = 3;

/// Parses the command line and runs it. What goes wrong is printed: 1; a comparison that cannot tell:
/// 3; a run that was asked to stop and can go on: 130.
pub fn run() -> ExitCode {
    let result = execute(&Cli::parse());
    working::done();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Stopped(text)) => {
            errln!("{text}");
            interrupt::STOPPED.into()
        }
        Err(Error::Inconclusive(text)) => {
            errln!("inconclusive: {text}");
            INCONCLUSIVE.into()
        }
        Err(error) => {
            errln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: &Cli) -> Result<()> {
    let device = &cli.device;
    // What costs nothing to find out comes first: before rows are read, before a device is opened.
    device.choice()?;
    let done = match &cli.command {
        Command::Demo(args) => demo::run(args, device),
        Command::Train(args) => train::run(args, device),
        Command::Verify(args) => verify::run(args, device),
        Command::Doctor(args) => doctor::run(args, device),
        Command::Data(args) => data::run(args),
        Command::Plan(args) => plan::run(args, device),
        Command::Bench(args) => bench::run(args, device),
        Command::Tune(args) => tune::run(args, device),
        Command::Generate(args) => generate::run(args, device),
        Command::CompareObjectives(args) => compare::run(args, device),
        Command::Eval(args) => eval::run(args, device),
        Command::Judge(args) => judge::run(args, device),
        Command::Rounds(args) => rounds::run(args, device),
        Command::Collect(args) => collect::run(args, device),
        Command::Chat(args) => chat::run(args, device),
        Command::Merge(args) => merge::run(args),
        Command::Import(args) => import::run(args),
        Command::Export(args) => export::run(args),
        Command::Tokenizer(args) => tokenizer::run(args),
    };
    done.map_err(|error| advise(error, &cli.command))?;
    match &cli.command {
        // What they make lies in their folders, whoever reads the lines about it.
        Command::Train(_) | Command::Demo(_) | Command::Judge(_) | Command::Rounds(_) => Ok(()),
        _ => output::finish(),
    }
}

/// Adds the settings of this command that make a run smaller or take another device.
fn advise(error: Error, command: &Command) -> Error {
    const OTHER: &str = "another adapter (--adapter, --backend; `oddgrad doctor` lists them)";
    let smaller = match command {
        Command::Train(_) | Command::Plan(_) | Command::Rounds(_) => {
            "fewer stream tokens (batch.stream_tokens), a smaller model, "
        }
        Command::Bench(_) | Command::Tune(_) => {
            "fewer stream tokens (--tokens), smaller shapes, a smaller model, "
        }
        Command::Chat(_) => "fewer tokens of the conversation (--context), a smaller model, ",
        Command::Generate(_) | Command::Judge(_) => {
            "fewer new tokens (--max-tokens), a smaller model, "
        }
        _ => "",
    };
    match error {
        Error::Adapter(text) => Error::Adapter(format!("{text} (--adapter, --backend)")),
        other => other.advise(&format!("Use {smaller}or {OTHER}.").replace("Use or ", "Try ")),
    }
}

/// A number of seconds above zero.
fn seconds(text: &str) -> std::result::Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|s| *s > 0.0 && *s <= 1e6);
    number.ok_or_else(|| "write a number of seconds above zero".into())
}
