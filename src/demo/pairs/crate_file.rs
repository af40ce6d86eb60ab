//! The `.crate` file that the sentences are read from: found, fetched by cargo, checked, unpacked.

use std::ffi::OsString;
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
///
/// # Errors
/// When the crate is nowhere, or is not the published one.
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
    unpack(&bytes).map_err(|e| Error::io("unpack", &file, e))
}

/// Every `(path, text)` of the `src/**/*.rs` in a crate's gzipped archive, sorted by path.
fn unpack(archive: &[u8]) -> std::io::Result<Vec<(String, String)>> {
    let plain = flate2::read::GzDecoder::new(archive).take(MAX_UNPACKED);
    let prefix = format!("{NAME_VERSION}/");
    let mut sources = Vec::new();
    for entry in tar::Archive::new(plain).entries()? {
        let mut entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some(path) = path.strip_prefix(&prefix) else { continue };
        if path.starts_with("src/") && path.ends_with(".rs") {
            let mut text = String::new();
            entry.read_to_string(&mut text)?;
            sources.push((path.to_owned(), text));
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn crate_with(files: &[(&str, &[u8])]) -> Vec<u8> {
        let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut tar = tar::Builder::new(gzip);
        for (path, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, path, *bytes).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    }

    #[test]
    fn grammar_unpacks_the_rust_sources_and_nothing_else() {
        let deep = format!("{NAME_VERSION}/src/{}/b.rs", "long".repeat(40));
        let archive = crate_with(&[
            (&deep, b"second"),
            ("harper-core-3.0.0/src/a.rs", b"first"),
            ("harper-core-3.0.0/build.rs", b"no source of the library"),
            ("harper-core-3.0.0/src/words.txt", b"no Rust"),
            ("another/src/a.rs", b"another crate"),
        ]);
        let sources = unpack(&archive).unwrap();
        let texts: Vec<_> = sources.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts, ["first", "second"]);
        assert_eq!(sources[0].0, "src/a.rs");
        assert_eq!(format!("{NAME_VERSION}/{}", sources[1].0), deep);
    }

    #[test]
    fn grammar_refuses_an_archive_that_is_cut_or_none() {
        let noise: Vec<u8> =
            (0..4000_u32).map(|i| b'a' + (i.wrapping_mul(i) % 7919 % 26) as u8).collect();
        let whole = crate_with(&[("harper-core-3.0.0/src/a.rs", &noise)]);
        assert_eq!(unpack(&whole).unwrap().len(), 1);
        unpack(&whole[..whole.len() / 2]).unwrap_err();
        unpack(b"no archive").unwrap_err();
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
