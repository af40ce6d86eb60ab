//! The machine and the moment of a benchmark.

use crate::gpu::Gpu;
use chrono::{SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use std::fs;

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
        let mut lines = vec![
            format!("date      {}, oddgrad {version}", self.date),
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
    }
}
