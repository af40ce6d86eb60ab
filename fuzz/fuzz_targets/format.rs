//! The target of each format, by the name it is built under: `cargo fuzz run jsonl`. What stands beside
//! the damaged file is in `ODDGRAD_FUZZ_CORPUS/<format>/files`; `scripts/fuzz.sh` sees to all of it.
#![no_main]

#[path = "../../tests/suite/formats.rs"]
mod formats;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::LazyLock;

use formats::{FORMATS, Format};
use tempfile::TempDir;

/// The format and a folder with the files that stand beside its own.
static PLACE: LazyLock<(&Format, TempDir)> = LazyLock::new(|| {
    // A library's panic that is caught is no crash: the hook that ends the process goes.
    std::panic::set_hook(Box::new(|_| ()));
    let name = env!("CARGO_BIN_NAME");
    let format = FORMATS.iter().find(|format| format.name == name).unwrap();
    let place = tempfile::tempdir().unwrap();
    let corpus = std::env::var_os("ODDGRAD_FUZZ_CORPUS").expect("ODDGRAD_FUZZ_CORPUS is set");
    for entry in std::fs::read_dir(Path::new(&corpus).join(name).join("files")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), place.path().join(entry.file_name())).unwrap();
    }
    (format, place)
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (format, place) = &*PLACE;
    std::fs::write(place.path().join(format.file), bytes).unwrap();
    let read = AssertUnwindSafe(|| (format.read)(place.path(), bytes));
    if let Err(panic) = catch_unwind(read) {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        eprintln!("panic: {}", text.or(panic.downcast_ref().copied()).unwrap_or_default());
        std::process::abort();
    }
});
