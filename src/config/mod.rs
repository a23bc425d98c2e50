//! php-fpm's configuration: its ini dialect, every directive, and the typed result.
//!
//! [`load()`] reads a file with all it includes and gives a [`Config`] or everything that is wrong with it; [`dump()`]
//! prints one as `-tt` does. [`directives`] is the one table that reading, printing and the manual come from.

pub mod access_format;
pub mod address;
pub mod directives;
pub mod ini;
pub mod manual;
pub mod phpini;
pub mod value;

mod dump;
mod error;
mod load;
mod model;
mod validate;

pub use dump::dump;
pub use error::{Error, Errors, Stage};
pub use load::{LoadOptions, SourceLine, lines, load, read};
pub use model::*;
pub use validate::unknown_names;
