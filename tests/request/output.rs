//! Output: buffers, `flush()`, sizes, over unix sockets and TCP; and when the client is gone.

use std::time::Duration;

use crate::harness::{Case, Cases, Run, wait_until};
use crate::support::fcgi::{Ended, STDERR, STDOUT};
use crate::support::server::{Listen, Setup, php_fpm_release};

static TCP: Setup = Setup {
    name: "tcp",
    listen: Listen::Tcp("127.0.0.1"),
    ..Setup::BASE
};

static TCP6: Setup = Setup {
    name: "tcp6",
    listen: Listen::Tcp("::1"),
    ..Setup::BASE
};

static DYING: Setup = Setup {
    name: "dying",
    workers: 1,
    deaths: true,
    ..Setup::BASE
};

static DYING_TCP: Setup = Setup {
    name: "dying-tcp",
    listen: Listen::Tcp("127.0.0.1"),
    ..DYING
};

static IMPLICIT: Setup = Setup {
    name: "implicit-flush",
    ini: "implicit_flush = 1\n",
    ..Setup::BASE
};

static HANDLER: Setup = Setup {
    name: "output-handler",
    ini: "output_handler = htmlspecialchars\n",
    ..Setup::BASE
};

pub fn cases() -> Vec<Case> {
    Cases::of("output", |c| {
        buffers(c);
        sizes(c);
        aborted(c);
    })
}

fn buffers(c: &mut Cases) {
    c.same("a_script_that_prints_nothing_sends_headers", &Setup::BASE, |t| {
        let reply = t.php("");
        assert_eq!((reply.headers().len(), reply.text().as_str()), (2, ""));
    });
    c.same("text_outside_of_php_is_sent_as_it_is", &Setup::BASE, |t| {
        t.file("t.php", b"before\r\n<?php echo 'in' ?>\nafter\0\xff\n".as_slice());
        let request = t.get("/t.php");
        assert_eq!(t.send(&request).body(), b"before\r\ninafter\0\xff\n");
    });
    c.same("a_file_without_a_byte_is_a_script", &Setup::BASE, |t| {
        t.file("empty.php", "");
        let request = t.get("/empty.php");
        assert_eq!(t.send(&request).text(), "");
    });
    c.same(
        "a_line_that_names_an_interpreter_is_text_like_any_other",
        &Setup::BASE,
        |t| {
            t.file("sh.php", "#!/usr/bin/php\n<?php echo __LINE__;");
            let request = t.get("/sh.php");
            assert_eq!(t.send(&request).text(), "#!/usr/bin/php\n2");
        },
    );
    c.same("flushed_output_arrives_before_the_script_ends", &Setup::BASE, |t| {
        let gate = t.writable("gate").join("open");
        let request = t.page(
            "echo 'first'; flush(); while (!file_exists('gate/open')) { usleep(1000); clearstatcache(); } echo 'second';",
        );
        let mut connection = t.connect();
        connection.send(&request.bytes());
        let first = connection.next_record().expect("flushed");
        assert_eq!(first.kind, STDOUT);
        assert!(first.content.ends_with(b"\r\n\r\nfirst"), "{}", first.content.escape_ascii());
        std::fs::write(gate, "").expect("the folder is ours");
        let mut second = connection.next_record().expect("the end");
        while second.content.is_empty() {
            second = connection.next_record().expect("the end");
        }
        assert_eq!((second.kind, second.content.as_slice()), (STDOUT, b"second".as_slice()));
    });
    // nginx takes the end of a connection for that of the page, where it has not asked for one that is kept.
    for (name, setup) in [
        ("half_an_answer_is_not_taken_for_all_of_it", &DYING),
        ("half_an_answer_is_not_taken_for_all_of_it_over_tcp", &DYING_TCP),
    ] {
        c.same(name, setup, |t| {
            let request = t.page("echo 'part'; flush(); usleep(50000); posix_kill(getmypid(), 9); sleep(60);");
            let form = request.clone().post("application/x-www-form-urlencoded", "a=1");
            // One who writes late waits among others for his turn.
            for (request, silence) in [(&request, 0), (&form, 0), (&request, 300)] {
                let mut connection = t.connect();
                connection.pause(Duration::from_millis(silence));
                connection.send(&request.bytes());
                let first = connection.next_record().expect("the beginning of an answer");
                assert!(first.content.ends_with(b"part"), "{}", first.content.escape_ascii());
                assert_eq!(connection.end().1, Ended::Reset);
            }
        });
    }
    c.same("a_page_that_comes_slowly_is_not_held_back", &Setup::BASE, |t| {
        let gate = t.writable("gate").join("open");
        let request = t.page(
            "for ($n = 0; $n < 20; $n++) { echo str_repeat('x', 1000); usleep(10000); }
             while (!file_exists('gate/open')) { usleep(1000); clearstatcache(); }",
        );
        let mut connection = t.connect();
        connection.send(&request.bytes());
        let mut seen = 0;
        while seen < 8000 {
            seen += connection.next_record().expect("a part").content.len();
        }
        std::fs::write(gate, "").expect("the folder is ours");
        while seen < 20_000 {
            seen += connection.next_record().expect("the rest").content.len();
        }
    });
    c.same("flush_without_output_sends_the_headers_since_8_4", &Setup::BASE, |t| {
        let reply =
            t.php("header('X-A: 1'); flush(); var_dump(headers_sent()); http_response_code(404); header('X-B: 2');");
        let sent = format!("bool({})\n", php_fpm_release() >= [8, 4, 0]);
        assert_eq!((reply.status(), reply.header("X-B"), reply.text()), (200, vec![], sent));
    });
    c.same(
        "flush_before_a_fatal_error_leaves_time_for_its_status_before_8_4",
        &Setup::BASE,
        |t| {
            let reply = t.php("header('X-A: 1'); flush(); no_such_function();");
            assert_eq!(reply.status() == 200, php_fpm_release() >= [8, 4, 0]);
        },
    );
    c.same("implicit_flush_sends_every_echo", &IMPLICIT, |t| {
        let gate = t.writable("gate").join("open");
        let request = t
            .page("echo 'first'; while (!file_exists('gate/open')) { usleep(1000); clearstatcache(); } echo 'second';");
        let mut connection = t.connect();
        connection.send(&request.bytes());
        let mut seen = Vec::new();
        while !seen.ends_with(b"first") {
            seen.extend(connection.next_record().expect("flushed").content);
        }
        std::fs::write(gate, "").expect("the folder is ours");
        assert_eq!(t.reply(&mut connection, 1).stdout, b"second");
    });
    c.same("output_handlers_work_on_all_of_it", &Setup::BASE, |t| {
        let reply =
            t.php("ob_start(fn ($b) => strtoupper($b)); echo 'a'; ob_start(); echo 'b'; echo ob_get_clean(), 'c';");
        assert_eq!(reply.text(), "ABC");
    });
    c.same("a_handler_of_php_ini_works_on_all_of_it", &HANDLER, |t| {
        assert_eq!(t.php("echo '<', '>';").text(), "&lt;&gt;");
    });
    c.same("buffers_left_open_are_flushed_at_the_end", &Setup::BASE, |t| {
        assert_eq!(
            t.php("ob_start(); echo 'a'; ob_start(); echo 'b'; ob_start(null, 2); echo 'cd';")
                .text(),
            "abcd"
        );
    });
    c.same("output_can_be_compressed", &Setup::BASE, |t| {
        let request = t
            .page("ini_set('zlib.output_compression', 1); echo str_repeat('x', 100000);")
            .set("HTTP_ACCEPT_ENCODING", "gzip");
        let reply = t.send(&request);
        assert_eq!(
            (
                reply.header("Content-Encoding"),
                reply.body().starts_with(&[0x1f, 0x8b])
            ),
            (vec!["gzip".into()], true)
        );
    });
    c.same("php_output_and_print_functions_all_write_to_the_answer", &Setup::BASE, |t| {
        let reply = t.php(
            "echo 1; print 2; printf('%d', 3); file_put_contents('php://output', '4'); fwrite(fopen('php://output', 'w'), 5);
             readfile('data:,6'); fpassthru(fopen('data:,7', 'r')); vprintf('%s', ['8']); var_export(9);",
        );
        assert_eq!(reply.text(), "123456789");
    });
    c.same("standard_output_of_the_process_is_not_the_answer", &Setup::BASE, |t| {
        let reply = t.php("file_put_contents('php://stdout', 'lost'); system('echo told'); passthru('printf raw'); echo `echo caught`;");
        assert_eq!(reply.text(), "told\nrawcaught\n");
    });
    c.same(
        "errors_come_before_output_that_was_buffered_after_them",
        &Setup::BASE,
        |t| {
            let reply = t.php("error_log('one'); echo 'a'; error_log('two'); echo 'b';");
            let mut kinds: Vec<u8> = reply
                .records
                .iter()
                .filter(|r| !r.content.is_empty())
                .map(|r| r.kind)
                .collect();
            kinds.dedup();
            assert_eq!(kinds[0], STDERR);
            assert_eq!(
                (reply.text().as_str(), reply.errors().as_str()),
                ("ab", "PHP message: one; PHP message: two")
            );
        },
    );
}

fn sizes(c: &mut Cases) {
    /// Prints a body of `n` bytes in pieces of `s`.
    const PRINT: &str = "$b = ''; for ($i = 0; strlen($b) < $_GET['n']; $i++) $b .= \"$i,\"; \
                         foreach (str_split(substr($b, 0, $_GET['n']), $_GET['s']) as $p) echo $p;";
    let bodies = |c: &mut Cases, name: &str, setup: &'static Setup, sizes: &'static [(usize, usize)]| {
        c.same(name, setup, move |t| {
            let request = t.page(PRINT);
            for (length, piece) in sizes {
                let reply = t.send(&request.clone().query(&format!("n={length}&s={piece}")));
                assert_eq!(reply.body().len(), *length, "in pieces of {piece}");
            }
        });
    };
    const AROUND_8K: &[(usize, usize)] = &[
        (8000, 9000),
        (8100, 9000),
        (8183, 9000),
        (8184, 9000),
        (8185, 9000),
        (8191, 9000),
        (8192, 9000),
        (8193, 9000),
        (8200, 100),
        (16384, 8192),
    ];
    const AROUND_64K: &[(usize, usize)] = &[
        (65527, 70000),
        (65528, 70000),
        (65529, 70000),
        (65535, 70000),
        (65536, 70000),
        (65537, 70000),
        (131_056, 1_000_000),
        (131_072, 65_536),
        (200_000, 333),
    ];
    bodies(
        c,
        "answers_around_eight_kilobytes_arrive_whole",
        &Setup::BASE,
        AROUND_8K,
    );
    bodies(c, "answers_around_64_kilobytes_arrive_whole", &Setup::BASE, AROUND_64K);
    bodies(
        c,
        "answers_around_eight_kilobytes_arrive_whole_over_tcp",
        &TCP,
        AROUND_8K,
    );
    bodies(c, "answers_around_64_kilobytes_arrive_whole_over_tcp", &TCP, AROUND_64K);
    bodies(
        c,
        "answers_arrive_whole_over_ip_version_6",
        &TCP6,
        &[(10, 10), (100_000, 100_000)],
    );
    let megabytes = |c: &mut Cases, name: &str, setup: &'static Setup, count: usize| {
        c.same(name, setup, move |t| {
            let request = t.page(
                "mt_srand(7); $p = ''; for ($i = 0; $i < 16384; $i++) $p .= pack('N', mt_rand());
                 for ($i = 0; $i < $_GET['n'] * 16; $i++) echo $p;",
            );
            let reply = t.send(&request.query(&format!("n={count}")));
            assert_eq!(reply.body().len(), count << 20);
        });
    };
    megabytes(c, "an_answer_of_a_megabyte_arrives_whole", &Setup::BASE, 1);
    megabytes(c, "an_answer_of_ten_megabytes_arrives_whole", &Setup::BASE, 10);
    megabytes(c, "an_answer_of_a_megabyte_arrives_whole_over_tcp", &TCP, 1);
    megabytes(c, "an_answer_of_ten_megabytes_arrives_whole_over_tcp", &TCP, 10);
    c.same("one_echo_of_ten_megabytes_arrives_whole", &Setup::BASE, |t| {
        assert_eq!(t.php("echo str_repeat('0123456789', 1 << 20);").body().len(), 10 << 20);
    });
    c.same("a_file_of_a_few_megabytes_is_passed_on", &Setup::BASE, |t| {
        t.file("big.bin", vec![7; 5_000_000]);
        assert_eq!(t.php("readfile('big.bin');").body().len(), 5_000_000);
    });
    c.same("thousands_of_small_flushes_arrive_in_order", &Setup::BASE, |t| {
        let text = t.php("for ($i = 0; $i < 2000; $i++) { echo $i, ','; flush(); }").text();
        assert!(text.starts_with("0,1,2,") && text.ends_with(",1999,"));
    });
    c.same("errors_of_many_kilobytes_arrive_between_output", &Setup::BASE, |t| {
        let reply =
            t.php("for ($i = 0; $i < 300; $i++) { echo str_repeat('o', 100); error_log(str_repeat('e', 100)); }");
        assert_eq!((reply.body().len(), reply.stderr.len()), (30_000, 300 * 113 + 299 * 2));
    });
    c.same("a_client_that_reads_slowly_gets_all_of_it", &Setup::BASE, |t| {
        let request = t.page("echo str_repeat('x', 3 << 20), 'end';");
        let mut connection = t.connect();
        connection.send(&request.bytes());
        // Nothing is read until the socket's buffers are long full.
        connection.pause(Duration::from_millis(100));
        let reply = t.reply(&mut connection, 1);
        assert!(reply.text().ends_with("end"));
    });
}

fn aborted(c: &mut Cases) {
    /// Goes away as soon as the first output has arrived; what the script then notes in `said/what`.
    fn leave(t: &mut Run, code: &str) -> String {
        let said = t.writable("said").join("what");
        let request = t.page(&format!(
            "register_shutdown_function(function () {{ file_put_contents(__DIR__ . '/said/what', 'status ' . connection_status() .
                ' aborted ' . connection_aborted() . ($GLOBALS['end'] ?? '')); }});
             echo 'started'; flush(); {code}"
        ));
        let mut connection = t.connect();
        connection.send(&request.bytes());
        connection.next_record().expect("flushed output");
        drop(connection);
        wait_until("the script has written what it saw", || {
            said.metadata().is_ok_and(|m| m.len() > 0)
        });
        std::fs::read_to_string(&said).expect("it is there")
    }
    /// Prints until the client is noticed to be gone; bounded.
    const PRINT: &str =
        "for ($i = 0; $i < 20000 && !connection_aborted(); $i++) { echo str_repeat('x', 1000); flush(); usleep(100); }";
    c.same(
        "a_client_gone_ends_the_script_and_shutdown_functions_run",
        &Setup::BASE,
        |t| {
            let said = leave(t, &format!("{PRINT} $end = ' end';"));
            t.note(&said);
            assert_eq!(said, "status 1 aborted 1");
        },
    );
    c.same("a_script_may_ignore_that_the_client_is_gone", &Setup::BASE, |t| {
        let said = leave(t, &format!("ignore_user_abort(true); {PRINT} $end = ' end';"));
        t.note(&said);
        assert_eq!(said, "status 1 aborted 1 end");
    });
    c.same("a_client_gone_is_not_noticed_without_output", &Setup::BASE, |t| {
        let said = leave(t, "usleep(50000); $end = ' end';");
        t.note(&said);
        assert_eq!(said, "status 0 aborted 0 end");
    });
    c.same(
        "after_a_client_has_gone_the_worker_serves_the_next_one",
        &ONE_WORKER,
        |t| {
            for _ in 0..3 {
                leave(t, PRINT);
                std::fs::remove_file(t.root.join("said/what")).expect("it is there");
                let request = t.page("echo connection_status();");
                let reply = t.send(&request);
                assert_eq!((reply.text().as_str(), reply.errors().as_str()), ("0", ""));
            }
        },
    );
    c.same("a_client_gone_before_the_answer_does_no_harm", &ONE_WORKER, |t| {
        let request = t.page("echo str_repeat('x', 200000);");
        for _ in 0..10 {
            let mut connection = t.connect();
            connection.send(&request.bytes());
            drop(connection);
        }
        assert_eq!(t.send(&request).body().len(), 200_000);
    });
    c.same("connection_status_is_normal_while_the_client_waits", &Setup::BASE, |t| {
        let reply = t.php("echo connection_status(), connection_aborted(), ignore_user_abort(); flush(); echo connection_status();");
        assert_eq!(reply.text(), "0000");
    });
}

static ONE_WORKER: Setup = Setup {
    name: "output-one-worker",
    workers: 1,
    ..Setup::BASE
};
