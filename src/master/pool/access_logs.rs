//! The access logs of a pool: its own, and those that older generations may still have.
#![forbid(unsafe_code)]

use std::rc::Rc;

use super::Pool;
use crate::log::errno;
use crate::master::access_log::AccessLog;
use crate::master::generation::Generation;

impl Pool {
    /// All access logs that are written: older generations may have another one.
    pub(super) fn access_logs(&self) -> impl Iterator<Item = &Rc<AccessLog>> {
        let leaving = self.leaving.as_ref().map(|(generation, _)| generation);
        let generations = self.current.iter().chain(&self.next).chain(leaving).chain(&self.old);
        let logs = self
            .access_log
            .iter()
            .chain(generations.filter_map(Generation::access_log));
        let mut seen = Vec::new();
        logs.filter(move |log| {
            let new = !seen.contains(&Rc::as_ptr(log));
            seen.push(Rc::as_ptr(log));
            new
        })
    }

    /// Has the access logs written to their ends, before an exec. [`crate::master::access_log::wait_for_all`] waits for it.
    pub fn stop_access_logs(&self) {
        self.access_logs().for_each(|log| log.stop());
    }

    /// After an exec that was not.
    pub fn start_access_logs(&self) {
        for log in self.access_logs() {
            if let Err(error) = log.start(self.id, &self.ctx.events) {
                let reason = errno(&error);
                self.log()
                    .error(format_args!("the thread of the access log cannot be made: {reason}"));
            }
        }
    }

    /// Says when lines begin to be lost.
    pub(super) fn check_access_logs(&self) {
        if self.access_logs().any(|log| log.begins_to_lose()) {
            let text = "the access log cannot be written as fast as requests end: lines are lost";
            self.log().error(text);
        }
    }
}
