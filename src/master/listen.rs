//! Listening sockets: made, or taken over from whoever started this process.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::sys::stat::{Mode, umask};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::saved::{Kept, Restorer, Saver};
use super::{acl, sys, upgrade, users};
use crate::config::{Listen, Pool, address};
use crate::log::{Logger, errno};

/// Most variables of a hand-over, and most sockets in each (php-fpm's numbers).
const MAX_VARIABLES: usize = 256;

/// Most sockets of one pool.
const MOST_OF_POOL: usize = 8;

/// Why there is no socket. The texts are php-fpm's.
#[derive(Debug, Error)]
pub enum ListenError {
    /// socket()
    #[error("failed to create new listening socket: socket(): {reason}", reason = errno(.0))]
    Socket(#[source] io::Error),
    /// bind()
    #[error("unable to bind listening socket for address '{0}': {reason}", reason = errno(.1))]
    Bind(String, #[source] io::Error),
    /// listen()
    #[error("failed to listen to address '{0}': {reason}", reason = errno(.1))]
    Listen(String, #[source] io::Error),
    /// Somebody answers there.
    #[error("Another FPM instance seems to already listen on {0}")]
    Taken(String),
    /// The name of a host.
    #[error("getaddrinfo: {0}: {1}")]
    Resolve(String, String),
    /// Owner and group of a unix socket.
    #[error("[pool {0}] failed to chown() the socket '{1}': {reason}", reason = errno(.2))]
    Owner(String, String, #[source] io::Error),
    /// Its ACL.
    #[error("[pool {0}] failed to write the ACL of the socket '{1}': {reason}", reason = errno(.2))]
    Acl(String, String, #[source] io::Error),
    /// systemd holds the sockets, and not this one.
    #[error("[pool {pool}] {directive} has changed, and systemd holds the socket; as root: {commands}")]
    Held {
        /// The pool.
        pool: String,
        /// `listen`, `listen.mode`…
        directive: &'static str,
        /// What makes systemd read it.
        commands: String,
    },
    /// systemd listens on too many.
    #[error("[pool {0}] systemd has handed over {1} sockets for it, and {MOST_OF_POOL} is the most")]
    TooMany(String, usize),
    /// A name in `listen.owner`, `listen.group` or the ACL.
    #[error("[pool {0}] {1}")]
    Name(String, #[source] users::UserError),
}

impl ListenError {
    /// Whether it can come of what somebody has put at a unix socket's path.
    pub fn is_of_the_place(&self) -> bool {
        matches!(self, Self::Bind(..) | Self::Taken(_) | Self::Owner(..) | Self::Acl(..))
    }
}

/// What makes systemd read a pool's `listen*` lines again; clients that wait in the old socket are turned away. `restart` of
/// both is no way: the jobs go on side by side, and systemd listens on no socket whose service runs still.
fn systemd_commands(before: &Pool, now: &Pool) -> String {
    let name = &now.name;
    let units = |with_status: bool| {
        // All of them, for a socket that stays would start the service before the others listen.
        let status = if with_status {
            format!("php-pool-status@{name}.socket ")
        } else {
            String::new()
        };
        format!("php-pool@{name}.socket {status}php-pool@{name}.service")
    };
    let [before, now] = [before, now].map(|pool| pool.pm_status_listen_address.is_some());
    let (stop, start) = (units(before || now), units(now));
    format!("systemctl daemon-reload && systemctl stop {stop} && systemctl start {start}")
}

/// A listening socket. Its file, if it made one, goes with it.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    /// As in a hand-over: a path, or `ADDR:PORT`.
    key: RefCell<String>,
    /// Whether it is a TCP socket.
    pub tcp: bool,
    /// What systemd calls it (`FileDescriptorName=`); empty where it comes from elsewhere.
    name: String,
    /// How many connections may wait in it, once that has been asked for.
    pub limit: Cell<Option<u32>>,
    /// Whether it was made here.
    made: bool,
    /// The file it is bound to and who it was, when that is ours to remove.
    file: Option<(PathBuf, u64, u64)>,
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Listener {
    fn new(fd: OwnedFd, key: String, tcp: bool, ours: bool, made: bool) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let identity = |path: &str| {
            std::fs::symlink_metadata(path)
                .ok()
                .map(|meta| (meta.dev(), meta.ino()))
        };
        let file = (ours && !tcp)
            .then(|| identity(&key).map(|(dev, ino)| (PathBuf::from(&key), dev, ino)))
            .flatten();
        Ok(Self {
            fd,
            key: RefCell::new(key),
            tcp,
            name: String::new(),
            limit: Cell::default(),
            made,
            file,
        })
    }

    /// What it is known by, for as long as its address is its own.
    pub fn key(&self) -> String {
        self.key.borrow().clone()
    }

    /// Whether nobody can come by it any more: its file, which was ours, is not there, or is another's.
    fn is_cut_off(&self) -> bool {
        self.file.as_ref().is_some_and(|(path, dev, ino)| {
            !std::fs::symlink_metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == (*dev, *ino))
        })
    }

    /// Removes its file, unless another socket has taken its place.
    fn remove_file(&self) {
        if let Some((path, ..)) = self.file.as_ref().filter(|_| !self.is_cut_off()) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Whether these are the same sockets.
pub fn are_same(some: &[Rc<Listener>], others: &[Rc<Listener>]) -> bool {
    some.len() == others.len() && some.iter().zip(others).all(|(one, other)| Rc::ptr_eq(one, other))
}

/// All sockets of this process, by key.
#[derive(Debug, Default)]
pub struct Sockets {
    all: BTreeMap<String, Rc<Listener>>,
    /// The keys in the order in which they came.
    order: Vec<String>,
    /// systemd has handed sockets over: it alone makes them.
    held: bool,
}

/// A socket, for a successor.
#[derive(Debug, Serialize, Deserialize)]
struct SavedListener {
    fd: Kept,
    key: String,
    tcp: bool,
    #[serde(default)]
    name: String,
    file: Option<(PathBuf, u64, u64)>,
}

/// All sockets, for a successor.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedSockets {
    /// In the order in which they came.
    all: Vec<SavedListener>,
    held: bool,
}

impl SavedSockets {
    /// Whether systemd holds the sockets.
    pub fn are_held(&self) -> bool {
        self.held
    }
}

impl Sockets {
    /// What is to go on.
    pub fn save(&self, saver: &mut Saver) -> SavedSockets {
        let all = self.order.iter().map(|key| &self.all[key]);
        let all = all.map(|listener| SavedListener {
            fd: saver.keep(listener),
            key: listener.key(),
            tcp: listener.tcp,
            name: listener.name.clone(),
            file: listener.file.clone(),
        });
        SavedSockets {
            all: all.collect(),
            held: self.held,
        }
    }

    /// Makes them again.
    ///
    /// # Errors
    /// When a descriptor is missing.
    pub fn restore(saved: SavedSockets, fds: &mut Restorer) -> io::Result<Self> {
        let mut sockets = Self {
            held: saved.held,
            ..Self::default()
        };
        for saved in saved.all {
            sockets.insert(Listener {
                fd: fds.take(saved.fd)?,
                key: RefCell::new(saved.key),
                tcp: saved.tcp,
                name: saved.name,
                limit: Cell::default(),
                // Files of this life's own making only matter while it starts.
                made: false,
                file: saved.file,
            });
        }
        Ok(sockets)
    }

    /// The socket of a key.
    ///
    /// # Errors
    /// When there is none.
    pub fn known(&self, key: &str) -> io::Result<Rc<Listener>> {
        let found = self.all.get(key).cloned();
        found.ok_or_else(|| io::Error::other(format!("there is no socket {key}")))
    }

    /// The sockets of a pool: that of `listen`, and the further ones.
    ///
    /// # Errors
    /// When one is missing.
    pub fn all_known(&self, first: &str, further: &[String]) -> io::Result<Vec<Rc<Listener>>> {
        let keys = std::iter::once(first).chain(further.iter().map(String::as_str));
        keys.map(|key| self.known(key)).collect()
    }

    /// Takes the sockets of a hand-over.
    pub fn adopt_all(&mut self, inherited: Inherited, log: &Logger) {
        for (fd, key) in inherited.fpm {
            match fd {
                Some(fd) => self.adopt(fd, Some(key), String::new(), true, log),
                None => log.error(format_args!(
                    "FPM_SOCKETS names a descriptor for {key} that is not open"
                )),
            }
        }
        self.held = !inherited.systemd.is_empty();
        for (fd, name) in inherited.systemd {
            self.adopt(fd, None, name, false, log);
        }
    }

    fn adopt(&mut self, fd: OwnedFd, key: Option<String>, name: String, ours: bool, log: &Logger) {
        let number = fd.as_raw_fd();
        let (own_key, tcp) = match address_of(&fd) {
            Ok(found) => found,
            Err(reason) => return log.error(format_args!("descriptor {number} was handed over, but {reason}")),
        };
        let key = key.unwrap_or(own_key);
        match Listener::new(fd, key, tcp, ours, false) {
            Ok(listener) => {
                self.say_inherited(&listener, log);
                self.insert(Listener { name, ..listener });
            }
            Err(error) => log.error(format_args!(
                "descriptor {number} was handed over, but: {}",
                errno(&error)
            )),
        }
    }

    fn insert(&mut self, listener: Listener) -> Rc<Listener> {
        let listener = Rc::new(listener);
        self.order.push(listener.key());
        self.all.insert(listener.key(), listener.clone());
        listener
    }

    /// Makes room for another socket of this key. Who is in the queue of the one there was is still served.
    fn set_aside(&mut self, key: &str) {
        let Some(listener) = self.all.remove(key) else { return };
        let aside = format!("{key} (removed, fd={})", listener.as_raw_fd());
        self.order
            .iter_mut()
            .filter(|other| *other == key)
            .for_each(|other| other.clone_from(&aside));
        listener.key.replace(aside.clone());
        self.all.insert(aside, listener);
    }

    fn say_inherited(&self, listener: &Listener, log: &Logger) {
        log.notice(format_args!(
            "using inherited socket fd={}, \"{}\"",
            listener.as_raw_fd(),
            listener.key()
        ));
    }

    /// Says of every socket that it goes on, as php-fpm does after its own exec.
    pub fn say_all_inherited(&self, log: &Logger) {
        for key in &self.order {
            self.say_inherited(&self.all[key], log);
        }
    }

    /// The socket of an address: the one there is, unchanged, or a new one with the pool's owner, mode and backlog. One whose
    /// file somebody has removed is of no use to anybody.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn get(
        &mut self,
        address: &Listen,
        directive: &'static str,
        pool: &Pool,
        log: &Logger,
    ) -> Result<Rc<Listener>, ListenError> {
        if self.held {
            // systemd's is called as systemd calls it.
            let held = address::held(address);
            if held != *address
                && let Some(listener) = self.there_is(&resolve(&held, log)?)
            {
                return Ok(listener);
            }
        }
        let targets = resolve(address, log)?;
        if let Some(listener) = self.there_is(&targets) {
            return Ok(listener);
        }
        if self.held {
            return Err(ListenError::Held {
                pool: pool.name.clone(),
                directive,
                commands: systemd_commands(pool, pool),
            });
        }
        let mut last = None;
        for (index, (key, target)) in targets.into_iter().enumerate() {
            if index > 0 {
                log.notice("Failed implicitly binding to ::, retrying with 0.0.0.0");
            }
            let written = match address {
                Listen::Port(port) => port.to_string(),
                Listen::Tcp { host, port } => format!("{host}:{port}"),
                Listen::Unix(path) => path.display().to_string(),
            };
            let made = match &target {
                Target::Unix(path) => bind_unix(path, pool),
                Target::Tcp(address) => bind_tcp(*address, &written, pool.listen_backlog),
            };
            match made {
                Ok(fd) => {
                    let listener = Listener::new(fd, key, matches!(target, Target::Tcp(_)), true, true);
                    return Ok(self.insert(listener.map_err(ListenError::Socket)?));
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| ListenError::Resolve(pool.listen.clone(), "no address".to_owned())))
    }

    /// The socket of one of these targets, if there is one of use.
    fn there_is(&mut self, targets: &[(String, Target)]) -> Option<Rc<Listener>> {
        for (key, _) in targets {
            match self.all.get(key) {
                Some(listener) if !listener.is_cut_off() => return Some(listener.clone()),
                Some(_) => self.set_aside(key),
                None => {}
            }
        }
        None
    }

    /// The sockets that a pool accepts from: that of `listen`, and whatever else systemd listens on by the pool's name, or by
    /// the name `listen` where the pool is `alone` (a drop-in of its socket unit has further addresses).
    ///
    /// # Errors
    /// When the first cannot be made, or there are too many.
    pub fn of_pool(&mut self, pool: &Pool, alone: bool, log: &Logger) -> Result<Vec<Rc<Listener>>, ListenError> {
        let mut listeners = vec![self.get(&pool.listen_address, "listen", pool, log)?];
        say_ignored(pool, log);
        let named = |listener: &&Rc<Listener>| listener.name == pool.name || (alone && listener.name == "listen");
        let others = self.order.iter().filter_map(|key| self.all.get(key)).filter(named);
        let others: Vec<_> = others
            .filter(|other| !Rc::ptr_eq(other, &listeners[0]))
            .cloned()
            .collect();
        listeners.extend(others);
        match listeners.len() {
            count if count > MOST_OF_POOL => Err(ListenError::TooMany(pool.name.clone(), count)),
            _ => Ok(listeners),
        }
    }

    /// Whether systemd holds the sockets: they outlive this process.
    pub fn are_held(&self) -> bool {
        self.held
    }

    /// Whether a pool's lines about its socket are as they were, where only systemd can carry a change out.
    ///
    /// # Errors
    /// Names the first that is not.
    pub fn check_unchanged(&self, before: &Pool, now: &Pool) -> Result<(), ListenError> {
        let same = [
            ("listen", before.listen_address == now.listen_address),
            (
                "pm.status_listen",
                before.pm_status_listen_address == now.pm_status_listen_address,
            ),
            ("listen.backlog", before.listen_backlog == now.listen_backlog),
            ("listen.owner", before.listen_owner == now.listen_owner),
            ("listen.group", before.listen_group == now.listen_group),
            ("listen.mode", before.listen_mode == now.listen_mode),
            ("listen.acl_users", before.listen_acl_users == now.listen_acl_users),
            ("listen.acl_groups", before.listen_acl_groups == now.listen_acl_groups),
        ];
        match same.into_iter().find(|(_, same)| self.held && !same) {
            Some((directive, _)) => Err(ListenError::Held {
                pool: now.name.clone(),
                directive,
                commands: systemd_commands(before, now),
            }),
            None => Ok(()),
        }
    }

    /// Says of each socket of systemd's that no pool has that nobody will answer there: its name in the unit, or the pool's
    /// address, is another than was meant.
    pub fn say_unused(&self, log: &Logger) {
        let unused = self.order.iter().filter_map(|key| self.all.get(key));
        for listener in unused.filter(|listener| !listener.name.is_empty() && Rc::strong_count(listener) == 1) {
            log.warning(format_args!(
                "the inherited socket \"{}\" (FileDescriptorName={}) belongs to no pool, and is closed: nobody will answer there",
                listener.key.borrow(), listener.name
            ));
        }
    }

    /// Closes the sockets that no pool has, and removes their files.
    pub fn close_unused(&mut self) {
        self.all.retain(|_, listener| {
            let used = Rc::strong_count(listener) > 1;
            if !used {
                listener.remove_file();
            }
            used
        });
        self.order.retain(|key| self.all.contains_key(key));
    }

    /// Removes the files of all sockets, at the end.
    pub fn remove_files(&self) {
        self.all.values().for_each(|listener| listener.remove_file());
    }

    /// Removes the files of the sockets that were made here: the start has failed.
    pub fn remove_made(&self) {
        self.all
            .values()
            .filter(|listener| listener.made)
            .for_each(|listener| listener.remove_file());
    }
}

/// The descriptors that `FPM_SOCKETS` and `LISTEN_FDS` hand over.
#[derive(Debug)]
pub struct Inherited {
    /// With their keys; None where the descriptor is not open.
    fpm: Vec<(Option<OwnedFd>, String)>,
    /// With the names that systemd gives them.
    systemd: Vec<(OwnedFd, String)>,
}

impl Inherited {
    /// Takes them. To be called once, and before the process opens descriptors of its own.
    pub fn take() -> Self {
        let systemd = sd_notify::listen_fds_with_names()
            .map(|fds| {
                fds.filter_map(|(fd, name)| Some((sys::take_inherited(fd)?, name)))
                    .collect()
            })
            .unwrap_or_default();
        let fpm = fpm_sockets()
            .into_iter()
            .map(|(fd, key)| (sys::take_inherited(fd), key))
            .collect();
        Self { fpm, systemd }
    }
}

/// `FPM_SOCKETS`, `FPM_SOCKETS_1`…: `key=fd`, comma-separated.
fn fpm_sockets() -> Vec<(RawFd, String)> {
    let mut found = Vec::new();
    for index in 0..MAX_VARIABLES {
        let name = if index == 0 {
            "FPM_SOCKETS".to_owned()
        } else {
            format!("FPM_SOCKETS_{index}")
        };
        let Ok(value) = std::env::var(name) else { break };
        found.extend(value.split(',').filter_map(|entry| {
            let (key, fd) = entry.rsplit_once('=')?;
            Some((fd.parse().ok()?, key.to_owned()))
        }));
    }
    found
}

/// Whether an environment variable is about the hand-over, and none of PHP's business.
pub fn is_hand_over(name: &str) -> bool {
    name == upgrade::VARIABLE
        || name == "FPM_SOCKETS"
        || name.starts_with("FPM_SOCKETS_")
        || name.starts_with("LISTEN_")
}

/// The key of a socket that was handed over, and whether it is TCP.
fn address_of(fd: &OwnedFd) -> Result<(String, bool), String> {
    let problem = |error: rustix::io::Errno| format!("it is no socket: {error}");
    if sockopt::socket_type(fd).map_err(problem)? != SocketType::STREAM {
        return Err("it is no stream socket".to_owned());
    }
    if !sockopt::socket_acceptconn(fd).map_err(problem)? {
        return Err("it does not listen".to_owned());
    }
    let address = rustix::net::getsockname(fd).map_err(problem)?;
    if let Ok(address) = SocketAddr::try_from(address.clone()) {
        return Ok((tcp_key(address), true));
    }
    let unix = SocketAddrUnix::try_from(address).map_err(|_| "it is neither TCP nor a unix socket".to_owned())?;
    let path = unix.path().ok_or("its address has no path")?;
    Ok((path.to_string_lossy().into_owned(), false))
}

enum Target {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

fn tcp_key(address: SocketAddr) -> String {
    match address {
        // fe80::1 is another on each interface.
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}:{}", v6.ip(), v6.scope_id(), v6.port()),
        _ => format!("{}:{}", address.ip(), address.port()),
    }
}

/// What an address means, best first.
fn resolve(address: &Listen, log: &Logger) -> Result<Vec<(String, Target)>, ListenError> {
    let tcp = |address: SocketAddr| (tcp_key(address), Target::Tcp(address));
    match address {
        Listen::Unix(path) => Ok(vec![(path.display().to_string(), Target::Unix(path.clone()))]),
        Listen::Port(port) => Ok(vec![
            tcp((Ipv6Addr::UNSPECIFIED, *port).into()),
            tcp((Ipv4Addr::UNSPECIFIED, *port).into()),
        ]),
        Listen::Tcp { host, port } => {
            let failed = |reason: String| ListenError::Resolve(host.clone(), reason);
            let mut found = (host.as_str(), *port)
                .to_socket_addrs()
                .map_err(|error| failed(error.to_string()))?;
            let first = found.next().ok_or_else(|| failed("no address".to_owned()))?;
            for other in found {
                log.warning(format_args!(
                    "Found multiple addresses for {host}, {} ignored",
                    other.ip()
                ));
            }
            Ok(vec![tcp(first)])
        }
    }
}

fn stream(family: AddressFamily) -> Result<OwnedFd, ListenError> {
    rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|error| ListenError::Socket(error.into()))
}

fn bind_tcp(address: SocketAddr, written: &str, backlog: i32) -> Result<OwnedFd, ListenError> {
    let bind = |error: rustix::io::Errno| ListenError::Bind(written.to_owned(), error.into());
    let family = if address.is_ipv6() {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    // Without IPv6 this is where the fall-back to IPv4 begins.
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(bind)?;
    sockopt::set_socket_reuseaddr(&socket, true).map_err(bind)?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        sockopt::set_ipv6_v6only(&socket, false).map_err(bind)?;
    }
    rustix::net::bind(&socket, &address).map_err(bind)?;
    rustix::net::listen(&socket, backlog).map_err(|error| ListenError::Listen(written.to_owned(), error.into()))?;
    Ok(socket)
}

fn bind_unix(path: &Path, pool: &Pool) -> Result<OwnedFd, ListenError> {
    let written = path.display().to_string();
    let bind = |error: io::Error| ListenError::Bind(written.clone(), error);
    let address = SocketAddrUnix::new(path).map_err(|error| bind(error.into()))?;
    let socket = stream(AddressFamily::UNIX)?;
    if is_taken(&address)? {
        return Err(ListenError::Taken(written));
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_symlink() && !std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) => {
            // php-fpm removes whatever is there. Of a link nothing is lost that was worth something.
            return Err(bind(io::Error::from_raw_os_error(libc::EADDRINUSE)));
        }
        Ok(_) => std::fs::remove_file(path).map_err(bind)?,
        Err(_) => {}
    }
    let mode = pool.listen_mode & 0o777;
    let before = umask(Mode::from_bits_truncate(0o777 ^ mode));
    let bound = rustix::net::bind(&socket, &address);
    umask(before);
    bound.map_err(|error| bind(error.into()))?;
    if let Err(error) = set_access(path, pool).and_then(|()| {
        rustix::net::listen(&socket, pool.listen_backlog)
            .map_err(|error| ListenError::Listen(written.clone(), error.into()))
    }) {
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    Ok(socket)
}

/// Whether somebody listens there. Who does may be anybody, and let us wait: a queue that is full answers, too.
fn is_taken(address: &SocketAddrUnix) -> Result<bool, ListenError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|error| ListenError::Socket(error.into()))?;
    Ok(matches!(
        rustix::net::connect(probe, address),
        Ok(()) | Err(rustix::io::Errno::AGAIN)
    ))
}

/// A handle on the socket that was just bound; the folder may be somebody's who puts something else there meanwhile.
fn handle(path: &Path) -> io::Result<OwnedFd> {
    use rustix::fs::{FileType, Mode, OFlags, fstat, open};
    let file = open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    match FileType::from_raw_mode(fstat(&file)?.st_mode) {
        FileType::Socket => Ok(file),
        _ => Err(io::Error::other("something else has taken its place")),
    }
}

/// Says which lines about its socket a pool's ACL takes the place of.
fn say_ignored(pool: &Pool, log: &Logger) {
    if !has_acl(pool) || !matches!(pool.listen_address, Listen::Unix(_)) {
        return;
    }
    for (directive, name) in [("owner", &pool.listen_owner), ("group", &pool.listen_group)] {
        if let Some(name) = name {
            log.pool(&pool.name)
                .warning(format_args!("ACL set, listen.{directive} = '{name}' is ignored"));
        }
    }
}

fn has_acl(pool: &Pool) -> bool {
    !pool.listen_acl_users.is_empty() || !pool.listen_acl_groups.is_empty()
}

/// Owner and group of a socket that has just been bound, or the ACL in their place.
///
/// # Errors
/// When a name is unknown, something else stands at the path, or it cannot be done.
pub fn set_access(path: &Path, pool: &Pool) -> Result<(), ListenError> {
    let (name, written) = (pool.name.clone(), path.display().to_string());
    let unknown = |error| ListenError::Name(pool.name.clone(), error);
    if has_acl(pool) {
        let ids = |names: &[String], id: fn(&str) -> Result<u32, users::UserError>| -> Result<Vec<u32>, _> {
            names.iter().map(|name| id(name)).collect()
        };
        let users = ids(&pool.listen_acl_users, users::uid).map_err(unknown)?;
        let groups = ids(&pool.listen_acl_groups, users::gid).map_err(unknown)?;
        return handle(path)
            .and_then(|file| acl::grant(file.as_fd(), &users, &groups))
            .map_err(|error| ListenError::Acl(name, written, error));
    }
    let (mut uid, mut gid) = (None, None);
    if let Some(owner) = &pool.listen_owner {
        match users::digits(owner) {
            Some(number) => uid = Some(number),
            // A name brings its primary group along.
            None => {
                let user = users::find_user(owner).map_err(unknown)?;
                (uid, gid) = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
            }
        }
    }
    if let Some(group) = &pool.listen_group {
        gid = Some(users::gid(group).map_err(unknown)?);
    }
    if uid.is_some() || gid.is_some() {
        use rustix::fs::{AtFlags, chownat};
        let (uid, gid) = (uid.map(rustix::fs::Uid::from_raw), gid.map(rustix::fs::Gid::from_raw));
        handle(path)
            .and_then(|file| Ok(chownat(file, c"", uid, gid, AtFlags::EMPTY_PATH)?))
            .map_err(|error| ListenError::Owner(name, written, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::log::Stamp;

    #[test]
    fn a_socket_of_systemds_is_found_by_systemds_name_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixListener::bind(folder.path().join("sock")).unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        let log = Logger::new(Stamp::Time);
        let mut sockets = Sockets::default();
        // As if it stood there.
        let fpm = vec![(Some(socket.into()), "/run/php-pool/x.sock".to_owned())];
        let systemd = vec![(tcp.into(), "listen".to_owned())];
        sockets.adopt_all(Inherited { fpm, systemd }, &log);
        let host = "localhost".to_owned();
        for address in [
            Listen::Unix("/run/php-pool/x.sock".into()),
            Listen::Unix("/var/run/php-pool/x.sock".into()),
            Listen::Tcp { host, port },
        ] {
            sockets.get(&address, "listen", &Pool::default(), &log).unwrap();
        }
    }

    #[test]
    fn a_link_local_address_keeps_its_interface() {
        let address = Listen::Tcp {
            host: "fe80::1%lo".to_owned(),
            port: 9000,
        };
        let found = resolve(&address, &Logger::new(Stamp::Time)).unwrap();
        let [(key, Target::Tcp(SocketAddr::V6(address)))] = &found[..] else {
            panic!("{:?}", found[0].0)
        };
        assert_ne!(address.scope_id(), 0);
        assert_eq!(key, &format!("fe80::1%{}:9000", address.scope_id()));
    }
}
