//! Errors, exceptions, limits, exit codes, shutdown functions and destructors.

use crate::harness::{Case, Cases};
use crate::support::server::Setup;

static DISPLAYED: Setup = Setup {
    name: "errors-displayed",
    ini: "display_errors = 1\nhtml_errors = 1\n",
    ..Setup::BASE
};

static ERROR_HEADER: Setup = Setup {
    name: "error-header",
    arguments: &["-d", "fastcgi.error_header=HTTP/1.1 550 PHP Error"],
    ini: "",
    ..Setup::BASE
};

static UNLOGGED: Setup = Setup {
    name: "fastcgi-logging-off",
    ini: "fastcgi.logging = 0\n",
    ..Setup::BASE
};

/// A worker of php-fpm keeps what requests have set, so that no other case may run there.
static LOGGING_SET: Setup = Setup {
    name: "fastcgi-logging-by-request",
    workers: 1,
    ..Setup::BASE
};

static OWN_LOG: Setup = Setup {
    name: "own-error-log",
    ini: "error_log = {home}/php.log\n",
    ..Setup::BASE
};

static NOT_LOGGED: Setup = Setup {
    name: "log-errors-off",
    ini: "log_errors = 0\n",
    ..Setup::BASE
};

static LIMITED: Setup = Setup {
    name: "time-limited",
    ini: "max_execution_time = 1\nmemory_limit = 32M\n",
    ..Setup::BASE
};

pub fn cases() -> Vec<Case> {
    Cases::of("errors", |c| {
        reported(c);
        fatal(c);
        limits(c);
        endings(c);
    })
}

fn reported(c: &mut Cases) {
    c.same("a_warning_goes_to_stderr_and_the_script_on", &Setup::BASE, |t| {
        let reply = t.php("echo 'a'; echo $undefined; trigger_error('own', E_USER_NOTICE); echo 'b';");
        assert_eq!(reply.text(), "ab");
        let file = format!("{}/index.php", t.www());
        let wanted = format!(
            "PHP message: PHP Warning:  Undefined variable $undefined in {file} on line 1; \
             PHP message: PHP Notice:  own in {file} on line 1"
        );
        assert_eq!(reply.errors(), wanted);
    });
    c.same("messages_of_a_script_are_joined_by_semicolons", &Setup::BASE, |t| {
        let reply = t.php("error_log('one'); error_log(\"two\\nlines\"); error_log(''); error_log('three', 4);");
        assert_eq!(
            reply.errors(),
            "PHP message: one; PHP message: two\nlines; PHP message: ; PHP message: three"
        );
    });
    c.same("messages_before_and_after_a_flush_are_all_sent", &Setup::BASE, |t| {
        let reply =
            t.php("error_log('one'); echo 'x'; flush(); error_log('two'); echo 'y'; flush(); error_log('three');");
        assert_eq!(reply.text(), "xy");
        for message in ["one", "two", "three"] {
            assert!(
                reply.errors().contains(&format!("PHP message: {message}")),
                "{}",
                reply.errors()
            );
        }
    });
    c.same("a_message_of_the_next_request_begins_anew", &Setup::BASE, |t| {
        let request = t.page("error_log('one');").keep();
        let mut connection = t.connect();
        for _ in 0..3 {
            connection.send(&request.bytes());
            assert_eq!(t.reply(&mut connection, 1).errors(), "PHP message: one");
        }
    });
    c.same("a_message_longer_than_the_log_limit_is_cut", &Setup::BASE, |t| {
        let reply = t.php("error_log(str_repeat('x', 5000));");
        assert!(reply.errors().ends_with("x..."), "{}", reply.errors());
    });
    c.same("php_stderr_is_not_the_answers_stderr", &Setup::BASE, |t| {
        let reply = t.php("file_put_contents('php://stderr', 'raw'); fwrite(fopen('php://stderr', 'w'), 'raw');");
        assert_eq!(reply.errors(), "");
    });
    c.same("a_message_may_go_to_a_file_instead", &Setup::BASE, |t| {
        t.writable("log");
        let reply = t.php("error_log(\"to the file\\n\", 3, __DIR__ . '/log/file'); readfile('log/file');");
        assert_eq!((reply.text().as_str(), reply.errors().as_str()), ("to the file\n", ""));
    });
    c.same("errors_are_displayed_if_asked", &DISPLAYED, |t| {
        let reply = t.php("echo $undefined;");
        assert!(
            reply
                .text()
                .contains("<b>Warning</b>:  Undefined variable $undefined in <b>"),
            "{}",
            reply.text()
        );
        assert!(reply.errors().contains("PHP Warning:  Undefined variable"));
    });
    c.same("displaying_on_stderr_displays_nothing_here", &Setup::BASE, |t| {
        t.php("ini_set('display_errors', 'stderr'); ini_set('log_errors', '0'); echo $undefined;");
    });
    c.same("without_fastcgi_logging_nothing_is_sent_as_stderr", &UNLOGGED, |t| {
        let reply = t.php("error_log('one'); no_such_function();");
        assert_eq!((reply.status(), reply.errors().as_str()), (500, ""));
    });
    c.same("a_request_may_turn_fastcgi_logging_off_for_itself", &LOGGING_SET, |t| {
        let request = t.page("error_log('one'); no_such_function();");
        for name in ["PHP_VALUE", "PHP_ADMIN_VALUE"] {
            let reply = t.send(&request.clone().set(name, "fastcgi.logging=0"));
            assert_eq!((reply.status(), reply.errors().as_str()), (500, ""), "{name}");
        }
        let reply = t.send(&request.set("PHP_ADMIN_VALUE", "fastcgi.logging=1"));
        assert!(reply.errors().starts_with("PHP message: one; "), "{}", reply.errors());
    });
    c.same("a_log_of_php_ini_takes_the_messages_away", &OWN_LOG, |t| {
        let reply = t.php("error_log('into the file'); trigger_error('this too');");
        assert_eq!(reply.errors(), "");
        let log = std::fs::read_to_string(t.server.home.join("php.log")).expect("written by PHP");
        // Each line begins with the time.
        let texts: Vec<&str> = log.lines().filter_map(|l| Some(l.split_once("] ")?.1)).collect();
        t.note(texts.join("\n"));
        assert_eq!(texts[0], "into the file");
    });
    c.same("errors_that_are_not_logged_go_nowhere", &NOT_LOGGED, |t| {
        let reply = t.php("trigger_error('not this'); error_log('but this');");
        assert_eq!(reply.errors(), "PHP message: but this");
    });
    c.same("silenced_errors_are_silent", &Setup::BASE, |t| {
        assert_eq!(
            t.php("@trigger_error('x'); error_reporting(0); trigger_error('y'); echo 'ok';")
                .errors(),
            ""
        );
    });
    c.same("an_error_handler_sees_everything", &Setup::BASE, |t| {
        let reply =
            t.php("set_error_handler(function ($n, $m) { echo \"handled $n $m\"; return true; }); echo $undefined;");
        assert_eq!(
            (reply.text().as_str(), reply.errors().as_str()),
            ("handled 2 Undefined variable $undefined", "")
        );
    });
}

fn fatal(c: &mut Cases) {
    c.same("a_fatal_error_is_a_500", &Setup::BASE, |t| {
        let reply = t.php("no_such_function();");
        assert_eq!((reply.status(), reply.text().as_str()), (500, ""));
        assert!(
            reply
                .errors()
                .contains("PHP Fatal error:  Uncaught Error: Call to undefined function no_such_function()")
        );
    });
    c.same("an_exception_is_a_500", &Setup::BASE, |t| {
        let reply =
            t.php("function f($secret) { throw new LogicException('why', 3, new Exception('because')); } f('s');");
        assert_eq!(reply.status(), 500);
        assert!(
            reply.errors().contains("Uncaught Exception: because")
                && reply.errors().contains("Next LogicException: why")
        );
    });
    c.same("a_syntax_error_is_a_500", &Setup::BASE, |t| {
        let reply = t.php("echo 'x'; }{");
        assert_eq!((reply.status(), reply.text().as_str()), (500, ""));
        assert!(
            reply.errors().contains("PHP Parse error:  Unmatched '}'"),
            "{}",
            reply.errors()
        );
    });
    c.same("a_fatal_error_after_output_keeps_the_status", &Setup::BASE, |t| {
        let reply = t.php("echo 'x'; flush(); no_such_function();");
        assert_eq!((reply.status(), reply.text().as_str()), (200, "x"));
    });
    c.same("a_fatal_error_keeps_a_status_of_the_script", &Setup::BASE, |t| {
        assert_eq!(t.php("http_response_code(404); no_such_function();").status(), 404);
    });
    c.same("a_fatal_error_that_is_displayed_stays_200", &DISPLAYED, |t| {
        let reply = t.php("no_such_function();");
        assert_eq!(reply.status(), 200);
        assert!(reply.text().contains("<b>Fatal error</b>"), "{}", reply.text());
    });
    c.same("a_fatal_error_flushes_what_was_buffered", &Setup::BASE, |t| {
        let reply = t.php("ob_start(); echo 'buffered'; no_such_function();");
        assert_eq!((reply.status(), reply.text().as_str()), (500, "buffered"));
    });
    c.same("trigger_error_can_be_fatal", &Setup::BASE, |t| {
        assert_eq!(t.php("trigger_error('x', E_USER_ERROR); echo 'never';").status(), 500);
    });
    c.same("a_missing_required_file_is_a_500", &Setup::BASE, |t| {
        assert_eq!(t.php("require 'no-such-file.php';").status(), 500);
    });
    c.same("an_exception_handler_saves_the_answer", &Setup::BASE, |t| {
        let reply = t.php("set_exception_handler(function ($e) { http_response_code(418); echo $e->getMessage(); }); throw new Exception('caught');");
        assert_eq!((reply.status(), reply.text().as_str()), (418, "caught"));
    });
    c.same("an_error_in_an_included_file_names_that_file", &Setup::BASE, |t| {
        t.file("part.php", "<?php\n\nno_such_function();");
        let reply = t.php("include 'part.php';");
        assert!(reply.errors().contains("part.php:3"), "{}", reply.errors());
    });
    c.same("after_a_fatal_error_the_worker_serves_on", &ONE_WORKER, |t| {
        let bad = t.page("if (isset($_GET['die'])) no_such_function(); echo getmypid() === (int) $_GET['pid'] ? 'same' : getmypid();");
        let pid = t.send_unrecorded(&bad.clone().query("pid=0")).text();
        t.send(&bad.clone().query("die"));
        assert_eq!(t.send_unrecorded(&bad.query(&format!("pid={pid}"))).text(), "same");
    });
    c.same("an_error_header_marks_a_fatal_error", &ERROR_HEADER, |t| {
        let reply = t.php("no_such_function();");
        assert_eq!(
            (reply.status(), reply.header("Status")),
            (550, vec!["550 PHP Error".to_owned()])
        );
        assert_eq!(t.php("echo 'fine';").status(), 200);
    });
    c.same("an_error_header_comes_too_late_after_output", &ERROR_HEADER, |t| {
        assert_eq!(t.php("echo 'x'; flush(); no_such_function();").status(), 200);
    });
    c.same("an_error_header_marks_an_exit_with_255", &ERROR_HEADER, |t| {
        assert_eq!(t.php("exit(255);").status(), 550);
    });
    c.same(
        "an_error_header_is_not_for_what_follows_a_finished_request",
        &ERROR_HEADER,
        |t| {
            let reply = t.php("echo 'done'; fastcgi_finish_request(); no_such_function();");
            assert_eq!((reply.status(), reply.text().as_str()), (200, "done"));
        },
    );
}

fn limits(c: &mut Cases) {
    c.same("memory_beyond_the_limit_is_a_500", &LIMITED, |t| {
        let reply = t.php("$a = str_repeat('x', 40 << 20); echo 'never';");
        assert_eq!(reply.status(), 500);
        assert!(
            reply
                .errors()
                .contains("Allowed memory size of 33554432 bytes exhausted (tried to allocate 41947136")
        );
    });
    c.same("a_shutdown_function_has_memory_after_memory_ran_out", &LIMITED, |t| {
        let reply = t.php(
            "register_shutdown_function(function () { echo 'still ', strlen(str_repeat('y', 1000)); });
             $a = []; while (true) $a[] = str_repeat('x', 100000);",
        );
        assert_eq!((reply.status(), reply.text().as_str()), (500, "still 1000"));
    });
    c.same("memory_of_one_request_is_not_counted_in_the_next", &MEMORY, |t| {
        let request = t.page(
            "$a = str_repeat('x', 12 << 20); echo strlen($a), ' ', memory_get_peak_usage() > 12 << 20 ? 'peak' : '';",
        );
        for _ in 0..6 {
            assert_eq!(t.send(&request).text(), "12582912 peak");
        }
        let small = t.page("echo memory_get_peak_usage() < 2 << 20 ? 'small' : memory_get_peak_usage();");
        for _ in 0..6 {
            assert_eq!(t.send(&small).text(), "small");
        }
    });
    c.same("execution_beyond_the_limit_is_a_500", &LIMITED, |t| {
        let reply = t.php("while (true);");
        assert_eq!(reply.status(), 500);
        assert!(
            reply.errors().contains("Maximum execution time of 1 second exceeded"),
            "{}",
            reply.errors()
        );
    });
    c.same("sleeping_is_no_execution", &LIMITED, |t| {
        assert_eq!(t.php("usleep(1200000); echo 'slept';").text(), "slept");
    });
    c.same("a_script_may_give_itself_another_limit", &LIMITED, |t| {
        let reply =
            t.php("set_time_limit(0); $end = hrtime(true) + 1300000000; while (hrtime(true) < $end); echo 'ran';");
        assert_eq!(reply.text(), "ran");
    });
    c.same("a_script_that_gives_itself_more_time_has_that_and_no_more", &LIMITED, |t| {
        let reply = t.php("$from = getrusage(); set_time_limit(2); register_shutdown_function(function () use ($from) {
                $to = getrusage(); $used = $to['ru_utime.tv_sec'] - $from['ru_utime.tv_sec'] +
                    ($to['ru_utime.tv_usec'] - $from['ru_utime.tv_usec']) / 1e6 + $to['ru_stime.tv_sec'] - $from['ru_stime.tv_sec'] +
                    ($to['ru_stime.tv_usec'] - $from['ru_stime.tv_usec']) / 1e6;
                echo $used > 1.3 && $used < 3 ? 'about two seconds' : $used; });
            while (true);");
        assert_eq!((reply.status(), reply.text().as_str()), (500, "about two seconds"));
        assert!(reply.errors().contains("Maximum execution time of 2 seconds exceeded"), "{}", reply.errors());
    });
    c.same("after_a_time_out_the_next_request_has_its_whole_time", &LIMITED_ONE, |t| {
        let request = t.page("if (isset($_GET['spin'])) while (true); $end = hrtime(true) + 600000000; while (hrtime(true) < $end); echo 'ran';");
        t.send(&request.clone().query("spin"));
        assert_eq!(t.send(&request).text(), "ran");
        assert_eq!(t.send(&request).text(), "ran");
    });
    c.same("endless_recursion_ends_at_the_memory_limit", &LIMITED, |t| {
        assert_eq!(t.php("function f($n) { return f($n + 1); } f(0);").status(), 500);
    });
}

fn endings(c: &mut Cases) {
    c.same("exit_ends_the_script_with_what_it_printed", &Setup::BASE, |t| {
        assert_eq!(t.php("echo 'a'; exit; echo 'b';").text(), "a");
        assert_eq!(t.php("echo 'a'; exit('message');").text(), "amessage");
    });
    c.same("exit_codes_change_nothing_in_the_answer", &Setup::BASE, |t| {
        for code in [0, 1, 2, 70, 137, 254, 255] {
            let reply = t.php(&format!("echo 'x'; exit({code});"));
            assert_eq!(
                (reply.status(), reply.text().as_str(), reply.end.map(|e| e.app_status)),
                (200, "x", Some(0))
            );
        }
    });
    c.same("shutdown_functions_run_in_order_and_may_print", &Setup::BASE, |t| {
        let reply = t.php(
            "register_shutdown_function(function ($x) { header('X-A: late'); echo $x; register_shutdown_function(fn () => print('3')); }, '1');
             register_shutdown_function(function () { echo '2'; }); exit;",
        );
        assert_eq!((reply.text().as_str(), reply.header("X-A")), ("123", vec!["late".to_owned()]));
    });
    c.same("destructors_run_after_shutdown_functions", &Setup::BASE, |t| {
        let reply = t.php(
            "class D { function __destruct() { echo 'destroyed '; header('X-D: 1'); } }
             $d = new D; register_shutdown_function(function () { echo 'shutdown '; }); echo 'script ';",
        );
        assert_eq!(reply.text(), "script shutdown destroyed ");
    });
    c.same("a_destructor_may_fail", &Setup::BASE, |t| {
        let reply = t.php("class D { function __destruct() { throw new Exception('in the destructor'); } } $d = new D; echo 'script';");
        assert!(reply.errors().contains("in the destructor"), "{reply}");
    });
    c.same("a_shutdown_function_may_fail", &Setup::BASE, |t| {
        let reply = t.php("register_shutdown_function(function () { no_such_function(); }); echo 'script'; flush();");
        assert!(
            reply.text() == "script" && reply.errors().contains("no_such_function"),
            "{reply}"
        );
    });
    c.same("a_shutdown_function_knows_the_last_error", &Setup::BASE, |t| {
        let reply = t.php("register_shutdown_function(function () { echo error_get_last()['type']; }); trigger_error('x', E_USER_ERROR);");
        assert_eq!((reply.status(), reply.text().as_str()), (500, "256"));
    });
    c.differs(
        "the_working_folder_of_shutdown_functions",
        &Setup::BASE,
        "php-fpm goes back to the worker's folder before shutdown functions and destructors run; ours run in the folder of the \
         script, as the script did, which spares two system calls a request.",
        |t| {
            let reply = t.php(
                "register_shutdown_function(function () { echo getcwd() === __DIR__ ? ' same' : ' another'; });
                 echo getcwd() === __DIR__ ? 'script' : 'elsewhere';",
            );
            assert_eq!(reply.text(), if t.is_php_pool() { "script same" } else { "script another" });
        },
    );
    c.same("garbage_and_cycles_are_destroyed_at_the_end", &Setup::BASE, |t| {
        let reply = t.php(
            "class D { public $o; function __construct(public $n) {} function __destruct() { echo $this->n; } }
             $a = new D(1); $b = new D(2); $a->o = $b; $b->o = $a; unset($a, $b); echo 's';",
        );
        assert_eq!(reply.text(), "s12");
    });
    c.same("statics_and_globals_do_not_outlive_the_request", &ONE_WORKER, |t| {
        let request = t.page("function f() { static $n = 0; return ++$n; } class C { static $n = 0; } echo f(), ++C::$n, ++$GLOBALS['g'];");
        for _ in 0..4 {
            assert_eq!(t.send(&request).text(), "111");
        }
    });
    c.same(
        "a_script_that_never_ends_its_buffers_leaves_none_to_the_next",
        &ONE_WORKER,
        |t| {
            let request = t.page("echo ob_get_level(); ob_start(); ob_start(fn ($b) => \"<$b>\"); echo 'x'; exit;");
            for _ in 0..3 {
                assert_eq!(t.send(&request).text(), "0<x>");
            }
        },
    );
    c.same("persistent_streams_and_their_locks_are_released", &ONE_WORKER, |t| {
        t.writable("locks");
        let request = t.page("$f = fopen('locks/l', 'c'); var_dump(flock($f, LOCK_EX | LOCK_NB)); if (isset($_GET['die'])) no_such_function();");
        for query in ["", "die", ""] {
            assert_eq!(t.send(&request.clone().query(query)).text(), "bool(true)\n");
        }
    });
    c.same("a_tick_a_generator_and_a_fiber_left_unfinished_do_no_harm", &Setup::BASE, |t| {
        let reply = t.php(
            "function g() { try { yield 1; } finally { echo 'finally '; } } $g = g(); echo $g->current();
             $f = new Fiber(function () { try { Fiber::suspend(2); } finally { echo 'fiber '; } }); echo $f->start(); exit(3);",
        );
        assert!(reply.text().starts_with("12"), "{}", reply.text());
    });
}

/// A limit that no case reaches: a worker of PHP's counts wrong for a while after it did.
static MEMORY: Setup = Setup {
    name: "memory-limited",
    workers: 1,
    ini: "memory_limit = 32M\n",
    ..Setup::BASE
};
static ONE_WORKER: Setup = Setup {
    name: "errors-one-worker",
    workers: 1,
    ..Setup::BASE
};
static LIMITED_ONE: Setup = Setup {
    name: "time-limited-one",
    workers: 1,
    ini: "max_execution_time = 1\n",
    ..Setup::BASE
};
