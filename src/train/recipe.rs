//! The recipe of a run: one TOML file that says what is trained, on what and how.
//!
//! ```toml
//! objective = "orpo"            # orpo | sft | lm | simpo | dpo | cpo | kto
//! model = "models/nano"         # Hugging Face folder
//! init = "pretrained"           # pretrained: from the folder's weights | random: drawn from `seed`,
//!                               # for a folder without weights
//! output = "runs/first"
//! seed = 0
//!
//! [data]
//! train = ["pairs.jsonl"]       # files or folders; one may stand without brackets
//! eval = []                     # held-out rows
//! max_length = 1024             # tokens of one sequence
//! over_length = "drop"          # drop | truncate-prompt | truncate-response | error
//! eos = "once"                  # once | trl
//! skip_bad_rows = false
//! map = {}                      # columns by another name: { chosen = "good" }; prompt, system, chosen,
//!                               # rejected, label
//!
//! [loss]
//! lambda = 0.1                  # weight of the odds-ratio loss; always 0 for sft and lm
//! nll_scope = "prompt+response" # prompt+response | response
//! nll_reduction = "token"       # token | sequence
//! accumulation = "exact"        # exact | trl
//! # simpo has, instead of lambda:
//! # beta = 2.0                  # scale of the difference of mean log-probs
//! # gamma = 0.5                 # margin by which the chosen answer should win
//! # cpo_alpha = 0.0             # weight of an NLL of the chosen sequence; nll_* as above, but
//! #                             # nll_scope = "response"
//! # dpo has, instead of lambda and nll_*:
//! # type = "sigmoid"            # sigmoid | robust | hinge | ipo
//! # beta = 0.1                  # how strongly the model is held to the one it starts from
//! # label_smoothing = 0.0       # share of labels believed wrong; sigmoid and robust only
//! # cpo has, instead of lambda:
//! # type = "sigmoid"            # sigmoid | hinge
//! # beta = 0.1                  # scale of the difference of summed log-probs
//! # label_smoothing = 0.0       # as for dpo; sigmoid only
//! # cpo_alpha = 1.0             # as for simpo
//! # kto has, instead of lambda and nll_*:
//! # type = "kto"                # kto | apo_zero_unpaired
//! # beta = 0.1                  # how strongly the model is held to the one it starts from
//! # desirable_weight = 1.0      # weight of answers with label true
//! # undesirable_weight = 1.0    # and of those with label false
//!
//! # [lora]                      # low-rank additions train and the model stays as it is; without this
//!                               # section all weights train. If `model` is an adapter, it is trained
//!                               # further, with this section or without: rank, alpha, targets and
//!                               # rslora are its own, and a key that says otherwise is refused
//! # rank = 16
//! # alpha = 32                  # the additions are multiplied by alpha / rank
//! # targets = "all"             # linear layers: all, or some as ["q_proj", "v_proj"]
//! # rslora = false              # alpha / sqrt(rank) instead
//! # base = "stored"             # how the model's matrices are kept: stored (as in their file) | f16 |
//!                               # bf16 | q8_0 | q4_0 (linear layers in 4 bits, the rest as q8_0)
//!
//! [optim]
//! learning_rate = 1e-3          # no default, see below
//! beta1 = 0.9
//! beta2 = 0.999
//! eps = 1e-8
//! weight_decay = 0.0
//! max_grad_norm = 1.0           # 1e30 for no clipping
//! schedule = "linear"           # linear | cosine | constant
//! warmup_steps = 0              # or warmup_ratio = 0.1
//!
//! [batch]
//! size = 16                     # rows of one optimizer step
//! stream_tokens = 1024          # length of the stream of one micro-batch
//! recompute = "auto"            # what of the forward pass is computed again, to keep less: none |
//!                               # block | auto (block where memory does not suffice without)
//!
//! [train]
//! epochs = 1.0                  # or max_steps = 500
//! eval_every = 50               # steps, and at the end; 0 = never
//! eval_at_start = true          # unless eval_every is 0
//! save_every = 100              # steps; 0 = only at the end
//! # save_minutes = 30           # and whenever so much time has passed
//! log_every = 1
//! keep_checkpoints = 2
//! best = "loss"                 # the held-out figure whose best checkpoint stays besides those:
//!                               # loss, rewards/accuracies, … (one the objective shows) | none
//!
//! [sample]
//! every = 0                     # steps; 0 = never
//! prompts = []
//! max_tokens = 64
//! # form = "chat"               # plain | chat: the prompts' form; without it, that of the rows
//! ```
//!
//! The reference model of dpo and kto is the one that the run starts from: the model itself under
//! fresh additions, an adapter that is trained further as it was (so does TRL, which keeps a copy of
//! it). What it gives the rows is computed once and kept
//! in the cache folder (`$ODDGRAD_CACHE`, else `oddgrad` where the system keeps such files), in
//! `reference-*.logps`: later runs on the same weights and rows take it from there.
//!
//! Only `model`, `output`, `data.train` and `optim.learning_rate` have no default: no rate fits both
//! a pretrained model (8e-6 in ORPO's paper, 1e-4 to 2e-4 with LoRA) and one that starts at random
//! (1e-3). **Relative paths are relative to the current directory**, not to the recipe.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

pub use super::change::Change;
pub use super::lora_settings::LoraSettings;
pub use crate::data::form::Form;
pub use crate::data::tokenize::{EosRule, OverLength};

use super::lora_settings::read_lora;
use super::objectives::{Loss, Metric};
use super::program::{Placement, TrainedSet, train_all};
use super::schedule::Schedule;
use super::settings::{NOT_NEGATIVE, POSITIVE, Settings, single};
use crate::error::{Error, Problem, Result};
use crate::model::config::ModelConfig;
use crate::model::lora::is_factor;
use crate::model::weights::{FolderWeights, FreshAdapter, ParameterValues, RandomWeights, Storage};

/// What a run starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InitialWeights {
    /// The weights in the model's folder.
    Pretrained,
    /// Values drawn from the seed; the folder must hold no weights.
    Random,
}

/// Settings that are tables of names.
pub(super) const TABLES: [&str; 1] = ["data.map"];

/// Rows and how they become tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataSettings {
    /// Files or folders of training rows.
    pub train: Vec<PathBuf>,
    /// Files or folders of held-out rows; may be empty.
    pub eval: Vec<PathBuf>,
    /// Longest sequence in tokens (prompt and one answer).
    pub max_length: usize,
    /// What happens beyond that.
    pub over_length: OverLength,
    /// When the end-of-sequence token is appended.
    pub eos: EosRule,
    /// Go on without unusable rows instead of stopping.
    pub skip_bad_rows: bool,
    /// Our column name -> the file's.
    pub map: BTreeMap<String, String>,
}

impl Default for DataSettings {
    /// The defaults of a recipe, without rows.
    fn default() -> Self {
        Self {
            train: Vec::new(),
            eval: Vec::new(),
            max_length: 1024,
            over_length: OverLength::default(),
            eos: EosRule::default(),
            skip_bad_rows: false,
            map: BTreeMap::new(),
        }
    }
}

/// AdamW and its learning rate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OptimSettings {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices and embeddings.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm.
    pub max_grad_norm: f64,
    /// Shape of the learning rate after warm-up.
    pub schedule: Schedule,
    /// Steps of warm-up; excludes `warmup_ratio`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// Share of all steps that is warm-up; excludes `warmup_steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_ratio: Option<f64>,
}

impl OptimSettings {
    /// AdamW as PyTorch has it without weight decay, the gradient clipped at 1, and a learning rate
    /// that falls linearly from `learning_rate`.
    pub fn new(learning_rate: f64) -> Self {
        Self {
            learning_rate,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            schedule: Schedule::Linear,
            warmup_steps: Some(0),
            warmup_ratio: None,
        }
    }

    /// Warm-up steps of a run of `total` steps; a share is rounded up, as transformers does.
    pub fn warmup(&self, total: u64) -> u64 {
        match (self.warmup_steps, self.warmup_ratio) {
            (Some(steps), _) => steps,
            (None, Some(ratio)) => (total as f64 * ratio).ceil() as u64,
            (None, None) => 0,
        }
    }

    /// The learning rate of the 0-based `step` of `total`.
    pub fn learning_rate_at(&self, step: u64, total: u64) -> f64 {
        self.schedule.learning_rate(self.learning_rate, step, self.warmup(total), total)
    }
}

/// How much is computed at a time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BatchSettings {
    /// B: rows of one optimizer step.
    pub size: usize,
    /// T: tokens of one micro-batch's stream.
    pub stream_tokens: usize,
    /// What of the forward pass is computed again for the derivative.
    #[serde(skip_serializing_if = "Recompute::is_auto")]
    pub recompute: Recompute,
}

/// What of the forward pass is computed a second time, so that it need not be kept. It changes memory
/// and time, and no bit of a gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Nothing.
    None,
    /// All but what goes from block to block.
    Block,
    /// As "block" where memory does not suffice without.
    Auto,
}

impl Recompute {
    fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// How long, and what happens on the way.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainSettings {
    /// Passes over the rows; excludes `max_steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Optimizer steps; excludes `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// Steps between evaluations, with one at the end; 0 = never.
    pub eval_every: u64,
    /// Evaluate before the first step too, unless `eval_every` is 0.
    pub eval_at_start: bool,
    /// Steps between checkpoints; 0 = only at the end.
    pub save_every: u64,
    /// Minutes between checkpoints, besides `save_every`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_minutes: Option<f64>,
    /// Steps between lines of the log.
    pub log_every: u64,
    /// How many checkpoints stay; the newest ones.
    pub keep_checkpoints: usize,
    /// The held-out figure whose best checkpoint stays besides those: a key of the objective's
    /// [`Metric`]s, or [`NO_BEST`].
    #[serde(skip_serializing_if = "String::is_empty")]
    pub best: String,
}

/// [`TrainSettings::best`] where no evaluation is kept for being the best.
pub const NO_BEST: &str = "none";

impl TrainSettings {
    /// Optimizer steps of the run: `max_steps`, or the epochs rounded up to whole steps.
    pub fn total_steps(&self, steps_per_epoch: u64) -> u64 {
        match self.max_steps {
            Some(steps) => steps,
            None => ((self.epochs.unwrap_or(1.0) * steps_per_epoch as f64).ceil() as u64).max(1),
        }
    }
}

/// Texts generated during training.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SampleSettings {
    /// Steps between samples; 0 = never.
    pub every: u64,
    /// What is continued.
    pub prompts: Vec<String>,
    /// Longest continuation in tokens.
    pub max_tokens: usize,
    /// The form of the prompts, which the trained model records as its own; None: that of the rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub form: Option<Form>,
}

/// Everything a run is made of; written beside it by [`Recipe::to_toml`].
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// Hugging Face folder of the model.
    pub model: PathBuf,
    /// What the run starts from.
    pub init: InitialWeights,
    /// Folder of the run; must not exist yet, except to resume.
    pub output: PathBuf,
    /// Seed of the row order and of fresh weights.
    pub seed: u64,
    /// Section `data`: which rows, and how they become tokens.
    pub data: DataSettings,
    /// What the objective minimises, and section `loss`.
    pub loss: Loss,
    /// Section `lora`: additions that train instead of the weights.
    pub lora: Option<LoraSettings>,
    /// Section `optim`: AdamW and the learning rate.
    pub optim: OptimSettings,
    /// Section `batch`: rows of a step, tokens of a stream.
    pub batch: BatchSettings,
    /// Length and intervals.
    pub train: TrainSettings,
    /// Section `sample`: prompts continued during training.
    pub sample: SampleSettings,
}

impl Serialize for Recipe {
    /// The objective's name stands first, its settings are the section `[loss]`.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut table = serializer.serialize_struct("Recipe", 12)?;
        table.serialize_field("objective", self.loss.objective.name())?;
        table.serialize_field("model", &self.model)?;
        // The default is left out: fingerprints of runs that never heard of the key stay.
        if self.init != InitialWeights::Pretrained {
            table.serialize_field("init", &self.init)?;
        }
        table.serialize_field("output", &self.output)?;
        table.serialize_field("seed", &self.seed)?;
        table.serialize_field("data", &self.data)?;
        table.serialize_field("loss", &self.loss)?;
        if let Some(lora) = &self.lora {
            table.serialize_field("lora", lora)?;
        }
        table.serialize_field("optim", &self.optim)?;
        table.serialize_field("batch", &self.batch)?;
        table.serialize_field("train", &self.train)?;
        table.serialize_field("sample", &self.sample)?;
        table.end()
    }
}

/// Reads a recipe; `overrides` are `dotted.key=value` from the command line and win over the file
/// (also where the two exclude each other: `train.max_steps=20` removes the file's `epochs`).
///
/// # Errors
/// An unreadable file, invalid TOML, and, all at once: unknown keys (with a suggestion), wrong
/// types, values out of range, missing keys.
pub fn load(path: &Path, overrides: &[String]) -> Result<Recipe> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    Recipe::parse(&path.display().to_string(), &text, overrides)
}

impl Recipe {
    /// Reads a recipe from text; `place` names it in messages. See [`load`].
    ///
    /// # Errors
    /// Every problem of the recipe at once, each with its key.
    pub fn parse(place: &str, text: &str, overrides: &[String]) -> Result<Self> {
        let table = toml::from_str::<toml::Table>(text).map_err(|e| {
            Error::file(place, format!("is not valid TOML: {}", e.to_string().trim_end()))
        })?;
        let mut settings = Settings::new(place, table, &TABLES);
        for text in overrides {
            settings.set(text, &TABLES);
        }
        settings.exclusive("train.epochs", "train.max_steps");
        settings.exclusive("optim.warmup_steps", "optim.warmup_ratio");
        let recipe = read(&mut settings);
        let problems: Vec<Problem> = settings.finish();
        if problems.is_empty() {
            Ok(recipe)
        } else {
            Err(Error::input("the recipe cannot be used", problems))
        }
    }

    /// The held-out figure that decides which evaluation is the best; None if none is.
    pub fn best_metric(&self) -> Option<&'static Metric> {
        self.loss.objective.metrics().iter().find(|metric| metric.key == self.train.best)
    }

    /// The resolved recipe as TOML; [`Recipe::parse`] reads the same recipe back.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("settings are TOML values")
    }

    /// The weights that a run of it starts from: those in its model's folder, or drawn from its seed,
    /// and fresh factors for the additions of `config` unless the folder is an adapter's.
    ///
    /// # Errors
    /// A folder without weights that can be used.
    pub fn initial_weights<'a>(
        &self,
        config: &'a ModelConfig,
    ) -> Result<Box<dyn ParameterValues + 'a>> {
        let seed = self.seed;
        if self.init == InitialWeights::Random {
            return Ok(Box::new(RandomWeights { config, seed }));
        }
        let weights = FolderWeights::open(&self.model, config)?;
        let fresh = self.lora.is_some() && !weights.hold_factors();
        let base: Box<dyn ParameterValues + 'a> = Box::new(weights);
        Ok(if fresh { Box::new(FreshAdapter { base, config, seed }) } else { base })
    }

    /// How `model`, adapted, lies on a device when its file stores it as `stored`.
    pub fn placement(&self, model: &ModelConfig, stored: Storage) -> Placement {
        let storage = match &self.lora {
            None => Storage::new(),
            Some(settings) => settings.base.storage(model, stored),
        };
        let recompute = self.batch.recompute == Recompute::Block;
        Placement { trained: self.trained(), storage: Rc::new(storage), recompute }
    }

    /// The parameters that train, by name.
    pub fn trained(&self) -> TrainedSet {
        match self.lora {
            None => train_all(),
            Some(_) => Rc::new(is_factor),
        }
    }

    /// A hash of what decides the weights: everything but the output folder, what is computed again, and the intervals of
    /// evaluating, saving, logging and sampling. A run goes on under the same one, or one that differs
    /// in [harmless](Change::is_harmless) settings alone.
    pub fn fingerprint(&self) -> String {
        let mut copy = self.clone();
        copy.output = PathBuf::new();
        copy.data.eval.clear();
        copy.batch.recompute = Recompute::Auto;
        copy.sample = SampleSettings { every: 0, prompts: Vec::new(), max_tokens: 1, form: None };
        let TrainSettings { epochs, max_steps, .. } = copy.train;
        copy.train = TrainSettings {
            epochs,
            max_steps,
            eval_every: 0,
            eval_at_start: false,
            save_every: 0,
            save_minutes: None,
            log_every: 0,
            keep_checkpoints: 0,
            best: String::new(),
        };
        blake3::hash(copy.to_toml().as_bytes()).to_hex().to_string()
    }
}

fn read(s: &mut Settings) -> Recipe {
    let mut path = |key: &str, what: &str| {
        if !s.is_set(key) {
            s.problem(key, format!("is missing; name {what}"));
        }
        PathBuf::from(s.text(key).unwrap_or_default())
    };
    let model = path("model", "a Hugging Face model folder");
    let output = path("output", "a folder for the run that does not exist yet");
    let init = s.choice("init", &[InitialWeights::Pretrained, InitialWeights::Random]);
    let init = init.unwrap_or(InitialWeights::Pretrained);
    let seed = s.whole("seed", 0, u64::MAX).unwrap_or(0);
    let data = read_data(s);
    let loss = Loss::read(s);
    let lora = read_lora(s);
    if lora.is_some() && init == InitialWeights::Random {
        s.problem("lora", "adds to a trained model; leave init = \"random\" or the section out");
    }
    let optim = read_optim(s);
    let batch = BatchSettings {
        size: s.whole("batch.size", 1, 1 << 24).unwrap_or(16) as usize,
        stream_tokens: s.whole("batch.stream_tokens", 2, 1 << 24).unwrap_or(1024) as usize,
        recompute: s
            .choice("batch.recompute", &[Recompute::None, Recompute::Block, Recompute::Auto])
            .unwrap_or(Recompute::Auto),
    };
    let train = read_train(s, &loss);
    let sample = SampleSettings {
        every: s.whole("sample.every", 0, u64::MAX).unwrap_or(0),
        prompts: s.texts("sample.prompts"),
        max_tokens: s.whole("sample.max_tokens", 1, 1 << 24).unwrap_or(64) as usize,
        form: s.choice("sample.form", &[Form::Plain, Form::Chat]),
    };
    if sample.every > 0 && sample.prompts.is_empty() {
        s.problem(
            "sample.every",
            "is set, but sample.prompts is empty; add a prompt or set it to 0",
        );
    }
    Recipe { model, init, output, seed, data, loss, lora, optim, batch, train, sample }
}

fn read_data(s: &mut Settings) -> DataSettings {
    let given = s.is_set("data.train");
    let train: Vec<PathBuf> = s.texts("data.train").into_iter().map(PathBuf::from).collect();
    if !given {
        s.problem("data.train", "is missing; name a file or folder of rows");
    } else if train.is_empty() {
        s.problem("data.train", "names no file; name a file or folder of rows");
    }
    use OverLength::{Drop, Error, TruncatePrompt, TruncateResponse};
    let default = DataSettings::default();
    let over_length =
        s.choice("data.over_length", &[Drop, TruncatePrompt, TruncateResponse, Error]);
    DataSettings {
        train,
        eval: s.texts("data.eval").into_iter().map(PathBuf::from).collect(),
        max_length: s
            .whole("data.max_length", 2, 1 << 24)
            .map_or(default.max_length, |n| n as usize),
        over_length: over_length.unwrap_or(default.over_length),
        eos: s.choice("data.eos", &[EosRule::Once, EosRule::Trl]).unwrap_or(default.eos),
        skip_bad_rows: s.flag("data.skip_bad_rows").unwrap_or(default.skip_bad_rows),
        map: s.strings_by_name("data.map"),
    }
}

fn read_optim(s: &mut Settings) -> OptimSettings {
    // A beta that rounds to 1 in f32 would divide by zero in the bias correction.
    let beta = |x: f64| x >= 0.0 && (x as f32) < 1.0;
    const BETA: &str = "from 0 to below 1";
    const RATE: &str = "optim.learning_rate";
    if !s.is_set(RATE) {
        s.problem(
            RATE,
            "is missing, and no value fits every run. Usual are 8e-6 (ORPO's paper) to 1e-5 for a pretrained model, 1e-4 to 2e-4 for LoRA, 1e-3 for a small model from scratch",
        );
    }
    let rate = s.number(RATE, NOT_NEGATIVE, |x| x >= 0.0 && single(x));
    let default = OptimSettings::new(rate.unwrap_or_default());
    let mut optim = OptimSettings {
        learning_rate: default.learning_rate,
        beta1: s.number("optim.beta1", BETA, beta).unwrap_or(default.beta1),
        beta2: s.number("optim.beta2", BETA, beta).unwrap_or(default.beta2),
        eps: s
            .number("optim.eps", "a positive number that f32 can hold", |x| {
                x >= f64::from(f32::MIN_POSITIVE) && single(x)
            })
            .unwrap_or(default.eps),
        weight_decay: s
            .number("optim.weight_decay", NOT_NEGATIVE, |x| x >= 0.0 && single(x))
            .unwrap_or(default.weight_decay),
        max_grad_norm: s
            .number("optim.max_grad_norm", "a positive number; 1e30 for no clipping", |x| {
                x > 0.0 && single(x)
            })
            .unwrap_or(default.max_grad_norm),
        schedule: s
            .choice("optim.schedule", &[Schedule::Linear, Schedule::Cosine, Schedule::Constant])
            .unwrap_or(default.schedule),
        warmup_steps: s.whole("optim.warmup_steps", 0, u64::MAX),
        warmup_ratio: s.number("optim.warmup_ratio", "from 0 to 1", |x| (0.0..=1.0).contains(&x)),
    };
    if optim.warmup_ratio.is_none() {
        optim.warmup_steps.get_or_insert(0);
    }
    optim
}

fn read_train(s: &mut Settings, loss: &Loss) -> TrainSettings {
    let figures = loss.objective.metrics().iter().map(|metric| metric.key);
    let figures: Vec<&str> = figures.chain([NO_BEST]).collect();
    let mut train = TrainSettings {
        epochs: s.number("train.epochs", POSITIVE, |x| x > 0.0 && single(x)),
        max_steps: s.whole("train.max_steps", 1, u64::MAX),
        eval_every: s.whole("train.eval_every", 0, u64::MAX).unwrap_or(50),
        eval_at_start: s.flag("train.eval_at_start").unwrap_or(true),
        save_every: s.whole("train.save_every", 0, u64::MAX).unwrap_or(100),
        save_minutes: s
            .number("train.save_minutes", "a positive number of minutes", |x| x > 0.0 && x <= 1e6),
        log_every: s.whole("train.log_every", 1, u64::MAX).unwrap_or(1),
        keep_checkpoints: s.whole("train.keep_checkpoints", 1, 1 << 24).unwrap_or(2) as usize,
        best: s.choice("train.best", &figures).unwrap_or(figures[0]).to_owned(),
    };
    if train.max_steps.is_none() {
        train.epochs.get_or_insert(1.0);
    }
    train
}

#[cfg(test)]
#[path = "recipe_tests.rs"]
mod tests;
