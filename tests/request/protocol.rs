//! The FastCGI protocol itself: well-formed requests in unusual shapes, and what no web server would send.

use crate::harness::{Case, Cases, Request, Run};
use crate::support::fcgi::{
    ABORT_REQUEST, BEGIN_REQUEST, CANT_MPX_CONN, DATA, Ended, GET_VALUES, GET_VALUES_RESULT, PARAMS, REQUEST_COMPLETE,
    RESPONDER, Record, Reply, STDIN, UNKNOWN_ROLE, UNKNOWN_TYPE, begin, long_pair, pair, stream,
};
use crate::support::server::{Listen, Setup, php_fpm_release};

static TCP: Setup = Setup {
    name: "protocol-tcp",
    listen: Listen::Tcp("127.0.0.1"),
    ..Setup::BASE
};

const HELLO: &str = "echo 'hello ', $_SERVER['REQUEST_METHOD'];";

pub fn cases() -> Vec<Case> {
    Cases::of("protocol", |c| {
        pieces(c);
        parameters(c);
        ids_and_versions(c);
        roles_and_types(c);
        kept(c);
        management(c);
    })
}

fn pieces(c: &mut Cases) {
    const POSTED: &str = "echo $_SERVER['QUERY_STRING'], json_encode($_POST), strlen($_SERVER['LONG'] ?? '');";
    fn posted(t: &Run) -> Request {
        t.page(POSTED)
            .query("q=1")
            .post("application/x-www-form-urlencoded", "a=1&b=2")
            .set("LONG", "x".repeat(300))
    }
    const WANTED: &str = r#"q=1{"a":"1","b":"2"}300"#;
    c.same("a_request_may_come_byte_by_byte", &Setup::BASE, |t| {
        let bytes = posted(t).bytes();
        let mut connection = t.connect();
        connection.send_byte_by_byte(&bytes);
        assert_eq!(t.reply(&mut connection, 1).text(), WANTED);
    });
    c.same("a_request_may_come_byte_by_byte_over_tcp", &TCP, |t| {
        let bytes = posted(t).bytes();
        let mut connection = t.connect();
        connection.send_byte_by_byte(&bytes);
        assert_eq!(t.reply(&mut connection, 1).text(), WANTED);
    });
    c.same("a_request_may_be_split_at_every_byte", &Setup::BASE, |t| {
        let bytes = posted(t).bytes();
        for at in 1..bytes.len() {
            let mut connection = t.connect();
            connection.send(&bytes[..at]);
            // The server has to have read the first part by itself at least now and then.
            if at % 16 == 0 {
                std::thread::yield_now();
            }
            connection.send(&bytes[at..]);
            let reply = connection.reply(1);
            assert_eq!(reply.text(), WANTED, "split at {at}");
        }
    });
    c.same("two_requests_in_one_packet_are_both_answered", &Setup::BASE, |t| {
        let request = t.page("echo $_GET['n'];").keep();
        let both = [request.clone().query("n=1").bytes(), request.query("n=2").id(2).bytes()].concat();
        let mut connection = t.connect();
        connection.send(&both);
        assert_eq!(t.reply(&mut connection, 1).text(), "1");
        assert_eq!(t.reply(&mut connection, 2).text(), "2");
    });
    c.same("ten_requests_in_a_row_are_answered_in_order", &Setup::BASE, |t| {
        let request = t
            .page("echo $_GET['n'], strlen(file_get_contents('php://input'));")
            .post("text/plain", vec![b'x'; 5000])
            .keep();
        let all: Vec<u8> = (0..10)
            .flat_map(|n| request.clone().query(&format!("n={n}")).id(n + 1).bytes())
            .collect();
        let mut connection = t.connect();
        connection.send(&all);
        for n in 0..10 {
            assert_eq!(t.reply(&mut connection, n + 1).text(), format!("{n}5000"));
        }
    });
    c.same("a_client_may_half_close_after_its_request", &Setup::BASE, |t| {
        let request = t.page(HELLO);
        let mut connection = t.connect();
        connection.send(&request.bytes());
        connection.half_close();
        assert_eq!(t.reply(&mut connection, 1).text(), "hello GET");
        assert_eq!(connection.end(), (Vec::new(), Ended::Closed));
    });
    c.same("a_client_may_half_close_after_its_body_over_tcp", &TCP, |t| {
        let request = t
            .page("echo strlen(file_get_contents('php://input'));")
            .post("text/plain", vec![b'x'; 100_000]);
        let mut connection = t.connect();
        connection.send(&request.bytes());
        connection.half_close();
        assert_eq!(t.reply(&mut connection, 1).text(), "100000");
    });
    c.same(
        "a_request_without_the_end_of_its_body_is_answered_if_it_has_none",
        &Setup::BASE,
        |t| {
            let request = t.page(HELLO);
            let reply = t.send_raw(&request.head());
            assert_eq!(reply.text(), "hello GET");
        },
    );
    c.same("a_body_of_the_length_announced_needs_no_end", &Setup::BASE, |t| {
        let request = t
            .page("echo file_get_contents('php://input');")
            .post("text/plain", "body");
        let bytes = [request.head(), Record::new(STDIN, 1, "body").bytes()].concat();
        assert_eq!(t.send_raw(&bytes).text(), "body");
    });
    c.same("the_end_of_the_body_may_come_late", &Setup::BASE, |t| {
        let request = t
            .page("echo file_get_contents('php://input');")
            .post("text/plain", "body")
            .keep();
        let mut connection = t.connect();
        connection.send(&[request.head(), Record::new(STDIN, 1, "body").bytes()].concat());
        assert_eq!(t.reply(&mut connection, 1).text(), "body");
        connection.send(&[Record::new(STDIN, 1, []).bytes(), request.bytes()].concat());
        assert_eq!(t.reply(&mut connection, 1).text(), "body");
    });
    c.same("an_empty_body_record_may_come_before_the_request", &Setup::BASE, |t| {
        let request = t.page(HELLO);
        let empty = Record::new(STDIN, 1, []).bytes();
        let reply = t.send_raw(&[empty.clone(), empty, request.bytes()].concat());
        assert_eq!(reply.text(), "hello GET");
    });
}

fn parameters(c: &mut Cases) {
    /// BEGIN_REQUEST, these records, and the end of parameters and body.
    fn around(records: &[Vec<u8>]) -> Vec<u8> {
        let tail = [Record::new(PARAMS, 1, []).bytes(), Record::new(STDIN, 1, []).bytes()].concat();
        [begin(1, RESPONDER, 0).bytes(), records.concat(), tail].concat()
    }
    c.same(
        "lengths_in_four_bytes_are_understood_however_short",
        &Setup::BASE,
        |t| {
            let request = t.page(HELLO);
            let pairs: Vec<u8> = request.params.iter().flat_map(|(n, v)| long_pair(n, v)).collect();
            assert_eq!(
                t.send_raw(&around(&[Record::new(PARAMS, 1, pairs).bytes()])).text(),
                "hello GET"
            );
        },
    );
    c.same(
        "a_record_of_parameters_may_be_as_long_as_a_record_can",
        &Setup::BASE,
        |t| {
            let request = t.page("echo strlen($_SERVER['FILL']);");
            let pairs = request.pairs();
            let fill = 0xffff - pairs.len() - 5 - 4;
            let content = [pairs, pair(b"FILL", "x".repeat(fill).as_bytes())].concat();
            assert_eq!(content.len(), 0xffff);
            assert_eq!(
                t.send_raw(&around(&[Record::new(PARAMS, 1, content).bytes()])).text(),
                fill.to_string()
            );
        },
    );
    c.differs(
        "a_parameter_may_straddle_records",
        &Setup::BASE,
        "php-fpm closes the connection when a name or value goes on in the next record, though the protocol allows it; we \
         put it together.",
        |t| {
            let request = t.page(HELLO);
            let pairs = request.pairs();
            let outcome = |reply: &Reply| (reply.text(), reply.end.is_some());
            let wanted = if t.is_php_pool() { ("hello GET".to_owned(), true) } else { (String::new(), false) };
            for size in [1, 7, 100] {
                let records: Vec<Vec<u8>> = pairs.chunks(size).map(|part| Record::new(PARAMS, 1, part).bytes()).collect();
                let reply = t.send_raw(&around(&records));
                assert_eq!(outcome(&reply), wanted, "in records of {size}");
            }
        },
    );
    c.differs(
        "a_parameter_may_be_longer_than_a_record",
        &Setup::BASE,
        "For php-fpm a name and its value must fit into one record of 64 KB; for us a parameter may be longer.",
        |t| {
            let request = t
                .page("echo md5($_SERVER['HUGE']), strlen($_SERVER['HUGE']);")
                .set("HUGE", "abcdefg".repeat(30_000));
            let records: Vec<Vec<u8>> = request
                .pairs()
                .chunks(0xfff8)
                .map(|part| Record::new(PARAMS, 1, part).bytes())
                .collect();
            let reply = t.send_raw(&around(&records));
            assert_eq!(reply.text().ends_with("210000"), t.is_php_pool(), "{reply}");
        },
    );
    c.differs(
        "parameters_have_a_limit",
        &Setup::BASE,
        "php-fpm takes parameters of any total size; we close the connection beyond 16 MB.",
        |t| {
            let mut request = t.page("echo count($_SERVER) > 280 ? 'many' : 'few';");
            for n in 0..280 {
                request = request.add(format!("BIG{n}"), "x".repeat(60_000));
            }
            let reply = t.send_raw(&request.bytes());
            assert_eq!(reply.text(), if t.is_php_pool() { "" } else { "many" });
        },
    );
    c.differs(
        "the_end_of_the_parameters_may_be_padded",
        &Setup::BASE,
        "php-fpm takes the padding of the empty PARAMS record for the next header and closes; we skip it.",
        |t| {
            let request = t
                .page("echo file_get_contents('php://input');")
                .post("text/plain", "body");
            let bytes = [
                begin(1, RESPONDER, 0).padded(8).bytes(),
                Record::new(PARAMS, 1, request.pairs()).padded(255).bytes(),
                Record::new(PARAMS, 1, []).padded(8).bytes(),
                request.tail(),
            ];
            let reply = t.send_raw(&bytes.concat());
            assert_eq!(reply.text() == "body", t.is_php_pool(), "{reply}");
        },
    );
    c.same("begin_and_parameters_may_be_padded", &Setup::BASE, |t| {
        let request = t.page(HELLO);
        let bytes = [
            begin(1, RESPONDER, 0).padded(255).bytes(),
            Record::new(PARAMS, 1, request.pairs()).padded(7).bytes(),
            Record::new(PARAMS, 1, []).bytes(),
            Record::new(STDIN, 1, []).bytes(),
        ];
        assert_eq!(t.send_raw(&bytes.concat()).text(), "hello GET");
    });
    c.differs(
        "the_end_of_the_body_may_be_padded",
        &Setup::BASE,
        "php-fpm takes the padding of the empty STDIN record for a header, and a kept connection is lost; we skip it.",
        |t| {
            let request = t.page(HELLO).keep();
            let bytes = [request.head(), Record::new(STDIN, 1, []).padded(5).bytes()].concat();
            let mut connection = t.connect();
            connection.send(&bytes);
            assert_eq!(t.reply(&mut connection, 1).text(), "hello GET");
            connection.send(&bytes);
            assert_eq!(t.reply(&mut connection, 1).text() == "hello GET", t.is_php_pool());
        },
    );
    c.same("a_truncated_parameter_closes_the_connection", &Setup::BASE, |t| {
        let pairs = t.page("echo 'never';").pairs();
        for cut in [1, 5, pairs.len() - 1] {
            let reply = t.send_raw(&around(&[Record::new(PARAMS, 1, &pairs[..pairs.len() - cut]).bytes()]));
            assert_eq!((reply.stdout.len(), reply.end), (0, None));
        }
    });
    c.same("a_length_that_lies_closes_the_connection", &Setup::BASE, |t| {
        for lie in [
            b"\x05\x05ab".to_vec(),
            b"\xff\xff\xff\xff\x01ab".to_vec(),
            b"\x01\xff\xff\xff\xffab".to_vec(),
            b"\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
            b"\x80".to_vec(),
            b"\x7f".to_vec(),
        ] {
            let reply = t.send_raw(&around(&[Record::new(PARAMS, 1, lie).bytes()]));
            assert_eq!((reply.stdout.len(), reply.end), (0, None));
        }
    });
    c.same(
        "the_end_of_the_parameters_may_be_left_out_before_the_body",
        &Setup::BASE,
        |t| {
            let request = t.page(HELLO);
            let bytes = [
                begin(1, RESPONDER, 0).bytes(),
                Record::new(PARAMS, 1, request.pairs()).bytes(),
                Record::new(STDIN, 1, []).bytes(),
            ];
            assert_eq!(t.send_raw(&bytes.concat()).text(), "hello GET");
        },
    );
}

fn ids_and_versions(c: &mut Cases) {
    c.same("the_id_of_the_request_is_that_of_the_answer", &Setup::BASE, |t| {
        for id in [1, 2, 255, 256, 0x1234, 65535] {
            let request = t.page(HELLO).id(id);
            assert_eq!(t.send(&request).text(), "hello GET", "{id}");
        }
    });
    c.same("the_id_zero_works_as_any_other", &Setup::BASE, |t| {
        let request = t.page(HELLO).id(0);
        assert_eq!(t.send(&request).text(), "hello GET");
    });
    c.same("a_version_of_zero_closes_the_connection", &Setup::BASE, |t| {
        let request = t.page("echo 'never';");
        let bytes = [
            begin(1, RESPONDER, 0).version(0).bytes(),
            request.bytes()[16..].to_vec(),
        ]
        .concat();
        let reply = t.send_raw(&bytes);
        assert_eq!((reply.records.len(), reply.end), (0, None));
    });
    c.same("a_later_version_is_served", &Setup::BASE, |t| {
        let request = t.page(HELLO);
        let bytes = [
            begin(1, RESPONDER, 0).version(7).bytes(),
            request.bytes()[16..].to_vec(),
        ]
        .concat();
        assert_eq!(t.send_raw(&bytes).text(), "hello GET");
    });
    c.same("only_the_lowest_flag_counts", &Setup::BASE, |t| {
        let request = t.page(HELLO);
        let mut connection = t.connect();
        connection.send(&Request { flags: 0xfe, ..request }.bytes());
        t.reply(&mut connection, 1);
        assert_eq!(connection.end().1, Ended::Closed);
    });
    c.same("all_flags_together_keep_the_connection", &Setup::BASE, |t| {
        let request = Request {
            flags: 0xff,
            ..t.page(HELLO)
        };
        let mut connection = t.connect();
        for _ in 0..2 {
            connection.send(&request.bytes());
            assert_eq!(t.reply(&mut connection, 1).text(), "hello GET");
        }
    });
    c.same("a_begin_of_the_wrong_length_closes_the_connection", &Setup::BASE, |t| {
        for length in [0, 1, 7, 9, 16, 1000] {
            let mut content = vec![0; length];
            if length > 1 {
                content[1] = 1;
            }
            let bytes = [
                Record::new(BEGIN_REQUEST, 1, content).bytes(),
                t.page("echo 'never';").bytes()[16..].to_vec(),
            ];
            let reply = t.send_raw(&bytes.concat());
            assert_eq!((reply.records.len(), reply.end), (0, None), "{length}");
        }
    });
    c.differs(
        "reserved_bytes_of_the_answer_are_zero",
        &Setup::BASE,
        "php-fpm sends three bytes of an older answer in the reserved field of END_REQUEST; ours are zero.",
        |t| {
            t.writable("met");
            let request = t.page("echo str_repeat('secret', 3000);");
            let mut leaked = false;
            for _ in 0..8 {
                let reply = t.send_unrecorded(&request);
                leaked |= reply.end.is_some_and(|end| end.reserved != [0; 3]);
            }
            t.note(format!("leaked: {leaked}"));
            assert_eq!(leaked, !t.is_php_pool());
        },
    );
}

fn roles_and_types(c: &mut Cases) {
    c.differs(
        "an_unknown_role_is_answered_as_such",
        &Setup::BASE,
        "php-fpm closes the connection without a word when it does not know the role; we answer END_REQUEST with \
         FCGI_UNKNOWN_ROLE, and a kept connection stays open.",
        |t| {
            for role in [0, 4, 0x0101, 65535] {
                let request = Request {
                    role,
                    ..t.page("echo 'never';")
                };
                let reply = t.send_raw(&request.bytes());
                assert_eq!(reply.stdout.len(), 0);
                assert_eq!(
                    reply.end.map(|end| end.protocol_status),
                    t.is_php_pool().then_some(UNKNOWN_ROLE),
                    "{role}"
                );
            }
            if t.is_php_pool() {
                let mut connection = t.connect();
                let request = t.page(HELLO).keep();
                connection.send(
                    &Request {
                        role: 9,
                        ..request.clone()
                    }
                    .bytes(),
                );
                assert_eq!(
                    t.reply(&mut connection, 1).end.map(|end| end.protocol_status),
                    Some(UNKNOWN_ROLE)
                );
                connection.send(&request.bytes());
                assert_eq!(t.reply(&mut connection, 1).text(), "hello GET");
            }
        },
    );
    c.differs(
        "an_unknown_type_is_answered_as_such",
        &Setup::BASE,
        "php-fpm closes the connection when it does not know a record's type; we answer FCGI_UNKNOWN_TYPE and serve on.",
        |t| {
            for (kind, id) in [(0, 0), (11, 0), (12, 0), (99, 0), (255, 0), (99, 1)] {
                let request = t.page(HELLO);
                let mut connection = t.connect();
                connection.send(&[Record::new(kind, id, "content").padded(3).bytes(), request.bytes()].concat());
                if t.is_php_pool() {
                    let answer = connection.next_record().expect("an answer");
                    assert_eq!((answer.kind, answer.id, answer.content[0]), (UNKNOWN_TYPE, 0, kind));
                    assert_eq!(answer.content[1..], [0; 7]);
                }
                let reply = t.reply(&mut connection, 1);
                assert_eq!(reply.text() == "hello GET", t.is_php_pool(), "{kind}");
            }
        },
    );
    c.same(
        "a_first_record_that_begins_nothing_closes_the_connection",
        &Setup::BASE,
        |t| {
            for (kind, content) in [
                (ABORT_REQUEST, ""),
                (PARAMS, "\u{1}\u{1}ab"),
                (PARAMS, ""),
                (STDIN, "body"),
                (DATA, "data"),
            ] {
                let request = t.page("echo 'never';");
                let reply = t.send_raw(&[Record::new(kind, 1, content).bytes(), request.bytes()].concat());
                assert_eq!((reply.records.len(), reply.end), (0, None), "{kind}");
            }
        },
    );
    c.same(
        "a_record_that_only_servers_send_closes_the_connection",
        &Setup::BASE,
        |t| {
            for kind in [3, 6, 7, 10] {
                let request = t.page("echo 'never';");
                let reply = t.send_raw(&[Record::new(kind, 1, "12345678").bytes(), request.bytes()].concat());
                assert_eq!((reply.records.len(), reply.end), (0, None), "{kind}");
            }
        },
    );
    c.same("another_protocol_closes_the_connection", &Setup::BASE, |t| {
        for kept in [false, true] {
            let mut connection = t.connect();
            if kept {
                connection.send(&t.page(HELLO).keep().bytes());
                assert_eq!(t.reply(&mut connection, 1).text(), "hello GET");
            }
            connection.send(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n");
            assert!(connection.end().0.is_empty());
        }
    });
    c.differs(
        "a_record_out_of_place_within_a_request_closes_the_connection",
        &Setup::BASE,
        "php-fpm takes records that only a server sends, and parameters within a body, for the end of what it waits for, and \
         runs the script; we close the connection.",
        |t| {
            let request = t.page("echo 'ran';").post("text/plain", "body");
            for kind in [3, 6, 7, 10] {
                let stray = Record::new(kind, 1, "12345678").bytes();
                for at in [16, request.head().len()] {
                    let bytes = request.bytes();
                    let reply = t.send_raw(&[&bytes[..at], &stray, &bytes[at..]].concat());
                    assert_eq!(reply.end.is_none(), t.is_php_pool(), "{kind} at {at}");
                }
            }
            let late = Record::new(PARAMS, 1, pair(b"A", b"b")).bytes();
            let reply = t.send_raw(&[request.head(), late, request.tail()].concat());
            assert_eq!(reply.end.is_none(), t.is_php_pool());
        },
    );
    c.differs(
        "records_of_another_request_are_no_part_of_this_one",
        &Setup::BASE,
        "php-fpm does not look at the request id of parameters and bodies and takes any for the request's own; we skip what is \
         not.",
        |t| {
            let request = t
                .page("echo $_SERVER['ODD'] ?? 'none', file_get_contents('php://input');")
                .post("text/plain", "body");
            let (bytes, head) = (request.bytes(), request.head().len());
            let parts = [
                &bytes[..16],
                &Record::new(PARAMS, 2, pair(b"ODD", b"taken")).bytes(),
                &bytes[16..head],
                &Record::new(STDIN, 2, "evil").bytes(),
                &bytes[head..],
            ];
            let wanted = if t.is_php_pool() { "nonebody" } else { "takenevil" };
            assert_eq!(t.send_raw(&parts.concat()).text(), wanted);
        },
    );
    c.same("data_for_a_filter_is_not_read", &Setup::BASE, |t| {
        let request = t
            .page("echo $_SERVER['FCGI_ROLE'], file_get_contents('php://input');")
            .post("text/plain", "body");
        let request = Request { role: 3, ..request };
        let bytes = [request.bytes(), stream(DATA, 1, b"the file to filter", 5)].concat();
        assert_eq!(t.send_raw(&bytes).text(), "FILTERbody");
    });
    c.differs(
        "a_request_given_up_before_its_parameters_ended_does_not_run",
        &Setup::BASE,
        "php-fpm takes FCGI_ABORT_REQUEST for the end of the parameters and runs the script; for us the request is over.",
        |t| {
            let ran = t.writable("ran").join("it");
            let request = t.page("touch(__DIR__ . '/ran/it'); echo 'ran';");
            let bytes = [begin(1, RESPONDER, 0).bytes(), Record::new(PARAMS, 1, request.pairs()).bytes(), Record::new(ABORT_REQUEST, 1, []).bytes()];
            let reply = t.send_raw(&bytes.concat());
            assert_eq!((reply.text() == "ran", ran.exists()), (!t.is_php_pool(), !t.is_php_pool()));
            assert_eq!(reply.end.map(|end| end.protocol_status), Some(REQUEST_COMPLETE));
        },
    );
    c.differs(
        "a_request_given_up_within_its_body_does_not_run",
        &Setup::BASE,
        "php-fpm runs the script on FCGI_ABORT_REQUEST, with the body cut short; for us the request is over.",
        |t| {
            let request = t
                .page("echo 'ran';")
                .post("application/x-www-form-urlencoded", "a=1&b=2&c=3");
            let bytes = [
                request.head(),
                Record::new(STDIN, 1, "a=1&b").bytes(),
                Record::new(ABORT_REQUEST, 1, []).bytes(),
            ];
            let reply = t.send_raw(&bytes.concat());
            assert_eq!(reply.text(), if t.is_php_pool() { "" } else { "ran" });
        },
    );
    c.differs(
        "after_a_request_given_up_a_kept_connection_serves_the_next",
        &Setup::BASE,
        "php-fpm closes the connection after FCGI_ABORT_REQUEST; for us it stays usable.",
        |t| {
            let request = t.page(HELLO).post("text/plain", "0123456789").keep();
            let mut connection = t.connect();
            let given_up = [
                request.head(),
                Record::new(STDIN, 1, "01234").bytes(),
                Record::new(ABORT_REQUEST, 1, []).bytes(),
            ];
            connection.send(&given_up.concat());
            t.reply(&mut connection, 1);
            connection.send(&request.clone().id(2).bytes());
            let reply = t.reply(&mut connection, 2);
            assert_eq!(reply.text() == "hello POST", t.is_php_pool(), "{reply}");
        },
    );
}

fn kept(c: &mut Cases) {
    c.same("a_kept_connection_serves_many_requests", &Setup::BASE, |t| {
        let mut connection = t.connect();
        for n in 0..50 {
            let request = t
                .page("echo $_GET['n'], file_get_contents('php://input');")
                .query(&format!("n={n}"))
                .keep();
            let request = if n % 3 == 0 {
                request.post("text/plain", "body")
            } else {
                request
            };
            connection.send(&request.bytes());
            assert_eq!(
                t.reply(&mut connection, 1).text(),
                if n % 3 == 0 { format!("{n}body") } else { n.to_string() }
            );
        }
    });
    c.same(
        "a_kept_connection_ends_with_a_request_that_does_not_keep_it",
        &Setup::BASE,
        |t| {
            let request = t.page(HELLO);
            let mut connection = t.connect();
            connection.send(&request.clone().keep().bytes());
            t.reply(&mut connection, 1);
            connection.send(&request.bytes());
            t.reply(&mut connection, 1);
            assert_eq!(connection.end(), (Vec::new(), Ended::Closed));
        },
    );
    c.same(
        "parameters_of_one_request_are_not_those_of_the_next",
        &Setup::BASE,
        |t| {
            let request = t
                .page("echo $_SERVER['ONCE'] ?? 'none', getenv('ONCE') ?: 'none';")
                .keep();
            let mut connection = t.connect();
            for (set, wanted) in [(true, "xx"), (false, "nonenone"), (true, "xx"), (false, "nonenone")] {
                let request = if set {
                    request.clone().set("ONCE", "x")
                } else {
                    request.clone()
                };
                connection.send(&request.bytes());
                assert_eq!(t.reply(&mut connection, 1).text(), wanted);
            }
        },
    );
    c.same(
        "the_end_of_a_body_may_come_in_pieces_after_the_answer",
        &Setup::BASE,
        |t| {
            let request = t
                .page("echo file_get_contents('php://input');")
                .post("text/plain", "body")
                .keep();
            let mut connection = t.connect();
            let bytes = request.bytes();
            // All of the body, and a part of the header of the empty STDIN record.
            for missing in 1..8 {
                let (first, rest) = bytes.split_at(bytes.len() - missing);
                connection.send(first);
                assert_eq!(t.reply(&mut connection, 1).text(), "body", "{missing} bytes later");
                connection.send(&[rest, &bytes].concat());
                assert_eq!(t.reply(&mut connection, 1).text(), "body", "{missing} bytes came");
            }
        },
    );
    c.same("an_unread_form_is_skipped_before_the_next_request", &Setup::BASE, |t| {
        // Not found: nobody reads the body.
        let request = t.get("/nope.php").post("text/plain", vec![b'x'; 100_000]).keep();
        let next = t.page(HELLO).keep();
        let mut connection = t.connect();
        for _ in 0..2 {
            connection.send(&[request.bytes(), next.bytes()].concat());
            assert_eq!(t.reply(&mut connection, 1).status(), 404);
            assert_eq!(t.reply(&mut connection, 1).text(), "hello GET");
        }
    });
    c.same("a_fatal_error_leaves_a_kept_connection_usable", &Setup::BASE, |t| {
        let request = t
            .page("if (isset($_GET['die'])) no_such_function(); echo 'alive';")
            .keep();
        let mut connection = t.connect();
        for query in ["die", "", "die", ""] {
            connection.send(&request.clone().query(query).bytes());
            let reply = t.reply(&mut connection, 1);
            assert_eq!(reply.status(), if query == "die" { 500 } else { 200 });
        }
    });
    c.differs(
        "a_body_longer_than_announced_is_never_run_as_a_request",
        &Setup::BASE,
        "On a kept connection php-fpm before 8.2.36 (CVE-2026-129289) reads what follows CONTENT_LENGTH as new records: a \
         body that holds a request of its own gets it executed; since then it closes the connection. For us a body is only \
         ever a body, and the next request is served.",
        |t| {
            let ran = t.writable("ran").join("it");
            t.file("inner.php", "<?php touch(__DIR__ . '/ran/it'); echo 'inner';");
            let inner = t.get("/inner.php").id(9).bytes();
            let request = t.page("echo 'outer', file_get_contents('php://input');").post("text/plain", "abc").keep();
            let mut connection = t.connect();
            let body = Record::new(STDIN, 1, [b"abc".to_vec(), inner].concat()).bytes();
            connection.send(&[request.head(), body, Record::new(STDIN, 1, []).bytes()].concat());
            assert_eq!(t.reply(&mut connection, 1).text(), "outerabc");
            if t.is_php_pool() {
                let next = t.page(HELLO);
                connection.send(&next.bytes());
                assert_eq!(t.reply(&mut connection, 1).text(), "hello GET");
                assert!(!ran.exists(), "the body was run");
            } else if php_fpm_release() < [8, 2, 36] {
                assert_eq!(t.reply(&mut connection, 9).text(), "inner");
            } else {
                assert_eq!(connection.end().0, b"");
                assert!(!ran.exists(), "the body was run");
            }
        },
    );
    c.differs(
        "a_body_nobody_announced_is_skipped",
        &Setup::BASE,
        "A body without CONTENT_LENGTH ends a kept connection of php-fpm; we skip it.",
        |t| {
            let request = t.page(HELLO).keep();
            let mut connection = t.connect();
            connection.send(&[request.head(), stream(STDIN, 1, b"unannounced", 4), request.bytes()].concat());
            assert_eq!(t.reply(&mut connection, 1).text(), "hello GET");
            let second = t.reply(&mut connection, 1);
            assert_eq!(second.text() == "hello GET", t.is_php_pool(), "{second}");
        },
    );
    c.differs(
        "a_second_request_within_the_first_is_told_that_it_cannot_be",
        &Setup::BASE,
        "php-fpm takes the second BEGIN_REQUEST for the end of the first one's parameters or body; we answer the second \
         with FCGI_CANT_MPX_CONN and serve the first (or close the connection, if both have one id).",
        |t| {
            let request = t.page("echo file_get_contents('php://input');").post("text/plain", "body");
            t.file("other.php", "<?php echo 'never';");
            let other = t.get("/other.php").id(2);
            let mut connection = t.connect();
            connection.send(&request.head());
            connection.send(&[Record::new(STDIN, 1, "bo").bytes(), other.head(), Record::new(STDIN, 1, "dy").bytes()].concat());
            connection.send(&[Record::new(STDIN, 2, []).bytes(), Record::new(STDIN, 1, []).bytes()].concat());
            if t.is_php_pool() {
                let refusal = connection.next_record().expect("an answer");
                assert_eq!((refusal.kind, refusal.id, refusal.content[4]), (3, 2, CANT_MPX_CONN));
            }
            let reply = t.reply(&mut connection, 1);
            assert_eq!(reply.text() == "body", t.is_php_pool(), "{reply}");
        },
    );
}

fn management(c: &mut Cases) {
    fn ask(names: &[&str]) -> Vec<u8> {
        let content: Vec<u8> = names.iter().flat_map(|name| pair(name.as_bytes(), b"")).collect();
        Record::new(GET_VALUES, 0, content).bytes()
    }
    c.same("the_server_says_that_it_does_not_multiplex", &Setup::BASE, |t| {
        let mut connection = t.connect();
        connection.send(&ask(&["FCGI_MPXS_CONNS", "NO_SUCH_NAME"]));
        let answer = connection.next_record().expect("an answer");
        t.note(format!("{answer:?}"));
        assert_eq!(
            (answer.kind, answer.id, answer.content),
            (GET_VALUES_RESULT, 0, pair(b"FCGI_MPXS_CONNS", b"0"))
        );
    });
    c.same("a_question_about_nothing_gets_an_empty_answer", &Setup::BASE, |t| {
        let mut connection = t.connect();
        connection.send(&ask(&[]));
        let answer = connection.next_record().expect("an answer");
        assert_eq!((answer.kind, answer.content.len()), (GET_VALUES_RESULT, 0));
    });
    c.differs(
        "the_server_says_how_many_requests_it_takes",
        &Setup::BASE,
        "php-fpm leaves FCGI_MAX_CONNS and FCGI_MAX_REQS out of its answer to FCGI_GET_VALUES; we answer with pm.max_children.",
        |t| {
            let mut connection = t.connect();
            connection.send(&ask(&["FCGI_MAX_CONNS", "FCGI_MAX_REQS"]));
            let answer = connection.next_record().expect("an answer");
            t.note(answer.content.escape_ascii().to_string());
            let all = [pair(b"FCGI_MAX_CONNS", b"4"), pair(b"FCGI_MAX_REQS", b"4")].concat();
            assert_eq!(answer.content, if t.is_php_pool() { all } else { Vec::new() });
        },
    );
    c.same("questions_do_not_disturb_the_requests_around_them", &Setup::BASE, |t| {
        let request = t.page(HELLO).keep();
        let mut connection = t.connect();
        for _ in 0..3 {
            connection.send(&ask(&["FCGI_MPXS_CONNS"]));
            assert_eq!(connection.next_record().expect("an answer").kind, GET_VALUES_RESULT);
            connection.send(&request.bytes());
            assert_eq!(t.reply(&mut connection, 1).text(), "hello GET");
        }
    });
    c.same("after_a_question_alone_the_connection_stays_open", &Setup::BASE, |t| {
        let request = t.page(HELLO);
        let mut connection = t.connect();
        connection.send(&ask(&["FCGI_MPXS_CONNS"]));
        connection.next_record().expect("an answer");
        connection.send(&request.bytes());
        assert_eq!(t.reply(&mut connection, 1).text(), "hello GET");
    });
    c.same("a_question_may_be_padded", &Setup::BASE, |t| {
        let mut connection = t.connect();
        connection.send(
            &Record::new(GET_VALUES, 0, pair(b"FCGI_MPXS_CONNS", b""))
                .padded(6)
                .bytes(),
        );
        assert_eq!(connection.next_record().expect("an answer").kind, GET_VALUES_RESULT);
    });
}
