//! The slowlog, beside that of php-fpm.

use std::fs;
use std::time::Duration;

use crate::harness::{Master, Place, body, wait_for};
use crate::support::Case;
use crate::support::fcgi::KEEP_CONN;
use crate::support::server::php_fpm;
use crate::{pool, printed, run};

pub const CASES: &[Case] = &[
    ("slowlog::a_record_is_php_fpms", same_record),
    ("slowlog::the_script_is_not_disturbed", not_disturbed),
    ("slowlog::a_request_is_traced_once_and_the_next_one_again", once),
    ("slowlog::the_depth_is_that_of_the_directive", depth),
    ("slowlog::what_cannot_be_written_is_said", unwritable),
    ("slowlog::a_pool_tells_its_control_socket_what_it_does", control),
];

const TIMEOUT: &str = "slowlog = {dir}/slow.log\nrequest_slowlog_timeout = 1s\npm.status_path = /status";

/// php-fpm in the place of php-pool.
fn with_php_fpm(place: Place) -> Place {
    fs::remove_file(place.path("php-fpm")).unwrap();
    std::os::unix::fs::symlink(php_fpm(), place.path("php-fpm")).unwrap();
    place
}

/// The records so far, once there are so many.
fn records(master: &Master, count: usize) -> Vec<String> {
    let whole = |text: &str| text.matches("script_filename").count() >= count && text.ends_with('\n');
    let read = || fs::read_to_string(master.place.path("slow.log")).unwrap_or_default();
    wait_for("the records", || whole(&read()));
    master.said_often("finished trace of", count);
    read()
        .split("\n\n")
        .map(|record| record.trim_start().to_owned())
        .collect()
}

/// Without what differs from one run to the next: the time, pids, addresses, and the folder.
fn comparable(master: &Master, text: &str) -> String {
    let folder = master.place.path("").display().to_string();
    let text = text.replace(folder.trim_end_matches('/'), "");
    let mut out = String::new();
    for line in text.lines() {
        let line = match line.split_once(']') {
            Some((inside, rest)) if inside.starts_with("[0x") => {
                assert!(
                    inside.len() == 19 && inside[3..].bytes().all(|byte| byte.is_ascii_hexdigit()),
                    "{line}"
                );
                format!("[FRAME]{rest}")
            }
            Some((inside, rest)) if inside.starts_with('[') => {
                assert_eq!(inside.len(), "[20-Nov-2026 20:57:36".len(), "{line}");
                format!("[TIME]{rest}")
            }
            _ => line.to_owned(),
        };
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        for index in 1..words.len() {
            let digits = words[index]
                .trim_end_matches(',')
                .bytes()
                .all(|byte| byte.is_ascii_digit());
            if digits && ["pid", "child", "trace", "of"].contains(&words[index - 1].as_str()) {
                words[index] = "PID".to_owned();
            }
            if words[index].starts_with('(') && words.get(index + 1).is_some_and(|next| next.starts_with("sec)")) {
                words[index] = "(TIME".to_owned();
            }
        }
        out += &words.join(" ");
        out.push('\n');
    }
    out
}

const SCRIPT: &str = "<?php\nfunction inner() { sleep(60); }\nfunction rec($n) { if ($n) rec($n - 1); else eval(\"\\ninner();\"); }\n\
    function outer() { include __DIR__ . '/inc.php'; }\narray_map(function ($x) {\n  outer(); }, [1]);";

fn same_record() {
    let ask = |place: Place| {
        place.write("slow.php", SCRIPT);
        place.write("inc.php", "<?php\nrec(2);");
        place.write("quick.php", "<?php echo 1;");
        place.configure(&pool(2, TIMEOUT));
        let master = place.serve();
        master.get("/quick.php");
        let mut connection = master.connect("sock");
        master.ask(&mut connection, "/slow.php?a=b", 0);
        let record = comparable(&master, &records(&master, 1)[0]);
        // php-fpm's own answer to /status comes from a worker, ours from whom we like.
        let status = master.get("/status");
        let slow = status
            .lines()
            .find(|line| line.starts_with("slow requests"))
            .unwrap()
            .to_owned();
        let lines = master.log().join("\n");
        let lines = comparable(&master, &lines);
        let about = |line: &&str| {
            ["too slow", "about to trace", "finished trace"]
                .iter()
                .any(|part| line.contains(part))
        };
        let said: Vec<String> = lines.lines().filter(about).map(str::to_owned).collect();
        (record, slow, said)
    };
    let (theirs, their_count, they_said) = ask(with_php_fpm(Place::new()));
    let (ours, our_count, we_said) = ask(Place::new());
    let (frames, rest) = ours.split_at(ours.find("request = ").unwrap_or_else(|| panic!("{ours}")));
    assert_eq!(frames, theirs);
    let id = rest.strip_prefix("request = GET /slow.php?a=b\nrequest_id = ");
    let (id, rest) = id
        .and_then(|rest| rest.split_once('\n'))
        .unwrap_or_else(|| panic!("{ours}"));
    assert!(
        id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{ours}"
    );
    assert!(rest.starts_with("duration = 1."), "{ours}");
    assert_eq!(our_count, their_count);
    assert!(their_count.ends_with(" 1"), "{their_count}");
    assert_eq!(we_said, they_said);
    assert_eq!(we_said.len(), 3, "{we_said:?}");
}

/// php-fpm stops the script by a signal to read its stack, and then this system call fails.
fn not_disturbed() {
    let ask = |place: Place| {
        place.write(
            "receive.php",
            "<?php\nsocket_create_pair(AF_UNIX, SOCK_STREAM, 0, $pair);\n\
             socket_set_option($pair[0], SOL_SOCKET, SO_RCVTIMEO, ['sec' => 5, 'usec' => 0]);\n\
             @socket_read($pair[0], 10);\necho socket_last_error($pair[0]) == SOCKET_EINTR ? 'interrupted' : 'waited';",
        );
        place.configure(&pool(1, TIMEOUT));
        let master = place.start(&["-d", "extension=sockets"]);
        master.said("ready to handle connections");
        let answer = master.get("/receive.php");
        assert!(records(&master, 1)[0].contains("socket_read() "));
        answer
    };
    assert_eq!(ask(with_php_fpm(Place::new())), "interrupted");
    assert_eq!(ask(Place::new()), "waited");
}

fn once() {
    let place = Place::new();
    place.write(
        "slow.php",
        "<?php do { usleep(10_000); clearstatcache(); } while (!file_exists(__DIR__ . '/' . $_SERVER['QUERY_STRING']));\n\
         echo getmypid();",
    );
    place.configure(&pool(1, "slowlog = {dir}/slow.log\nrequest_slowlog_timeout = 200ms"));
    let master = place.serve();
    let mut connection = master.connect("sock");
    let mut workers = Vec::new();
    for (index, query) in ["first", "second"].into_iter().enumerate() {
        master.ask(&mut connection, &format!("/slow.php?{query}"), KEEP_CONN);
        master.said_often("finished trace of", index + 1);
        std::thread::sleep(Duration::from_millis(500)); // what must not happen would have
        master.place.write(query, "");
        workers.push(body(&connection.reply(1)));
    }
    assert_eq!(workers[0], workers[1]);
    // Nor is an idle connection a slow request.
    std::thread::sleep(Duration::from_millis(500));
    let records = records(&master, 2);
    assert_eq!(records.len(), 2, "{records:?}");
    for (record, query) in records.iter().zip(["first", "second"]) {
        let of = format!("pid {}\n", workers[0]);
        assert!(
            record.contains(&of) && record.contains(&format!("?{query}\n")),
            "{record}"
        );
    }
    master.said_often("executing too slow", 2);
    assert_eq!(master.count("executing too slow"), 2);
}

fn depth() {
    let place = Place::new();
    place.write(
        "deep.php",
        "<?php\nfunction f($n) { $n ? f($n - 1) : sleep(60); }\nf(9);",
    );
    place.configure(&pool(1, &format!("{TIMEOUT}\nrequest_slowlog_trace_depth = 3")));
    let master = place.serve();
    let mut connection = master.connect("sock");
    master.ask(&mut connection, "/deep.php", 0);
    let record = comparable(&master, &records(&master, 1)[0]);
    let frames: Vec<&str> = record.lines().filter(|line| line.starts_with("[FRAME]")).collect();
    assert_eq!(
        frames,
        [
            "[FRAME] sleep() /deep.php:2",
            "[FRAME] f() /deep.php:2",
            "[FRAME] f() /deep.php:2"
        ]
    );
}

fn unwritable() {
    let place = Place::new();
    place.write("slow.php", "<?php sleep(60);");
    fs::create_dir(place.path("logs")).unwrap();
    std::os::unix::fs::chown(place.path("logs"), Some(33), Some(33)).unwrap_or(());
    place.configure(&pool(2, "slowlog = {dir}/logs/slow.log\nrequest_slowlog_timeout = 1s"));
    let master = place.serve();
    fs::remove_dir_all(master.place.path("logs")).unwrap();
    let mut first = master.connect("sock");
    master.ask(&mut first, "/slow.php", 0);
    let line = master.said("unable to open slowlog (");
    assert!(
        line.contains("ERROR: [pool www] ") && line.ends_with("/logs/slow.log): No such file or directory (2)"),
        "{line}"
    );
    // It is only that: the next one is written.
    fs::create_dir(master.place.path("logs")).unwrap();
    std::os::unix::fs::chown(master.place.path("logs"), Some(33), Some(33)).unwrap_or(());
    let mut second = master.connect("sock");
    master.ask(&mut second, "/slow.php", 0);
    wait_for("a record", || {
        fs::read_to_string(master.place.path("logs/slow.log")).is_ok_and(|text| text.contains("sleep() "))
    });
}

fn control() {
    let place = Place::new();
    place.write("slow.php", "<?php\nfunction f() {\n  sleep(60);\n}\nf();");
    place.configure(&pool(2, "slowlog = {dir}/slow.log\nrequest_slowlog_timeout = 1s"));
    let control = place.path("control").display().to_string();
    let master = place.start_with_control();
    master.said("ready to handle connections");
    let nothing = run(&["trace", "--control", &control]);
    assert_eq!((nothing.status.code(), printed(&nothing)), (Some(0), String::new()));

    let mut client = php_pool::api::Client::connect(master.place.path("control").as_path()).unwrap();
    let watch = std::thread::spawn(move || {
        client
            .ask(&php_pool::api::Question::Events, None)
            .map(|answer| format!("{answer:?}"))
    });
    let mut connection = master.connect("sock");
    master.ask(&mut connection, "/slow.php?a=b", 0);
    let mut seen = String::new();
    wait_for("the script to sleep", || {
        seen = printed(&run(&["trace", "--control", &control]));
        seen.contains("sleep(int)")
    });
    let (head, stack) = seen.split_once('\n').unwrap();
    assert!(
        head.contains(", pool www, ") && head.contains(" ms, request ") && head.contains(": GET /slow.php?a=b  "),
        "{head}"
    );
    let script = master.place.path("slow.php").display().to_string();
    assert_eq!(
        stack,
        format!("#0 {script}(3): sleep(int)\n#1 {script}(5): f()\n#2 {{main}}\n")
    );
    let event = watch.join().unwrap().unwrap();
    assert!(
        event.contains("SlowRequest") && event.contains(&format!("\"sleep() {script}:3\"")),
        "{event}"
    );
}
