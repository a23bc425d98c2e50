//! The FastCGI protocol, without any I/O: bytes in, events out.
//!
//! Source: the FastCGI specification 1.0; where php-fpm is laxer and somebody may rely on it, the place says so. Everything
//! read here is hostile: no length is believed before its bytes are there, and nothing is ever taken for a new
//! request that arrived inside the body of another.

#![forbid(unsafe_code)]

mod input;
mod params;
mod record;

pub use input::{Begin, Event, Input, MAX_PARAMS, ProtocolError};
pub use params::{Pair, Pairs, pairs};
pub use record::{
    Header, ProtocolStatus, RecordType, Role, append_end_request, append_get_values_result, append_record,
    append_unknown_type, padding,
};

/// Length of a record's header, bytes.
pub const HEADER_LEN: usize = 8;

/// Longest content of a record of ours, bytes: the protocol's 65,535 rounded down to a multiple of 8, so that full records
/// need no padding.
pub const MAX_CONTENT: usize = 0xfff8;
