//! What the tests share: a FastCGI client that can misbehave, and servers to talk to.

pub mod fcgi;
pub mod server;
