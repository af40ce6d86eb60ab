//! A judge behind an address that speaks OpenAI's chat completions: llama.cpp, Ollama, vLLM, a service.
//!
//! What can pass is tried again, after waits that double, scattered so that many callers do not come
//! back at once, or as long as the server asks: no connection, a time limit, 408, 425, 429, 5xx, a
//! reply that is cut or is no JSON, one that names neither answer. A key that is refused, or an address
//! that is none, ends it at once.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

use super::question::{letter, question};
use super::{Ballot, Cost, Failure, Judge};
use crate::error::{Error, Problem, Result, shown};
use crate::feedback::comparison::Comparison;

/// Largest reply in bytes.
const LARGEST: u64 = 8 << 20;
/// Longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Longest wait that a server may ask for.
const MOST_ASKED: Duration = Duration::from_secs(900);
/// Characters of a server's text that are told.
const TOLD: usize = 300;

/// Where the judge is and how it is asked.
#[derive(Clone)]
pub struct EndpointOptions {
    /// Address up to where `/chat/completions` follows, as in `http://127.0.0.1:8080/v1`.
    pub address: String,
    /// The model's name there.
    pub model: String,
    /// The environment variable that holds the key.
    pub key_env: String,
    /// What makes an answer better.
    pub criteria: String,
    /// 0 for the most probable reply.
    pub temperature: f32,
    /// Most tokens of a reply.
    pub max_tokens: usize,
    /// Longest time of a call.
    pub timeout: Duration,
    /// Attempts after the first.
    pub retries: u32,
    /// Wait before the second attempt.
    pub backoff: Duration,
    /// Set when it is to stop.
    pub stop: Arc<AtomicBool>,
}

/// The judge. Its clones may ask at the same time.
#[derive(Clone)]
pub struct Endpoint {
    options: EndpointOptions,
    url: String,
    key: Option<String>,
    agent: ureq::Agent,
    known: Arc<Mutex<Known>>,
}

/// What all clones of a judge know and took.
#[derive(Default)]
struct Known {
    /// Whether somebody is there.
    reached: bool,
    cost: Cost,
}

/// Why an attempt failed.
enum Attempt {
    /// It may pass, after this wait if the server asks for one.
    Passing(String, Option<Duration>),
    Failed(Failure),
}

impl Known {
    fn count(&mut self, again: bool) {
        self.cost.calls += 1;
        self.cost.retries += u64::from(again);
    }
}

impl Endpoint {
    /// Nothing is called yet.
    ///
    /// # Errors
    /// An address that is none; a key that no header can hold.
    pub fn new(options: EndpointOptions) -> Result<Self> {
        let mut problems = Vec::new();
        let address = options.address.trim_end_matches('/');
        let host = ["http://", "https://"].iter().find_map(|start| address.strip_prefix(start));
        let is_address = host.is_some_and(|host| !host.is_empty())
            && !address.contains(char::is_whitespace)
            && !address.contains(['?', '#']);
        if !is_address {
            let what = "is no address; write one as in http://127.0.0.1:8080/v1";
            problems.push(Problem::new(format!("--endpoint {address}"), what));
        }
        if address.ends_with("/chat/completions") {
            let what = "leave /chat/completions out; it is added";
            problems.push(Problem::new(format!("--endpoint {address}"), what));
        }
        let key = std::env::var(&options.key_env).ok().map(|key| key.trim().to_owned());
        let key = key.filter(|key| !key.is_empty());
        if key.as_ref().is_some_and(|key| !key.bytes().all(|b| b.is_ascii_graphic())) {
            let what = "holds characters that no key has; set it to the key alone";
            problems.push(Problem::new(format!("${}", options.key_env), what));
        }
        if !problems.is_empty() {
            return Err(Error::input("the judge cannot be asked", problems));
        }
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(options.timeout))
            .user_agent(concat!("oddgrad/", env!("CARGO_PKG_VERSION")));
        let name = host.unwrap_or_default();
        if ["127.0.0.1", "localhost", "[::1]"].iter().any(|local| name.starts_with(local)) {
            // What runs on this machine is not behind the proxy of a network.
            config = config.proxy(None);
        }
        let url = format!("{address}/chat/completions");
        let agent = config.build().new_agent();
        Ok(Self { url, key, agent, known: Arc::default(), options })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reply with its letter.
    fn reply(&self, body: &[u8]) -> std::result::Result<(String, usize), Failure> {
        let mut wait = self.options.backoff;
        for attempt in 0..=self.options.retries {
            if self.options.stop.load(Ordering::Relaxed) {
                return Err(stopped());
            }
            self.known().count(attempt > 0);
            let (reason, asked) = match self.call(body) {
                Ok(text) => match letter(&text) {
                    Some(place) => return Ok((text, place)),
                    None => {
                        let text = shown(text.trim(), TOLD);
                        (format!("the judge named neither A nor B: \"{text}\""), None)
                    }
                },
                Err(Attempt::Failed(failure)) => return Err(failure),
                Err(Attempt::Passing(reason, asked)) => (reason, asked),
            };
            if attempt == self.options.retries {
                let reason = format!("{} attempts: {reason}", attempt + 1);
                return Err(match self.known().reached {
                    true => Failure::Here(reason),
                    false => self.stop(reason),
                });
            }
            // Half of it at least, so that attempts do come later and later.
            let scattered = wait.mul_f64(0.5 + 0.5 * fastrand::f64());
            self.sleep(asked.unwrap_or(scattered).min(MOST_ASKED))?;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
        unreachable!("the last attempt returns")
    }

    /// Waits, unless it is to stop.
    fn sleep(&self, wait: Duration) -> std::result::Result<(), Failure> {
        const SLICE: Duration = Duration::from_millis(50);
        let start = Instant::now();
        while let Some(left) = wait.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
            if self.options.stop.load(Ordering::Relaxed) {
                return Err(stopped());
            }
            std::thread::sleep(left.min(SLICE));
        }
        Ok(())
    }

    /// The text of one reply.
    fn call(&self, body: &[u8]) -> std::result::Result<String, Attempt> {
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", &format!("Bearer {key}"));
        }
        let mut response = request.send(body).map_err(|e| self.no_reply(&e))?;
        self.known().reached = true;
        let status = response.status().as_u16();
        let asked = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let asked = asked.and_then(wait_of);
        let read = response.body_mut().with_config().limit(LARGEST).read_to_vec();
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(_) if status >= 400 => Vec::new(),
            Err(e) => return Err(self.passing(format!("the reply is cut: {e}"))),
        };
        let text = String::from_utf8_lossy(&bytes);
        if !(200..300).contains(&status) {
            return Err(self.refused(status, &text, asked));
        }
        let Ok(value) = serde_json::from_slice::<Value>(&bytes) else {
            let start = shown(text.trim(), TOLD);
            return Err(self.passing(format!("the reply is no JSON: \"{start}\"")));
        };
        for (sum, name) in
            self.known().cost.tokens.iter_mut().zip(["prompt_tokens", "completion_tokens"])
        {
            *sum += value["usage"][name].as_u64().unwrap_or(0);
        }
        match value["choices"][0]["message"]["content"].as_str() {
            Some(said) => Ok(said.to_owned()),
            None => {
                let start = shown(&value.to_string(), TOLD);
                Err(self.passing(format!("the reply has no choices[0].message.content: {start}")))
            }
        }
    }

    fn passing(&self, reason: String) -> Attempt {
        Attempt::Passing(self.without_key(reason), None)
    }

    /// What a server or a library says, without the key.
    fn without_key(&self, text: String) -> String {
        match &self.key {
            Some(key) => text.replace(key, "[key]"),
            None => text,
        }
    }

    /// What ends it for all comparisons.
    fn stop(&self, what: String) -> Failure {
        let place = format!("--endpoint {}", self.options.address);
        let problems = vec![Problem::new(place, what)];
        Failure::Stop(Error::input("the judge cannot be asked", problems))
    }

    fn no_reply(&self, error: &ureq::Error) -> Attempt {
        // Whoever takes a call and loses it is there.
        let nobody = matches!(error, ureq::Error::Io(e) if e.kind() == ErrorKind::ConnectionRefused)
            || matches!(error, ureq::Error::ConnectionFailed | ureq::Error::HostNotFound);
        self.known().reached |= !nobody;
        match error {
            ureq::Error::Timeout(_) => {
                self.passing(format!("no reply within {:?} (--timeout)", self.options.timeout))
            }
            _ if nobody => self.passing(format!(
                "nothing answers there ({error}); start the server, or correct --endpoint"
            )),
            _ => self.passing(format!("the call failed: {error}")),
        }
    }

    fn refused(&self, status: u16, text: &str, asked: Option<Duration>) -> Attempt {
        let value: Value = serde_json::from_str(text).unwrap_or_default();
        let said = value["error"]["message"].as_str().or(value["error"].as_str()).unwrap_or(text);
        let said = self.without_key(shown(said.trim(), TOLD));
        let stop =
            |what: String| Attempt::Failed(self.stop(format!("{what} (HTTP {status}: {said})")));
        match status {
            401 | 403 => {
                let key = &self.options.key_env;
                stop(match self.key {
                    Some(_) => {
                        format!("refuses the key in ${key}; set it to one that is valid there")
                    }
                    None => format!(
                        "asks for a key; put it into ${key}, or name another variable (--key-env)"
                    ),
                })
            }
            404 | 405 => stop(format!(
                "has no chat completions, or no model {}; correct --endpoint or --judge-model",
                self.options.model
            )),
            408 | 425 | 429 | 500..=u16::MAX => {
                Attempt::Passing(format!("HTTP {status}: {said}"), asked)
            }
            300..=399 => stop("is another address by now; write that one".into()),
            _ => Attempt::Failed(Failure::Here(format!("HTTP {status}: {said}"))),
        }
    }
}

impl Judge for Endpoint {
    fn name(&self) -> String {
        format!("{} at {}", self.options.model, self.options.address)
    }

    fn ask(
        &mut self,
        comparison: &Comparison,
        order: [usize; 2],
        vote: usize,
    ) -> std::result::Result<Ballot, Failure> {
        let mut body = json!({
            "model": self.options.model,
            "messages": [question(comparison, order, &self.options.criteria)],
            "temperature": self.options.temperature,
            "max_tokens": self.options.max_tokens,
        });
        if self.options.temperature > 0.0 {
            body["seed"] = vote.into();
        }
        let (text, place) = self.reply(body.to_string().as_bytes())?;
        let raw = Map::from_iter([("reply".to_owned(), text.into())]);
        Ok(Ballot { order: Some(order), better: Some(order[place]), raw })
    }

    fn cost(&self) -> Cost {
        self.known().cost
    }

    fn another(&self) -> Option<Box<dyn Judge + Send>> {
        Some(Box::new(self.clone()))
    }
}

fn stopped() -> Failure {
    Failure::Stop(Error::Stopped(String::new()))
}

/// What a header Retry-After asks for: seconds, or a moment (RFC 9110, section 10.2.3).
fn wait_of(header: &str) -> Option<Duration> {
    if let Ok(seconds) = header.trim().parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let moment = DateTime::parse_from_rfc2822(header.trim()).ok()?;
    (moment.with_timezone(&Utc) - Utc::now()).to_std().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(address: &str) -> EndpointOptions {
        EndpointOptions {
            address: address.into(),
            model: "m".into(),
            key_env: "ODDGRAD_TEST_NO_SUCH_KEY".into(),
            criteria: String::new(),
            temperature: 0.0,
            max_tokens: 4,
            timeout: Duration::from_secs(1),
            retries: 0,
            backoff: Duration::ZERO,
            stop: Arc::default(),
        }
    }

    #[test]
    fn addresses_are_checked() {
        for wrong in ["", "127.0.0.1:8080", "ftp://x", "http://", "http://a b", "http://x/v1?k=1"] {
            let error = Endpoint::new(options(wrong)).err().unwrap().to_string();
            assert!(error.contains("is no address"), "{wrong}: {error}");
        }
        let twice = Endpoint::new(options("http://x/v1/chat/completions/")).err().unwrap();
        assert!(twice.to_string().contains("leave /chat/completions out"), "{twice}");
        let right = Endpoint::new(options("http://127.0.0.1:8080/v1/")).unwrap();
        assert_eq!(right.url, "http://127.0.0.1:8080/v1/chat/completions");
    }

    #[test]
    fn a_server_may_ask_for_a_wait() {
        assert_eq!(wait_of("3"), Some(Duration::from_secs(3)));
        assert_eq!(wait_of("0.5"), Some(Duration::from_millis(500)));
        let soon = (Utc::now() + chrono::TimeDelta::seconds(9)).to_rfc2822();
        assert!(wait_of(&soon).is_some_and(|wait| wait > Duration::from_secs(7)), "{soon}");
        assert_eq!(wait_of("Wed, 21 Oct 2015 07:28:00 GMT"), None);
        assert_eq!((wait_of("soon"), wait_of("-1"), wait_of("NaN")), (None, None, None));
    }
}
