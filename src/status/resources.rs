//! What the kernel tells of a pool's control group. Anybody may read it.

use std::fs;
use std::path::Path;

/// Figures of a control group; None or empty where the kernel does not keep them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    /// memory.current, bytes.
    pub memory: Option<u64>,
    /// memory.max, bytes; None without a limit.
    pub memory_max: Option<u64>,
    /// Processes that were killed at a memory limit, from memory.events.
    pub oom_kills: Option<u64>,
    /// cpu.stat: mode and seconds.
    pub cpu: Vec<(&'static str, f64)>,
    /// Pressure: resource, and seconds in which some and in which all tasks waited for it.
    pub pressure: Vec<(&'static str, [f64; 2])>,
}

impl Resources {
    /// Reads the files of a group; of the limits, those of the group of its workers.
    pub fn of(group: &Path) -> Self {
        let read = |name: &str| fs::read_to_string(group.join(name)).unwrap_or_default();
        let stat = read("cpu.stat");
        let cpu = [("user", "user_usec"), ("system", "system_usec")];
        let pressure = ["cpu", "memory", "io"].into_iter().filter_map(|resource| {
            let text = read(&format!("{resource}.pressure"));
            // Older kernels have no `full` for the CPU.
            let some = pressure(&text, "some")?;
            Some((resource, [some, pressure(&text, "full").unwrap_or(0.0)]))
        });
        Self {
            memory: read("memory.current").trim().parse().ok(),
            memory_max: read("workers/memory.max").trim().parse().ok(),
            oom_kills: oom_kills(&read("memory.events")),
            cpu: cpu
                .into_iter()
                .filter_map(|(mode, name)| Some((mode, word(&stat, name)? as f64 / 1e6)))
                .collect(),
            pressure: pressure.collect(),
        }
    }
}

/// Where a whole group ends (a worker and what it has started) the kernel counts the process that it had chosen twice: once by
/// itself and once as one of the group.
fn oom_kills(events: &str) -> Option<u64> {
    let groups = word(events, "oom_group_kill").unwrap_or(0);
    word(events, "oom_kill").map(|kills| kills.saturating_sub(groups).max(groups))
}

/// `NAME VALUE` on a line of its own.
fn word(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// The total of a line as `some avg10=0.00 avg60=0.00 avg300=0.00 total=123`, seconds.
fn pressure(text: &str, kind: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(kind))?;
    let total: u64 = line.rsplit_once("total=")?.1.parse().ok()?;
    Some(total as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_groups_files_are_read_as_the_kernel_writes_them() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("workers")).unwrap();
        for (name, text) in [
            ("memory.current", "1048576\n"),
            ("workers/memory.max", "max\n"),
            (
                "memory.events",
                "low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 1\n",
            ),
            (
                "cpu.stat",
                "usage_usec 3000000\nuser_usec 2000000\nsystem_usec 1000000\n",
            ),
            (
                "memory.pressure",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=500000\n",
            ),
            ("cpu.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let wanted = Resources {
            memory: Some(1 << 20),
            memory_max: None,
            oom_kills: Some(2),
            cpu: vec![("user", 2.0), ("system", 1.0)],
            pressure: vec![("cpu", [1e-6, 0.0]), ("memory", [2.5, 0.5])],
        };
        assert_eq!(Resources::of(dir.path()), wanted);
        assert_eq!(Resources::of(&dir.path().join("none")), Resources::default());
    }
}
