//! The pid file.
#![forbid(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::log::errno;

/// Why there is none. The texts are php-fpm's.
#[derive(Debug, Error)]
pub enum PidFileError {
    /// open()
    #[error("Unable to create the PID file ({path}).: {reason}", path = .0.display(), reason = errno(.1))]
    Create(PathBuf, #[source] io::Error),
    /// write()
    #[error("Unable to write to the PID file.: {reason}", reason = errno(.0))]
    Write(#[source] io::Error),
    /// unlink()
    #[error("Unable to remove the PID file ({path}).: {reason}", path = .0.display(), reason = errno(.1))]
    Remove(PathBuf, #[source] io::Error),
}

/// A pid file that names this process.
#[derive(Debug)]
pub struct PidFile(PathBuf);

impl PidFile {
    /// Writes it, in the place of an old one.
    ///
    /// # Errors
    /// When it cannot be made or written.
    pub fn write(path: &Path) -> Result<Self, PidFileError> {
        let _ = fs::remove_file(path);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(path)
            .map_err(|error| PidFileError::Create(path.to_owned(), error))?;
        file.write_all(content().as_bytes()).map_err(PidFileError::Write)?;
        Ok(Self(path.to_owned()))
    }

    /// One that names this process already.
    pub fn restore(path: PathBuf) -> Self {
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Removes it, unless it is another's by now.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(self) -> Result<(), PidFileError> {
        if !fs::read(&self.0).is_ok_and(|found| found == content().as_bytes()) {
            return Ok(());
        }
        fs::remove_file(&self.0).map_err(|error| PidFileError::Remove(self.0, error))
    }
}

/// No newline: php-fpm's readers expect none.
fn content() -> String {
    std::process::id().to_string()
}
