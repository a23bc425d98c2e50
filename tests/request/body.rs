//! Request bodies: forms, uploads, `php://input`, limits, records of every size.

use crate::harness::{Case, Cases, Request, Run, wait_until};
use crate::support::fcgi::{self, PARAMS, Record, STDIN};
use crate::support::server::{Listen, Setup};

const FORM: &str = "application/x-www-form-urlencoded";

static LIMITED: Setup = Setup {
    name: "body-limited",
    ini: "post_max_size = 1000\nupload_max_filesize = 100\nmax_file_uploads = 2\nmax_input_vars = 5\n\
          max_multipart_body_parts = 6\nmax_input_nesting_level = 3\n",
    ..Setup::BASE
};

static UNREAD: Setup = Setup {
    name: "body-unread",
    ini: "enable_post_data_reading = 0\n",
    ..Setup::BASE
};

static NO_UPLOADS: Setup = Setup {
    name: "no-uploads",
    ini: "file_uploads = 0\n",
    ..Setup::BASE
};

static LARGE: Setup = Setup {
    name: "body-large",
    ini: "post_max_size = 64M\nupload_max_filesize = 64M\nmemory_limit = 512M\nmax_input_vars = 100000\n",
    ..Setup::BASE
};

static LARGE_TCP: Setup = Setup {
    name: "body-large-tcp",
    listen: Listen::Tcp("127.0.0.1"),
    ..LARGE
};

static BESIDE: Setup = Setup {
    name: "uploads-beside",
    workers: 1,
    ini: "upload_tmp_dir = kept\n",
    ..Setup::BASE
};

static SESSION_BESIDE: Setup = Setup {
    name: "session-beside",
    workers: 1,
    ini: "session.auto_start = 1\nsession.save_path = kept\n",
    ..Setup::BASE
};

pub fn cases() -> Vec<Case> {
    Cases::of("body", |c| {
        forms(c);
        uploads(c);
        input(c);
        sizes(c);
        lengths(c);
    })
}

/// A multipart body of `parts`: name, file name and type if it is a file, content.
struct Multipart(Vec<u8>);

impl Multipart {
    const TYPE: &'static str = "multipart/form-data; boundary=XyZ";

    fn new() -> Self {
        Self(Vec::new())
    }

    fn field(mut self, name: &str, value: &str) -> Self {
        self.0.extend(
            format!("--XyZ\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").into_bytes(),
        );
        self
    }

    fn file(mut self, name: &str, file: &str, content: &[u8]) -> Self {
        let head = format!(
            "--XyZ\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{file}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        self.0.extend([head.as_bytes(), content, b"\r\n"].concat());
        self
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(b"--XyZ--\r\n");
        self.0
    }
}

/// Bytes without a pattern that a lost or doubled piece could hide in.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[3]
    };
    (0..length).map(next).collect()
}

/// Prints files of an upload without their temporary names.
const FILES: &str = "
    function hide($v) { return is_array($v) ? array_map('hide', $v) : ($v === '' ? '' : 'tmp'); }
    $f = $_FILES; foreach ($f as &$e) if (isset($e['tmp_name'])) $e['tmp_name'] = hide($e['tmp_name']);
    unset($e); echo json_encode(['post' => $_POST, 'files' => $f]), \"\\n\";";

fn forms(c: &mut Cases) {
    c.same("a_form_becomes_post", &Setup::BASE, |t| {
        let request = t.page("echo json_encode([$_POST, $_REQUEST, $_GET]);");
        let request = request
            .query("g=1&a=get")
            .post(FORM, "a=1&b=%C3%A4+x&c[]=1&c[]=2&d[k][l]=m");
        assert!(
            t.send(&request)
                .text()
                .starts_with(r#"[{"a":"1","b":"\u00e4 x","c":["1","2"],"d":{"k":{"l":"m"}}}"#)
        );
    });
    c.same("a_form_type_with_a_charset_is_a_form", &Setup::BASE, |t| {
        let request = t
            .page("echo json_encode($_POST);")
            .post(&format!("{FORM}; charset=UTF-8"), "a=1");
        assert_eq!(t.send(&request).text(), r#"{"a":"1"}"#);
        let request = t
            .page("echo json_encode($_POST);")
            .post("Application/X-WWW-Form-UrlEncoded", "a=1");
        t.send(&request);
    });
    c.same("another_type_is_no_form", &Setup::BASE, |t| {
        let request = t.page("echo json_encode($_POST), file_get_contents('php://input');");
        for kind in ["application/json", "text/plain", "", "nonsense"] {
            assert_eq!(t.send(&request.clone().post(kind, "{\"a\":1}")).text(), "[]{\"a\":1}");
        }
    });
    c.same("a_post_without_a_type_is_still_read", &Setup::BASE, |t| {
        let request = t.page("echo json_encode($_POST), file_get_contents('php://input');");
        assert_eq!(t.send(&request.post("", "a=1").unset("CONTENT_TYPE")).text(), "[]a=1");
    });
    c.same("a_form_can_be_read_again_as_input", &Setup::BASE, |t| {
        let request = t.page("echo count($_POST), file_get_contents('php://input'), file_get_contents('php://input');");
        assert_eq!(t.send(&request.post(FORM, "a=1&b=2")).text(), "2a=1&b=2a=1&b=2");
    });
    c.same("a_form_by_put_is_not_parsed", &Setup::BASE, |t| {
        let request = t.page("echo count($_POST), file_get_contents('php://input');");
        assert_eq!(t.send(&request.post(FORM, "a=1&b=2").method("PUT")).text(), "0a=1&b=2");
    });
    c.same("an_empty_form_is_no_error", &Setup::BASE, |t| {
        let request = t
            .page("echo json_encode($_POST), file_get_contents('php://input');")
            .post(FORM, "");
        assert_eq!(t.send(&request).text(), "[]");
    });
    c.same("an_unread_form_does_not_disturb_the_next_request", &UNREAD, |t| {
        let request = t.page("echo count($_POST);").post(FORM, noise(100_000));
        let mut connection = t.connect();
        for id in 1..4 {
            connection.send(&request.clone().keep().id(id).bytes());
            assert_eq!(t.reply(&mut connection, id).text(), "0");
        }
    });
    c.same("without_reading_post_the_body_is_left_to_the_script", &UNREAD, |t| {
        let request = t
            .page("echo count($_POST), file_get_contents('php://input');")
            .post(FORM, "a=1");
        assert_eq!(t.send(&request).text(), "0a=1");
    });
    c.same("too_many_variables_are_cut_and_reported", &LIMITED, |t| {
        let request = t.page("echo count($_POST);").post(FORM, "a=1&b=1&c=1&d=1&e=1&f=1&g=1");
        let reply = t.send(&request);
        assert_eq!(reply.text(), "6");
        assert!(
            reply.errors().contains("Input variables exceeded 5"),
            "{}",
            reply.errors()
        );
    });
    c.same("a_form_beyond_post_max_size_is_dropped_and_reported", &LIMITED, |t| {
        let request = t.page("echo count($_POST), strlen(file_get_contents('php://input'));");
        for length in [1000, 1001, 100_000] {
            let body = format!("a={}", "x".repeat(length - 2));
            let reply = t.send(&request.clone().post(FORM, body));
            assert_eq!(
                reply.errors().contains("exceeds the limit of 1000 bytes"),
                length > 1000,
                "{}",
                reply.errors()
            );
        }
    });
    c.same("deep_arrays_are_dropped", &LIMITED, |t| {
        let request = t
            .page("echo json_encode($_POST);")
            .post(FORM, "a[b][c]=1&d[e][f][g][h]=2&i=3");
        t.send(&request);
    });
    c.same("a_form_of_a_megabyte_arrives_whole", &LARGE, |t| {
        let body: Vec<String> = (0..50_000).map(|n| format!("a_field_of_some_length_{n}={n}")).collect();
        let request = t
            .page("echo count($_POST), ' ', array_sum($_POST), ' ', $_SERVER['REQUEST_METHOD'];")
            .post(FORM, body.join("&"));
        assert_eq!(t.send(&request).text(), "50000 1249975000 POST");
        let one = t
            .page("echo strlen($_POST['a']), md5($_POST['a']);")
            .post(FORM, format!("a={}", "xyz".repeat(700_000)));
        assert!(t.send(&one).text().starts_with("2100000"));
    });
}

fn uploads(c: &mut Cases) {
    c.same(
        "a_relative_folder_is_that_of_the_worker_whatever_ran_before",
        &BESIDE,
        |t| {
            t.kept_by_the_worker();
            t.php("echo getcwd() === __DIR__ ? 'in the folder of the script' : 'elsewhere';");
            let upload = t
                .page("echo dirname($_FILES['f']['tmp_name']), ' ', getcwd() === __DIR__;")
                .post(Multipart::TYPE, Multipart::new().file("f", "a.txt", b"content").end());
            let home = t.server.home.display().to_string();
            assert_eq!(t.send(&upload).text(), format!("{home}/kept 1"));
        },
    );
    c.same(
        "a_session_that_starts_by_itself_is_in_the_workers_folder",
        &SESSION_BESIDE,
        |t| {
            t.kept_by_the_worker();
            t.file("first.php", "<?php echo 'first';");
            t.send_unrecorded(&t.get("/first.php"));
            let request = t.page("echo is_file($_SERVER['FOLDER'] . '/sess_' . session_id()) ? 'there' : 'elsewhere';");
            let request = request.set("FOLDER", t.server.home.join("kept").display().to_string());
            assert_eq!(t.send_unrecorded(&request).text(), "there");
        },
    );
    c.same("a_file_arrives_whole_and_can_be_moved", &Setup::BASE, |t| {
        t.writable("in");
        let content = noise(70_000);
        let body = Multipart::new()
            .field("title", "ä")
            .file("doc", "my file.bin", &content)
            .end();
        let request = t
            .page(&format!(
                "{FILES} var_dump(is_uploaded_file($_FILES['doc']['tmp_name']),
                    move_uploaded_file($_FILES['doc']['tmp_name'], __DIR__ . '/in/moved'),
                    filesize('in/moved'), strlen(file_get_contents('php://input')));"
            ))
            .post(Multipart::TYPE, body);
        let reply = t.send(&request);
        assert!(reply.text().contains("\"size\":70000") && reply.text().contains("bool(true)\nbool(true)\nint(70000)"));
        assert_eq!(std::fs::read(t.root.join("in/moved")).expect("moved there"), content);
    });
    c.same("an_upload_that_is_not_moved_is_deleted", &Setup::BASE, |t| {
        let request = t
            .page("$n = $_FILES['f']['tmp_name']; var_dump(file_exists($n)); echo \"\\n\", $n;")
            .post(Multipart::TYPE, Multipart::new().file("f", "x", b"content").end());
        let text = t.send_unrecorded(&request).text();
        let (existed, name) = text.rsplit_once('\n').expect("two lines");
        assert!(existed.starts_with("bool(true)"), "{text}");
        wait_until("the temporary file is gone", || !std::path::Path::new(name).exists());
    });
    c.same("arrays_of_files_are_kept_apart", &Setup::BASE, |t| {
        let body = Multipart::new()
            .file("f[]", "a.txt", b"a")
            .file("f[]", "b.txt", b"bb")
            .file("g[k][l]", "dir/c.txt", b"ccc")
            .field("v[]", "1")
            .end();
        let request = t.page(FILES).post(Multipart::TYPE, body);
        assert!(t.send(&request).text().contains(r#""size":[1,2]"#));
    });
    c.same("an_upload_without_a_file_says_so", &Setup::BASE, |t| {
        let request = t
            .page(FILES)
            .post(Multipart::TYPE, Multipart::new().file("f", "", b"").end());
        assert!(t.send(&request).text().contains(r#""error":4"#));
    });
    c.same(
        "a_file_beyond_its_limit_is_refused_and_the_fields_stay",
        &LIMITED,
        |t| {
            let body = Multipart::new()
                .field("a", "1")
                .file("f", "x", &noise(101))
                .field("b", "2")
                .end();
            let request = t.page(FILES).post(Multipart::TYPE, body);
            let text = t.send(&request).text();
            assert!(
                text.contains(r#""error":1"#) && text.contains(r#""post":{"a":"1","b":"2"}"#),
                "{text}"
            );
        },
    );
    c.same("a_file_beyond_the_limit_of_the_form_is_refused", &Setup::BASE, |t| {
        let body = Multipart::new()
            .field("MAX_FILE_SIZE", "5")
            .file("f", "x", b"sixsix")
            .end();
        let request = t.page(FILES).post(Multipart::TYPE, body);
        assert!(t.send(&request).text().contains(r#""error":2"#));
    });
    c.same("more_files_than_allowed_are_cut_and_reported", &LIMITED, |t| {
        let body = Multipart::new()
            .file("a", "1", b"1")
            .file("b", "2", b"2")
            .file("c", "3", b"3")
            .end();
        let request = t.page(FILES).post(Multipart::TYPE, body);
        let reply = t.send(&request);
        assert!(
            reply
                .errors()
                .contains("Maximum number of allowable file uploads has been exceeded"),
            "{}",
            reply.errors()
        );
    });
    c.same("more_parts_than_allowed_drop_the_body", &LIMITED, |t| {
        let mut body = Multipart::new();
        for n in 0..7 {
            body = body.field(&format!("f{n}"), "1");
        }
        let request = t.page(FILES).post(Multipart::TYPE, body.end());
        let reply = t.send(&request);
        assert!(
            reply.errors().contains("Multipart body parts limit exceeded 6"),
            "{}",
            reply.errors()
        );
    });
    c.same("without_uploads_files_are_passed_over", &NO_UPLOADS, |t| {
        let request = t.page(FILES).post(
            Multipart::TYPE,
            Multipart::new().field("a", "1").file("f", "x", b"1").end(),
        );
        assert_eq!(t.send(&request).text(), "{\"post\":{\"a\":\"1\"},\"files\":[]}\n");
    });
    c.same("a_multipart_body_that_breaks_off_is_reported", &Setup::BASE, |t| {
        let whole = Multipart::new().field("a", "1").file("f", "x", &noise(5000)).end();
        let request = t.page(FILES).post(Multipart::TYPE, &whole[..whole.len() - 2000]);
        assert!(t.send(&request).text().contains(r#""error":3"#));
    });
    c.same("a_multipart_type_without_a_boundary_is_reported", &Setup::BASE, |t| {
        let request = t
            .page(FILES)
            .post("multipart/form-data", Multipart::new().field("a", "1").end());
        assert!(
            t.send(&request)
                .errors()
                .contains("Missing boundary in multipart/form-data POST data")
        );
    });
    c.same("an_upload_of_ten_megabytes_arrives_whole", &LARGE, |t| {
        upload(t, 10 << 20)
    });
    c.same("an_upload_of_ten_megabytes_arrives_whole_over_tcp", &LARGE_TCP, |t| {
        upload(t, 10 << 20)
    });
}

fn upload(t: &mut Run, length: usize) {
    let body = Multipart::new()
        .file("f", "big", &noise(length))
        .field("last", "there")
        .end();
    let request = t
        .page("echo filesize($_FILES['f']['tmp_name']), ' ', md5_file($_FILES['f']['tmp_name']), ' ', $_POST['last'];")
        .post(Multipart::TYPE, body);
    let text = t.send(&request).text();
    assert!(
        text.starts_with(&format!("{length} ")) && text.ends_with(" there"),
        "{text}"
    );
}

fn input(c: &mut Cases) {
    c.same("a_put_is_read_as_input", &Setup::BASE, |t| {
        let request = t.page("echo $_SERVER['REQUEST_METHOD'], md5(file_get_contents('php://input'));");
        t.send(&request.post("application/octet-stream", noise(300_000)).method("PUT"));
    });
    c.same("a_body_is_read_whatever_the_method", &Setup::BASE, |t| {
        let request = t
            .page("echo file_get_contents('php://input');")
            .post("text/plain", "the body");
        for method in ["GET", "DELETE", "PATCH", "OPTIONS", "X"] {
            assert_eq!(t.send(&request.clone().method(method)).text(), "the body", "{method}");
        }
    });
    c.same(
        "a_shutdown_function_reads_what_the_script_has_left",
        &Setup::BASE,
        |t| {
            let rest = "register_shutdown_function(function () { echo md5(file_get_contents('php://input')); });";
            for code in [
                "",
                "echo strlen(fread(fopen('php://input', 'r'), 10)), ' ';",
                "no_such_function();",
                "class D { function __destruct() { echo strlen(file_get_contents('php://input')), ' '; } } $d = new D;",
            ] {
                let request = t.page(&format!("ini_set('display_errors', 0); {rest} {code}"));
                t.send(&request.post("application/octet-stream", noise(300_000)).method("PUT"));
            }
        },
    );
    c.same(
        "a_shutdown_function_reads_a_form_that_is_too_long_for_php",
        &LIMITED,
        |t| {
            let request =
                t.page("register_shutdown_function(function () { echo strlen(file_get_contents('php://input')); });");
            let form = "a=".to_owned() + &"x".repeat(200_000);
            t.send(&request.post("application/x-www-form-urlencoded", form));
        },
    );
    c.same("input_can_be_read_in_parts_and_rewound", &Setup::BASE, |t| {
        let code = "$f = fopen('php://input', 'r'); echo fread($f, 3), '|', fgets($f), '|', ftell($f), '|', feof($f) ? 'end' : '';
            rewind($f); echo stream_get_contents($f), '|'; $g = fopen('php://input', 'r'); echo fread($g, 2);";
        for method in ["POST", "PUT"] {
            let request = t.page(code).post("text/plain", "one two\nthree\n").method(method);
            assert_eq!(t.send(&request).text(), "one| two\n|8|one two\nthree\n|on", "{method}");
        }
    });
    c.same("a_large_input_keeps_its_bytes", &LARGE, |t| {
        let body = noise(5_000_000);
        for method in ["POST", "PUT"] {
            let request = t
                .page("$h = hash_init('md5'); hash_update_stream($h, fopen('php://input', 'r')); echo hash_final($h);")
                .post("application/octet-stream", body.clone())
                .method(method);
            assert_eq!(t.send(&request).text().len(), 32);
        }
    });
    c.differed(
        "a_put_that_is_read_in_part_leaves_the_next_request_alone",
        &Setup::BASE,
        [8, 2, 36],
        "Before 8.2.36 (CVE-2026-129289) php-fpm did not drain a body of which a script has read a part, took the rest for \
         the next request of a kept connection, and dropped the connection; we drain it.",
        |t| {
            let request = t
                .page("echo fread(fopen('php://input', 'r'), 10);")
                .post("text/plain", [b"0123456789".to_vec(), noise(150_000)].concat())
                .method("PUT")
                .keep();
            let mut connection = t.connect();
            connection.send(&request.bytes());
            assert_eq!(t.reply(&mut connection, 1).text(), "0123456789");
            connection.send(&request.bytes());
            let second = t.reply(&mut connection, 1);
            let right = t.is_right_since([8, 2, 36]);
            assert_eq!(second.text(), if right { "0123456789" } else { "" });
        },
    );
    c.same("a_body_may_be_taken_from_a_file", &Setup::BASE, |t| {
        let body = t.file("body", "from the file");
        let request = t
            .page("echo file_get_contents('php://input');")
            .set("REQUEST_METHOD", "POST")
            .set("CONTENT_LENGTH", "13")
            .set("REQUEST_BODY_FILE", body.display().to_string());
        assert_eq!(t.send(&request).text(), "from the file");
    });
    c.same("a_form_may_be_taken_from_a_file", &Setup::BASE, |t| {
        let body = t.file("body", "a=1&b=2");
        let request = t
            .page("echo json_encode($_POST);")
            .set("REQUEST_METHOD", "POST")
            .set("CONTENT_TYPE", FORM)
            .set("CONTENT_LENGTH", "7")
            .set("REQUEST_BODY_FILE", body.display().to_string());
        assert_eq!(t.send(&request).text(), r#"{"a":"1","b":"2"}"#);
    });
    c.differs(
        "a_body_file_that_is_missing_is_reported_and_the_script_not_run",
        &Setup::BASE,
        "php-fpm warns and runs the script with an empty body when REQUEST_BODY_FILE cannot be opened; we answer 400.",
        |t| {
            let request = t
                .page("echo strlen(file_get_contents('php://input'));")
                .set("REQUEST_METHOD", "POST")
                .set("CONTENT_LENGTH", "7")
                .set("REQUEST_BODY_FILE", "/no/such/file");
            let reply = t.send(&request);
            let wanted = "REQUEST_BODY_FILE: open('/no/such/file') failed: No such file or directory (2)";
            assert!(reply.errors().contains(wanted), "{}", reply.errors());
            assert_eq!(reply.status(), if t.is_php_pool() { 400 } else { 200 });
        },
    );
}

fn sizes(c: &mut Cases) {
    const HASH: &str = "$b = file_get_contents('php://input'); echo strlen($b), ' ', md5($b);";
    c.same("a_body_in_records_of_any_size_arrives_whole", &Setup::BASE, |t| {
        let request = t.page(HASH).post("text/plain", noise(66_000));
        for record_size in [7, 8, 9, 1000, 4096, 8184, 8192, 16384, 65528, 65535] {
            let request = Request {
                record_size,
                ..request.clone()
            };
            assert!(t.send(&request).text().starts_with("66000 "), "{record_size}");
        }
    });
    c.same("bodies_around_what_is_kept_in_memory_arrive_whole", &LARGE, |t| {
        let page = t.page(
            "$b = file_get_contents('php://input'); $i = fopen('php://input', 'r'); fseek($i, -5, SEEK_END);
             echo strlen($b), ' ', md5($b), ' ', fread($i, 10) === substr($b, -5), ' ', count($_POST), ' ', memory_get_usage() < (16 << 20);",
        );
        for size in [16_383, 16_384, 16_385, 2_097_151, 2_097_152, 2_097_153, 3_000_000] {
            let reply = t.send(&page.clone().post("text/plain", noise(size)));
            assert!(reply.text().starts_with(&format!("{size} ")) && reply.text().ends_with(" 1 0 1"), "{}", reply.text());
            let form = [b"a=1&b=".to_vec(), vec![b'x'; size - 6]].concat();
            assert!(t.send(&page.clone().post(FORM, form)).text().ends_with(" 1 2 1"));
        }
    });
    c.differs(
        "a_body_of_a_megabyte_needs_no_file",
        &LARGE,
        "Of a body more than 16 KB goes to a temporary file of php-fpm's, by a system call for every 16 KB, and comes back by one for \
         every 8 KB. With us up to 2 MB, or the 64th part of memory_limit if that is less, stay in memory (which counts for memory_limit).",
        |t| {
            let page = t.page(
                "$files = array_filter(glob('/proc/self/fd/*'), fn($fd) => preg_match('~/php[A-Za-z0-9]{6}~', (string) @readlink($fd)));
                 echo count($files);",
            );
            for (size, ours) in [(16_000, "0"), (1_000_000, "0"), (2_500_000, "1")] {
                let files = t.send(&page.clone().post("application/json", vec![b' '; size])).text();
                let theirs = if size > 16_384 { "1" } else { "0" };
                assert_eq!(files, if t.is_php_pool() { ours } else { theirs }, "{size}");
            }
        },
    );
    c.same("a_body_in_records_of_one_byte_arrives_whole", &Setup::BASE, |t| {
        let request = t.page(HASH).post("text/plain", noise(5000));
        assert!(
            t.send(&Request {
                record_size: 1,
                ..request
            })
            .text()
            .starts_with("5000 ")
        );
    });
    c.same(
        "bodies_of_every_length_around_a_boundary_arrive_whole",
        &Setup::BASE,
        |t| {
            let page = t.page(HASH);
            for length in [
                1, 7, 8, 9, 8191, 8192, 8193, 16383, 16384, 16385, 32768, 65527, 65528, 65535, 65536, 65537, 131_072,
            ] {
                for method in ["POST", "PUT"] {
                    let request = page.clone().post("text/plain", noise(length)).method(method);
                    assert!(
                        t.send(&request).text().starts_with(&format!("{length} ")),
                        "{method} {length}"
                    );
                }
            }
        },
    );
    c.same(
        "padding_between_the_records_of_a_body_is_no_part_of_it",
        &Setup::BASE,
        |t| {
            let request = t.page(HASH).post("text/plain", noise(3000));
            let mut bytes = request.head();
            for (n, part) in request.body.chunks(100).enumerate() {
                bytes.extend(
                    Record::new(STDIN, 1, part)
                        .padded(u8::try_from(n * 8).expect("30 parts"))
                        .bytes(),
                );
            }
            bytes.extend(Record::new(STDIN, 1, []).bytes());
            assert!(t.send_raw(&bytes).text().starts_with("3000 "));
        },
    );
    c.same("parameters_in_many_records_are_put_together", &Setup::BASE, |t| {
        let request = t
            .page("echo json_encode($_POST), $_SERVER['QUERY_STRING'];")
            .query("q=1")
            .post(FORM, "a=1");
        let mut bytes = fcgi::begin(1, fcgi::RESPONDER, 0).bytes();
        for (name, value) in &request.params {
            bytes.extend(Record::new(PARAMS, 1, fcgi::pair(name, value)).padded(3).bytes());
        }
        bytes.extend(Record::new(PARAMS, 1, []).bytes());
        bytes.extend(request.tail());
        assert_eq!(t.send_raw(&bytes).text(), r#"{"a":"1"}q=1"#);
    });
}

fn lengths(c: &mut Cases) {
    const INPUT: &str = "echo '<', file_get_contents('php://input'), '>';";
    c.same("without_a_content_length_no_body_is_read", &Setup::BASE, |t| {
        let request = t.page(INPUT).post("text/plain", "the body").unset("CONTENT_LENGTH");
        assert_eq!(t.send(&request).text(), "<>");
    });
    c.differs(
        "a_body_that_comes_in_chunks_is_read_to_its_end",
        &LARGE,
        "What a client sends in chunks, or by HTTP/2 without a length, Apache passes on, where it is long, without CONTENT_LENGTH, as \
         nginx does with fastcgi_request_buffering off; Caddy says -1. php-fpm then runs the script with an empty body, or waits for \
         ever; for us the body ends where it ends.",
        |t| {
            const NONE: &str = r#"{"post":[],"files":[]}"#;
            let page = t.page(&format!("echo md5(file_get_contents('php://input')), ' '; {FILES}"));
            let post = |kind: &str, body: &[u8]| page.clone().post(kind, body).unset("CONTENT_LENGTH").keep();
            let chunked = |kind: &str, body: &[u8]| post(kind, body).set("HTTP_TRANSFER_ENCODING", "chunked");
            let long = noise(3_000_000);
            let upload = Multipart::new().field("a", "1").file("f", "f.bin", &long).end();
            let text = b"the body";
            let mut requests = vec![(chunked("text/plain", text), "3066176185fcca35", NONE)];
            if t.is_php_pool() {
                requests.extend([
                    (chunked("text/plain", b""), "d41d8cd9", NONE),
                    (chunked(FORM, b"a=1&b=2"), "ed04c91cf6f6ab5a", r#"{"post":{"a":"1","b":"2"},"files":[]}"#),
                    (chunked("text/plain", &long).method("PUT"), "efa1958cbad5272f", NONE),
                    (chunked(Multipart::TYPE, &upload), "d41d8cd9", r#""size":3000000"#),
                    (post("text/plain", text).set("CONTENT_LENGTH", "-1"), "3066176185fcca35", NONE),
                    (post("text/plain", text).set("SERVER_PROTOCOL", "HTTP/2.0"), "3066176185fcca35", NONE),
                ]);
            }
            let mut connection = t.connect();
            for (request, md5, rest) in requests {
                connection.send(&request.bytes());
                let text = t.reply(&mut connection, 1).text();
                assert_eq!(text.starts_with(md5) && text.contains(rest), t.is_php_pool(), "{text}");
            }
        },
    );
    c.differs(
        "a_form_in_chunks_is_held_to_post_max_size",
        &LIMITED,
        "A form with files whose length is not known before its end is read up to post_max_size, and what follows is dropped, with a warning.",
        |t| {
            let body = Multipart::new().field("a", "1").file("f", "f.bin", &noise(100_000)).field("b", "2").end();
            let request = t.page(FILES).post(Multipart::TYPE, body).unset("CONTENT_LENGTH");
            let reply = t.send(&request.set("HTTP_TRANSFER_ENCODING", "chunked"));
            let (text, warning) = (reply.text(), "and exceeds 1000 bytes");
            assert_eq!(text.contains(r#""post":{"a":"1"}"#), t.is_php_pool(), "{text}");
            assert_eq!(reply.errors().contains(warning), t.is_php_pool(), "{}", reply.errors());
        },
    );
    c.same("an_empty_content_length_is_none", &Setup::BASE, |t| {
        let request = t.page(INPUT).post("text/plain", "").set("CONTENT_LENGTH", "");
        assert_eq!(t.send(&request).text(), "<>");
    });
    c.same(
        "a_content_length_may_have_leading_zeros_and_blanks",
        &Setup::BASE,
        |t| {
            for length in ["008", " 8", "8 "] {
                let request = t
                    .page(INPUT)
                    .post("text/plain", "the body")
                    .set("CONTENT_LENGTH", length);
                t.send(&request);
            }
        },
    );
    c.same(
        "the_server_variable_keeps_the_content_length_as_it_was_sent",
        &Setup::BASE,
        |t| {
            let request = t
                .page("echo $_SERVER['CONTENT_LENGTH'];")
                .post("text/plain", "the body")
                .set("CONTENT_LENGTH", "08");
            assert_eq!(t.send(&request).text(), "08");
        },
    );
}
