//! php-fpm's tokens.

use std::io::Write;
use std::net::IpAddr;

use super::{Clock, Entry, Token};
use crate::config::access_format::{CpuTime, DurationUnit, MemoryUnit};

/// A token, with the clock that it needs.
#[derive(Debug)]
pub(super) enum Part {
    Accepted(Clock),
    Logged(Clock),
    Other(Token),
}

impl From<&Token> for Part {
    fn from(token: &Token) -> Self {
        match token {
            Token::AcceptTime(format) => Self::Accepted(Clock::new(format)),
            Token::LogTime(format) => Self::Logged(Clock::new(format)),
            other => Self::Other(other.clone()),
        }
    }
}

/// Appends the line without its newline.
pub(super) fn render(parts: &mut [Part], entry: &Entry<'_>, out: &mut Vec<u8>) {
    for part in parts {
        part.render(entry, out);
    }
}

impl Part {
    fn render(&mut self, e: &Entry<'_>, out: &mut Vec<u8>) {
        let token = match self {
            Self::Accepted(clock) => {
                return out.extend_from_slice(clock.at((e.accepted / 1_000_000) as i64).as_bytes());
            }
            Self::Logged(clock) => return out.extend_from_slice(clock.at((e.now / 1_000_000) as i64).as_bytes()),
            Self::Other(token) => token,
        };
        let seconds = e.duration as f64 / 1e6;
        match token {
            Token::AcceptTime(_) | Token::LogTime(_) => unreachable!("they have a part of their own"),
            Token::Literal(text) => out.extend_from_slice(text.as_bytes()),
            Token::Cpu(which) => {
                let micros = match which {
                    CpuTime::Total => e.cpu_user + e.cpu_system,
                    CpuTime::User => e.cpu_user,
                    CpuTime::System => e.cpu_system,
                };
                let percent = if e.duration == 0 {
                    0.0
                } else {
                    micros as f64 / e.duration as f64 * 100.0
                };
                put(out, format_args!("{percent:.2}"));
            }
            Token::Duration(DurationUnit::Seconds) => put(out, format_args!("{seconds:.3}")),
            Token::Duration(DurationUnit::Milliseconds) => put(out, format_args!("{:.3}", e.duration as f64 / 1e3)),
            Token::Duration(DurationUnit::Microseconds) => put(out, format_args!("{}", e.duration)),
            Token::Parameter(name) => escaped(out, (e.parameter)(name.as_bytes()).unwrap_or(b"-")),
            Token::ResponseHeader(name) => {
                let value = (e.header)(name.as_bytes()).unwrap_or_default();
                escaped(out, or_dash(value));
            }
            Token::Script => escaped(out, or_dash(e.script)),
            Token::ContentLength => put(out, format_args!("{}", e.content_length)),
            Token::RequestId => escaped(out, or_dash(e.id)),
            Token::Method => escaped(out, or_dash(e.method)),
            Token::Memory(unit) => {
                let unit = match unit {
                    MemoryUnit::Bytes => 1,
                    MemoryUnit::Kilobytes => 1024,
                    MemoryUnit::Megabytes => 1024 * 1024,
                };
                put(out, format_args!("{}", e.memory / unit));
            }
            Token::Pool => out.extend_from_slice(or_dash(e.pool.as_bytes())),
            Token::WorkerPid => put(out, format_args!("{}", e.pid)),
            Token::ParentPid => put(out, format_args!("{}", e.parent)),
            Token::Query => escaped(out, e.query),
            Token::QueryMark => out.extend_from_slice(if e.query.is_empty() { b"" } else { b"?" }),
            Token::Uri => escaped(out, e.uri),
            Token::RemoteAddress => match e.remote {
                Some(address) => put(out, format_args!("{}", canonical(address))),
                None => out.push(b'-'),
            },
            Token::Status => put(out, format_args!("{}", e.status)),
            Token::User => escaped(out, e.user),
        }
    }
}

/// A mapped address is shown as what it is.
pub(super) fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

fn or_dash(text: &[u8]) -> &[u8] {
    if text.is_empty() { b"-" } else { text }
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a Vec takes what is written to it");
}

fn escaped(out: &mut Vec<u8>, text: &[u8]) {
    for &byte in text {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0..=0x1f | 0x7f => put(out, format_args!("\\x{byte:02X}")),
            _ => out.push(byte),
        }
    }
}
