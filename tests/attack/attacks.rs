//! What a tenant's own code can try against his neighbour, the master and the machine's logs.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::Outcome::{self, Broken, Held};
use crate::harness::wait_for;
use crate::site::{MASTERS_SECRET, PATIENCE, Plan, Site, VICTIMS_SECRET};
use crate::support::fcgi::{self, KEEP_CONN, PARAMS, RESPONDER, Record, STDIN, begin, stream};
use crate::support::server::{Kind, Version};

/// One attack: what it tries, in words for the table, and how.
pub struct Attack {
    pub name: &'static str,
    pub tries: &'static str,
    pub plan: Plan,
    pub run: fn(&mut Site) -> Outcome,
}

const PLAIN: Plan = Plan {
    global: "",
    villain: "",
    victim: "",
    start_up: None,
    jail: false,
    terminal: false,
};
/// The victim's worker is there from the start.
const BOTH: Plan = Plan {
    victim: "pm = static",
    ..PLAIN
};

/// What php-fpm has mended: the attack, since which release, and how it was before.
pub const MENDED: &[(&str, Version, &str)] = &[
    ("forged_status", [8, 2, 36], "the user's name stands there as it came"),
    ("smuggled_request", [8, 2, 36], "it runs"),
];

/// PHP: the names of descriptors, as the kernel knows them.
const DESCRIPTORS: &str =
    "foreach (scandir('/proc/self/fd') as $fd) { $to = @readlink(\"/proc/self/fd/$fd\"); if ($to) $fds[$fd] = $to; }";

pub const ATTACKS: &[Attack] = &[
    Attack {
        name: "opcache_read",
        tries: "run the neighbour's script of mode 0600, through opcache",
        plan: BOTH,
        run: |site| {
            let secret = site.script("victim", "echo 'the victims ', 'code';");
            fs::set_permissions(site.path(&secret), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            for _ in 0..2 {
                assert_eq!(
                    site.get("victim", &secret, "", PATIENCE).as_deref(),
                    Some("the victims code")
                );
            }
            let answer = site.get("villain", &secret, "", PATIENCE).unwrap_or_default();
            broken_if(answer.contains("the victims code"), "it runs", "permission denied")
        },
    },
    Attack {
        name: "opcache_list",
        tries: "see the neighbour's scripts in `opcache_get_status()`",
        plan: BOTH,
        run: |site| {
            site.run("victim", "echo 1;");
            let seen = site.run(
                "villain",
                "echo implode(' ', array_keys(opcache_get_status()['scripts'] ?? []));",
            );
            broken_if(seen.contains("/victim/"), "their paths are listed", "its own only")
        },
    },
    Attack {
        name: "opcache_reset",
        tries: "empty the neighbour's opcache",
        plan: BOTH,
        run: |site| {
            site.run("villain", "opcache_reset();");
            let code = "$s = opcache_get_status(false); echo (int) $s['restart_pending'] + (int) $s['restart_in_progress'] + $s['opcache_statistics']['manual_restarts'];";
            broken_if(
                site.run("victim", code) != "0",
                "`opcache_reset()` empties it for all pools",
                "its own is emptied",
            )
        },
    },
    Attack {
        name: "opcache_write",
        tries: "change the neighbour's compiled code in shared memory",
        plan: BOTH,
        run: |site| {
            let script = site.script("victim", "echo 'written by the victim';");
            for _ in 0..2 {
                site.get("victim", &script, "", PATIENCE);
            }
            site.run(
                "villain",
                "attack_patch('written by the victim', 'patched by a villain!');",
            );
            let answer = site.get("victim", &script, "", PATIENCE).unwrap_or_default();
            broken_if(
                answer != "written by the victim",
                "the victim runs the villain's code",
                "it is not mapped",
            )
        },
    },
    Attack {
        name: "opcache_lock",
        tries: "hold opcache's lock for ever",
        plan: BOTH,
        run: |site| {
            let code = format!(
                "{DESCRIPTORS} foreach ($fds as $fd => $to) if (str_contains($to, 'ZendSem') || str_contains($to, 'opcache_lock'))
                 // fcntl(F_SETLK, its first byte, for writing)
                 $r = attack_syscall(72, $fd, 6, pack('ssxxxxqqlx4', 1, 0, 0, 1, 0));
                 file_put_contents('{{dir}}/villain/locked', json_encode($r ?? 'no lock')); sleep(20);"
            );
            let script = site.script("villain", &code);
            let mut connection = site.connect("villain");
            let file = site.path(&script).display().to_string();
            connection.send(&site.request(&file, "/x.php", &[], b""));
            let deadline = Instant::now() + PATIENCE;
            // The file is there before what it says.
            let mut told = String::new();
            while told.is_empty() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
                told = fs::read_to_string(site.path("villain/locked")).unwrap_or_default();
            }
            assert!(told.starts_with("[0,"), "the lock was not there to be taken: {told}");
            let answer = site.try_run("victim", "echo 'compiled';", Duration::from_secs(10));
            broken_if(
                answer.as_deref() != Some("compiled"),
                "the neighbour's new scripts wait for it",
                "the neighbour has a lock of his own",
            )
        },
    },
    Attack {
        name: "start_up_as_root",
        tries: "have an extension started as root",
        plan: Plan {
            start_up: Some("attack.report = {dir}/villain/report"),
            ..PLAIN
        },
        run: |site| {
            // Other pools' extensions cannot write there.
            let report = fs::read_to_string(site.path("villain/report")).expect("the extension was started");
            let harmless = report
                .lines()
                .all(|line| !line.contains("uid 0,") && line.ends_with("\t0000000000000000"));
            broken_if(
                !harmless,
                "its code runs as root",
                "it starts as the pool's user, without capabilities",
            )
        },
    },
    Attack {
        name: "environment",
        tries: "read what the master was started with (environment)",
        plan: PLAIN,
        run: |site| {
            let code = "echo json_encode(getenv()), @file_get_contents('/proc/self/environ'), @file_get_contents('/proc/{zygote}/environ');";
            broken_if(
                site.run("villain", code).contains(MASTERS_SECRET),
                "/proc/self/environ has it",
                "it is not there",
            )
        },
    },
    Attack {
        name: "memory",
        tries: "find the neighbour's settings in one's own memory",
        plan: PLAIN,
        run: |site| {
            // Of what was freed the beginning is overwritten.
            let masked: String = VICTIMS_SECRET[20..]
                .bytes()
                .map(|byte| format!("\\x{:02x}", byte ^ 0x55))
                .collect();
            let found = site.run("villain", &format!("echo attack_find(\"{masked}\");"));
            broken_if(
                found != "0",
                "they are there, from before the fork",
                "they are not there",
            )
        },
    },
    Attack {
        name: "descriptors",
        tries: "use descriptors of the master or of the neighbour",
        plan: BOTH,
        run: |site| {
            let code = format!(
                "{DESCRIPTORS} echo json_encode(['fds' => $fds, 'sockets' => attack_sockets()], JSON_UNESCAPED_SLASHES);"
            );
            let told = site.run("villain", &code);
            let told: serde_json::Value = serde_json::from_str(&told).expect("it is JSON");
            let own = site.path("villain").display().to_string();
            let strange = |name: &str| {
                let harmless = [
                    "/dev/null",
                    "pipe:[",
                    "anon_inode:[event",
                    "/memfd:php-pool-scoreboard",
                    "/memfd:opcache_lock",
                    &own,
                ];
                !harmless.iter().any(|begin| name.starts_with(begin))
                    && !name.contains(".ZendSem.")
                    && !name.contains("/proc/")
            };
            let mut problems: Vec<String> = told["fds"]
                .as_object()
                .expect("a list")
                .values()
                .filter_map(|name| name.as_str())
                .filter(|name| !name.starts_with("socket:") && strange(name))
                .map(|name| name.replace(&site.path("").display().to_string(), ""))
                .collect();
            let sockets = told["sockets"].as_object().expect("a list");
            problems.extend(
                sockets
                    .values()
                    .filter_map(|text| text.as_str())
                    .filter(|text| text.starts_with("listening") && !text.contains("villain.sock"))
                    .map(|_| "the neighbour's listening socket".to_owned()),
            );
            // Beside the listener and the client's connection: the queue and the link.
            let known = if site.kind == Kind::PhpPool { 4 } else { 2 };
            if sockets.len() > known {
                problems.push(format!("{} sockets", sockets.len()));
            }
            problems.sort();
            problems.dedup();
            match problems.is_empty() {
                true => Held("none is there".to_owned()),
                false => Broken(format!("there are: {}", problems.join(", "))),
            }
        },
    },
    Attack {
        name: "proc",
        tries: "read the neighbour's, the master's or the own zygote's environment, memory and files in /proc",
        plan: BOTH,
        run: |site| {
            let code = "foreach ([{victim}, {master}, {zygote}, {victims_zygote}] as $pid) foreach (['environ', 'mem', 'maps', 'cwd/.', 'root/.', 'fd/.', 'exe', 'syscall', 'stack'] as $what)
                if ($pid && (@file_get_contents(\"/proc/$pid/$what\", false, null, 0, 1) !== false || @scandir(\"/proc/$pid/$what\"))) echo \"$what of $pid, \";";
            let read = site.run("villain", code);
            broken_if(!read.is_empty(), &read, "permission denied")
        },
    },
    Attack {
        name: "ptrace",
        tries: "trace the neighbour, the master or the own zygote; read and write their memory",
        plan: BOTH,
        run: |site| {
            // PTRACE_SEIZE, process_vm_readv, process_vm_writev, pidfd_getfd
            let code = "$text = str_repeat('x', 16); foreach ([{victim}, {master}, {zygote}, {victims_zygote}] as $pid) { if (!$pid) continue;
                $vec = pack('qq', 0x400000, 8); $fd = attack_syscall(434, $pid, 0)[0];
                foreach ([[101, 0x4206, $pid, 0, 0], [310, $pid, $vec, 1, $vec, 1, 0], [311, $pid, $vec, 1, $vec, 1, 0], [438, $fd, 3, 0]] as $call) {
                    [$r, $e] = attack_syscall(...$call); if ($r >= 0 || $e != 1) echo \"$call[0] of $pid: $r, errno $e; \"; } }";
            let told = site.run("villain", code);
            broken_if(!told.is_empty(), &told, "not permitted")
        },
    },
    Attack {
        name: "capabilities",
        tries: "become root again, or use a capability",
        plan: PLAIN,
        run: |site| {
            // setuid, setresuid, setgroups, chroot, mount, reboot: whoever may would get another error than EPERM, or none
            let code = "foreach ([[105, 0], [117, 0, 0, 0], [116, 1, pack('l', 0)], [161, '/'], [165, 'x', '/', 'no-such-file-system', 0, ''], [169, 0, 0, 0]] as $call) {
                [$r, $e] = attack_syscall(...$call); if ($r == 0 || $e != 1) echo \"system call $call[0]: $r, errno $e; \"; }
                preg_match_all('/^Cap(Inh|Prm|Eff|Amb):\\s*(.*)/m', file_get_contents('/proc/self/status'), $m, PREG_SET_ORDER);
                foreach ($m as $c) if (ltrim($c[2], '0') !== '') echo $c[0], '; '; if (posix_getgroups() !== [33]) echo 'groups ', json_encode(posix_getgroups());";
            let told = site.run("villain", code);
            broken_if(!told.is_empty(), &told, "not permitted; no capability is left")
        },
    },
    Attack {
        name: "keyring",
        tries: "read the keys of the session that the master was started in",
        plan: PLAIN,
        run: |site| {
            // keyctl(KEYCTL_SEARCH, the session's keyring, "user", "php-pool-attack"), keyctl(KEYCTL_READ)
            let told = site.run("villain", "[$key, $e] = attack_syscall(250, 10, -3, 'user', 'php-pool-attack', 0);
                [$r, $e2, $text] = attack_syscall(250, 11, $key, str_repeat(\"\\0\", 32), 32); echo $key > 0 && $r > 0 ? substr($text, 0, $r) : \"errno $e\";");
            broken_if(
                told == crate::SESSION_KEY,
                "it is handed out",
                "the pool has a keyring of its own",
            )
        },
    },
    Attack {
        name: "terminal",
        tries: "type into the terminal from which the master was started (`-F`)",
        plan: Plan {
            terminal: true,
            ..PLAIN
        },
        run: |site| {
            // open("/dev/tty"), ioctl(TIOCSTI, "x")
            let told = site.run(
                "villain",
                "[$fd, $e] = attack_syscall(2, '/dev/tty', 2); if ($fd < 0) { echo 'no terminal'; exit; }
                [$r, $e] = attack_syscall(16, $fd, 0x5412, 'x'); echo $r == 0 ? 'typed' : \"opened, but errno $e\";",
            );
            broken_if(
                told != "no terminal",
                "it is open to it: where the kernel allows TIOCSTI, it types",
                "the pool has none",
            )
        },
    },
    Attack {
        name: "signals",
        tries: "signal the master, the zygote of the neighbour and his workers",
        plan: BOTH,
        run: |site| {
            let told = site.run("villain", "foreach ([{master}, {victim}, {victims_zygote}] as $pid) foreach ([0, 9, 15] as $signal) if ($pid && posix_kill($pid, $signal)) echo \"$pid, $signal; \";");
            let well = site.neighbour_is_well();
            broken_if(!told.is_empty() || well.is_err(), &told, "not permitted")
        },
    },
    Attack {
        name: "scoreboard",
        tries: "overwrite the scoreboard, with every byte 1, 0 or 255",
        plan: PLAIN,
        run: |site| {
            for byte in [255, 0, 1] {
                let filled = site.try_run(
                    "villain",
                    &format!("echo attack_fill({byte}, 1 << 20);"),
                    Duration::from_secs(10),
                );
                if let Some(filled) = filled {
                    assert!(
                        filled.parse::<u64>().expect("a number") > 4096,
                        "nothing was overwritten"
                    );
                }
                // For what looks at it now and then.
                std::thread::sleep(Duration::from_millis(1500));
            }
            match (site.kind, well(site, "the villain's own worker is replaced, or not")) {
                // Which of them is a matter of luck.
                (Kind::PhpFpm, Broken(_)) => {
                    Broken("the neighbour's requests wait for ever, or the master does nothing any more".to_owned())
                }
                (_, outcome) => outcome,
            }
        },
    },
    Attack {
        name: "forged_access_log",
        tries: "add a line to the access log by a request",
        plan: PLAIN,
        run: |site| {
            let script = site.script("villain", "echo 1;");
            site.get("villain", &script, "a=b\nGET /forged 200\r\x1b[2J", PATIENCE)
                .expect("an answer");
            let log = lines_of(site, "villain/access.log");
            broken_if(
                log.contains("\nGET /forged") || log.contains('\x1b'),
                "the query's newline makes one",
                "control characters are escaped",
            )
        },
    },
    Attack {
        name: "forged_error_log",
        tries: "add a line of the master's own to the error log",
        plan: PLAIN,
        run: |site| {
            let forged = "[21-Nov-2026 00:00:00] ALERT: [pool victim] forged";
            site.run("villain", &format!("error_log(\"x\\n{forged}\"); fwrite(fopen('php://stderr', 'w'), \"x\\n{forged}\\n\"); fwrite(fopen('php://fd/1', 'w'), \"\\n{forged}\\n\"); echo 1;"));
            site.wait_for_log("forged");
            broken_if(
                site.log().iter().any(|line| line.starts_with(forged)),
                "it stands there",
                "each line is marked as the pool's",
            )
        },
    },
    Attack {
        name: "forged_status",
        tries: "put markup into the status page by a request",
        plan: PLAIN,
        run: |site| {
            let script = site.script("villain", "touch('{dir}/villain/runs'); usleep(3000000);");
            let mut connection = site.connect("villain");
            let file = site.path(&script).display().to_string();
            // Basic "><script>1</script>:x
            connection.send(&site.request(
                &file,
                "/slow.php",
                &[("HTTP_AUTHORIZATION", "Basic Ij48c2NyaXB0PjE8L3NjcmlwdD46eA==")],
                b"",
            ));
            let deadline = Instant::now() + PATIENCE;
            while !site.path("villain/runs").exists() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            let mut status = site.connect("villain");
            status.send(&site.request("/status", "/status", &[("QUERY_STRING", "full&html")], b""));
            let page = String::from_utf8_lossy(&status.reply(1).stdout).into_owned();
            assert!(page.contains("slow.php"), "{page}");
            broken_if(
                page.contains("<script>"),
                "the user's name stands there as it came",
                "it is escaped",
            )
        },
    },
    Attack {
        name: "smuggled_request",
        tries: "send a second request inside of a body, past the web server",
        plan: PLAIN,
        run: |site| {
            let first = site.script("villain", "echo 'first';");
            let second = site.script("villain", "touch('{dir}/villain/smuggled'); echo 'second';");
            let path = |name: &str| site.path(name).display().to_string();
            let params = |file: &str, length: &str| {
                fcgi::pairs(&[
                    ("SCRIPT_FILENAME", file),
                    ("SCRIPT_NAME", "/x.php"),
                    ("REQUEST_METHOD", "POST"),
                    ("CONTENT_LENGTH", length),
                ])
            };
            let inner = [
                begin(9, RESPONDER, KEEP_CONN).bytes(),
                stream(PARAMS, 9, &params(&path(&second), "0"), 8192),
                stream(STDIN, 9, b"", 1),
            ]
            .concat();
            let body = [b"12345".as_slice(), &inner].concat();
            let bytes = [
                begin(1, RESPONDER, KEEP_CONN).bytes(),
                stream(PARAMS, 1, &params(&path(&first), "5"), 8192),
                Record::new(STDIN, 1, body).bytes(),
                Record::new(STDIN, 1, []).bytes(),
            ]
            .concat();
            let mut connection = site.connect("villain");
            connection.send(&bytes);
            connection.reply(1);
            // An honest request shows that what came before has been dealt with.
            let next = site.script("villain", "echo 'next';");
            connection.send(&site.request(&path(&next), "/next.php", &[], b""));
            let _ = connection.record_within(Duration::from_secs(3));
            broken_if(
                site.path("villain/smuggled").exists(),
                "it runs",
                "what is beyond CONTENT_LENGTH is no request",
            )
        },
    },
    Attack {
        name: "stays_alive",
        tries: "block every signal and run for ever, beyond `request_terminate_timeout`",
        plan: Plan {
            villain: "request_terminate_timeout = 1s",
            ..PLAIN
        },
        run: |site| {
            // rt_sigprocmask(SIG_BLOCK, all)
            let script = site.script(
                "villain",
                "set_time_limit(0); ignore_user_abort(true); attack_syscall(14, 0, str_repeat(\"\\xff\", 8), 0, 8);
                file_put_contents('{dir}/villain/pid', getmypid()); while (true) usleep(1000);",
            );
            let mut connection = site.connect("villain");
            let file = site.path(&script).display().to_string();
            connection.send(&site.request(&file, "/ever.php", &[], b""));
            let read = || {
                fs::read_to_string(site.path("villain/pid"))
                    .ok()
                    .and_then(|pid| pid.parse::<i32>().ok())
            };
            let patience = if site.kind == Kind::PhpFpm {
                Duration::from_secs(8)
            } else {
                PATIENCE
            };
            let deadline = Instant::now() + patience;
            let mut pid = None;
            while Instant::now() < deadline {
                pid = pid.or_else(read);
                if pid.is_some_and(|pid| !fs::exists(format!("/proc/{pid}/stat")).unwrap_or(false)) {
                    return Held("it is killed".to_owned());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            assert!(pid.is_some(), "the script has not begun");
            Broken("SIGTERM is all that comes; it runs on".to_owned())
        },
    },
    Attack {
        name: "log_link",
        tries: "have the master write into root's file: a link in place of the access log, then log rotation",
        plan: PLAIN,
        run: |site| {
            site.run("villain", "echo 1;");
            let victim = site.path("of-root");
            fs::write(&victim, "").unwrap();
            fs::set_permissions(&victim, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            let told = site.run("villain", "unlink('{dir}/villain/access.log'); symlink('{dir}/of-root', '{dir}/villain/access.log'); echo 'linked';");
            assert_eq!(told, "linked");
            site.signal(Signal::SIGUSR1);
            site.wait_for_log("access log file");
            for _ in 0..4 {
                site.try_run("villain", "echo 2;", PATIENCE);
            }
            let text = fs::read_to_string(&victim).unwrap();
            broken_if(!text.is_empty(), "it does, as root", "the link is not followed")
        },
    },
    Attack {
        name: "log_folder",
        tries: "keep the administrator from reloading the pools: a folder in place of the access log",
        plan: PLAIN,
        run: |site| {
            let told = site.run(
                "villain",
                "unlink('{dir}/villain/access.log'); mkdir('{dir}/villain/access.log'); echo 'made';",
            );
            assert_eq!(told, "made");
            site.signal(Signal::SIGUSR2);
            site.wait_for_log("failed to open access log");
            if site.kind == Kind::PhpFpm && site.says("FPM initialization failed", PATIENCE) {
                return Broken("the reload ends it, and with it all pools".to_owned());
            }
            let ready = |line: &&String| line.contains("ready to handle connections");
            wait_for("the reload", || site.log().iter().filter(ready).count() == 2);
            well(
                site,
                "his pool goes on with the log that is open, the others are reloaded",
            )
        },
    },
    Attack {
        name: "chroot_escape",
        tries: "leave a chroot: a second chroot(), a folder's descriptor, a user namespace, a process outside",
        plan: Plan { jail: true, ..PLAIN },
        run: |site| {
            fs::write(site.path("outside"), "x").unwrap();
            // chroot, mkdir and chdir in the way of the literature; fchdir on every descriptor; unshare(CLONE_NEWUSER);
            // ptrace of a process outside with the same uid; /proc
            let code = "$out = fn() => file_exists('{dir}/outside') || file_exists('../../../../../../..{dir}/outside');
                if ($out()) echo 'at once; ';
                @mkdir('/www/x'); if (attack_syscall(161, '/www/x')[0] == 0) echo 'chroot() is allowed; '; for ($i = 0; $i < 20; $i++) @chdir('..'); if ($out()) echo 'by chroot; ';
                for ($fd = 0; $fd < 256; $fd++) if (attack_syscall(81, $fd)[0] == 0) echo \"fchdir($fd) is allowed; \";
                if (attack_syscall(272, 0x10000000)[0] == 0 && attack_syscall(161, '/www/x')[0] == 0) echo 'by a user namespace; ';
                if (attack_syscall(101, 0x4206, {villain}, 0, 0)[0] == 0) echo 'a process outside can be traced; ';
                if (attack_syscall(165, 'proc', '/www', 'proc', 0, '')[0] == 0 || file_exists('/proc/1')) echo '/proc is there; ';";
            let told = site.run("jail", code);
            broken_if(!told.is_empty(), &told, "no way out is found")
        },
    },
];

/// Held or broken, in words.
pub fn broken_if(broken: bool, how: &str, held: &str) -> Outcome {
    if broken {
        Broken(how.trim().trim_end_matches([';', ',']).to_owned())
    } else {
        Held(held.to_owned())
    }
}

/// Whether neighbour and master have noticed nothing, and the server still ends when it is told to.
pub fn well(site: &mut Site, held: &str) -> Outcome {
    match site.neighbour_is_well().and_then(|()| site.stop()) {
        Ok(()) => Held(held.to_owned()),
        Err(problem) => Broken(problem),
    }
}

/// A file with a newline before its first line, once it has one.
fn lines_of(site: &Site, name: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = fs::read_to_string(site.path(name)).unwrap_or_default();
        if !text.is_empty() || Instant::now() > deadline {
            return format!("\n{text}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
