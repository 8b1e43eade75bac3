//! Clock and entropy.
//!
//! The time comes from the host (its RTC) and is hostile. The one thing known for certain is that it is not
//! earlier than the build of the image. Whoever depends on time needs a better bound from elsewhere.

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use ring::rand::{SecureRandom, SystemRandom};
use std::time::Duration;

/// 2026-01-01, when the build gives no SOURCE_DATE_EPOCH.
const DEFAULT_BUILD_TIME: u64 = 1_767_225_600;

/// Clock or entropy could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// The system calls are missing.
    #[error("reading or setting the clock failed: {0}; build the image with the kernel of its recipe")]
    Clock(#[from] nix::Error),
    /// getrandom(2) does not work.
    #[error("the kernel gives no random bytes; build the image with the kernel of its recipe")]
    Entropy,
}

/// Build time of the image, in seconds since 1970.
pub fn build_time() -> u64 {
    option_env!("SOURCE_DATE_EPOCH").and_then(|text| text.parse().ok()).unwrap_or(DEFAULT_BUILD_TIME)
}

/// The time to set, when the host's is impossible.
fn correction(host_time: u64, build_time: u64) -> Option<u64> {
    (host_time < build_time).then_some(build_time)
}

/// Checks the clock against the build time and moves it there when it is earlier. Returns a line for the console.
pub fn check() -> Result<String, ClockError> {
    let host_time = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?).as_secs();
    match correction(host_time, build_time()) {
        None => Ok(format!("clock: {host_time} s since 1970, as the host says")),
        Some(time) => {
            clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(Duration::from_secs(time)))?;
            Ok(format!(
                "clock: the host said {host_time} s since 1970, before this image was built; set to {time}"
            ))
        }
    }
}

/// Waits until the kernel's random generator is seeded (getrandom(2) blocks until then).
pub fn wait_for_entropy() -> Result<(), ClockError> {
    random::<1>().map(|_| ())
}

/// Random bytes from the kernel.
pub fn random<const N: usize>() -> Result<[u8; N], ClockError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| ClockError::Entropy)?;
    Ok(bytes)
}

/// Seconds since 1970, as the host says.
pub fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_REALTIME).map(|time| Duration::from(time).as_secs()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_time_before_the_build_is_corrected() {
        assert_eq!(correction(99, 100), Some(100));
        assert_eq!(correction(100, 100), None);
        assert_eq!(correction(u64::MAX, 100), None);
        assert!(build_time() >= DEFAULT_BUILD_TIME);
    }
}
