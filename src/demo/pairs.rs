//! The demo's preference pairs: wrong English sentences and their corrections.
//!
//! The Rust crate `harper-core` (Apache-2.0) tests each of its grammar rules with calls like
//! `assert_suggestion_result("wrong", Linter, "right")`. Those calls are some three and a half
//! thousand real pairs: the right sentence is chosen, and the wrong one, copied as it stands, is
//! rejected. None of that text is part of this project: cargo fetches the crate once, pinned and
//! checksummed, and the rows built from it stay in a cache folder, from which they are read
//! offline afterwards.
//!
//! Held out are two kinds of rows: whole rule files, whose sentences break rules that the training rows
//! say nothing about, and some rows of the other files: new sentences that break rules which are trained
//! on. No sentence is in two of the three.

mod calls;
mod crate_file;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::error::{Error, Result};
use crate::files::write_atomically;

/// What the user asks in every row, before the wrong sentence. Short: every row pays for it.
pub const INSTRUCTION: &str = "Correct the sentence: ";

/// Sentences under this many characters say too little to be worth a row.
const MIN_CHARS: usize = 15;

/// One rule file in this many is held out.
const HELDOUT_ONE_IN: u64 = 10;
/// Of the other files, one row in this many is held out.
const KNOWN_ONE_IN: u64 = 18;

/// BLAKE3 of the rows as this version of the program builds them: a cache from another version,
/// or one that was cut short or edited, is built again.
const TRAIN_BLAKE3: &str = "b91322e457b5fe0c81cd8ab882ffa101a6ac2a4192e65d06d2e7dac468c64355";
const KNOWN_BLAKE3: &str = "8a81429d3cc206107e1195431751b9b4200d119b05c1ec65ea9ced0baf380386";
const HELDOUT_BLAKE3: &str = "d584dd511dd80d8350207c315454e91163a855dd1a023cd0bca04c006d221ae2";

/// The files of rows.
const FILES: [(&str, &str); 3] = [
    ("train.jsonl", TRAIN_BLAKE3),
    ("known.jsonl", KNOWN_BLAKE3),
    ("heldout.jsonl", HELDOUT_BLAKE3),
];

/// Where the rows are and how many there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrammarPairs {
    /// JSONL file of the training rows.
    pub train: PathBuf,
    /// JSONL file of held-out rows of rule files in `train`; no sentence of theirs is there.
    pub known: PathBuf,
    /// JSONL file of the rows of rule files that are held out; neither these nor a sentence of theirs is
    /// in `train`.
    pub heldout: PathBuf,
    /// Number of rows in `train`.
    pub train_rows: usize,
    /// Number of rows in `known`.
    pub known_rows: usize,
    /// Number of rows in `heldout`.
    pub heldout_rows: usize,
    /// Number of rule files that `train` comes from.
    pub train_rules: usize,
    /// Number of rule files that `heldout` comes from.
    pub heldout_rules: usize,
}

/// Makes `train.jsonl`, `known.jsonl` and `heldout.jsonl` in the folder `cache` and says where they are.
///
/// Rows that are there with the right checksum are used as they are, without cargo and without a
/// network. Otherwise the crate is read from `cache` or from cargo's registry folder, after cargo
/// has fetched it if need be. A row is
/// `{"prompt": [user message], "chosen": [assistant message], "rejected": [assistant message],
/// "source": "<rule file>"}`.
///
/// # Errors
/// When the crate is nowhere and cargo is absent, offline or refuses; when what was fetched has
/// another checksum; when the folder cannot be written.
pub fn fetch_pairs(cache: &Path) -> Result<GrammarPairs> {
    fetch_pairs_with(cache, &crate_file::Cargo::of_this_machine())
}

fn fetch_pairs_with(cache: &Path, cargo: &crate_file::Cargo) -> Result<GrammarPairs> {
    let paths = FILES.map(|(name, _)| cache.join(name));
    let mut texts = Vec::new();
    for (path, (_, expected)) in paths.iter().zip(FILES) {
        texts.extend(read_if_intact(path, expected)?);
    }
    if let Ok(texts) = <[String; 3]>::try_from(texts) {
        return Ok(summary(paths, &texts));
    }
    std::fs::create_dir_all(cache).map_err(|e| Error::io("create", cache, e))?;
    let sources = crate_file::rust_sources(cache, cargo)?;
    let Split { train, known, heldout } = Split::of(pairs_of(&sources)?);
    let texts = [train, known, heldout].map(|pairs| to_jsonl(&pairs));
    for (text, (name, expected)) in texts.iter().zip(FILES) {
        let found = blake3::hash(text.as_bytes()).to_hex();
        if found.as_str() != expected {
            return Err(Error::Mismatch(format!(
                "the rows of {name} built from {} have the checksum {found}, not {expected}: the \
                 extraction changed; if that is meant, put the new checksum into \
                 src/demo/pairs.rs",
                crate_file::NAME_VERSION
            )));
        }
    }
    for (path, text) in paths.iter().zip(&texts) {
        write_atomically(path, text.as_bytes())?;
    }
    Ok(summary(paths, &texts))
}

/// The file's text, or nothing if it is absent or not what it should be.
fn read_if_intact(path: &Path, expected: &str) -> Result<Option<String>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", path, e)),
    };
    if blake3::hash(&bytes).to_hex().as_str() != expected {
        return Ok(None);
    }
    Ok(String::from_utf8(bytes).ok())
}

fn summary(paths: [PathBuf; 3], texts: &[String; 3]) -> GrammarPairs {
    let rules = |text: &str| {
        let source = |line: &str| line.rsplit_once("\"source\":").map(|(_, s)| s.to_owned());
        text.lines().filter_map(source).collect::<HashSet<_>>().len()
    };
    let [train, known, heldout] = paths;
    let [train_rows, known_rows, heldout_rows] = [0, 1, 2].map(|file| texts[file].lines().count());
    GrammarPairs {
        train,
        known,
        heldout,
        train_rows,
        known_rows,
        heldout_rows,
        train_rules: rules(&texts[0]),
        heldout_rules: rules(&texts[2]),
    }
}

/// A wrong sentence, its correction, and the rule file whose test holds them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pair {
    wrong: String,
    right: String,
    source: String,
}

impl Pair {
    /// Is this a sentence worth a row?
    fn is_useful(&self) -> bool {
        let sentence = |text: &str| {
            text.chars().count() >= MIN_CHARS
                && text.split_whitespace().nth(1).is_some()
                && !text.chars().any(char::is_control)
        };
        sentence(&self.wrong) && sentence(&self.right) && self.wrong != self.right
    }
}

/// The useful pairs of `(path, Rust source)` files, in the files' order, each wrong sentence once.
fn pairs_of(sources: &[(String, String)]) -> Result<Vec<Pair>> {
    let mut seen = HashSet::new();
    let mut pairs = Vec::new();
    for (path, text) in sources {
        let calls = calls::string_arguments(text, "assert_suggestion_result")
            .map_err(|e| Error::file(path, format!("is not Rust: {e}")))?;
        for (wrong, right) in calls {
            let pair = Pair {
                wrong: wrong.trim().to_owned(),
                right: right.trim().to_owned(),
                source: path.clone(),
            };
            if pair.is_useful() && seen.insert(pair.wrong.clone()) {
                pairs.push(pair);
            }
        }
    }
    Ok(pairs)
}

struct Split {
    train: Vec<Pair>,
    known: Vec<Pair>,
    heldout: Vec<Pair>,
}

impl Split {
    /// By hashes of the rule file's path and of the wrong sentence, so that a file and a row stay on
    /// their sides whatever else changes.
    fn of(pairs: Vec<Pair>) -> Self {
        let one_in = |text: &str, n: u64| {
            let hash = blake3::hash(text.as_bytes());
            let head: [u8; 8] = hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes");
            u64::from_le_bytes(head).is_multiple_of(n)
        };
        let (heldout, mut rest): (Vec<_>, Vec<_>) =
            pairs.into_iter().partition(|pair| one_in(&pair.source, HELDOUT_ONE_IN));
        // Two rules may test the same sentence. Such a row would show training what is held out.
        let without = |pairs: &mut Vec<Pair>, held: &[Pair]| {
            let held: HashSet<&str> =
                held.iter().flat_map(|p| [p.wrong.as_str(), p.right.as_str()]).collect();
            pairs.retain(|p| !held.contains(p.wrong.as_str()) && !held.contains(p.right.as_str()));
        };
        without(&mut rest, &heldout);
        let (mut known, mut train): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|pair| one_in(&pair.wrong, KNOWN_ONE_IN));
        without(&mut train, &known);
        // A rule is known if a row of it is left.
        let trained: HashSet<&str> = train.iter().map(|p| p.source.as_str()).collect();
        known.retain(|pair| trained.contains(pair.source.as_str()));
        Self { train, known, heldout }
    }
}

fn to_jsonl(pairs: &[Pair]) -> String {
    let message = |role: &str, content: &str| json!([{ "role": role, "content": content }]);
    let mut text = String::new();
    for pair in pairs {
        let row = json!({
            "prompt": message("user", &format!("{INSTRUCTION}{}", pair.wrong)),
            "chosen": message("assistant", &pair.right),
            "rejected": message("assistant", &pair.wrong),
            "source": pair.source,
        });
        text.push_str(&row.to_string());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> (String, String) {
        (path.to_owned(), text.to_owned())
    }

    #[test]
    fn grammar_keeps_sentences_and_drops_the_rest() {
        let text = r##"
            assert_suggestion_result("  These is a good example. ", L, "This is a good example.");
            assert_suggestion_result("too short", L, "too brief");
            assert_suggestion_result("onesinglelongword", L, "one single long word");
            assert_suggestion_result("the first line\nthe second", L, "one line and no more");
            assert_suggestion_result("nothing changes here", L, "nothing changes here");
            assert_suggestion_result("These is a good example.", L, "Those are good examples.");
        "##;
        let pairs = pairs_of(&[source("src/a.rs", text)]).unwrap();
        assert_eq!(
            pairs,
            [Pair {
                wrong: "These is a good example.".into(),
                right: "This is a good example.".into(),
                source: "src/a.rs".into(),
            }]
        );
    }

    #[test]
    fn grammar_splits_by_file_and_shares_no_sentence() {
        let pair = |n: usize, wrong: &str| Pair {
            wrong: wrong.into(),
            right: format!("{wrong}, corrected"),
            source: format!("src/rule_{n}.rs"),
        };
        let mut pairs = Vec::new();
        for n in 0..400 {
            pairs.push(pair(n, &format!("the first sentence of file {n}")));
            pairs.push(pair(n, &format!("the second sentence of file {n}")));
        }
        let alone = Split::of(pairs.clone());
        // Where both rows of a file fell to the held-out ones, the file is not known and they go.
        let kept = alone.train.len() + alone.known.len() + alone.heldout.len();
        assert!((790..=800).contains(&kept), "{kept}");
        assert!((20..=70).contains(&alone.known.len()), "{}", alone.known.len());
        let trained: HashSet<_> = alone.train.iter().map(|p| &p.source).collect();
        assert!(alone.known.iter().all(|p| trained.contains(&p.source)));
        assert!(alone.known.iter().all(|p| alone.train.iter().all(|t| t.wrong != p.wrong)));
        assert!((40..=120).contains(&alone.heldout.len()), "{}", alone.heldout.len());
        let files: HashSet<_> = alone.heldout.iter().map(|p| &p.source).collect();
        assert!(alone.train.iter().all(|p| !files.contains(&p.source)));

        // A training file that corrects to a held-out sentence loses that row only.
        let at = |p: &Pair| alone.known.iter().all(|k| k.source != p.source);
        let at = alone.train.iter().position(at).unwrap();
        let victim = alone.train[at].clone();
        let leak = Pair { right: alone.heldout[0].wrong.clone(), ..victim.clone() };
        let place = pairs.iter().position(|p| *p == victim).unwrap();
        pairs[place] = leak;
        let clean = Split::of(pairs);
        let rest = [&alone.train[..at], &alone.train[at + 1..]].concat();
        assert_eq!(clean.train, rest);
        assert_eq!((clean.heldout, clean.known), (alone.heldout, alone.known));
    }

    #[test]
    fn grammar_rows_are_conversations() {
        let pair = Pair {
            wrong: "He say \"hi\" to me".into(),
            right: "He says \"hi\" to me".into(),
            source: "src/x.rs".into(),
        };
        let text = to_jsonl(&[pair]);
        let row: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!(row["prompt"][0]["content"], "Correct the sentence: He say \"hi\" to me");
        assert_eq!(row["prompt"][0]["role"], "user");
        assert_eq!(row["chosen"][0]["content"], "He says \"hi\" to me");
        assert_eq!(row["rejected"][0]["content"], "He say \"hi\" to me");
        assert_eq!(row["rejected"][0]["role"], "assistant");
        assert_eq!(row["source"], "src/x.rs");
    }

    /// Needs the crate: from cargo's registry folder, or from the network the first time.
    #[test]
    fn grammar_builds_the_real_pairs_once_and_then_works_offline() {
        let cache = tempfile::tempdir().unwrap();
        let built = fetch_pairs(cache.path()).unwrap();
        assert_eq!((built.train_rows, built.known_rows, built.heldout_rows), (2774, 158, 567));
        assert_eq!((built.train_rules, built.heldout_rules), (304, 28));

        let rows = |path: &Path| -> Vec<serde_json::Value> {
            let text = std::fs::read_to_string(path).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let (train, heldout) = (rows(&built.train), rows(&built.heldout));
        assert_eq!(train.len(), built.train_rows);
        let files: HashSet<_> = heldout.iter().map(|row| row["source"].to_string()).collect();
        assert!(train.iter().all(|row| !files.contains(&row["source"].to_string())));

        // Offline from here: this cargo does not exist.
        let empty = tempfile::tempdir().unwrap();
        let nowhere = crate_file::Cargo::at("no-such-cargo", empty.path());
        assert_eq!(fetch_pairs_with(cache.path(), &nowhere).unwrap(), built);

        // A damaged cache is not used, and without cargo there is nothing to build it from.
        std::fs::write(&built.train, "{}\n").unwrap();
        let error = fetch_pairs_with(cache.path(), &nowhere).unwrap_err().to_string();
        assert!(error.contains("harper-core-3.0.0.crate"), "{error}");
        assert_eq!(fetch_pairs(cache.path()).unwrap(), built);
    }
}
