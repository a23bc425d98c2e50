//! Local time, formatted once a second.

use std::sync::OnceLock;

use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;

static ZONE: OnceLock<TimeZone> = OnceLock::new();

/// Reads the system's time zone (`TZ`, else `/etc/localtime`, else UTC), once for this process and its forks. Who enters
/// a chroot calls it before that.
pub fn read_time_zone() -> TimeZone {
    ZONE.get_or_init(TimeZone::system).clone()
}

/// A strftime format in local time (names as in the C locale), whose last result is kept for as long as its second lasts.
#[derive(Clone, Debug)]
pub struct Clock {
    zone: TimeZone,
    format: String,
    second: i64,
    text: String,
}

impl Clock {
    /// A clock of the system's time zone. Directives that strftime(3) does not know are shown as they are.
    pub fn new(format: &str) -> Self {
        Self::in_zone(format, read_time_zone())
    }

    /// A clock of another time zone.
    pub fn in_zone(format: &str, zone: TimeZone) -> Self {
        Self {
            zone,
            format: format.to_owned(),
            second: i64::MIN,
            text: String::new(),
        }
    }

    /// The text for a second since the epoch.
    pub fn at(&mut self, second: i64) -> &str {
        if second != self.second {
            self.second = second;
            self.text.clear();
            let time = Timestamp::from_second(second)
                .unwrap_or_default()
                .to_zoned(self.zone.clone());
            let config = strtime::Config::new().custom(strtime::PosixCustom::new()).lenient(true);
            if strtime::BrokenDownTime::from(&time)
                .format_with_config(&config, &self.format, &mut self.text)
                .is_err()
            {
                self.text.clear();
            }
        }
        &self.text
    }
}
