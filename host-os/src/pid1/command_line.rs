//! What PID 1 reads of the kernel's command line, which the firmware verified with the rest of the signed image.

use super::verity::Expected;

/// The command line is not the one of a host's image.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's command line has no sound {0}; boot the image as it was built")]
pub(super) struct CommandLineError(&'static str);

/// The parts that matter here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CommandLine {
    /// `production` or `virtual`, as the agent takes it.
    pub(super) profile: String,
    /// The root, as the kernel was told to verify it.
    pub(super) verity: Expected,
}

impl CommandLine {
    pub(super) fn parse(line: &str) -> Result<Self, CommandLineError> {
        let value = |name: &str, end: char| {
            let from = line.find(name).filter(|at| line[..*at].ends_with([' ', '"']) || *at == 0)?;
            line[from + name.len()..].split([end, '\n']).next()
        };
        let profile = value("redoubt.profile=", ' ').ok_or(CommandLineError("redoubt.profile"))?;
        let table = value("dm-mod.create=\"", '"')
            .or_else(|| value("\"dm-mod.create=", '"'))
            .and_then(|devices| devices.strip_prefix("root,,0,ro,"));
        let verity = table.and_then(Expected::parse).ok_or(CommandLineError("dm-mod.create"))?;
        Ok(Self { profile: profile.to_owned(), verity })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_an_image_is_understood_and_others_are_not() {
        let table = format!(
            "0 80 verity 1 PARTUUID=a PARTUUID=b 4096 4096 10 1 sha256 {} {} 1 panic_on_corruption",
            "ab".repeat(32),
            "cd".repeat(32)
        );
        let line =
            format!("quiet redoubt.profile=virtual root=/dev/dm-0 dm-mod.create=\"root,,0,ro,{table}\"\n");
        let parsed = CommandLine::parse(&line).unwrap();
        assert_eq!(parsed.profile, "virtual");
        assert_eq!(parsed.verity.root_hash, "ab".repeat(32));
        assert_eq!(CommandLine::parse("quiet"), Err(CommandLineError("redoubt.profile")));
        for (from, to) in
            [("root,,0,ro", "root,,0,rw"), (" 10 1 ", " 11 1 "), ("sha256", "sha1"), ("ab", "zz")]
        {
            let changed = line.replace(from, to);
            assert_eq!(CommandLine::parse(&changed), Err(CommandLineError("dm-mod.create")), "{changed}");
        }
    }
}
