//! `fastcgi_finish_request()`.

use crate::harness::{Case, Cases, wait_until};
use crate::support::fcgi::{Ended, STDERR, STDOUT};
use crate::support::server::Setup;

static TIMED: Setup = Setup {
    name: "finish-timed",
    workers: 1,
    ini: "max_execution_time = 1\n",
    ..Setup::BASE
};

static BUFFERED: Setup = Setup {
    name: "finish-buffered",
    ini: "output_buffering = 4096\n",
    ..Setup::BASE
};

pub fn cases() -> Vec<Case> {
    Cases::of("finish_request", |c| {
        finished(c);
        afterwards(c);
        kept(c);
    })
}

/// Code that writes `$what` to `said/what` in the folder of the case.
const SAY: &str = "function say($what) { file_put_contents(__DIR__ . '/said/what', $what, FILE_APPEND); }";

fn finished(c: &mut Cases) {
    c.same("the_answer_is_complete_while_the_script_works_on", &Setup::BASE, |t| {
        let said = t.writable("said");
        let code = format!(
            "{SAY} header('X-A: 1'); echo 'answer';
             $r = fastcgi_finish_request(); while (!file_exists(__DIR__ . '/said/go')) {{ usleep(1000); clearstatcache(); }}
             say(var_export($r, true) . ' worked on');"
        );
        assert_eq!(t.php(&code).text(), "answer");
        std::fs::write(said.join("go"), "").expect("the folder is ours");
        wait_until("the script has ended", || said.join("what").exists());
        wait_until("all is written", || std::fs::read_to_string(said.join("what")).is_ok_and(|s| s == "true worked on"));
    });
    c.same("buffers_are_flushed_into_the_answer", &BUFFERED, |t| {
        let reply = t.php("header('X-A: 1'); echo 'a'; ob_start(); echo 'b'; ob_start(fn ($b) => strtoupper($b)); echo 'c'; fastcgi_finish_request();");
        assert_eq!((reply.text().as_str(), reply.header("X-A").len()), ("abC", 1));
    });
    c.same("an_answer_without_output_is_finished_too", &Setup::BASE, |t| {
        let reply = t.php("http_response_code(204); fastcgi_finish_request();");
        assert_eq!((reply.status(), reply.text().as_str()), (204, ""));
    });
    c.same("a_second_call_says_no", &Setup::BASE, |t| {
        let said = t.writable("said").join("what");
        t.php(&format!("{SAY} echo 'x'; say(json_encode([fastcgi_finish_request(), fastcgi_finish_request(), connection_status()]));"));
        wait_until("the script has ended", || std::fs::read_to_string(&said).is_ok_and(|s| s.ends_with(']')));
        let said = std::fs::read_to_string(said).expect("it is there");
        t.note(&said);
        assert_eq!(said, "[true,false,0]");
    });
    c.same("head_is_finished_without_a_body", &Setup::BASE, |t| {
        let request = t
            .page("echo 'body'; fastcgi_finish_request(); echo 'more';")
            .method("HEAD");
        assert_eq!(t.send(&request).text(), "");
    });
    c.same("an_answer_of_a_megabyte_is_finished_whole", &Setup::BASE, |t| {
        assert_eq!(
            t.php("echo str_repeat('x', 1 << 20); fastcgi_finish_request(); echo 'more';")
                .body()
                .len(),
            1 << 20
        );
    });
    c.same("it_may_be_called_in_a_shutdown_function", &Setup::BASE, |t| {
        let reply = t.php(
            "register_shutdown_function(function () { echo 'b'; fastcgi_finish_request(); echo 'c'; }); echo 'a';",
        );
        assert_eq!(reply.text(), "ab");
    });
    c.same("in_a_shutdown_function_it_lets_the_client_go", &Setup::BASE, |t| {
        let gate = t.writable("gate");
        let request = t.page(
            "register_shutdown_function(function () {
                 fastcgi_finish_request();
                 while (!file_exists(__DIR__ . '/gate/open')) { usleep(1000); clearstatcache(); }
                 touch(__DIR__ . '/gate/passed');
             });
             echo 'a';",
        );
        let mut connection = t.connect();
        connection.send(&request.bytes());
        assert_eq!(t.reply(&mut connection, 1).text(), "a");
        assert_eq!(connection.end().1, Ended::Closed);
        drop(connection); // php-fpm's script waits for it
        std::fs::write(gate.join("open"), "").expect("the folder is ours");
        wait_until("the script has ended", || gate.join("passed").exists());
    });
    c.same("a_body_that_was_not_read_does_not_hold_it_up", &Setup::BASE, |t| {
        let request = t
            .page("echo 'x'; fastcgi_finish_request();")
            .post("text/plain", vec![b'x'; 300_000])
            .method("PUT");
        assert_eq!(t.send(&request).text(), "x");
    });
}

fn afterwards(c: &mut Cases) {
    c.same("output_afterwards_goes_nowhere", &Setup::BASE, |t| {
        let said = t.writable("said").join("what");
        let reply = t.php(&format!(
            "{SAY} echo 'a'; fastcgi_finish_request(); echo 'b'; error_log('c'); header('X-Late: 1'); say('end');"
        ));
        assert_eq!((reply.text().as_str(), reply.errors().as_str()), ("a", ""));
        wait_until("the script has ended", || said.exists());
    });
    c.same("what_is_buffered_afterwards_stays_the_scripts_own", &Setup::BASE, |t| {
        let said = t.writable("said").join("what");
        t.php(&format!(
            "{SAY} echo 'a'; fastcgi_finish_request(); ob_start(fn ($b) => strtoupper($b)); echo 'x'; fastcgi_finish_request();
             say(json_encode([ob_get_level(), ob_get_clean()]));"
        ));
        wait_until("the script has ended", || std::fs::read_to_string(&said).is_ok_and(|s| s.ends_with(']')));
        let said = std::fs::read_to_string(said).expect("it is there");
        t.note(&said);
        assert_eq!(said, "[1,\"x\"]");
    });
    c.same("shutdown_functions_and_destructors_run_afterwards", &Setup::BASE, |t| {
        let said = t.writable("said").join("what");
        let reply = t.php(&format!(
            "{SAY} class D {{ function __destruct() {{ say('destroyed'); echo 'x'; }} }} $d = new D;
             register_shutdown_function(function () {{ say('shutdown '); echo 'y'; }}); echo 'a'; fastcgi_finish_request();"
        ));
        assert_eq!(reply.text(), "a");
        wait_until("both have run", || std::fs::read_to_string(&said).is_ok_and(|s| s == "shutdown destroyed"));
    });
    c.differs(
        "much_output_afterwards_does_not_end_the_script",
        &Setup::BASE,
        "php-fpm ends a script that prints more than 8 KB or calls flush() after the answer, unless it ignores that the client is gone; for \
         us what comes after the answer is dropped, whatever its length.",
        |t| {
            let said = t.writable("said").join("what");
            t.php(&format!(
                "{SAY} register_shutdown_function(function () {{ say(' over'); }}); echo 'a'; fastcgi_finish_request();
                 for ($i = 0; $i < 100; $i++) {{ echo str_repeat('x', 1000); flush(); }} say('end');"
            ));
            let wanted = if t.is_php_pool() { "end over" } else { " over" };
            wait_until("the script has ended", || std::fs::read_to_string(&said).is_ok_and(|s| s.ends_with(" over")));
            let said = std::fs::read_to_string(said).expect("it is there");
            t.note(&said);
            assert_eq!(said, wanted);
        },
    );
    c.same("the_time_limit_holds_afterwards", &TIMED, |t| {
        let said = t.writable("said").join("what");
        let reply = t.php(&format!(
            "{SAY} register_shutdown_function(function () {{ say(error_get_last()['message']); }});
             echo 'a'; fastcgi_finish_request(); while (true);"
        ));
        assert_eq!((reply.status(), reply.text().as_str()), (200, "a"));
        wait_until("the limit was reached", || {
            std::fs::read_to_string(&said).is_ok_and(|s| s == "Maximum execution time of 1 second exceeded")
        });
    });
    c.same("the_worker_serves_the_next_request_afterwards", &TIMED, |t| {
        let request = t.page("echo (headers_sent() ? 'sent' : 'fresh') . connection_status() . ob_get_level(); fastcgi_finish_request(); echo 'late';");
        for _ in 0..5 {
            assert_eq!(t.send(&request).text(), "fresh00");
        }
    });
}

fn kept(c: &mut Cases) {
    c.same(
        "on_a_kept_connection_the_next_request_is_answered_by_itself",
        &Setup::BASE,
        |t| {
            let request = t.page("echo $_GET['n']; fastcgi_finish_request(); echo 'late';").keep();
            let mut connection = t.connect();
            for n in ["1", "2", "3"] {
                connection.send(&request.clone().query(&format!("n={n}")).bytes());
                assert_eq!(t.reply(&mut connection, 1).text(), n);
            }
        },
    );
    c.same(
        "on_a_kept_connection_the_rest_of_a_body_may_come_after_the_answer",
        &Setup::BASE,
        |t| {
            let request = t
                .page("echo $_GET['n']; fastcgi_finish_request();")
                .post("text/plain", vec![b'x'; 30])
                .method("PUT")
                .keep();
            let mut connection = t.connect();
            // Also within a header of the body's records, and within a record.
            for (n, left) in [1, 3, 8, 9, 20, 38, 41, 46].into_iter().enumerate() {
                let bytes = request.clone().query(&format!("n={n}")).bytes();
                let (first, rest) = bytes.split_at(bytes.len() - left);
                connection.send(first);
                assert_eq!(t.reply(&mut connection, 1).text(), n.to_string(), "{left} bytes left");
                connection.send(rest);
            }
        },
    );
    c.differs(
        "on_a_kept_connection_the_rest_of_a_body_goes_with_it",
        &Setup::BASE,
        "php-fpm's script can still read its body after fastcgi_finish_request() where the connection is kept (and only there), though the \
         web server may have sent the next request behind it; for us the connection is another worker's by then, and the body at its end.",
        |t| {
            let said = t.writable("said").join("what");
            let request = t
                .page(&format!("{SAY} fastcgi_finish_request(); say(strlen(file_get_contents('php://input')));"))
                .post("text/plain", vec![b'x'; 30])
                .method("PUT")
                .keep();
            let mut connection = t.connect();
            connection.send(&request.bytes());
            t.reply(&mut connection, 1);
            let wanted = if t.is_php_pool() { "0" } else { "30" };
            wait_until("the script has read it", || {
                std::fs::read_to_string(&said).is_ok_and(|said| said == wanted)
            });
            t.note(wanted);
        },
    );
    c.differs(
        "on_a_kept_connection_nothing_follows_the_end_of_the_answer",
        &Setup::BASE,
        "On a kept connection php-fpm sends what comes after the answer, beyond 8 KB, behind END_REQUEST, where it \
         corrupts the next answer; we drop it.",
        |t| {
            let request = t
                .page(
                    "echo 'a'; fastcgi_finish_request(); echo str_repeat('x', 20000); error_log(str_repeat('y', 900));",
                )
                .keep();
            let mut connection = t.connect();
            connection.send(&request.bytes());
            assert_eq!(t.reply(&mut connection, 1).text(), "a");
            let plain = t.page("echo 'b';").id(2);
            connection.send(&plain.bytes());
            let mut stray = 0;
            while let Some(record) = connection.next_record() {
                if matches!(record.kind, STDOUT | STDERR) && record.id != 2 {
                    stray += record.content.len();
                }
            }
            t.note(format!("stray bytes: {}", if stray > 0 { "yes" } else { "none" }));
            assert_eq!(stray > 0, !t.is_php_pool(), "{stray} stray bytes");
        },
    );
    c.same("on_a_kept_connection_a_second_call_says_yes", &Setup::BASE, |t| {
        let said = t.writable("said").join("what");
        let request = t
            .page(&format!(
                "{SAY} echo 'x'; say(json_encode([fastcgi_finish_request(), fastcgi_finish_request()]));"
            ))
            .keep();
        let mut connection = t.connect();
        connection.send(&request.bytes());
        assert_eq!(t.reply(&mut connection, 1).text(), "x");
        wait_until("the script has ended", || {
            std::fs::read_to_string(&said).is_ok_and(|s| s.ends_with(']'))
        });
        let said = std::fs::read_to_string(said).expect("it is there");
        t.note(&said);
        assert_eq!(said, "[true,true]");
    });
}
