//! What every build step uses: the repository, the inputs, the build root, the cache, the surroundings.

use crate::{
    cache::Cache,
    error::Result,
    fetch::Sources,
    files::failed,
    inputs::Inputs,
    kernel,
    root::{self, BuildRoot},
    sandbox::{Sandbox, Surroundings},
    trust::Trust,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// A place in which images are built.
pub struct Workshop {
    /// Root of the checkout.
    pub repository: PathBuf,
    /// Finished outputs.
    pub cache: Cache,
    /// Where cargo keeps its own intermediate files.
    pub cargo_target: PathBuf,
    /// Locked inputs.
    pub inputs: Inputs,
    /// Where compilers run.
    pub root: BuildRoot,
    /// What outputs must not depend on.
    pub surroundings: Surroundings,
    /// Kernels that are taken as they are instead of being built, by [`kernel::GUEST`] and [`kernel::HOST`].
    pub kernels: BTreeMap<&'static str, kernel::Built>,
    /// Whom nodes of the production profile trust, unless it stands in the repository.
    pub trust: Option<Trust>,
}

impl Workshop {
    /// The ordinary one: outputs come from the cache where their inputs are unchanged.
    pub fn open(repository: &Path, sources: Sources) -> Result<Self> {
        let cache = Cache::open()?;
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository.join("target"), PathBuf::from);
        Self::new(repository, cache.clone(), cache, target.join("image"), sources, Surroundings::usual())
    }

    /// One that makes everything anew below `folder`, out of the same store of inputs.
    pub fn fresh(
        repository: &Path,
        sources: Sources,
        folder: &Path,
        surroundings: Surroundings,
    ) -> Result<Self> {
        let cache = Cache::at(folder.join("cache"))?;
        Self::new(repository, Cache::open()?, cache, folder.join("cargo"), sources, surroundings)
    }

    fn new(
        repository: &Path,
        store: Cache,
        cache: Cache,
        cargo_target: PathBuf,
        sources: Sources,
        surroundings: Surroundings,
    ) -> Result<Self> {
        let repository = repository.canonicalize().map_err(failed("find the checkout", repository))?;
        let inputs = Inputs::open(&repository, &store, sources)?;
        let root = root::open(&cache, &inputs)?;
        let kernels = BTreeMap::new();
        let workshop =
            Self { repository, cache, cargo_target, inputs, root, surroundings, kernels, trust: None };
        // Whether namespaces are allowed shows at once, not after the source is unpacked.
        workshop.sandbox().run("the trial of the build root", &["true"])?;
        Ok(workshop)
    }

    /// A sandbox in the build root.
    #[must_use]
    pub fn sandbox(&self) -> Sandbox<'_> {
        Sandbox::new(&self.root, &self.surroundings)
    }
}

/// A folder beside the cache for one rebuild: it may need several gigabytes, more than `/tmp` often has.
pub fn scratch() -> Result<tempfile::TempDir> {
    let cache = Cache::open()?;
    let folder = cache.folder(".");
    Ok(tempfile::Builder::new()
        .prefix(".rebuild-")
        .tempdir_in(&folder)
        .map_err(failed("make a folder in", &folder))?)
}
