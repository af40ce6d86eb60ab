//! The `.crate` file that the sentences are read from: found, fetched by cargo, checked, unpacked.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};

/// Name and version of the crate, as cargo names its file.
pub(super) const NAME_VERSION: &str = "harper-core-3.0.0";

const NAME: &str = "harper-core";
const VERSION: &str = "3.0.0";

/// BLAKE3 of `harper-core-3.0.0.crate`. A published crate never changes.
const CRATE_BLAKE3: &str = "102d64622597d78997ebcb881885e4d1c88bdbc385b3cb9d49da4f199fa516b6";

/// More than the crate holds: what is not the crate is refused before it fills the memory.
const MAX_UNPACKED: u64 = 256 << 20;

/// The cargo to ask and the folder it keeps its downloads in.
#[derive(Debug, Clone)]
pub(super) struct Cargo {
    program: OsString,
    home: Option<PathBuf>,
}

impl Cargo {
    /// `$CARGO` (set by `cargo run` and `cargo test`) or `cargo`; `$CARGO_HOME` or `~/.cargo`.
    pub(super) fn of_this_machine() -> Self {
        let home = std::env::var_os("CARGO_HOME")
            .filter(|home| !home.is_empty())
            .map(PathBuf::from)
            .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
            .and_then(|home| std::path::absolute(home).ok());
        let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        Self { program, home }
    }

    /// A given cargo with a given home.
    #[cfg(test)]
    pub(super) fn at(program: impl Into<OsString>, home: &Path) -> Self {
        Self { program: program.into(), home: Some(home.to_path_buf()) }
    }

    /// The crate's file in the registry folder, whichever mirror it came from.
    fn cached_crate(&self) -> Option<PathBuf> {
        let registries = std::fs::read_dir(self.home.as_ref()?.join("registry/cache")).ok()?;
        let mut files: Vec<PathBuf> = registries
            .filter_map(|entry| Some(entry.ok()?.path().join(format!("{NAME_VERSION}.crate"))))
            .filter(|file| file.is_file())
            .collect();
        files.sort();
        files.into_iter().next()
    }

    /// Runs cargo in `folder`; its own words if it fails.
    fn run(&self, folder: &Path, arguments: &[&str]) -> std::result::Result<(), String> {
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir(folder).stdin(std::process::Stdio::null());
        if let Some(home) = &self.home {
            command.env("CARGO_HOME", home);
        }
        match command.output() {
            Err(e) => Err(format!("`{}` could not be started: {e}", self.program.display())),
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                Err(format!("`cargo {}` failed:\n{}", arguments.join(" "), said.trim_end()))
            }
        }
    }

    /// Lets cargo download the crate: `cargo info` fetches this one crate and nothing else. Where
    /// that does not do it, a package that depends on it is fetched, with all it depends on.
    fn download(&self) -> std::result::Result<PathBuf, String> {
        let folder = tempfile::tempdir().map_err(|e| format!("no temporary folder: {e}"))?;
        let first = self.run(folder.path(), &["info", "--quiet", &format!("{NAME}@{VERSION}")]);
        if let Some(file) = self.cached_crate() {
            return Ok(file);
        }
        let manifest = format!(
            "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
             [dependencies]\n{NAME} = \"={VERSION}\"\n\n[workspace]\n"
        );
        std::fs::create_dir(folder.path().join("src"))
            .and_then(|()| std::fs::write(folder.path().join("src/lib.rs"), ""))
            .and_then(|()| std::fs::write(folder.path().join("Cargo.toml"), manifest))
            .map_err(|e| format!("no temporary package: {e}"))?;
        let second = self.run(folder.path(), &["fetch", "--quiet"]);
        self.cached_crate().ok_or_else(|| {
            first.and(second).err().unwrap_or_else(|| {
                "cargo ran, but left no such file in its registry folder".to_owned()
            })
        })
    }
}

/// Every `(path, text)` of the crate's `src/**/*.rs`, sorted by path; the path starts with `src/`.
pub(super) fn rust_sources(cache: &Path, cargo: &Cargo) -> Result<Vec<(String, String)>> {
    let file = find_or_download(cache, cargo)?;
    let bytes = std::fs::read(&file).map_err(|e| Error::io("read", &file, e))?;
    let found = blake3::hash(&bytes).to_hex();
    if found.as_str() != CRATE_BLAKE3 {
        return Err(Error::file(
            &file,
            format!(
                "the checksum (BLAKE3) is {found}, not {CRATE_BLAKE3}: this is not the published \
                 {NAME_VERSION}; delete the file and try again"
            ),
        ));
    }
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(&bytes[..])
        .take(MAX_UNPACKED)
        .read_to_end(&mut tar)
        .map_err(|e| Error::io("unpack", &file, e))?;
    let entries = tar_entries(&tar).map_err(|what| Error::file(&file, what))?;
    let prefix = format!("{NAME_VERSION}/");
    let mut sources: Vec<(String, String)> = entries
        .into_iter()
        .filter_map(|(path, bytes)| {
            let path = path.strip_prefix(&prefix)?.to_owned();
            let is_rust = Path::new(&path).extension() == Some(OsStr::new("rs"));
            (is_rust && path.starts_with("src/"))
                .then(|| (path, String::from_utf8_lossy(bytes).into_owned()))
        })
        .collect();
    sources.sort();
    Ok(sources)
}

fn find_or_download(cache: &Path, cargo: &Cargo) -> Result<PathBuf> {
    let by_hand = cache.join(format!("{NAME_VERSION}.crate"));
    if by_hand.is_file() {
        return Ok(by_hand);
    }
    if let Some(file) = cargo.cached_crate() {
        return Ok(file);
    }
    cargo.download().map_err(|why| {
        Error::file(
            &by_hand,
            format!(
                "the demo's sentences come from the crate {NAME} {VERSION}, which is not here yet, \
                 and cargo did not bring it.\nInstall Rust (https://rustup.rs), connect to the \
                 network once and try again; or put {NAME_VERSION}.crate from crates.io at this \
                 path.\n{why}"
            ),
        )
    })
}

/// Path and contents of every regular file of a tar archive (ustar, GNU long names, pax paths).
fn tar_entries(tar: &[u8]) -> std::result::Result<Vec<(String, &[u8])>, String> {
    const BLOCK: usize = 512;
    let mut entries = Vec::new();
    let mut long_name: Option<String> = None;
    let mut at = 0;
    while let Some(header) = tar.get(at..at + BLOCK) {
        if header.iter().all(|byte| *byte == 0) {
            return Ok(entries);
        }
        let field = |range: std::ops::Range<usize>| {
            let bytes = &header[range];
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        };
        let size = usize::from_str_radix(field(124..136).trim(), 8)
            .map_err(|_| format!("not a tar archive (bad size at byte {at})"))?;
        let body_at = at + BLOCK;
        let body =
            body_at.checked_add(size).and_then(|end| tar.get(body_at..end)).ok_or_else(|| {
                format!("the archive ends inside a file (at byte {body_at}, {size} bytes needed)")
            })?;
        match header[156] {
            b'0' | 0 => {
                let (name, prefix) = (field(0..100), field(345..500));
                let is_ustar = header[257..263] == *b"ustar\0";
                let short = match is_ustar && !prefix.is_empty() {
                    true => format!("{prefix}/{name}"),
                    false => name,
                };
                entries.push((long_name.take().unwrap_or(short), body));
            }
            b'L' => {
                let text = String::from_utf8_lossy(body);
                long_name = Some(text.trim_end_matches('\0').to_owned());
            }
            b'x' => long_name = pax_path(body),
            _ => long_name = None,
        }
        at = body_at + size.div_ceil(BLOCK) * BLOCK;
    }
    Err("the archive has no end: it was cut short".to_owned())
}

/// The `path` record of a pax header: lines `<length> <key>=<value>`.
fn pax_path(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let record = |line: &str| Some(line.split_once(' ')?.1.strip_prefix("path=")?.to_owned());
    text.lines().find_map(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, prefix: &str, kind: u8, body: &[u8]) -> Vec<u8> {
        let mut block = vec![0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..135].copy_from_slice(format!("{:011o}", body.len()).as_bytes());
        block[156] = kind;
        block[257..263].copy_from_slice(b"ustar\0");
        block[345..345 + prefix.len()].copy_from_slice(prefix.as_bytes());
        block.extend_from_slice(body);
        block.resize(block.len().div_ceil(512) * 512, 0);
        block
    }

    #[test]
    fn grammar_tar_reads_every_way_of_naming_a_file() {
        let mut tar = entry("a.rs", "", b'0', b"first");
        tar.extend(entry("folder", "", b'5', b""));
        tar.extend(entry("b.rs", "deep/down", b'0', &[7; 513]));
        tar.extend(entry("././@LongLink", "", b'L', b"a/long/name.rs\0"));
        tar.extend(entry("a/lo", "", b'0', b"third"));
        tar.extend(entry("pax", "", b'x', b"20 path=from/pax.rs\n"));
        tar.extend(entry("short", "", b'0', b""));
        tar.extend([0; 1024]);
        let entries = tar_entries(&tar).unwrap();
        let names: Vec<_> = entries.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a.rs", "deep/down/b.rs", "a/long/name.rs", "from/pax.rs"]);
        assert_eq!(entries[0].1, b"first");
        assert_eq!(entries[1].1, [7; 513]);
    }

    #[test]
    fn grammar_tar_refuses_what_is_cut_or_foreign() {
        let whole = entry("a.rs", "", b'0', &[1; 600]);
        assert!(tar_entries(&whole).unwrap_err().contains("cut short"));
        assert!(tar_entries(&whole[..1024]).unwrap_err().contains("ends inside a file"));
        let mut huge = whole.clone();
        huge[124..136].copy_from_slice(b"777777777777");
        assert!(tar_entries(&huge).unwrap_err().contains("ends inside a file"));
        assert!(tar_entries(&[b'x'; 2048]).unwrap_err().contains("not a tar archive"));
    }

    #[test]
    fn grammar_says_what_to_do_without_cargo_and_without_a_network() {
        let (cache, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let absent = Cargo::at("no-such-cargo", home.path());
        let error = rust_sources(cache.path(), &absent).unwrap_err().to_string();
        assert!(error.contains("Install Rust") && error.contains("no-such-cargo"), "{error}");

        // A cargo whose own settings keep it off the network.
        std::fs::write(home.path().join("config.toml"), "[net]\noffline = true\n").unwrap();
        let offline = Cargo { home: Some(home.path().into()), ..Cargo::of_this_machine() };
        let error = rust_sources(cache.path(), &offline).unwrap_err().to_string();
        assert!(error.contains("connect to the network"), "{error}");
        assert!(error.contains("`cargo info"), "{error}");
    }

    #[test]
    fn grammar_refuses_another_file_in_the_crates_place() {
        let (cache, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(cache.path().join("harper-core-3.0.0.crate"), b"something else").unwrap();
        let error = rust_sources(cache.path(), &Cargo::at("no-such-cargo", home.path()))
            .unwrap_err()
            .to_string();
        assert!(error.contains("checksum") && error.contains("delete the file"), "{error}");
    }
}
