//! What can go wrong between inputs and images: one error for each step, and one for all of them.

use crate::{
    cpio, deb, fetch, files, firmware, host, inputs, kernel, lock, published, recipe, sandbox, store,
    toolchain, trust, update, vendor,
};

/// A step of a build failed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum ImageError {
    /// A file or folder could not be used.
    File(#[from] files::FileError),
    /// The cache has no place.
    Cache(#[from] crate::cache::NoPlace),
    /// The lock.
    Lock(#[from] lock::LockError),
    /// Lock, store or source of an input.
    Inputs(#[from] inputs::InputsError),
    /// The store.
    Store(#[from] store::StoreError),
    /// An input could not be had.
    Fetch(#[from] fetch::FetchError),
    /// Renewing the lock.
    Update(#[from] update::UpdateError),
    /// A package could not be read.
    Deb(#[from] deb::DebError),
    /// The Rust toolchain.
    Toolchain(#[from] toolchain::ToolchainError),
    /// The crates.
    Vendor(#[from] vendor::VendorError),
    /// A recipe.
    Recipe(#[from] recipe::RecipeError),
    /// A program in the build root.
    Sandbox(#[from] sandbox::SandboxError),
    /// The kernel's configuration.
    Kernel(#[from] kernel::OptionsError),
    /// The firmware is another one than the recipe pins.
    Firmware(#[from] firmware::NotPinned),
    /// The initrd.
    Cpio(#[from] cpio::TooLarge),
    /// The host's image.
    Host(#[from] host::HostError),
    /// The launch cannot be measured.
    Launch(#[from] attestation::measurement::LaunchError),
    /// The manifest that the build gave breaks a rule.
    Manifest(#[from] release::InvalidManifest),
    /// The development keys do not sign.
    Sign(#[from] release::SignError),
    /// The development keys do not load.
    Key(#[from] release::KeyError),
    /// Whom nodes trust.
    Trust(#[from] trust::TrustError),
    /// The release on the disk.
    Release(#[from] published::ReleaseError),
}

impl ImageError {
    /// A short fixed name of the cause.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Cache(_) => "cache",
            Self::Lock(lock::LockError::Missing(_)) => "lock-entry-missing",
            Self::Lock(_) | Self::Inputs(inputs::InputsError::Lock(_)) => "lock",
            Self::Inputs(inputs::InputsError::Fetch(_)) | Self::Fetch(_) => "input-unavailable",
            Self::Inputs(inputs::InputsError::Store(_)) | Self::Store(_) | Self::Deb(_) => "store",
            Self::Update(_) => "inputs-not-renewed",
            Self::Toolchain(_) => "toolchain",
            Self::Vendor(_) => "crates-unavailable",
            Self::Recipe(_) => "recipe",
            Self::Sandbox(sandbox::SandboxError::Namespaces { .. }) => "namespaces-refused",
            Self::Sandbox(_) => "build-step-failed",
            Self::Kernel(_) => "kernel-options",
            Self::Firmware(_) => "firmware-not-pinned",
            Self::Cpio(_) => "initrd-too-large",
            Self::Host(_) => "host-image",
            Self::Launch(_) => "launch-not-measurable",
            Self::Manifest(_) | Self::Sign(_) | Self::Key(_) => "manifest-invalid",
            Self::Trust(_) => "trust",
            Self::Release(error) => error.code(),
        }
    }
}

/// The result of a step.
pub type Result<T, E = ImageError> = std::result::Result<T, E>;
