//! php-fpm's configuration: its ini dialect, every directive, and the typed result.

mod model;
pub use model::*;
