//! Brings what a name of the hub stands for into the cache, where the hub's own tools find it too.
//!
//! The hub lists the files of a revision with their sizes and hashes (`/api/models/<name>/revision/
//! <revision>?blobs=true`) and gives them at `/<name>/resolve/<commit>/<file>`
//! (<https://huggingface.co/docs/hub/api>). A file is written to `blobs/<hash>.incomplete`, goes on
//! there after an interruption, and gets its name when its hash is right. The snapshot appears when
//! all of it is there.
//!
//! `HF_ENDPOINT` names another hub, `HF_TOKEN` (or the file that `hf auth login` writes) opens private
//! ones, `HF_HUB_OFFLINE` forbids all of it, and `HF_HUB_DOWNLOAD_TIMEOUT` says after how many seconds
//! without a byte a connection is given up.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use ring::digest::Context;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::listing::{Revision, Wanted, is_wanted, read_list, usable};
use super::snapshot::place;
use super::{Kind, Name, cache, home, named};
use crate::error::{Error, Result};

/// Tries in a row that bring nothing before a file is given up.
const TRIES: u32 = 5;
/// The same for the list of files: where there is no network, that is said soon.
const LIST_TRIES: u32 = 3;
/// Longest list of files that is read.
const MOST_LIST: u64 = 64 << 20;
/// Seconds without a byte before a connection is given up.
const PATIENCE: f64 = 10.0;

/// How far a download is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The file that is being fetched.
    pub file: &'a str,
    /// Bytes that are there, of all files.
    pub done: u64,
    /// Bytes of all files.
    pub all: u64,
}

/// Fetches what `path` names on the hub (`owner/name`, for data `hf:owner/name`, each perhaps with
/// `@revision`), unless it is in the cache, no name, or the network is not to be used. `watch` is
/// told how far it is.
///
/// # Errors
/// A name that the hub does not know or does not give to this user, a repository without files that
/// can be used, a connection that breaks again and again, contents that do not have the hash that
/// the hub lists, a cache that cannot be written.
pub fn fetch(path: &Path, kind: Kind, watch: &mut dyn FnMut(Progress<'_>)) -> Result<()> {
    let Some(name) = Name::of(path, kind) else { return Ok(()) };
    let Some(cache) = cache() else { return Ok(()) };
    let there = name.cached(kind, Some(&cache));
    if offline() || there.is_some_and(|folder| kind.is_whole(&folder)) {
        return Ok(());
    }
    Hub::from_env().fetch(&name, kind, &cache, watch).map_err(|what| match what {
        Failure::Hub(what) if kind == Kind::Model => {
            Error::file(path, format!("is no folder here, and on the hub it {what}"))
        }
        Failure::Hub(what) => Error::file(path, what),
        Failure::Here(error) => error,
    })
}

/// Whether the user forbids the network.
fn offline() -> bool {
    let on = |name| std::env::var(name).is_ok_and(|v| is_true(&v));
    on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE")
}

fn is_true(value: &str) -> bool {
    ["1", "true", "yes", "on"].iter().any(|word| value.eq_ignore_ascii_case(word))
}

/// Why nothing came.
enum Failure {
    /// What the hub said or did, in words.
    Hub(String),
    /// What is wrong with this machine.
    Here(Error),
}

impl Failure {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |e| Self::Here(Error::io(action, path, e))
    }
}

type Outcome<T> = std::result::Result<T, Failure>;

/// Where files come from.
struct Hub {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    patience: Duration,
}

impl Hub {
    fn from_env() -> Self {
        let text = |name| std::env::var(name).ok().filter(|v: &String| !v.trim().is_empty());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let file = named("HF_TOKEN_PATH").or_else(|| home().map(|home| home.join("token")));
        let token = text("HF_TOKEN").or_else(|| fs::read_to_string(file?).ok());
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let seconds = text("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|v| v.trim().parse().ok());
        let seconds = seconds.filter(|s: &f64| (0.1..=86_400.0).contains(s)).unwrap_or(PATIENCE);
        let patience = Duration::from_secs_f64(seconds);
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(patience))
            .timeout_recv_response(Some(patience))
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .user_agent(concat!("oddgrad/", env!("CARGO_PKG_VERSION")))
            .build();
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Self { agent: config.into(), endpoint, token, patience }
    }

    fn fetch(
        &self,
        name: &Name<'_>,
        kind: Kind,
        cache: &Path,
        watch: &mut dyn FnMut(Progress<'_>),
    ) -> Outcome<()> {
        let revision = self.list(name, kind)?;
        let found: Vec<String> = revision.siblings.iter().map(|s| s.file.clone()).collect();
        let mut wanted = Vec::new();
        for listed in revision.siblings.into_iter().filter(|s| is_wanted(&s.file, kind)) {
            let file = listed.file.clone();
            wanted.push(Wanted::of(listed).ok_or_else(|| {
                let file: String =
                    file.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect();
                Failure::Hub(format!(
                    "cannot be fetched: {} lists {file:?} without a usable path, size and hash",
                    self.endpoint
                ))
            })?);
        }
        usable(&wanted, &found, kind).map_err(Failure::Hub)?;
        let repository = name.repository(kind, cache);
        let blobs = repository.join("blobs");
        fs::create_dir_all(&blobs).map_err(Failure::io("create", &blobs))?;
        // Two downloads of one repository take turns.
        let lock = blobs.join("oddgrad.lock");
        let held = File::create(&lock).map_err(Failure::io("create", &lock))?;
        held.lock().map_err(Failure::io("lock", &lock))?;

        let all = wanted.iter().map(|w| w.size).sum();
        let mut done = 0;
        let prefix = if kind == Kind::DataSet { "datasets/" } else { "" };
        for wanted in &wanted {
            let address = format!(
                "{}/{prefix}{}/resolve/{}/{}",
                self.endpoint,
                name.name,
                revision.sha,
                escaped(&wanted.file)
            );
            let mut tell = |bytes| watch(Progress { file: &wanted.file, done: done + bytes, all });
            self.blob(&address, wanted, &blobs, &mut tell)?;
            done += wanted.size;
        }
        place(&repository, name.revision, &revision.sha, &mut wanted).map_err(Failure::Here)
    }

    /// The files of a revision.
    fn list(&self, name: &Name<'_>, kind: Kind) -> Outcome<Revision> {
        let address = format!(
            "{}/api/{}/{}/revision/{}?blobs=true",
            self.endpoint,
            kind.word(),
            name.name,
            name.revision
        );
        let (mut tried, what) = (0, "its list of files");
        loop {
            let failed = match self.get(&address, 0) {
                Ok(mut answer) if answer.status().is_success() => {
                    match answer.body_mut().with_config().limit(MOST_LIST).read_to_string() {
                        Ok(text) => {
                            return read_list(&text).ok_or_else(|| {
                                Failure::Hub(format!(
                                    "cannot be fetched: {} does not answer as a hub does, with a commit and its files",
                                    self.endpoint
                                ))
                            });
                        }
                        Err(e) => Try::Again { why: e.to_string(), wait: None },
                    }
                }
                Ok(answer) => self.refused(&answer, what),
                Err(e) => Try::Again { why: e.to_string(), wait: None },
            };
            self.next_try(failed, &mut tried, LIST_TRIES, what)?;
        }
    }

    /// Brings one file into `blobs`, unless it is there.
    fn blob(
        &self,
        address: &str,
        wanted: &Wanted,
        blobs: &Path,
        tell: &mut dyn FnMut(u64),
    ) -> Outcome<()> {
        let whole = blobs.join(&wanted.hash);
        if fs::metadata(&whole).is_ok_and(|meta| meta.len() == wanted.size) {
            return Ok(());
        }
        let partial = blobs.join(format!("{}.incomplete", wanted.hash));
        for last in [false, true] {
            let hash = self.contents(address, wanted, &partial, tell)?;
            if hash == wanted.hash {
                return fs::rename(&partial, &whole).map_err(Failure::io("rename", &partial));
            }
            // What was there already may have been wrong: once more, from the beginning.
            fs::remove_file(&partial).map_err(Failure::io("remove", &partial))?;
            if last {
                return Err(Failure::Hub(format!(
                    "cannot be fetched: what came of {} has the hash {hash}, and the list says {}; try again later, or set HF_ENDPOINT to another hub",
                    wanted.file, wanted.hash
                )));
            }
        }
        unreachable!("the second time returns")
    }

    /// Completes the file at `partial` and gives the hash of its contents.
    fn contents(
        &self,
        address: &str,
        wanted: &Wanted,
        partial: &Path,
        tell: &mut dyn FnMut(u64),
    ) -> Outcome<String> {
        let mut hash = wanted.begin();
        let mut have = hash_file(partial, wanted.size, &mut hash)?;
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(partial)
            .map_err(Failure::io("write", partial))?;
        let mut tried = 0;
        while have < wanted.size {
            tell(have);
            let before = have;
            let failed = match self.get(address, have) {
                Ok(answer) if starts_at(&answer, have) => {
                    let received =
                        self.receive(answer.into_body(), wanted.size - have, &mut |bytes| {
                            file.write_all(bytes).map_err(Failure::io("write", partial))?;
                            hash.update(bytes);
                            have += bytes.len() as u64;
                            tell(have);
                            Ok(())
                        })?;
                    match received {
                        None => continue,
                        Some(why) => Try::Again { why, wait: None },
                    }
                }
                // A server that knows no ranges begins anew.
                Ok(answer) if have > 0 && answer.status() == StatusCode::OK => {
                    file.set_len(0).map_err(Failure::io("write", partial))?;
                    (have, hash) = (0, wanted.begin());
                    Try::Again {
                        why: "the server knows no ranges".to_owned(),
                        wait: Some(Duration::ZERO),
                    }
                }
                Ok(answer) => self.refused(&answer, &wanted.file),
                Err(e) => Try::Again { why: e.to_string(), wait: None },
            };
            if have > before {
                tried = 0;
            }
            self.next_try(failed, &mut tried, TRIES, &wanted.file)?;
        }
        file.sync_all().map_err(Failure::io("write", partial))?;
        Ok(hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Hands on what comes, at most `most` bytes; why it ended before those, if it did.
    fn receive(
        &self,
        body: Body,
        most: u64,
        take: &mut dyn FnMut(&[u8]) -> Outcome<()>,
    ) -> Outcome<Option<String>> {
        // Reads wait without an end; a thread does, so that this one can stop waiting.
        let (send, pieces) = mpsc::sync_channel::<std::io::Result<Vec<u8>>>(4);
        std::thread::spawn(move || {
            let mut reader = body.into_reader();
            loop {
                let mut piece = vec![0; 1 << 16];
                let read = reader.read(&mut piece).map(|n| {
                    piece.truncate(n);
                    piece
                });
                let ends = read.as_ref().map_or(true, Vec::is_empty);
                if send.send(read).is_err() || ends {
                    return;
                }
            }
        });
        let mut left = most;
        while left > 0 {
            match pieces.recv_timeout(self.patience) {
                Ok(Ok(piece)) if piece.is_empty() => {
                    return Ok(Some("the connection ended early".to_owned()));
                }
                Ok(Ok(piece)) => {
                    let fits = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    take(&piece[..fits])?;
                    left -= fits as u64;
                }
                Ok(Err(e)) => return Ok(Some(e.to_string())),
                Err(RecvTimeoutError::Timeout) => {
                    return Ok(Some(format!("nothing came for {} s", self.patience.as_secs_f64())));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Ok(Some("the connection ended early".to_owned()));
                }
            }
        }
        Ok(None)
    }

    fn get(&self, address: &str, from: u64) -> std::result::Result<Response<Body>, ureq::Error> {
        // Sizes and hashes are of the contents, not of what they are packed into.
        let mut request = self.agent.get(address).header("accept-encoding", "identity");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        request.call()
    }

    /// What an answer that brings nothing means.
    fn refused(&self, answer: &Response<Body>, what: &str) -> Try {
        let wait =
            answer.headers().get("retry-after").and_then(|v| v.to_str().ok()?.trim().parse().ok());
        let wait = wait.map(|seconds: u64| Duration::from_secs(seconds.min(120)));
        match answer.status().as_u16() {
            401 | 403 if self.token.is_none() => Try::Never(
                "is not there, or not for everybody: put a token into HF_TOKEN, and accept the terms on its page if it has any".to_owned(),
            ),
            401 | 403 => Try::Never(
                "is not there, or the token (HF_TOKEN) does not open it: check the name, the token, and the terms on its page".to_owned(),
            ),
            404 => Try::Never(format!("is not there ({what}); check the name and the revision")),
            status @ (408 | 425 | 429 | 500..=599) => Try::Again { why: format!("the server answers {status}"), wait },
            status => Try::Never(format!("cannot be fetched: {} answers {status} to the request for {what}", self.endpoint)),
        }
    }

    /// Waits for the next try, if there is one.
    fn next_try(&self, failed: Try, tried: &mut u32, most: u32, what: &str) -> Outcome<()> {
        let (why, wait) = match failed {
            Try::Never(what) => return Err(Failure::Hub(what)),
            Try::Again { why, wait } => (why, wait),
        };
        *tried += 1;
        if *tried == most {
            return Err(Failure::Hub(format!(
                "cannot be fetched: {what} from {}: {why} ({most} tries); what has come is kept, and another run goes on from there. Without a network, name files and folders of this machine",
                self.endpoint
            )));
        }
        std::thread::sleep(wait.unwrap_or(Duration::from_millis(250 << *tried)));
        Ok(())
    }
}

/// What comes after a request that brought nothing.
enum Try {
    Never(String),
    Again { why: String, wait: Option<Duration> },
}

/// Whether an answer's contents begin at a file's byte `from`.
fn starts_at(answer: &Response<Body>, from: u64) -> bool {
    match answer.status() {
        StatusCode::OK => from == 0,
        StatusCode::PARTIAL_CONTENT => answer
            .headers()
            .get("content-range")
            .and_then(|v| v.to_str().ok())
            .is_some_and(|v| v.trim().starts_with(&format!("bytes {from}-"))),
        _ => false,
    }
}

/// A file's path in an address.
fn escaped(file: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~' | b'/');
    file.bytes()
        .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

/// Adds what is in a file to a hash, and says how much that is. A file that is longer than `most`
/// is of no use and starts anew.
fn hash_file(path: &Path, most: u64, hash: &mut Context) -> Outcome<u64> {
    let mut file = match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
        file => file.map_err(Failure::io("read", path))?,
    };
    if file.metadata().map_err(Failure::io("read", path))?.len() > most {
        fs::remove_file(path).map_err(Failure::io("remove", path))?;
        return Ok(0);
    }
    let (mut piece, mut have) = (vec![0; 1 << 16], 0);
    loop {
        let read = file.read(&mut piece).map_err(Failure::io("read", path))?;
        if read == 0 {
            return Ok(have);
        }
        hash.update(&piece[..read]);
        have += read as u64;
    }
}
