//! The releases that a driver handles: the one that comes, and those in the slots.

use super::UpgradeError;
use super::driver::{Driver, JUDGE};
use super::fetch::{self, FetchError, Source};
use crate::attest::chain;
use crate::bundle::{self, LaunchedAs, ReleaseError, ReleaseFiles};
use crate::check::Target;
use crate::node::{Place, write_atomically};
use host_guest::ToGuest;
use installer::parts::SIGNATURE;
use release::{ApprovedManifest, BLESSING_FILE, FileName, MAX_DOCUMENT, Purpose, Roots, root_file};
use std::path::{Path, PathBuf};
use tokio::time::Instant;
use upgrade::machine::{Content, Slot};

/// Most roots that are followed with one release: bounds what a server can have a node do.
const MAX_ROOTS: usize = 64;

impl Driver {
    /// By which releases are judged now.
    pub(super) fn roots(&self) -> Result<Roots, UpgradeError> {
        Ok(self.store.roots(&self.options.root, self.options.profile)?)
    }

    pub(super) fn manifest(&self, path: &Path) -> Result<ApprovedManifest, UpgradeError> {
        Ok(bundle::manifest(path, &self.roots()?, self.options.profile)?)
    }

    /// Whether the blessing beside a manifest lets the release be brought to this node now, for a purpose.
    pub(super) fn admissible(
        &self,
        path: &Path,
        release: &ApprovedManifest,
        purpose: Purpose,
    ) -> Result<(), UpgradeError> {
        Ok(bundle::admissible(&self.roots()?, path, release, self.node.path(), purpose)?)
    }

    /// Follows the roots that lie beside a release's manifest, one version after the other until there is none. Each is kept at once:
    /// keys that were replaced bring nothing more, whatever becomes of this release.
    async fn follow_roots(&self, source: &Source) -> Result<(), UpgradeError> {
        let mut roots = self.roots()?;
        for _ in 0..MAX_ROOTS {
            let name = root_file(roots.present().version() + 1);
            let Some(next) = fetch::beside_if_there(source, &name, MAX_DOCUMENT).await? else { break };
            let refused =
                |refusal| ReleaseError::NextRoot { path: name.clone().into(), source: Box::new(refusal) };
            roots.follow(&next).map_err(refused)?;
            self.store.keep_root(&roots)?;
            self.audit(&format!("root {} is followed", roots.present().version()))?;
        }
        Ok(())
    }

    /// Fetches a release, with its host where that is new, and the recovery release that comes with it.
    pub(super) async fn fetch_all(&self, source: &Source) -> Result<ApprovedManifest, UpgradeError> {
        let directory = self.store.incoming();
        let release = self.fetch_node(source).await?;
        if let Some((images, root)) = self.new_host(&release)? {
            let io = |source| UpgradeError::Fetch(FetchError::Disk { path: directory.clone(), source });
            let name = format!("{}{SIGNATURE}", images.uki.path);
            let bytes = fetch::beside(source, &name, MAX_DOCUMENT).await?;
            write_atomically(&directory.join(name), &bytes).map_err(io)?;
            let files = [(images.uki, None), (images.root, root), (images.root_hash_tree, None)];
            self.fetch_files(source, &directory, &files).await?;
        }
        self.fetch_recovery(source).await?;
        Ok(release)
    }

    /// Fetches the guest's part of a release that is to be the node, by the roots that come with it.
    pub(super) async fn fetch_node(&self, source: &Source) -> Result<ApprovedManifest, UpgradeError> {
        self.follow_roots(source).await?;
        self.fetch_guest(source, &self.store.incoming()).await
    }

    /// Fetches the guest's part of a release: its documents, then its files.
    pub(super) async fn fetch_guest(
        &self,
        source: &Source,
        directory: &Path,
    ) -> Result<ApprovedManifest, UpgradeError> {
        let io = |source| UpgradeError::Fetch(FetchError::Disk { path: directory.to_owned(), source });
        let is_recovery = directory == self.store.incoming_recovery();
        std::fs::create_dir_all(directory).map_err(io)?;
        let path = directory.join("manifest.json");
        let manifest = fetch::document(&source.manifest, MAX_DOCUMENT, source.bytes_per_second).await?;
        write_atomically(&path, &manifest).map_err(io)?;
        let release = self.manifest(&path)?;
        let id_blocks = release.manifest().guest.id_block.as_ref().map(|_| release::ID_BLOCK_FILE);
        // There is one blessing of a version, and it names both.
        let beside = (!is_recovery).then_some(BLESSING_FILE);
        if is_recovery {
            let blessing = self.store.incoming().join(BLESSING_FILE);
            std::fs::copy(blessing, directory.join(BLESSING_FILE)).map_err(io)?;
        }
        for name in beside.into_iter().chain(id_blocks) {
            let bytes = fetch::beside(source, name, MAX_DOCUMENT).await?;
            write_atomically(&directory.join(name), &bytes).map_err(io)?;
        }
        // From which differences start: the committed release, or for recovery what just came and the one before. Their own bytes
        // are not believed, only what comes out.
        let paths = match is_recovery {
            true => [self.store.staged(Place::Recovery), self.store.incoming().join("manifest.json")].into(),
            false => vec![self.store.manifest(self.part.active, &self.options.manifest)],
        };
        let runs: Vec<_> = paths.iter().filter_map(|path| Some((path, self.manifest(path).ok()?))).collect();
        let guest = &release.manifest().guest.files;
        let files = FileName::ALL.map(|name| {
            let wanted = guest.get(name);
            let former = runs.iter().map(|(path, release)| {
                let file = release.manifest().guest.files.get(name);
                (file.clone(), path.with_file_name(&file.path))
            });
            // The same file, or else the one that is probably nearest.
            let former = former.max_by_key(|(file, _)| file.sha256 == wanted.sha256);
            (wanted.clone(), former)
        });
        self.fetch_files(source, directory, &files).await?;
        Ok(release)
    }

    /// Fetches files, each with what a difference to it could start from.
    async fn fetch_files(
        &self,
        source: &Source,
        directory: &Path,
        files: &[(release::File, Option<(release::File, PathBuf)>)],
    ) -> Result<(), UpgradeError> {
        let all: u64 = files.iter().map(|(file, _)| file.size).sum();
        let mut before = 0;
        for (file, former) in files {
            self.shared.update(|status| {
                status.upgrade.step = format!("fetching {}", file.path);
                status.upgrade.fetched = (before, all);
            });
            let shared = self.shared.clone();
            let progress = move |have| shared.update(|status| status.upgrade.fetched = (before + have, all));
            let former = former.as_ref().map(|(file, path)| (file, path.as_path()));
            let moved = fetch::file(source, file, former, directory, &progress).await?;
            before += file.size;
            self.shared.update(|status| status.upgrade.moved += moved);
            tracing::info!(file = file.path, size = file.size, moved, "fetched");
        }
        self.shared.update(|status| status.upgrade.fetched = (all, all));
        Ok(())
    }

    /// Holds what was fetched against root, blessing and measurement.
    pub(super) fn verify(&self) -> Result<ApprovedManifest, UpgradeError> {
        self.step("verifying");
        let path = self.store.incoming().join("manifest.json");
        let release = self.manifest(&path)?;
        if self.part.incoming != Some(release.digest()) {
            return Err(UpgradeError::AnotherRelease);
        }
        self.admissible(&path, &release, Purpose::Node)?;
        ReleaseFiles::read(&path, release.clone())?.check_all()?;
        self.verified_recovery()?;
        Ok(release)
    }

    /// The release in a slot, if it may run now.
    pub(super) fn staged(&self, slot: Slot) -> Result<ApprovedManifest, UpgradeError> {
        let path = self.store.manifest(slot, &self.options.manifest);
        let release = self.manifest(&path)?;
        if *self.part.content(slot) != Content::Release(release.digest()) {
            return Err(UpgradeError::AnotherRelease);
        }
        self.admissible(&path, &release, Purpose::Node)?;
        Ok(release)
    }

    /// Says in the status why the release that runs gets and gives no keys now, if that is so. It runs on.
    pub(super) fn judge_what_runs(&mut self) {
        if self.judged.is_some_and(|last| last.elapsed() < JUDGE) {
            return;
        }
        self.judged = Some(Instant::now());
        let (path, purpose) = match self.running {
            Place::Slot(slot) => (self.store.manifest(slot, &self.options.manifest), Purpose::Node),
            recovery => (self.store.staged(recovery), Purpose::Recovery),
        };
        let judged = || {
            let (roots, release) = (self.roots()?, self.manifest(&path)?);
            Ok::<_, UpgradeError>(bundle::stands(&roots, &path, &release, self.node.path(), purpose)?)
        };
        let why = judged().err().map(|error| chain(&error)).unwrap_or_default();
        if self.shared.read().upgrade.no_keys != why {
            tracing::warn!(why, "whether the release that runs gets and gives keys has changed");
            self.shared.update(|status| status.upgrade.no_keys = why);
        }
    }

    /// What the new guest is told: its own release, and that of the guest that has the key.
    pub(super) fn documents(&self, target: &Target) -> Result<ToGuest, UpgradeError> {
        let text = |path: PathBuf| {
            let failed = |source| ReleaseError::Unreadable { path: path.clone(), source };
            Ok::<_, UpgradeError>(std::fs::read_to_string(&path).map_err(failed)?)
        };
        let giver = match self.running {
            Place::Slot(slot) => self.store.manifest(slot, &self.options.manifest),
            recovery => self.store.staged(recovery),
        };
        Ok(ToGuest::TakeOver {
            giver: text(giver)?,
            roots: self.store.roots_for_guests(&self.roots()?),
            manifest: text(target.manifest.clone())?,
            blessing: text(target.manifest.with_file_name(BLESSING_FILE))?,
            recovery: target.launched == LaunchedAs::Recovery,
        })
    }
}
