//! The kernel command line. It is measured, so what stands there can be believed.

use std::time::Duration;

/// Profile that the image was built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Real hardware.
    Production,
    /// QEMU without SEV-SNP; the simulated PSP answers.
    Virtual,
}

/// What PID 1 takes from the kernel command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandLine {
    /// `redoubt.profile=production|virtual`, required.
    pub profile: Profile,
    /// `redoubt.watchdog=SECONDS`: how long the replica may give no sign of life. Default: 15 s, in the virtual
    /// profile 60 s (emulation is slow).
    pub watchdog: Duration,
}

/// Why a kernel command line is refused. All of these mean: build the image anew.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandLineError {
    /// No profile.
    #[error("the kernel command line has no redoubt.profile=; build the image with one")]
    NoProfile,
    /// A parameter that does not exist.
    #[error("the kernel command line has the unknown parameter {0:?}; build the image without it")]
    Unknown(String),
    /// A parameter twice.
    #[error("the kernel command line has {0:?} twice; build the image with one")]
    Twice(String),
    /// A value out of range.
    #[error("the kernel command line has {parameter}={value:?}; expected {expected}")]
    Value {
        /// Which parameter.
        parameter: &'static str,
        /// What it was set to.
        value: String,
        /// What is possible.
        expected: &'static str,
    },
}

const PREFIX: &str = "redoubt.";

/// Parses the text of /proc/cmdline. Parameters without the prefix `redoubt.` are the kernel's.
pub fn parse(text: &str) -> Result<CommandLine, CommandLineError> {
    let mut profile = None;
    let mut watchdog = None;
    for word in text.split_ascii_whitespace() {
        let Some(ours) = word.strip_prefix(PREFIX) else { continue };
        let (name, value) = ours.split_once('=').unwrap_or((ours, ""));
        let repeated = match name {
            "profile" => profile.replace(parse_profile(value)?).is_some(),
            "watchdog" => watchdog.replace(parse_watchdog(value)?).is_some(),
            _ => return Err(CommandLineError::Unknown(word.to_owned())),
        };
        if repeated {
            return Err(CommandLineError::Twice(word.to_owned()));
        }
    }
    let profile = profile.ok_or(CommandLineError::NoProfile)?;
    let usual = match profile {
        Profile::Production => Duration::from_secs(15),
        Profile::Virtual => Duration::from_secs(60),
    };
    Ok(CommandLine { profile, watchdog: watchdog.unwrap_or(usual) })
}

fn parse_profile(value: &str) -> Result<Profile, CommandLineError> {
    match value {
        "production" => Ok(Profile::Production),
        "virtual" => Ok(Profile::Virtual),
        _ => Err(CommandLineError::Value {
            parameter: "redoubt.profile",
            value: value.to_owned(),
            expected: "production or virtual",
        }),
    }
}

fn parse_watchdog(value: &str) -> Result<Duration, CommandLineError> {
    match value.parse() {
        Ok(seconds @ 5..=3600) => Ok(Duration::from_secs(seconds)),
        _ => Err(CommandLineError::Value {
            parameter: "redoubt.watchdog",
            value: value.to_owned(),
            expected: "5 to 3600 seconds",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_virtual_images_command_line_is_understood() {
        let text = "console=ttyS0 no_timer_check panic=5 quiet loglevel=4 random.trust_cpu=on redoubt.profile=virtual\n";
        let expected = CommandLine { profile: Profile::Virtual, watchdog: Duration::from_secs(60) };
        assert_eq!(parse(text), Ok(expected));
    }

    #[test]
    fn production_has_the_short_watchdog_unless_told_otherwise() {
        let watchdog = |text| parse(text).unwrap().watchdog.as_secs();
        assert_eq!(watchdog("redoubt.profile=production"), 15);
        assert_eq!(watchdog("redoubt.watchdog=30 redoubt.profile=production"), 30);
    }

    #[test]
    fn what_is_missing_unknown_doubled_or_out_of_range_is_refused() {
        assert_eq!(parse("quiet"), Err(CommandLineError::NoProfile));
        assert!(matches!(parse("redoubt.profile=virtual redoubt.debug"), Err(CommandLineError::Unknown(_))));
        assert!(matches!(
            parse("redoubt.profile=virtual redoubt.profile=production"),
            Err(CommandLineError::Twice(_))
        ));
        for bad in ["profile=", "profile=Virtual", "profile", "watchdog=4", "watchdog=3601", "watchdog=x"] {
            let text = format!("redoubt.{bad}");
            assert!(matches!(parse(&text), Err(CommandLineError::Value { .. })), "{bad}");
        }
    }
}
