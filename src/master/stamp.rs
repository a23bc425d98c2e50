//! Whether a file is still the one that it was.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What tells a file from one that was put in its place, or written over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds of its last change.
    changed: (i64, i64),
}

impl Stamp {
    /// Of the file that a path leads to now; None when it leads to none.
    pub fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            changed: (found.mtime(), found.mtime_nsec()),
        })
    }
}

/// Files as they were at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files(BTreeMap<PathBuf, Option<Stamp>>);

impl Files {
    /// As they are now. One that is not there is remembered, too.
    pub fn now(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let stamped = paths.into_iter().map(|path| {
            let stamp = Stamp::of(&path);
            (path, stamp)
        });
        Self(stamped.collect())
    }

    /// Whether all of them are still the same.
    pub fn are_unchanged(&self) -> bool {
        self.0.iter().all(|(path, stamp)| Stamp::of(path) == *stamp)
    }
}

/// Those of some paths that somebody else names that lead through nobody's folders but root's. To look at another could
/// wait for whoever serves it. Each folder is looked at once: by a way that goes back there is no end of them.
pub fn only_roots(paths: Vec<PathBuf>) -> impl Iterator<Item = PathBuf> {
    /// A process has mapped some hundred at most.
    const MOST: usize = 1000;
    let is_roots = |path: &Path| {
        std::fs::symlink_metadata(path)
            .is_ok_and(|found| found.uid() == 0 && !found.is_symlink() && found.mode() & 0o022 == 0)
    };
    let mut known = BTreeSet::new();
    let leads = move |path: &PathBuf| {
        let mut way: Vec<_> = path.ancestors().collect();
        way.reverse();
        path.is_absolute()
            && path.components().all(|part| part != Component::ParentDir)
            && way
                .into_iter()
                .all(|path| known.contains(path) || (is_roots(path) && known.insert(path.to_owned())))
    };
    paths.into_iter().take(MOST).filter(leads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_the_place_of_another_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("a"), dir.path().join("b"));
        assert_eq!(Stamp::of(&path), None);
        fs::write(&path, "same").unwrap();
        let before = Stamp::of(&path);
        assert_eq!(Stamp::of(&path), before);
        fs::write(&other, "same").unwrap();
        fs::rename(&other, &path).unwrap();
        assert_ne!(Stamp::of(&path), before);
        let before = Stamp::of(&path);
        fs::write(&path, "longer").unwrap();
        assert_ne!(Stamp::of(&path), before);
        let files = Files::now([path.clone(), other.clone()]);
        assert!(files.are_unchanged());
        fs::write(&other, "new").unwrap();
        assert!(!files.are_unchanged());
    }

    #[test]
    fn nobody_elses_folders_are_looked_into() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x.so"), "").unwrap();
        let own = [
            "/usr/bin/env",
            "/usr/../usr/bin/env",
            "/dev/null",
            "x.so",
            "/proc/self/exe",
        ]
        .map(PathBuf::from);
        let named = own.into_iter().chain([dir.path().join("x.so")]).collect();
        assert_eq!(only_roots(named).collect::<Vec<_>>(), [PathBuf::from("/usr/bin/env")]);
    }
}
