//! The types of values: how each is read, what it allows, how it is printed.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::model::{IniEntry, Pm, Rlimit};
use crate::log::Level;

/// Longest time, seconds: php-fpm keeps times in 32 bits and wraps beyond.
const MAX_SECONDS: u64 = i32::MAX as u64;

/// Type of a directive's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// yes or no
    Bool,
    /// A whole number.
    Number(RangeInclusive<i64>),
    /// Bytes, with K, M or G.
    Size,
    /// A time, whole or with a fraction, with ms, s, m, h or d.
    Time,
    /// Octal permissions.
    Mode,
    /// `unlimited` or a whole number.
    Rlimit,
    /// One of these words, in any case, and php-fpm's complaint about any other where it has one.
    Choice(&'static [&'static str], Option<&'static str>),
    /// A syslog facility.
    Facility,
    /// Free text.
    Text,
    /// Free text, but not none.
    NonEmpty,
    /// Names separated by commas.
    Names,
    /// Words separated by blanks.
    Words,
    /// A file or folder; relative ones are below this.
    Path(Base),
    /// A socket address: a port, `host:port`, or the path of a unix socket.
    Address,
    /// `MAJOR.MINOR`
    Version,
    /// Bytes with K, M or G, or `max`: for a file of cgroup v2.
    CgroupSize,
    /// A share of CPU time: `150%`, `max`, or the kernel's `QUOTA PERIOD` in microseconds.
    CgroupCpu,
    /// A whole number or `max`: for a file of cgroup v2.
    CgroupCount,
    /// A weight of cgroup v2.
    CgroupWeight,
    /// A glob pattern of files to read here.
    Include,
    /// `name[key] = value`, any number of times.
    Array(Array),
}

/// What a relative path is relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// `-p`, else the state folder (`/var`).
    State,
    /// `-p`, else PHP's prefix (`/usr`).
    Prefix,
    /// The pool's `prefix`, else as [`Base::Prefix`].
    Pool,
}

/// The array directives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Array {
    /// `env[]`
    Env,
    /// `php_value[]`, `php_admin_value[]`
    Value {
        /// Scripts cannot change it.
        admin: bool,
    },
    /// `php_flag[]`, `php_admin_flag[]`
    Flag {
        /// Scripts cannot change it.
        admin: bool,
    },
    /// `access.suppress_path[]`
    Path,
}

/// A value that was read.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of [`Kind::Bool`].
    Bool(bool),
    /// Of numbers, sizes, modes and facilities.
    Number(i64),
    /// Of [`Kind::Time`].
    Time(Duration),
    /// Of everything that is kept as text.
    Text(String),
    /// Of lists.
    List(Vec<String>),
    /// Of [`Kind::Rlimit`]; None leaves the limit alone.
    Rlimit(Option<Rlimit>),
}

/// Why a text is no value of a kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// It is not written like one: php-fpm's reason where it has one.
    Malformed(String),
    /// It is written like one but not allowed here, and why.
    OutOfRange(String),
}

const UNKNOWN_SUFFIX: &str = "unknown suffix used in time value";
const NOT_A_NUMBER: &str = "is not a valid number (greater or equal than zero)";

/// syslog's facilities with their numbers in `<syslog.h>`.
const FACILITIES: [(&str, i64); 20] = [
    ("KERN", 0),
    ("USER", 1 << 3),
    ("MAIL", 2 << 3),
    ("DAEMON", 3 << 3),
    ("AUTH", 4 << 3),
    ("SYSLOG", 5 << 3),
    ("LPR", 6 << 3),
    ("NEWS", 7 << 3),
    ("UUCP", 8 << 3),
    ("CRON", 9 << 3),
    ("AUTHPRIV", 10 << 3),
    ("FTP", 11 << 3),
    ("LOCAL0", 16 << 3),
    ("LOCAL1", 17 << 3),
    ("LOCAL2", 18 << 3),
    ("LOCAL3", 19 << 3),
    ("LOCAL4", 20 << 3),
    ("LOCAL5", 21 << 3),
    ("LOCAL6", 22 << 3),
    ("LOCAL7", 23 << 3),
];

impl Kind {
    /// Whether a value is kept, and printed by `-tt`, as the text that was written.
    pub fn is_text(&self) -> bool {
        !matches!(
            self,
            Kind::Bool | Kind::Number(_) | Kind::Size | Kind::Time | Kind::Rlimit | Kind::Facility | Kind::Array(_)
        )
    }

    /// Reads a value.
    pub fn parse(&self, text: &str) -> Result<Value, Refusal> {
        match self {
            Kind::Bool => parse_bool(text).map(Value::Bool),
            Kind::Number(range) => parse_number(text, range).map(Value::Number),
            Kind::Size => parse_size(text).map(Value::Number),
            Kind::Time => parse_time(text).map(Value::Time),
            Kind::Mode => parse_mode(text).map(Value::Number),
            Kind::Rlimit => parse_rlimit(text).map(Value::Rlimit),
            Kind::Choice(words, complaint) => match words.iter().find(|word| word.eq_ignore_ascii_case(text)) {
                Some(word) => Ok(Value::Text((*word).to_owned())),
                None => Err(match complaint {
                    Some(complaint) => Refusal::Malformed((*complaint).to_owned()),
                    None => Refusal::OutOfRange(format!("there is no '{text}'")),
                }),
            },
            Kind::Facility => match FACILITIES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)) {
                Some((_, number)) => Ok(Value::Number(*number)),
                None => Err(Refusal::Malformed("invalid value".to_owned())),
            },
            Kind::NonEmpty if text.is_empty() => Err(Refusal::OutOfRange("it is empty".to_owned())),
            Kind::Path(_) if text.contains('\0') => Err(Refusal::OutOfRange("a path holds no NUL".to_owned())),
            Kind::Text | Kind::NonEmpty | Kind::Path(_) | Kind::Address | Kind::Include => {
                Ok(Value::Text(text.to_owned()))
            }
            Kind::Names => Ok(Value::List(list(text, |c| c == ','))),
            Kind::Words => Ok(Value::List(list(text, |c| matches!(c, ' ' | '\t')))),
            Kind::Version => parse_version(text).map(Value::Text),
            Kind::CgroupSize if text == "max" => Ok(Value::Text(text.to_owned())),
            Kind::CgroupSize => parse_size(text).map(|bytes| Value::Text(bytes.to_string())),
            Kind::CgroupCount if text == "max" => Ok(Value::Text(text.to_owned())),
            Kind::CgroupCount => parse_number(text, &(1..=i64::from(u32::MAX))).map(|n| Value::Text(n.to_string())),
            Kind::CgroupWeight => parse_number(text, &(1..=10_000)).map(|n| Value::Text(n.to_string())),
            Kind::CgroupCpu => parse_cpu(text).map(Value::Text),
            Kind::Array(_) => Err(Refusal::Malformed("wants a key in brackets".to_owned())),
        }
    }

    /// What is allowed, to follow the word "allowed:".
    pub fn allowed(&self) -> String {
        match self {
            Kind::Bool => "yes or no, or on, off, true, false, 1, 0".into(),
            Kind::Number(range) => format!("a whole number from {} to {}", range.start(), range.end()),
            Kind::Size => "bytes, such as 1048576, 1024K, 64M or 1G".into(),
            Kind::Time => "a time such as 30, 30s, 1.5s, 1500ms, 10m, 2h or 1d".into(),
            Kind::Mode => "octal permissions from 0000 to 0777, such as 0660".into(),
            Kind::Rlimit => "unlimited, or a whole number from 0, which leaves the limit as it is".into(),
            Kind::Choice(words, _) => alternatives(words.iter().copied()),
            Kind::Facility => alternatives(FACILITIES.iter().map(|(name, _)| *name)),
            Kind::Text => "any text".into(),
            Kind::NonEmpty => "any text but an empty one".into(),
            Kind::Names => "names separated by commas".into(),
            Kind::Words => "words separated by blanks".into(),
            Kind::Path(_) => "a path".into(),
            Kind::Address => "a port, host:port, [IPv6]:port, or the path of a unix socket, at most 107 bytes".into(),
            Kind::Version => "a version such as 8.2".into(),
            Kind::CgroupSize => "max, or bytes, such as 1048576, 1024K, 64M or 1G".into(),
            Kind::CgroupCount => format!("max, or a whole number from 1 to {}", u32::MAX),
            Kind::CgroupWeight => "a whole number from 1 to 10000".into(),
            Kind::CgroupCpu => {
                "max, a percentage of one CPU such as 150%, or the kernel's QUOTA PERIOD in microseconds".into()
            }
            Kind::Include => "a glob pattern".into(),
            Kind::Array(Array::Env) => "env[NAME] = any text but an empty one; $OTHER is looked up".into(),
            Kind::Array(Array::Value { .. }) => "a php.ini setting in brackets, and any text".into(),
            Kind::Array(Array::Flag { .. }) => "a php.ini setting in brackets, and yes or no".into(),
            Kind::Array(Array::Path) => "empty brackets, and a path that begins with /".into(),
        }
    }
}

fn alternatives<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.collect::<Vec<_>>().join(", ")
}

fn list(text: &str, separator: impl Fn(char) -> bool) -> Vec<String> {
    text.split(separator)
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// php-fpm's booleans.
pub fn parse_bool(text: &str) -> Result<bool, Refusal> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "yes" | "true" | "on" => Ok(true),
        "" | "0" | "no" | "none" | "false" | "off" => Ok(false),
        _ => Err(Refusal::Malformed("invalid boolean value".into())),
    }
}

fn parse_number(text: &str, range: &RangeInclusive<i64>) -> Result<i64, Refusal> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Refusal::Malformed(NOT_A_NUMBER.into()));
    }
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(Refusal::OutOfRange(format!("{text} is out of range"))),
    }
}

fn parse_size(text: &str) -> Result<i64, Refusal> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(Refusal::Malformed("unknown suffix used in size value".into())),
    };
    let number = parse_number(digits.trim_end(), &(0..=i64::MAX))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| Refusal::OutOfRange(format!("{text} is out of range")))
}

/// Reads a time: php-fpm's whole numbers with `s`, `m`, `h` or `d`, and beyond them `ms` and fractions.
pub fn parse_time(text: &str) -> Result<Duration, Refusal> {
    const PARTS: u128 = 1_000_000_000;
    if text.is_empty() {
        return Err(Refusal::Malformed("invalid time value".into()));
    }
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit_nanos: u128 = match &text[number.len()..] {
        "ms" => 1_000_000,
        "" | "s" => PARTS,
        "m" => 60 * PARTS,
        "h" => 3600 * PARTS,
        "d" => 86400 * PARTS,
        _ => return Err(Refusal::Malformed(UNKNOWN_SUFFIX.into())),
    };
    let number = number.trim_end();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if let Some(positive) = whole.strip_prefix('-')
        && is_digits(positive)
    {
        return Err(Refusal::OutOfRange(format!("{text} is negative")));
    }
    if !is_digits(whole) || !is_digits(fraction) || fraction.len() > 9 {
        // php-fpm looks at the last character alone.
        let ends_well = text.ends_with(|c: char| c.is_ascii_alphanumeric());
        let reason = if ends_well {
            "invalid time value"
        } else {
            UNKNOWN_SUFFIX
        };
        return Err(Refusal::Malformed(reason.into()));
    }
    let too_long = || Refusal::OutOfRange(format!("{text} is out of range"));
    let whole: u64 = whole.parse().map_err(|_| too_long())?;
    let fraction: u64 = format!("{fraction:0<9}").parse().map_err(|_| too_long())?;
    let parts = u128::from(whole) * PARTS + u128::from(fraction);
    let nanos = parts.checked_mul(unit_nanos).ok_or_else(too_long)? / PARTS;
    if nanos > u128::from(MAX_SECONDS) * PARTS {
        return Err(too_long());
    }
    Ok(Duration::new((nanos / PARTS) as u64, (nanos % PARTS) as u32))
}

/// A time as `-tt` prints it, without the unit: seconds.
pub fn format_seconds(time: Duration) -> String {
    match time.subsec_nanos() {
        0 => time.as_secs().to_string(),
        nanos => format!("{}.{}", time.as_secs(), format!("{nanos:09}").trim_end_matches('0')),
    }
}

fn parse_mode(text: &str) -> Result<i64, Refusal> {
    let bad = || Refusal::OutOfRange(format!("'{text}' is no octal number"));
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    match i64::from_str_radix(text, 8).map_err(|_| bad())? {
        mode if mode <= 0o777 => Ok(mode),
        _ => Err(Refusal::OutOfRange(format!("{text} is out of range"))),
    }
}

fn parse_rlimit(text: &str) -> Result<Option<Rlimit>, Refusal> {
    if text.eq_ignore_ascii_case("unlimited") {
        return Ok(Some(Rlimit::Unlimited));
    }
    match parse_number(text, &(i64::MIN..=i64::MAX))? {
        0 => Ok(None),
        limit => match u64::try_from(limit) {
            Ok(limit) => Ok(Some(Rlimit::Value(limit))),
            Err(_) => Err(Refusal::Malformed("must be greater than zero or 'unlimited'".into())),
        },
    }
}

fn parse_version(text: &str) -> Result<String, Refusal> {
    let is_number = |part: &str| (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    match text.split_once('.') {
        _ if text.is_empty() => Ok(String::new()),
        Some((major, minor)) if is_number(major) && is_number(minor) => Ok(text.to_owned()),
        _ => Err(Refusal::Malformed(format!("'{text}' is no version"))),
    }
}

/// `cpu.max` wants a quota and a period in microseconds; a percentage is one of the usual period of 100 ms.
fn parse_cpu(text: &str) -> Result<String, Refusal> {
    let bad = || Refusal::Malformed(format!("'{text}' is no share of CPU time"));
    if text == "max" {
        return Ok(text.to_owned());
    }
    if let Some(percent) = text.strip_suffix('%') {
        let percent = parse_number(percent, &(1..=1_000_000)).map_err(|_| bad())?;
        return Ok(format!("{} 100000", percent * 1000));
    }
    let (quota, period) = text.split_once(' ').ok_or_else(bad)?;
    let period = parse_number(period.trim(), &(1000..=1_000_000)).map_err(|_| bad())?;
    if quota != "max" {
        parse_number(quota, &(1000..=i64::MAX)).map_err(|_| bad())?;
    }
    Ok(format!("{quota} {period}"))
}

/// A field of the model, as the table of directives sees it.
///
/// Each kind has its fields: the table's tests store and show every one, so a pair that does not fit never ships.
pub trait Field {
    /// Takes a value over.
    fn store(&mut self, value: Value);
    /// The value it has; None is unset.
    fn show(&self) -> Option<Value>;
}

/// A directive whose kind and field do not fit; the table's tests find it.
fn misfit(value: &Value) -> ! {
    unreachable!("the table of directives stores {value:?} in a field of another type")
}

macro_rules! number_field {
    ($($type:ty),*) => {$(
        impl Field for $type {
            fn store(&mut self, value: Value) {
                match value {
                    Value::Number(number) => *self = number.try_into().unwrap_or_else(|_| misfit(&value)),
                    _ => misfit(&value),
                }
            }
            fn show(&self) -> Option<Value> {
                Some(Value::Number(i64::try_from(*self).unwrap_or(i64::MAX)))
            }
        }
    )*};
}
number_field!(u32, u64, usize, i32);

macro_rules! field {
    ($type:ty, $($pattern:pat => $stored:expr),+; $self:ident => $shown:expr) => {
        impl Field for $type {
            fn store(&mut self, value: Value) {
                match value {
                    $($pattern => *self = $stored,)+
                    _ => misfit(&value),
                }
            }
            fn show(&$self) -> Option<Value> {
                $shown
            }
        }
    };
}
field!(bool, Value::Bool(yes) => yes; self => Some(Value::Bool(*self)));
field!(Duration, Value::Time(time) => time; self => Some(Value::Time(*self)));
field!(String, Value::Text(text) => text; self => Some(Value::Text(self.clone())));
field!(Vec<String>, Value::List(list) => list; self => Some(Value::List(self.clone())));
field!(Option<String>, Value::Text(text) => Some(text).filter(|text| !text.is_empty());
    self => self.clone().map(Value::Text));
field!(Option<PathBuf>, Value::Text(text) => Some(PathBuf::from(text)).filter(|path| path != Path::new(""));
    self => self.as_ref().map(|path| Value::Text(path.display().to_string())));
field!(Option<Rlimit>, Value::Rlimit(limit) => limit; self => Some(Value::Rlimit(*self)));
field!(Option<i32>, Value::Number(number) => i32::try_from(number).ok(); self => self.map(|n| Value::Number(n.into())));
field!(Option<u32>, Value::Number(number) => u32::try_from(number).ok(); self => self.map(|n| Value::Number(n.into())));
// A limit of 0 leaves things as they are.
field!(Option<u64>, Value::Number(number) => u64::try_from(number).ok().filter(|n| *n != 0);
    self => Some(Value::Number(self.and_then(|n| i64::try_from(n).ok()).unwrap_or(0))));

impl Field for Pm {
    fn store(&mut self, value: Value) {
        *self = match &value {
            Value::Text(word) if word == "static" => Pm::Static,
            Value::Text(word) if word == "dynamic" => Pm::Dynamic,
            Value::Text(word) if word == "ondemand" => Pm::Ondemand,
            _ => misfit(&value),
        }
    }

    fn show(&self) -> Option<Value> {
        Some(Value::Text(self.name().into()))
    }
}

impl Field for Level {
    fn store(&mut self, value: Value) {
        *self = match &value {
            Value::Text(word) if word == "DEBUG" => Level::Debug,
            Value::Text(word) if word == "NOTICE" => Level::Notice,
            Value::Text(word) if word == "WARNING" || word == "WARN" => Level::Warning,
            Value::Text(word) if word == "ERROR" => Level::Error,
            Value::Text(word) if word == "ALERT" => Level::Alert,
            _ => misfit(&value),
        }
    }

    fn show(&self) -> Option<Value> {
        Some(Value::Text(self.name().into()))
    }
}

/// The entry of a list of entries, as a field.
pub fn store_entry(list: &mut Vec<IniEntry>, key: &str, value: Value) {
    let Value::Text(value) = value else { misfit(&value) };
    list.retain(|entry| entry.key != key);
    if !value.is_empty() {
        list.push(IniEntry {
            key: key.to_owned(),
            value,
        });
    }
}

/// The same, to be shown.
pub fn show_entry(list: &[IniEntry], key: &str) -> Option<Value> {
    list.iter()
        .find(|entry| entry.key == key)
        .map(|entry| Value::Text(entry.value.clone()))
}

#[cfg(test)]
#[path = "value_tests.rs"]
mod tests;
