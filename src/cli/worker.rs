//! Where the worker's executable is.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Where the packages put it: `…/8.2/php-pool-worker`.
const PACKAGES: &str = "/usr/lib/php-pool";
const NAME: &str = "php-pool-worker";

/// Where Debian keeps the settings of each version.
const SETTINGS: &str = "/etc/php";

/// The version that a worker beside the master was built for.
const BUILT_FOR: &str = env!("PHP_POOL_PHP_VERSION");

/// There is no worker to run.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// `worker.path` names no file.
    #[error("worker.path: {0} does not exist")]
    NoSuchFile(PathBuf),
    /// None for this version.
    #[error("no {NAME} for PHP {version} is installed: looked beside {beside} and in {PACKAGES}/{version}")]
    NoSuchVersion {
        /// `8.2`
        version: String,
        /// The master's own folder.
        beside: PathBuf,
    },
}

/// A worker's executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// The file.
    pub path: PathBuf,
    /// The PHP it was built for, `8.2`.
    pub php: String,
}

/// Finds the worker for a PHP version (None: the newest) and a pool's `worker.path`.
///
/// # Errors
/// When there is none; the sentence says where it was looked for.
pub fn find(path: Option<&Path>, version: Option<&str>) -> Result<Worker, WorkerError> {
    if let Some(path) = path {
        let worker = Worker {
            path: path.to_owned(),
            php: version.unwrap_or(BUILT_FOR).to_owned(),
        };
        return if path.exists() {
            Ok(worker)
        } else {
            Err(WorkerError::NoSuchFile(path.to_owned()))
        };
    }
    let beside = std::env::current_exe()
        .ok()
        .and_then(|own| Some(own.parent()?.to_owned()))
        .unwrap_or_default();
    let ours = beside.join(NAME);
    if version.is_none_or(|version| version == BUILT_FOR) && ours.exists() {
        return Ok(Worker {
            path: ours,
            php: BUILT_FOR.to_owned(),
        });
    }
    let version = match version {
        Some(version) => version.to_owned(),
        None => newest(Path::new(PACKAGES), Path::new(SETTINGS)).unwrap_or_else(|| BUILT_FOR.to_owned()),
    };
    let path = Path::new(PACKAGES).join(&version).join(NAME);
    if path.exists() {
        Ok(Worker { path, php: version })
    } else {
        Err(WorkerError::NoSuchVersion { version, beside })
    }
}

/// The newest version that there is a worker for. One whose package is unpacked and not yet configured has no php.ini and no
/// modules: any other goes before it.
fn newest(packages: &Path, settings: &Path) -> Option<String> {
    let number = |name: &str| -> Option<Vec<u32>> { name.split('.').map(|part| part.parse().ok()).collect() };
    let is_set_up = |name: &str| settings.join(name).join("php-pool/php.ini").exists();
    fs::read_dir(packages)
        .ok()?
        .flatten()
        .filter(|entry| entry.path().join(NAME).exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| number(name).is_some())
        .max_by_key(|name| (is_set_up(name), number(name)))
}

/// Whether a PHP of that version has what came with 8.4.
pub fn is_since_8_4(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(8), Some(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_that_is_set_up_comes_first_and_where_none_is_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let [packages, settings] = ["lib", "etc"].map(|name| dir.path().join(name));
        let newest = || super::newest(&packages, &settings);
        let put = |folder: PathBuf, name: &str| {
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(name), "").unwrap();
        };
        assert_eq!(newest(), None);
        for version in ["8.2", "8.10"] {
            put(packages.join(version), NAME);
        }
        put(packages.join("8.11"), "README");
        assert_eq!(newest().as_deref(), Some("8.10"));
        for version in ["8.2", "8.10"] {
            put(settings.join(version).join("php-pool"), "php.ini");
            assert_eq!(newest().as_deref(), Some(version));
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, since) in [
            ("8.2.36", false),
            ("8.3.99", false),
            ("8.4.0RC1", true),
            ("8.10.1", true),
            ("9.0.0", true),
            ("", false),
        ] {
            assert_eq!(is_since_8_4(version), since, "{version}");
        }
    }
}
