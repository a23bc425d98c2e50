//! One record: its header, and writing the few kinds that a server sends.

use super::HEADER_LEN;

/// Record types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordType {
    /// FCGI_BEGIN_REQUEST
    BeginRequest,
    /// FCGI_ABORT_REQUEST
    AbortRequest,
    /// FCGI_END_REQUEST
    EndRequest,
    /// FCGI_PARAMS
    Params,
    /// FCGI_STDIN
    Stdin,
    /// FCGI_STDOUT
    Stdout,
    /// FCGI_STDERR
    Stderr,
    /// FCGI_DATA
    Data,
    /// FCGI_GET_VALUES
    GetValues,
    /// FCGI_GET_VALUES_RESULT
    GetValuesResult,
    /// FCGI_UNKNOWN_TYPE, and any number the protocol does not know.
    Unknown(u8),
}

impl From<u8> for RecordType {
    fn from(value: u8) -> Self {
        match value {
            1 => Self::BeginRequest,
            2 => Self::AbortRequest,
            3 => Self::EndRequest,
            4 => Self::Params,
            5 => Self::Stdin,
            6 => Self::Stdout,
            7 => Self::Stderr,
            8 => Self::Data,
            9 => Self::GetValues,
            10 => Self::GetValuesResult,
            other => Self::Unknown(other),
        }
    }
}

impl RecordType {
    fn number(self) -> u8 {
        match self {
            Self::BeginRequest => 1,
            Self::AbortRequest => 2,
            Self::EndRequest => 3,
            Self::Params => 4,
            Self::Stdin => 5,
            Self::Stdout => 6,
            Self::Stderr => 7,
            Self::Data => 8,
            Self::GetValues => 9,
            Self::GetValuesResult => 10,
            Self::Unknown(other) => other,
        }
    }
}

/// What the web server wants of the application. All three are served alike, as php-fpm does; scripts see `FCGI_ROLE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// FCGI_RESPONDER
    Responder = 1,
    /// FCGI_AUTHORIZER
    Authorizer,
    /// FCGI_FILTER
    Filter,
}

impl Role {
    /// The role with this number.
    pub fn from_number(number: u16) -> Option<Self> {
        match number {
            1 => Some(Self::Responder),
            2 => Some(Self::Authorizer),
            3 => Some(Self::Filter),
            _ => None,
        }
    }

    /// The value of the `FCGI_ROLE` parameter.
    pub fn name(self) -> &'static str {
        match self {
            Self::Responder => "RESPONDER",
            Self::Authorizer => "AUTHORIZER",
            Self::Filter => "FILTER",
        }
    }
}

/// How a request ended, in END_REQUEST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolStatus {
    /// FCGI_REQUEST_COMPLETE
    Complete = 0,
    /// FCGI_CANT_MPX_CONN
    CantMultiplex = 1,
    /// FCGI_OVERLOADED
    Overloaded = 2,
    /// FCGI_UNKNOWN_ROLE
    UnknownRole = 3,
}

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Protocol version; php-fpm takes any but 0, and so do we.
    pub version: u8,
    /// Record type.
    pub kind: RecordType,
    /// Request id; 0 is the connection itself.
    pub id: u16,
    /// Bytes of content that follow.
    pub content: u16,
    /// Bytes of padding after those.
    pub padding: u8,
}

impl Header {
    /// Reads a header; None when fewer than 8 bytes are there.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let b: &[u8; HEADER_LEN] = bytes.get(..HEADER_LEN)?.try_into().ok()?;
        Some(Self {
            version: b[0],
            kind: b[1].into(),
            id: u16::from_be_bytes([b[2], b[3]]),
            content: u16::from_be_bytes([b[4], b[5]]),
            padding: b[6],
        })
    }

    /// The header's bytes; the reserved one is zero.
    pub fn bytes(kind: RecordType, id: u16, content: u16, padding: u8) -> [u8; HEADER_LEN] {
        let [i0, i1] = id.to_be_bytes();
        let [c0, c1] = content.to_be_bytes();
        [1, kind.number(), i0, i1, c0, c1, padding, 0]
    }
}

/// Padding that brings `content` to a multiple of 8 bytes.
pub fn padding(content: usize) -> usize {
    content.wrapping_neg() & 7
}

/// Appends one whole record; `content` must not be longer than 65,535 bytes.
pub fn append_record(out: &mut Vec<u8>, kind: RecordType, id: u16, content: &[u8]) {
    let pad = padding(content.len());
    let length = u16::try_from(content.len()).expect("a record's content fits 16 bits");
    out.extend_from_slice(&Header::bytes(kind, id, length, pad as u8));
    out.extend_from_slice(content);
    out.extend_from_slice(&[0; 7][..pad]);
}

/// Appends END_REQUEST. The application's status is always 0, as php-fpm sends it: no web server reads it.
pub fn append_end_request(out: &mut Vec<u8>, id: u16, status: ProtocolStatus) {
    append_record(out, RecordType::EndRequest, id, &[0, 0, 0, 0, status as u8, 0, 0, 0]);
}

/// Appends UNKNOWN_TYPE, the answer to a management record we do not know.
pub fn append_unknown_type(out: &mut Vec<u8>, kind: u8) {
    append_record(out, RecordType::Unknown(11), 0, &[kind, 0, 0, 0, 0, 0, 0, 0]);
}

/// Appends GET_VALUES_RESULT for those of `asked` (the content of a GET_VALUES record) that we know. `capacity` is
/// how many requests the pool runs at a time.
pub fn append_get_values_result(out: &mut Vec<u8>, asked: &[u8], capacity: u32) {
    let mut content = Vec::new();
    for pair in super::pairs(asked) {
        let Ok(pair) = pair else { break };
        let value = match pair.name {
            b"FCGI_MPXS_CONNS" => "0".to_owned(),
            b"FCGI_MAX_CONNS" | b"FCGI_MAX_REQS" => capacity.to_string(),
            _ => continue,
        };
        // A name may be asked for a thousand times; the answer stays within one record.
        if content.len() + pair.name.len() + value.len() + 2 > super::MAX_CONTENT {
            break;
        }
        content.push(pair.name.len() as u8);
        content.push(value.len() as u8);
        content.extend_from_slice(pair.name);
        content.extend_from_slice(value.as_bytes());
    }
    append_record(out, RecordType::GetValuesResult, 0, &content);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_padded_to_eight_bytes_with_zeros() {
        let mut out = Vec::new();
        append_record(&mut out, RecordType::Stdout, 0x0102, b"hello");
        assert_eq!(out, [1, 6, 1, 2, 0, 5, 3, 0, b'h', b'e', b'l', b'l', b'o', 0, 0, 0]);
    }

    #[test]
    fn end_request_has_zeroed_reserved_bytes() {
        let mut out = Vec::new();
        append_end_request(&mut out, 1, ProtocolStatus::Overloaded);
        assert_eq!(out, [1, 3, 0, 1, 0, 8, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
    }

    #[test]
    fn get_values_answers_what_it_knows() {
        let mut out = Vec::new();
        append_get_values_result(&mut out, b"\x0f\x00FCGI_MPXS_CONNS\x0e\x00FCGI_MAX_CONNS\x03\x00FOO", 7);
        let content = b"\x0f\x01FCGI_MPXS_CONNS0\x0e\x01FCGI_MAX_CONNS7";
        assert_eq!(Header::parse(&out).unwrap().content as usize, content.len());
        assert_eq!(&out[8..8 + content.len()], content);
    }
}
