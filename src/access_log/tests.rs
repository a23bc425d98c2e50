//! Values as php-fpm 8.2 logs them, and what hostile requests make of them.

use proptest::prelude::*;

use super::*;
use crate::config::access_format;

fn nothing<'a>(_: &[u8]) -> Option<&'a [u8]> {
    None
}

fn entry<'a>() -> Entry<'a> {
    Entry {
        accepted: 1_795_207_850_500_000,
        now: 1_795_207_851_400_000,
        duration: 987,
        cpu_user: 400,
        cpu_system: 100,
        pid: 564,
        parent: 560,
        pool: "www",
        method: b"GET",
        uri: b"/h.php",
        query: b"t=dup",
        script: b"/srv/h.php",
        user: b"user",
        id: b"4bf92f35",
        remote: Some("::ffff:127.0.0.1".parse().unwrap()),
        status: 200,
        content_length: 3,
        memory: 2_097_152,
        parameter: &nothing,
        header: &nothing,
    }
}

fn log(format: &str) -> AccessLog {
    AccessLog::new(&access_format::compile(format).unwrap(), &["/ping".to_owned()])
}

fn line(format: &str, entry: &Entry<'_>) -> String {
    let mut log = log(format);
    let line = log.line(entry).unwrap();
    String::from_utf8_lossy(line.bytes.strip_suffix(b"\n").unwrap()).into_owned()
}

#[test]
fn every_token_has_php_fpms_value() {
    let time = |second: i64, format: &str| Clock::new(format).at(second).to_owned();
    for (format, wanted) in [
        ("%%|%n|%p|%P|%R|%u", "%|www|564|560|127.0.0.1|user".to_owned()),
        ("%C|%{user}C|%{System}C", "50.66|40.53|10.13".to_owned()),
        ("%d|%{mili}d|%{micro}d", "0.001|0.987|987".to_owned()),
        ("%f|%l|%m|%r|%Q%q|%s", "/srv/h.php|3|GET|/h.php|?t=dup|200".to_owned()),
        ("%M|%{kilo}M|%{mega}M", "2097152|2048|2".to_owned()),
        ("%L", "4bf92f35".to_owned()),
        ("%t", time(1_795_207_850, "%d/%b/%Y:%H:%M:%S %z")),
        ("%{%s}t %{%s}T", "1795207850 1795207851".to_owned()),
        ("%{%Y-%m-%dT%H:%M:%S%z}t", time(1_795_207_850, "%Y-%m-%dT%H:%M:%S%z")),
        ("%{A}e|%{X-A}o", "-|-".to_owned()),
    ] {
        assert_eq!(line(format, &entry()), wanted, "{format}");
    }
}

#[test]
fn parameters_and_headers_are_looked_up() {
    let parameter = |name: &[u8]| (name == b"REQUEST_METHOD").then_some(b"GET".as_slice());
    let header = |name: &[u8]| match name {
        b"X-A" => Some(b"2".as_slice()),
        b"X-Empty" => Some(b"".as_slice()),
        _ => None,
    };
    let entry = Entry {
        parameter: &parameter,
        header: &header,
        ..entry()
    };
    assert_eq!(
        line("%{REQUEST_METHOD}e %{X-A}o %{x-a}o %{X-Empty}o", &entry),
        "GET 2 - -"
    );
}

#[test]
fn what_is_missing_is_shown_as_php_fpm_shows_it() {
    let entry = Entry {
        pool: "",
        method: b"",
        uri: b"",
        query: b"",
        script: b"",
        user: b"",
        remote: None,
        duration: 0,
        ..entry()
    };
    assert_eq!(line("%n|%m|%r|%Q%q|%f|%u|%R|%C", &entry), "-|-|||-||-|0.00");
    assert_eq!(log("%u%q").line(&entry), None);
}

#[test]
fn a_long_line_is_cut() {
    let value = |_: &[u8]| Some([b'v'; 2000].as_slice());
    let entry = Entry {
        parameter: &value,
        ..entry()
    };
    let mut log = log("%r %{A}e %s");
    let line = log.line(&entry).unwrap();
    assert!(line.truncated);
    assert_eq!(line.bytes.len(), LINE_LIMIT);
    assert!(line.bytes.ends_with(b"v\n"));
}

/// What stands behind them is there however long they are.
#[test]
fn uri_query_and_script_are_whole_where_there_is_room_and_else_cut() {
    let long = [b'l'; 2000];
    let query = &long[..1023 - "/h.php  200".len()];
    let mut log = log("%r %q %s");
    let line = log.line(&Entry { query, ..entry() }).unwrap();
    assert!(!line.truncated && line.bytes.ends_with(b"l 200\n") && line.bytes.len() == LINE_LIMIT);

    let entry = Entry {
        uri: &long,
        query: &long,
        script: &long,
        ..entry()
    };
    let wanted = format!("{}?{} 200 {}", "l".repeat(127), "l".repeat(511), "l".repeat(255));
    assert_eq!(self::line("%r%Q%q %s %f", &entry), wanted);
}

#[test]
fn only_plain_successful_requests_are_suppressed() {
    let ping = || Entry {
        uri: b"/ping",
        query: b"",
        content_length: 0,
        ..entry()
    };
    let logged = |entry: Entry<'_>| log("%s").line(&entry).is_some();
    assert!(!logged(ping()));
    assert!(!logged(Entry {
        method: b"HEAD",
        status: 299,
        ..ping()
    }));
    assert!(logged(Entry {
        method: b"POST",
        ..ping()
    }));
    assert!(logged(Entry { query: b"a", ..ping() }));
    assert!(logged(Entry { status: 300, ..ping() }));
    assert!(logged(Entry {
        content_length: 1,
        ..ping()
    }));
    assert!(logged(Entry {
        uri: b"/ping/",
        ..ping()
    }));
}

#[test]
fn hostile_bytes_are_escaped() {
    let entry = Entry {
        uri: b"/a\"b\\c\nd\x7f\xff\xc3\xa9",
        ..entry()
    };
    let mut log = log("\"%r\"");
    assert_eq!(
        log.line(&entry).unwrap().bytes,
        b"\"/a\\\"b\\\\c\\x0Ad\\x7F\xff\xc3\xa9\"\n"
    );
}

#[test]
fn json_is_an_object_with_what_is_known() {
    let object: serde_json::Value = serde_json::from_str(&line("json", &entry())).unwrap();
    let keys: Vec<_> = object.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys.join(" "),
        "time pool pid remote user method uri query script request_id status content_length duration_us cpu_user_us \
         cpu_system_us memory"
    );
    assert_eq!(object["remote"], "127.0.0.1");
    let time: jiff::Timestamp = object["time"].as_str().unwrap().parse().unwrap();
    assert_eq!(time.as_microsecond(), 1_795_207_850_500_000);
}

proptest! {
    #[test]
    fn no_request_forges_a_line(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
        let value = |_: &[u8]| Some(bytes.as_slice());
        let entry = Entry {
            method: &bytes,
            uri: &bytes,
            query: &bytes,
            script: &bytes,
            user: &bytes,
            id: &bytes,
            parameter: &value,
            header: &value,
            ..entry()
        };
        for format in ["%R - %u %t \"%m %r%Q%q\" %s", "%{A}e%{B}o%f", "json"] {
            let mut log = log(format);
            let Some(line) = log.line(&entry) else { continue };
            prop_assert!(line.truncated || line.bytes.len() <= LINE_LIMIT || format == "json");
            prop_assert_eq!(line.bytes.iter().filter(|b| **b < 0x20).count(), 1);
            prop_assert_eq!(line.bytes.last(), Some(&b'\n'));
            if format == "json" {
                let object: serde_json::Value = serde_json::from_slice(line.bytes).unwrap();
                prop_assert_eq!(object["uri"].as_str().unwrap_or_default(), String::from_utf8_lossy(&bytes));
            }
        }
    }

    /// The quoted field ends where the format says, whatever stands in it.
    #[test]
    fn no_request_ends_a_quoted_field(bytes in "[ -~]{0,80}") {
        let entry = Entry { uri: bytes.as_bytes(), ..entry() };
        let line = line("\"%r\" %s", &entry);
        let inside = line.strip_prefix('"').unwrap().strip_suffix("\" 200").unwrap();
        let mut chars = inside.chars();
        let mut read = String::new();
        while let Some(c) = chars.next() {
            prop_assert_ne!(c, '"');
            read.push(if c == '\\' { chars.next().unwrap() } else { c });
        }
        prop_assert_eq!(read, bytes.as_str());
    }
}
