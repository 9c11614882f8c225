//! What a process has used, read from /proc: the server's, when it runs on this machine.

use std::fs;

use serde::Serialize;

/// What the server used while it was measured.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Usage {
    /// Processor time, threads and kernel included, a unit of work, in microseconds.
    pub cpu_us: f64,
    /// The same, by seconds of the clock: 2.0 is two processors.
    pub cpus: f64,
    /// Resident memory at the end, in bytes.
    pub memory_bytes: u64,
}

/// Processor time that a process has used, in seconds; its threads and the kernel included.
pub fn cpu_s(pid: u32) -> Result<f64, String> {
    let text = read(pid, "stat")?;
    // The name of the program stands in parentheses, and may hold anything.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    match (ticks(12), ticks(13)) {
        (Some(user), Some(system)) => {
            Ok((user + system) / rustix::param::clock_ticks_per_second() as f64)
        }
        _ => Err(format!("/proc/{pid}/stat has no times")),
    }
}

/// Resident memory of a process, in bytes.
pub fn memory_bytes(pid: u32) -> Result<u64, String> {
    let text = read(pid, "statm")?;
    let pages = text.split(' ').nth(1).and_then(|field| field.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| format!("/proc/{pid}/statm has no pages"))?;
    Ok(pages * rustix::param::page_size() as u64)
}

fn read(pid: u32, name: &str) -> Result<String, String> {
    fs::read_to_string(format!("/proc/{pid}/{name}"))
        .map_err(|why| format!("the server's process {pid}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let pid = std::process::id();
        let before = cpu_s(pid).unwrap();
        let mut sum = 0u64;
        while cpu_s(pid).unwrap() <= before {
            sum = (0..100_000).fold(sum, |sum, n| sum.wrapping_mul(31).wrapping_add(n));
        }
        assert!(memory_bytes(pid).unwrap() > 100_000, "{sum}");
    }

    #[test]
    fn a_process_that_is_not_there_is_named() {
        assert!(cpu_s(u32::MAX).unwrap_err().contains("4294967295"));
    }
}
