//! `oddgrad collect`: by plain requests, as a browser without scripts sends them, and by a real browser
//! whose server is killed.

use crate::place::Place;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A server, killed when it is dropped.
struct Served {
    child: Child,
    address: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(p: &Place, args: &str) -> Served {
    let mut child = Command::new(env!("CARGO_BIN_EXE_oddgrad"))
        .arg("collect")
        .args(args.split_whitespace())
        .current_dir(p.dir.path())
        .env("ODDGRAD_CACHE", p.path("cache"))
        .env("USER", "Ann")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.next().expect("it says where it is").unwrap();
    let address = line.strip_prefix("open").expect(&line).trim().to_owned();
    Served { child, address }
}

/// Sends a request and gives status, headers and body.
fn request(host: &str, head: &str, body: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(host).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let length = body.len();
    let head = format!("{head} HTTP/1.1\r\nconnection: close\r\ncontent-length: {length}\r\n");
    let head = match head.to_ascii_lowercase().contains("\r\nhost:") {
        true => head,
        false => format!("{head}host: {host}\r\n"),
    };
    stream.write_all(format!("{head}\r\n{body}").as_bytes()).unwrap();
    // Some servers keep the connection whatever they are told.
    let (mut reader, mut head) = (BufReader::new(stream), String::new());
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "a whole answer: {head}");
    }
    let field = |line: &str| {
        Some(line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().unwrap())
    };
    let mut body = vec![0; head.lines().find_map(field).unwrap_or(0)];
    reader.read_exact(&mut body).unwrap();
    let body = String::from_utf8(body).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head, body)
}

/// A person with a browser that knows forms alone.
struct Person<'a> {
    served: &'a Served,
    who: &'a str,
}

impl Person<'_> {
    fn parts(&self) -> (String, String) {
        let rest = self.served.address.strip_prefix("http://").unwrap();
        let (host, path) = rest.split_once('/').unwrap();
        (host.to_owned(), format!("/{path}"))
    }

    fn see(&self) -> String {
        let (host, path) = self.parts();
        let (status, _, body) = request(&host, &format!("GET {path}?who={}", self.who), "");
        assert_eq!(status, 200, "{body}");
        body
    }

    /// The comparison that is shown.
    fn id(&self) -> String {
        hidden(&self.see()).to_owned()
    }

    fn say(&self, form: &str) -> (u16, String) {
        let (host, path) = self.parts();
        let (status, head, body) = request(&host, &format!("POST {path}decide"), form);
        if status == 303 {
            assert!(
                head.to_ascii_lowercase().contains(&format!("location: {path}?who=")),
                "{head}"
            );
        }
        (status, body)
    }

    fn decide(&self, id: &str, choice: &str) -> (u16, String) {
        self.say(&format!("id={id}&who={}&choice={choice}", self.who))
    }
}

fn hidden(page: &str) -> &str {
    let (_, rest) = page.split_once("name=\"id\" value=\"").expect(page);
    rest.split('"').next().unwrap()
}

fn prompts(n: usize) -> String {
    let row = |i: usize| {
        let answers = [format!("<b>yes</b> & {i}"), format!("no {i}")];
        format!("{}\n", json!({"prompt": format!("What of {i}?"), "answers": answers}))
    };
    (0..n).map(row).collect()
}

fn rows(p: &Place) -> Vec<Value> {
    let text = std::fs::read_to_string(p.path("decided.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn people_decide_by_plain_forms() {
    let p = Place::new();
    p.write("prompts.jsonl", prompts(6));
    let served = serve(&p, "prompts.jsonl --out decided.jsonl --port 0");
    let (ann, bob) =
        (Person { served: &served, who: "Ann" }, Person { served: &served, who: "Bob" });

    // What models and people wrote is text on the page, not HTML.
    let page = ann.see();
    assert!(page.contains("&lt;b&gt;yes&lt;/b&gt; &amp; 0") && !page.contains("<b>yes"), "{page}");
    assert!(page.contains("0 of 6 decided"), "{page}");

    // Each decision is a row before the next comparison is shown.
    let first = ann.id();
    assert_eq!(ann.decide(&first, "left").0, 303);
    assert_eq!(rows(&p).len(), 1);
    let second = ann.id();
    assert_ne!(first, second);
    assert_ne!(bob.id(), second, "two people see different ones");
    // A page that is sent twice is one row.
    assert_eq!(ann.decide(&first, "right").0, 303);
    assert_eq!(rows(&p).len(), 1);
    assert_eq!(ann.decide(&second, "tie").0, 303);
    let third = bob.id();
    assert_eq!(bob.decide(&third, "skip").0, 303);

    // An answer of one's own.
    let fourth = ann.id();
    let form = |text: &str, over: &str| {
        format!("id={fourth}&who=Ann&choice=written&text={text}&over={over}")
    };
    let (status, body) = ann.say(&form("+%0D%0A", "left"));
    assert!(status == 422 && body.contains("The answer is empty"), "{status} {body}");
    let left = ann.see().contains("<h2>Left</h2><div class=\"text\">no 3</div>");
    let same = ann.say(&form("no+3", if left { "left" } else { "right" }));
    assert!(
        same.0 == 422 && same.1.contains("better than") && same.1.contains("no 3</textarea>"),
        "{}",
        same.1
    );
    assert_eq!(rows(&p).len(), 3);
    assert_eq!(ann.say(&form("A%20better%0D%0Aone%20%C3%A9", "left")).0, 303);

    // What makes no sense is not kept, and said.
    for (form, status, part) in [
        ("id=none&choice=left".to_owned(), 409, "not on the desk"),
        (format!("id={}&who=Ann", ann.id()), 400, "neither which answer"),
        (format!("id={}&choice=both", ann.id()), 400, "neither which answer"),
        (String::new(), 409, "not on the desk"),
    ] {
        let (found, body) = ann.say(&form);
        assert!(found == status && body.contains(part), "{form}: {found} {body}");
    }
    let (host, path) = ann.parts();
    for (head, status) in [
        ("GET /".to_owned(), 404),
        (format!("GET /{}/", "0".repeat(32)), 404),
        (format!("GET {path} HTTP/1.1\r\nhost: elsewhere.example\r\nx:"), 404),
        (format!("GET {path}more"), 404),
        (format!("DELETE {path}"), 404),
        (format!("GET {path}decide"), 303),
    ] {
        let (found, _, body) = request(&host, &head, "");
        assert_eq!(found, status, "{head}: {body}");
        assert!(!body.contains("What of"), "{head}");
    }
    assert_eq!(ann.say(&format!("id={fourth}&text={}", "a".repeat(2 << 20))).0, 413);
    assert_eq!(rows(&p).len(), 4);

    // Killed, and gone on with at the same address.
    let address = served.address.clone();
    let port = host.rsplit(':').next().unwrap().to_owned();
    drop(served);
    let served = serve(&p, &format!("prompts.jsonl --out decided.jsonl --port {port}"));
    assert_eq!(served.address, address);
    let ann = Person { served: &served, who: "Ann" };
    assert!(ann.see().contains("4 of 6 decided"));
    for _ in 0..2 {
        assert_eq!(ann.decide(&ann.id(), "right").0, 303);
    }
    assert!(ann.see().contains("All is decided"));

    // A second server at the port is refused.
    p.refused(
        &format!("collect prompts.jsonl --out other.jsonl --port {port}"),
        &[&format!("--port: {port} cannot be used"), "0 for any"],
    );

    let rows = rows(&p);
    let choices: Vec<_> = rows.iter().map(|row| row["choice"].as_str().unwrap()).collect();
    assert_eq!(choices[1..4], ["tie", "skip", "written"]);
    assert_eq!(rows[3]["chosen"], "A better\none é");
    for row in &rows {
        let sides = [&row["chosen"], &row["rejected"]];
        let expected = !matches!(row["choice"].as_str(), Some("tie" | "skip"));
        assert_eq!(sides.iter().all(|side| side.is_string()), expected, "{row}");
        assert!(row["when"].is_string() && row["answers"].as_array().unwrap().len() == 2, "{row}");
        if row["choice"] == "first" {
            assert_eq!(row["chosen"], row["answers"][0], "{row}");
        }
    }
    assert_eq!(rows[2]["who"], "Bob");
    // Left is the first answer in some comparisons and the second in others, as the row says.
    let left = |row: &Value| row["shown"][0].as_str().unwrap().to_owned();
    assert_eq!(rows.iter().map(left).collect::<BTreeSet<_>>().len(), 2);
    assert_eq!(rows[0]["choice"], rows[0]["shown"][0]);

    let trained =
        p.run("train r.toml --untuned --set data.train=decided.jsonl --set train.max_steps=1");
    assert_eq!(trained.code, Some(0), "{}", trained.err);
    assert!(trained.err.contains("1 tie and 1 skip left out"), "{}", trained.err);
}

#[test]
fn a_model_answers_while_people_decide() {
    let p = Place::new();
    p.write("prompts.txt", "Say it.\nSay more.\nSay it.\n");
    let args = "prompts.txt --out decided.jsonl --model model --form plain --answers 3 --pairs 2 --temperature 1 --max-tokens 6 --port 0";
    let served = serve(&p, args);
    let ann = Person { served: &served, who: "Ann" };
    let start = Instant::now();
    let mut shown = BTreeSet::new();
    loop {
        let page = ann.see();
        if page.contains("All is decided") {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(90), "{page}");
        match page.contains("Wait a moment") {
            true => std::thread::sleep(Duration::from_millis(100)),
            false => {
                let id = hidden(&page).to_owned();
                assert!(shown.insert(id.clone()), "twice: {id}");
                ann.decide(&id, "left");
            }
        }
    }
    let kept = std::fs::read(p.path("decided.answers.jsonl")).unwrap();
    let first = rows(&p);
    assert_eq!(first.len(), 4, "two prompts, two comparisons each");
    assert!(
        first
            .iter()
            .all(|row| row["model"].as_str().unwrap().starts_with("model (") && row["seed"] == 0)
    );
    drop(served);
    // Another start draws nothing anew and asks nothing again.
    let served = serve(&p, args);
    let ann = Person { served: &served, who: "Ann" };
    loop {
        let page = ann.see();
        if page.contains("All is decided") {
            break;
        }
        assert!(page.contains("Wait a moment"), "{page}");
    }
    assert_eq!(std::fs::read(p.path("decided.answers.jsonl")).unwrap(), kept);
    assert_eq!(rows(&p).len(), 4);
}

#[test]
fn what_cannot_be_collected_is_refused() {
    let p = Place::new();
    p.write("prompts.txt", "Say it.\n");
    p.write("same.jsonl", "{\"prompt\": \"a\", \"answers\": [\"b\", \" b \", \"\"]}\n");
    p.write("bad.jsonl", "{\"answers\": [\"b\", \"c\"]}\n{\"prompt\": 3}\n");
    p.write("empty.txt", "\n");
    for (args, phrases) in [
        ("prompts.txt --out decided.jsonl", &["prompts.txt:1", "has no answers", "--model"][..]),
        ("same.jsonl --out decided.jsonl", &["nothing to decide"]),
        ("bad.jsonl --out decided.jsonl", &["bad.jsonl:1", "bad.jsonl:2"]),
        ("empty.txt --out decided.jsonl", &["has no prompt"]),
        ("none.jsonl --out decided.jsonl", &["none.jsonl"]),
        ("same.jsonl --out rows.txt --pairs 0", &["--out", ".jsonl", "--pairs"]),
        ("prompts.txt --out decided.jsonl --model model --temperature 0", &["--temperature 0.8"]),
        ("prompts.txt --out r.toml", &["must end in .jsonl"]),
    ] {
        let before = p.path("decided.jsonl").exists();
        let answer = p.run(&format!("collect {args}"));
        assert_eq!(answer.code, Some(1), "{args}: {}", answer.err);
        phrases
            .iter()
            .for_each(|part| assert!(answer.err.contains(part), "{args}: {}", answer.err));
        assert_eq!(p.path("decided.jsonl").exists(), before, "{args}");
    }
}

/// A browser by the WebDriver protocol (<https://www.w3.org/TR/webdriver2/>).
struct Browser {
    child: Child,
    host: String,
    session: String,
    _profile: tempfile::TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = request(&self.host, &format!("DELETE {}", self.session), "");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Browser {
    fn start(driver: &PathBuf) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let profile = tempfile::tempdir().unwrap();
        let child = Command::new(driver)
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut new = Self {
            child,
            host: format!("127.0.0.1:{port}"),
            session: String::new(),
            _profile: profile,
        };
        let start = Instant::now();
        while TcpStream::connect(&new.host).is_err() {
            assert!(start.elapsed() < Duration::from_secs(30), "chromedriver does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        let profile = format!("--user-data-dir={}", new._profile.path().display());
        let flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            &profile,
        ];
        let wanted =
            json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": flags}}}});
        let made = new.post("/session", &wanted).expect("a session");
        new.session = format!("/session/{}", made["sessionId"].as_str().unwrap());
        new
    }

    fn post(&self, path: &str, body: &Value) -> Option<Value> {
        let (status, _, text) =
            request(&self.host, &format!("POST {}{path}", self.session), &body.to_string());
        let answer: Value = serde_json::from_str(&text).unwrap();
        (status == 200).then(|| answer["value"].clone())
    }

    fn get(&self, path: &str) -> Option<Value> {
        let (status, _, text) = request(&self.host, &format!("GET {}{path}", self.session), "");
        let answer: Value = serde_json::from_str(&text).unwrap();
        (status == 200).then(|| answer["value"].clone())
    }

    /// Opens an address; None where nobody answers.
    fn open(&self, address: &str) -> Option<()> {
        self.post("/url", &json!({"url": address})).map(drop)
    }

    fn find(&self, css: &str) -> Option<String> {
        let found = self.post("/element", &json!({"using": "css selector", "value": css}))?;
        Some(format!("/element/{}", found.as_object()?.values().next()?.as_str()?))
    }

    fn click(&self, css: &str) -> Option<()> {
        self.post(&format!("{}/click", self.find(css)?), &json!({})).map(drop)
    }

    fn keys(&self, css: &str, text: &str) -> Option<()> {
        self.post(&format!("{}/value", self.find(css)?), &json!({"text": text})).map(drop)
    }

    /// The comparison that is shown.
    fn id(&self) -> Option<String> {
        let field = self.find("input[name=id]")?;
        Some(self.get(&format!("{field}/attribute/value"))?.as_str()?.to_owned())
    }
}

fn driver() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders)
        .map(|folder| folder.join("chromedriver"))
        .find(|path| path.exists())
}

/// Decisions by mouse and by keyboard in a real browser, and a server that is killed meanwhile: each
/// comparison is a row, once. `ODDGRAD_FAULTS=full` makes it 500 decisions and 20 kills.
#[test]
fn a_browser_loses_no_decision_of_a_server_that_is_killed() {
    let Some(driver) = driver() else {
        let wanted = std::env::var_os("ODDGRAD_BROWSER").is_some();
        assert!(!wanted, "no chromedriver in PATH");
        eprintln!("not tried: there is no chromedriver in PATH (Debian: chromium-driver)");
        return;
    };
    let full = std::env::var("ODDGRAD_FAULTS").is_ok_and(|text| text == "full");
    let (decisions, kills) = if full { (500, 20) } else { (25, 3) };
    let p = Place::new();
    p.write("prompts.jsonl", prompts(decisions));
    let served = serve(&p, "prompts.jsonl --out decided.jsonl --port 0");
    let address = served.address.clone();
    let port = address.rsplit(':').next().unwrap().split('/').next().unwrap().to_owned();
    let args = format!("prompts.jsonl --out decided.jsonl --port {port}");
    let browser = Browser::start(&driver);
    let over = AtomicBool::new(false);
    let mut chance = fastrand::Rng::with_seed(7);
    let (killed, sent) = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let (mut served, mut killed) = (served, 0);
            let mut chance = fastrand::Rng::with_seed(3);
            // Spread over the decisions, each at a moment of its own.
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(chance.u64(1..30)));
                let due = rows(&p).len() >= (killed + 1) * decisions / (kills + 1);
                if killed < kills && due {
                    drop(served);
                    served = serve(&p, &args);
                    killed += 1;
                }
            }
            killed
        });
        let start = Instant::now();
        let mut sent = 0;
        loop {
            assert!(start.elapsed() < Duration::from_secs(if full { 900 } else { 90 }), "no end");
            let Some(_) = browser.id() else {
                let title = browser.get("/title").unwrap_or_default();
                if title == format!("{decisions} of {decisions} decided") {
                    break;
                }
                // Nobody answered, or there was nothing to decide yet.
                let _ = browser.open(&address);
                continue;
            };
            sent += 1;
            let _ = match chance.u32(0..5) {
                0 => browser.click("button[value=left]"),
                1 => browser.keys("body", "2"),
                2 => browser.keys("body", "3"),
                3 => browser.keys("button[value=skip]", "\u{e007}"), // Enter
                _ => browser.click("summary").and_then(|()| {
                    browser.keys("textarea", "My own words, 1 and 2")?;
                    browser.click("input[name=over][value=right]")?;
                    browser.click("button[value=written]")
                }),
            };
        }
        over.store(true, Ordering::Relaxed);
        (killer.join().unwrap(), sent)
    });
    let rows = rows(&p);
    let ids: BTreeSet<_> = rows.iter().map(|row| row["id"].as_str().unwrap()).collect();
    eprintln!("{} rows of {decisions} comparisons, {killed} kills, {sent} forms sent", rows.len());
    assert_eq!((rows.len(), ids.len(), killed), (decisions, decisions, kills));
    let kinds: BTreeSet<_> = rows.iter().map(|row| row["choice"].as_str().unwrap()).collect();
    assert_eq!(kinds.len(), 5, "{kinds:?}");
}
