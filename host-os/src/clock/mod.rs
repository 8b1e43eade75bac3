//! The host's clock, by several servers that must agree. No I/O.
//!
//! Servers with Network Time Security are asked first. Answers of plain NTP are not authenticated, so no server is believed alone
//! and no majority is believed beyond bounds: whoever is on the way can move the clock by little, and not at all to before this
//! program was built. The guest believes no time of the host.

pub mod authenticated;
pub mod keeper;
pub mod ntp;
pub mod nts;

use serde::{Deserialize, Serialize};

/// Farthest that servers may step the clock when the machine has just started: what a good clock of a machine loses in years
/// without power is less. Seconds.
pub const STEP: f64 = 600.0;
/// Farthest that they may move it afterwards, slowly. Seconds.
pub const SLEW: f64 = 1.0;
/// An answer that is vaguer than this says nothing. Seconds.
const VAGUE: f64 = 1.0;

/// What a server's answer says of the clock: it is wrong by `offset`, plus or minus `bound`. Seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// To be added to this machine's clock.
    pub offset: f64,
    /// How far the truth can be from it, if the server is right.
    pub bound: f64,
}

/// What more than half of the servers agree on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    /// The middle of what they have in common. Seconds.
    pub offset: f64,
    /// Half of its width.
    pub bound: f64,
    /// How many of them.
    pub members: usize,
}

/// Finds the time that most servers have in common (Marzullo's algorithm). `asked` counts those that did not answer too:
/// whoever keeps the others from answering gains nothing. `None` without more than half of them.
pub fn agree(samples: &[Sample], asked: usize) -> Option<Agreement> {
    let sound = |sample: &&Sample| sample.offset.is_finite() && (0.0..=VAGUE).contains(&sample.bound);
    let mut edges: Vec<(f64, i32)> = samples
        .iter()
        .filter(sound)
        .flat_map(|sample| [(sample.offset - sample.bound, -1), (sample.offset + sample.bound, 1)])
        .collect();
    // A beginning before an end at the same place: intervals that touch have a point in common.
    edges.sort_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)));
    let (mut inside, mut best, mut found) = (0_usize, 0, None);
    for (number, (at, kind)) in edges.iter().enumerate() {
        if *kind > 0 {
            inside -= 1;
            continue;
        }
        inside += 1;
        if inside > best {
            best = inside;
            found = edges.get(number + 1).map(|(end, _)| (*at, *end));
        }
    }
    let (start, end) = found.filter(|_| best * 2 > asked)?;
    Some(Agreement { offset: (start + end) / 2.0, bound: (end - start) / 2.0, members: best })
}

/// What becomes of the clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision {
    /// Set at once.
    Step(f64),
    /// Moved slowly.
    Slew(f64),
    /// Left alone: it is farther off than anybody may move it.
    FarOff(f64),
    /// Left alone: it would be before this program was built.
    BeforeBuild(f64),
}

/// Decides. `now` and `built` in seconds since 1970; `set` is whether the clock was set before since the start.
pub fn decide(agreement: &Agreement, now: f64, built: f64, set: bool) -> Decision {
    let offset = agreement.offset;
    if now + offset < built {
        return Decision::BeforeBuild(offset);
    }
    // A clock from before the build is wrong for certain, and has nothing to lose.
    let lost = now < built;
    match offset.abs() {
        far if far <= SLEW => Decision::Slew(offset),
        _ if lost && !set => Decision::Step(offset),
        far if far <= STEP && !set => Decision::Step(offset),
        _ => Decision::FarOff(offset),
    }
}

/// The clock, for the status.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ClockStatus {
    /// `synchronised`, `no-servers`, `no-agreement`, `clock-far-off`, `before-build`.
    pub state: String,
    /// In words.
    pub text: String,
    /// What the servers said last, in seconds; absent without an agreement.
    pub offset_s: Option<f64>,
    /// How far that may be wrong.
    pub bound_s: Option<f64>,
    /// Servers that agree, and all that were asked.
    pub servers: (usize, usize),
    /// Whether their answers are authenticated.
    #[serde(default)]
    pub authenticated: bool,
}

/// Names what was found.
pub fn judge(agreement: Option<Agreement>, decision: Option<Decision>, asked: usize) -> ClockStatus {
    let members = agreement.map_or(0, |agreement| agreement.members);
    let (state, text) = match decision {
        _ if asked == 0 => (
            "no-servers",
            "no server of time is configured: the clock is the machine's own; install the node with `network.time`"
                .to_owned(),
        ),
        None => (
            "no-agreement",
            format!("fewer than half of {asked} servers of time answer and agree: check the network, or the servers"),
        ),
        Some(Decision::Step(offset)) => ("synchronised", format!("set by {offset:+.3} s")),
        Some(Decision::Slew(offset)) => ("synchronised", format!("{offset:+.6} s off")),
        Some(Decision::FarOff(offset)) => (
            "clock-far-off",
            format!(
                "the clock is {offset:+.0} s off, farther than servers may move it; set it in the firmware, and restart the machine"
            ),
        ),
        Some(Decision::BeforeBuild(_)) => (
            "before-build",
            "the servers say a time before this program was built: they are wrong, or lie".to_owned(),
        ),
    };
    ClockStatus {
        state: state.into(),
        text,
        offset_s: agreement.map(|agreement| agreement.offset),
        bound_s: agreement.map(|agreement| agreement.bound),
        servers: (members, asked),
        authenticated: false,
    }
}

/// When this program was built, in seconds since 1970; the beginning of 2026 if the build does not say.
pub fn build_time() -> f64 {
    const DEFAULT: f64 = 1_767_225_600.0;
    option_env!("SOURCE_DATE_EPOCH").and_then(|text| text.parse().ok()).unwrap_or(DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn honest(truth: f64) -> impl Strategy<Value = Sample> {
        (0.001..0.2_f64, -1.0..1.0_f64)
            .prop_map(move |(bound, share)| Sample { offset: truth + share * bound, bound })
    }

    fn liar() -> impl Strategy<Value = Sample> {
        let any = prop_oneof![-1e9..1e9_f64, -1.0..1.0_f64, Just(f64::NAN), Just(f64::INFINITY)];
        (any, prop_oneof![0.0..2.0_f64, Just(f64::NAN), Just(-1.0), Just(1e18)])
            .prop_map(|(offset, bound)| Sample { offset, bound })
    }

    proptest! {
        /// While more than half of those asked are right, whatever the others say moves the clock no farther than an honest
        /// server's own uncertainty.
        #[test]
        fn a_minority_of_liars_moves_the_clock_by_little(
            good in proptest::collection::vec(honest(5.0), 1..8),
            bad in proptest::collection::vec(liar(), 0..8),
            silent in 0..3_usize,
        ) {
            let asked = good.len() + bad.len() + silent;
            let all: Vec<_> = bad.iter().chain(&good).copied().collect();
            let found = agree(&all, asked);
            if good.len() * 2 > asked {
                let found = found.expect("the honest majority agrees");
                let widest = good.iter().map(|sample| sample.bound).fold(0.0, f64::max);
                prop_assert!((found.offset - 5.0).abs() <= 2.0 * widest, "{found:?}");
            }
            // Nobody else has a majority.
            if let Some(found) = found {
                prop_assert!(found.members * 2 > asked && found.members <= all.len() && found.bound >= 0.0);
            }
        }

        #[test]
        fn nothing_moves_the_clock_beyond_its_bounds(
            offset in -1e10..1e10_f64, now in 0.0..4e9_f64, set: bool,
        ) {
            let built = 1.8e9;
            let decision = decide(&Agreement { offset, bound: 0.1, members: 3 }, now, built, set);
            if let Decision::Step(by) | Decision::Slew(by) = decision {
                prop_assert!(now + by >= built);
                prop_assert!(by.abs() <= STEP || (now < built && !set));
                prop_assert!(!set || by.abs() <= SLEW);
            }
            let status = judge(None, Some(decision), 3);
            prop_assert_eq!(status.state == "synchronised", matches!(decision, Decision::Step(_) | Decision::Slew(_)));
        }
    }

    #[test]
    fn half_is_not_a_majority() {
        let sample = |offset| Sample { offset, bound: 0.01 };
        assert_eq!(agree(&[sample(1.0), sample(500.0)], 2), None);
        assert_eq!(agree(&[sample(1.0), sample(1.0)], 4), None);
        assert_eq!(agree(&[sample(1.0), sample(1.005), sample(500.0)], 3).unwrap().members, 2);
        assert_eq!(agree(&[], 0), None);
        assert_eq!(judge(None, None, 0).state, "no-servers");
        assert_eq!(judge(None, None, 3).state, "no-agreement");
    }
}
