//! How a zygote becomes the pool's, step by step.
//!
//! The order is the point of this file; each step says why it is here and not earlier or later. [`enter`] comes before any
//! code of PHP, of an extension or of the pool. [`close`] comes after PHP's module start-up, which reads php.ini and loads
//! extensions from where they are outside of a chroot, and before anything else.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, chdir, chroot, setgroups, setresgid, setresuid, setsid};
use php_pool::config::Rlimit;
use php_pool::control::Confinement;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities, set_keep_capabilities,
};
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
    /// What module start-up has left behind would lead out of the chroot.
    #[error("the pool cannot be confined to {root}: after PHP's start-up {what}")]
    Leak {
        /// The new root.
        root: String,
        /// What there is.
        what: String,
    },
}

fn refused(step: &'static str) -> impl FnOnce(rustix::io::Errno) -> ConfineError {
    move |error| failed(step)(Errno::from_raw(error.raw_os_error()))
}

fn failed(step: impl Into<String>) -> impl FnOnce(Errno) -> ConfineError {
    move |error| ConfineError::Step {
        step: step.into(),
        error,
    }
}

/// Becomes the pool's user. `complain` is told of what is refused and can be done without, as in php-fpm.
///
/// # Errors
/// The first step that failed and cannot be done without.
pub fn enter(wanted: &Confinement, complain: impl Fn(String)) -> Result<(), ConfineError> {
    // A session of its own: no terminal into whose input PHP could type (TIOCSTI), no signal of one, and kill(0) stays
    // within the pool. It fails only where the master has seen to that already.
    let _ = setsid();
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
    if let Some((uid, gid, groups)) = &wanted.user {
        // The new root is entered later, and needs this one capability then.
        if wanted.chroot.is_some() {
            set_keep_capabilities(true).map_err(refused("keep CAP_SYS_CHROOT until PHP has started"))?;
        }
        // Groups before the user: afterwards neither could be changed.
        let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
        let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
        setgroups(&groups).map_err(failed("set the supplementary groups"))?;
        setresgid(gid, gid, gid).map_err(failed(format!("setgid({gid})")))?;
        setresuid(uid, uid, uid).map_err(failed(format!("setuid({uid})")))?;
    }
    // Also those that came by another way than root: in a container, or by AmbientCapabilities=.
    let kept = match &wanted.chroot {
        Some(_) => CapabilitySet::SYS_CHROOT,
        None => CapabilitySet::empty(),
    };
    give_up_capabilities(wanted, kept)?;
    if let Some((uid, ..)) = &wanted.user
        && *uid != 0
        && setresuid(Uid::from_raw(0), Uid::from_raw(*uid), Uid::from_raw(*uid)).is_ok()
    {
        return Err(failed(format!("give up root for uid {uid}"))(Errno::EPERM));
    }
    // The session's keys of whoever started the master are not the pool's. Owned by the pool's user, so after that.
    join_new_keyring(&complain);
    // Nobody of the pool looks into what its workers come from. The change of user has done so already, where there was one.
    prctl::set_dumpable(false).map_err(failed("make the zygote undumpable"))
}

/// Closes the door: nothing is left to become more than the pool's user within its root.
///
/// # Errors
/// The first step that failed.
pub fn close(wanted: &Confinement) -> Result<(), ConfineError> {
    if let Some(root) = &wanted.chroot {
        nothing_leads_out(root)?;
        chroot(root).map_err(failed(format!("chroot({})", root.display())))?;
        chdir("/").map_err(failed("chdir(/)"))?;
        give_up_capabilities(wanted, CapabilitySet::empty())?;
    }
    // As the user: a folder that only root could enter is none for the pool.
    if let Some(folder) = &wanted.chdir {
        chdir(folder).map_err(failed(format!("chdir({})", folder.display())))?;
    }
    // Last, as the profile may forbid all of the above.
    if let Some(hat) = &wanted.apparmor_hat {
        change_hat(hat).map_err(failed(format!(
            "change to the AppArmor hat {hat}: failed to query apparmor confinement"
        )))?;
    }
    Ok(())
}

/// Of a worker, before code of its pool runs in it.
///
/// # Errors
/// When the kernel refuses.
pub fn worker(wanted: &Confinement) -> Result<(), Errno> {
    // Where the user has not changed there is nobody to hide from, and a tracer of the same user may look.
    prctl::set_dumpable(wanted.dumpable || wanted.user.is_none())
}

/// Leaves `kept` of the capabilities, and no way to get others back but by executing a file that brings its own (the
/// bounding set stays: sendmail is setuid). Root as a pool's user (`-R`) keeps what root has.
fn give_up_capabilities(wanted: &Confinement, kept: CapabilitySet) -> Result<(), ConfineError> {
    let root = match &wanted.user {
        Some((uid, ..)) => *uid == 0,
        None => Uid::effective().is_root(),
    };
    if root {
        return Ok(());
    }
    if !capabilities(None).is_ok_and(|there| there.permitted.contains(kept)) {
        return Err(failed("keep CAP_SYS_CHROOT for the chroot")(Errno::EPERM));
    }
    let none = CapabilitySet::empty();
    clear_ambient_capability_set().map_err(refused("clear the ambient capabilities"))?;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: none,
    };
    set_capabilities(None, sets).map_err(refused("give up the capabilities"))
}

/// Folders that an extension keeps open, and its threads (which have roots and capabilities of their own), would be ways
/// out of a chroot.
fn nothing_leads_out(root: &Path) -> Result<(), ConfineError> {
    let leak = |what: String| ConfineError::Leak {
        root: root.display().to_string(),
        what,
    };
    let unseen = |error: std::io::Error| leak(format!("/proc cannot be read: {error}"));
    let threads = fs::read_dir("/proc/self/task").map_err(unseen)?.count();
    if threads > 1 {
        return Err(leak(format!(
            "there are {threads} threads; an extension has started them"
        )));
    }
    for entry in fs::read_dir("/proc/self/fd").map_err(unseen)? {
        let link = entry.map_err(unseen)?.path();
        let Ok(target) = fs::read_link(&link) else { continue };
        let own = target == Path::new(&format!("/proc/{}/fd", std::process::id()));
        if !own && fs::metadata(&link).is_ok_and(|found| found.is_dir()) {
            return Err(leak(format!("the folder {} is still open", target.display())));
        }
    }
    Ok(())
}

fn join_new_keyring(complain: impl Fn(String)) {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: no pointer but the null one, which asks for a keyring without a name.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) };
    match Errno::result(joined) {
        // Containers know no keyrings, or forbid them.
        Ok(_) | Err(Errno::ENOSYS | Errno::EPERM | Errno::EACCES) => {}
        Err(error) => complain(format!(
            "the pool keeps the session keyring it was started with: {error}"
        )),
    }
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
