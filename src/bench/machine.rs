//! The machine and the moment of a benchmark.

use crate::gpu::Gpu;
use chrono::{SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use std::fs;
use std::process::Command;

/// Where and when a report was made.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Machine {
    /// When it began, in UTC.
    pub date: String,
    /// Operating system and architecture.
    pub os: String,
    /// The processor, as the system calls it; empty where it does not say.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// The commit of the sources that the program was built from, with a `+` where they differ from it;
    /// empty where there is no repository.
    #[serde(default)]
    pub commit: String,
    /// Vendor and device of the adapter, as PCI numbers them.
    pub device_id: String,
    /// Processes that wanted a core in the minute before it began, on average; None where the system
    /// does not say.
    pub load: Option<f64>,
}

/// A load of more than this part of the cores disturbs times.
const BUSY: f64 = 0.3;

impl Machine {
    /// This machine, now: to be asked before anything is measured, which is work itself.
    pub fn now(gpu: &Gpu) -> Self {
        let info = gpu.info();
        let load = fs::read_to_string("/proc/loadavg").ok();
        Self {
            date: Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true),
            os: format!("{}, {}", os(), std::env::consts::ARCH),
            cpu: cpu().unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            commit: commit().unwrap_or_default(),
            device_id: format!("{:04x}:{:04x}", info.vendor, info.device),
            load: load.and_then(|text| text.split(' ').next()?.parse().ok()),
        }
    }

    /// Whether other work disturbed the times.
    pub fn was_busy(&self) -> bool {
        self.load.is_some_and(|load| self.cores > 0 && load > BUSY * self.cores as f64)
    }

    /// The lines of a report's head; none for a report of a version that did not ask.
    pub(super) fn lines(&self, version: &str) -> Vec<String> {
        if self.date.is_empty() {
            return Vec::new();
        }
        let cpu = if self.cpu.is_empty() { "a processor without a name" } else { &self.cpu };
        let commit = if self.commit.is_empty() { "" } else { ", sources at " };
        let mut lines = vec![
            format!("date      {}, oddgrad {version}{commit}{}", self.date, self.commit),
            format!(
                "machine   {}; {cpu}, {} cores; device {}",
                self.os, self.cores, self.device_id
            ),
        ];
        if let Some(load) = self.load.filter(|_| self.was_busy()) {
            lines.push(format!(
                "busy      WARNING: other work had a load of {load:.1} on {} cores when this began; its times are too long and scatter",
                self.cores
            ));
        }
        lines
    }
}

/// The system's own name for itself.
fn os() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| std::env::consts::OS.into(), |name| name.trim_matches('"').into())
}

/// The commit of the folder that the program was built in, if that is still there. What the sources
/// are now, they need not have been when it was built; a build of old sources is not looked for.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let folder = env!("CARGO_MANIFEST_DIR");
        let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    // A repository around an unpacked package says nothing of it.
    let ours = git(&["ls-files", "--error-unmatch", "Cargo.toml"])?;
    let commit = git(&["rev-parse", "--short=10", "HEAD"]).filter(|_| !ours.is_empty())?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() { commit } else { format!("{commit}+") })
}

/// The processor's name.
fn cpu() -> Option<String> {
    if let Ok(text) = fs::read_to_string("/proc/cpuinfo") {
        let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        return name.map(|(_, name)| name.trim().to_owned());
    }
    std::env::var("PROCESSOR_IDENTIFIER").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_machine_is_told() {
        let idle = Machine { date: "now".into(), cores: 2, load: Some(0.4), ..Machine::default() };
        assert!(!idle.was_busy() && idle.lines("1").len() == 2);
        assert_eq!(idle.lines("1")[0], "date      now, oddgrad 1");
        let known = Machine { commit: "0123456789+".into(), ..idle.clone() };
        assert_eq!(known.lines("1")[0], "date      now, oddgrad 1, sources at 0123456789+");
        let busy = Machine { load: Some(1.0), ..idle.clone() };
        assert!(busy.was_busy() && busy.lines("1")[2].contains("a load of 1.0 on 2 cores"));
        assert!(!Machine { load: None, ..idle }.was_busy());
        assert!(Machine::default().lines("1").is_empty());
    }

    #[test]
    fn the_machine_is_named() {
        let gpu = crate::ops::case::tests::gpu();
        let machine = Machine::now(&gpu);
        assert!(
            machine.date.ends_with('Z') && machine.cores > 0 && machine.device_id.contains(':')
        );
        assert!(machine.os.contains(std::env::consts::ARCH));
        let commit = machine.commit.trim_end_matches('+');
        assert!(
            commit.is_empty()
                || commit.len() >= 10 && commit.bytes().all(|b| b.is_ascii_hexdigit())
        );
    }
}
