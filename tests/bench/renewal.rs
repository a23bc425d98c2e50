//! `./dev bench reload`: how long pages of DokuWiki take right after a reload, when the new generation has nothing compiled yet.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Outcome;
use crate::load::Request;
use crate::support::fcgi::Connection;
use crate::support::server::{self, Kind, Server, Setup};
use crate::support::web::urlencoded;
use crate::support::wiki;

const READY: &str = "ready to handle connections";

const RELOADS: usize = 20;

/// What counts as right after a reload.
const AFTER: Duration = Duration::from_millis(500);

/// Prints the table.
pub fn run() -> Outcome<()> {
    println!(
        "| DokuWiki's start page, 4 workers, 2 clients, ms | half of all within | 99 % within | slowest |\n|---|---:|---:|---:|"
    );
    measure("php-fpm", Kind::PhpFpm, "", "")?;
    measure("php-pool", Kind::PhpPool, "", "")?;
    let cache = "opcache.file_cache = {home}/cache\n";
    measure("php-pool with opcache.file_cache", Kind::PhpPool, cache, "")?;
    measure("php-pool with reload.warm", Kind::PhpPool, "", "reload.warm = 5s\n")
}

fn measure(name: &str, kind: Kind, ini: &str, pool: &str) -> Outcome<()> {
    let base = wiki::setup(4);
    let setup: &'static Setup = Box::leak(Box::new(Setup {
        ini: format!("{}{ini}", base.ini).leak(),
        php_pool: format!("{}{pool}", base.php_pool).leak(),
        ..*base
    }));
    let root = wiki::folder();
    let www = server::www(root.path(), setup);
    wiki::unpack(&www)?;
    let home = root
        .path()
        .join(setup.name)
        .join(if kind == Kind::PhpFpm { "fpm" } else { "our" });
    fs::create_dir_all(home.join("cache"))?;
    let user = wiki::php_user();
    std::os::unix::fs::chown(home.join("cache"), user.map(|user| user.uid.as_raw()), None)?;
    let server = Server::start(kind, setup, root.path())?;
    let ask = |request: &Request| {
        let mut connection = server.connect();
        connection.send(&request.bytes);
        String::from_utf8_lossy(&connection.reply(1).stdout).into_owned()
    };
    let form = "application/x-www-form-urlencoded";
    let fields = urlencoded(&wiki::installation());
    let script = |name: &str| www.join(name).display().to_string();
    ask(&Request::new(
        &script("install.php"),
        false,
        "POST",
        form,
        fields.as_bytes(),
        false,
    ));
    let page = Request::new(&script("doku.php"), false, "GET", "", b"", false);
    if !ask(&page).contains("</html>") {
        return Err("the wiki has no start page".into());
    }

    let over = AtomicBool::new(false);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let address = server.address.clone();
    let client = || {
        while !over.load(SeqCst) {
            let begin = Instant::now();
            // php-fpm's reloads lose some; that is another figure.
            let whole = Connection::open(&address)
                .is_ok_and(|mut connection| connection.send(&page.bytes) && connection.reply(1).end.is_some());
            if whole {
                seen.lock().expect("no client panics").push((begin, begin.elapsed()));
            }
        }
    };
    let reloads = thread::scope(|scope| -> Outcome<Vec<Instant>> {
        let clients = [scope.spawn(client), scope.spawn(client)];
        let mut reloads = Vec::new();
        thread::sleep(4 * AFTER);
        for _ in 0..RELOADS {
            let before = server.log().matches(READY).count();
            let begin = Instant::now();
            kill(Pid::from_raw(server.pids()[0]), Signal::SIGUSR2)?;
            server.wait_for_log("the end of a reload", |log| log.matches(READY).count() > before);
            reloads.push(begin);
            thread::sleep(2 * AFTER);
        }
        over.store(true, SeqCst);
        for client in clients {
            client.join().map_err(|_| "a client panicked")?;
        }
        Ok(reloads)
    })?;
    let seen = seen.lock().expect("all clients have ended");
    // From the order on, as php-fpm serves nobody until it is ready.
    let after = |at: Instant| reloads.iter().any(|reload| at >= *reload && at < *reload + AFTER);
    for (what, during) in [("without reloads", false), ("right after reloads", true)] {
        let mut times: Vec<_> = seen
            .iter()
            .filter(|(at, _)| after(*at) == during)
            .map(|(_, took)| *took)
            .collect();
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        println!(
            "| {name}, {what} ({}) | {:.1} | {:.1} | {:.1} |",
            times.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
    Ok(())
}
