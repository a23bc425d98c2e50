//! The control groups of a pool, below the one that systemd has delegated to its service.
//!
//! ```text
//! php-pool@www.service/   no process of ours: a group with controllers for its children may have none
//!   master/   zygote/     what a throttled pool must not throttle
//!   workers/              the limits of the pool's file
//!     7/  8/              one leaf for each worker and all that PHP starts in it; worker.memory_max
//! ```
//!
//! Every step can fail where groups are not writable; the pool then runs without.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::IniEntry;

/// Where cgroup v2 is mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// What the children of the service's group may be limited by.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];

/// Why there are no control groups.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// Not started by systemd, or without `Delegate=`.
    #[error("its control group {0} is not delegated to it (the unit needs Delegate=yes)")]
    NotDelegated(PathBuf),
    /// There is no cgroup v2.
    #[error("there is no cgroup v2 hierarchy")]
    NoHierarchy,
    /// The kernel says no.
    #[error("{path}: {reason}", path = .0.display(), reason = crate::log::errno(.1))]
    System(PathBuf, #[source] io::Error),
}

fn write(path: PathBuf, text: &str) -> Result<(), CgroupError> {
    fs::write(&path, text).map_err(|error| CgroupError::System(path, error))
}

fn make(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(CgroupError::System(path.to_owned(), error)),
        _ => Ok(()),
    }
}

/// The group of a process, below [`ROOT`].
fn group_of(pid: &str) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(ROOT).join(path))
}

/// Whether a process is one of this master's workers, or a child of one.
pub fn is_worker(pid: i32) -> bool {
    let ours = group_of("self");
    let (Some(ours), Some(theirs)) = (ours.as_deref().and_then(Path::parent), group_of(&pid.to_string())) else {
        return false;
    };
    theirs.starts_with(ours.join("workers"))
}

/// The groups of a pool.
#[derive(Debug)]
pub struct Cgroup {
    base: PathBuf,
    /// Leaves whose worker has gone and that were not empty then.
    lingering: RefCell<Vec<PathBuf>>,
}

/// The groups, for a successor: it finds itself below them.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedGroups {
    base: PathBuf,
    lingering: Vec<PathBuf>,
}

impl Cgroup {
    /// What is to go on.
    pub fn save(&self) -> SavedGroups {
        SavedGroups {
            base: self.base.clone(),
            lingering: self.lingering.borrow().clone(),
        }
    }

    /// Goes on with it.
    pub fn restore(saved: SavedGroups) -> Self {
        Self {
            base: saved.base,
            lingering: RefCell::new(saved.lingering),
        }
    }

    /// A leaf that there is.
    pub fn leaf(self: &Rc<Self>, path: PathBuf) -> Leaf {
        Leaf {
            path,
            groups: self.clone(),
        }
    }

    /// Moves this process out of the service's own group and makes the others.
    ///
    /// # Errors
    /// When the group is not ours to divide.
    pub fn enter() -> Result<Self, CgroupError> {
        let base = group_of("self")
            .filter(|path| path.is_dir())
            .ok_or(CgroupError::NoHierarchy)?;
        // systemd marks what it delegates. Anything else, a shell's group for instance, is not to be touched.
        let mut mark = [0; 8];
        let marked = ["user.delegate", "trusted.delegate"]
            .iter()
            .any(|name| rustix::fs::getxattr(&base, *name, &mut mark).is_ok_and(|length| &mark[..length] == b"1"));
        if !marked {
            return Err(CgroupError::NotDelegated(base));
        }
        Self::divide(base, std::process::id())
    }

    fn divide(base: PathBuf, me: u32) -> Result<Self, CgroupError> {
        for name in ["master", "zygote", "workers"] {
            make(&base.join(name))?;
        }
        write(base.join("master/cgroup.procs"), &me.to_string())?;
        for controller in CONTROLLERS {
            // One that the machine does not have is missed when a limit needs it.
            let _ = write(base.join("cgroup.subtree_control"), &format!("+{controller}"));
        }
        let _ = write(base.join("workers/cgroup.subtree_control"), "+memory");
        Ok(Self {
            base,
            lingering: RefCell::default(),
        })
    }

    /// The service's own group.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Puts the limits of a pool's file into force, and lifts those that are no longer there. Returns what could not be.
    pub fn limit(&self, before: &[IniEntry], now: &[IniEntry]) -> Vec<CgroupError> {
        let workers = self.base.join("workers");
        let lifted = before.iter().filter(|old| now.iter().all(|new| new.key != old.key));
        let lifted = lifted.map(|old| (old.key.as_str(), unlimited(&old.key)));
        let set = now.iter().map(|entry| (entry.key.as_str(), entry.value.as_str()));
        lifted
            .chain(set)
            .filter_map(|(file, value)| write(workers.join(file), value).err())
            .collect()
    }

    /// Puts a zygote into its place.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn place_zygote(&self, pid: i32) -> Result<(), CgroupError> {
        write(self.base.join("zygote/cgroup.procs"), &pid.to_string())
    }

    /// Makes a worker's leaf and puts the worker into it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn place_worker(self: &Rc<Self>, number: u64, pid: i32, memory_max: Option<u64>) -> Result<Leaf, CgroupError> {
        self.sweep();
        let leaf = self.leaf(self.base.join(format!("workers/{number}")));
        make(&leaf.path)?;
        // What a worker has started dies with it.
        let _ = write(leaf.path.join("memory.oom.group"), "1");
        if let Some(limit) = memory_max {
            write(leaf.path.join("memory.max"), &limit.to_string())?;
            // Swapping a runaway script out instead would only make it slow.
            let _ = write(leaf.path.join("memory.swap.max"), "0");
        }
        write(leaf.path.join("cgroup.procs"), &pid.to_string())?;
        Ok(leaf)
    }

    /// Removes the leaves that have become empty.
    pub fn sweep(&self) {
        self.lingering
            .borrow_mut()
            .retain(|path| fs::remove_dir(path).is_err() && path.exists());
    }
}

/// What lifts a limit.
fn unlimited(file: &str) -> &'static str {
    match file {
        "cpu.weight" | "io.weight" => "100",
        "memory.low" | "memory.min" => "0",
        _ => "max",
    }
}

/// A worker's leaf. When this goes, the leaf goes as soon as it is empty: a background child that PHP has started may
/// outlive its worker.
#[derive(Debug)]
pub struct Leaf {
    path: PathBuf,
    groups: Rc<Cgroup>,
}

impl Leaf {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Kills the worker and all that it has started.
    pub fn kill(&self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
    }

    /// How many processes the kernel has killed here for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    /// Most memory that was used here, bytes; None before Linux 5.19.
    pub fn peak(&self) -> Option<u64> {
        fs::read_to_string(self.path.join("memory.peak"))
            .ok()?
            .trim()
            .parse()
            .ok()
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        if fs::remove_dir(&self.path).is_err() {
            self.groups.lingering.borrow_mut().push(std::mem::take(&mut self.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files that the kernel would make.
    fn groups() -> (tempfile::TempDir, Rc<Cgroup>) {
        let dir = tempfile::tempdir().unwrap();
        let groups = Cgroup::divide(dir.path().to_owned(), 42).unwrap();
        (dir, Rc::new(groups))
    }

    fn entry(key: &str, value: &str) -> IniEntry {
        IniEntry {
            key: key.into(),
            value: value.into(),
        }
    }

    #[test]
    fn the_master_leaves_the_top_group() {
        let (dir, _groups) = groups();
        assert_eq!(
            fs::read_to_string(dir.path().join("master/cgroup.procs")).unwrap(),
            "42"
        );
        assert!(dir.path().join("workers/cgroup.subtree_control").exists());
    }

    #[test]
    fn limits_are_the_workers_and_go_with_their_line() {
        let (dir, groups) = groups();
        let read = |file: &str| fs::read_to_string(dir.path().join("workers").join(file)).unwrap();
        let old = [
            entry("memory.max", "1048576"),
            entry("cpu.weight", "20"),
            entry("pids.max", "9"),
        ];
        assert!(groups.limit(&[], &old).is_empty());
        assert_eq!(read("memory.max"), "1048576");
        assert!(groups.limit(&old, &[entry("pids.max", "10")]).is_empty());
        assert_eq!(
            [read("memory.max"), read("cpu.weight"), read("pids.max")],
            ["max", "100", "10"]
        );
    }

    #[test]
    fn a_leaf_that_is_not_empty_goes_later() {
        let (dir, groups) = groups();
        let leaf = groups.place_worker(7, 4711, Some(1 << 20)).unwrap();
        let path = dir.path().join("workers/7");
        assert_eq!(fs::read_to_string(path.join("cgroup.procs")).unwrap(), "4711");
        assert_eq!(fs::read_to_string(path.join("memory.max")).unwrap(), "1048576");
        fs::write(path.join("memory.events"), "low 0\noom 3\noom_kill 2\n").unwrap();
        assert_eq!(leaf.oom_kills(), 2);
        // Ordinary files stand for a process that is still there.
        drop(leaf);
        groups.sweep();
        assert!(path.exists());
        fs::read_dir(&path)
            .unwrap()
            .for_each(|file| fs::remove_file(file.unwrap().path()).unwrap());
        groups.sweep();
        assert!(!path.exists());
    }

    #[test]
    fn a_group_that_is_not_ours_is_left_alone() {
        assert!(matches!(
            Cgroup::enter(),
            Err(CgroupError::NotDelegated(_) | CgroupError::NoHierarchy)
        ));
    }
}
