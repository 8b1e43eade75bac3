//! A whole release: the guest's files, the host's, and the manifest that binds them; then what is put together out of
//! these, disk and installer.

use crate::{
    cache::sha256_file,
    error::{ImageError, Result},
    files,
    guest::{self, input_names, names},
    host, installer,
    recipe::{self, Recipe},
    toolchain,
    trust::{self, TrustError},
    vendor,
    workshop::Workshop,
};
use release::{Digest, Envelope, Manifest, Profile, VcpuMeasurement};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    panic::resume_unwind,
    path::{Path, PathBuf},
    thread,
};

/// Contents of files by their names in a release.
pub type Content = BTreeMap<&'static str, Vec<u8>>;

/// How much of a release is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everything that a node needs.
    Whole,
    /// The guest alone: all that a node needs whose host is another system.
    Guest,
}

/// A release before it is written.
pub struct Release {
    /// The unsigned manifest.
    pub manifest: Manifest,
    /// What the manifest binds, and what auditors need.
    pub files: Content,
}

/// Makes all that a release of a profile consists of.
pub fn release(workshop: &Workshop, profile: Profile, scope: Scope) -> Result<Release> {
    let recipe = recipe::recipe(&workshop.repository, profile)?;
    // Whether all is there shows at once, not after an hour.
    let trust = match (scope, trust::of_profile(workshop, profile)) {
        (_, Ok(trust)) => trust,
        // A guest alone has nobody to hand its key to.
        (Scope::Guest, Err(ImageError::Trust(TrustError::None(_)))) => None,
        (_, Err(error)) => return Err(error),
    };
    // Both halves take these; made before, they are made once.
    toolchain::open(&workshop.cache, &workshop.inputs)?;
    vendor::open(&workshop.cache, &workshop.repository, &workshop.inputs.sources)?;
    // At the same time, because no compiler keeps all processors busy to its end.
    let root = trust.as_ref().map(|trust| trust.root.as_slice());
    let (guest, host) = thread::scope(|threads| {
        let host = (scope == Scope::Whole).then(|| threads.spawn(|| host::build(workshop, profile, root)));
        let guest = guest::files(workshop, &recipe, root);
        (guest, host.map(|host| host.join().unwrap_or_else(|panic| resume_unwind(panic))))
    });
    let mut content = guest?;
    content.insert(names::LOCK, workshop.inputs.lock.to_text().into_bytes());
    let mut host = host.transpose()?;
    if let (Some(host), Some(trust)) = (&mut host, trust) {
        let uki = installer::uki(workshop, profile, &trust)?;
        host.images.installer = Some(release::File::describe(installer::UKI, &uki));
        host.files.insert(installer::UKI, uki);
        if let Some(measured) = &mut host.images.measured {
            measured.certificates = vec![Digest::of(&trust.certificate)];
        }
    }
    let images = host.map(|host| {
        content.extend(host.files);
        host.images
    });
    let manifest = manifest(workshop, &recipe, images, &content)?;
    Ok(Release { manifest, files: content })
}

fn manifest(
    workshop: &Workshop,
    recipe: &Recipe,
    host: Option<release::HostImages>,
    content: &Content,
) -> Result<Manifest> {
    let cargo_lock = sha256_file(&workshop.repository.join("Cargo.lock"))?;
    let mut inputs = BTreeMap::from([(input_names::CARGO_LOCK.to_owned(), cargo_lock)]);
    for (key, name) in AUDIT {
        if let Some(content) = content.get(name) {
            inputs.insert((*key).to_owned(), Digest::of(content).to_string());
        }
    }
    Ok(Manifest {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        security_epoch: recipe.security_epoch,
        profile: recipe.profile,
        source_commit: guest::commit(&workshop.repository),
        input_lock: workshop.inputs.lock.digest(),
        guest: guest::describe(recipe, content)?,
        host,
        inputs,
    })
}

/// Files for auditors that the manifest's `inputs` bind: key there, name of the file.
pub(crate) const AUDIT: &[(&str, &str)] = &[
    (input_names::KERNEL_CONFIG, names::KERNEL_CONFIG),
    (input_names::HOST_KERNEL_CONFIG, host::names::KERNEL_CONFIG),
    (input_names::SBOM, host::names::SBOM),
];

/// What was built.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// The manifest.
    pub manifest: PathBuf,
    /// Size and SHA-256 of each file, by its name.
    pub files: BTreeMap<String, release::File>,
    /// Measurement of each vCPU model and count.
    pub measurements: Vec<VcpuMeasurement>,
    /// How many keys signed the manifest; 0 for one that is to be signed elsewhere.
    pub signatures: usize,
    /// What was put together for the machine itself.
    pub host: Option<host::assembly::Assembled>,
}

/// Builds a release into `out`.
///
/// `signature` is a detached signature of the unified kernel image; without one, the image of the virtual profile is
/// signed with the development key, and that of the production profile stays as it is.
pub fn build(
    workshop: &Workshop,
    profile: Profile,
    scope: Scope,
    signature: Option<&[u8]>,
    out: &Path,
) -> Result<Summary> {
    let Release { manifest, files: content } = release(workshop, profile, scope)?;
    files::make_folder(out)?;
    for (name, content) in &content {
        files::write_if_changed(&out.join(name), content)?;
    }
    let path = out.join(names::MANIFEST);
    let mut envelope = Envelope::new(manifest.clone())?;
    // The same manifest keeps the signatures that people made.
    let present = std::fs::read(&path).ok().and_then(|bytes| Envelope::from_bytes(&bytes).ok());
    match present.filter(|present| *present.manifest() == manifest) {
        Some(present) => envelope = present,
        None => sign_for_development(&mut envelope, profile)?,
    }
    files::write_if_changed(&path, &envelope.to_bytes())?;
    let host = match scope {
        Scope::Guest => None,
        Scope::Whole => {
            host::assembly::sign(out, profile, signature)?;
            Some(host::assembly::assemble(workshop, out)?)
        }
    };
    let describe =
        |(name, content): (&&str, &Vec<u8>)| ((*name).to_owned(), release::File::describe(*name, content));
    Ok(Summary {
        manifest: path,
        files: content.iter().map(describe).collect(),
        measurements: manifest.guest.measurements,
        signatures: envelope.signers().count(),
        host,
    })
}

/// The virtual profile is signed at once by two of the three development keys, which are public. Any other
/// profile is signed by people, elsewhere.
#[cfg(feature = "virtual")]
fn sign_for_development(envelope: &mut Envelope, profile: Profile) -> Result<()> {
    if profile == Profile::Virtual {
        let [first, second, _] = release::development::signing_keys()?;
        release::sign(envelope, &first)?;
        release::sign(envelope, &second)?;
    }
    Ok(())
}

/// A program without the development keys signs nothing.
#[cfg(not(feature = "virtual"))]
fn sign_for_development(_: &mut Envelope, _: Profile) -> Result<()> {
    Ok(())
}
