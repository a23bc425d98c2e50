//! What systemd is told: readiness, state, and that the loop still turns.
//!
//! Without `NOTIFY_SOCKET` all of it goes nowhere.
#![forbid(unsafe_code)]

use std::time::Duration;

use sd_notify::NotifyState;

use super::watch;
use crate::log::Logger;

/// How far ahead a time-out is pushed at once. It is asked for again in time.
const EXTENSION: Duration = Duration::from_secs(30);

/// Longest start of PHP (preloading, say) that is waited for.
pub const LONGEST_START: Duration = Duration::from_secs(600);

/// The line to the service manager.
#[derive(Debug)]
pub struct Systemd {
    log: Logger,
    /// How often WATCHDOG=1 goes out.
    watchdog: Option<Duration>,
    next_sign: Duration,
    /// How often STATUS= may change by itself.
    interval: Duration,
    next_status: Duration,
    status: String,
    /// What has become of the last reload; it is said together with the figures until there is another one.
    failure: Option<String>,
    /// A start, reload or stop is under way, and may be until then.
    busy_until: Option<Duration>,
    next_extension: Duration,
}

impl Systemd {
    /// Finds out what systemd wants. `interval` is `systemd_interval`; zero is never.
    pub fn new(log: &Logger, interval: Duration) -> Self {
        let now = watch::now();
        Self {
            log: log.clone(),
            watchdog: sd_notify::watchdog_enabled().map(|limit| limit / 3),
            next_sign: now,
            interval,
            next_status: now,
            status: String::new(),
            failure: None,
            busy_until: Some(now + LONGEST_START),
            next_extension: now,
        }
    }

    fn tell(&self, state: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(state) {
            self.log.debug(format_args!("systemd cannot be told: {error}"));
        }
    }

    /// All serves, or as much as will.
    pub fn ready(&mut self, status: &str) {
        self.busy_until = None;
        self.failure = None;
        self.status = status.to_owned();
        self.tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// A reload has changed nothing.
    pub fn reload_failed(&mut self, reason: &str) {
        let status = format!("The reload failed, the old generation serves on: {reason}");
        self.ready(&status);
        self.failure = Some(status);
    }

    /// A reload has begun.
    pub fn reloading(&mut self) {
        let now = watch::now();
        (self.busy_until, self.next_extension) = (Some(now + LONGEST_START), now);
        self.status = "Reloading".to_owned();
        match NotifyState::monotonic_usec_now() {
            Ok(clock) => self.tell(&[NotifyState::Reloading, clock, NotifyState::Status(&self.status)]),
            Err(_) => self.tell(&[NotifyState::Reloading]),
        }
    }

    /// The stop has begun, and may take until then.
    pub fn stopping(&mut self, limit: Duration) {
        (self.busy_until, self.next_extension) = (Some(limit), watch::now());
        self.status = "Requests finish".to_owned();
        self.tell(&[NotifyState::Stopping, NotifyState::Status(&self.status)]);
        self.tick(watch::now(), String::new);
    }

    /// Why the start failed, for `systemctl status`. The exit status says that it did.
    pub fn start_failed(reason: &str) {
        let _ = sd_notify::notify(&[NotifyState::Status(reason.lines().next().unwrap_or_default())]);
    }

    /// Sends what is due. `status` describes the pools.
    pub fn tick(&mut self, now: Duration, status: impl FnOnce() -> String) {
        if let Some(every) = self.watchdog
            && self.next_sign <= now
        {
            self.next_sign = now + every;
            self.tell(&[NotifyState::Watchdog]);
        }
        match self.busy_until {
            Some(until) if self.next_extension <= now => {
                self.next_extension = now + EXTENSION / 3;
                // A little more than is needed, for the last steps.
                let more = EXTENSION.min(until.saturating_sub(now) + Duration::from_secs(5));
                if until <= now {
                    return;
                }
                self.tell(&[NotifyState::ExtendTimeoutUsec(
                    u32::try_from(more.as_micros()).unwrap_or(u32::MAX),
                )]);
            }
            Some(_) => {}
            None if !self.interval.is_zero() && self.next_status <= now => {
                self.next_status = now + self.interval;
                let status = match &self.failure {
                    Some(failure) => format!("{failure}; {}", status()),
                    None => status(),
                };
                if status != self.status {
                    self.tell(&[NotifyState::Status(&status)]);
                    self.status = status;
                }
            }
            None => {}
        }
    }

    /// When [`Self::tick`] is due.
    pub fn wake(&self) -> Option<Duration> {
        std::env::var_os("NOTIFY_SOCKET")?;
        let sign = self.watchdog.map(|_| self.next_sign);
        let other = match self.busy_until {
            Some(_) => Some(self.next_extension),
            None => (!self.interval.is_zero()).then_some(self.next_status),
        };
        sign.into_iter().chain(other).min()
    }
}
