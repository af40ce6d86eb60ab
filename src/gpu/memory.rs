//! What the machine itself has left: software adapters and integrated GPUs live on it.

/// Bytes of memory that a process can still get, if the system says so (Linux does): what is free
/// without swapping, and no more than the limit of the container it runs in.
pub fn available() -> Option<u64> {
    let free = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| free_of(&text))?;
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    Some(limit.and_then(|text| text.trim().parse().ok()).map_or(free, |limit: u64| free.min(limit)))
}

/// `MemAvailable:   21388000 kB`
fn free_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:       24689764 kB\nMemAvailable:   21388000 kB\n";
        assert_eq!(free_of(text), Some(21_388_000 * 1024));
        assert_eq!(free_of("MemTotal: 1 kB\n"), None);
        assert_eq!(free_of("MemAvailable: many\n"), None);
    }
}
