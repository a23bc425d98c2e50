//! What a master gives up of its capabilities, once its sockets and logs are open.
//!
//! Only of its own thread, and so of those it makes later: whatever it executes as root, a zygote, has all of the bounding
//! set again, and gives up more than this (`worker/confine.rs`). The bounding set stays: a setuid `sendmail` needs it.
#![forbid(unsafe_code)]

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// For all that a master does once it runs, each reload included. Of these it keeps what it has.
const NEEDED: [CapabilitySet; 7] = [
    // Workers are other users'.
    CapabilitySet::KILL,
    // Their memory, for slowlog and backtraces; and where /proc shows to nobody what is not his (hidepid).
    CapabilitySet::SYS_PTRACE,
    // A look at a worker that is pushed off its core half-way holds up the worker (`trace/memory.rs`).
    CapabilitySet::SYS_NICE,
    // Files in a tenant's folders are opened as the tenant.
    CapabilitySet::SETUID,
    CapabilitySet::SETGID,
    // A log that logrotate has made for another user; a pid file or a socket in a folder of somebody else's.
    CapabilitySet::DAC_OVERRIDE,
    CapabilitySet::DAC_READ_SEARCH,
];

/// For a reload that makes sockets: their owner, and ports below 1024.
const FOR_SOCKETS: [CapabilitySet; 2] = [CapabilitySet::CHOWN, CapabilitySet::NET_BIND_SERVICE];

/// Gives up every capability that is not needed any more. To be called before there is a second thread.
///
/// # Errors
/// When the kernel refuses; then they are all still there.
pub fn give_up(makes_sockets: bool) -> io::Result<()> {
    let for_sockets = FOR_SOCKETS.iter().filter(|_| makes_sockets);
    let needed: CapabilitySet = NEEDED.iter().chain(for_sockets).copied().collect();
    let there = capabilities(None)?;
    let kept = there.permitted & needed;
    // Of an ordinary user's ambient ones the kernel takes away what is in neither set.
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: there.inheritable & kept,
    };
    Ok(set_capabilities(None, sets)?)
}
