//! The releases that a driver handles: the one that comes, and those in the slots.

use super::UpgradeError;
use super::driver::Driver;
use super::fetch::{self, FetchError, Source};
use crate::bundle::{self, ReleaseError, ReleaseFiles};
use crate::node::write_atomically;
use host_guest::ToGuest;
use installer::parts::SIGNATURE;
use release::{ApprovedManifest, BLESSING_FILE, FileName, MAX_DOCUMENT};
use std::path::{Path, PathBuf};
use upgrade::machine::{Content, Slot};

impl Driver {
    pub(super) fn manifest(&self, path: &Path) -> Result<ApprovedManifest, UpgradeError> {
        let root = self.options.root.load(self.options.profile)?;
        Ok(bundle::manifest(path, &root, self.options.profile)?)
    }

    /// Whether the blessing beside a manifest lets the release be brought to this node now.
    pub(super) fn admissible(&self, path: &Path, release: &ApprovedManifest) -> Result<(), UpgradeError> {
        let root = self.options.root.load(self.options.profile)?;
        Ok(bundle::admissible(&root, path, release, self.node.path())?)
    }

    /// Fetches a release: its documents, then its files.
    pub(super) async fn fetch_all(&self, source: &Source) -> Result<ApprovedManifest, UpgradeError> {
        let directory = self.store.incoming();
        let io = |source| UpgradeError::Fetch(FetchError::Disk { path: directory.clone(), source });
        std::fs::create_dir_all(&directory).map_err(io)?;
        let path = directory.join("manifest.json");
        write_atomically(&path, &fetch::document(&source.manifest, MAX_DOCUMENT).await?).map_err(io)?;
        let release = self.manifest(&path)?;
        let id_blocks = release.manifest().guest.id_block.as_ref().map(|_| release::ID_BLOCK_FILE);
        for name in std::iter::once(BLESSING_FILE).chain(id_blocks) {
            let bytes = fetch::beside(source, name, MAX_DOCUMENT).await?;
            write_atomically(&directory.join(name), &bytes).map_err(io)?;
        }
        // The committed release, from which differences start; its own bytes are not believed, only what comes out.
        let path = self.store.manifest(self.part.active, &self.options.manifest);
        let runs = self.manifest(&path).ok();
        let former = |name| {
            let file = runs.as_ref()?.manifest().guest.files.get(name).clone();
            let place = path.with_file_name(&file.path);
            Some((file, place))
        };
        let guest = &release.manifest().guest.files;
        let mut files: Vec<(release::File, Option<(release::File, PathBuf)>)> =
            FileName::ALL.map(|name| (guest.get(name).clone(), former(name))).into();
        if let Some((images, root)) = self.new_host(&release)? {
            let name = format!("{}{SIGNATURE}", images.uki.path);
            let bytes = fetch::beside(source, &name, MAX_DOCUMENT).await?;
            write_atomically(&directory.join(name), &bytes).map_err(io)?;
            files.extend([(images.uki, None), (images.root, root), (images.root_hash_tree, None)]);
        }
        let all: u64 = files.iter().map(|(file, _)| file.size).sum();
        let mut before = 0;
        for (file, former) in &files {
            self.shared.update(|status| {
                status.upgrade.step = format!("fetching {}", file.path);
                status.upgrade.fetched = (before, all);
            });
            let shared = self.shared.clone();
            let progress = move |have| shared.update(|status| status.upgrade.fetched = (before + have, all));
            let former = former.as_ref().map(|(file, path)| (file, path.as_path()));
            let moved = fetch::file(source, file, former, &directory, &progress).await?;
            before += file.size;
            self.shared.update(|status| status.upgrade.moved += moved);
            tracing::info!(file = file.path, size = file.size, moved, "fetched");
        }
        self.shared.update(|status| status.upgrade.fetched = (all, all));
        Ok(release)
    }

    /// Holds what was fetched against root, blessing and measurement.
    pub(super) fn verify(&self) -> Result<ApprovedManifest, UpgradeError> {
        self.step("verifying");
        let path = self.store.incoming().join("manifest.json");
        let release = self.manifest(&path)?;
        if self.part.incoming != Some(release.digest()) {
            return Err(UpgradeError::AnotherRelease);
        }
        self.admissible(&path, &release)?;
        ReleaseFiles::read(&path, release.clone())?.check_all()?;
        Ok(release)
    }

    /// The release in a slot, if it may run now.
    pub(super) fn staged(&self, slot: Slot) -> Result<ApprovedManifest, UpgradeError> {
        let path = self.store.manifest(slot, &self.options.manifest);
        let release = self.manifest(&path)?;
        if *self.part.content(slot) != Content::Release(release.digest()) {
            return Err(UpgradeError::AnotherRelease);
        }
        self.admissible(&path, &release)?;
        Ok(release)
    }

    /// What the new guest is told: its own release, and that of the guest that has the key.
    pub(super) fn documents(&self, slot: Slot) -> Result<ToGuest, UpgradeError> {
        let text = |path: PathBuf| {
            let failed = |source| ReleaseError::Unreadable { path: path.clone(), source };
            Ok::<_, UpgradeError>(std::fs::read_to_string(&path).map_err(failed)?)
        };
        let manifest = |slot| self.store.manifest(slot, &self.options.manifest);
        Ok(ToGuest::TakeOver {
            giver: text(manifest(self.running))?,
            roots: Vec::new(),
            manifest: text(manifest(slot))?,
            blessing: text(manifest(slot).with_file_name(BLESSING_FILE))?,
        })
    }
}
