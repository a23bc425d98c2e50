//! What a zygote or worker of php-pool can do to its master: code of the pool with the channels to the master in its hands.
//! (php-fpm has nothing of the kind: there such code is the master.)

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::Outcome::{self, Broken, Held};
use crate::attacks::{Attack, well};
use crate::site::{Plan, Site};

const PLAIN: Plan = Plan {
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
        tries: "zygote: announce workers that it has not made, with pidfds of init and of itself; their ends; a second start",
        plan: zygote("attack.zygote = forged"),
        run: |site| survives(site, Duration::from_secs(3)),
    },
    Attack {
        name: "zygote_passes_off_a_neighbour",
        tries: "zygote: pass the neighbour's worker off as its own (its pidfd in the answer to an order)",
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
        name: "zygote_passes_off_a_file",
        tries: "zygote: pass a file off as a worker's pidfd",
        plan: zygote("attack.zygote = impostor of a file"),
        run: |site| is_not_accepted(site, "its descriptor is no pidfd"),
    },
    Attack {
        name: "zygote_passes_off_nothing",
        tries: "zygote: tell of a worker without a pidfd",
        plan: zygote("attack.zygote = impostor of nothing"),
        run: |site| is_not_accepted(site, "it came without its descriptor"),
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
        name: "worker_hands_over_anything",
        tries: "worker: hand connections over that are none (listening sockets, epolls, files, sockets that do not close)",
        plan: PLAIN,
        run: |site| {
            // FromWorker::Keep { bytes: [], kept, since: 0 }, on every socket that may be the link
            site.try_run(
                "villain",
                "$keep = \"\\0\\0\\1\\0\"; $listening = attack_syscall(41, 1, 1, 0)[0]; attack_syscall(50, $listening, 1);
                 $epoll = attack_syscall(291, 0)[0]; $file = attack_syscall(2, '/dev/zero', 0)[0]; $pipe = attack_syscall(22, str_repeat('x', 8))[2];
                 $pipe = unpack('l2', $pipe)[1];
                 foreach (attack_sockets() as $link => $what) if (str_contains($what, 'seqpacket'))
                     for ($i = 0; $i < 200; $i++) foreach ([$listening, $epoll, $file, $pipe, $link] as $fd) { attack_send($link, $keep, [$fd]); attack_send($link, $keep, [$fd, $fd, $fd]); }
                 foreach (attack_sockets() as $link => $what) if (str_contains($what, 'seqpacket'))
                     { $fd = attack_lingering(); attack_send($link, $keep, [$fd]); attack_syscall(3, $fd); } echo 'sent';",
                Duration::from_secs(20),
            );
            survives(site, Duration::ZERO)
        },
    },
    Attack {
        name: "worker_fills_the_master",
        tries: "worker: have the master keep without end (connections, half a request with each)",
        plan: PLAIN,
        run: |site| {
            let before = resident(site.master());
            site.try_run(
                "villain",
                "$half = \"\\1\\4\\0\\1\\xff\\xff\\0\\0\" . str_repeat('x', 60000); $n = strlen($half);
                 $keep = \"\\0\" . chr($n & 0x7f | 0x80) . chr($n >> 7 & 0x7f | 0x80) . chr($n >> 14) . $half . \"\\1\\0\";
                 for ($i = 0; $i < 2000; $i++) { $pair = attack_syscall(53, 1, 1, 0, str_repeat('x', 8))[2]; [, $a, $b] = unpack('l2', $pair);
                     foreach (attack_sockets() as $link => $what) if (str_contains($what, 'seqpacket')) attack_send($link, $keep, [$a]);
                     attack_syscall(3, $a); } echo 'sent';",
                Duration::from_secs(20),
            );
            let grown = resident(site.master()).saturating_sub(before);
            if grown > 100 << 10 {
                return Broken(format!("it has grown by {grown} KiB"));
            }
            survives(site, Duration::ZERO)
        },
    },
];

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

/// Resident memory of a process, KiB; 0 when it is gone.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}
