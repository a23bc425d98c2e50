//! What is wrong with a configuration: all of it, each with its place.

#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;

use crate::log::Level;

/// When php-fpm would find an error, which decides how it prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// While a file's lines are read: `[FILE:LINE] text`.
    Read,
    /// While files are opened and included; the text names the place itself.
    Files,
    /// When all of it is known: `[pool NAME] text`.
    Check,
    /// When names of users and groups are looked up, and that of the command line's prefix; printed as in [`Stage::Check`],
    /// without a line about the configuration after it.
    Names,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// ERROR or ALERT; WARNING for a line that only explains the next one.
    pub level: Level,
    /// When php-fpm would find it.
    pub stage: Stage,
    /// The file it stands in; None is about no file.
    pub file: Option<PathBuf>,
    /// Its line, from 1; 0 is about no line.
    pub line: u32,
    /// The pool it is about.
    pub pool: Option<String>,
    /// The directive it is about.
    pub directive: Option<String>,
    /// What is wrong, in php-fpm's exact words where php-fpm says the same.
    pub text: String,
    /// The same for who knows the directive already, where php-fpm's words say little.
    pub plain: Option<String>,
    /// What is allowed, or what was probably meant.
    pub hint: Option<String>,
}

impl Error {
    /// The line as php-fpm prints it, without time and level.
    pub fn php_fpm(&self) -> String {
        match (&self.pool, self.stage, &self.file) {
            (None, Stage::Read, Some(file)) if self.line > 0 => {
                format!("[{}:{}] {}", file.display(), self.line, self.text)
            }
            (Some(pool), Stage::Check | Stage::Names, _) => format!("[pool {pool}] {}", self.text),
            _ => self.text.clone(),
        }
    }
}

impl fmt::Display for Error {
    /// `file:line: directive: what is wrong; what is allowed`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", file.display())?;
            if self.line > 0 {
                write!(f, "{}:", self.line)?;
            }
            f.write_str(" ")?;
        }
        if let Some(pool) = &self.pool {
            write!(f, "pool {pool}: ")?;
        }
        if let Some(directive) = &self.directive {
            write!(f, "{directive}: ")?;
        }
        f.write_str(self.plain.as_ref().unwrap_or(&self.text))?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong, in the order of the files and then of php-fpm's checks. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors {
    /// The errors.
    pub errors: Vec<Error>,
    /// The configuration's path, for the closing lines.
    pub path: PathBuf,
}

impl Errors {
    /// The lines that php-fpm ends with after the specific ones, all of level ERROR.
    pub fn closing_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        match self.errors.iter().map(|error| error.stage).min() {
            Some(Stage::Read | Stage::Files) => {
                lines.push(format!("failed to load configuration file '{}'", self.path.display()))
            }
            Some(Stage::Check) => lines.push("failed to post process the configuration".to_owned()),
            Some(Stage::Names) | None => {}
        }
        lines.push("FPM initialization failed".to_owned());
        lines
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}
