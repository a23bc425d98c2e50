//! The worker's executable: the zygote, the workers forked from it, and `php -v` and the like.

mod access;
mod confine;
mod conn;
mod context;
mod cpu;
mod environment;
mod exchange;
mod forked;
mod output;
mod params;
mod php;
mod script;
mod serve;
mod signals;
mod warm;
mod zygote;

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname};
use php_pool::control::{Channel, PhpSettings, Spawn, ToWorker};
use php_pool::log::Level;
use php_pool::request_id;
use php_pool::scoreboard::realtime_us;

/// Runs what the arguments ask for.
pub fn main() -> ! {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let print = match arguments.first().map(String::as_str) {
        Some("zygote") => zygote::run(),
        Some("version") => php::Print::Version,
        Some("modules") => php::Print::Modules,
        Some("info") => php::Print::Info,
        _ => {
            eprintln!("php-pool-worker is started by php-pool; it has no use of its own.");
            std::process::exit(64);
        }
    };
    let settings: PhpSettings = match arguments.get(1).map(|json| serde_json::from_str(json)) {
        None => PhpSettings::default(),
        Some(Ok(settings)) => settings,
        Some(Err(error)) => {
            eprintln!("php-pool-worker: the settings are not what php-pool writes: {error}");
            std::process::exit(64);
        }
    };
    environment::set_scan_dir(settings.scan_dir.as_deref());
    php::init();
    // PHP has said why.
    if php::start(&settings).is_err() {
        std::process::exit(70);
    }
    php::print(print);
    php::stop();
    std::process::exit(0)
}

/// Seconds that extensions may take to begin in a worker. One that hangs there would be taken for one that is about to serve.
const LONGEST_START: u32 = 60;

/// Seconds that extensions may take to end. A worker that hangs there has left, and yet its place would never be another's.
const LONGEST_END: u32 = 30;

/// From fork to the first accept: this process becomes a worker.
fn enter(generation: zygote::Generation, spawn: Spawn, fds: Vec<OwnedFd>) -> ! {
    let mut fds = fds.into_iter();
    let (Some(link), Some(stdout), Some(stderr)) = (fds.next(), fds.next(), fds.next()) else {
        give_up("Spawn came without its descriptors");
    };
    let _ = nix::unistd::dup2_stdout(stdout);
    let _ = nix::unistd::dup2_stderr(stderr);
    // Its own process group, so that what a script has started can be killed together with it.
    let _ = nix::unistd::setpgid(nix::unistd::Pid::from_raw(0), nix::unistd::Pid::from_raw(0));
    let zygote::Generation {
        config,
        listeners,
        board,
        queue,
        bell,
        log_bell,
        master,
        mapped: _,
    } = generation;
    let board: &'static _ = Box::leak(Box::new(board));
    let slot = spawn.slot as usize;
    if slot >= board.slots() {
        give_up("Spawn names a slot that does not exist");
    }
    board.slot(slot).reset();
    let wake = signals::install(board.control(slot), board.slot(slot), master)
        .unwrap_or_else(|error| give_up(&format!("signals: {error}")));
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap_or_else(|error| give_up(&format!("epoll: {error}")));

    // The gate: nothing of the pool runs before the master has put this process where it belongs.
    let link = context::Link::from(link);
    match link.receive(true) {
        Ok(received) if matches!(received.message, ToWorker::Go) => {}
        _ => std::process::exit(0), // the master is gone, or does not want us any more
    }

    signals::end_within(LONGEST_START);
    if let Err(error) = confine::worker(&config.confinement) {
        let text = format!("process.dumpable cannot be set: {error}");
        print_log(Level::Error, false, text.as_bytes(), usize::MAX);
    }
    let _ = php_pool::sys::set_title(&format!("php-fpm: {}", config.pool.title));
    php::set_time_limit_shown(config.pool.request_terminate_timeout);
    php::load_extensions(&config.php, |text| {
        print_log(Level::Error, false, text.as_bytes(), usize::MAX)
    });
    let pool = config.pool;
    let worker: &'static _ = Box::leak(Box::new(context::Worker {
        admin_values: config.php.admin_values,
        board,
        slot,
        epoll,
        link,
        queue: Channel::from(queue),
        tcp: listeners.iter().any(|listener| is_tcp(listener.as_fd())),
        listeners,
        bell,
        script_settings: php::script_settings(),
        starts_at_home: php::starts_at_home(),
        max_requests: spawn.max_requests,
        ids: request_id::Source::new(random()),
        recycle_age: spawn.recycle_age,
        status_page: RefCell::default(),
        access: RefCell::new(access::Access::new(&pool, board, slot, log_bell, master)),
        told: RefCell::default(),
        released: RefCell::default(),
        spare: RefCell::default(),
        orphaned: Cell::new(false),
        home: std::env::current_dir().unwrap_or_else(|_| "/".into()),
        pool,
    }));
    nix::unistd::alarm::cancel();
    if let Err(error) = serve::Loop::new(worker, wake).and_then(|mut serving| serving.run()) {
        give_up(&format!("epoll: {error}"));
    }
    signals::end_within(LONGEST_END);
    php::stop();
    std::process::exit(0)
}

/// Says why, and leaves with EX_SOFTWARE.
fn give_up(why: &str) -> ! {
    print_log(Level::Alert, false, why.as_bytes(), usize::MAX);
    std::process::exit(70)
}

/// Of this process alone: what the zygote had would be the same in all its workers.
fn random() -> [u64; 2] {
    let mut bytes = [[0; 8]; 2];
    // It cannot fail once the machine is up; time and pid are different enough for names.
    if rustix::rand::getrandom(bytes.as_flattened_mut(), rustix::rand::GetRandomFlags::NONBLOCK).is_err() {
        bytes = [realtime_us().to_ne_bytes(), u64::from(std::process::id()).to_ne_bytes()];
    }
    bytes.map(u64::from_ne_bytes)
}

fn is_tcp(listener: BorrowedFd) -> bool {
    use std::os::fd::AsRawFd;
    getsockname::<SockaddrStorage>(listener.as_raw_fd())
        .is_ok_and(|address| matches!(address.family(), Some(AddressFamily::Inet | AddressFamily::Inet6)))
}

/// Waits until a descriptor is readable; false when `limit` passes first.
fn readable(fd: BorrowedFd, limit: Duration) -> bool {
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            result => return result.is_ok_and(|count| count > 0),
        }
    }
}

/// A line on our own stderr, which the master reads: without the time, which it adds.
fn print_log(level: Level, from_php: bool, text: &[u8], limit: usize) {
    let mut line = format!("{}: {}", level.name(), if from_php { "PHP message: " } else { "" }).into_bytes();
    line.extend_from_slice(text);
    if line.len() >= limit {
        line.truncate(limit.saturating_sub(4));
        line.extend_from_slice(b"...");
    }
    line.push(b'\n');
    print(&line);
}

fn print(mut line: &[u8]) {
    while !line.is_empty() {
        match nix::unistd::write(std::io::stderr(), line) {
            Ok(count) => line = &line[count..],
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}
