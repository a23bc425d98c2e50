//! What master, zygote and workers say to each other.
//!
//! Three kinds of socket pair, all `SOCK_SEQPACKET`, one message a packet, descriptors beside it by SCM_RIGHTS:
//!
//! - **control**: master and zygote. The first message names the protocol's version.
//! - **link**: master and one worker. Its first message is the gate: the worker does nothing before it, so that the master
//!   can put it into its cgroup. Its end is the master's end: the worker finishes its request and leaves.
//! - **queue**: master and all workers of a pool at once, a second listener: the master sends connections that have
//!   something to read, and whichever worker is idle takes the next.
//!
//! Nothing that comes from a zygote or worker is believed: see [`crate::master`].

mod channel;
mod message;
mod sealed;

pub use channel::{Channel, ChannelError, MAX_MESSAGE, Received, from_bytes, pair, to_bytes};
pub use message::{
    Confinement, Exit, FromWorker, FromZygote, Handover, LOG_BYTES, LOG_INLINE, LogMessage, PhpSettings, PoolSettings,
    QUEUE_BYTES, Spawn, ToWorker, ToZygote, VERSION, ZygoteConfig,
};
pub use sealed::{sealed, unsealed};
