//! A pool's access log, which the master opens and its workers write.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::log_file;
use super::saved::{Kept, Restorer, Saver};
use super::users::Identity;
use crate::log::errno;

/// It cannot be opened.
#[derive(Debug, Error)]
#[error("failed to open access log ({path}): {reason}", path = .0.display(), reason = errno(.1))]
pub struct AccessLogError(PathBuf, #[source] io::Error);

/// An open access log.
#[derive(Debug)]
pub struct AccessLog {
    path: PathBuf,
    file: File,
}

/// An open access log, for a successor.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedAccessLog {
    path: PathBuf,
    file: Kept,
}

impl AccessLog {
    /// What is to go on.
    pub fn save(&self, saver: &mut Saver) -> SavedAccessLog {
        SavedAccessLog {
            path: self.path.clone(),
            file: saver.keep(&self.file),
        }
    }

    /// Goes on with it.
    ///
    /// # Errors
    /// When the descriptor is missing.
    pub fn restore(saved: SavedAccessLog, fds: &mut Restorer) -> io::Result<Self> {
        Ok(Self {
            path: saved.path,
            file: fds.take(saved.file)?.into(),
        })
    }

    /// Opens it. `stderr` is what /dev/stderr means, whatever has become of descriptor 2.
    ///
    /// # Errors
    /// With the path and the reason.
    pub fn open(path: &Path, identity: &Identity, stderr: Option<&File>) -> Result<Self, AccessLogError> {
        let file = match stderr {
            Some(stderr) if path == Path::new("/dev/stderr") => stderr.try_clone(),
            _ => log_file::open(path, identity),
        };
        let file = file.map_err(|error| AccessLogError(path.to_owned(), error))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Opens it again, where it was.
    ///
    /// # Errors
    /// With the path and the reason; the old one stays.
    pub fn reopen(&mut self, identity: &Identity, stderr: Option<&File>) -> Result<(), AccessLogError> {
        *self = Self::open(&self.path, identity, stderr)?;
        Ok(())
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// A descriptor for a worker.
    ///
    /// # Errors
    /// When there are none left.
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }
}
