//! The events that have a stable identifier in the journal (`MESSAGE_ID`) and an explanation in its catalog.

#![forbid(unsafe_code)]

/// An event by its identifier; `units/php-pool.catalog` explains each to `journalctl --catalog`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageId {
    /// A worker of a pool has died.
    WorkerDied,
    /// A worker was ended for want of memory.
    WorkerOom,
    /// A request has exceeded its time limit.
    RequestTimeout,
    /// A request is slow.
    RequestSlow,
    /// A pool has reached its largest size.
    MaxChildren,
    /// A reload has failed.
    ReloadFailed,
    /// A new generation of workers serves a pool.
    GenerationReady,
    /// A pool's PHP process did not answer.
    ZygoteReplaced,
    /// A pool runs without control groups of its own.
    NoCgroup,
}

impl MessageId {
    /// All of them.
    pub const ALL: [MessageId; 9] = [
        MessageId::WorkerDied,
        MessageId::WorkerOom,
        MessageId::RequestTimeout,
        MessageId::RequestSlow,
        MessageId::MaxChildren,
        MessageId::ReloadFailed,
        MessageId::GenerationReady,
        MessageId::ZygoteReplaced,
        MessageId::NoCgroup,
    ];

    /// The identifier, as `journalctl MESSAGE_ID=` takes it.
    pub fn text(self) -> &'static str {
        match self {
            MessageId::WorkerDied => "51282a4328314f1693838ac194d153e3",
            MessageId::WorkerOom => "b991bd98767c4958b8e0cc67010813ce",
            MessageId::RequestTimeout => "2ab6d92883c3487f97cdf8f357638a5a",
            MessageId::RequestSlow => "3f5a514f538d45929208c115c32abc14",
            MessageId::MaxChildren => "ea40ce8e894e4821982fd71f2c3ea80c",
            MessageId::ReloadFailed => "02287d9d79e14b19ad178e89c1e19791",
            MessageId::GenerationReady => "790ddbb7784b408695581d0beacc1987",
            MessageId::ZygoteReplaced => "a52df09c799a429f8220e88d3ad916e2",
            MessageId::NoCgroup => "e6c57a9fd05b4f07810ac5a7d6f473af",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_identifier_is_explained_in_the_catalog_and_nothing_else_is() {
        let catalog = include_str!("../../units/php-pool.catalog");
        let mut explained: Vec<&str> = catalog.lines().filter_map(|line| line.strip_prefix("-- ")).collect();
        let mut ids: Vec<&str> = MessageId::ALL.iter().map(|id| id.text()).collect();
        explained.sort_unstable();
        ids.sort_unstable();
        assert_eq!(ids, explained);
    }
}
