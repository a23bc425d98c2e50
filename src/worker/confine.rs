//! How a zygote becomes the pool's, step by step, before any code of PHP or of the pool runs.
//!
//! The order is the point of this file; each step says why it is here and not earlier or later.

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, chdir, chroot, setgroups, setresgid, setresuid};
use php_pool::config::Rlimit;
use php_pool::control::Confinement;
use thiserror::Error;

/// Which step was refused.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// A system call failed.
    #[error("failed to {step}: {error}")]
    Step {
        /// In words.
        step: String,
        /// Why.
        error: Errno,
    },
}

fn failed(step: impl Into<String>) -> impl FnOnce(Errno) -> ConfineError {
    move |error| ConfineError::Step {
        step: step.into(),
        error,
    }
}

/// Confines this process. `complain` is told of what is refused and can be done without, as in php-fpm.
///
/// # Errors
/// The first step that failed and cannot be done without.
pub fn confine(wanted: &Confinement, complain: impl Fn(String)) -> Result<(), ConfineError> {
    // Limits first: raising one needs root.
    if let Some(files) = wanted.rlimit_files
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, files, files)
    {
        complain(format!(
            "failed to set rlimit_files for this pool. Please check your system limits or decrease rlimit_files. setrlimit(RLIMIT_NOFILE, {files}): {error}"
        ));
    }
    if let Some(core) = wanted.rlimit_core {
        let core = match core {
            Rlimit::Unlimited => nix::libc::RLIM_INFINITY,
            Rlimit::Value(value) => value,
        };
        if let Err(error) = setrlimit(Resource::RLIMIT_CORE, core, core) {
            complain(format!(
                "failed to set rlimit_core for this pool. Please check your system limits or decrease rlimit_core. setrlimit(RLIMIT_CORE, {core}): {error}"
            ));
        }
    }
    // A negative one needs root as well.
    if let Some(priority) = wanted.priority {
        set_priority(priority).map_err(failed(format!("set the priority to {priority}")))?;
    }
    // The new root before the user, who may not change it; php.ini and extensions are then those of the new root.
    if let Some(root) = &wanted.chroot {
        chroot(root).map_err(failed(format!("chroot({})", root.display())))?;
        chdir("/").map_err(failed("chdir(/)"))?;
    }
    // Groups before the user: afterwards neither could be changed.
    if let Some((uid, gid, groups)) = &wanted.user {
        let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
        let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
        setgroups(&groups).map_err(failed("set the supplementary groups"))?;
        setresgid(gid, gid, gid).map_err(failed(format!("setgid({gid})")))?;
        setresuid(uid, uid, uid).map_err(failed(format!("setuid({uid})")))?;
        if !uid.is_root() && Uid::from_raw(0).as_raw() != uid.as_raw() && setresuid(Uid::from_raw(0), uid, uid).is_ok()
        {
            return Err(failed(format!("give up root for uid {uid}"))(Errno::EPERM));
        }
    }
    // As the user: a folder that only root could enter is none for the pool.
    if let Some(folder) = &wanted.chdir {
        chdir(folder).map_err(failed(format!("chdir({})", folder.display())))?;
    }
    // The kernel has made the process undumpable with the change of user; the pool may want it otherwise.
    prctl::set_dumpable(wanted.dumpable).map_err(failed("set process.dumpable"))?;
    // Last, as the profile may forbid all of the above.
    if let Some(hat) = &wanted.apparmor_hat {
        change_hat(hat).map_err(failed(format!(
            "change to the AppArmor hat {hat}: failed to query apparmor confinement"
        )))?;
    }
    Ok(())
}

fn set_priority(priority: i32) -> Result<(), Errno> {
    // SAFETY: plain numbers; 0 is this process.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, priority) }).map(drop)
}

/// Changes to `<current profile>//<hat>`.
fn change_hat(hat: &str) -> Result<(), Errno> {
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EINVAL));
    let current = std::fs::read_to_string("/proc/self/attr/current").map_err(errno)?;
    let profile = current.split_whitespace().next().unwrap_or_default();
    std::fs::write("/proc/self/attr/current", format!("changeprofile {profile}//{hat}")).map_err(errno)
}
