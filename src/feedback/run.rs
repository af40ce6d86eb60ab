//! From prompts to a file of judged rows: answers, comparisons, decisions.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::data::form::Form;
use crate::data::prompts::{PromptRow, read_prompt_rows};
use crate::error::{Error, Problem, Result};
use crate::feedback::answers::{Answers, Drawing, Kept, Speaker, given_answers};
use crate::feedback::asked::ModelFiles;
use crate::feedback::comparison::{Answered, Comparison, comparisons};
use crate::feedback::journal::Journal;
use crate::feedback::judge::settings::JudgeSettings;
use crate::feedback::judge::tally::Tally;
use crate::feedback::judge::{Cost, Judged, Judging, judge};
use crate::gpu::Gpu;
use crate::model::sampling::Sampling;

/// The model that answers, and how.
pub struct AnswerOptions {
    /// Its folder.
    pub model: PathBuf,
    /// How prompts reach it.
    pub form: Option<Form>,
    /// Answers to a prompt.
    pub count: usize,
    /// How they are drawn.
    pub sampling: Sampling,
    /// Texts that end an answer.
    pub stops: Vec<String>,
}

/// What is judged, and where it goes.
pub struct JudgeOptions {
    /// File of prompts.
    pub prompts: PathBuf,
    /// Who answers them; None where the file has answers.
    pub answers: Option<AnswerOptions>,
    /// Most comparisons of a prompt.
    pub pairs: usize,
    /// The judge.
    pub judge: JudgeSettings,
    /// File of rows.
    pub out: PathBuf,
    /// Set when it is to stop.
    pub stop: Arc<AtomicBool>,
}

/// What happens meanwhile.
pub enum JudgeEvent {
    /// A line for the user.
    Note(String),
    /// Prompts answered, of so many.
    Answering(usize, usize),
    /// Comparisons done, of so many.
    Judging(usize, usize),
}

/// Where the answers are kept: `rows.answers.jsonl` beside `rows.jsonl`.
pub fn answers_file(out: &Path) -> PathBuf {
    let mut name: OsString = out.file_stem().unwrap_or_default().to_owned();
    name.push(".answers.jsonl");
    out.with_file_name(name)
}

/// Draws answers, if a model is named, and has all pairs of them judged that the file of rows does
/// not have yet.
///
/// # Errors
/// Everything that can be known beforehand, before anything is computed; nothing to compare;
/// [`Error::Stopped`]; whatever can go wrong in between. What was decided by then is in the file.
pub fn judge_prompts(
    options: &JudgeOptions,
    gpu: &mut dyn FnMut() -> Result<Rc<Gpu>>,
    on_event: &mut dyn FnMut(JudgeEvent),
) -> Result<Judged> {
    check_places(options)?;
    // What is wrong with the judge is found before answers are drawn.
    options.judge.prepare(&options.stop)?;
    let rows = read_prompt_rows(&options.prompts)?;
    let mut name = None;
    let answered = match &options.answers {
        None => given_answers(rows)?,
        Some(answers) => {
            let path = answers_file(&options.out);
            let drawn = draw(answers, rows, &path, &options.stop, gpu, on_event)?;
            name = Some(drawn.1);
            drawn.0.answered
        }
    };
    let (comparisons, left) = comparisons(&answered, options.pairs);
    if let Some(what) = left.told() {
        on_event(JudgeEvent::Note(what));
    }
    if comparisons.is_empty() {
        return Err(Error::input("there is nothing to compare", nothing(&answered, options)));
    }
    let judging = Judging {
        votes: options.judge.votes,
        one_way: options.judge.one_way,
        parallel: options.judge.parallel,
        model: name.as_deref(),
        seed: options.answers.as_ref().map(|answers| answers.sampling.seed),
    };
    let place = Place { out: &options.out, stop: &options.stop };
    judge_into(&place, &options.judge, &comparisons, &judging, gpu, on_event)
}

/// Where decisions go.
pub struct Place<'a> {
    /// File of rows.
    pub out: &'a Path,
    /// Set when it is to stop.
    pub stop: &'a Arc<AtomicBool>,
}

/// Has those comparisons judged that the file of rows does not have yet.
///
/// # Errors
/// As [`judge()`]; a judge that cannot be made ready.
pub fn judge_into(
    place: &Place,
    settings: &JudgeSettings,
    comparisons: &[Comparison],
    judging: &Judging,
    gpu: &mut dyn FnMut() -> Result<Rc<Gpu>>,
    on_event: &mut dyn FnMut(JudgeEvent),
) -> Result<Judged> {
    let mut tally = Tally::default();
    let mut journal = Journal::open(place.out, &mut |row| tally.add_row(row))?;
    journal.take_notes().into_iter().for_each(|note| on_event(JudgeEvent::Note(note)));
    let all = comparisons.len();
    if comparisons.iter().all(|comparison| journal.knows(&comparison.id)) {
        let (unjudged, cost) = (Vec::new(), Cost::default());
        return Ok(Judged { known: all, new: 0, unjudged, tally, cost });
    }
    let mut asked = settings.judge(settings.prepare(place.stop)?, comparisons, gpu)?;
    let mut progress = |done| on_event(JudgeEvent::Judging(done, all));
    judge(comparisons, &mut *asked, &mut journal, judging, tally, place.stop, &mut progress)
}

/// The answers of a model to prompts, kept in a file, and the model as rows name it.
///
/// # Errors
/// As [`Speaker::answer`]; files and prompts that cannot be used, before a device is opened.
pub fn draw(
    options: &AnswerOptions,
    rows: Vec<PromptRow>,
    kept: &Path,
    stop: &AtomicBool,
    gpu: &mut dyn FnMut() -> Result<Rc<Gpu>>,
    on_event: &mut dyn FnMut(JudgeEvent),
) -> Result<(Answers, String)> {
    let mut note = |text: String| on_event(JudgeEvent::Note(text));
    let files = ModelFiles::open(&options.model, options.form)?;
    let asked = files.asked(rows, options.sampling.max_tokens)?;
    if asked.repeated > 0 {
        note(format!("{} prompts ask what an earlier one does and are left out", asked.repeated));
    }
    note(format!("{} prompts, as {}", asked.rows.len(), files.form()));
    let mut kept = Kept::open(kept)?;
    kept.take_notes().into_iter().for_each(&mut note);
    let speaker = Speaker::new(&gpu()?, files)?;
    let drawing =
        Drawing { count: options.count, sampling: options.sampling, stops: &options.stops };
    let all = asked.rows.len();
    let mut progress = |done| on_event(JudgeEvent::Answering(done, all));
    let answers = speaker.answer(&asked, &drawing, kept, stop, &mut progress)?;
    if answers.cut > 0 {
        on_event(JudgeEvent::Note(format!(
            "{} of {} answers were cut at the limit of {} tokens; rows of them teach to end there",
            answers.cut, answers.all, options.sampling.max_tokens
        )));
    }
    Ok((answers, speaker.name()))
}

/// Whether two paths lead to one file that is there.
pub fn same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

fn check_places(options: &JudgeOptions) -> Result<()> {
    let mut problems = Vec::new();
    if same_file(&options.prompts, &options.out) {
        let what = "is the file of prompts; decisions go into one of their own";
        problems.push(Problem::new(format!("--out {}", options.out.display()), what));
    }
    let ending = options.out.extension().and_then(|e| e.to_str());
    if ending.is_none_or(|ending| !ending.eq_ignore_ascii_case("jsonl")) {
        let what = "must end in .jsonl: that is how training knows what is in it";
        problems.push(Problem::new(format!("--out {}", options.out.display()), what));
    }
    if options.answers.as_ref().is_some_and(|answers| answers.count < 2) {
        problems.push(Problem::new("--answers", "must be at least 2: answers are compared"));
    }
    if options.pairs == 0 {
        problems.push(Problem::new("--pairs", "is 0; it must be at least 1"));
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::input("nothing can be judged with these settings", problems))
}

/// Why there is nothing to compare, by prompt.
fn nothing(answered: &[Answered], options: &JudgeOptions) -> Vec<Problem> {
    let why = |one: &Answered| match (&one.answers[..], &options.answers) {
        ([_], _) => "has one answer; give it another",
        (_, Some(answers)) if answers.sampling.temperature == 0.0 => {
            "all its answers are equal, as they are at --temperature 0; raise it"
        }
        _ => "all its answers are equal or empty",
    };
    answered.iter().map(|one| Problem::new(one.source.to_string(), why(one))).collect()
}
