//! Saying which releases run now.

use super::{
    RootArgs,
    documents::{open, unsigned, write},
    manifest_path,
    times::{self, Time},
};
use crate::output::{Failure, Reply};
use clap::Args;
use release::{Blessing, Digest, KeyId, Purpose, Revoked};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Make a blessing that names releases, unsigned: the holders of the blessing role sign it next
#[derive(Debug, Args)]
pub(crate) struct Bless {
    /// Manifests, signed by enough release keys, or directories that hold one as manifest.json
    #[arg(value_name = "MANIFEST")]
    manifests: Vec<PathBuf>,
    #[command(flatten)]
    root: RootArgs,
    /// Recovery releases, the same way: started when both slots of a node fail, never as nodes
    #[arg(long, value_name = "MANIFEST", num_args = 1..)]
    recovery: Vec<PathBuf>,
    /// The present blessing, which this one follows [default: this is the first]
    #[arg(long, value_name = "FILE")]
    after: Option<PathBuf>,
    /// Bless nothing else that the present blessing names
    #[arg(long, requires = "after")]
    only: bool,
    /// Until when it holds: a date, or a time with zone
    #[arg(long, value_name = "TIME", value_parser = times::parse)]
    expires: Time,
    /// Releases of a lower epoch run no more [default: as before; 0 at first]
    #[arg(long, value_name = "N")]
    security_epoch: Option<u64>,
    /// File that receives the blessing
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Make a blessing that revokes releases or keys, unsigned: the holders of the blessing role sign it next
#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// The present blessing, which this one follows
    #[arg(long, value_name = "FILE")]
    after: PathBuf,
    /// Digest of a release's manifest
    #[arg(long, value_name = "DIGEST", num_args = 1.., required_unless_present = "key")]
    release: Vec<Digest>,
    /// Id of a release key
    #[arg(long, value_name = "KEYID", num_args = 1..)]
    key: Vec<KeyId>,
    /// Until when it holds [default: as long as the present one]
    #[arg(long, value_name = "TIME", value_parser = times::parse)]
    expires: Option<Time>,
    /// File that receives the blessing
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(crate) fn bless(args: &Bless) -> Result<Reply, Failure> {
    let before = args.after.as_deref().map(open::<Blessing>).transpose()?;
    let mut blessing = match before {
        Some(before) => {
            let mut before = before.content().clone();
            before.version += 1;
            if args.only {
                before.releases.clear();
            }
            before
        }
        None => Blessing {
            version: 1,
            profile: args.root.profile.profile(),
            issued: 0,
            expires: 0,
            security_epoch: 0,
            releases: Default::default(),
            revoked: Revoked::default(),
        },
    };
    (blessing.issued, blessing.expires) = (times::now(), args.expires.0);
    if let Some(epoch) = args.security_epoch {
        if epoch < blessing.security_epoch {
            let message = format!(
                "the security epoch only rises, and it is {} already; give at least that",
                blessing.security_epoch
            );
            return Err(Failure::new("blessing-epoch-lowered", message));
        }
        blessing.security_epoch = epoch;
    }
    let mut named = BTreeMap::new();
    let nodes = args.manifests.iter().map(|path| (path, Purpose::Node));
    for (path, purpose) in nodes.chain(args.recovery.iter().map(|path| (path, Purpose::Recovery))) {
        let manifest = args.root.approve(&manifest_path(path))?;
        let (epoch, floor) = (manifest.manifest().security_epoch, blessing.security_epoch);
        if epoch < floor {
            let message = format!(
                "{} has security epoch {epoch}, the blessing asks for {floor}; bless a later release",
                path.display()
            );
            return Err(Failure::new("release-below-epoch", message));
        }
        if named.insert(manifest.digest(), purpose).is_some_and(|other| other != purpose) {
            let message = format!(
                "{} is given as a node and for recovery, and a release is one of them; make one of its own for recovery, which may \
                 have the same images",
                path.display()
            );
            return Err(Failure::new("release-other-purpose", message));
        }
    }
    blessing.releases.extend(named);
    finish(blessing, &args.out)
}

pub(crate) fn revoke(args: &Revoke) -> Result<Reply, Failure> {
    let mut blessing = open::<Blessing>(&args.after)?.content().clone();
    blessing.version += 1;
    blessing.issued = times::now();
    if let Some(Time(expires)) = args.expires {
        blessing.expires = expires;
    }
    blessing.releases.retain(|release, _| !args.release.contains(release));
    blessing.revoked.releases.extend(&args.release);
    blessing.revoked.keys.extend(&args.key);
    finish(blessing, &args.out)
}

fn finish(blessing: Blessing, out: &Path) -> Result<Reply, Failure> {
    let document = unsigned(blessing)?;
    write(out, &document.to_bytes())?;
    let blessing = document.content();
    let expires = times::show(blessing.expires);
    let text = format!(
        "blessing of version {} for {} releases, {} revoked, security epoch {}, until {expires}, in {}; now have it signed",
        blessing.version,
        blessing.releases.len(),
        blessing.revoked.releases.len() + blessing.revoked.keys.len(),
        blessing.security_epoch,
        out.display()
    );
    let json = json!({ "file": out, "digest": document.digest(), "expires": expires, "content": blessing });
    Ok(Reply::good(text, json))
}
