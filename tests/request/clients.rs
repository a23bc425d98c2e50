//! Clients that leave, stall or stay, lengths that lie, and who may connect at all.

use std::time::Duration;

use crate::harness::{Case, Cases, Request, Run, wait_until};
use crate::support::fcgi::{PARAMS, PATIENCE, Record, STDIN};
use crate::support::server::{Listen, Setup};

/// Workers of php-fpm are held by some of these clients until they leave: others need not wait for them.
static HELD: Setup = Setup {
    name: "clients-held",
    workers: 8,
    php_pool: "request_header_timeout = 1\nrequest_body_timeout = 1\nlinger_timeout = 1\nresponse_write_timeout = 1\n",
    ..Setup::BASE
};

static ONE_WORKER: Setup = Setup {
    name: "clients-one-worker",
    workers: 1,
    ..Setup::BASE
};
static SILENT: Setup = Setup {
    name: "clients-silent",
    workers: 1,
    ..Setup::BASE
};
static SILENT_KEPT: Setup = Setup {
    name: "clients-silent-kept",
    workers: 1,
    ..Setup::BASE
};
static SLOW: Setup = Setup {
    name: "clients-slow",
    workers: 1,
    ..Setup::BASE
};
static SLOW_BODY: Setup = Setup {
    name: "clients-slow-body",
    workers: 1,
    ..Setup::BASE
};
static SILENT_AFTER: Setup = Setup {
    name: "clients-silent-after",
    workers: 1,
    ..Setup::BASE
};

static ALLOWED: Setup = Setup {
    name: "clients-allowed",
    listen: Listen::Tcp("127.0.0.1"),
    pool: "listen.allowed_clients = 192.0.2.1,127.0.0.1\n",
    ..Setup::BASE
};

static REFUSED: Setup = Setup {
    name: "clients-refused",
    listen: Listen::Tcp("127.0.0.1"),
    pool: "listen.allowed_clients = 192.0.2.1,::1\ncatch_workers_output = yes\n",
    ..Setup::BASE
};

/// As a variable is that was not set.
static NOBODY: Setup = Setup {
    name: "clients-nobody",
    listen: Listen::Tcp("127.0.0.1"),
    pool: "listen.allowed_clients = ${CLIENTS_THAT_NOBODY_HAS_SET}\n",
    ..Setup::BASE
};

static ALLOWED_6: Setup = Setup {
    name: "clients-allowed-6",
    listen: Listen::Tcp("::1"),
    pool: "listen.allowed_clients = ::1\n",
    ..Setup::BASE
};

static REFUSED_6: Setup = Setup {
    name: "clients-refused-6",
    listen: Listen::Tcp("::1"),
    pool: "listen.allowed_clients = ::2,127.0.0.1\n",
    ..Setup::BASE
};

static MAPPED: Setup = Setup {
    name: "clients-mapped",
    listen: Listen::Tcp("::"),
    pool: "listen.allowed_clients = 127.0.0.1\naccess.log = {home}/access.log\naccess.format = %R\n",
    ..Setup::BASE
};

static NETWORK: Setup = Setup {
    name: "clients-network",
    listen: Listen::Tcp("127.0.0.1"),
    pool: "listen.allowed_clients = 192.0.2.1,127.0.0.0/8\n",
    ..Setup::BASE
};

static UNIX: Setup = Setup {
    name: "clients-unix",
    pool: "listen.allowed_clients = 192.0.2.1\n",
    ..Setup::BASE
};

const HELLO: &str = "echo 'hello ', $_SERVER['REQUEST_METHOD'];";

/// How long php-fpm is watched doing nothing, where that is what it does.
const A_MOMENT: Duration = Duration::from_millis(150);

pub fn cases() -> Vec<Case> {
    Cases::of("clients", |c| {
        bodies(c);
        waiting(c);
        allowed(c);
    })
}

fn bodies(c: &mut Cases) {
    c.differs(
        "a_body_that_ends_too_early_does_not_run_the_script",
        &HELD,
        "When the web server ends the body before CONTENT_LENGTH, php-fpm waits until the connection closes; we end the \
         request at once, without running the script.",
        |t| {
            let ran = t.writable("ran").join("it");
            let request = t.page("touch(__DIR__ . '/ran/it'); echo 'ran';").post("application/x-www-form-urlencoded", "a=1&b=2");
            let bytes = [request.head(), Record::new(STDIN, 1, "a=1").bytes(), Record::new(STDIN, 1, []).bytes()].concat();
            let mut connection = t.connect();
            connection.send(&bytes);
            let answered = connection.record_within(if t.is_php_pool() { PATIENCE } else { A_MOMENT });
            t.note(format!("answered: {}", answered.is_some()));
            assert_eq!(answered.is_some(), t.is_php_pool());
            if t.is_php_pool() {
                assert!(!ran.exists(), "a script ran on a part of its body");
            } else {
                drop(connection);
                wait_until("php-fpm has run the script", || ran.exists());
            }
        },
    );
    c.differs(
        "a_script_that_finds_its_body_cut_short_is_ended",
        &HELD,
        "A script that reads its body itself (PUT, php://input) begins before the body is there. When that ends too early, php-fpm \
         waits until the connection closes; we end the script, unless it ignores that the client is gone, and answer 400, or 408 after request_body_timeout.",
        |t| {
            let page = t.page("register_shutdown_function(function () { echo 'over'; }); echo strlen(file_get_contents('php://input'));");
            let short = |method: &str, length: &str| {
                page.clone()
                    .post("text/plain", "part")
                    .set("CONTENT_LENGTH", length)
                    .method(method)
                    .keep()
            };
            // Of a form beyond post_max_size PHP leaves the body to the script.
            let requests = [short("PUT", "5"), short("PUT", "70000"), short("POST", "9000000")];
            if !t.is_php_pool() {
                let mut connection = t.connect();
                connection.send(&requests[0].bytes());
                assert!(connection.record_within(A_MOMENT).is_none());
                t.note("no answer");
                return;
            }
            let mut connection = t.connect();
            for request in &requests {
                connection.send(&request.bytes());
                let reply = t.reply(&mut connection, 1);
                assert_eq!((reply.status(), reply.text().as_str()), (400, ""), "{reply}");
                connection.send(&short("PUT", "4").bytes());
                assert_eq!(t.reply(&mut connection, 1).text(), "4over");
            }
            // Without CONTENT_LENGTH only who goes away has not said all.
            let request = short("PUT", "").set("HTTP_TRANSFER_ENCODING", "chunked");
            let mut left = t.connect();
            left.send(&[request.head(), Record::new(STDIN, 1, "part").bytes()].concat());
            left.half_close();
            let reply = t.reply(&mut left, 1);
            assert_eq!((reply.status(), reply.text().as_str()), (400, ""), "{reply}");
            let request = short("PUT", "5");
            connection.send(&[request.head(), Record::new(STDIN, 1, "part").bytes()].concat());
            let reply = t.reply(&mut connection, 1);
            assert_eq!((reply.status(), reply.text().as_str()), (408, ""), "{reply}");
        },
    );
    c.differs(
        "a_client_that_leaves_within_the_body_does_not_run_the_script",
        &HELD,
        "php-fpm runs the script with an empty body when the web server goes away within it; we do not run it.",
        |t| {
            let ran = t.writable("ran");
            let request = t.page("touch(__DIR__ . '/ran/' . $_GET['n']); echo json_encode($_POST);");
            for (n, half) in [("0", true), ("1", false)] {
                let request = request
                    .clone()
                    .query(&format!("n={n}"))
                    .post("application/x-www-form-urlencoded", "a=1&b=2");
                let mut connection = t.connect();
                connection.send(&[request.head(), Record::new(STDIN, 1, "a=1").bytes()].concat());
                if half {
                    connection.half_close();
                    let reply = t.reply(&mut connection, 1);
                    let wanted = if t.is_php_pool() { (400, false) } else { (200, true) };
                    assert_eq!((reply.status(), reply.text() == "[]"), wanted);
                }
            }
            if t.is_php_pool() {
                // A request served later than those shows that they are over.
                let after = t.page("echo count(glob(__DIR__ . '/ran/*'));");
                assert_eq!(t.send(&after).text(), "0");
            } else {
                wait_until("both have run", || ran.join("0").exists() && ran.join("1").exists());
            }
        },
    );
    c.same(
        "a_script_without_output_learns_by_flush_that_its_client_has_left",
        &HELD,
        |t| {
            let said = t.writable("said");
            for method in ["GET", "HEAD"] {
                let request = t.page(
                    "ignore_user_abort(true); echo 'begun'; flush();\n\
                 for ($n = 0; $n < 15000 && !connection_aborted(); $n++) { usleep(1000); flush(); }\n\
                 file_put_contents(__DIR__ . '/said/part', connection_status());\n\
                 rename(__DIR__ . '/said/part', __DIR__ . '/said/' . $_SERVER['REQUEST_METHOD']);",
                );
                let mut connection = t.connect();
                connection.send(&request.method(method).bytes());
                connection.next_record().expect("the beginning of an answer");
                drop(connection);
                let said = said.join(method);
                wait_until("the script is over", || said.exists());
                t.note(std::fs::read_to_string(said).expect("it is there"));
            }
        },
    );
    // nginx may be told not to pass a body on, and then still sends CONTENT_LENGTH.
    c.same("a_body_that_was_not_passed_on_is_none", &HELD, |t| {
        for method in ["GET", "POST", "PUT"] {
            let request = t
                .page("echo 'ran', count($_POST), strlen(file_get_contents('php://input'));")
                .post("application/x-www-form-urlencoded", "a=1")
                .method(method);
            let reply = t.send_raw(&[request.head(), Record::new(STDIN, 1, []).bytes()].concat());
            assert_eq!(reply.text(), "ran00", "{method}");
        }
    });
    c.differs(
        "a_negative_content_length_is_refused",
        &HELD,
        "php-fpm waits for ever when CONTENT_LENGTH is negative; we answer 400 (but for -1, by which Caddy says that a body comes in chunks).",
        |t| {
            let request = t
                .page("echo 'ran';")
                .post("text/plain", "body")
                .set("CONTENT_LENGTH", "-2");
            length_refused(t, &request);
        },
    );
    c.differs(
        "a_content_length_that_is_no_number_is_refused",
        &Setup::BASE,
        "php-fpm reads the digits at the beginning of CONTENT_LENGTH and takes the rest for nothing: the body is cut there. \
         We answer 400.",
        |t| {
            for length in ["4x", "x", "0x10", "1.5", "4 4", "+4"] {
                let request = t.page("echo 'ran', file_get_contents('php://input');").post("text/plain", "body").set("CONTENT_LENGTH", length);
                let reply = t.send(&request);
                assert_eq!(reply.status(), if t.is_php_pool() { 400 } else { 200 }, "{length}");
            }
        },
    );
    c.differs(
        "a_content_length_beyond_all_bounds_is_refused",
        &HELD,
        "php-fpm takes the largest number there is for such a CONTENT_LENGTH and waits for the bytes; we answer 400.",
        |t| {
            let request = t
                .page("echo 'ran';")
                .post("text/plain", "body")
                .set("CONTENT_LENGTH", "99999999999999999999999");
            length_refused(t, &request);
        },
    );
}

fn waiting(c: &mut Cases) {
    c.differs(
        "a_client_that_says_nothing_holds_no_worker",
        &SILENT,
        "A connection without a byte occupies a worker of php-fpm for 5 seconds; ours serves others meanwhile.",
        |t| {
            let _silent: Vec<_> = (0..3).map(|_| t.connect()).collect();
            served_meanwhile(t);
        },
    );
    c.differs(
        "a_kept_connection_holds_no_worker",
        &SILENT_KEPT,
        "A kept connection belongs to its worker in php-fpm until it closes; ours serves others meanwhile.",
        |t| {
            let request = t.page(HELLO).keep();
            let mut kept = t.connect();
            kept.send(&request.bytes());
            t.reply(&mut kept, 1);
            served_meanwhile(t);
            if t.is_php_pool() {
                kept.send(&request.bytes());
                assert_eq!(t.reply(&mut kept, 1).text(), "hello GET");
            }
        },
    );
    c.differs(
        "a_request_that_comes_slowly_holds_no_worker",
        &SLOW,
        "A worker of php-fpm waits for the rest of a request that has begun; ours serves others meanwhile, and any worker \
         reads on from the very byte.",
        |t| {
            let request = t.page(HELLO).post("text/plain", "body").set("LONG", "x".repeat(300));
            let head = request.head();
            let half = head.len() / 2;
            let padded = [&head[..head.len() - 8], &Record::new(PARAMS, 1, []).padded(9).bytes()].concat();
            let cuts: &[(&Vec<u8>, usize)] = if t.is_php_pool() {
                &[(&head, 3), (&head, 8), (&head, 13), (&head, 16), (&head, 20), (&head, half), (&padded, head.len() - 8)]
            } else {
                &[(&head, half)]
            };
            for (head, at) in cuts {
                let mut slow = t.connect();
                slow.send(&head[..*at]);
                served_meanwhile(t);
                slow.send(&[&head[*at..], &request.tail()].concat());
                assert_eq!(t.reply(&mut slow, 1).text(), "hello POST", "cut at {at}");
            }
        },
    );
    c.differs(
        "the_rest_of_a_body_stays_a_body_in_whichever_worker",
        &SLOW_BODY,
        "What php-fpm does with a body longer than announced stands above; for us it stays a body when another worker reads \
         on, and the next request is served.",
        |t| {
            t.writable("ran");
            t.file("inner.php", "<?php touch(__DIR__ . '/ran/it');");
            let inner = t.get("/inner.php").id(9).bytes();
            let request = t.page("echo 'outer';").post("text/plain", "abc").keep();
            let body = Record::new(STDIN, 1, [b"abc0123456789".to_vec(), inner].concat()).bytes();
            let mut connection = t.connect();
            connection.send(&[request.head(), body[..15].to_vec()].concat());
            assert_eq!(t.reply(&mut connection, 1).text(), "outer");
            // Since 8.2.36 php-fpm closes the connection.
            let right = t.is_right_since([8, 2, 36]);
            served(t, right);
            connection.send(&[&body[15..], &Record::new(STDIN, 1, []).bytes(), &request.bytes()].concat());
            if t.is_php_pool() {
                assert_eq!(t.reply(&mut connection, 1).text(), "outer");
                assert!(!t.root.join("ran/it").exists(), "the body was run");
            }
        },
    );
    c.differs(
        "a_client_that_stays_after_its_answer_holds_no_worker",
        &SILENT_AFTER,
        "php-fpm reads on until the client closes, without a limit; we close when the end of the request has been read.",
        |t| {
            let request = t.page(HELLO);
            let mut staying = t.connect();
            staying.send(&request.bytes());
            t.reply(&mut staying, 1);
            served_meanwhile(t);
        },
    );
    c.differs(
        "a_request_that_does_not_get_on_is_ended",
        &HELD,
        "php-fpm waits for the rest of a request without a limit; we close after request_header_timeout.",
        |t| {
            let bytes = t.page("echo 'never';").bytes();
            for at in [1, 8, 20, 100] {
                let mut connection = t.connect();
                connection.send(&bytes[..at]);
                if t.is_php_pool() {
                    let (rest, _) = connection.end();
                    assert_eq!(rest.escape_ascii().to_string(), "", "after {at} bytes");
                } else {
                    assert!(connection.record_within(A_MOMENT / 3).is_none());
                }
            }
            t.note(format!("closed: {}", t.is_php_pool()));
        },
    );
    c.differs(
        "a_body_that_does_not_get_on_is_ended",
        &HELD,
        "php-fpm waits for the rest of a body without a limit; we give up after request_body_timeout and do not run the script.",
        |t| {
            let ran = t.writable("ran").join("it");
            let request = t.page("touch(__DIR__ . '/ran/it');").post("application/x-www-form-urlencoded", "a=1&b=2");
            let mut connection = t.connect();
            connection.send(&[request.head(), Record::new(STDIN, 1, "a=1").bytes()].concat());
            if t.is_php_pool() {
                let reply = t.reply(&mut connection, 1);
                assert_eq!(reply.status(), 408, "{reply}");
                assert!(!ran.exists(), "a script ran on a part of its body");
            } else {
                assert!(connection.record_within(A_MOMENT).is_none());
                drop(connection);
                wait_until("php-fpm has run the script", || ran.exists());
            }
            t.note(format!("ended: {}", t.is_php_pool()));
        },
    );
    c.differs(
        "a_client_that_does_not_read_its_answer_is_left",
        &HELD,
        "php-fpm waits without a limit until the client takes the answer; we give up after response_write_timeout, and the script is \
         told that the client is gone.",
        |t| {
            let said = t.writable("said").join("what");
            let request = t.page(
                "register_shutdown_function(function () { file_put_contents(__DIR__ . '/said/what', connection_status()); });
                 echo str_repeat('x', 10 << 20);",
            );
            let mut connection = t.connect();
            connection.send(&request.bytes());
            if t.is_php_pool() {
                wait_until("the script is told", || std::fs::read(&said).is_ok_and(|text| text == b"1"));
            } else {
                connection.pause(A_MOMENT);
                assert!(!said.exists());
            }
            t.note(format!("left: {}", said.exists()));
            drop(connection);
            wait_until("the script has ended", || said.exists());
        },
    );
    c.same("a_connection_closed_without_a_byte_is_forgotten", &ONE_WORKER, |t| {
        for _ in 0..20 {
            drop(t.connect());
        }
        assert_eq!(t.php(HELLO).text(), "hello GET");
    });
    c.same(
        "a_request_broken_off_anywhere_leaves_the_worker_well",
        &ONE_WORKER,
        |t| {
            let request = t.page(HELLO).post("text/plain", "a body");
            let bytes = request.bytes();
            for at in (1..bytes.len()).step_by(7) {
                let mut connection = t.connect();
                connection.send(&bytes[..at]);
                drop(connection);
            }
            assert_eq!(t.send(&request).text(), "hello POST");
        },
    );
}

/// A length for which php-fpm waits, and which php-pool refuses.
fn length_refused(t: &mut Run, request: &Request) {
    let mut connection = t.connect();
    connection.send(&request.bytes());
    if t.is_php_pool() {
        let reply = t.reply(&mut connection, 1);
        assert_eq!(reply.status(), 400, "{reply}");
    } else {
        let answered = connection.record_within(A_MOMENT);
        t.note(format!("answered: {}", answered.is_some()));
        assert!(answered.is_none());
    }
}

/// Whether a further client is served by the one worker there is.
fn served_meanwhile(t: &mut Run) {
    served(t, t.is_php_pool());
}

fn served(t: &mut Run, wanted: bool) {
    t.file("other.php", "<?php echo 'served';");
    let request = t.get("/other.php");
    let mut other = t.connect();
    other.send(&request.bytes());
    let answer = other.record_within(if wanted { PATIENCE } else { A_MOMENT });
    t.note(format!("served: {}", answer.is_some()));
    assert_eq!(answer.is_some(), wanted);
}

fn allowed(c: &mut Cases) {
    let served = |c: &mut Cases, name: &str, setup: &'static Setup| {
        c.same(name, setup, |t| assert_eq!(t.php(HELLO).text(), "hello GET"));
    };
    let refused = |c: &mut Cases, name: &str, setup: &'static Setup| {
        c.same(name, setup, |t| {
            let request = t.page("echo 'never';");
            let mut connection = t.connect();
            connection.send(&request.bytes());
            let (answer, _) = connection.end();
            assert_eq!(answer, b"");
        });
    };
    served(c, "a_client_that_is_allowed_is_served", &ALLOWED);
    served(c, "a_client_that_is_allowed_is_served_over_ip_version_6", &ALLOWED_6);
    refused(c, "a_client_that_is_not_allowed_gets_no_answer", &REFUSED);
    refused(c, "a_list_that_is_empty_allows_nobody", &NOBODY);
    refused(
        c,
        "a_client_that_is_not_allowed_gets_no_answer_over_ip_version_6",
        &REFUSED_6,
    );
    served(c, "addresses_of_clients_make_no_difference_to_a_unix_socket", &UNIX);
    c.same("a_refused_client_is_named_in_the_log", &REFUSED, |t| {
        let request = t.page("echo 'never';");
        let mut connection = t.connect();
        connection.send(&request.bytes());
        connection.end();
        t.server.wait_for_log("who was refused", |log| {
            log.contains("ERROR: Connection disallowed: IP address '127.0.0.1' has been dropped.")
        });
    });
    c.same("a_mapped_address_is_that_of_ip_version_4", &MAPPED, |t| {
        assert_eq!(t.php(HELLO).text(), "hello GET");
        let log = t.server.home.join("access.log");
        wait_until("the request is logged", || {
            std::fs::read_to_string(&log).is_ok_and(|l| l.starts_with("127.0.0.1\n"))
        });
    });
    c.differs(
        "a_network_may_be_allowed",
        &NETWORK,
        "php-fpm knows addresses alone in listen.allowed_clients; we know networks too.",
        |t| {
            let request = t.page(HELLO);
            let mut connection = t.connect();
            connection.send(&request.bytes());
            let reply = t.reply(&mut connection, 1);
            assert_eq!(reply.text() == "hello GET", t.is_php_pool());
        },
    );
}
