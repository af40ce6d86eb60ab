//! `oddgrad judge PROMPTS --model DIR --answers 4 --endpoint URL --judge-model NAME --out rows.jsonl`

use super::DeviceArgs;
use super::import::model_folder;
use super::interrupt::stop_on_signal;
use super::sampling::AnswerArgs;
use super::working;
use crate::error::{Error, Result};
use crate::feedback::judge::local::LocalBy;
use crate::feedback::judge::question::CRITERIA;
use crate::feedback::judge::settings::JudgeSettings;
use crate::feedback::judge::{Cost, Judged};
use crate::feedback::run::{AnswerOptions, JudgeEvent, JudgeOptions, judge_prompts};
use clap::{ArgGroup, Args};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Arguments of `oddgrad judge`.
#[derive(Args)]
#[command(group = ArgGroup::new("the judge").required(true).args(["endpoint", "judge", "command"]))]
pub struct JudgeArgs {
    /// Prompts: rows with "prompt" or "messages" (.jsonl, .jsonl.gz, .json, .parquet), or one on each
    /// line (.txt). Without --model rows with their answers: a list "answers", or "chosen" and
    /// "rejected".
    prompts: PathBuf,
    /// File of rows, which `oddgrad train` reads: one for each comparison, added as it is decided. What
    /// is in it is not judged again.
    #[arg(long)]
    out: PathBuf,
    /// Most comparisons of a prompt. Without it every pair of its answers.
    #[arg(long)]
    pairs: Option<usize>,
    #[command(flatten)]
    drawn: AnswerArgs,

    /// Judge by a model behind chat completions as OpenAI has them, as in http://127.0.0.1:8080/v1.
    #[arg(long, value_name = "URL", requires = "judge_model")]
    endpoint: Option<String>,
    /// The judge's name at the endpoint.
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    judge_model: Option<String>,
    /// The environment variable that holds the endpoint's key.
    #[arg(long, value_name = "VARIABLE", default_value = "OPENAI_API_KEY")]
    key_env: String,
    /// Judge by a model folder.
    #[arg(long, value_name = "DIR")]
    judge: Option<PathBuf>,
    /// How that model says what is better: by the log-odds of A against B as its next token, or by its
    /// reply.
    #[arg(long, value_enum, default_value_t = LocalBy::Odds)]
    judge_by: LocalBy,
    /// Judge by a command of the shell: it reads {"prompt": …, "answer": …} and prints the answer's score
    /// on its last line. If it prints nothing, exit code 0 is a score of 1 and exit code 1 of 0.
    #[arg(long, value_name = "COMMAND")]
    command: Option<String>,
    /// What makes an answer better, for judges that read.
    #[arg(long, value_name = "TEXT", default_value = CRITERIA)]
    criteria: String,
    /// Votes on each comparison; the majority counts.
    #[arg(long, default_value_t = 1)]
    votes: usize,
    /// Ask each vote once, in an order that is drawn, and not both ways round.
    #[arg(long)]
    one_way: bool,
    /// Temperature of the judge's replies. Without it 0, or 1 for several votes.
    #[arg(long, value_name = "TEMPERATURE")]
    judge_temperature: Option<f32>,
    /// Most tokens of a reply.
    #[arg(long, default_value_t = 256)]
    judge_tokens: usize,
    /// Longest time of a call or a run of the command, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120.0, value_parser = super::seconds)]
    timeout: f64,
    /// Attempts after a call that failed.
    #[arg(long, default_value_t = 5)]
    retries: u32,
    /// Seconds before the second attempt; each further wait is twice as long.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5)]
    backoff: f64,
    /// Comparisons that an endpoint is asked about at the same time. Rows then stand in the order in which
    /// they were decided.
    #[arg(long, default_value_t = 1)]
    parallel: usize,
}

/// The flags of the settings of a judge.
fn flag(key: &str) -> String {
    let name = match key {
        "name" => "judge-model",
        "model" => "judge",
        "temperature" => "judge-temperature",
        "max_tokens" => "judge-tokens",
        other => other,
    };
    format!("--{name}")
}

pub(super) fn run(args: &JudgeArgs, device: &DeviceArgs) -> Result<()> {
    let (sampling, stops) = args.drawn.read()?;
    let settings = JudgeSettings {
        command: args.command.clone(),
        endpoint: args.endpoint.clone(),
        name: args.judge_model.clone(),
        key_env: args.key_env.clone(),
        model: args.judge.as_deref().map(model_folder).transpose()?,
        by: args.judge_by,
        form: None,
        criteria: args.criteria.clone(),
        votes: args.votes,
        one_way: args.one_way,
        temperature: args.judge_temperature,
        max_tokens: args.judge_tokens,
        timeout: args.timeout,
        retries: args.retries,
        backoff: args.backoff,
        parallel: args.parallel,
    };
    let problems = settings.problems(&flag);
    if !problems.is_empty() {
        return Err(Error::input("nothing can be judged with these settings", problems));
    }
    let answers = match &args.drawn.model {
        None => None,
        Some(model) => Some(AnswerOptions {
            model: model_folder(model)?,
            form: args.drawn.form,
            count: args.drawn.answers,
            sampling,
            stops: stops.to_vec(),
        }),
    };
    let options = JudgeOptions {
        prompts: args.prompts.clone(),
        answers,
        pairs: args.pairs.unwrap_or(usize::MAX),
        judge: settings,
        out: args.out.clone(),
        stop: stop_on_signal("this answer or comparison")?,
    };
    let mut show = Progress::new();
    let mut open = || {
        let gpu = device.open()?;
        working::on("reading weights");
        Ok(gpu)
    };
    let judged = judge_prompts(&options, &mut open, &mut |event| show.show(event));
    working::done();
    let Judged { known, new, unjudged, tally, cost } = judged?;
    if known > 0 {
        outln!("rows       {known} comparisons were judged before, {new} now");
    } else {
        outln!("rows       {new} comparisons judged");
    }
    tally.lines().iter().for_each(|line| outln!("{line}"));
    outln!("cost       {}", cost_line(&cost));
    outln!("written    {}", args.out.display());
    if !unjudged.is_empty() {
        let summary = format!(
            "{} of {} comparisons could not be judged; the same command tries them again",
            unjudged.len(),
            unjudged.len() + known + new
        );
        return Err(Error::input(summary, unjudged));
    }
    if tally.decided == 0 {
        let what = match tally.bias() {
            Some(_) => "every comparison is a tie: the judge goes by the place of an answer alone",
            None => "every comparison is a tie",
        };
        let what = format!("{what}, so there is nothing to train on; take another judge");
        return Err(Error::file(&args.out, what));
    }
    Ok(())
}

/// `100 calls (31 of them retries), 12345 + 456 tokens, 12.3 s`.
pub(super) fn cost_line(cost: &Cost) -> String {
    let Cost { calls, retries, tokens: [asked, said], seconds } = cost;
    let mut line = format!("{calls} calls");
    if *retries > 0 {
        line += &format!(" ({retries} of them retries)");
    }
    if asked + said > 0 {
        line += &format!(", {asked} prompt and {said} completion tokens");
    }
    format!("{line}, {seconds:.1} s")
}

/// Shows what happens: a line that moves on a terminal, else one every few seconds.
pub(super) struct Progress {
    told: Instant,
}

impl Progress {
    const EVERY: Duration = Duration::from_secs(10);

    pub(super) fn new() -> Self {
        Self { told: Instant::now() }
    }

    pub(super) fn show(&mut self, event: JudgeEvent) {
        let text = match event {
            JudgeEvent::Note(text) => return errln!("{text}"),
            JudgeEvent::Answering(done, all) => format!("answers    to {done} of {all} prompts"),
            JudgeEvent::Judging(done, all) => format!("judged     {done} of {all} comparisons"),
        };
        if std::io::stderr().is_terminal() {
            working::on(&text);
        } else if self.told.elapsed() >= Self::EVERY {
            errln!("{text}");
            self.told = Instant::now();
        }
    }
}
