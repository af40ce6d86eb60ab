//! Which judge, and how it is asked: as flags and as a section of a recipe.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::Deserialize;

use super::Judge;
use super::command::ShellCommand;
use super::endpoint::{Endpoint, EndpointOptions};
use super::local::{Local, LocalBy};
use super::question::CRITERIA;
use crate::data::form::Form;
use crate::error::{Problem, Result};
use crate::feedback::answers::Speaker;
use crate::feedback::asked::ModelFiles;
use crate::feedback::comparison::Comparison;
use crate::gpu::Gpu;
use crate::model::sampling::Sampling;

/// Comparisons that may be asked about at the same time.
const MOST_PARALLEL: usize = 256;

/// The section `[rounds.judge]`; one of `command`, `endpoint` and `model` names the judge.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JudgeSettings {
    /// A command of the shell that scores an answer.
    pub command: Option<String>,
    /// The address of chat completions.
    pub endpoint: Option<String>,
    /// The model's name there.
    pub name: Option<String>,
    /// The environment variable that holds its key.
    pub key_env: String,
    /// A model folder.
    pub model: Option<PathBuf>,
    /// How that model judges.
    pub by: LocalBy,
    /// How questions reach it.
    pub form: Option<Form>,
    /// What makes an answer better.
    pub criteria: String,
    /// Votes on each comparison.
    pub votes: usize,
    /// Ask once, not in both orders.
    pub one_way: bool,
    /// Temperature of replies; without it 0, or 1 for several votes.
    pub temperature: Option<f32>,
    /// Most tokens of a reply.
    pub max_tokens: usize,
    /// Longest time of a call or a command, in seconds.
    pub timeout: f64,
    /// Attempts after a failed one.
    pub retries: u32,
    /// Seconds before the second attempt.
    pub backoff: f64,
    /// Comparisons that an endpoint is asked about at the same time.
    pub parallel: usize,
}

impl Default for JudgeSettings {
    fn default() -> Self {
        Self {
            command: None,
            endpoint: None,
            name: None,
            key_env: "OPENAI_API_KEY".into(),
            model: None,
            by: LocalBy::Odds,
            form: None,
            criteria: CRITERIA.into(),
            votes: 1,
            one_way: false,
            temperature: None,
            max_tokens: 256,
            timeout: 120.0,
            retries: 5,
            backoff: 0.5,
            parallel: 1,
        }
    }
}

impl JudgeSettings {
    /// What is wrong with these settings; `name` says how the user knows a key.
    pub fn problems(&self, name: &dyn Fn(&str) -> String) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut wrong = |key: &str, what: String| problems.push(Problem::new(name(key), what));
        let judges = [self.command.is_some(), self.endpoint.is_some(), self.model.is_some()];
        if judges.iter().filter(|given| **given).count() != 1 {
            let [endpoint, model] = ["endpoint", "model"].map(name);
            let what = format!("name one judge: this, {endpoint} or {model}");
            wrong("command", what);
        }
        if self.endpoint.is_some() && self.name.is_none() {
            wrong("name", "is missing; name the judge's model at the endpoint".into());
        }
        if self.command.as_ref().is_some_and(|command| command.trim().is_empty()) {
            wrong("command", "is empty; write what scores an answer".into());
        }
        if self.votes == 0 {
            wrong("votes", "is 0; it must be at least 1".into());
        }
        if !(1..=MOST_PARALLEL).contains(&self.parallel) {
            wrong("parallel", format!("is {}; it must be 1 to {MOST_PARALLEL}", self.parallel));
        } else if self.parallel > 1 && self.endpoint.is_none() {
            wrong("parallel", "is for an endpoint; leave it at 1".into());
        }
        let fixed = match (&self.command, self.model.is_some() && self.by == LocalBy::Odds) {
            (Some(_), _) => Some("a command scores an answer"),
            (None, true) => Some("log-odds are"),
            _ => None,
        };
        if let Some(what) = fixed.filter(|_| self.votes > 1) {
            wrong(
                "votes",
                format!("is {}, but {what} the same every time; leave it at 1", self.votes),
            );
        } else if self.votes > 1 && self.temperature == Some(0.0) {
            wrong("temperature", "is 0, at which all votes are the same; raise it".into());
        }
        if self.temperature.is_some_and(|t| !(t.is_finite() && t >= 0.0)) {
            wrong("temperature", "must be 0 or a positive number".into());
        }
        if self.max_tokens == 0 {
            wrong("max_tokens", "is 0; a reply has at least one token".into());
        }
        for (key, seconds, least) in
            [("timeout", self.timeout, 0.001), ("backoff", self.backoff, 0.0)]
        {
            if !(least..=86400.0).contains(&seconds) {
                wrong(key, format!("is {seconds}; write seconds, at most a day"));
            }
        }
        problems
    }

    fn temperature(&self) -> f32 {
        self.temperature.unwrap_or(if self.votes > 1 { 1.0 } else { 0.0 })
    }

    /// Finds out what can be known of the judge before anything is computed.
    ///
    /// # Errors
    /// An address that is none; a model folder that cannot be used.
    pub fn prepare(&self, stop: &Arc<AtomicBool>) -> Result<Prepared> {
        if let Some(command) = &self.command {
            let timeout = Duration::from_secs_f64(self.timeout);
            let command = ShellCommand::new(command.clone(), timeout, stop.clone());
            return Ok(Prepared::Ready(Box::new(command)));
        }
        if let (Some(address), Some(model)) = (&self.endpoint, &self.name) {
            let endpoint = Endpoint::new(EndpointOptions {
                address: address.clone(),
                model: model.clone(),
                key_env: self.key_env.clone(),
                criteria: self.criteria.clone(),
                temperature: self.temperature(),
                max_tokens: self.max_tokens,
                timeout: Duration::from_secs_f64(self.timeout),
                retries: self.retries,
                backoff: Duration::from_secs_f64(self.backoff),
                stop: stop.clone(),
            })?;
            return Ok(Prepared::Ready(Box::new(endpoint)));
        }
        let folder = self.model.as_deref().expect("the settings were checked: they name a judge");
        Ok(Prepared::Model(Box::new(ModelFiles::open(folder, self.form)?)))
    }

    /// The judge, ready to be asked about these comparisons.
    ///
    /// # Errors
    /// As [`Speaker::new`] and [`Local::new`].
    pub fn judge(
        &self,
        prepared: Prepared,
        comparisons: &[Comparison],
        gpu: &mut dyn FnMut() -> Result<Rc<Gpu>>,
    ) -> Result<Box<dyn Judge>> {
        let files = match prepared {
            Prepared::Ready(judge) => return Ok(judge),
            Prepared::Model(files) => files,
        };
        let speaker = Speaker::new(&gpu()?, *files)?;
        let sampling =
            Sampling { temperature: self.temperature(), ..Sampling::greedy(self.max_tokens) };
        let criteria = self.criteria.clone();
        Ok(Box::new(Local::new(speaker, comparisons, self.by, criteria, sampling)?))
    }
}

/// A judge as far as it is known without a device.
pub enum Prepared {
    /// One that needs none.
    Ready(Box<dyn Judge>),
    /// A model's folder.
    Model(Box<ModelFiles>),
}
