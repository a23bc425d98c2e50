//! The master: one process for all pools of a configuration, without PHP.
//!
//! It starts zygotes, tells them when to fork, watches every process by its pidfd, and answers for the whole. Whatever comes
//! from a zygote or a worker (messages, descriptors, the scoreboard) is hostile input: none of it can block the master,
//! grow it without bound, or make it signal a process that is not the pool's.
//!
//! - [`start`]: from the command line to the loop; [`daemon`]: the loop; [`reload`](daemon): a new configuration
//! - [`pool`] (a folder: generations, what processes say, what the process manager decides, what is seen of it),
//!   [`generation`], [`worker`]: what there is
//! - [`desk`]: the control socket; [`systemd`]: what the service manager is told; [`cgroup`]: the pool's control groups;
//!   [`herald`]: what the bus service is told
//! - [`upgrade`]: another program in the same process; [`saved`]: what outlives that
//! - [`watch`]: the tasks that turn descriptors into events

mod access_log;
mod acl;
mod aside;
mod background;
mod backlog;
mod cgroup;
mod context;
mod daemon;
mod desk;
mod foreign;
mod generation;
mod herald;
mod limits;
mod listen;
mod log_file;
mod output;
mod pid_file;
mod pool;
mod privileges;
mod process;
mod queue;
mod recycle;
mod saved;
mod stamp;
mod start;
mod status;
mod status_server;
mod sys;
mod systemd;
mod trace;
mod upgrade;
mod users;
mod watch;
mod worker;
mod zygote;

pub use listen::set_access;
pub use start::{StartError, open_logs, run};
pub(crate) use sys::take_inherited;
