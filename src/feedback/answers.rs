//! Answers to prompts: drawn from a model, or those that a file has already.
//!
//! The draws of an answer begin at a seed of their own, made of the run's seed, the prompt's tokens and
//! the number of the answer, and prompts are always answered in the same groups: so an answer does not
//! depend on what else is asked, nor on whether the run was stopped meanwhile.

use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Map, Value, json};

use crate::data::form::Form;
use crate::data::messages::Message;
use crate::data::prompts::PromptRow;
use crate::data::rows::Text;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Problem, Result};
use crate::feedback::asked::{Asked, ModelFiles, TOGETHER};
use crate::feedback::comparison::{Answered, value};
use crate::feedback::journal::Journal;
use crate::gpu::Gpu;
use crate::model::generate::{Generator, Room, Sampling};
use crate::model::speech::{Speech, up_to_stop, whole};
use crate::model::weights::{ParameterValues, put_as};
use crate::program::Store;
use crate::train::learner::check_weights;
use crate::train::proof::Hashed;

/// How answers are drawn.
#[derive(Clone, Copy)]
pub struct Drawing<'a> {
    /// Answers to a prompt.
    pub count: usize,
    /// How tokens are chosen, and how many at most.
    pub sampling: Sampling,
    /// Texts that end an answer.
    pub stops: &'a [String],
}

/// A model on a device that answers.
pub struct Speaker {
    files: ModelFiles,
    gpu: Rc<Gpu>,
    store: Store,
    hash: String,
}

/// What [`Speaker::answer`] found.
pub struct Answers {
    /// The prompts with their answers, in the order of the prompts.
    pub answered: Vec<Answered>,
    /// Answers in all.
    pub all: usize,
    /// Those that came to the limit of tokens before their end.
    pub cut: usize,
}

impl Speaker {
    /// Puts the model on the device.
    ///
    /// # Errors
    /// Weights that cannot be read; an adapter whose memory or limits do not suffice.
    pub fn new(gpu: &Rc<Gpu>, files: ModelFiles) -> Result<Self> {
        check_weights(gpu.target(), files.weights.stored_bytes())?;
        let store = Store::new(gpu);
        let hashed = Hashed::new(&files.weights);
        put_as(&hashed, &store, &files.weights.storage())?;
        let hash = hashed.hash();
        Ok(Self { files, gpu: gpu.clone(), store, hash })
    }

    /// The model's files.
    pub fn files(&self) -> &ModelFiles {
        &self.files
    }

    /// The model as rows name it: its folder and the beginning of the hash of its weights.
    pub fn name(&self) -> String {
        format!("{} ({})", self.files.folder.display(), &self.hash[..12])
    }

    /// A program that continues prompts of at most `longest` tokens by up to `max_tokens`, `together`
    /// at a time.
    ///
    /// # Errors
    /// Memory or limits that do not suffice.
    pub fn generator(
        &self,
        together: usize,
        longest: usize,
        max_tokens: usize,
    ) -> Result<Generator> {
        let room = Room { sequences: together.clamp(1, TOGETHER), length: longest + max_tokens };
        Generator::new(&self.gpu, &self.store, &self.files.config, room)
    }

    /// Answers to every prompt. Those that `kept` has from an earlier run of the same model and settings
    /// are taken from there, and new ones are on the disk there before more are drawn. `progress` hears
    /// how many prompts are answered.
    ///
    /// # Errors
    /// [`Error::Stopped`] when `stop` is set; logits that are not finite; a lost device; a file that
    /// cannot be written.
    pub fn answer(
        &self,
        asked: &Asked,
        drawing: &Drawing,
        mut kept: Kept,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Answers> {
        let sampling = &drawing.sampling;
        let longest = asked.ids.iter().map(Vec::len).max().unwrap_or(0);
        let group = (TOGETHER / drawing.count.max(1)).max(1);
        let keys: Vec<String> = asked.ids.iter().map(|ids| self.key(ids, drawing)).collect();
        let mut found: Vec<Option<Drawn>> = keys.iter().map(|key| kept.take(key)).collect();
        let mut generator = None;
        for from in (0..asked.ids.len()).step_by(group) {
            let members = from..(from + group).min(asked.ids.len());
            progress(from);
            if found[members.clone()].iter().all(Option::is_some) {
                continue;
            }
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped(format!(
                    "stopped with the answers to {} of {} prompts; the same command goes on",
                    found.iter().flatten().count(),
                    found.len()
                )));
            }
            let generator = match &mut generator {
                Some(generator) => generator,
                none => none.insert(self.generator(
                    group * drawing.count,
                    longest,
                    sampling.max_tokens,
                )?),
            };
            let drawn = self.draw(generator, &asked.ids[members.clone()], drawing)?;
            for (at, drawn) in members.zip(drawn) {
                // What is kept stays: it may have been compared.
                if found[at].is_none() {
                    kept.put(&keys[at], &asked.rows[at], &drawn, &self.name(), sampling.seed)?;
                    found[at] = Some(drawn);
                }
            }
        }
        progress(asked.ids.len());
        let mut answers = Answers { answered: Vec::new(), all: 0, cut: 0 };
        for (row, drawn) in asked.rows.iter().zip(found.into_iter().flatten()) {
            answers.all += drawn.texts.len();
            answers.cut += drawn.ended.iter().filter(|ended| !**ended).count();
            let answer = |text: String| match &row.prompt {
                Text::Plain(_) => Text::Plain(text),
                Text::Messages(_) => Text::Messages(vec![Message::new("assistant", text)]),
            };
            answers.answered.push(Answered {
                source: row.source.clone(),
                prompt: row.prompt.clone(),
                given: row.given.clone(),
                answers: drawn.texts.into_iter().map(answer).collect(),
            });
        }
        Ok(answers)
    }

    /// All that decides the answers to a prompt.
    fn key(&self, ids: &[u32], drawing: &Drawing) -> String {
        let Drawing { count, sampling, stops } = drawing;
        let settings =
            format!("answers 1 {} {count} {sampling:?} {stops:?} {}", self.hash, self.files.form);
        let mut hasher = blake3::Hasher::new();
        hasher.update(settings.as_bytes()).update(bytemuck::cast_slice(ids));
        hasher.finalize().to_hex()[..24].to_owned()
    }

    fn draw(
        &self,
        generator: &Generator,
        prompts: &[Vec<u32>],
        drawing: &Drawing,
    ) -> Result<Vec<Drawn>> {
        let Drawing { count, sampling, stops } = *drawing;
        let tokenizer = &self.files.tokenizer;
        let each = || prompts.iter().flat_map(|ids| (0..count).map(move |number| (ids, number)));
        let seeds: Vec<u64> =
            each().map(|(ids, number)| seed_of(sampling.seed, ids, number)).collect();
        let sequences: Vec<Vec<u32>> = each().map(|(ids, _)| ids.clone()).collect();
        let mut speeches: Vec<Speech> = sequences.iter().map(|_| Speech::default()).collect();
        let mut watch = |i: usize, new: &[u32]| {
            Ok(stops.is_empty() || speeches[i].next(&tokenizer.decode(new, true)?, stops).1)
        };
        let ends = tokenizer.ends().0;
        let new = generator.generate_each(&sequences, ends, &sampling, &seeds, &mut watch)?;
        let mut drawn = Vec::with_capacity(prompts.len());
        for (prompt, answers) in prompts.iter().zip(new.chunks(count)) {
            let mut one = Drawn { texts: Vec::new(), ended: Vec::new() };
            for ids in answers {
                let text = match self.files.form {
                    Form::Chat => tokenizer.decode(ids, true)?,
                    // White space in front of it is of the answer, and decoders may drop it.
                    Form::Plain => continuation(tokenizer, prompt, ids)?,
                };
                let said = match self.files.form {
                    Form::Chat => whole(&text, stops),
                    Form::Plain => up_to_stop(&text, stops),
                };
                let stopped = stops.iter().any(|stop| text.contains(stop.as_str()));
                one.ended.push(ids.len() < sampling.max_tokens || stopped);
                one.texts.push(said.to_owned());
            }
            drawn.push(one);
        }
        Ok(drawn)
    }
}

/// The text that `new` adds to that of `prompt`.
fn continuation(tokenizer: &Tokenizer, prompt: &[u32], new: &[u32]) -> Result<String> {
    let before = tokenizer.decode(prompt, true)?;
    let all = tokenizer.decode(&[prompt, new].concat(), true)?;
    match all.strip_prefix(&before) {
        Some(text) => Ok(text.to_owned()),
        None => tokenizer.decode(new, true),
    }
}

/// Where the draws of an answer begin.
fn seed_of(seed: u64, ids: &[u32], number: usize) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(&(number as u64).to_le_bytes());
    hasher.update(bytemuck::cast_slice(ids));
    let bytes = hasher.finalize();
    u64::from_le_bytes(bytes.as_bytes()[..8].try_into().expect("eight bytes"))
}

/// The answers to one prompt, and which of them came to their end.
#[derive(Clone)]
struct Drawn {
    texts: Vec<String>,
    ended: Vec<bool>,
}

/// Answers of earlier runs, in a file of rows `{prompt, answers, ended, id, model, seed}`.
pub struct Kept {
    journal: Journal,
    found: std::collections::HashMap<String, Drawn>,
}

impl Kept {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn open(path: &Path) -> Result<Self> {
        let mut found = std::collections::HashMap::new();
        let journal = Journal::open(path, &mut |row| {
            let texts = |name: &str| row.get(name).and_then(Value::as_array);
            let (Some(id), Some(answers), Some(ended)) =
                (row.get("id").and_then(Value::as_str), texts("answers"), texts("ended"))
            else {
                return;
            };
            let texts = answers.iter().filter_map(|a| a.as_str().map(str::to_owned)).collect();
            let ended = ended.iter().filter_map(Value::as_bool).collect();
            found.insert(id.to_owned(), Drawn { texts, ended });
        })?;
        Ok(Self { journal, found })
    }

    /// What there is to tell the user: bytes of a cut line that were put aside.
    pub fn take_notes(&mut self) -> Vec<String> {
        self.journal.take_notes()
    }

    fn take(&mut self, key: &str) -> Option<Drawn> {
        self.found.remove(key)
    }

    fn put(
        &mut self,
        key: &str,
        row: &PromptRow,
        drawn: &Drawn,
        model: &str,
        seed: u64,
    ) -> Result<()> {
        let mut line = Map::new();
        line.insert("prompt".into(), value(&row.prompt));
        line.insert("answers".into(), json!(drawn.texts));
        line.insert("ended".into(), json!(drawn.ended));
        line.insert("id".into(), key.into());
        line.insert("model".into(), model.into());
        line.insert("seed".into(), seed.into());
        self.journal.append(&line, &mut |_| ()).map(drop)
    }
}

/// The answers that rows have already.
///
/// # Errors
/// Every row without answers, at once.
pub fn given_answers(rows: Vec<PromptRow>) -> Result<Vec<Answered>> {
    let alone = rows.iter().filter(|row| row.answers.is_empty());
    let problems: Vec<Problem> = alone
        .map(|row| {
            let what = "has no answers; give them as a list in a column \"answers\", or name the model that is to answer (--model)";
            Problem::new(row.source.to_string(), what)
        })
        .collect();
    if !problems.is_empty() {
        return Err(Error::input("there is nothing to compare in these rows", problems));
    }
    let answered = rows.into_iter().map(|PromptRow { source, prompt, given, answers }| Answered {
        source,
        prompt,
        given,
        answers,
    });
    Ok(answered.collect())
}
