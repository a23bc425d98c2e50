//! What a zygote or worker of php-pool can do to its master: code of the pool with the channels to the master in its hands.
//! (php-fpm has nothing of the kind: there such code is the master.)

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use php_pool::control::{FromWorker, Handover};

use crate::Outcome::{self, Broken, Held};
use crate::attacks::{Attack, well};
use crate::site::{Plan, Site};
use crate::support::fcgi;

/// A program of root's that everybody may run as root, as there are some on each machine: it reads what it must not tell. What
/// it has read stands at a known address, a pointer to it before it.
const KEEPER: &str = r#"
#include <fcntl.h>
#include <unistd.h>
__attribute__((section(".keeper"))) struct { unsigned long zero, one; char *text, secret[64]; } keeper = {0, 1, keeper.secret, "?"};
int main(void)
{
    int fd = open(SECRET, O_RDONLY);
    if (fd < 0 || read(fd, keeper.secret, 63) < 1) return 1;
    close(fd);
    for (;;) pause();
}
"#;
const ROOTS_SECRET: &str = "only root may read this";

const PLAIN: Plan = Plan {
    global: "",
    villain: "",
    victim: "",
    start_up: None,
    jail: false,
    terminal: false,
};

const fn zygote(deed: &'static str) -> Plan {
    Plan {
        start_up: Some(deed),
        ..PLAIN
    }
}

pub const ATTACKS: &[Attack] = &[
    Attack {
        name: "zygote_floods",
        tries: "zygote: flood the master with messages",
        plan: zygote("attack.zygote = flood"),
        run: |site| survives(site, Duration::from_secs(3)),
    },
    Attack {
        name: "zygote_talks_nonsense",
        tries: "zygote: flood it with what are no messages",
        plan: zygote("attack.zygote = garbage"),
        run: |site| survives(site, Duration::from_secs(3)),
    },
    Attack {
        name: "zygote_sends_descriptors",
        tries: "zygote: use up its descriptors, 253 with each message",
        plan: zygote("attack.zygote = descriptors"),
        run: |site| survives(site, Duration::from_secs(3)),
    },
    Attack {
        name: "zygote_sends_what_does_not_close",
        tries: "zygote: send a socket whose `close()` takes ten minutes",
        plan: zygote("attack.zygote = lingering"),
        run: |site| survives(site, Duration::ZERO),
    },
    Attack {
        name: "zygote_forges",
        tries: "zygote: announce workers that it has not made, with the numbers of init and of itself; their ends; a second start",
        plan: zygote("attack.zygote = forged"),
        run: |site| survives(site, Duration::from_secs(3)),
    },
    Attack {
        name: "zygote_passes_off_a_neighbour",
        tries: "zygote: pass the neighbour's worker off as its own (its number in the answer to an order)",
        plan: Plan {
            victim: "pm = static",
            ..zygote("attack.zygote = impostor of pool victim")
        },
        run: |site| is_not_accepted(site, " is a child of "),
    },
    Attack {
        name: "zygote_passes_off_the_master",
        tries: "zygote: pass the master off as a worker",
        plan: zygote("attack.zygote = impostor of the master"),
        run: |site| is_not_accepted(site, " is a child of "),
    },
    Attack {
        name: "zygote_passes_off_itself",
        tries: "zygote: pass itself off as a worker",
        plan: zygote("attack.zygote = impostor of itself"),
        run: |site| is_not_accepted(site, " is a child of "),
    },
    Attack {
        name: "zygote_passes_off_the_gone",
        tries: "zygote: pass off as a worker who has ended",
        plan: zygote("attack.zygote = impostor of the gone"),
        run: |site| survives(site, Duration::from_secs(3)),
    },
    Attack {
        name: "zygote_passes_off_nothing",
        tries: "zygote: tell of a worker with a number that no process has",
        plan: zygote("attack.zygote = impostor of nothing"),
        run: |site| is_not_accepted(site, "Invalid argument (22)"),
    },
    Attack {
        name: "zygote_ends_workers",
        tries: "zygote: say of each worker, as soon as it is ordered, that it has ended",
        plan: zygote("attack.zygote = impostor of the dead"),
        run: |site| {
            let begun = Instant::now();
            site.wait_for_log("exited with code 0");
            std::thread::sleep(Duration::from_secs(5));
            match too_many(site, begun, "exited with code 0") {
                Some(how) => Broken(how),
                None => well(site, "the neighbour and the master go on; the log is bounded"),
            }
        },
    },
    Attack {
        name: "zygote_borrows_the_masters_eyes",
        tries: "zygote: pass a setuid program off as a worker, and have the master read its memory for the slow log",
        plan: Plan {
            villain: "request_slowlog_timeout = 1s\nslowlog = {dir}/villain/slow.log",
            ..zygote("attack.zygote = impostor of the program {dir}/keeper")
        },
        run: |site| {
            make_keeper(site);
            // The first look may come before the program has read anything; each further zygote is one more.
            let begun = Instant::now();
            while site
                .log()
                .iter()
                .filter(|line| line.contains("finished trace of"))
                .count()
                < 4
            {
                assert!(begun.elapsed() < crate::site::PATIENCE, "{:#?}", site.log());
                std::thread::sleep(Duration::from_millis(5));
            }
            let record = fs::read_to_string(site.path("villain/slow.log")).unwrap();
            assert!(record.contains("script_filename"), "{record}");
            match record.contains(ROOTS_SECRET) {
                true => Broken("what it has read stands in the slow log".to_owned()),
                false => survives(site, Duration::ZERO),
            }
        },
    },
    Attack {
        name: "zygote_is_silent",
        tries: "zygote: never get ready",
        plan: zygote("attack.zygote = silence"),
        run: |site| {
            site.wait_for_log("ready to handle connections");
            site.signal(Signal::SIGUSR2);
            site.wait_for_log("Reloading in progress");
            survives(site, Duration::ZERO)
        },
    },
    Attack {
        name: "worker_floods_the_log",
        tries: "worker: fill the master's log, by what it prints and by what it sends",
        plan: PLAIN,
        run: |site| {
            // FromWorker::Log(ALERT, not PHP's, "flood", no request), on every socket that may be the link
            let code = "$end = microtime(true) + 8; $lines = str_repeat(\"flood\\n\", 1000); $log = \"\\2\\4\\0\\5flood\\0\\0\\0\\0\";
                while (microtime(true) < $end) { fwrite(STDERR_, $lines);
                    foreach (attack_sockets() as $link => $what) if (str_contains($what, 'connected seqpacket')) for ($i = 0; $i < 100; $i++) attack_send($link, $log); }
                echo 'done';";
            let code = code.replace("STDERR_", "$GLOBALS['err'] ??= fopen('php://stderr', 'w')");
            let begun = Instant::now();
            let done = site.try_run("villain", &code, Duration::from_secs(60));
            let log = site.log();
            assert_eq!(
                done.as_deref(),
                Some("done"),
                "{:#?}",
                &log[log.len().saturating_sub(9)..]
            );
            site.wait_for_log("of its processes were suppressed: they came too fast");
            if let Some(how) = too_many(site, begun, "flood") {
                return Broken(how);
            }
            match well(site, "the log is bounded, and says how much it has left out") {
                Held(how) if site.log().iter().any(|line| line.contains("lines about it were")) => Broken(how),
                outcome => outcome,
            }
        },
    },
    Attack {
        name: "worker_keeps_its_output_from_being_read",
        tries: "worker: leave a process behind that keeps the lock of the pipe into which it prints",
        plan: PLAIN,
        run: |site| {
            // socketpair, fork, setsid, splice: from a socket that is silent, into stderr. The others fill that, so that it is read.
            // Its own worker hangs, too.
            site.try_run(
                "villain",
                "$pair = attack_syscall(53, 1, 1, 0, str_repeat('x', 8))[2]; $silent = unpack('l2', $pair)[1];
                 for ($i = 0; $i < 3; $i++) exec('yes 1>&2 &');
                 if (attack_syscall(57)[0] == 0) { attack_syscall(112); while (true) attack_syscall(275, $silent, 0, 2, 0, 4096, 0); }",
                Duration::from_secs(1),
            );
            let deadline = Instant::now() + crate::site::PATIENCE;
            while !hangs(site.master()) {
                assert!(Instant::now() < deadline, "nobody waits for the lock");
                std::thread::sleep(Duration::from_millis(5));
            }
            well(site, "the neighbour and the master go on, and the master ends")
        },
    },
    Attack {
        name: "worker_makes_the_listener_wait",
        tries: "worker: make the pool's listener wait for connections, and with it whoever accepts there",
        plan: PLAIN,
        run: |site| {
            // fcntl(F_SETFL, O_RDWR)
            let told = site.run(
                "villain",
                "foreach (attack_sockets() as $fd => $what) if (str_contains($what, 'listening stream')) echo attack_syscall(72, $fd, 4, 2)[0];",
            );
            assert_eq!(told, "0", "the listener is found");
            // Both workers are at work, and more clients come: that is when the master accepts.
            let script = site.script(
                "villain",
                "touch('{dir}/villain/busy-' . getmypid()); usleep(5000000); echo 1;",
            );
            let file = site.path(&script).display().to_string();
            let request = site.request(&file, "/busy.php", &[], b"");
            let come = || {
                let mut connection = site.connect("villain");
                assert!(connection.send(&request));
                connection
            };
            let mut waiting = vec![come(), come()];
            let busy = || fs::read_dir(site.path("villain")).unwrap().flatten();
            let begun = Instant::now();
            while busy()
                .filter(|file| file.file_name().to_string_lossy().starts_with("busy-"))
                .count()
                < 2
            {
                assert!(
                    begun.elapsed() < crate::site::PATIENCE,
                    "the villain's workers do not work"
                );
                // A worker that waits there has what came before it in its waiting room.
                if begun.elapsed() > Duration::from_millis(100) * waiting.len() as u32 {
                    waiting.push(come());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            waiting.extend([come(), come()]);
            survives(site, Duration::from_secs(1))
        },
    },
    Attack {
        name: "worker_counts_beyond_numbers",
        tries: "worker: have served more requests than a number holds",
        plan: PLAIN,
        run: |site| {
            let script = site.script(
                "villain",
                "touch('{dir}/villain/filled'); attack_fill(255, 1 << 20); usleep(6000000);",
            );
            let file = site.path(&script).display().to_string();
            let mut connection = site.connect("villain");
            connection.send(&site.request(&file, "/fill.php", &[], b""));
            let begun = Instant::now();
            while !site.path("villain/filled").exists() {
                assert!(
                    begun.elapsed() < crate::site::PATIENCE,
                    "the villain's script has not begun"
                );
                std::thread::sleep(Duration::from_millis(5));
            }
            // Its generation drains, and the status counts both.
            site.signal(Signal::SIGUSR2);
            site.wait_for_log("Reloading in progress");
            site.run("villain", "echo 1;");
            let mut status = site.connect("villain");
            status.send(&site.request("/status", "/status", &[], b""));
            let _ = status.record_within(crate::site::PATIENCE);
            survives(site, Duration::ZERO)
        },
    },
    Attack {
        name: "worker_hands_over_anything",
        tries: "worker: hand connections over that are none (listening sockets, epolls, files, sockets that do not close)",
        plan: PLAIN,
        run: |site| {
            // On every socket that may be the link.
            let code = format!("$keep = {};", keep("", b""));
            site.try_run(
                "villain",
                &(code + "$listening = attack_syscall(41, 1, 1, 0)[0]; attack_syscall(50, $listening, 1);
                 $epoll = attack_syscall(291, 0)[0]; $file = attack_syscall(2, '/dev/zero', 0)[0]; $pipe = attack_syscall(22, str_repeat('x', 8))[2];
                 $pipe = unpack('l2', $pipe)[1];
                 foreach (attack_sockets() as $link => $what) if (str_contains($what, 'seqpacket'))
                     for ($i = 0; $i < 200; $i++) foreach ([$listening, $epoll, $file, $pipe, $link] as $fd) { attack_send($link, $keep, [$fd]); attack_send($link, $keep, [$fd, $fd, $fd]); }
                 foreach (attack_sockets() as $link => $what) if (str_contains($what, 'seqpacket'))
                     { $fd = attack_lingering(); attack_send($link, $keep, [$fd]); attack_syscall(3, $fd); } echo 'sent';"),
                Duration::from_secs(20),
            );
            survives(site, Duration::ZERO)
        },
    },
    Attack {
        name: "worker_cuts_the_scoreboard",
        tries: "worker: cut the scoreboard's memory short, stretch it, punch holes into it",
        plan: PLAIN,
        run: |site| {
            let done = site.try_run(
                "villain",
                "$done = 0; foreach (scandir('/proc/self/fd') as $fd) if (str_contains((string) @readlink(\"/proc/self/fd/$fd\"), 'memfd:php-pool')) {
                     attack_syscall(285, (int) $fd, 3, 0, 1 << 30); attack_syscall(77, (int) $fd, 1 << 40); attack_syscall(77, (int) $fd, 0); $done++;
                 } echo $done;",
                Duration::from_secs(20),
            );
            assert_eq!(done.as_deref(), Some("1"), "the descriptor is found");
            survives(site, Duration::from_secs(1))
        },
    },
    Attack {
        name: "worker_fills_the_master",
        tries: "worker: have the master keep without end (connections, half a request with each)",
        plan: PLAIN,
        run: |site| {
            let before = resident(site.master());
            const HEADER: &[u8] = b"\x01\x04\x00\x01\xff\xff\x00\x00";
            let half = [HEADER, &[b'x'; 60_000]].concat();
            let code = format!(
                "$half = hex2bin('{}') . str_repeat('x', 60000); $keep = {};",
                hex(HEADER),
                keep("$half", &half)
            );
            site.try_run(
                "villain",
                &(code + "for ($i = 0; $i < 2000; $i++) { $pair = attack_syscall(53, 1, 1, 0, str_repeat('x', 8))[2]; [, $a, $b] = unpack('l2', $pair);
                     foreach (attack_sockets() as $link => $what) if (str_contains($what, 'seqpacket')) attack_send($link, $keep, [$a]);
                     attack_syscall(3, $a); } echo 'sent';"),
                Duration::from_secs(20),
            );
            let grown = resident(site.master()).saturating_sub(before);
            if grown > 100 << 10 {
                return Broken(format!("it has grown by {grown} KiB"));
            }
            survives(site, Duration::ZERO)
        },
    },
    Attack {
        name: "worker_takes_all_descriptors",
        tries: "worker: have the master keep connections with the descriptors that the neighbour's clients need",
        plan: Plan {
            global: "rlimit_files = 1024",
            villain: "rlimit_files = 20000",
            victim: "pm = static\npm.max_children = 1\npm.status_path = /status",
            ..PLAIN
        },
        run: |site| {
            // One end of a pair, which stays open as long as the worker lives.
            let before = descriptors(site);
            let code = format!(
                "$keep = {}; [, $a, $b] = unpack('l2', attack_syscall(53, 1, 1, 0, str_repeat('x', 8))[2]);
                 $many = 1500; {SEND_MANY} echo 'sent';",
                keep("", b"")
            );
            assert_eq!(site.run("villain", &code), "sent");
            wait(site, "the master keeps some", |site| descriptors(site) > before + 100);
            // The neighbour's only worker is at work, and clients come.
            let code = "touch('{dir}/victim/busy'); while (!file_exists('{dir}/victim/go')) { usleep(1000); clearstatcache(); } echo 'served';";
            let script = site.script("victim", code);
            let request = site.request(&site.path(&script).display().to_string(), "/busy.php", &[], b"");
            let come = |request: &[u8]| {
                let mut connection = site.connect("victim");
                connection.send(request);
                connection
            };
            let mut clients = vec![come(&request)];
            wait(site, "the victim's worker is busy", |site| {
                site.path("victim/busy").exists()
            });
            clients.extend((0..5).map(|_| come(&request)));
            // The master answers, and has taken who came before.
            let mut status = come(&site.request("/status", "/status", &[], b""));
            if status.record_within(crate::site::PATIENCE).is_none() {
                return Broken("the neighbour's clients are turned away".to_owned());
            }
            fs::write(site.path("victim/go"), "").unwrap();
            for mut client in clients {
                if client.record_within(crate::site::PATIENCE).is_none() {
                    return Broken("a client of the neighbour's is turned away".to_owned());
                }
            }
            survives(site, Duration::ZERO)
        },
    },
    Attack {
        name: "worker_has_too_many_passed_on",
        tries: "worker: have so many connections passed on to nobody that the kernel passes on no other descriptors for the master",
        plan: Plan {
            global: "rlimit_files = 512",
            villain: "rlimit_files = 20000",
            ..PLAIN
        },
        run: |site| {
            // Both workers have something to do, and what is handed over are requests, which are passed on at once.
            let request = fcgi::request(0, &[("SCRIPT_NAME", "/x")], b"");
            let code = format!(
                "$request = hex2bin('{}'); $keep = {}; [, $a, $b] = unpack('l2', attack_syscall(53, 1, 1, 0, str_repeat('x', 8))[2]);
                 $many = 1500; {SEND_MANY}
                 touch('{{dir}}/villain/sent-' . getmypid()); sleep(600);",
                hex(&request),
                keep("$request", &request)
            );
            let script = site.script("villain", &code);
            let begin = site.request(&site.path(&script).display().to_string(), "/x.php", &[], b"");
            let busy = || {
                let mut connection = site.connect("villain");
                connection.send(&begin);
                connection
            };
            let _busy = [busy(), busy()];
            wait(site, "both have sent", |site| {
                let files = fs::read_dir(site.path("villain")).unwrap().flatten();
                files
                    .filter(|file| file.file_name().to_string_lossy().starts_with("sent-"))
                    .count()
                    == 2
            });
            survives(site, Duration::ZERO)
        },
    },
];

/// PHP: `$keep` with the descriptor `$a`, `$many` times, on the link (the queue is there before it). Others of the same user may have too
/// many descriptors under way for a moment.
const SEND_MANY: &str =
    "$link = max(array_keys(array_filter(attack_sockets(), fn($what) => str_contains($what, 'connected seqpacket'))));
     while ($many > 0) if (attack_send($link, $keep, [$a])) usleep(1000); else $many--;";

/// What a worker says to hand over a connection, in PHP; `name` is that of what has been read of it.
fn keep(name: &str, bytes: &[u8]) -> String {
    let message = postcard::to_stdvec(&FromWorker::Keep(Handover {
        bytes: bytes.to_vec(),
        kept: true,
        ..Handover::default()
    }));
    let message = message.unwrap();
    if name.is_empty() {
        return format!("hex2bin('{}')", hex(&message));
    }
    let at = message.windows(bytes.len()).position(|window| window == bytes).unwrap();
    let (before, after) = (&message[..at], &message[at + bytes.len()..]);
    format!("hex2bin('{}') . {name} . hex2bin('{}')", hex(before), hex(after))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the log has more lines with a text than one pool may have: ten seconds' worth at once, and each second as many.
fn too_many(site: &Site, begun: Instant, text: &str) -> Option<String> {
    let lines = site.log().iter().filter(|line| line.contains(text)).count();
    let most = 3_000 * (11 + begun.elapsed().as_secs() as usize);
    (lines > most).then(|| format!("{lines} lines are written in {:?}", begun.elapsed()))
}

/// Makes the program of root's.
fn make_keeper(site: &Site) {
    let (secret, source, program) = (site.path("secret"), site.path("keeper.c"), site.path("keeper.new"));
    fs::write(&secret, ROOTS_SECRET).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&source, KEEPER).unwrap();
    let made = Command::new("gcc")
        .args(["-static", "-no-pie", "-Wl,--section-start=.keeper=0x10000000"])
        .arg(format!("-DSECRET=\"{}\"", secret.display()))
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .status();
    assert!(made.expect("gcc is there").success(), "the program does not compile");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    // Somebody waits for it.
    fs::rename(&program, site.path("keeper")).unwrap();
}

/// Whether the master refuses the villain's worker, with this reason, and harms nobody for it.
fn is_not_accepted(site: &mut Site, reason: &str) -> Outcome {
    site.wait_for_log("what it calls workers are none");
    let refused = |line: &String| line.contains("is not accepted: ") && line.contains(reason);
    assert!(site.log().iter().any(refused), "{}", site.log().join("\n"));
    let before = site.below("pool victim");
    let outcome = survives(site, Duration::from_secs(2));
    // Not after the end of the server: the log then has the end of each.
    match site.log().iter().find(|line| {
        before
            .iter()
            .any(|pid| line.contains(&format!("child {pid} exited on signal")))
    }) {
        Some(line) => Broken(line.clone()),
        None => outcome,
    }
}

/// Waits for what has to happen.
fn wait(site: &Site, what: &str, happened: impl Fn(&Site) -> bool) {
    let begun = Instant::now();
    while !happened(site) {
        assert!(begun.elapsed() < crate::site::PATIENCE, "{what}: {:#?}", site.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How many descriptors the master has.
fn descriptors(site: &Site) -> usize {
    fs::read_dir(format!("/proc/{}/fd", site.master())).map_or(0, Iterator::count)
}

/// Whether all goes on for the others, after the villain has had his time; nor has the master grown, or its log.
fn survives(site: &mut Site, time: Duration) -> Outcome {
    let before = resident(site.master());
    std::thread::sleep(time);
    let (after, lines) = (resident(site.master()), site.log().len());
    let outcome = well(site, "the neighbour and the master go on");
    if let Held(_) = &outcome {
        if after > before + (100 << 10) {
            return Broken(format!("the master has grown from {before} to {after} KiB"));
        }
        if lines > 2000 {
            return Broken(format!(
                "the log has {lines} lines: {}",
                site.log().last().cloned().unwrap_or_default()
            ));
        }
    }
    outcome
}

/// Whether a thread of a process waits where no signal reaches it.
fn hangs(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok())
        .any(|stat| stat.contains(") D "))
}

/// Resident memory of a process, KiB; 0 when it is gone.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}
