//! The closed loop: clients of every kind against three pools, while everything happens that can.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use crate::ledger::Failure;
use crate::load::{Kind, Load, Request, SCRIPT, STALLED, Shared, begun, prepare, read_worker};
use crate::random::Random;
use crate::schedule;
use crate::support::fcgi::Address;
use crate::support::server::{self, Kind as Which, Server, Setup, free_port};
use crate::support::web::{Front, Site, Web};
use crate::support::wiki::folder;

/// What every pool has. A worker's descriptors are few enough for a script to take them all.
fn common() -> String {
    let owner = if nix::unistd::geteuid().is_root() {
        "user = www-data\ngroup = www-data\n"
    } else {
        ""
    };
    format!("{owner}rlimit_core = 0\nrlimit_files = 400\nenv[START] = $START\n")
}

/// A static pool on a unix socket, a dynamic one on TCP and an ondemand one on a unix socket, in one master.
fn setup(port: u16) -> &'static Setup {
    let common = common();
    let pool = format!(
        "{common}access.log = {{home}}/access.log\n\
         [dynamic]\n{common}listen = 127.0.0.1:{port}\npm = dynamic\npm.max_children = 8\n\
         pm.start_servers = 2\npm.min_spare_servers = 1\npm.max_spare_servers = 3\npm.max_requests = 100\n\
         [ondemand]\n{common}listen = {{home}}/ondemand\npm = ondemand\npm.max_children = 6\n\
         pm.process_idle_timeout = 1s\n"
    );
    Box::leak(Box::new(Setup {
        name: "storm",
        workers: 6,
        pool: pool.leak(),
        ini: "post_max_size = 8M\nmemory_limit = 64M\n",
        files: &[("chaos.php", SCRIPT)],
        deaths: true,
        held: vec!["{home}/sock", format!("127.0.0.1:{port}").leak(), "{home}/ondemand"].leak(),
        ..Setup::BASE
    }))
}

pub fn run(seed: u64, seconds: u64) {
    println!("chaos: seed {seed}, {seconds} s (--seed {seed} --seconds {seconds} does it again)");
    let root = folder();
    let port = free_port("127.0.0.1").expect("there is a free port");
    let setup = setup(port);
    let www = server::www(root.path(), setup);
    prepare(&www);
    let mut server = Server::start(Which::under_test(), setup, root.path()).unwrap_or_else(|e| panic!("{e}"));
    schedule::own_program(&server.home);
    let tcp = Address::Tcp("127.0.0.1".to_owned(), port);
    let ondemand = Address::Unix(server.home.join("ondemand"));
    let nginx = |pool: &Address, keep: u32, name: &str| {
        let site = Site {
            www: &www,
            pool,
            keep,
            port: None,
            script_as_path_info: false,
        };
        Web::start(Front::Nginx, &site, &root.path().join(name)).unwrap_or_else(|e| panic!("{e}"))
    };
    let webs = [nginx(&server.address, 8, "nginx-kept"), nginx(&tcp, 0, "nginx-new")];

    let script = www.join("chaos.php").display().to_string();
    let shared = Shared::new(script, seed, ["calm", "chaos"]);
    let mut load = Load::new(shared.clone());
    for (pool, address) in [("www", &server.address), ("dynamic", &tcp), ("ondemand", &ondemand)] {
        load.client(pool, address, Kind::Short, false);
        load.client(pool, address, Kind::Short, true);
        load.client(pool, address, Kind::Long, pool == "dynamic");
        load.client(pool, address, Kind::Large, pool == "www");
        load.client(pool, address, Kind::Finish, pool != "ondemand");
        load.client(pool, address, Kind::Descriptors, pool == "ondemand");
        load.client(pool, address, Kind::Memory, pool != "dynamic");
        load.client(pool, address, Kind::Slow, false);
        load.client(pool, address, Kind::Rude, false);
    }
    through(&mut load, "www", &webs[0], true);
    through(&mut load, "dynamic", &webs[1], false);

    let whole = Duration::from_secs(seconds);
    thread::sleep(whole / 4);
    shared.chaos.store(true, Relaxed);
    schedule::run(&mut server, &shared.ledger, seed, Instant::now() + whole * 3 / 4);
    let shared = load.stop();
    drop(webs);

    let stopped = server.stop();
    let (ran, twice) = begun(&www);
    let account = shared.ledger.account(&ran);
    println!("{account}");
    let lost = unfinished(&shared, &www);
    assert!(
        account.unattributed.is_empty() && lost.is_empty() && twice.is_empty(),
        "requests were lost; run twice: {twice:?}; work after fastcgi_finish_request() that never ended: {lost:?}\n\
         {account}\n{}",
        server.log()
    );
    if let Err(fault) = stopped {
        panic!("{fault}");
    }
}

pub fn a_seed_draws_one_schedule() {
    let schedule = |seed| schedule::drawn_from(seed).take(1000).collect::<Vec<_>>();
    assert_eq!(schedule(7), schedule(7));
    assert_ne!(schedule(7), schedule(8));
}

/// A client behind nginx: short requests with bodies.
fn through(load: &mut Load, pool: &'static str, web: &Web, keeps: bool) {
    let (shared, url) = (load.shared.clone(), web.url());
    let mut random = Random::new(shared.seed ^ u64::from(web.port));
    load.spawn(move || {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(STALLED));
        let agent: ureq::Agent = config.build().into();
        // The one client of a web server that keeps connections gets the same one again.
        let mut held_by = None;
        while !shared.is_over() {
            let request = Request {
                body: random.bytes(100_000),
                out: random.below(100_000) as usize,
                ..Request::plain(shared.id(), random.between(1, 20))
            };
            let (phase, began) = (shared.phase(), Instant::now());
            let answer = agent
                .post(format!("{url}/chaos.php?{}", request.query()))
                .content_type("application/octet-stream")
                .send(&request.body[..]);
            let mut silent = false;
            let outcome = answer.map_err(|e| e.to_string()).and_then(|mut answer| {
                let status = answer.status();
                // nginx's own page: it had no answer.
                silent = status == 502;
                let body = answer.body_mut().read_to_vec().map_err(|e| e.to_string())?;
                let (worker, rest) = read_worker(&body);
                match worker {
                    Some(worker) if status == 200 && rest == request.expected() => Ok(worker),
                    _ => Err(format!("status {status}, {} bytes", body.len())),
                }
            });
            match outcome {
                Ok(worker) => {
                    shared.ledger.served(phase, None);
                    held_by = Some(worker).filter(|_| keeps);
                }
                Err(what) => shared.ledger.failed(Failure {
                    pool,
                    id: request.id,
                    what: format!("request {} through nginx: {what}", request.id),
                    silent,
                    fatal: false,
                    held_by: held_by.take(),
                    began,
                    sent: began,
                    ended: Instant::now(),
                }),
            }
        }
    });
}

/// The requests whose work after fastcgi_finish_request() was lost though nobody killed their worker.
fn unfinished(shared: &Arc<Shared>, www: &Path) -> Vec<(u64, i32)> {
    let promised = shared.finishing.lock().expect("nobody panics with it").clone();
    promised
        .into_iter()
        .filter(|(id, pid)| !www.join(format!("finished/{id}")).exists() && !shared.ledger.was_killed(*pid))
        .collect()
}
