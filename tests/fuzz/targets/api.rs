//! What comes over the control socket.

use php_pool::api::{MAX_QUESTION, decode, encode};

pub const WORDS: &[&str] = &[
    "{\"version\":1,",
    "\"ask\":",
    "\"ping\"",
    "\"status\"",
    "\"reload\"",
    "\"trace\"",
    "\"events\"",
    "\"depth\":",
    "4294967296",
    "}",
];

/// A question is understood as the one that it is, or refused with a reason of one line.
pub fn question(data: &[u8]) {
    match decode(&data[..data.len().min(MAX_QUESTION)]) {
        Ok(question) => assert_eq!(decode(&encode(question.clone())), Ok(question)),
        Err(reason) => assert!(!reason.is_empty() && reason.len() < 2 * MAX_QUESTION),
    }
}
