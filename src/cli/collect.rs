//! `oddgrad collect PROMPTS --out ROWS`

use super::DeviceArgs;
use super::import::model_folder;
use super::interrupt::stop_on_signal;
use super::sampling::AnswerArgs;
use super::working;
use crate::data::prompts::read_prompt_rows;
use crate::error::{Error, Problem, Result};
use crate::feedback::answers::{Drawing, Kept, Speaker, given_answers};
use crate::feedback::asked::{Asked, ModelFiles};
use crate::feedback::collect::desk::{Counts, Desk};
use crate::feedback::collect::server::{PORT, Page};
use crate::feedback::comparison::{LeftOut, comparisons};
use crate::feedback::run::{answers_file, same_file};
use crate::files::cache_folder;
use clap::Args;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// Arguments of `oddgrad collect`.
#[derive(Args)]
pub struct CollectArgs {
    /// Prompts, perhaps with answers: rows (.jsonl, .jsonl.gz, .json, .parquet) with a column "prompt" or
    /// "messages" and a list "answers", or pairs of "chosen" and "rejected"; or a prompt on each line
    /// (.txt).
    prompts: PathBuf,
    /// The file of decisions, as `train` reads it (.jsonl). One that is there is gone on with.
    #[arg(long)]
    out: PathBuf,
    /// Comparisons of each prompt at most.
    #[arg(long, default_value_t = 1)]
    pairs: usize,
    #[command(flatten)]
    drawn: AnswerArgs,
    /// The port of 127.0.0.1 that the page is at; 0 for any that is free.
    #[arg(long, default_value_t = PORT)]
    port: u16,
    /// Who decides, as the rows say; the page has a field for it too.
    #[arg(long)]
    who: Option<String>,
}

pub(super) fn run(args: &CollectArgs, device: &DeviceArgs) -> Result<()> {
    check(args)?;
    let rows = read_prompt_rows(&args.prompts)?;
    let stop = stop_on_signal("these answers")?;
    let (drawn, name) = match &args.drawn.model {
        None => (None, None),
        Some(model) => {
            working::on("reading the model");
            let files = ModelFiles::open(&model_folder(model)?, args.drawn.form)?;
            let asked = files.asked(rows.clone(), args.drawn.max_tokens)?;
            let gpu = device.open()?;
            working::on("reading weights");
            let speaker = Speaker::new(&gpu, files)?;
            let name = speaker.name();
            (Some((speaker, asked)), Some(name))
        }
    };
    let given = match drawn {
        None => Some(comparisons(&given_answers(rows)?, args.pairs)),
        Some(_) => None,
    };
    if given.as_ref().is_some_and(|(all, _)| all.is_empty()) {
        let what = "has no prompt with two answers that differ; there is nothing to decide";
        return Err(Error::file(&args.prompts, what));
    }
    let who = args.who.clone().or_else(user).unwrap_or_else(|| "somebody".to_owned());
    let page = Page::open(args.port, &args.out, cache_folder().as_deref(), &who)?;
    let seed = drawn.is_some().then(|| args.drawn.sampling.seed());
    let desk = Desk::open(&args.out, name, seed)?;
    desk.take_notes().iter().for_each(|note| errln!("note: {note}"));
    if let Some((all, left)) = given {
        left.told().iter().for_each(|what| errln!("note: {what}"));
        desk.add(all);
        desk.close();
    }
    let Counts { all, decided, .. } = desk.counts();
    if drawn.is_none() {
        errln!("{all} comparisons, {decided} of them decided before");
    }
    outln!("open       {}", page.address());
    errln!("Decisions go to {}; Ctrl-C ends.", args.out.display());
    super::output::flush();
    let outcome = std::thread::scope(|scope| {
        let server = scope.spawn(|| page.serve(&desk, &stop));
        let mut drawing = Ok(());
        if let Some((speaker, asked)) = drawn {
            drawing = draw(args, &speaker, asked, &desk, &stop);
            if drawing.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
        }
        let served = server.join().unwrap_or_else(|_| {
            Err(Error::Device(
                "the page's server failed; every decision that it took is kept".into(),
            ))
        });
        match drawing {
            Err(Error::Stopped(_)) => served,
            drawing => drawing.and(served),
        }
    });
    working::done();
    let Counts { all, decided, pairs, ties, skips, open } = desk.counts();
    let more = if open { " so far" } else { "" };
    errln!(
        "{decided} of {all} comparisons{more} are decided; {} has {pairs} preferences, {ties} ties and {skips} skips",
        args.out.display()
    );
    outcome
}

/// Draws answers, a group of prompts at a time, and lays them on the desk.
fn draw(
    args: &CollectArgs,
    speaker: &Speaker,
    asked: Asked,
    desk: &Desk,
    stop: &AtomicBool,
) -> Result<()> {
    let (sampling, stops) = args.drawn.read()?;
    let drawing = Drawing { count: args.drawn.answers, sampling, stops };
    let kept = answers_file(&args.out);
    let (mut left, mut cut, mut all) = (LeftOut::default(), 0, 0);
    if asked.repeated > 0 {
        errln!("note: {} prompts are an earlier one once more", asked.repeated);
    }
    let prompts = asked.rows.len();
    let mut done = 0;
    for group in asked.groups(args.drawn.answers) {
        let here = group.rows.len();
        let mut progress = |n: usize| {
            working::on(&format!("drawing answers, {} of {prompts} prompts", done + n));
        };
        let mut kept = Kept::open(&kept)?;
        kept.take_notes().iter().for_each(|note| errln!("note: {note}"));
        let found = speaker.answer(&group, &drawing, kept, stop, &mut progress)?;
        done += here;
        (all, cut) = (all + found.all, cut + found.cut);
        let (comparisons, out) = comparisons(&found.answered, args.pairs);
        left.add(out);
        desk.add(comparisons);
    }
    desk.close();
    working::done();
    if cut > 0 {
        errln!(
            "note: {cut} of {all} answers were cut off at --max-tokens {}",
            args.drawn.max_tokens
        );
    }
    left.told().iter().for_each(|what| errln!("note: {what}"));
    Ok(())
}

/// What is not compared, and why.
fn check(args: &CollectArgs) -> Result<()> {
    let mut problems = Vec::new();
    let (sampling, _) = args.drawn.read()?;
    if args.drawn.model.is_some() {
        if !(2..=16).contains(&args.drawn.answers) {
            let what = format!("is {}; it must be from 2 to 16", args.drawn.answers);
            problems.push(Problem::new("--answers", what));
        }
        if sampling.temperature == 0.0 {
            let what =
                "is 0, so all answers to a prompt would be the same; write --temperature 0.8";
            problems.push(Problem::new("--temperature", what));
        }
    }
    if args.pairs == 0 {
        problems.push(Problem::new("--pairs", "is 0; it must be 1 or more"));
    }
    if args.out.extension().is_none_or(|e| e != "jsonl") {
        let what = format!("is {}; its name must end in .jsonl", args.out.display());
        problems.push(Problem::new("--out", what));
    }
    if same_file(&args.prompts, &args.out) {
        let what = "is the file of prompts; decisions go into one of their own";
        problems.push(Problem::new(format!("--out {}", args.out.display()), what));
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::input("nothing can be collected with these settings", problems))
}

/// The name of who is at this machine.
fn user() -> Option<String> {
    let named = |name| std::env::var(name).ok().filter(|v: &String| !v.trim().is_empty());
    named("USER").or_else(|| named("USERNAME"))
}
