//! Opening a log whose path leads through folders that are not root's alone.
//!
//! The configuration is root's, but `access.log = /home/alice/logs/access.log` leads through folders where alice may put a
//! link in place of the file, or of `logs`. Root must not follow where she points.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::unistd::{Gid, Uid, User, setfsgid, setfsuid};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::thread::set_thread_groups;

use super::users::Identity;

/// Most links on one path, as in the kernel.
const MOST_LINKS: usize = 40;

/// A user with his groups.
type Person = (u32, u32, Vec<u32>);

/// Who can change what a path means, the most restricted answer for all folders on it.
#[derive(Debug, PartialEq, Eq)]
enum Hands {
    /// Root alone.
    Root,
    /// A group that the pool is not in, `syslog` for instance. The path has no links left in it.
    Trusted(PathBuf),
    /// This user, who opens it then: he can change what this folder has.
    Of(Person, PathBuf),
}

/// Opens a log for appending, 0600: as root where nobody but root can change the way to it, else as whoever can, without
/// following a link at its end; a file of root's own that is there already, as root.
///
/// # Errors
/// The kernel's, or that it is no file.
pub fn open(path: &Path, identity: &Identity) -> io::Result<File> {
    let Some(pool) = tenant(identity) else {
        return appending().open(path);
    };
    match hands(path, pool)? {
        Hands::Root => appending().open(path),
        Hands::Trusted(path) => {
            let flags = OFlags::APPEND | OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let mode = Mode::from_raw_mode(0o600);
            plain(openat2(CWD, &path, flags, mode, ResolveFlags::NO_SYMLINKS)?.into())
        }
        Hands::Of(person, _) => {
            // A pipe without a reader must not hold up the master.
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
            match acting_as(&person, || appending().custom_flags(flags).open(path)) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    roots_own(path).ok_or(error).and_then(plain)
                }
                opened => plain(opened?),
            }
        }
    }
}

/// Who else than root, and whom root trusts, can change the way to a file, in words: what is wrong with it may be his doing.
pub fn in_whose_hands(path: &Path, identity: &Identity) -> Option<String> {
    match hands(path, tenant(identity)?) {
        Ok(Hands::Of((uid, ..), folder)) => {
            let name = User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
            let name = name.unwrap_or_else(|| uid.to_string());
            let folder = folder.display();
            Some(format!(
                "user {name} can change what is in {folder}, so it takes that user's rights"
            ))
        }
        _ => None,
    }
}

/// Whom root must not trust: a pool's user.
fn tenant(identity: &Identity) -> Option<&Person> {
    let pool = identity.user.as_ref().filter(|(uid, ..)| *uid != 0);
    pool.filter(|_| Uid::effective().is_root())
}

/// The log of a master that opened it as root, which php-fpm does: a file of root's in a folder of somebody else's. Not where that
/// somebody could have brought another file of root's there: by a link on the way, or by a hard link.
fn roots_own(path: &Path) -> Option<File> {
    let flags = OFlags::APPEND | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file: File = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
        .ok()?
        .into();
    let found = file.metadata().ok()?;
    // One name, and that one is still there: no other can have been taken away since.
    let name = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    let only = found.is_file() && found.uid() == 0 && found.nlink() == 1 && name.file_name() == path.file_name();
    only.then_some(file)
}

fn appending() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    // Nobody waits for a pipe to get a reader.
    options.custom_flags(libc::O_NONBLOCK);
    options
}

/// Refuses devices, sockets and pipes.
fn plain(file: File) -> io::Result<File> {
    let kind = file.metadata()?.file_type();
    if kind.is_fifo() || kind.is_char_device() || kind.is_block_device() || kind.is_socket() {
        return Err(io::Error::other(
            "it is no file, and stands where others than root can put it",
        ));
    }
    Ok(file)
}

/// Acts with a user's rights on files, in this thread.
fn acting_as<T>(person: &Person, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let (uid, gid, groups) = person;
    let own: Vec<_> = nix::unistd::getgroups()?
        .iter()
        .map(|group| group_id(group.as_raw()))
        .collect();
    let theirs: Vec<_> = groups.iter().copied().map(group_id).collect();
    set_thread_groups(&theirs)?;
    setfsgid(Gid::from_raw(*gid));
    // Takes root's rights on files away as well. Without CAP_SETUID it does nothing and does not say so; nor does the
    // second one, of a uid that nobody has, which only tells who we are.
    setfsuid(Uid::from_raw(*uid));
    let became = setfsuid(Uid::from_raw(u32::MAX)).as_raw() == *uid;
    let result = if became {
        act()
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    };
    setfsuid(Uid::effective());
    setfsgid(Gid::effective());
    set_thread_groups(&own)?;
    result
}

fn group_id(raw: u32) -> rustix::process::Gid {
    rustix::process::Gid::from_raw(raw)
}

/// Walks the way to a file, links included, and looks at each folder.
fn hands(path: &Path, pool: &Person) -> io::Result<Hands> {
    let mut at = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let mut way = VecDeque::new();
    prepend(path, &mut way, &mut at);
    let (mut links, mut trusted) = (0, false);
    loop {
        let folder = fs::symlink_metadata(&at)?;
        match hands_on(&at, &folder, pool) {
            Hands::Root => {}
            Hands::Trusted(_) => trusted = true,
            Hands::Of(..) if keeps(&folder, &at, &way) => {}
            person => return Ok(person),
        }
        let Some(name) = way.pop_front() else {
            return Err(io::Error::from_raw_os_error(libc::EISDIR));
        };
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let found = fs::symlink_metadata(&next);
        // Of a file that does not exist yet only the folder counts; likewise of one in /proc, whose links lead to no path.
        if way.is_empty() && (trusted || !found.as_ref().is_ok_and(Metadata::is_symlink) || at.starts_with("/proc")) {
            return Ok(if trusted { Hands::Trusted(next) } else { Hands::Root });
        }
        if found?.is_symlink() {
            links += 1;
            if links > MOST_LINKS {
                return Err(io::Error::from_raw_os_error(libc::ELOOP));
            }
            prepend(&fs::read_link(&next)?, &mut way, &mut at);
        } else {
            at = next;
        }
    }
}

/// Whether the way on leads through a folder of root's that nobody else can put another in the place of, though everybody
/// may make entries beside it: `/tmp/of-root/…`.
fn keeps(folder: &Metadata, at: &Path, way: &VecDeque<OsString>) -> bool {
    let next = way.front().filter(|_| way.len() > 1);
    let sticky = folder.mode() & 0o1000 != 0 && folder.uid() == 0;
    let of_root =
        |next: &OsString| fs::symlink_metadata(at.join(next)).is_ok_and(|found| found.is_dir() && found.uid() == 0);
    sticky && next.is_some_and(of_root)
}

/// Puts a path before what is left of the way.
fn prepend(path: &Path, way: &mut VecDeque<OsString>, at: &mut PathBuf) {
    for part in path.components().rev() {
        match part {
            Component::RootDir => *at = PathBuf::from("/"),
            Component::Normal(_) | Component::ParentDir => way.push_front(part.as_os_str().to_owned()),
            Component::CurDir | Component::Prefix(_) => {}
        }
    }
}

/// Who can change the entries of a folder.
fn hands_on(path: &Path, folder: &Metadata, pool: &Person) -> Hands {
    let others = folder.mode() & 0o002 != 0;
    let group = folder.mode() & 0o020 != 0;
    if folder.uid() != 0 {
        return Hands::Of(owner(folder.uid(), pool), path.to_owned());
    }
    // The group's bits are also those of an access list.
    let listed = group && rustix::fs::getxattr(path, "system.posix_acl_access", &mut [0u8; 0][..]).is_ok();
    if others || listed || (group && pool.2.contains(&folder.gid())) {
        return Hands::Of(pool.clone(), path.to_owned());
    }
    if group && folder.gid() != 0 {
        return Hands::Trusted(path.to_owned());
    }
    Hands::Root
}

/// The owner of a folder: the pool's user in the common case.
fn owner(uid: u32, pool: &Person) -> Person {
    if uid == pool.0 {
        return pool.clone();
    }
    const NOBODY: u32 = 65534;
    let gid = User::from_uid(Uid::from_raw(uid))
        .ok()
        .flatten()
        .map_or(NOBODY, |user| user.gid.as_raw());
    (uid, gid, Vec::new())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    /// A folder of root's that everybody may enter, in one of root's.
    struct Yard(tempfile::TempDir);

    const POOL: u32 = 65534;

    impl Yard {
        fn new() -> Option<Self> {
            if !Uid::effective().is_root() {
                return None; // there is nothing to give up
            }
            // /tmp itself is everybody's.
            let dir = tempfile::tempdir_in("/var/lib").unwrap();
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
            Some(Self(dir))
        }

        fn folder(&self, name: &str, uid: u32, gid: u32, mode: u32) -> PathBuf {
            let path = self.path(name);
            fs::create_dir(&path).unwrap();
            chown(&path, Some(uid), Some(gid)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }
    }

    fn identity() -> Identity {
        Identity {
            user: Some((POOL, POOL, vec![POOL, 33])),
            ..Identity::default()
        }
    }

    fn opened(path: &Path) -> Result<u32, String> {
        let mut file = open(path, &identity()).map_err(|error| error.to_string())?;
        writeln!(file, "x").unwrap();
        Ok(fs::metadata(path).unwrap().uid())
    }

    #[test]
    fn who_owns_the_folder_opens_the_file() {
        let Some(yard) = Yard::new() else { return };
        yard.folder("root", 0, 0, 0o755);
        yard.folder("pool", POOL, POOL, 0o755);
        yard.folder("other", 1, 1, 0o700);
        yard.folder("all", 0, 0, 0o1777);
        yard.folder("all/of-root", 0, 0, 0o755);
        yard.folder("all/of-pool", POOL, POOL, 0o755);
        yard.folder("lax", 0, 0, 0o777);
        yard.folder("lax/of-root", 0, 0, 0o777);
        yard.folder("ours", 0, 33, 0o775);
        yard.folder("syslog", 0, 4, 0o775);
        let roots = ["root", "all/of-root", "syslog"];
        for (folder, uid) in [
            ("root", 0),
            ("pool", POOL),
            ("other", 1),
            ("all", POOL),
            ("all/of-root", 0),
            ("all/of-pool", POOL),
            ("lax/of-root", POOL),
            ("ours", POOL),
            ("syslog", 0),
        ] {
            let log = yard.path(&format!("{folder}/log"));
            assert_eq!(opened(&log), Ok(uid), "{folder}");
            assert_eq!(
                in_whose_hands(&log, &identity()).is_none(),
                roots.contains(&folder),
                "{folder}"
            );
        }
        assert_eq!(Uid::effective().as_raw(), 0);
        fs::write(yard.path("root/still"), "root").unwrap();
        assert_eq!(fs::metadata(yard.path("root/still")).unwrap().uid(), 0);
    }

    #[test]
    fn root_is_not_led_astray() {
        let Some(yard) = Yard::new() else { return };
        let (root, pool) = (yard.folder("root", 0, 0, 0o755), yard.folder("pool", POOL, POOL, 0o755));
        fs::write(root.join("victim"), "").unwrap();
        // In place of the file, of a folder, and of a folder that does not lead back at once.
        symlink(root.join("victim"), pool.join("log")).unwrap();
        symlink(&root, pool.join("logs")).unwrap();
        symlink(&pool, root.join("to-pool")).unwrap();
        for path in [
            pool.join("log"),
            pool.join("logs/victim"),
            pool.join("logs/new"),
            root.join("to-pool/logs/new"),
        ] {
            assert!(opened(&path).is_err(), "{}", path.display());
        }
        assert!(!root.join("new").exists());
        assert_eq!(fs::read(root.join("victim")).unwrap(), b"");
        // A group of others is trusted with its folder, but not with links in it.
        let syslog = yard.folder("syslog", 0, 4, 0o775);
        symlink(root.join("victim"), syslog.join("log")).unwrap();
        assert!(opened(&syslog.join("log")).is_err());
    }

    #[test]
    fn the_log_that_php_fpm_made_is_gone_on_with() {
        let Some(yard) = Yard::new() else { return };
        let (root, pool) = (yard.folder("root", 0, 0, 0o755), yard.folder("pool", POOL, POOL, 0o700));
        let log = pool.join("log");
        fs::write(&log, "fpm\n").unwrap();
        fs::set_permissions(&log, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(opened(&log), Ok(0));
        assert_eq!(fs::read(&log).unwrap(), b"fpm\nx\n");
        // Where it may be another file than it seems, or somebody else's, it is not.
        fs::hard_link(&log, pool.join("victim")).unwrap();
        symlink(&log, pool.join("link")).unwrap();
        symlink(&pool, pool.join("way")).unwrap();
        fs::write(root.join("victim"), "").unwrap();
        fs::write(pool.join("of-another"), "").unwrap();
        chown(pool.join("of-another"), Some(1), Some(1)).unwrap();
        for name in ["log", "victim", "link", "way/log", "of-another"] {
            assert!(opened(&pool.join(name)).is_err(), "{name}");
        }
        assert_eq!(fs::read(&log).unwrap(), b"fpm\nx\n");
    }

    #[test]
    fn roots_own_links_are_followed() {
        let Some(yard) = Yard::new() else { return };
        let (root, pool) = (yard.folder("root", 0, 0, 0o755), yard.folder("pool", POOL, POOL, 0o755));
        symlink(&root, yard.path("link")).unwrap();
        symlink("../root/real", root.join("log")).unwrap();
        assert_eq!(opened(&yard.path("link/log")), Ok(0));
        assert!(root.join("real").exists());
        symlink(&pool, root.join("to-pool")).unwrap();
        assert_eq!(opened(&root.join("to-pool/log")), Ok(POOL));
        symlink(root.join("circle"), root.join("circle")).unwrap();
        assert!(opened(&root.join("circle")).is_err());
    }

    #[test]
    fn a_pipe_in_a_tenants_folder_holds_nobody_up() {
        let Some(yard) = Yard::new() else { return };
        let pool = yard.folder("pool", POOL, POOL, 0o755);
        nix::unistd::mkfifo(&pool.join("log"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        chown(pool.join("log"), Some(POOL), Some(POOL)).unwrap();
        assert!(open(&pool.join("log"), &identity()).is_err());
        let _reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(pool.join("log"))
            .unwrap();
        assert!(
            open(&pool.join("log"), &identity())
                .unwrap_err()
                .to_string()
                .contains("no file")
        );
        // Root's own devices are another matter.
        assert!(open(Path::new("/dev/null"), &identity()).is_ok());
    }
}
