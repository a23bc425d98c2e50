//! The process that a script finds itself in: user, descriptors, signals, limits, children.

use crate::harness::{Case, Cases, Run, wait_until};
use crate::support::fcgi::Ended;
use crate::support::server::Setup;

static STDIO: Setup = Setup {
    name: "stdio",
    workers: 1,
    pool: "catch_workers_output = yes\n",
    ..Setup::BASE
};

static LIMITS: Setup = Setup {
    name: "process-limits",
    pool: "rlimit_files = 200\nrlimit_core = 0\nprocess.priority = 3\nchdir = {www}\n",
    ..Setup::BASE
};

pub fn cases() -> Vec<Case> {
    Cases::of("process", |c| {
        c.same("a_script_runs_as_the_user_of_the_pool", &Setup::BASE, |t| {
            let reply = t.php(
                "var_dump(posix_getuid() === posix_geteuid(), posix_getgid() === posix_getegid(), posix_getuid() === 0,
                    posix_getpwuid(posix_getuid())['name'] === getenv('USER'), posix_getgroups(), get_current_user(), umask());
                 echo file_get_contents('/proc/self/loginuid') !== false ? '' : 'no loginuid';",
            );
            assert!(reply.text().starts_with("bool(true)\nbool(true)\nbool(false)\nbool(true)\n"), "{}", reply.text());
        });
        c.same("limits_priority_and_folder_are_those_of_the_pool", &LIMITS, |t| {
            let reply = t.php(
                "$stat = explode(' ', preg_replace('/.*\\\\) /', '', file_get_contents('/proc/self/stat')));
                 echo posix_getrlimit()['soft openfiles'], ' ', $stat[16], ' ', getcwd() === __DIR__ ? 'here' : getcwd();",
            );
            assert_eq!(reply.text(), "200 3 here");
        });
        c.same("a_script_has_no_capability", &Setup::BASE, |t| {
            let reply = t.php("preg_match_all('/^Cap(Inh|Prm|Eff|Amb).*$/m', file_get_contents('/proc/self/status'), $m); echo join(' ', $m[0]);");
            assert!(!reply.text().contains(|c: char| c.is_ascii_digit() && c != '0'), "{}", reply.text());
        });
        c.same("no_signal_is_blocked_for_what_a_script_starts", &Setup::BASE, |t| {
            let reply = t.php("echo shell_exec('grep -E \"Sig(Blk|Ign)\" /proc/self/status');");
            assert!(
                reply.text().starts_with("SigBlk:\t0000000000000000\n"),
                "{}",
                reply.text()
            );
        });
        c.differed(
            "what_a_script_starts_has_no_descriptor_of_the_server",
            &Setup::BASE,
            [8, 4, 0],
            "Every program that a script of php-fpm before 8.4 starts inherits its sockets, the client's connection and the listener among \
             them; from us it has none.",
            |t| {
                let request = t.page("echo shell_exec('ls -l /proc/self/fd');");
                let reply = t.send_unrecorded(&request);
                let links = reply.text();
                // The script itself is open while it is compiled, and ls has the folder open.
                let mine = links.lines().filter_map(|line| Some(line.split_once(" -> ")?.1));
                let of_the_server: Vec<&str> = mine.filter(|to| to.starts_with("socket:") || to.contains("memfd")).collect();
                t.note(format!("sockets: {}", !of_the_server.is_empty()));
                assert_eq!(of_the_server.is_empty(), t.is_right_since([8, 4, 0]), "{links}");
            },
        );
        c.same("a_child_left_behind_does_not_hold_the_answer_up", &Setup::BASE, |t| {
            let reply = t.php(
                "exec('sleep 30 > /dev/null 2>&1 & echo $!', $out); echo 'answered'; posix_kill((int) $out[0], 9);",
            );
            assert_eq!(reply.text(), "answered");
        });
        c.same("children_can_be_fed_and_waited_for", &Setup::BASE, |t| {
            let reply = t.php(
                "$p = proc_open(['tr', 'a-z', 'A-Z'], [['pipe', 'r'], ['pipe', 'w'], ['pipe', 'w']], $pipes);
                 fwrite($pipes[0], 'shout'); fclose($pipes[0]); echo stream_get_contents($pipes[1]), proc_close($p);",
            );
            assert_eq!(reply.text(), "SHOUT0");
        });
        c.same("standard_streams_changed_by_a_script_do_not_disturb_the_next", &STDIO, |t| {
            let request = t.page(
                "foreach (['php://stdin', 'php://stdout', 'php://stderr'] as $n) { $s = fopen($n, 'r+'); stream_set_blocking($s, false); fclose($s); }
                 echo strlen(file_get_contents('php://input'));",
            );
            let request = request.post("text/plain", vec![b'x'; 100_000]);
            for _ in 0..4 {
                assert_eq!(t.send(&request).text(), "100000");
            }
        });
        c.same("standard_input_is_empty", &Setup::BASE, |t| {
            assert_eq!(
                t.php("var_dump(file_get_contents('php://stdin'));").text(),
                "string(0) \"\"\n"
            );
        });
        c.same("phpinfo_runs_to_its_end", &Setup::BASE, |t| {
            let request = t.page("phpinfo();");
            let text = t.send_unrecorded(&request).text();
            assert!(
                text.contains("FPM/FastCGI") && text.contains("cgi-fcgi") && text.ends_with("</html>"),
                "{text}"
            );
        });
        c.same("the_process_is_called_as_in_php_fpm", &Setup::BASE, |t| {
            let reply = t.php(
                "echo str_replace(\"\\0\", '', file_get_contents('/proc/self/cmdline')), '; ';
                echo substr(file_get_contents('/proc/self/comm'), 0, 7);",
            );
            assert_eq!(reply.text(), "php-fpm: pool www; php-fpm");
        });
        forked(c);
        c.same("a_working_folder_of_a_script_is_not_that_of_the_next", &STDIO, |t| {
            t.file("sub/x.php", "<?php chdir('/'); echo getcwd();");
            let (one, two) = (
                t.get("/sub/x.php"),
                t.page("echo getcwd() === __DIR__ ? 'own' : getcwd();"),
            );
            for _ in 0..3 {
                assert_eq!(t.send(&one).text(), "/");
                assert_eq!(t.send(&two).text(), "own");
            }
        });
    })
}

const FORKED: &str = "libphp has pcntl, Debian's php-fpm has not; a child that is forked there by another extension goes on as a second \
     worker, on the same connection and listener. Ours is the script's own: it has no descriptor of the worker, what it \
     prints goes nowhere, and when the script ends it ends, after its shutdown functions, with the script's exit status.";

/// Children by pcntl_fork(): what php-fpm without pcntl says to the same code is noted.
fn forked(c: &mut Cases) {
    let mut forks = |name: &str, reason: &'static str, run: fn(&mut Run)| {
        c.differs(name, &STDIO, reason, move |t| {
            if t.is_php_pool() {
                t.writable("told");
                run(t);
            } else {
                assert_eq!(t.php("echo function_exists('pcntl_fork') ? 'yes' : 'no';").text(), "no");
            }
        });
    };
    forks("a_forked_child_answers_nothing_and_ends_with_the_script", FORKED, |t| {
        let request = t
            .page(
                "echo 'before, ';
                 register_shutdown_function(function () use (&$child) {
                     if ($child === 0) file_put_contents(__DIR__ . '/told/end', fastcgi_finish_request() . fpm_get_status() . file_get_contents('php://input'));
                 });
                 if (($child = pcntl_fork()) === 0) { echo 'child'; flush(); header('X-Child: yes'); error_log('of the child'); exit(7); }
                 pcntl_waitpid($child, $status); echo 'parent, ', pcntl_wexitstatus($status), ', ', strlen(file_get_contents('php://input'));",
            )
            .post("text/plain", vec![b'x'; 100_000])
            .method("PUT")
            .keep();
        let mut connection = t.connect();
        for _ in 0..3 {
            connection.send(&request.bytes());
            let reply = t.reply(&mut connection, 1);
            assert_eq!(reply.text(), "before, parent, 7, 100000", "{reply}");
            assert!(
                reply.header("X-Child").is_empty() && reply.errors().is_empty(),
                "{reply}"
            );
            assert_eq!(
                std::fs::read(t.root.join("told/end")).expect("its shutdown function has run"),
                b"1"
            );
            std::fs::remove_file(t.root.join("told/end")).expect("the folder is ours");
        }
    });
    forks(
        "a_forked_child_has_no_descriptor_of_the_worker",
        "See above; nor has a program that it executes.",
        |t| {
            let reply = t.php(
                "if (($child = pcntl_fork()) === 0) {
                 foreach (scandir('/proc/self/fd') as $fd) $to[] = @readlink(\"/proc/self/fd/$fd\");
                 file_put_contents(__DIR__ . '/told/own', implode(\"\\n\", array_filter($to)));
                 pcntl_exec('/bin/sh', ['-c', 'ls -l /proc/self/fd > ' . __DIR__ . '/told/executed']);
             }
             pcntl_waitpid($child, $status); echo pcntl_wexitstatus($status);",
            );
            assert_eq!(reply.text(), "0");
            for name in ["own", "executed"] {
                let links = std::fs::read_to_string(t.root.join("told").join(name)).expect("it was written");
                let foreign = ["socket:", "memfd:php-pool", "eventpoll", "eventfd"];
                assert!(!foreign.iter().any(|what| links.contains(what)), "{name}: {links}");
            }
        },
    );
    forks(
        "a_forked_child_that_lives_on_is_no_worker",
        "See above; it does not hold the answer up, and signals end it as they would any process.",
        |t| {
            let request = t.page(
            "if (isset($_GET['fork']) && ($child = pcntl_fork()) === 0) { sleep(60); exit; }
             echo getmypid(), ' ', $child ?? ''; if (isset($_GET['end'])) { posix_kill((int) $_GET['end'], SIGTERM); pcntl_waitpid((int) $_GET['end'], $s); echo pcntl_wtermsig($s); }",
        );
            // The answer and the end of the connection are not held up.
            let reply = t.send_unrecorded(&request.clone().query("fork=1"));
            let text = reply.text();
            let (worker, child) = text.split_once(' ').expect("two numbers");
            for _ in 0..20 {
                let reply = t.send_unrecorded(&request);
                assert_eq!(reply.text(), format!("{worker} "));
            }
            assert!(
                std::fs::exists(format!("/proc/{child}/stat")).expect("there is a /proc"),
                "the child is gone"
            );
            // What ends another process ends it too.
            let reply = t.send_unrecorded(&request.query(&format!("end={child}")));
            assert_eq!(reply.text(), format!("{worker} 15"));
        },
    );
    forks(
        "a_forked_child_leaves_uploads_and_limits_alone",
        "See above; the uploaded files are its parent's, and a time limit that it sets is its own.",
        |t| {
            let body =
                "--b\r\nContent-Disposition: form-data; name=\"f\"; filename=\"x\"\r\n\r\n0123456789\r\n--b--\r\n";
            let request = t
            .page(
                "if (($child = pcntl_fork()) === 0) { set_time_limit(1); while (true); }
                 pcntl_waitpid($child, $status); echo filesize($_FILES['f']['tmp_name']), ' ', pcntl_wexitstatus($status);",
            )
            .post("multipart/form-data; boundary=b", body);
            assert_eq!(t.send(&request).text(), "10 255");
        },
    );
    forks(
        "a_child_forked_after_the_answer_is_no_worker_either",
        "See above; the same after fastcgi_finish_request().",
        |t| {
            let request = t.page(
                "echo 'answered'; fastcgi_finish_request();
             if (($child = pcntl_fork()) === 0) { echo 'child'; exit(3); }
             pcntl_waitpid($child, $status); file_put_contents(__DIR__ . '/told/status', pcntl_wexitstatus($status));",
            );
            let mut connection = t.connect();
            connection.send(&request.bytes());
            assert_eq!(t.reply(&mut connection, 1).text(), "answered");
            assert_eq!(connection.end(), (Vec::new(), Ended::Closed));
            let told = t.root.join("told/status");
            wait_until("the child has ended", || {
                std::fs::read(&told).is_ok_and(|text| text == b"3")
            });
            assert_eq!(t.php("echo 'next';").text(), "next");
        },
    );
}
