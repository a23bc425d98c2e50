use super::*;

fn time(text: &str) -> Option<Duration> {
    parse_time(text).ok()
}

#[test]
fn times_have_units_and_fractions() {
    let seconds = |n| Some(Duration::from_secs(n));
    let millis = |n| Some(Duration::from_millis(n));
    assert_eq!(time("30"), seconds(30));
    assert_eq!(time("30s"), seconds(30));
    assert_eq!(time("5 s"), seconds(5));
    assert_eq!(time("2m"), seconds(120));
    assert_eq!(time("1h"), seconds(3600));
    assert_eq!(time("1d"), seconds(86400));
    assert_eq!(time("1500ms"), millis(1500));
    assert_eq!(time("1.5s"), millis(1500));
    assert_eq!(time("0.5m"), seconds(30));
    assert_eq!(time("2147483647"), seconds(2147483647));
}

#[test]
fn what_php_fpm_bends_is_no_time() {
    for text in [
        "",
        "m",
        "-3",
        "1.",
        ".5",
        "1.5.5",
        "abcs",
        "30sec",
        "5S",
        "1e3",
        "2147483648",
        "99999999999",
        "30 seconds",
    ] {
        assert_eq!(time(text), None, "{text}");
    }
    for text in ["1x", "/", "5 %"] {
        assert_eq!(
            parse_time(text),
            Err(Refusal::Malformed(UNKNOWN_SUFFIX.into())),
            "{text}"
        );
    }
    assert_eq!(parse_time(""), Err(Refusal::Malformed("invalid time value".into())));
    assert_eq!(parse_time("-3"), Err(Refusal::OutOfRange("-3 is negative".into())));
    // The most that a number holds, in each unit.
    for unit in ["ms", "s", "m", "h", "d"] {
        for number in ["8888888888888888888", "18446744073709551615", "18446744073709551616"] {
            let text = format!("{number}{unit}");
            assert_eq!(
                parse_time(&text),
                Err(Refusal::OutOfRange(format!("{text} is out of range")))
            );
        }
    }
}

#[test]
fn seconds_are_printed_as_short_as_they_can_be() {
    assert_eq!(format_seconds(Duration::from_secs(90)), "90");
    assert_eq!(format_seconds(Duration::from_millis(1500)), "1.5");
    assert_eq!(format_seconds(Duration::from_micros(10)), "0.00001");
}

#[test]
fn numbers_do_not_wrap() {
    let kind = Kind::Number(0..=i32::MAX as i64);
    assert_eq!(kind.parse("007"), Ok(Value::Number(7)));
    assert_eq!(kind.parse("-0"), Ok(Value::Number(0)));
    for text in ["99999999999", "-1", "99999999999999999999999"] {
        assert!(matches!(kind.parse(text), Err(Refusal::OutOfRange(_))), "{text}");
    }
    for text in ["", "-", "1k", " 1", "+1", "1.0", "١"] {
        assert_eq!(kind.parse(text), Err(Refusal::Malformed(NOT_A_NUMBER.into())), "{text}");
    }
}

#[test]
fn sizes_have_units() {
    let size = |text| Kind::Size.parse(text);
    assert_eq!(size("1024"), Ok(Value::Number(1024)));
    assert_eq!(size("64M"), Ok(Value::Number(64 << 20)));
    assert_eq!(size("1g"), Ok(Value::Number(1 << 30)));
    assert!(matches!(size("99999999999G"), Err(Refusal::OutOfRange(_))));
    for text in ["", "M", "1X", "1.5G", "-1"] {
        assert!(size(text).is_err(), "{text}");
    }
}

#[test]
fn modes_are_octal() {
    let mode = |text| Kind::Mode.parse(text);
    assert_eq!(mode("0660"), Ok(Value::Number(0o660)));
    assert_eq!(mode("600"), Ok(Value::Number(0o600)));
    for text in ["", "abc", "0888", "0o660", "1777", "rw-rw----"] {
        assert!(mode(text).is_err(), "{text}");
    }
}

#[test]
fn shares_of_cpu_time_become_the_kernels() {
    let cpu = |text| Kind::CgroupCpu.parse(text);
    assert_eq!(cpu("150%"), Ok(Value::Text("150000 100000".into())));
    assert_eq!(cpu("max"), Ok(Value::Text("max".into())));
    assert_eq!(cpu("50000 100000"), Ok(Value::Text("50000 100000".into())));
    assert_eq!(cpu("max 100000"), Ok(Value::Text("max 100000".into())));
    for text in ["", "1.5", "50", "%", "0%", "1 1", "a b"] {
        assert!(cpu(text).is_err(), "{text}");
    }
}
