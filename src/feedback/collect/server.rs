//! The page's server: bound to this machine alone, at an address that holds a token.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tiny_http::{Header, Method, Request, Response, Server, StatusCode};

use super::desk::{Desk, Next};
use super::page::{Draft, Frame};
use crate::error::{Error, Problem, Result};
use crate::feedback::comparison::{Choice, Comparison, shown};
use crate::files::write_atomically;

/// The port, where none is asked for.
pub const PORT: u16 = 7474;
/// Largest form in bytes.
const LARGEST_FORM: usize = 1 << 20;
/// Longest name of a person, in characters.
const LONGEST_NAME: usize = 80;

/// A server that waits for a browser.
pub struct Page {
    server: Server,
    port: u16,
    token: String,
    who: String,
}

/// What goes back to the browser.
enum Reply {
    Page(u16, String),
    /// To another address of this server.
    Go(String),
}

impl Page {
    /// Listens at `port` of 127.0.0.1 (0: any that is free). The token is kept in `folder`, by the file
    /// `rows` of the decisions, so that a page which is open finds the next server too. `who` decides,
    /// where a browser does not say otherwise.
    ///
    /// # Errors
    /// A port that is in use; a system without random numbers.
    pub fn open(port: u16, rows: &Path, folder: Option<&Path>, who: &str) -> Result<Self> {
        let refuse = |error: &dyn std::fmt::Display| {
            let what = format!(
                "{port} cannot be used: {error}; choose another, or 0 for any that is free"
            );
            Error::input("the page cannot be shown", vec![Problem::new("--port", what)])
        };
        let server =
            Server::http(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).map_err(|e| refuse(&e))?;
        let token = token(rows, folder)?;
        let bound = server.server_addr().to_ip().map_or(port, |address| address.port());
        Ok(Self { server, port: bound, token, who: who.to_owned() })
    }

    /// Where a browser finds it.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}/{}/", self.port, self.token)
    }

    /// Answers browsers until `stop` is set.
    ///
    /// # Errors
    /// A connection that cannot be waited for any more.
    pub fn serve(&self, desk: &Desk, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            match self.server.recv_timeout(Duration::from_millis(100)) {
                Ok(None) => {}
                Ok(Some(request)) => self.answer(request, desk),
                Err(e) => return Err(Error::io("wait for", self.address(), e)),
            }
        }
        Ok(())
    }

    fn answer(&self, mut request: Request, desk: &Desk) {
        let reply = self.reply(&mut request, desk);
        let header = |name: &str, value: &str| {
            Header::from_bytes(name.as_bytes(), value.as_bytes())
                .expect("a header without odd letters")
        };
        // A browser that has gone hears nothing, which is no fault of anybody's.
        let _ = match reply {
            Reply::Page(status, html) => {
                let response = Response::from_string(html)
                    .with_status_code(StatusCode(status))
                    .with_header(header("content-type", "text/html; charset=utf-8"))
                    .with_header(header("cache-control", "no-store"))
                    .with_header(header("x-content-type-options", "nosniff"))
                    .with_header(header(
                        "content-security-policy",
                        &format!("default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-{}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'", self.token),
                    ));
                request.respond(response)
            }
            Reply::Go(to) => {
                request.respond(Response::empty(303).with_header(header("location", &to)))
            }
        };
    }

    fn reply(&self, request: &mut Request, desk: &Desk) -> Reply {
        let url = request.url().to_owned();
        let (path, query) = url.split_once('?').unwrap_or((&url, ""));
        let at = format!("/{}/", self.token);
        let host = request.headers().iter().find(|h| h.field.equiv("Host"));
        let here = ["127.0.0.1", "localhost"].map(|name| format!("{name}:{}", self.port));
        // Without the token, or under another name, nothing is said.
        if !host.is_some_and(|h| here.iter().any(|name| h.value.as_str() == name))
            || !path.starts_with(&at)
        {
            return Reply::Page(
                404,
                "Not found: open the address that the program printed.\n".to_owned(),
            );
        }
        match (request.method(), &path[at.len()..]) {
            (Method::Get, "") => self.show(&at, &self.name(field(query.as_bytes(), "who")), desk),
            (Method::Post, "decide") => {
                let mut form = Vec::new();
                let read = request.as_reader().take(LARGEST_FORM as u64 + 1).read_to_end(&mut form);
                let who = self.name(field(&form, "who"));
                match read {
                    Ok(_) if form.len() <= LARGEST_FORM => self.decide(&at, &who, &form, desk),
                    Ok(_) => {
                        self.words(&at, &who, desk, 413, "Too long", "An answer has 1 MiB at most.")
                    }
                    Err(_) => self.words(
                        &at,
                        &who,
                        desk,
                        400,
                        "Nothing was kept",
                        "The form did not arrive whole.",
                    ),
                }
            }
            (Method::Get, "decide") => Reply::Go(at),
            _ => self.words(&at, &self.who, desk, 404, "Not found", "There is nothing here."),
        }
    }

    fn name(&self, said: Option<String>) -> String {
        let name = said.unwrap_or_default();
        let name: String =
            name.trim().chars().filter(|c| !c.is_control()).take(LONGEST_NAME).collect();
        if name.is_empty() { self.who.clone() } else { name }
    }

    fn words(
        &self,
        at: &str,
        who: &str,
        desk: &Desk,
        status: u16,
        title: &str,
        text: &str,
    ) -> Reply {
        let frame = Frame { at, nonce: &self.token, who, counts: desk.counts() };
        Reply::Page(status, frame.words(title, text, true))
    }

    fn show(&self, at: &str, who: &str, desk: &Desk) -> Reply {
        let next = match desk.next(who) {
            Ok(next) => next,
            Err(e) => {
                return self.words(
                    at,
                    who,
                    desk,
                    500,
                    "The file of decisions cannot be read",
                    &e.to_string(),
                );
            }
        };
        let frame = Frame { at, nonce: &self.token, who, counts: desk.counts() };
        Reply::Page(
            200,
            match next {
                Next::Show(comparison) => frame.comparison(&comparison, &Draft::default()),
                Next::Wait if frame.counts.open => {
                    frame.words("Wait a moment", "The next answers are being drawn.", true)
                }
                Next::Wait => {
                    frame.words("Wait a moment", "Somebody else looks at what is left.", true)
                }
                Next::Done => frame.words(
                    "All is decided",
                    "Thank you. The rows are written; the program can be stopped with Ctrl-C.",
                    false,
                ),
            },
        )
    }

    fn decide(&self, at: &str, who: &str, form: &[u8], desk: &Desk) -> Reply {
        let comparison = field(form, "id").and_then(|id| desk.comparison(&id));
        let Some(comparison) = comparison else {
            let text = "The comparison is not on the desk of this server (yet): nothing was kept.";
            return self.words(at, who, desk, 409, "Not here", text);
        };
        let place = |side: &str| usize::from((side == "right") != comparison.is_turned());
        let text = field(form, "text").unwrap_or_default().replace("\r\n", "\n");
        let choice = match field(form, "choice").as_deref() {
            Some(side @ ("left" | "right")) => Choice::of(place(side)),
            Some("tie") => Choice::Tie,
            Some("skip") => Choice::Skip,
            Some("written") => {
                let over = place(&field(form, "over").unwrap_or_default());
                if let Some(problem) = of_no_use(&text, over, &comparison) {
                    let frame = Frame { at, nonce: &self.token, who, counts: desk.counts() };
                    let draft = Draft { text: &text, problem: Some(problem) };
                    return Reply::Page(422, frame.comparison(&comparison, &draft));
                }
                Choice::Written { text, over }
            }
            _ => {
                let text = "The form said neither which answer is better nor that none is.";
                return self.words(at, who, desk, 400, "Nothing was kept", text);
            }
        };
        match desk.decide(&comparison, choice, who) {
            Ok(_) => {
                let who: String = form_urlencoded::byte_serialize(who.as_bytes()).collect();
                Reply::Go(format!("{at}?who={who}"))
            }
            Err(e) => {
                self.words(at, who, desk, 500, "The decision could not be written", &e.to_string())
            }
        }
    }
}

/// Why an answer of one's own cannot be kept.
fn of_no_use(text: &str, over: usize, comparison: &Comparison) -> Option<&'static str> {
    if text.trim().is_empty() {
        return Some("The answer is empty; write one.");
    }
    let same = text.trim() == shown(&comparison.answers[over]).trim();
    same.then_some(
        "That is the answer it is to be better than; change it, or choose the other one.",
    )
}

/// A field of a form.
fn field(form: &[u8], name: &str) -> Option<String> {
    form_urlencoded::parse(form).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// The token of a file's page: the kept one, or a new one.
fn token(rows: &Path, folder: Option<&Path>) -> Result<String> {
    let fresh = || {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)
            .map_err(|e| Error::Device(format!("the system has no random numbers: {e}")))?;
        Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    let Some(folder) = folder else { return fresh() };
    let place = std::path::absolute(rows).map_err(|e| Error::io("find", rows, e))?;
    let name = blake3::hash(place.as_os_str().as_encoded_bytes()).to_hex();
    let folder = folder.join("collect");
    let kept = folder.join(&name[..24]);
    let is_token = |text: &String| text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if let Some(token) = std::fs::read_to_string(&kept).ok().filter(is_token) {
        return Ok(token);
    }
    let token = fresh()?;
    std::fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
    for_its_owner(&folder).map_err(|e| Error::io("protect", &folder, e))?;
    write_atomically(&kept, token.as_bytes())?;
    Ok(token)
}

/// Keeps other users of the machine out of a folder.
#[cfg(unix)]
fn for_its_owner(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
}

/// The user's own folders are closed to others already.
#[cfg(not(unix))]
fn for_its_owner(_: &Path) -> std::io::Result<()> {
    Ok(())
}
