//! Clocks.

use super::{number, sys, text};
use crate::probe::{Clock, clean};
use crate::seen::Seen;
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) fn probe() -> Clock {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|time| time.as_secs());
    let unix_s = Seen::or(now, "the clock is before 1970");
    Clock {
        rtc_offset_s: unix_s
            .clone()
            .and_then(|now| number("/sys/class/rtc/rtc0/since_epoch").map(|rtc| rtc.abs_diff(now))),
        unix_s,
        synchronised: sys::clock_synchronised()
            .map_or_else(|error| Seen::Unknown(clean(format!("adjtimex: {error}"))), Seen::Known),
        source: text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
    }
}
