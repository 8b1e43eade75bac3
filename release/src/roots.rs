//! A root with those before it: what whoever judges releases follows while their owners replace keys.

use crate::{ApprovedManifest, ManifestError, Root, RootUpdateError, Seen, verify};

/// Name of the file of a root, beside the releases of its owners, as in The Update Framework: a client asks for one version after
/// the other until there is none.
pub fn root_file(version: u64) -> String {
    format!("{version}.root.json")
}

/// The root that is trusted, and those that led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// Oldest first.
    earlier: Vec<Root>,
    present: Root,
}

impl From<Root> for Roots {
    fn from(present: Root) -> Self {
        Self { earlier: Vec::new(), present }
    }
}

impl Roots {
    /// Takes the next one, which the keys of the present and its own have to have signed.
    pub fn follow(&mut self, next: &[u8]) -> Result<(), RootUpdateError> {
        let next = self.present.update(next)?;
        self.earlier.push(std::mem::replace(&mut self.present, next));
        Ok(())
    }

    /// The one that counts now.
    pub fn present(&self) -> &Root {
        &self.present
    }

    /// Those before it, the latest first. They say no more what runs.
    pub fn earlier(&self) -> impl Iterator<Item = &Root> {
        self.earlier.iter().rev()
    }

    /// Verifies a manifest under any of the roots: what a release is stays true when keys are replaced. Whether it may run by the
    /// present one's keys is for the blessing to say ([`crate::Standing`]).
    pub fn verify(&self, manifest: &[u8]) -> Result<ApprovedManifest, ManifestError> {
        verify(manifest, &self.present)
            .or_else(|refused| self.earlier().find_map(|root| verify(manifest, root).ok()).ok_or(refused))
    }

    /// What is left of what was seen, once these roots were followed.
    pub fn seen(&self, seen: Seen) -> Seen {
        let next = self.earlier.iter().skip(1).chain([&self.present]);
        self.earlier
            .iter()
            .zip(next)
            .filter(|(_, new)| new.version() > seen.root_version)
            .fold(seen, |seen, (old, new)| seen.after_root(old, new))
    }
}
