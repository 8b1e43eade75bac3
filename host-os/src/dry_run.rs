//! What the agent would launch: QEMU's command line, and every input of the launch measurement. Checks the release as
//! a launch does, and neither starts nor writes anything.

use crate::bundle::{self, CheckedRelease, ReleaseFiles};
use crate::check::{CheckError, Options};
use crate::config::{ConfigText, virtual_guest};
use crate::launch::{Accel, Channels, Encryption, Identity, Launch, Measured, Platform, Serving, Wire};
use crate::node::NodeDir;
use crate::nvram::Nvram;
use crate::upgrade::Store;
use crate::{accel, platform};
use base64::{Engine, engine::general_purpose::STANDARD};
use release::{FileName, Profile};
use serde_json::{Value, json};
use std::fmt;
use upgrade::machine::Slot;

/// Port on the host that stands in the command line when none was chosen.
const HTTPS_PORT: u16 = 18443;

/// What would be launched.
#[derive(Debug)]
pub struct Plan {
    launch: Launch,
    qemu: String,
    release: CheckedRelease,
    config: ConfigText,
    notes: Vec<String>,
}

/// Checks the release and plans the launch.
pub fn plan(options: &Options, node: &NodeDir) -> Result<Plan, CheckError> {
    let roots = Store::of(node).roots(&options.root, options.profile)?;
    let manifest = bundle::manifest(&options.manifest, &roots, options.profile)?;
    let files = ReleaseFiles::read(&options.manifest, manifest)?;
    let vcpu_type = options.vcpu_type.as_deref();
    // The release's own paths are what a reader knows; a launch names private copies.
    let (measured, _) = files.measured(vcpu_type, options.vcpus)?;
    let release = files.seal(vcpu_type, options.vcpus)?;
    let config = ConfigText::new(&virtual_guest())?;
    let mut notes = vec![
        "a launch opens private copies of firmware, kernel and initrd; the descriptors are those of its own channels"
            .to_owned(),
    ];
    let platform = match options.profile {
        Profile::Production => {
            let encryption = Encryption::of_this_processor().unwrap_or_else(|error| {
                notes.push(format!("cbitpos is that of EPYC processors, because {error}"));
                Encryption::EPYC
            });
            Platform::Snp(Box::new(platform::snp(&release, &config, encryption)))
        }
        Profile::Virtual => {
            if options.accel == accel::Choice::Auto {
                notes.push("a launch takes kvm instead of tcg where a probe shows that it boots".to_owned());
            }
            let accel = if options.accel == accel::Choice::Kvm { Accel::Kvm } else { Accel::Tcg };
            Platform::Virtual { accel, psp: 6 }
        }
    };
    let launch = Launch {
        platform,
        measured,
        memory_mib: options.memory_mib,
        disk: node.disk_path(Slot::A),
        serving: Some(Serving {
            nvram: Nvram {
                path: node.nvram_path(),
                bytes: options.nvram_bytes,
                nvdimm: None,
                text: String::new(),
            },
            placement: None,
            wire: Wire::Port(options.ports.https.unwrap_or(HTTPS_PORT)),
        }),
        channels: Channels { console: 3, qmp: 4, host: 5 },
    };
    Ok(Plan { launch, qemu: options.qemu.display().to_string(), release, config, notes })
}

impl Plan {
    /// What would be launched.
    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    fn command(&self) -> Vec<String> {
        let words = self.launch.arguments().into_iter().map(|word| word.to_string_lossy().into_owned());
        std::iter::once(self.qemu.clone()).chain(words).collect()
    }

    /// For programs: `command` (words), `measurement`, `measured` (its inputs), `policy`, `host_data`, `id_block`
    /// (absent without one), `notes`.
    pub fn to_json(&self) -> Value {
        let Measured { firmware_content, command_line, vcpus, vcpu_type, guest_features, .. } =
            &self.launch.measured;
        let file = |name| {
            let entry = self.release.manifest().manifest().guest.files.get(name);
            json!({ "path": entry.path, "size": entry.size, "sha256": entry.sha256.to_string() })
        };
        let mut plan = json!({
            "profile": self.release.manifest().manifest().profile.to_string(),
            "release": self.release.manifest().manifest().version,
            "command": self.command(),
            "measurement": self.release.measurement(),
            "measured": {
                "firmware": file(FileName::Firmware),
                "firmware_digest": firmware_content.digest,
                "kernel": file(FileName::Kernel),
                "initrd": file(FileName::Initrd),
                "command_line": command_line,
                "kernel_hashes": true,
                "vcpus": vcpus,
                "vcpu_type": vcpu_type.name(),
                "guest_features": guest_features,
            },
            "policy": self.release.manifest().manifest().guest.policy,
            "host_data": hex::encode(self.config.host_data()),
            "config": self.config.as_str(),
            "notes": self.notes,
        });
        if let Some(Identity { block, auth }) = self.release.identity() {
            plan["id_block"] = json!({
                "family_id": hex::encode(block.family_id),
                "image_id": hex::encode(block.image_id),
                "guest_svn": block.guest_svn,
                "id_key_digest": auth.id_key.digest(),
                "author_key_digest": auth.author.map(|(key, _)| key.digest()),
                "id_block": STANDARD.encode(block.to_bytes()),
                "id_auth": STANDARD.encode(auth.to_bytes().as_slice()),
            });
        }
        plan
    }
}

impl fmt::Display for Plan {
    /// The command in the form of the shell, then the inputs of the measurement.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, word) in self.command().iter().enumerate() {
            let between = match index {
                0 => "",
                // An option on each line, its value beside it.
                _ if word.starts_with('-') => " \\\n  ",
                _ => " ",
            };
            write!(f, "{between}{}", quoted(word))?;
        }
        let plan = self.to_json();
        writeln!(f, "\n\nlaunch measurement {}", self.release.measurement())?;
        for (name, value) in plan["measured"].as_object().into_iter().flatten() {
            writeln!(f, "  {name}: {value}")?;
        }
        writeln!(f, "not measured, but in each report")?;
        writeln!(f, "  policy: {:#x}", self.release.manifest().manifest().guest.policy)?;
        writeln!(
            f,
            "  host_data: {} (SHA-256 of {})",
            hex::encode(self.config.host_data()),
            self.config.as_str()
        )?;
        match self.release.identity() {
            None => writeln!(f, "  no ID block")?,
            Some(Identity { block, auth }) => {
                writeln!(f, "  family_id: {}", hex::encode(block.family_id))?;
                writeln!(f, "  image_id: {}", hex::encode(block.image_id))?;
                writeln!(f, "  guest_svn: {}", block.guest_svn)?;
                writeln!(f, "  id_key_digest: {}", auth.id_key.digest())?;
                if let Some((key, _)) = auth.author {
                    writeln!(f, "  author_key_digest: {}", key.digest())?;
                }
            }
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))
    }
}

/// A word as the shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=,:+@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        for word in ["-m", "a b", "", "it's", "$(x)", "a,b=c", "\"", "\\", "a\nb"] {
            let script = format!("printf %s {}", quoted(word));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word, "{script}");
        }
        assert_eq!(quoted("-m"), "-m");
    }
}
