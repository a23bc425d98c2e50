//! php-pool: PHP behind a web server, as php-fpm does it, but as a native part of a systemd machine.
//!
//! What the master and the command line are made of, and the few modules that the worker shares with them
//! (`fastcgi`, `scoreboard`, `control`, `log`, and the types of `config` and `status`). Nothing in here knows PHP: only
//! `php-pool-worker` links libphp.

pub mod access_log;
pub mod api;
pub mod bus;
pub mod cli;
pub mod config;
pub mod control;
pub mod exporter;
pub mod fastcgi;
pub mod generator;
pub mod log;
pub mod master;
pub mod migrate;
pub mod pm;
pub mod request_id;
pub mod scoreboard;
pub mod status;
pub mod sys;
pub mod trace;
