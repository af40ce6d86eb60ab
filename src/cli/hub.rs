//! What a command names on the hub and the cache lacks is fetched before anything else.

use crate::error::Result;
use crate::hub::Kind;
use std::path::{Path, PathBuf};

/// Fetches a model, if `path` names one of the hub and it is not in the cache.
pub(super) fn bring_model(path: &Path) -> Result<()> {
    bring(path, Kind::Model)
}

/// Fetches those of `paths` that name data sets of the hub and are not in the cache.
pub(super) fn bring_rows<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Result<()> {
    paths.into_iter().try_for_each(|path| bring(path, Kind::DataSet))
}

/// Without the feature only the cache is looked into.
#[cfg(not(feature = "hub"))]
fn bring(_: &Path, _: Kind) -> Result<()> {
    Ok(())
}

#[cfg(feature = "hub")]
fn bring(path: &Path, kind: Kind) -> Result<()> {
    use super::working;
    use crate::hub::download::{Progress, fetch};
    use std::io::IsTerminal;
    use std::time::{Duration, Instant};

    let terminal = std::io::stderr().is_terminal();
    let mut told: Option<Instant> = None;
    let mut watch = |Progress { file, done, all }: Progress<'_>| {
        let size = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
        let line =
            format!("fetching {}: {file}, {} of {} MB", path.display(), size(done), size(all));
        if terminal {
            working::on(&line);
        } else if told.is_none_or(|told| told.elapsed() > Duration::from_secs(5)) {
            errln!("{line}");
            told = Some(Instant::now());
        }
    };
    let fetched = fetch(path, kind, &mut watch);
    working::done();
    fetched
}
