//! `redoubt release sign-id-blocks`: what the holder of the ID key does, before the release keys sign.

use crate::output::{Failure, Reply};
use crate::releases::manifest_path;
use attestation::Measurement;
use attestation::measurement::id_block::sign::SigningKey;
use clap::Args;
use host_os::bundle::expected_identity;
use release::{
    AuthorSignature, BlockSignature, Envelope, ID_BLOCK_FILE, IdBlockSignatures, LaunchId, Manifest, P384Key,
    P384Signature,
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Sign an ID block for each measurement of a manifest that no release key has signed yet
///
/// Writes the digests of the keys and the two ids into the manifest, and the signatures into id-blocks.json beside it.
/// The guest SVN is the manifest's security epoch. A key is made by
/// `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384`.
#[derive(Debug, Args)]
pub(crate) struct SignIdBlocks {
    /// The manifest, or the directory that holds it as manifest.json
    #[arg(value_name = "MANIFEST")]
    manifest: PathBuf,
    /// The ID key: P-384, PKCS #8, PEM
    #[arg(long, value_name = "FILE")]
    id_key: PathBuf,
    /// The author key, which certifies the ID key [default: none]
    #[arg(long, value_name = "FILE")]
    author_key: Option<PathBuf>,
    /// FAMILY_ID: 32 hexadecimal digits, or up to 16 characters
    #[arg(long, value_name = "ID", default_value = "redoubt", value_parser = launch_id)]
    family_id: LaunchId,
    /// IMAGE_ID; the same for all releases that may read each other's sealed data
    #[arg(long, value_name = "ID", default_value = "guest-os", value_parser = launch_id)]
    image_id: LaunchId,
}

/// Hexadecimal digits, or text with zeros after it.
fn launch_id(text: &str) -> Result<LaunchId, String> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let mut id = [0; 16];
    match id.get_mut(..text.len()) {
        Some(place) if text.is_ascii() => place.copy_from_slice(text.as_bytes()),
        _ => return Err("give 32 hexadecimal digits or up to 16 ASCII characters".to_owned()),
    }
    Ok(LaunchId(id))
}

fn key(path: &Path) -> Result<SigningKey, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::new("key-unreadable", format!("cannot read {}: {error}", path.display()))
    })?;
    SigningKey::from_pem(&text)
        .map_err(|error| Failure::new("key-unusable", format!("{}: {error}", path.display())))
}

pub(crate) fn run(args: &SignIdBlocks) -> Result<Reply, Failure> {
    let path = manifest_path(&args.manifest);
    let failed = |error: &dyn std::error::Error| Failure::of("id-blocks-not-signed", error);
    let bytes = std::fs::read(&path).map_err(|error| {
        Failure::new("file-unreadable", format!("cannot read {}: {error}", path.display()))
    })?;
    let envelope = Envelope::from_bytes(&bytes).map_err(|error| failed(&error))?;
    if envelope.signers().next().is_some() {
        return Err(Failure::new(
            "manifest-already-signed",
            format!(
                "{} is signed by release keys, whose signatures would be void; sign the ID blocks before that",
                path.display()
            ),
        ));
    }
    let (id_key, author_key) = (key(&args.id_key)?, args.author_key.as_deref().map(key).transpose()?);
    let mut manifest = envelope.manifest().clone();
    let signatures =
        sign(&mut manifest, args, &id_key, author_key.as_ref()).map_err(|error| failed(&*error))?;
    let envelope = Envelope::new(manifest).map_err(|error| failed(&error))?;
    let file = path.with_file_name(ID_BLOCK_FILE);
    for (path, content) in
        [(&path, envelope.to_bytes()), (&file, signatures.to_bytes().map_err(|error| failed(&error))?)]
    {
        std::fs::write(path, content).map_err(|error| {
            Failure::new("file-unwritable", format!("cannot write {}: {error}", path.display()))
        })?;
    }
    let text = format!(
        "{} ID blocks are signed in {}; now have the release keys sign {}",
        signatures.blocks.len(),
        file.display(),
        path.display()
    );
    let json = json!({
        "signatures": file,
        "manifest": path,
        "id_key_digest": id_key.public_key().digest(),
        "author_key_digest": author_key.map(|key| key.public_key().digest()),
        "blocks": signatures.blocks.len(),
    });
    Ok(Reply::good(text, json))
}

fn sign(
    manifest: &mut Manifest,
    args: &SignIdBlocks,
    id_key: &SigningKey,
    author_key: Option<&SigningKey>,
) -> Result<IdBlockSignatures, Box<dyn std::error::Error>> {
    let digest = |key: &SigningKey| release::Measurement(key.public_key().digest().0);
    manifest.guest.id_block = Some(release::IdBlock {
        family_id: args.family_id,
        image_id: args.image_id,
        id_key_digest: digest(id_key),
        author_key_digest: author_key.map(digest),
    });
    let block = |entry: &release::VcpuMeasurement| {
        let measurement = Measurement(entry.measurement.0);
        let expected = expected_identity(manifest, measurement).ok_or("the manifest has no ID block")?;
        Ok(BlockSignature {
            vcpu_type: entry.vcpu_type.clone(),
            vcpus: entry.vcpus,
            signature: P384Signature(id_key.sign_block(&expected.block)?.0),
        })
    };
    let author = match author_key {
        Some(author) => Some(AuthorSignature {
            key: P384Key(*author.public_key().point()),
            signature: P384Signature(author.certify(&id_key.public_key())?.0),
        }),
        None => None,
    };
    Ok(IdBlockSignatures {
        id_key: P384Key(*id_key.public_key().point()),
        author,
        blocks: manifest
            .guest
            .measurements
            .iter()
            .map(block)
            .collect::<Result<_, Box<dyn std::error::Error>>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_hexadecimal_or_text() {
        assert_eq!(launch_id("redoubt").unwrap().0, *b"redoubt\0\0\0\0\0\0\0\0\0");
        assert_eq!(launch_id(&"ab".repeat(16)).unwrap().0, [0xab; 16]);
        assert!(launch_id("seventeen letters").is_err());
    }
}
