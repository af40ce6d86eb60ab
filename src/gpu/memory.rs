//! How much memory there is: what the machine itself has left, which software adapters and integrated
//! GPUs live on, or a discrete GPU's own.

use crate::kernel::Class;

/// Bytes of memory that buffers may take on this adapter; None where nobody says. Of a discrete GPU all
/// that it has: how much of it is free cannot be asked for.
pub(super) fn of(adapter: &wgpu::Adapter, class: Class) -> Option<u64> {
    match class {
        Class::Discrete => own(adapter),
        Class::Integrated | Class::Software => available(),
    }
}

/// The largest heap of a Vulkan device's own memory.
#[cfg(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd"))]
fn own(adapter: &wgpu::Adapter) -> Option<u64> {
    // VK_MEMORY_HEAP_DEVICE_LOCAL_BIT
    const LOCAL: u32 = 1;
    // SAFETY: the handle is only asked for its properties while the adapter is alive.
    let properties = unsafe {
        let vulkan = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = vulkan.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(vulkan.raw_physical_device())
    };
    let heaps = &properties.memory_heaps[..properties.memory_heap_count as usize];
    heaps.iter().filter(|heap| heap.flags.as_raw() & LOCAL != 0).map(|heap| heap.size).max()
}

#[cfg(not(any(windows, target_os = "linux", target_os = "android", target_os = "freebsd")))]
fn own(_: &wgpu::Adapter) -> Option<u64> {
    None
}

/// Bytes of memory that a process can still get, if the system says so (Linux does): what is free
/// without swapping, and no more than the limit of the container it runs in.
fn available() -> Option<u64> {
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
