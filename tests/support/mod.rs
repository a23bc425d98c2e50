//! What the tests share: a FastCGI client that can misbehave, servers to talk to, web servers in front of them, a wiki
//! behind them, strace beside them.

pub mod browser;
pub mod fcgi;
pub mod process;
pub mod server;
pub mod strace;
pub mod web;
pub mod wiki;
