//! The events that have a stable identifier in the journal (`MESSAGE_ID`) and an explanation in its catalog.

#![forbid(unsafe_code)]

/// An event; `units/php-pool.catalog` explains each to `journalctl --catalog`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A worker of a pool has died.
    WorkerDied,
    /// A worker has exceeded its memory limit.
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

impl Event {
    /// All of them.
    pub const ALL: [Event; 9] = [
        Event::WorkerDied,
        Event::WorkerOom,
        Event::RequestTimeout,
        Event::RequestSlow,
        Event::MaxChildren,
        Event::ReloadFailed,
        Event::GenerationReady,
        Event::ZygoteReplaced,
        Event::NoCgroup,
    ];

    /// The identifier, as `journalctl MESSAGE_ID=` takes it.
    pub fn id(self) -> &'static str {
        match self {
            Event::WorkerDied => "51282a4328314f1693838ac194d153e3",
            Event::WorkerOom => "b991bd98767c4958b8e0cc67010813ce",
            Event::RequestTimeout => "2ab6d92883c3487f97cdf8f357638a5a",
            Event::RequestSlow => "3f5a514f538d45929208c115c32abc14",
            Event::MaxChildren => "ea40ce8e894e4821982fd71f2c3ea80c",
            Event::ReloadFailed => "02287d9d79e14b19ad178e89c1e19791",
            Event::GenerationReady => "790ddbb7784b408695581d0beacc1987",
            Event::ZygoteReplaced => "a52df09c799a429f8220e88d3ad916e2",
            Event::NoCgroup => "e6c57a9fd05b4f07810ac5a7d6f473af",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_explained_in_the_catalog_and_nothing_else_is() {
        let catalog = include_str!("../../units/php-pool.catalog");
        let mut explained: Vec<&str> = catalog.lines().filter_map(|line| line.strip_prefix("-- ")).collect();
        let mut ids: Vec<&str> = Event::ALL.iter().map(|event| event.id()).collect();
        explained.sort_unstable();
        ids.sort_unstable();
        assert_eq!(ids, explained);
    }
}
