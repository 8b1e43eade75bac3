//! Times on the command line.

use std::time::{SystemTime, UNIX_EPOCH};
use time::{Date, OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description};

/// Seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time(pub(crate) u64);

/// A date, which means its beginning in UTC, or a time with zone (RFC 3339).
pub(crate) fn parse(text: &str) -> Result<Time, String> {
    let date = || Date::parse(text, format_description!("[year]-[month]-[day]")).ok();
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        .or_else(|| Some(date()?.midnight().assume_utc()))
        .and_then(|time| u64::try_from(time.unix_timestamp()).ok())
        .map(Time)
        .ok_or_else(|| "give a date as 2027-01-31, or a time as 2027-01-31T12:00:00Z".to_owned())
}

/// For people.
pub(crate) fn show(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok()?.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{seconds} seconds after 1970"))
}

/// What the clock says, in seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_times() {
        // date --utc --date=2027-01-31 +%s
        assert_eq!(parse("2027-01-31"), Ok(Time(1_801_353_600)));
        assert_eq!(parse("2027-01-31T01:00:00+01:00"), Ok(Time(1_801_353_600)));
        assert_eq!(show(1_801_353_600), "2027-01-31T00:00:00Z");
        for bad in ["", "tomorrow", "2027-02-30", "1969-12-31"] {
            parse(bad).unwrap_err();
        }
    }
}
