//! One question to a server of time (RFC 5905), and what its answer is worth.

use super::Sample;

/// Bytes of a packet.
pub const LENGTH: usize = 48;
/// Seconds from 1900, where NTP begins, to 1970.
const ERA: f64 = 2_208_988_800.0;
/// Seconds that NTP counts before it begins anew; 2036 is the next time.
const ROUND: f64 = 4_294_967_296.0;

/// An answer that is worth nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer is of no use: {0}")]
pub struct Useless(pub(super) &'static str);

/// The question. It says nothing of this machine but that it asks: the time in it is the random number that the answer must
/// repeat (draft-ietf-ntp-data-minimization).
pub fn question(random: [u8; 8]) -> [u8; LENGTH] {
    let mut packet = [0; LENGTH];
    packet[0] = 4 << 3 | 3; // version 4, client
    packet[40..].copy_from_slice(&random);
    packet
}

/// Judges an answer. `sent` and `received` in seconds since 1970 by this machine's clock, `took` in seconds by one that nobody
/// sets.
pub fn answer(packet: &[u8], random: [u8; 8], sent: f64, took: f64) -> Result<Sample, Useless> {
    let packet: &[u8; LENGTH] =
        packet.get(..LENGTH).and_then(|packet| packet.try_into().ok()).ok_or(Useless("it is too short"))?;
    let (leap, version, mode, stratum) = (packet[0] >> 6, packet[0] >> 3 & 7, packet[0] & 7, packet[1]);
    if mode != 4 || !(3..=4).contains(&version) {
        return Err(Useless("it is none of a server"));
    }
    if packet[24..32] != random {
        return Err(Useless("it does not belong to the question"));
    }
    if leap == 3 || stratum == 0 || stratum > 15 {
        return Err(Useless("the server has no time"));
    }
    let four = |at: usize| u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
    let time = |at: usize| f64::from(four(at)) + f64::from(four(at + 4)) / ROUND;
    let short = |at: usize| f64::from(four(at)) / 65_536.0;
    let (arrived, left) = (time(32), time(40));
    // In the round that makes it nearest to this machine's clock.
    let near = |time: f64| {
        let since_1970 = time - ERA;
        since_1970 + ((sent - since_1970) / ROUND).round() * ROUND
    };
    let there = left - arrived;
    let delay = took - there;
    if !(0.0..=took).contains(&there) || took.is_nan() {
        return Err(Useless("the server's times contradict this machine's"));
    }
    let offset = ((near(arrived) - sent) + (near(left) - (sent + took))) / 2.0;
    let bound = delay / 2.0 + short(4) / 2.0 + short(8);
    Ok(Sample { offset, bound })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An answer of a server whose clock says `time` (seconds since 1970) when the question arrives.
    fn packet(random: [u8; 8], time: f64, there: f64) -> [u8; LENGTH] {
        let mut packet = [0; LENGTH];
        packet[0] = 4 << 3 | 4;
        packet[1] = 2;
        packet[24..32].copy_from_slice(&random);
        for (at, time) in [(32, time), (40, time + there)] {
            let since_1900 = (time + ERA) % ROUND;
            packet[at..at + 4].copy_from_slice(&(since_1900 as u32).to_be_bytes());
            let fraction = (since_1900.fract() * ROUND) as u32;
            packet[at + 4..at + 8].copy_from_slice(&fraction.to_be_bytes());
        }
        packet
    }

    proptest! {
        #[test]
        fn a_true_answer_holds_the_truth(
            sent in 1.7e9..5e9_f64, error in -1e6..1e6_f64,
            there in 0.0..0.01_f64, way in 0.0..0.3_f64, back in 0.0..0.3_f64,
        ) {
            let random = [7; 8];
            // `error` is what has to be added to this machine's clock.
            let answer = answer(&packet(random, sent + error + way, there), random, sent, way + there + back).unwrap();
            prop_assert!((answer.offset - error).abs() <= answer.bound + 1e-4, "{answer:?}");
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), random: [u8; 8], sent: f64, took: f64) {
            let _ = answer(&bytes, random, sent, took);
        }
    }

    #[test]
    fn what_is_no_answer_to_this_question_is_refused() {
        let random = [9; 8];
        let good = packet(random, 1.8e9, 0.001);
        assert!(answer(&good, random, 1.8e9, 0.1).is_ok());
        assert!(answer(&good, [8; 8], 1.8e9, 0.1).is_err());
        assert!(answer(&good[..47], random, 1.8e9, 0.1).is_err());
        for (at, value, why) in [
            (0, 0xc0 | 4 << 3 | 4, "no time"),
            (0, 4 << 3 | 3, "none of a server"),
            (1, 0, "no time"),
            (1, 16, "no time"),
        ] {
            let mut bad = good;
            bad[at] = value;
            assert!(answer(&bad, random, 1.8e9, 0.1).unwrap_err().to_string().contains(why));
        }
        // Longer there than the whole way took.
        assert!(answer(&packet(random, 1.8e9, 0.2), random, 1.8e9, 0.1).is_err());
        assert_eq!(question(random)[0], 0x23);
    }
}
