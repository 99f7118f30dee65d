//! How much memory this process has.

/// The most resident memory this process has had, in bytes, if the system says.
pub fn peak_rss_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

/// The resident memory of this process now, in bytes, if the system says.
pub fn rss_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

/// A line of `/proc/self/status`, for instance `VmHWM:     5120 kB`.
fn status_bytes(key: &str) -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_peak_grows_with_what_was_touched_and_stays() {
        let before = peak_rss_bytes().unwrap();
        let size = 64 << 20;
        let block = std::hint::black_box(vec![1_u8; size]);
        assert!(rss_bytes().unwrap() >= size as u64);
        drop(block);
        let after = peak_rss_bytes().unwrap();
        assert!(after >= before && after >= size as u64);
        assert_eq!(status_bytes("NoSuchKey:"), None);
    }
}
